"""`koinon run ...`: what an operator does with runs. Each command makes one or two calls and prints."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from koinon.best import best_of
from koinon.cli import costs, measured
from koinon.cli.output import (
    Address,
    AsJson,
    Credentials,
    Insecure,
    as_dict,
    console,
    elapsed,
    figure,
    moment,
    print_json,
    size,
    table_of,
)
from koinon.operator import Operator
from koinon.tracking.told import counted_in
from koinon_core.errors import NotFound, RunEnded, UsageError
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Name = Annotated[str, typer.Argument(help="The run's name or id.")]


@app.command("ls", epilog="Example: koinon run ls --json")
def list_runs(
    address: Address = None, credentials: Credentials = None, insecure: Insecure = None, json: AsJson = False
) -> None:
    """List all runs."""
    with Operator(address, credentials, insecure=insecure) as operator:
        runs = operator.runs()
    if json:
        print_json([as_dict(run) for run in runs])
        return
    table = Table(box=None)
    for column in ("name", "status", "rounds", "devices", "created"):
        table.add_column(column, no_wrap=True)
    table.add_column("note")
    for run in runs:
        table.add_row(
            run.name, run.status, f"{run.rounds_closed}/{run.rounds}", str(run.devices), moment(run.created_at),
            run.waiting_for or ("" if run.status == "finished" else run.reason),
        )  # fmt: skip
    console().print(table)


@app.command(epilog="Example: koinon run show digits --round 3")
def show(
    name: Name,
    round_: Annotated[
        int | None,
        typer.Option(
            "--round", min=0, max=(1 << 63) - 1, help="Every participant of this round, and its cost."
        ),
    ] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Show a run: every round, who took part, how long each phase took, and what went wrong."""
    with Operator(address, credentials, insecure=insecure) as operator:
        got = operator.get(name, costs=json or round_ is not None, round_=round_)
    if json:
        value = as_dict(got)
        value.pop("spec")
        print_json({**value, "settings": _spec(got)})
        return
    out = console()
    out.print(_headline(got.run))
    if round_ is not None:
        out.print(_participants_table(got, round_))
        for r in got.rounds:
            if r.number == round_ and (waited := _still_out(r)):
                out.print(waited)
        return
    secure = ", secure" if got.run.aggregation == "secure" else ""
    out.print(f"strategy {got.run.strategy}{secure}, model {got.model_digest[:12]}, history {got.head[:12]}")
    out.print(_rounds_table(got.rounds))
    if any(measured.over_devices(name, r.metrics) for r in got.rounds for name in r.metrics):
        out.print(measured.LEGEND, style="dim")
    for r in got.rounds:
        if waited := _still_out(r):
            out.print(waited)
        missing = [p for p in r.participants if p.status not in ("counted", "staged", "asked", "joined")]
        for p in missing:
            out.print(f"round {r.number}: {p.client} {p.status.replace('_', ' ')}: {p.reason}")
        if r.status == "abandoned":
            out.print(f"round {r.number} was abandoned: it {r.reason}")
    if got.incidents:
        table = Table("when", "device", "round", "what", title="Incidents", title_justify="left", box=None)
        for i in got.incidents:
            table.add_row(moment(i.at), i.client or "coordinator", str(i.round or ""), i.message)
        out.print(table)


def _spec(got: pb.GetResponse) -> Any:
    import json

    return json.loads(got.spec)


def _headline(run: pb.RunInfo) -> Text:
    note = run.waiting_for or run.reason
    return Text.assemble(
        (run.name, "bold"),
        f" is {run.status}, {run.rounds_closed} of {run.rounds} rounds closed, {run.devices} devices attached",
        f"; {note}" if note else "",
    )


def _participants_table(got: pb.GetResponse, number: int) -> Table:
    r = next((r for r in got.rounds if r.number == number), None)
    if r is None:
        raise NotFound(f"run {got.run.name!r} has no round {number}; its rounds are 1 to {len(got.rounds)}")
    title = ", ".join(filter(None, (f"Round {number}", r.kind, r.status, _attempt(r), _secure(r))))
    # How many examples a device of a secure round has is nobody's business, and nobody knows.
    told = any(p.HasField("spent") for p in r.participants)
    columns = (
        "device", "status", "answered after s", "up", *([] if r.secure else ["examples"]), *(["cost"] if told else []),
        "why",
    )  # fmt: skip
    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column, no_wrap=column not in ("why", "cost"))
    for p in r.participants:
        examples = f"{p.examples or ''}{' (partial)' if p.partial else ''}"
        table.add_row(
            p.client, p.status.replace("_", " "), elapsed(r.asked_at, p.answered_at), size(p.bytes_up),
            *([] if r.secure else [examples]), *([costs.of_device(p.spent)] if told else []), p.reason,
        )  # fmt: skip
    return table


def _secure(r: pb.RoundInfo) -> str:
    return "secure" if r.secure else ""


def _attempt(r: pb.RoundInfo) -> str:
    """Which attempt at its sum an open secure round is in, where it is not the first."""
    return f"attempt {r.attempt}" if r.attempt > 1 else ""


def _still_out(r: pb.RoundInfo) -> str:
    """Whose answers a secure round waits for: it asks everybody several times, and the table has one status for all."""
    if not (r.secure and r.awaited):
        return ""
    return f"round {r.number} collects {r.status}, still out: {', '.join(r.awaited)}"


def _rounds_table(rounds: Any) -> Table:
    rows = []
    for r in rounds:
        phases = (
            elapsed(r.opened_at, r.asked_at), elapsed(r.asked_at, r.folding_at), elapsed(r.folding_at, r.closed_at),
        )  # fmt: skip
        rows.append((
            str(r.number), _status(r), _counted(r), _partial(r, counted_in(r)), size(r.bytes_up),
            figure(r.bits, r.bits > 0), figure(r.nmse, r.bits > 0 and not r.secure), size(r.bytes_down),
            "+".join(filter(None, phases)), figure(r.upload_s, r.upload_s > 0), figure(r.fold_s, r.fold_s > 0),
            costs.of_round(r), _metrics(r),
        ))  # fmt: skip
    columns = (
        "round", "status", "counted", "partial", "up", "bits/param", "NMSE", "down", "join+work+sum s", "upload s",
        "fold s", "energy", "metrics",
    )  # fmt: skip
    measured = ("partial", "bits/param", "NMSE", "upload s", "fold s", "energy")
    return table_of(
        columns,
        rows,
        measured=measured,
        spare=("fold s", "upload s", "NMSE", "bits/param", "down", "up", "energy"),
    )


def _partial(r: pb.RoundInfo, counted: int) -> str:
    """How many of the devices in the sum stopped their work early: of a secure round the sum says it."""
    return str(round(r.metrics["partial"] * counted)) if "partial" in r.metrics else ""


def _counted(r: pb.RoundInfo) -> str:
    """How many updates are in the round's sum, and of how many devices that were asked; what an asynchronous round sums
    was perhaps asked for before it, so of that how many models old it was."""
    if "staleness" in r.metrics:
        return f"{counted_in(r)}, age {r.metrics['staleness']:.2g}"
    return f"{counted_in(r)}/{len(r.participants)}"


def _status(r: pb.RoundInfo) -> str:
    """What became of the round, or what it is collecting."""
    status = r.status if r.kind == "train" else "evaluation"
    return ", ".join(filter(None, (status, _attempt(r), _secure(r))))


def _metrics(r: pb.RoundInfo) -> str:
    """What was measured: `train.` in the round, `eval.` (by devices) and `central.` of the model that it made."""
    return measured.said(r.metrics)


@app.command(epilog="Example: koinon run watch digits")
def watch(
    name: Name,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Follow a run until it is over: a line for every round that ends. Exits with 6 if it did not finish."""
    import json as encoder

    out = console()
    told: set[int] = set()
    waiting = ""
    with Operator(address, credentials, insecure=insecure) as operator:
        for seen in operator.watch(name):
            for r in seen.rounds:
                if r.status not in ("closed", "abandoned") or r.number in told:
                    continue
                told.add(r.number)
                counted = counted_in(r)
                if json:
                    print(encoder.dumps(as_dict(r)), flush=True)
                else:
                    end = (", secure" if r.secure else "") + (f": it {r.reason}" if r.reason else "")
                    out.print(
                        f"round {r.number} {r.kind} {r.status}{end}, {counted} counted, {size(r.bytes_up)} up, "
                        f"{size(r.bytes_down)} down, {elapsed(r.opened_at, r.closed_at)} s  {_metrics(r)}"
                    )
            run = seen.run
            if not json and run.waiting_for != waiting and "have joined" in run.waiting_for:
                out.print(run.waiting_for, style="dim")
            waiting = run.waiting_for
    if run.status != "finished":
        raise RunEnded(f"run {run.name!r} {run.status}: {run.reason or run.waiting_for}")
    if not json:
        out.print(_headline(run))


@app.command(epilog="Example: koinon run why digits")
def why(
    name: Name,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Say what a run waits for, or how it ended."""
    with Operator(address, credentials, insecure=insecure) as operator:
        got = operator.get(name)
    reason = got.run.waiting_for or f"it {got.run.status}: {got.run.reason}"
    recent = [i for i in got.incidents if not got.rounds or i.round in (0, got.rounds[-1].number)]
    now = got.rounds[-1] if got.rounds else pb.RoundInfo()
    if json:
        print_json(
            {
                "status": got.run.status,
                "waiting_for": got.run.waiting_for,
                "reason": got.run.reason,
                "attached": list(got.attached),
                "collection": now.status if now.awaited else "",
                "attempt": now.attempt,
                "awaited": list(now.awaited),
                "incidents": [as_dict(i) for i in recent],
            }
        )
        return
    out = console()
    out.print(f"{got.run.name}: {reason}")
    if said := _still_out(now):
        out.print(said)
    out.print(f"attached now: {', '.join(got.attached) or 'no device'}")
    for i in recent:
        out.print(f"{i.client or 'coordinator'}: {i.message}")


def _control(operator: Operator, name: str, verb: str, reason: str = "", beyond: int = 0) -> None:
    with operator:
        console().print(_headline(operator.control(name, verb, reason, beyond)))


@app.command(epilog="Example: koinon run pause digits")
def pause(
    name: Name, address: Address = None, credentials: Credentials = None, insecure: Insecure = None
) -> None:
    """Open no further round; the one that is open goes on to its end."""
    _control(Operator(address, credentials, insecure=insecure), name, "pause")


@app.command(epilog="Example: koinon run resume digits")
def resume(
    name: Name, address: Address = None, credentials: Credentials = None, insecure: Insecure = None
) -> None:
    """Let a paused run go on."""
    _control(Operator(address, credentials, insecure=insecure), name, "resume")


@app.command(epilog="Example: koinon run cancel digits --reason 'wrong labels'")
def cancel(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; devices and the run database are told.")] = "",
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """End a run now. Its models stay; the open round is abandoned."""
    _control(Operator(address, credentials, insecure=insecure), name, "cancel", reason)


@app.command(epilog="Example: koinon run recover digits")
def recover(
    name: Name,
    beyond: Annotated[
        int,
        typer.Option(min=0, max=(1 << 62), help="Use no round number up to this; default: what devices saw."),
    ] = 0,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """Let a run go on whose database was restored from an old backup: devices that saw more of it follow again.

    What was counted after the backup is lost to the model, though not to the devices. The open round is abandoned.
    """
    _control(Operator(address, credentials, insecure=insecure), name, "recover", beyond=beyond)


@app.command(epilog="Example: koinon run export digits --to model.safetensors --round 7")
def export(
    name: Name,
    to: Annotated[Path, typer.Option(help="The file to write.")],
    round_: Annotated[
        int | None,
        typer.Option("--round", min=0, max=(1 << 63) - 1, help="A round's model; default: the newest."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The best one, by the run's [best] or the smallest eval.loss.")
    ] = False,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """Write a run's model as a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not to.parent.is_dir():
        raise UsageError(f"there is no folder {to.parent} to write {to.name} to")
    if best and round_ is not None:
        raise UsageError("--best finds the round itself; leave --round out")
    with Operator(address, credentials, insecure=insecure) as operator:
        number, model = operator.model(name, best_of(operator.get(name)).round if best else round_)
    metadata = {"koinon.run": name, "koinon.round": str(number)}
    try:
        save_file({n: a.copy() for n, a in model.items()}, to, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{to} cannot be written: {error}") from error
    console().print(f"{to}: the model of round {number}, {size(model.nbytes)}")
