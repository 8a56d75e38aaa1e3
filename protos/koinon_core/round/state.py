"""The state of a round at the coordinator: a value, which `machine.step` turns into the next one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from koinon_core.round.effects import Effect
from koinon_core.round.taken import Taken
from koinon_core.round.terms import Terms
from koinon_core.secagg.cohort import Cohort

__all__ = ["MASKED_STAGES", "Collection", "Effects", "Made", "Masking", "Round", "Stage"]

Stage = Literal[
    "joined", "update", "keys", "shares", "masked", "consistent", "reveal", "folding", "closed", "abandoned"
]
Effects = tuple[Effect, ...]
MASKED_STAGES = ("keys", "shares", "masked", "consistent", "reveal")
"""The collections of a secure round, once devices have joined."""
_SUMMED = ("consistent", "reveal", "folding", "closed")  # an open round is never in the first two
_WANTED = {
    "keys": "trained devices",
    "shares": "shares of the devices' secrets",
    "masked": "masked updates",
    "consistent": "the devices to agree on who is in the sum",
    "reveal": "what opens the sum",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Who is asked, who was heard (with the digest of what they said), who left (with the reason)."""

    asked: frozenset[str] = frozenset()
    heard: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None

    @property
    def awaited(self) -> frozenset[str]:
        return self.asked - self.heard.keys() - self.left.keys()

    def hear(self, client: str, digest: str) -> "Collection":
        return replace(self, heard={**self.heard, client: digest})

    def lose(self, client: str, reason: str) -> "Collection":
        return replace(self, left={**self.left, client: reason})


@dataclass(frozen=True, slots=True)
class Made:
    """What a round made, by digest: the model, the strategy's state, and the sum as integers."""

    model: str = ""
    state: str = ""
    sum: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """What a secure round has beside: the attempt that is under way, the collection that it is in, and what the ones
    before it came to.

    `cohorts` are the groups that go on, each with its graph; `shares` those whose shares of their secrets are here
    (U2); `missing` says whose shares a device could not read; `signed` who agreed to the devices in the sum. `excluded`
    may not be in another attempt, and `thorough` asks for all answers that are still out, because those of the quorum
    did not open the sum.
    """

    attempt: int = 0
    now: Collection = Collection()
    cohorts: tuple[Cohort, ...] = ()
    leaves: Mapping[str, str] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    signed: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    thorough: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round's state. It is a value: `step` returns a new one.

    `update` says of everybody who was asked what became of their update; in a secure round the collection that is
    under way is `masking.now`. In a buffered round `taken` says what each of them works on, and `silent` who of those
    who left did so without a word, and was told nothing: they may come back, and what they hand in counts. `ready` has
    those of a secure one who have done their work and wait for others that worked on the same model, in the order in
    which they came, with the digest of their keys (`cohorts.py`).
    """

    terms: Terms
    stage: Stage
    joined: Collection
    update: Collection
    goal: int
    opened_at: float
    asked_at: float | None = None
    folding_at: float | None = None
    ended_at: float | None = None
    gives_up_at: float | None = None
    reason: str = ""
    made: Made = Made()
    masking: Masking = Masking()
    taken: Mapping[str, Taken] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    ready: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.stage in ("closed", "abandoned")

    @property
    def accepted(self) -> tuple[str, ...]:
        """Who is in the sum: fixed when the collection of updates closes, sorted."""
        return tuple(sorted(self.update.heard)) if self.stage in _SUMMED else ()

    def enough(self, heard: Iterable[str]) -> bool:
        """Whether these answers are worth a sum. A count for open rounds; a secure round's collections ask for
        enough heard around everyone who is still needed."""
        return len(set(heard)) >= self.terms.quorum

    @property
    def buffered(self) -> bool:
        return self.terms.buffered

    @property
    def gathers(self) -> bool:
        """Whether devices of a buffered round are given work now: not while it is summed."""
        return self.stage in (MASKED_STAGES if self.secure else ("update",))

    @property
    def cohort(self) -> frozenset[str]:
        """The devices of a secure round whose session is under way."""
        return frozenset(self.masking.leaves) or self.masking.now.asked

    @property
    def advertised(self) -> frozenset[str]:
        """The devices whose first keys are of use: they wait for a session, or are in one that has not begun again."""
        return frozenset(self.ready) | (self.cohort if not self.masking.attempt else frozenset())

    @property
    def working(self) -> frozenset[str]:
        """The devices of a buffered round that have not handed in what they were given."""
        return self.update.awaited - self.ready.keys() - self.cohort

    @property
    def busy(self) -> frozenset[str]:
        """Those that take a place of its `concurrency`: in a secure round until their sum is there."""
        return self.update.asked - self.update.left.keys() if self.secure else self.update.awaited

    def gives(self, client: str) -> bool:
        """Whether a buffered round has work for a device that is free: it has not had its part in it. Who left with
        what an earlier round gave has not."""
        gone = client in self.update.left and client not in self.silent
        gone = gone and self.round_of(client) == self.terms.round
        return self.gathers and not gone and client not in self.update.heard and client not in self.cohort

    def round_of(self, client: str) -> int:
        """The round whose work a device answers: this one, but for what a buffered round goes on with."""
        return self.taken[client].round if client in self.taken else self.terms.round

    def age(self, client: str) -> int:
        """How many models were made since a device was given its work."""
        return self.terms.version - self.taken[client].version if client in self.taken else 0

    @property
    def wakes_at(self) -> float | None:
        """When a Tick is due, whatever else happens."""
        if self.buffered and self.gathers:
            due = [self.taken[client].since + self.terms.deadline for client in self.working]
            session = self.masking.now.deadline
            return min((t for t in (self.update.deadline, session, *due) if t is not None), default=None)
        return self.collecting.deadline if self.collecting else None

    @property
    def secure(self) -> bool:
        return self.terms.aggregation == "secure"

    @property
    def collecting(self) -> Collection | None:
        """The collection that is open."""
        if self.stage in MASKED_STAGES:
            return self.masking.now
        return {"joined": self.joined, "update": self.update}.get(self.stage)

    def elapsed(self, now: float, client: str = "") -> float:
        """Seconds of the deadline for a device's work that are over. Where keys are exchanged before the training it
        has not begun while they are. In a buffered round everybody has it from when they are given their work."""
        if self.buffered:
            return max(0.0, now - self.taken[client].since) if client in self.taken else 0.0
        waiting = self.collecting
        if self.stage == "joined" or waiting is None or waiting.deadline is None:
            return 0.0
        if self.stage == "keys" and self.terms.secure["keys"] == "early":
            return 0.0
        return max(0.0, self.terms.deadline - (waiting.deadline - now))

    def awaits(self, client: str) -> bool:
        """Whether this device owes an answer."""
        if self.stage == "joined" or self.collecting is None:
            return False
        return client in self.collecting.awaited or (self.buffered and client in self.working)

    def hears(self, client: str) -> bool:
        """Whether an answer of this device would be taken: it owes one, or lost its place without a word. While a
        buffer is summed that goes on for the next one."""
        if not self.buffered:
            return self.awaits(client)
        works = client in self.working or client in self.silent
        return (works and (self.gathers or self.stage == "folding")) or self.awaits(client)

    def wants(self, client: str, collection: str, attempt: int = 0) -> bool:
        """Whether an answer of this device in this collection is still being waited for."""
        if not self.hears(client):
            return False
        if self.buffered and client not in self.cohort:
            return (collection, attempt) == ("keys" if self.secure else "update", 0)
        return (collection, attempt) == (self.stage, self.masking.attempt)

    @property
    def waiting_for(self) -> str:
        """One sentence for the operator; empty when the round is over."""
        quorum = self.terms.quorum
        if self.stage == "joined":
            n = len(self.joined.heard)
            if n < quorum:
                return f"round {self.terms.round} waits for devices: {n} of at least {quorum} have joined"
            return f"round {self.terms.round} waits a moment for more devices: {n} of {self.terms.invited}"
        if self.buffered and self.stage == ("keys" if self.secure else "update") and not self.cohort:
            n = len(self.working)
            working = f"{n} {'device is' if n == 1 else 'devices are'} at work" if n else "nobody is at work"
            number, heard = self.terms.round, len(self.update.heard)
            if self.secure:
                done = len(self.ready)
                waits = f"{done} {'device has' if done == 1 else 'devices have'} one"
                behind = (
                    " (a sum without the last of them would leave too few behind)"
                    if done >= self.goal
                    else ""
                )
                return f"round {number} waits for {self.goal} updates of one model: {waits}, and {working}{behind}"
            return f"round {number} waits for updates: {heard} of {self.goal} are in, and {working}"
        if self.stage == "update":
            names = sorted(self.update.awaited)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            return (
                f"round {self.terms.round} waits for updates: {len(self.update.heard)} of {self.goal} are in, "
                f"still out: {', '.join(names[:5])}{more}"
            )
        if self.stage in MASKED_STAGES:
            now, names = self.masking.now, sorted(self.masking.now.awaited)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            again = f" (attempt {self.masking.attempt + 1})" if self.masking.attempt else ""
            return (
                f"round {self.terms.round} waits for {_WANTED[self.stage]}{again}: {len(now.heard)} of "
                f"{len(now.asked)} are in, still out: {', '.join(names[:5])}{more}"
            )
        return f"round {self.terms.round} is being summed" if self.stage == "folding" else ""
