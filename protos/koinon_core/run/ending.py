"""What follows the end of a round: it is counted, and another is opened, or the run is over."""

from dataclasses import replace

from koinon_core.round import effects
from koinon_core.round.ending import dismiss
from koinon_core.run.orders import Finish, Open, Order, Status
from koinon_core.run.state import Moved, Run

__all__ = ["asks_for_losses", "dismissed", "finish", "go_on", "over", "watching"]


def over(run: Run, close: effects.Close) -> Moved:
    """A round ended: count it, and open the next or finish."""
    if run.status == "cancelled":
        return Moved(run)
    if run.kind == "evaluate":
        return finish(run, "finished", _told(run))
    if asks_for_losses(run):
        run = replace(run, streak=run.streak if close.counted else run.streak + 1)
    elif not _short(run):
        run = replace(
            run,
            closed=run.closed + close.counted,
            streak=0 if close.counted else run.streak + 1,
        )
    if run.streak >= run.spec.patience:
        return finish(
            run, "failed", f"{run.streak} rounds in a row were abandoned; the last one {close.reason}"
        )
    # Those who work for a buffer answer into the next one; while the run is paused nobody is given more work.
    return go_on(run) if run.status == "running" or (run.spec.buffer and run.trains) else Moved(run)


def go_on(run: Run) -> Moved:
    """Open the next round, an evaluation of the last model at the end, or finish."""
    if run.trains:
        return Moved(run, (), (Open(max(run.number, run.beyond) + 1),))
    fewest = run.spec.quorum if run.spec.aggregation == "secure" else 1
    if run.spec.evaluate and run.kind == "train" and run.evaluating >= fewest:
        return Moved(replace(run, kind="evaluate"), (), (Open(max(run.number, run.beyond) + 1),))
    return finish(run, "finished", _told(run))


def finish(run: Run, status: Status, reason: str) -> Moved:
    """The run is over."""
    over_now = replace(run, status=status, reason=reason)
    return Moved(over_now, (), (*dismissed(run), Finish(status, reason)))


def dismissed(run: Run) -> tuple[Order, ...]:
    """What devices are told that go on with what the last round gave them, a buffered one, when there is no next."""
    r = run.round
    if r is None or not r.buffered:
        return ()
    return tuple(dismiss(r, client, "the run needs no more updates") for client in sorted(r.update.awaited))


def _told(run: Run) -> str:
    best = run.spec.watch
    early = best is not None and best.ends(run.best) and run.closed < run.spec.rounds
    why = f" early: {best.sentence(run.best)}" if early and best is not None and run.best is not None else ""
    return f"{run.closed} rounds closed{why}"


def watching(run: Run, watched: tuple[int, float] | None) -> Run:
    """The run once the metric that it is watched by was measured of a model: (its round, the value). It may come late,
    not in order, or again, so the order of rounds and the last value of each count, as for who takes the run up."""
    if run.spec.watch is None or watched is None:
        return run
    measured = {**run.measured, watched[0]: watched[1]}
    return replace(run, measured=measured, best=run.spec.watch.over(sorted(measured.items())))


def asks_for_losses(run: Run) -> bool:
    """Whether the round asks for losses, by which those of the next one are chosen."""
    return run.kind == "train" and run.round is not None and run.round.terms.kind == "evaluate"


def _short(run: Run) -> bool:
    """Whether the round ended because too few were drawn: that is chance, and nobody's failure."""
    return run.spec.selecting.rule == "poisson" and run.round is not None and not run.round.update.asked
