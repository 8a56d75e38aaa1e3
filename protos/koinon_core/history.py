"""The history of a run as a hash chain: what was counted, round after round, and nothing else.

    head after round r = SHA-256(head before it || link(r))

A link is the digest of a round's facts: who was accepted with which bytes, the sum as integers, and the model and
state that came of it. No time, no retry and no random number is in it, so a run that was killed and taken up again
has the same head as one that was not. Devices pin the last head that they saw: a coordinator that was restored from
an old backup cannot show that its chain goes on from there, and is refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from koinon_core.canonical import digest_of, sha256
from koinon_core.round.machine import Round
from koinon_core.round.terms import Terms

__all__ = ["Pin", "Standing", "extend", "facts_of", "genesis", "judge", "judge_standing", "link_of", "walk"]

Judgement = Literal["follow", "prove", "refuse"]


def genesis(spec: bytes, model: str, state: str) -> str:
    """The head before the first round: what was submitted, and the first model and state by digest."""
    return digest_of(["koinon", sha256(spec), model, state])


def facts_of(r: Round) -> dict[str, Any]:
    """What a round that is over added to its run. Of a masked update the digest says nothing: its masks are others in
    every attempt, and the sum is the same."""
    accepted = r.accepted
    return {
        "round": r.terms.round,
        "kind": r.terms.kind,
        "outcome": r.stage,
        "accepted": [
            [
                client,
                "" if r.secure else r.update.heard[client],
                *([r.round_of(client)] if r.buffered else []),
            ]
            for client in accepted
        ],
        "sum": r.made.sum,
        "model": r.made.model,
        "state": r.made.state,
    }


def link_of(r: Round) -> str:
    """The link that a round which is over adds to the chain."""
    return digest_of(facts_of(r))


def extend(head: str, link: str) -> str:
    """The head after one more link."""
    return sha256(f"{head}{link}".encode())


def walk(head: str, links: Mapping[int, str], first: int, before: int) -> str:
    """The head after the links of the rounds from `first` up to, not including, `before`; numbers may be missing."""
    for number in sorted(n for n in links if first <= n < before):
        head = extend(head, links[number])
    return head


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a coordinator says that a run stands: `round` is the last that was opened, `head` the chain's after the
    last that is over, `recovery` how often an operator let it go on from an older state."""

    round: int = 0
    head: str = ""
    recovery: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a device remembers of a run: the last round that it was asked in with its incarnation, the head that the
    round stood on, the run's recoveries, and the highest epoch of an owner that it heard. `aggregation` is how the run
    was when the device first heard of it, and never changes; `done` the last round whose update was dropped."""

    round: int = 0
    incarnation: str = ""
    head: str = ""
    recovery: int = 0
    epoch: int = 0
    aggregation: str = ""
    done: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Pin":
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in value.items() if k in known})

    def move(self, terms: Terms, epoch: int) -> "Pin":
        """The pin after being asked in these terms."""
        return replace(
            self, round=terms.round, incarnation=terms.incarnation, head=terms.head, recovery=terms.recovery,
            epoch=max(self.epoch, epoch), aggregation=self.aggregation or terms.aggregation,
        )  # fmt: skip


def judge_standing(pin: Pin, standing: Standing, links: Mapping[int, str], settled: int = 0) -> str:
    """Why a coordinator that says this must not be followed; empty if its history goes on from the pin. `links` holds
    every round that is over, from the pinned one on; `settled` is the last that the device knows to have counted it."""
    if not pin.round or standing.recovery > pin.recovery:
        return ""
    if standing.recovery < pin.recovery or standing.round < pin.round:
        return (
            f"this device was asked in round {pin.round}, and the coordinator knows {standing.round} rounds"
        )
    if settled == pin.round and settled not in links:
        return f"this device was counted in round {settled}, which the coordinator does not know to be over"
    if pin.head and walk(pin.head, links, pin.round, standing.round + 1) != standing.head:
        return f"the coordinator's history since round {pin.round} is not the one that this device saw"
    return ""


def judge(pin: Pin, terms: Terms, links: Mapping[int, str]) -> tuple[Judgement, str]:
    """Whether a device with this pin may work under these terms, and if not, why. "prove": the links at hand do not
    lead from the pin to the terms, but more of them may."""
    if not pin.round or (terms.recovery > pin.recovery and terms.round > pin.round):
        return "follow", ""
    if terms.recovery != pin.recovery or terms.round < pin.round:
        return "refuse", f"round {terms.round} is asked for after round {pin.round} was"
    if terms.round == pin.round:
        if terms.incarnation == pin.incarnation:
            return "follow", ""
        return "refuse", f"round {terms.round} was opened twice"
    if pin.head and walk(pin.head, links, pin.round, terms.round) != terms.head:
        return "prove", f"round {terms.round} does not stand on the history that this device saw"
    return "follow", ""
