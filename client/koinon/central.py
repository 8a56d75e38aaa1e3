"""Central evaluation: a run's owner measures its models on data of their own, on a machine of their own.

    handle.evaluate(lambda model: {"loss": loss_of(model, held_out)})

It follows the run, loads each model that a round made, calls the owner's function, and has what that says kept as the
metrics `central.NAME` of the round. Nothing of it runs at the coordinator. A round that has some already is not
evaluated again, so that it may be stopped and started at any time.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from koinon_core.errors import NotFound, UsageError
from koinon_core.flow.central import central, is_central
from koinon_core.tensors import Tensors

__all__ = ["Central", "Evaluated", "evaluate"]

_OVER = ("finished", "failed", "cancelled")
Central = Callable[[Tensors], Mapping[str, float]]
"""The owner's function: a model in, metrics out."""


class Evaluated(NamedTuple):
    """A round whose model was measured; or that could not be, and why."""

    round: int
    metrics: Mapping[str, float]
    missing: str = ""


class Source(Protocol):
    """Where a run and its models are: koinon.operator.Operator, or what a test puts in its place."""

    def get(self, run: str) -> Any: ...
    def watch(self, run: str) -> Iterator[Any]: ...
    def model(self, run: str, round_: int | None = None) -> tuple[int, Tensors]: ...
    def measure(self, run: str, round_: int, metrics: Mapping[str, float]) -> Any: ...


def evaluate(
    operator: Source, run: str, function: Central, *, every: int = 1, follow: bool = True
) -> Iterator[Evaluated]:
    """Measure every `every`th of the models that rounds made, and the last one: those that there are, and with `follow`
    those that come until the run is over. UsageError for metrics that cannot be kept; what `function` raises is
    raised."""
    if every < 1:
        raise UsageError(f"every must be at least 1, it is {every}")
    rounds: dict[int, Any] = {}
    done: set[int] = set()
    for seen in operator.watch(run) if follow else [operator.get(run)]:
        rounds.update({r.number: r for r in seen.rounds})
        models = sorted(n for n, r in rounds.items() if r.model_digest)
        done.update(n for n in models if any(map(is_central, rounds[n].metrics)))
        last = models[-1:] if not follow or seen.run.status in _OVER else []
        for number in models:
            if number not in done and (number in last or models.index(number) % every == every - 1):
                done.add(number)
                yield _one(operator, run, function, number)


def _one(operator: Source, run: str, function: Central, number: int) -> Evaluated:
    try:
        _, model = operator.model(run, number)
    except NotFound as error:  # it is kept no longer: rounds are faster than the evaluation
        return Evaluated(number, {}, str(error))
    metrics = function(model)
    central(metrics)
    try:
        operator.measure(run, number, {name: float(value) for name, value in metrics.items()})
    except NotFound as error:  # it went meanwhile
        return Evaluated(number, {}, str(error))
    return Evaluated(number, dict(metrics))
