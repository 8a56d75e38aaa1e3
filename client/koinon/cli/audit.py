"""`koinon audit ...`: what was decided about a run, and whether it still says the same."""

from typing import Annotated, Any

import typer
from rich.table import Table

from koinon.cli.output import Address, AsJson, Credentials, Insecure, console, moment, print_json
from koinon.operator import Operator
from koinon_core import audit
from koinon_core.errors import NotFound, StoreError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Name = Annotated[str, typer.Argument(help="The run's name or id.")]


@app.command(epilog="Example: koinon audit log digits")
def log(
    name: Name,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Print a run's audit log, oldest entry first."""
    with Operator(address, credentials, insecure=insecure) as operator:
        entries = list(operator.audit(name))
    if json:
        print_json([{**e.value, "hash": e.hash} for e in entries])
        return
    table = Table(box=None)
    for column in ("number", "when", "what"):
        table.add_column(column, no_wrap=True)
    table.add_column("about")
    for e in entries:
        value = e.value
        about = _about(value)
        table.add_row(str(e.number), moment(value["at"]), value["kind"], about)
    console().print(table)


def _about(value: dict[str, Any]) -> str:
    match value["kind"]:
        case "ended":
            facts = value["facts"]
            said = f"round {facts['round']} {facts['outcome']}, {len(facts['accepted'])} updates"
            return f"{said}, head {value['head'][:12]}" + (f": {value['reason']}" if value["reason"] else "")
        case "opened":
            return f"round {value['round']}, terms {value['terms'][:12]}"
        case "taken up":
            return f"epoch {value['epoch']}, after {value['away']:.1f} s"
        case "status":
            return f"{value['status']} {value['reason']}".strip()
        case "recovered":
            return f"recovery {value['recovery']}, rounds go on above {value['beyond']}"
    return f"model {value['model'][:12]}"


@app.command(epilog="Example: koinon audit verify digits")
def verify(
    name: Annotated[str | None, typer.Argument(help="The run's name or id; default: all runs.")] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Follow the hash chain of the audit log, here on this machine. Exits with 1 if it does not hold."""
    with Operator(address, credentials, insecure=insecure) as operator:
        names = [name] if name else [run.name for run in operator.runs()]
        reports = {}
        for one in names:
            got = operator.get(one)  # first: the log may grow while it is read
            ends = got.audit_number, got.audit_hash
            reports[one] = report = audit.verify(operator.audit(one), ends)
            if not report.problems and got.head and got.head not in report.heads:
                report.problems.append("the run's own head is not in its log")
    if json:
        print_json(
            {
                one: {"entries": r.entries, "rounds": r.rounds, "head": r.head, "hash": r.hash, "problems": r.problems}
                for one, r in reports.items()
            }
        )  # fmt: skip
    else:
        for one, r in reports.items():
            state = "; ".join(r.problems) or (
                "the chain holds" if r.entries else "an older version kept none"
            )
            console().print(f"{one}: {r.entries} entries, {r.rounds} rounds, head {r.head[:12]}: {state}")
    if any(r.problems for r in reports.values()):
        raise StoreError("an audit log does not hold: its database was changed, or is damaged")


@app.command(epilog="Example: koinon audit replay digits --round 7")
def replay(
    name: Name,
    round_: Annotated[int | None, typer.Option("--round", min=1, help="Only this round.")] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Take the sums of closed rounds again from the updates that are kept, and compare. Exits with 1 on a mismatch."""
    found = []
    with Operator(address, credentials, insecure=insecure) as operator:
        for seen in operator.replay(name, round_):
            found.append(seen)
            if not json:
                console().print(f"round {seen.round}: {seen.verdict}: {seen.detail}")
    if json:
        print_json([{"round": s.round, "verdict": s.verdict, "detail": s.detail} for s in found])
    if any(s.verdict == "mismatch" for s in found):
        raise StoreError("a round does not come out as it was: its updates or its model were changed")
    if not found:
        raise NotFound(f"run {name!r} has no closed round{f' {round_}' if round_ else ''} to replay")
