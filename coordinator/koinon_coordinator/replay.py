"""Replay: the sum of a closed round taken again, from the updates that are still kept.

It says whether the stored updates, through this very code, give the sum, the model and the strategy's state that the
round's events name. It writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from koinon_coordinator.closing import Closed, Plan, close_round
from koinon_coordinator.store import RunRow, Store, UpdateRow
from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.errors import KoinonError
from koinon_core.round.machine import Round, rebuild
from koinon_core.spec import RunSpec

__all__ = ["Replayed", "replay"]

Verdict = Literal["match", "mismatch", "gone", "evaluation"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One round. "gone": its updates, or the model that it stood on, are kept no longer."""

    round: int
    verdict: Verdict
    detail: str = ""


def replay(store: Store, row: RunRow, round_: int | None = None) -> Iterator[Replayed]:
    """Replay one round, or every round that made a model. Blocks."""
    plan = Plan.of(RunSpec.decode(row.spec))
    for stored in store.rounds(row.id, round_ or 0):
        if stored.stage == "closed" and round_ in (None, stored.number):
            yield _one(store, plan, row.id, stored.number)


def _one(store: Store, plan: Plan, run: str, number: int) -> Replayed:
    r = rebuild(store.events(run, number))
    assert r is not None
    if r.terms.kind == "evaluate":
        return Replayed(number, "evaluation", "it made no model")
    if not r.made.sum:
        return Replayed(number, "gone", "an older version closed it, and kept no digest of its sum")
    updates = {u.client: u for u in store.updates(run, number)}
    before = store.model_before(run, number)
    if missing := [c for c in r.accepted if c not in updates]:
        return Replayed(number, "gone", f"{len(missing)} of its {len(r.accepted)} updates are kept no longer")
    if before is None:
        return Replayed(number, "gone", "the model that it stood on is kept no longer")
    try:
        problem = _damaged(store, run, r, updates)
        made: list[bytes] = []

        def keep(data: bytes) -> tuple[str, int, bytes | None]:
            made.append(data)
            return sha256(data), len(data), None

        again = close_round(store, plan, r.terms, before, [updates[c] for c in r.accepted], keep)
        problem = problem or _differs(store, plan, r, again, made)
    except KoinonError as error:
        problem = str(error)
    if problem:
        return Replayed(number, "mismatch", problem)
    return Replayed(number, "match", f"{len(r.accepted)} updates, sum {r.made.sum[:12]}")


def _damaged(store: Store, run: str, r: Round, updates: dict[str, UpdateRow]) -> str:
    for client in r.accepted:
        update = updates[client]
        if update.digest != r.update.heard[client]:
            return f"the update of {client} is not the one that was accepted"
        if sha256(bytes(store.update_window(run, update)(0, update.size))) != update.digest:
            return f"the update of {client} is damaged on disk"
    return ""


def _differs(store: Store, plan: Plan, r: Round, again: Closed, made: list[bytes]) -> str:
    if again.sum != r.made.sum:
        return f"the sum comes out as {again.sum[:12]}, the round's was {r.made.sum[:12]}"
    if again.version.digest != r.made.model:
        # Another zstd may pack the same numbers into other bytes.
        model = codec.decode(made[0], plan.spec.model, "the model made again")
        stored = codec.decode(store.bytes(r.made.model), plan.spec.model, "the stored model")
        if any(model[name].tobytes() != stored[name].tobytes() for name in stored):
            return "the same sum gives another model; the strategy is not the one that the round had"
    elif again.version.state != r.made.state:
        return "the same sum gives another state of the strategy"
    return ""
