"""Replay: the sum of a closed round taken again, from the updates that are still kept.

It says whether the stored updates, through this very code, give the sum, the model and the strategy's state that the
round's events name. It writes nothing.

Of a secure round nothing is left to take a sum of: masked updates, and what took the masks off, went when it was over.
What came of it, as far as it is kept, can still be held against what the round's events name.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from koinon_coordinator.book import staged_of
from koinon_coordinator.closing import Closed, Plan, close_round, contributions_of
from koinon_coordinator.store import Content, RunRow, Store, UpdateRow
from koinon_core.blob import Window
from koinon_core.codec import Reader
from koinon_core.errors import KoinonError
from koinon_core.fold import sum_in_one_piece
from koinon_core.round.machine import Round, rebuild
from koinon_core.spec import RunSpec
from koinon_core.strategy.closing import digest_of_tensors, numbers_of, staged
from koinon_core.strategy.protocol import Need
from koinon_core.tiles import TILE

__all__ = ["Replayed", "replay"]

Verdict = Literal["match", "mismatch", "gone", "evaluation", "by design"]
_BY_DESIGN = "sum not recomputable (by design)"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One round. "gone": its updates, or the model that it stood on, are kept no longer. "by design": it was a secure
    one, whose sum nobody can take again."""

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
    if r.secure:
        problem = _altered(store, run, r)
        return Replayed(number, "mismatch" if problem else "by design", problem or _BY_DESIGN)
    if not r.made.sum:
        return Replayed(number, "gone", "an older version closed it, and kept no digest of its sum")
    updates = staged_of(store, r)
    before = store.model_before(run, number)
    if missing := [c for c in r.accepted if c not in updates]:
        return Replayed(number, "gone", f"{len(missing)} of its {len(r.accepted)} updates are kept no longer")
    if before is None:
        return Replayed(number, "gone", "the model that it stood on is kept no longer")
    if Need.MODELS in plan.strategy.needs and (older := _models_gone(store, r)):
        return Replayed(number, "gone", f"the model that {older} began with is kept no longer")
    try:
        problem = _damaged(store, run, r, updates)
        accepted = [updates[c] for c in r.accepted]
        again = close_round(store, plan, r.terms, before, accepted, _Looked, taken=r.taken)
        problem = problem or _differs(store, plan, r, again, accepted)
    except KoinonError as error:
        problem = str(error)
    if problem:
        return Replayed(number, "mismatch", problem)
    return Replayed(number, "match", f"{len(r.accepted)} updates, sum {r.made.sum[:12]}")


class _Looked:
    """A draft of which only the digest is kept."""

    def __init__(self) -> None:
        self._digest, self._size = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._size += len(data)

    def finish(self) -> Content:
        return self._digest.hexdigest(), self._size, None


def _models_gone(store: Store, r: Round) -> str:
    """A device in a buffered round's sum whose model is kept no longer; empty if there is none."""
    kept = {version.digest for version in store.kept_versions(r.terms.run)}
    return next((c for c in r.accepted if c in r.taken and r.taken[c].model not in kept), "")


def _altered(store: Store, run: str, r: Round) -> str:
    """What is stored of a round's outcome and is not what its events name. What is kept no longer says nothing."""
    version = next((v for v in store.kept_versions(run) if v.round == r.terms.round), None)
    if version is None:
        return ""
    for what, digest, made in (
        ("model", version.digest, r.made.model),
        ("state", version.state, r.made.state),
    ):
        if not digest:
            continue
        if digest != made:
            return f"the {what} that is stored is {digest[:12]}, the round's was {made[:12]}"
        try:
            window, size = store.window(digest)
            found = _digest_of(window, size)
        except KoinonError as error:
            return str(error)
        if found != digest:
            return f"the {what} that the round made is damaged"
    return ""


def _damaged(store: Store, run: str, r: Round, updates: dict[str, UpdateRow]) -> str:
    for client in r.accepted:
        update = updates[client]
        if update.digest != r.update.heard[client]:
            return f"the update of {client} is not the one that was accepted"
        if _digest_of(store.update_window(run, update), update.size) != update.digest:
            return f"the update of {client} is damaged on disk"
    return ""


def _digest_of(window: Window, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, TILE):
        digest.update(window(offset, TILE))
    return digest.hexdigest()


def _differs(store: Store, plan: Plan, r: Round, again: Closed, updates: Sequence[UpdateRow]) -> str:
    if r.made.sum != again.sum and r.made.sum != _older_sum(store, plan, r, updates):
        return f"the sum comes out as {again.sum[:12]}, the round's was {r.made.sum[:12]}"
    if again.version.digest == r.made.model:
        if again.version.state != r.made.state:
            return "the same sum gives another state of the strategy"
        return ""
    # Another zstd, or an older Koinon, packs the same numbers into other bytes.
    stored = Reader(*store.window(r.made.model), plan.spec.model, "the stored model")
    if digest_of_tensors(stored, plan.spec.model) != again.version.weights:
        return "the same sum gives another model; the strategy is not the one that the round had"
    return ""


def _older_sum(store: Store, plan: Plan, r: Round, updates: Sequence[UpdateRow]) -> str:
    """The digest of the sum as a round has it that Koinon 0.2 closed."""
    contributions = contributions_of(store, plan, r.terms, updates, r.taken)
    numbers = numbers_of(plan.strategy, r.terms, contributions)
    how = plan.layout.under(r.terms).how
    return sum_in_one_piece(staged(plan.strategy, contributions), plan.layout.update, how, numbers)
