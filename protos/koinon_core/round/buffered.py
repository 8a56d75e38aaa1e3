"""What is particular to a buffered round, which asynchronous runs are made of (Nguyen et al. 2022, arXiv:2106.06639).

    update -> folding -> closed                          (a secure run's: `cohorts.py`, which says who is summed)

There is no `joined`: a device that is free is given this round's work at once, as long as fewer than `concurrency` are
at work. The round closes when its goal of updates is there, whichever rounds gave their work; those who are still
at work go on, and the next round begins with them (`Carried`). A device has one update in a round at most: once it
was heard it is given no more work before the next one.

A device has the terms' `deadline` for its work, counted from when it was given it. One that falls silent loses its
place and is told nothing: while the round is open it may come back, and what it hands in counts. Who was told that its
work does not count is not asked for the same again. The round has that long for its goal, and after that the quorum is
enough. Where there is none, and whoever had work has left it, the round is abandoned by name; where nobody came it
waits, and says so. While a buffer is summed nothing happens to its devices: whoever drives the run holds what they say
(`Run.holds`) until the next one is open.
"""

from dataclasses import replace
from typing import Literal

from koinon_core.round.effects import Ask, Cancel, Effect, Receipt
from koinon_core.round.ending import dismiss
from koinon_core.round.events import Carried, Heard, Opened
from koinon_core.round.state import Collection, Effects, Round
from koinon_core.round.taken import Taken
from koinon_core.round.terms import Terms

__all__ = [
    "carried",
    "forgotten",
    "give",
    "left",
    "lose",
    "opened",
    "outdated",
    "overdue",
    "settled",
    "spent",
    "stuck",
    "taken_up",
]


def opened(event: Opened) -> Round:
    """An empty buffer."""
    terms = event.terms
    return Round(
        terms=terms, stage=_collects(terms), joined=Collection(),
        update=Collection(deadline=event.at + terms.deadline), goal=terms.goal, opened_at=event.at, asked_at=event.at,
    )  # fmt: skip


def _collects(terms: Terms) -> Literal["keys", "update"]:
    """What devices hand in when they have done their work."""
    return "keys" if terms.aggregation == "secure" else "update"


def carried(r: Round, event: Carried) -> tuple[Round, Effects]:
    """Await those who are at work already, and keep those who wait to be summed."""
    r = _at_work(r, *event.work)
    return replace(r, ready={**r.ready, **dict(event.ready)}), ()


def give(r: Round, event: Heard) -> tuple[Round, Effects]:
    """A device is free, or has lost what it was given: it gets this round's work, unless it had its part in it. Who has
    lost this very round's has no more time for it than before."""
    if not r.gives(event.client):
        return r, ()
    if spent(r, event.client, event.at):
        return late(r, event.client)
    work = Taken.of(event.client, r.terms, event.at)
    if r.round_of(event.client) == work.round and event.client in r.taken:
        work = replace(work, since=r.taken[event.client].since)
    return _at_work(r, work), (Ask(event.client, _collects(r.terms)),)


def _at_work(r: Round, *work: Taken) -> Round:
    taken = {one.client: one for one in work}
    left = {client: reason for client, reason in r.update.left.items() if client not in taken}
    update = replace(r.update, asked=r.update.asked | taken.keys(), left=left)
    ready = {client: digest for client, digest in r.ready.items() if client not in taken}
    return replace(r, update=update, taken={**r.taken, **taken}, silent=r.silent - taken.keys(), ready=ready)


def lose(r: Round, client: str, reason: str) -> Round:
    """A device left without a word."""
    return replace(left(r, client, reason), silent=r.silent | {client})


def left(r: Round, client: str, reason: str) -> Round:
    """A device left."""
    ready = {c: digest for c, digest in r.ready.items() if c != client}
    return replace(r, update=r.update.lose(client, reason), silent=r.silent - {client}, ready=ready)


def settled(r: Round) -> bool:
    """Whether the buffer is full."""
    return len(r.update.heard) >= r.goal


def stuck(r: Round) -> bool:
    """Whether the round had its time, and all who had work said that they would not do it; in a secure round so many of
    them that the others are too few."""
    said = [client for client in r.update.left if not r.gives(client)]
    nobody = not r.working and not r.cohort
    return r.gathers and r.update.deadline is None and nobody and bool(said)


def overdue(r: Round, at: float) -> tuple[Round, Effects]:
    """Time passed: who had its time leaves, and a round that had its own asks for no more than its quorum."""
    told: list[Effect] = []
    for client in sorted(r.working):
        if r.taken[client].since + r.terms.deadline <= at:
            r, effects = late(r, client)
            told += effects
    if r.update.deadline is not None and r.update.deadline <= at:
        r = replace(r, goal=min(r.goal, r.terms.quorum), update=replace(r.update, deadline=None))
    return r, tuple(told)


def spent(r: Round, client: str, at: float) -> bool:
    """Whether a device was given this round's work and has had its time for it."""
    work = r.taken.get(client)
    return work is not None and work.round == r.terms.round and work.since + r.terms.deadline <= at


def late(r: Round, client: str) -> tuple[Round, Effects]:
    """A device had its time."""
    reason = f"it had {r.terms.deadline:g} s for its work, and did not answer"
    return left(r, client, reason), (Receipt(client, r.round_of(client), "NOT_COUNTED", reason),)


def outdated(r: Round) -> tuple[Round, Effects]:
    """Whose work would be more versions behind than the run takes, now that this round made a model."""
    told: list[Cancel | Receipt] = []
    for client in sorted(r.update.awaited):
        behind = r.age(client) + 1
        if behind > r.terms.staleness:
            reason = f"its work is {behind} versions old, and this run takes {r.terms.staleness} (staleness)"
            told.append(dismiss(r, client, reason))
            r = left(r, client, reason)
    return r, tuple(told)


def forgotten(r: Round) -> Effects:
    """The round is over, and the next one does not go on with those who were silent to the end."""
    return tuple(dismiss(r, client, r.update.left[client]) for client in sorted(r.silent))


def taken_up(r: Round, away: float) -> Round:
    """Nobody owned the round for so long: whoever works has that much more time."""
    late = {client: replace(work, since=work.since + away) for client, work in r.taken.items()}
    now, update = r.masking.now, r.update
    if now.deadline is not None:
        now = replace(now, deadline=now.deadline + away)
    if update.deadline is not None:
        update = replace(update, deadline=update.deadline + away)
    return replace(r, taken=late, update=update, masking=replace(r.masking, now=now))
