"""How a round ends without a model, and what its devices are told then."""

from dataclasses import replace

from koinon_core.round.effects import Cancel, Close, Receipt
from koinon_core.round.state import Effects, Round

__all__ = ["abandon", "late", "refuse"]


def refuse(r: Round, client: str, reason: str) -> Effects:
    return (Receipt(client, r.terms.round, "NOT_COUNTED", reason),)


def late(r: Round) -> str:
    return f"late: round {r.terms.round} {r.reason or 'had all the updates it waited for'}"


def abandon(r: Round, at: float, reason: str) -> tuple[Round, Effects]:
    """End the round without a model; `reason` says what the round did ("lost its quorum: ...")."""
    number, why = r.terms.round, f"round {r.terms.round} {reason}"
    # What a device of a secure round has done may be handed in, though nothing of it is here yet.
    had = r.update.asked - r.update.left.keys() if r.secure else r.update.heard.keys()
    told = tuple(Receipt(client, number, "NOT_COUNTED", why) for client in sorted(had))
    dropped = tuple(Cancel(client, number, why) for client in sorted(r.update.awaited - had))
    r = replace(r, stage="abandoned", ended_at=at, reason=reason)
    return r, (*told, *dropped, Close(r.terms.round, False, reason))
