"""`koinon update ...`: what is known of the updates that devices handed in."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from koinon.cli.output import (
    Address,
    AsJson,
    Credentials,
    Insecure,
    as_dict,
    console,
    figure,
    moment,
    print_json,
    size,
    table_of,
)
from koinon.operator import Operator
from koinon_core.errors import NotFound
from koinon_core.wire import convert
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Run = Annotated[str, typer.Argument(help="The run's name or id.")]
_MOST = (1 << 63) - 1  # what a database can hold
_PARTIAL = "work"
_MEASURED = ("bits/param", "NMSE", "norm", "encode s", "upload s")


@app.command("ls", epilog="Example: koinon update ls digits --round 3")
def list_updates(
    run: Run,
    round_: Annotated[int | None, typer.Option("--round", min=1, max=_MOST, help="Only this round.")] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """List a run's updates by round and device: what they weigh, what their codec lost, what became of them."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = list(operator.updates(run, round_))
    if round_ is not None and not found:
        raise NotFound(f"run {run!r} has no update of round {round_}; `koinon run show` says who took part")
    if json:
        print_json([_as_json(u) for u in found])
        return
    columns = ("round", "device", "digest", "codec", "up", *_MEASURED, _PARTIAL, "status", "bytes")
    rows = [
        (
            str(u.round), u.client, u.digest[:12], _codec(u), size(u.bytes), *_measured(u),
            "partial" if u.head.partial else "", u.status.replace("_", " "), _fate(u),
        )
        for u in found
    ]  # fmt: skip
    console().print(table_of(columns, rows, measured=(*_MEASURED, _PARTIAL)))


@app.command(epilog="Example: koinon update show digits 3 device-0")
def show(
    run: Run,
    round_: Annotated[int, typer.Argument(metavar="ROUND", min=1, max=_MOST, help="The round.")],
    device: Annotated[str, typer.Argument(help="The device's name.")],
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Show all that is known of one update."""
    with Operator(address, credentials, insecure=insecure) as operator:
        found = next(operator.updates(run, round_, device), None)
    if found is None:
        raise NotFound(
            f"run {run!r} has no update of {device!r} in round {round_}; `koinon update ls` lists those there are"
        )
    if json:
        print_json(_as_json(found))
        return
    out = console()
    out.print(Text.assemble((f"round {round_}, {device}", "bold"), f": {found.status.replace('_', ' ')}"))
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, said in _all_of(found):
        if said:
            table.add_row(what, said)
    out.print(table)


def _as_json(u: pb.UpdateInfo) -> dict[str, Any]:
    return {**as_dict(u), "bits": convert.stats_from(u.stats).bits(u.bytes)}


def _measured(u: pb.UpdateInfo) -> tuple[str, str, str, str, str]:
    """What stands under _MEASURED."""
    stats = convert.stats_from(u.stats)
    known = stats.parameters > 0
    return (
        figure(stats.bits(u.bytes), known), figure(stats.nmse, known), figure(stats.norm, known),
        figure(stats.encode_s, known), figure(u.upload_s, u.upload_s > 0),
    )  # fmt: skip


def _codec(u: pb.UpdateInfo) -> str:
    """How it is encoded; and that it is masked, so that nothing else is known of it."""
    return f"{u.codec}, secure" if u.secure else u.codec


def _fate(u: pb.UpdateInfo) -> str:
    """Whether its bytes are still there: a round that only evaluates has none."""
    if not u.bytes:
        return "none"
    return "kept" if u.kept else "scrubbed"


def _all_of(u: pb.UpdateInfo) -> list[tuple[str, str]]:
    head = u.head
    return [
        ("why", u.reason),
        ("arrived", moment(u.at)),
        ("digest", u.digest),
        ("bytes", f"{u.bytes}, {_fate(u)}"),
        ("codec", _codec(u)),
        ("parameters", str(u.stats.parameters or "")),
        *zip(_MEASURED, _measured(u), strict=True),
        ("examples", str(head.examples or "")),
        ("steps", str(head.steps or "")),
        (_PARTIAL, "partial" if head.partial else ""),
        ("training", _numbers(head.training)),
        ("evaluation", _numbers(head.evaluation)),
        ("evaluated on", str(head.evaluation_examples or "")),
        ("totals", _numbers(head.totals)),
    ]


def _numbers(values: Any) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
