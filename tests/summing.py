"""Secure rounds without masks: devices encode, lanes are added, the coordinator's half decodes and steps.

The sum of masked lanes without their masks is the sum of lanes, so what is true here is true under masks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from koinon_core.blob import Blob
from koinon_core.ring import Sum
from koinon_core.round.terms import Terms
from koinon_core.schema import schema_of
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.total import Total
from koinon_core.spec import RunSpec
from koinon_core.strategy import Strategy, Work, dump
from koinon_core.strategy.closing import Aggregate, Closing, Into, digest_of_tensors, judge, step
from koinon_core.strategy.runner import LocalHalf, Prepared
from koinon_core.strategy.shape import begin, shape_of
from koinon_core.tensors import Tensors
from koinon_core.tiles import Gather, Held
from koinon_core.update import Head, unpack_state


def spec_of(strategy: Strategy, model: Mapping[str, Any], **settings: Any) -> RunSpec:
    base = {
        "name": "sums", "strategy": dump(strategy), "schema": schema_of(model).to_json(), "rounds": 9,
        "aggregation": "secure", "max_examples": 64, "population": 100, "max_clients": 100,
    }  # fmt: skip
    return RunSpec.make(**{**base, **settings})


def added(terms: Terms, blobs: Iterable[Blob]) -> Sum:
    total = Sum(Agreement.of(terms).ring)
    for blob in blobs:
        total.add(blob.bytes())
    return total


@dataclass
class Federation:
    """A run whose devices are named by their callers. `model`, `state` and `tuning` go on from round to round."""

    spec: RunSpec
    model: Tensors
    tuning: str = ""
    number: int = 0
    devices: dict[str, Mapping[str, Tensors]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.strategy, self.layout = self.spec.check()
        self.half = LocalHalf(self.strategy, self.layout)
        self.shape = shape_of(self.strategy, self.layout, self.spec.population or 0)
        state, down = Gather(self.shape.state), Gather(self.shape.down)
        begin(
            self.strategy, self.shape, self.layout, self.spec.population or 0, Held(self.model), state, down
        )
        self.state, self.down = state.tensors, down.tensors

    def terms(self, invited: int, kind: str = "train", **values: Any) -> Terms:
        base: dict[str, Any] = {
            "run": "sums", "round": self.number + 1, "incarnation": "00", "kind": kind, "aggregation": "secure",
            "goal": invited, "quorum": self.spec.quorum, "schema": "", "strategy": "", "model": "",
            "codec": self.spec.codec, "max_examples": self.spec.max_examples, "bound": self.spec.bound,
            "grid": self.spec.grid, "weights": digest_of_tensors(Held(self.model), self.spec.model),
            "secure": self.spec.secure_terms(kind, self.tuning, invited),
        }  # fmt: skip
        return Terms(**{**base, **values})

    def prepare(
        self, client: str, terms: Terms, end: Mapping[str, Any], head: Head, work: Work | None = None
    ) -> Prepared:
        return self.half.prepare(
            state=self.devices.get(client, {}), down=unpack_state(self.down),
            work=work or Work(examples=head.examples), start=Held(self.model), end=Held(end), terms=terms, head=head,
            client=client,
        )  # fmt: skip

    def close(self, terms: Terms, prepared: Mapping[str, Prepared]) -> tuple[Total, Closing]:
        """Take the step, and go on from there."""
        total = Total(
            self.strategy, self.layout, terms, added(terms, (p.blob for p in prepared.values())), sorted(prepared),
            Held(self.model),
        )  # fmt: skip
        if terms.kind == "evaluate":
            return total, judge(total)
        return total, self.step(terms, total, prepared)

    def step(self, terms: Terms, total: Aggregate, prepared: Mapping[str, Prepared]) -> Closing:
        """Step by an aggregate of the round's updates."""
        model, state, down = Gather(self.layout.model), Gather(self.shape.state), Gather(self.shape.down)
        closing = step(
            self.strategy, self.layout, self.shape, terms, self.spec.population or 0, Held(self.model),
            Held(self.state), total, Into(model, state, down),
        )  # fmt: skip
        self.model, self.state, self.down = model.tensors, state.tensors, down.tensors
        self.tuning, self.number = closing.tuning, terms.round
        self.devices |= {client: p.pending for client, p in prepared.items()}
        return closing

    def learn(
        self, changes: Mapping[str, Mapping[str, Any]], examples: Mapping[str, int] | None = None
    ) -> Closing:
        """One round in which each device changes the model as said."""
        terms = self.terms(len(changes))
        weight = examples or dict.fromkeys(changes, 1)
        prepared = {
            client: self.prepare(client, terms, plus(self.model, change), Head(examples=weight[client]))
            for client, change in changes.items()
        }
        return self.close(terms, prepared)[1]


def plus(model: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {n: (a + change[n]).astype(a.dtype) if n in change else a for n, a in model.items()}


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The NMSE."""
    return float(np.sum((found - wanted) ** 2) / np.sum(wanted**2))
