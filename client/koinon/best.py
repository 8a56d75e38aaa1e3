"""Which round's model is the best of a run, from what its coordinator says of the rounds."""

from collections.abc import Iterable
from typing import NamedTuple

from koinon_core.errors import NotFound
from koinon_core.flow.best import Best
from koinon_core.spec import RunSpec
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["BestModel", "best_of", "values_of"]


class BestModel(NamedTuple):
    """A round, whose model has the best value of a metric."""

    round: int
    metric: str
    value: float


def best_of(got: pb.GetResponse) -> BestModel:
    """The best of the models that rounds made, by the run's [best], or by the smallest eval.loss where it has none.
    NotFound if nothing was measured."""
    watch = RunSpec.decode(got.spec).watch or Best("eval.loss", "min")
    found = watch.over(values_of(got.rounds, watch.metric))
    if found is None:
        raise NotFound(
            f"run {got.run.name!r} has no {watch.metric!r} yet; devices measure it with evaluate= (eval.) or "
            "submit(metrics=) (train.), and you with `koinon run evaluate` (central.)"
        )
    return BestModel(found.round, watch.metric, found.value)


def values_of(rounds: Iterable[pb.RoundInfo], metric: str) -> list[tuple[int, float]]:
    """(round, value) of a metric, in the order of rounds."""
    return sorted((r.number, r.metrics[metric]) for r in rounds if metric in r.metrics)
