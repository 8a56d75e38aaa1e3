"""The terms of a round: everything that its participants agree to, fixed when it opens.

A device answers with the digest of the terms that it worked under, so that an update can never be counted in
a round that was about something else.
"""

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from koinon_core.canonical import canonical, sha256
from koinon_core.errors import BadBlob

__all__ = ["COLLECTIONS", "Aggregation", "Kind", "Terms"]

Aggregation = Literal["open", "secure"]
Kind = Literal["train", "evaluate"]

_LATER = frozenset(
    {"head", "recovery", "patience", "weights", "sections", "secure", "concurrency", "staleness", "version"}
)
"""Fields that older versions did not have: left out where they say nothing, so that the terms of a round which was
opened by such a version keep their digest."""

COLLECTIONS: dict[Aggregation, tuple[str, ...]] = {
    "open": ("joined", "update"),
    "secure": ("joined", "keys", "shares", "masked", "consistent", "reveal"),
}
"""What a round of each kind collects, in order."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Units: seconds for `deadline`; `bound` is the largest |value| an update may hold and `grid` the number of
    binary places that the exact sum keeps. `head` is the run's history (koinon_core.history) that the round stands
    on, `recovery` how often an operator let the run go on from an older one. `patience` is how long the round waits for
    its quorum (0: for ever). `weights` is the digest of the model's tensors, however `model` was encoded, and
    `sections` that of what the run's config says of single sections. A round with a `concurrency` is a buffer: so many
    devices are at work at a time, whichever round gave them their work, `version` is how many models the run had made
    when it opened, and `staleness` the most by which an update may be behind that."""

    run: str
    round: int
    incarnation: str
    kind: Kind = "train"
    aggregation: Aggregation = "open"
    groups: int = 1
    goal: int
    quorum: int
    over_selection: float = 1.0
    join_wait: float = 5.0
    deadline: float = 600.0
    schema: str
    strategy: str
    model: str
    down: str = ""
    codec: str = "lossless"
    max_examples: int
    bound: float
    grid: int
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    recovery: int = 0
    patience: float = 0.0
    weights: str = ""
    sections: str = ""
    secure: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 0
    staleness: int = 0
    version: int = 0

    @property
    def buffered(self) -> bool:
        """Whether updates of earlier rounds count in this one."""
        return self.concurrency > 0

    @property
    def invited(self) -> int:
        """How many devices are asked: the goal, and some more where losses are expected."""
        return max(self.goal, -int(-self.goal * self.over_selection // 1))

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes that travel and that the digest is over."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return canonical({k: v for k, v in values.items() if v or k not in _LATER})

    @cached_property
    def digest(self) -> str:
        return sha256(self.encoded)

    @classmethod
    def decode(cls, data: bytes) -> "Terms":
        """The terms that `data` holds; raises BadBlob for anything else."""
        try:
            value = json.loads(data)
            known = {f.name for f in fields(cls)}
            terms = cls(**{k: v for k, v in value.items() if k in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise BadBlob(f"these are not the terms of a round: {error}") from error
        # What is agreed to is what came, with whatever a newer coordinator put in beside what is known here.
        vars(terms)["encoded"] = data
        return terms
