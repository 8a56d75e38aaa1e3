"""`koinon run compare`: several runs side by side, as a table and as curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from koinon.best import values_of
from koinon.cli import measured
from koinon.cli.output import Address, AsJson, Credentials, Insecure, console, print_json, size, table_of
from koinon.operator import Operator
from koinon_core.errors import NotFound, UsageError
from koinon_core.flow.best import Best, mode_of
from koinon_core.spec import RunSpec
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["compare"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_SPREAD = "over devices"


def compare(
    names: Annotated[list[str], typer.Argument(help="Names or ids of two runs or more.")],
    metric: Annotated[
        str | None, typer.Option(help="By this metric; default: eval.accuracy, eval.loss, or what all have.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the curves into this file (.png, .svg, .pdf); wants koinon[plot]."),
    ] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Compare runs: how good their models became, in how many rounds, at what cost."""
    if len(names) < 2:
        raise UsageError("name two runs or more to compare; `koinon run ls` lists them")
    with Operator(address, credentials, insecure=insecure) as operator:
        runs = [operator.get(name) for name in names]
    chosen = metric or _shared(runs)
    rows = [_row(got, chosen) for got in runs]
    if plot is not None:
        _draw(runs, chosen, plot)
    if json:
        print_json({"metric": chosen, "runs": rows})
        return
    out = console()
    out.print(_table(rows, chosen))
    if len({row["mode"] for row in rows}) > 1:
        judged = ", ".join(
            f"{row['run']} by the {'largest' if row['mode'] == 'max' else 'least'}" for row in rows
        )
        out.print(f"the runs are judged differently, each as its own settings say: {judged}")
    for got, row in zip(runs, rows, strict=True):
        out.print(f"{got.run.name}  {_spark([value for _, value in row['values']])}")
    if plot is not None:
        out.print(f"{plot}: the curves of {chosen}")


def _shared(runs: Sequence[pb.GetResponse]) -> str:
    """A metric that all runs have."""
    sets = [{name for r in got.rounds for name in measured.means(r.metrics)} for got in runs]
    both = set.intersection(*sets)
    for name in ("eval.accuracy", "eval.loss", *sorted(both)):
        if name in both:
            return name
    raise NotFound(
        "these runs have no metric in common; devices measure with evaluate= or submit(metrics=), and "
        f"they have {'; '.join(', '.join(sorted(s)) or 'none' for s in sets)}"
    )


def _row(got: pb.GetResponse, metric: str) -> dict[str, Any]:
    values = values_of(got.rounds, metric)
    if not values:
        raise NotFound(f"run {got.run.name!r} has no {metric!r}; see `koinon run show {got.run.name}`")
    best = _judge(got, metric)
    found = best.over(values)
    assert found is not None
    closed = [r for r in got.rounds if r.status == "closed" and r.kind == "train"]
    ends = [r.closed_at for r in closed if r.closed_at]
    return {
        "run": got.run.name, "strategy": got.run.strategy, "status": got.run.status, "rounds": got.run.rounds_closed,
        "best": found.value, "best_round": found.round, "last": values[-1][1], "mode": best.mode,
        "over_devices": _over_devices(got, metric),
        "bytes_up": sum(r.bytes_up for r in got.rounds), "bytes_down": sum(r.bytes_down for r in got.rounds),
        "seconds": max(ends) - min(r.opened_at for r in closed) if ends else 0.0, "values": values,
    }  # fmt: skip


def _judge(got: pb.GetResponse, metric: str) -> Best:
    """By what the best value of the metric is known: by the run's own [best] where it is about that, as `run export
    --best` has it; else by the metric's name."""
    own = RunSpec.decode(got.spec).watch
    if own is not None and own.metric == metric:
        return own
    return Best(metric, mode_of(metric))


def _over_devices(got: pb.GetResponse, metric: str) -> dict[str, float]:
    """How the metric was distributed over devices when it was last measured."""
    known = (measured.over_devices(metric, r.metrics) for r in reversed(got.rounds) if metric in r.metrics)
    return next(filter(None, known), {})


def _table(rows: Sequence[dict[str, Any]], metric: str) -> Table:
    columns = (
        "run",
        "strategy",
        "status",
        "rounds",
        f"best {metric}",
        "in round",
        "last",
        _SPREAD,
        "up",
        "down",
        "seconds",
    )
    shown = [
        (
            row["run"], row["strategy"], row["status"], str(row["rounds"]), f"{row['best']:.4g}",
            str(row["best_round"]), f"{row['last']:.4g}", " ".join(f"{v:.3g}" for v in row["over_devices"].values()),
            size(row["bytes_up"]), size(row["bytes_down"]), f"{row['seconds']:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    return table_of(columns, shown, measured=(_SPREAD,))


def _spark(values: Sequence[float]) -> str:
    """A curve in one line of text, from its least to its largest value."""
    step = max(1, -(-len(values) // _WIDTH))
    shown = values[::step]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown) + f"  {low:.4g} to {high:.4g}"


def _draw(runs: Sequence[pb.GetResponse], metric: str, to: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "drawing wants matplotlib: pip install 'koinon[plot]', or leave --plot out"
        ) from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for got in runs:
        rounds, values = zip(*values_of(got.rounds, metric), strict=True)
        axes.plot(rounds, values, label=f"{got.run.name}: {got.run.strategy}"[:80])
    axes.set_xlabel("round")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(to, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{to} cannot be drawn: {error}") from error
