"""A run as its author writes it down: a model, a strategy, and settings; to be created at a coordinator or
simulated."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koinon.adapt import adapt, check_tied
from koinon.starting import Initial, Start, fitted
from koinon.stored import read_weights
from koinon_core.errors import RunEnded, UsageError
from koinon_core.schema import Schema, schema_of
from koinon_core.spec import RunSpec
from koinon_core.strategy import FedAvg, Strategy, recipe
from koinon_core.tensors import Tensors

if TYPE_CHECKING:
    from koinon.best import BestModel
    from koinon.central import Central, Evaluated
    from koinon.operator import Operator

__all__ = ["Run", "RunHandle", "read_model"]


class Run:
    """One run. `model` is a torch module, a dict of arrays, or a path: a safetensors file, a folder of its shards, or a
    torch checkpoint; `strategy` an object or its line of text; `config` your own settings, which devices find in
    `task.config`. All other settings are those of `koinon_core.spec.RunSpec` (min_clients, clients, deadline, seed).

    `start` has the first weights where they are not the model's own: a path, names to arrays (`handle.model()`, a
    state_dict). All must fit, by name and shape, but for what `allow_missing`, `ignore` (shell patterns) and `rename`
    (how names begin there: and here) say. `started` tells what was taken.

    UsageError, in one sentence with the fix, if it could not run.
    """

    def __init__(
        self, name: str | None = None, *, model: Any, strategy: Strategy | str | None = None, rounds: int = 10,
        config: Mapping[str, Any] | None = None, start: Any = None, allow_missing: bool = False,
        ignore: Sequence[str] = (), rename: Mapping[str, str] | None = None, **settings: Any,
    ):  # fmt: skip
        strategy = FedAvg() if strategy is None else strategy
        if isinstance(strategy, str):
            strategy = recipe.parse(strategy)
        if isinstance(strategy, type):
            raise UsageError(
                f"strategy is the class {strategy.__name__}; did you mean {strategy.__name__}()?"
            )
        self.model, schema = read_model(model)
        federated = None if isinstance(model, str | Path | Tensors | Initial) else adapt(model)
        self.started = ""
        """What was taken of `start`, in a sentence."""
        if start is not None:
            how = Start(weights=start, allow_missing=allow_missing, ignore=ignore, rename=rename)
            self.model, taken = fitted(self.model, how, getattr(federated, "unsent", frozenset()))
            self.started = f"{taken}; the strategy's state, and what devices keep, start afresh"
        elif allow_missing or ignore or rename:
            raise UsageError("allow_missing, ignore and rename are about start, and there is none")
        self.spec = RunSpec.make(
            name=name or f"run-{uuid.uuid4().hex[:8]}", strategy=recipe.dump(strategy), schema=schema.to_json(),
            rounds=rounds, config=dict(config or {}), **settings,
        )  # fmt: skip
        strategy, _ = self.spec.check()
        if federated is not None:
            check_tied(federated, strategy)

    def __repr__(self) -> str:
        return f"Run({self.spec.name!r}, {recipe.show(self.spec.strategy)}, rounds={self.spec.rounds})"

    def create(
        self,
        address: str | None = None,
        *,
        credentials: str | Path | None = None,
        insecure: bool | None = None,
    ) -> "RunHandle":
        """Submit it to the coordinator at `address`, with an operator's `credentials` or, on this machine alone,
        `insecure`. What is not given is found as `koinon.operator.Operator` says."""
        from koinon.operator import Operator

        folder = Path(credentials) if credentials else None
        with Operator(address, folder, insecure=insecure) as operator:
            info = operator.create(self.spec, self.model)
            return RunHandle(operator.address, info.id, self.spec.name, folder, insecure)


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run at a coordinator, and how to get at it."""

    address: str
    id: str
    name: str
    credentials: Path | None = None
    insecure: bool | None = None

    def _operator(self) -> "Operator":
        from koinon.operator import Operator

        return Operator(self.address, self.credentials, insecure=self.insecure)

    def wait(self) -> str:
        """Block until the run is over. RunEnded, with the reason, if it did not finish."""
        with self._operator() as operator:
            for seen in operator.watch(self.id):
                info = seen.run
        if info.status != "finished":
            raise RunEnded(f"run {self.name!r} {info.status}: {info.reason or info.waiting_for}")
        return str(info.reason)

    def model(self, round_: int | None = None) -> Tensors:
        """The newest model, or that of a round (0: the first)."""
        with self._operator() as operator:
            return operator.model(self.id, round_)[1]

    def rounds(self) -> list[Any]:
        """What happened, round by round (koinon.v1.RoundInfo)."""
        with self._operator() as operator:
            return list(operator.get(self.id).rounds)

    def best(self) -> "BestModel":
        """(round, metric, value) of the best model so far, by the run's [best], or by the smallest eval.loss; its
        weights are `model(best().round)`. NotFound while nothing was measured."""
        from koinon.best import best_of

        with self._operator() as operator:
            return best_of(operator.get(self.id))

    def evaluate(
        self, function: "Central", *, every: int = 1, follow: bool = True
    ) -> "list[Evaluated]":  # fmt: skip
        """Measure its models here: `function(model)` gives metrics of a model (names to arrays), which are kept as
        `central.NAME` of the round that made it. Every `every`th round and the last one; until the run is over, or
        with follow=False those that there are. Rounds that have some are left out. Returns what was measured."""
        from koinon.central import evaluate

        with self._operator() as operator:
            return list(evaluate(operator, self.id, function, every=every, follow=follow))

    def updates(self, round_: int | None = None) -> list[Any]:
        """What is known of the updates, of a round or of all (koinon.v1.UpdateInfo), by round and device."""
        with self._operator() as operator:
            return list(operator.updates(self.id, round_))

    def watch(self) -> Iterator[Any]:
        """The run as it changes (koinon.v1.WatchResponse), until it is over."""
        with self._operator() as operator:
            yield from operator.watch(self.id)


def read_model(model: Any) -> tuple[Tensors, Schema]:
    """(weights, schema) of a module, arrays, tensors, or a path."""
    if isinstance(model, Initial):
        return model.weights, model.schema
    if isinstance(model, str | Path):
        weights = read_weights(Path(model))
        return weights, schema_of(weights)
    if isinstance(model, Tensors):
        return model, schema_of(model)
    adapted = adapt(model)
    return adapted.read(), adapted.schema
