"""The device's half of a round: `step(member, event) -> (member, effects)`.

    idle -> offered -> working -> sent -> staged -> idle

One thing matters above all: what depends on an update (a strategy's device state) is committed on COUNTED and
dropped on NOT_COUNTED, and on nothing else; until one of them comes, the same answer is sent again after every
reconnection.
"""

from dataclasses import dataclass, replace
from typing import Literal

from koinon_core.round.effects import Verdict
from koinon_core.round.terms import Terms

__all__ = [
    "Answer", "Asked", "Begin", "Commit", "Drop", "Effect", "Event", "GaveUp", "Interrupt", "Interrupted",
    "Member", "Offer", "Offered", "Receipted", "Reconnected", "Resign", "Submitted", "step",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Offered:
    """The owner's loop came back for work."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The coordinator asked for work under these terms."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class Submitted:
    """The owner's loop handed in an update, which is kept under this digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """There will be no update: DECLINED by the loop, FAILED by an exception, REFUSED by the SDK's checks."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Receipted:
    """The coordinator said what became of the update of `round`."""

    round: int
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The coordinator no longer waits for the answer of `round`."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The stream is there again; whatever was said on the old one may be lost."""


Event = Offered | Asked | Submitted | GaveUp | Receipted | Interrupted | Reconnected


@dataclass(frozen=True, slots=True)
class Offer:
    """Tell the coordinator that this device is ready; `engaged` is the round it still owes, or 0."""

    engaged: int = 0


@dataclass(frozen=True, slots=True)
class Begin:
    """Hand the work to the owner's loop."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class Answer:
    """Send the update that is kept under `digest`."""

    round: int
    digest: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Tell the coordinator that this device leaves the round."""

    round: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The update was counted: make what depends on it final."""

    round: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The update was not counted: forget what depends on it."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Tell the owner's loop that its work is no longer needed."""

    reason: str


Effect = Offer | Begin | Answer | Resign | Commit | Drop | Interrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The device's state in one run. `late` says why the work under way is no longer wanted; `ready` that the
    loop came back for work while the last update's receipt is still out; `queued` holds terms that came before
    the device was done with the round before."""

    stage: Literal["idle", "offered", "working", "sent", "staged"] = "idle"
    terms: Terms | None = None
    digest: str = ""
    late: str = ""
    ready: bool = False
    queued: Terms | None = None
    done: int = 0  # the last round that an update was handed in for

    @property
    def round(self) -> int:
        return self.terms.round if self.terms else 0


def step(m: Member, event: Event) -> tuple[Member, tuple[Effect, ...]]:
    """The member after `event`, and what is to be done. A message about another round changes nothing."""
    match event:
        case Offered():
            if m.stage in ("sent", "staged"):
                return replace(m, ready=True), (Offer(m.round),)
            return _ready(m)
        case Asked(terms):
            return _asked(m, terms)
        case Submitted(digest):
            if m.stage != "working":
                return m, ()
            m = replace(m, done=m.round)
            if m.late:
                return _idle(m), (Drop(m.round, m.late),)
            return replace(m, stage="sent", digest=digest), (Answer(m.round, digest),)
        case GaveUp(code, detail):
            if m.stage != "working":
                return m, ()
            return _idle(m), () if m.late else (Resign(m.round, code, detail),)
        case Receipted(round_, verdict, reason):
            return _receipted(m, round_, verdict, reason)
        case Interrupted(round_, reason):
            if round_ != m.round or m.stage != "working":
                return m, ()
            return replace(m, late=reason), (Interrupt(reason),)
        case Reconnected():
            if m.stage in ("sent", "staged"):
                return m, (Offer(m.round), Answer(m.round, m.digest))
            return m, () if m.stage == "idle" else (Offer(m.round),)


def _idle(m: Member) -> Member:
    return Member(queued=m.queued, done=m.done)


def _ready(m: Member) -> tuple[Member, tuple[Effect, ...]]:
    """Free for work: take what is queued, or ask for some."""
    if m.queued is not None:
        return Member(stage="working", terms=m.queued, done=m.done), (Begin(m.queued),)
    return Member(stage="offered", done=m.done), (Offer(),)


def _asked(m: Member, terms: Terms) -> tuple[Member, tuple[Effect, ...]]:
    if terms.round <= m.done:
        return m, ()  # an echo: its update was handed in
    if m.stage not in ("working", "sent", "staged"):
        return Member(stage="working", terms=terms, done=m.done), (Begin(terms),)
    if terms.round <= m.round:
        return m, ()
    m = replace(m, queued=terms)
    if m.stage == "working":  # the round under way must be over, or nobody would ask for another
        late = m.late or f"round {m.round} is over"
        return replace(m, late=late), (Interrupt(late),)
    return m, (Answer(m.round, m.digest),)  # its receipt is still out: ask what became of the update first


def _receipted(m: Member, round_: int, verdict: Verdict, reason: str) -> tuple[Member, tuple[Effect, ...]]:
    if round_ != m.round:
        return m, ()
    if m.stage == "working":  # refused or expired before anything was handed in
        return (replace(m, late=reason), (Interrupt(reason),)) if verdict == "NOT_COUNTED" else (m, ())
    if m.stage not in ("sent", "staged"):
        return m, ()
    if verdict == "STAGED":
        return replace(m, stage="staged"), ()
    settled: Effect = Commit(round_) if verdict == "COUNTED" else Drop(round_, reason)
    if m.ready and m.queued is not None:
        after, effects = _ready(m)
        return after, (settled, *effects)
    return (Member(stage="offered", done=m.done) if m.ready else _idle(m)), (settled,)
