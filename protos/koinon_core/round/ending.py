"""How a round ends without a model, and what its devices are told then."""

from dataclasses import replace

from koinon_core.round.effects import Cancel, Close, Receipt
from koinon_core.round.state import Effects, Round

__all__ = ["abandon", "dismiss", "late", "refuse"]


def refuse(r: Round, client: str, reason: str) -> Effects:
    return (Receipt(client, r.round_of(client), "NOT_COUNTED", reason),)


def late(r: Round) -> str:
    return f"late: round {r.terms.round} {r.reason or 'had all the updates it waited for'}"


def dismiss(r: Round, client: str, reason: str) -> Cancel | Receipt:
    """What a device is told whose work is wanted no more: to stop it. Of a secure round it may have handed in what is
    not seen here before a session begins: so it is told what became of that."""
    number = r.round_of(client)
    return Receipt(client, number, "NOT_COUNTED", reason) if r.secure else Cancel(client, number, reason)


def abandon(r: Round, at: float, reason: str, *, carries: bool = False) -> tuple[Round, Effects]:
    """End the round without a model; `reason` says what the round did ("lost its quorum: ..."). With `carries`, those
    who still work go on, for the round after it."""
    why = f"round {r.terms.round} {reason}"
    # What a device of a secure round has done may be handed in, though nothing of it is here yet.
    had = frozenset(r.update.asked - r.update.left.keys() if r.secure else r.update.heard)
    if r.secure and carries:
        had &= r.cohort
    told = tuple(Receipt(client, r.round_of(client), "NOT_COUNTED", why) for client in sorted(had))
    out = () if carries else sorted(r.update.awaited - had)
    dropped = tuple(dismiss(r, client, why) for client in (*out, *sorted(r.silent)))
    r = replace(r, stage="abandoned", ended_at=at, reason=reason)
    if r.buffered and (r.secure or not carries):
        gone = dict.fromkeys((*out, *sorted(had)) if r.secure else out, why)
        r = replace(r, update=replace(r.update, left={**r.update.left, **gone}))
    return r, (*told, *dropped, Close(r.terms.round, False, reason))
