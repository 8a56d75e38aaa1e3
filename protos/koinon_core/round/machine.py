"""The coordinator's half of a round: `step(round, event) -> (round, effects)`, and nothing else.

One rule serves every collection: it is asked of a set, has a quorum and a deadline, and closes when enough
were heard, when nobody is left to wait for, or when time is up; below the quorum the round is abandoned, by
name, and the model stays as it was.

    open:    joined -> update -> folding -> closed        (or, from anywhere, -> abandoned)
    secure:  joined -> keys -> shares -> masked -> consistent -> reveal -> folding -> closed       (`masked.py`)
    buffered:          update -> folding -> closed                                               (`buffered.py`)
    both:              keys -> shares -> masked -> consistent -> reveal -> folding -> closed      (`cohorts.py`)

`joined` has no deadline until its quorum is there: a round without enough devices waits, and says so (unless its
terms have patience for a while only, as those of an evaluation).
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

from koinon_core.errors import LocalProtocolError
from koinon_core.round import buffered, cohorts, masked
from koinon_core.round.effects import Ask, Cancel, Close, Fold, Receipt
from koinon_core.round.ending import abandon, late, refuse
from koinon_core.round.events import (
    Cancelled,
    Carried,
    Event,
    Folded,
    Heard,
    Left,
    Opened,
    Spoiled,
    TakenUp,
    Tick,
    Unfoldable,
    Voiced,
)
from koinon_core.round.state import MASKED_STAGES, Collection, Effects, Made, Round, Stage

__all__ = ["Made", "Round", "Stage", "rebuild", "step"]


def step(round_: Round | None, event: Event) -> tuple[Round, Effects]:
    """The round after `event`, and what is to be done about it. A fact that changes nothing returns the same
    round and no effects; an event before Opened is a LocalProtocolError."""
    if isinstance(event, Opened):
        if round_ is not None:
            raise LocalProtocolError(f"round {event.terms.round} was opened twice")
        if event.terms.buffered:
            return buffered.opened(event), ()
        gives_up_at = event.at + event.terms.patience if event.terms.patience else None
        return Round(
            terms=event.terms, stage="joined", joined=Collection(deadline=gives_up_at), update=Collection(),
            goal=event.terms.goal, opened_at=event.at, gives_up_at=gives_up_at,
        ), ()  # fmt: skip
    if round_ is None:
        raise LocalProtocolError(f"a round must be opened before {event}")
    match event:
        case Carried():
            return (cohorts.carried if round_.secure else buffered.carried)(round_, event)
        case Heard(collection="joined"):
            give = cohorts.give if round_.secure else buffered.give
            return (give if round_.buffered else _joined)(round_, event)
        case Heard(collection="update"):
            return _updated(round_, event)
        case Heard():
            return round_, (
                Receipt(
                    event.client,
                    round_.round_of(event.client),
                    "NOT_COUNTED",
                    f"no collection {event.collection!r} here",
                ),
            )
        case Voiced():
            waits = round_.gathers and _outside(round_, event.client)
            return (cohorts.ready if waits else masked.voiced)(round_, event)
        case Spoiled():
            return masked.spoiled(round_, event)
        case Left():
            return _left(round_, event)
        case Tick():
            return _tick(round_, event.at)
        case Folded():
            return _folded(round_, event)
        case Unfoldable():
            if round_.over:
                return round_, ()
            if round_.buffered and round_.secure:
                return cohorts.unfoldable(round_, event)
            return abandon(round_, event.at, event.reason, carries=round_.buffered)
        case TakenUp(away=away):
            return _taken_up(round_, away), ()
        case Cancelled():
            return (
                (round_, ()) if round_.over else abandon(round_, event.at, f"was cancelled: {event.reason}")
            )


def _outside(r: Round, client: str) -> bool:
    """Whether a device has, or had, work of a buffered round and is not in its session."""
    return r.buffered and client in r.taken and client not in r.cohort


def rebuild(events: Iterable[Event]) -> Round | None:
    """The round that these stored events made: this is crash recovery."""
    return reduce(lambda round_, event: step(round_, event)[0], events, None)


# -- joined ---------------------------------------------------------------------------------------------------


def _joined(r: Round, event: Heard) -> tuple[Round, Effects]:
    if r.stage != "joined" or event.client in r.joined.heard:
        return r, ()
    joined = r.joined.hear(event.client, event.digest)
    r = replace(r, joined=joined)
    if len(joined.heard) >= r.terms.invited:
        return _ask(r, event.at)
    if joined.deadline == r.gives_up_at and r.enough(joined.heard):
        deadline = event.at + r.terms.join_wait
        return replace(r, joined=replace(joined, deadline=deadline)), ()
    return r, ()


def _ask(r: Round, at: float) -> tuple[Round, Effects]:
    if r.secure:
        return masked.ask(r, at)
    asked = frozenset(r.joined.heard)
    deadline = at + r.terms.deadline
    update = Collection(asked=asked, deadline=deadline)
    r = replace(r, stage="update", update=update, goal=min(r.terms.goal, len(asked)), asked_at=at)
    return r, tuple(Ask(client, "update") for client in sorted(asked))


# -- update ---------------------------------------------------------------------------------------------------


def _updated(r: Round, event: Heard) -> tuple[Round, Effects]:
    client = event.client
    if client in r.update.heard:
        if r.update.heard[client] != event.digest:
            return r, refuse(r, client, "a second, different update for this round is refused")
        if r.stage == "closed":
            return r, (Receipt(client, r.round_of(client), "COUNTED"),)
        if r.stage == "abandoned":
            return r, refuse(r, client, f"round {r.terms.round} {r.reason}")
        return r, (Receipt(client, r.round_of(client), "STAGED"),)
    if client not in r.update.asked:
        return r, refuse(r, client, "this device was not asked in this round")
    if client in r.update.left and not r.hears(client):
        return r, refuse(r, client, r.update.left[client])
    if r.stage != "update":
        return r, refuse(r, client, late(r))
    back = {c: reason for c, reason in r.update.left.items() if c != client}
    update = replace(r.update.hear(client, event.digest), left=back)
    r = replace(r, update=update, silent=r.silent - {client})
    r, effects = _settle(r, event.at)
    return r, (Receipt(client, r.round_of(client), "STAGED"), *effects)


def _left(r: Round, event: Left) -> tuple[Round, Effects]:
    reason = event.detail or event.code
    if r.stage == "joined":
        heard = {c: d for c, d in r.joined.heard.items() if c != event.client}
        deadline = r.joined.deadline if r.enough(heard) else r.gives_up_at
        return replace(r, joined=replace(r.joined, heard=heard, deadline=deadline)), ()
    if r.stage in MASKED_STAGES:
        return (cohorts.left if _outside(r, event.client) else masked.left)(r, event)
    if r.stage != "update" or not r.hears(event.client):
        return r, ()  # what was heard stays in the sum, whatever its sender does next
    if r.buffered and event.code == "LEASE":
        return _settle(buffered.lose(r, event.client, reason), event.at)
    r, effects = _settle(buffered.left(r, event.client, reason), event.at)
    return r, (Receipt(event.client, r.round_of(event.client), "NOT_COUNTED", reason), *effects)


def _settle(r: Round, at: float) -> tuple[Round, Effects]:
    """Close or abandon as soon as waiting longer cannot help."""
    if r.buffered:
        return _fold(r, at, "") if buffered.settled(r) else (r, ())
    heard, awaited = r.update.heard, r.update.awaited
    if len(heard) >= r.goal or (not awaited and r.enough(heard)):
        return _fold(r, at, "")
    if not r.enough(heard.keys() | awaited):
        quorum = r.terms.quorum
        return abandon(r, at, f"lost its quorum: {len(heard) + len(awaited)} of at least {quorum} are left")
    return r, ()


def _fold(r: Round, at: float, reason: str) -> tuple[Round, Effects]:
    r = replace(r, stage="folding", folding_at=at, reason=reason)
    out = () if r.buffered else sorted(r.update.awaited)  # who works for a buffer goes on
    dropped = tuple(Cancel(client, r.terms.round, late(r)) for client in out)
    return r, (*dropped, Fold(r.accepted))


def _tick(r: Round, at: float) -> tuple[Round, Effects]:
    waiting = r.collecting
    if r.buffered and r.secure and r.gathers:
        return cohorts.tick(r, at)
    if r.buffered and r.stage == "update":
        r, told = buffered.overdue(r, at)
        r, effects = _settle(r, at)
        if buffered.stuck(r) and not told:  # whose place is free now may go to another device first
            why = f"had its time, and was left by the {len(r.update.left)} devices that had work"
            return abandon(r, at, why, carries=True)
        return r, (*told, *effects)
    if waiting is None or waiting.deadline is None or at < waiting.deadline:
        return r, ()
    if r.stage == "joined":
        n, quorum = len(waiting.heard), r.terms.quorum
        return (
            _ask(r, at) if n >= quorum else abandon(r, at, f"waited in vain: {n} of at least {quorum} came")
        )
    if r.stage in MASKED_STAGES:
        return masked.tick(r, at)
    if r.enough(waiting.heard):
        return _fold(r, at, "reached its deadline")
    return abandon(
        r, at, f"reached its deadline with {len(waiting.heard)} of at least {r.terms.quorum} updates"
    )


def _taken_up(r: Round, away: float) -> Round:
    waiting = r.collecting
    if r.buffered and not r.over:
        return buffered.taken_up(r, away)
    if waiting is None or waiting.deadline is None:
        return r
    later = replace(waiting, deadline=waiting.deadline + away)
    if r.stage == "update":
        return replace(r, update=later)
    if r.stage in MASKED_STAGES:
        return replace(r, masking=replace(r.masking, now=later))
    return replace(r, joined=later, gives_up_at=r.gives_up_at + away if r.gives_up_at is not None else None)


# -- the end --------------------------------------------------------------------------------------------------


def _folded(r: Round, event: Folded) -> tuple[Round, Effects]:
    if r.stage != "folding":
        raise LocalProtocolError(f"round {r.terms.round} was summed in stage {r.stage!r}")
    receipts = tuple(Receipt(client, r.round_of(client), "COUNTED") for client in r.accepted)
    r = replace(r, stage="closed", ended_at=event.at, made=Made(event.model, event.state, event.sum))
    r, dropped = buffered.outdated(r) if r.buffered else (r, ())
    return r, (*receipts, *dropped, *buffered.forgotten(r), Close(r.terms.round, True, r.reason))
