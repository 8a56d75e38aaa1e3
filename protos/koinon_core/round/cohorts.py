"""Whose updates are summed together in a buffered round of a secure run.

    keys -> shares -> masked -> consistent -> reveal -> folding -> closed

Devices come and go as in any buffered round (`buffered.py`). Who has done its work says so with the keys of a session
(it is *ready*), and waits for others that were given the same: devices whose models differ can be told apart in a sum.
When enough are ready they are the round's *cohort*, whose session (`masked.py`) is like any secure round's, about the
terms that they were given; everybody else goes on. All that the sum holds is equally old.

The devices of one model are enough when as many are ready as make a model, unless that would leave so few others behind
that no sum could hide them: then these are waited for too. Of a model that nobody is given any more, the quorum is
enough once nobody works on it; of the newest, once the round had its time. Where no quorum is left of an older model,
those who are left are told that their work does not count.
"""

from dataclasses import replace

from koinon_core.round import buffered, masked
from koinon_core.round.effects import Effect, Receipt
from koinon_core.round.ending import abandon, refuse
from koinon_core.round.events import OVERFLOWED, Carried, Heard, Left, Unfoldable, Voiced
from koinon_core.round.state import Collection, Effects, Masking, Round

__all__ = ["carried", "give", "left", "ready", "tick", "unfoldable"]


def carried(r: Round, event: Carried) -> tuple[Round, Effects]:
    """Some are at work already, or wait; perhaps enough of them."""
    return _then(buffered.carried(r, event), event.at)


def give(r: Round, event: Heard) -> tuple[Round, Effects]:
    """A device is given work, which may have been one of an older model's."""
    return _then(buffered.give(r, event), event.at)


def ready(r: Round, event: Voiced) -> tuple[Round, Effects]:
    """A device has done its work."""
    client = event.client
    if client in r.update.left and client not in r.silent:
        return r, refuse(r, client, r.update.left[client])
    if not r.wants(client, event.collection, event.attempt):
        return r, ()
    back = {c: reason for c, reason in r.update.left.items() if c != client}
    r = replace(
        r,
        ready={**r.ready, client: event.digest},
        silent=r.silent - {client},
        update=replace(r.update, left=back),
    )
    return settle(r, event.at)


def _then(moved: tuple[Round, Effects], at: float) -> tuple[Round, Effects]:
    r, effects = settle(moved[0], at)
    return r, (*moved[1], *effects)


def left(r: Round, event: Left) -> tuple[Round, Effects]:
    """A device outside of the session will not go on."""
    client, reason = event.client, event.detail or event.code
    if not (client in r.update.awaited or client in r.silent):
        return r, ()
    if event.code == "LEASE":
        return settle(buffered.lose(r, client, reason), event.at)
    told = Receipt(client, r.round_of(client), "NOT_COUNTED", reason)
    return _then((buffered.left(r, client, reason), (told,)), event.at)


def tick(r: Round, at: float) -> tuple[Round, Effects]:
    """Time passed: for somebody's work, for the round, or for what its session collects."""
    r, late = buffered.overdue(r, at)
    r, effects = settle(r, at)
    told, due = [*late, *effects], r.masking.now.deadline
    if due is not None and due <= at:
        r, effects = masked.tick(r, at)
        return r, (*told, *effects)
    if buffered.stuck(r) and not told:  # whose place is free now may go to another device first
        why = f"had its time, and was left by the {len(r.update.left)} devices that had work"
        return abandon(r, at, why, carries=True)
    return r, tuple(told)


def unfoldable(r: Round, event: Unfoldable) -> tuple[Round, Effects]:
    """The sum of the session came to nothing. Where it was too large for what its devices were given, so are those of
    all others who were; where what was said is lost, whoever had said something has nothing to go on with."""
    number = min((r.round_of(client) for client in r.cohort), default=0)
    tight = _members(r, number) if OVERFLOWED in event.reason else []
    told: list[Effect] = []
    for client in sorted({*tight, *(r.ready if event.forgotten else ())}):
        told.append(
            Receipt(client, r.round_of(client), "NOT_COUNTED", f"round {r.terms.round} {event.reason}")
        )
        r = buffered.left(r, client, event.reason)
    r, effects = abandon(r, event.at, event.reason, carries=True)
    return r, (*told, *effects)


def settle(r: Round, at: float) -> tuple[Round, Effects]:
    """Begin a session as soon as there is a cohort, and send away those who can be in none."""
    r, told = _disband(r)
    if r.stage != "keys" or r.cohort:
        return r, told
    members = _cohort(r)
    if not members:
        return r, told
    heard = {client: r.ready[client] for client in members}
    others = {client: digest for client, digest in r.ready.items() if client not in heard}
    now = Collection(asked=frozenset(members), heard=heard)
    r, effects = masked.begin(replace(r, ready=others, masking=Masking(now=now)), at)
    return r, (*told, *effects)


def _cohort(r: Round) -> list[str]:
    """Those who can be summed now; the oldest work first."""
    for number in _rounds(r):
        done, working = _of(r, number)
        rest = len(done) + len(working) - r.goal
        if len(done) >= r.goal and (rest == 0 or rest >= r.terms.quorum):
            return done[: r.goal]
        if not working and len(done) >= r.terms.quorum and (rest > 0 or number < r.terms.round):
            return done
    return []


def _disband(r: Round) -> tuple[Round, Effects]:
    """Of an older model too few are left: nobody is given it any more, so they will not be enough again."""
    told: list[Effect] = []
    for number in _rounds(r):
        done, working = _of(r, number)
        few = len(done) + len(working)
        if number == r.terms.round or few >= r.terms.quorum:
            continue
        reason = f"only {few} devices are left that worked on what round {number} gave, too few for a sum"
        for client in (*done, *sorted(working)):
            told.append(Receipt(client, number, "NOT_COUNTED", reason))
            r = buffered.left(r, client, reason)
    return r, tuple(told)


def _rounds(r: Round) -> list[int]:
    """The rounds whose work somebody outside of the session has."""
    return sorted({r.round_of(client) for client in (*r.ready, *r.working)})


def _members(r: Round, number: int) -> list[str]:
    """Who has the work of a round, outside of the session."""
    done, working = _of(r, number)
    return [*done, *working]


def _of(r: Round, number: int) -> tuple[list[str], list[str]]:
    """Who has done the work of a round, as they came, and who has not yet."""
    return [c for c in r.ready if r.round_of(c) == number], [c for c in r.working if r.round_of(c) == number]
