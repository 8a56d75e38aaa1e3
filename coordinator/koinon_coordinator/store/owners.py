"""Who owns a run: an owner, an epoch that grows with every change of hands, and a beat.

Every write names its epoch (store.changes), so whoever lost a run can write nothing of it, however late it notices.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from koinon_coordinator.store import models
from koinon_core.errors import Conflict, StoreError

__all__ = ["BEAT", "LEASE", "Held", "epoch_of", "take"]

BEAT = 5.0
"""Seconds between two signs of life of an owner that has nothing else to write."""
LEASE = 30.0
"""Seconds without one after which another coordinator may take the run over."""


@dataclass(frozen=True, slots=True)
class Held:
    """A run that was taken: in `epoch`, and `beat` is when it was last owned (0: never)."""

    epoch: int
    beat: float


def take(tx: Connection, run: str, owner: str, now: float) -> Held:
    """Take a run up. An owner may take its own run at once (it has the folder's lock, so whoever had it before is
    gone); another's only when nothing was heard of that for a lease. Conflict if it is too early."""
    r = models.Run
    # Written first, so that a predecessor's last transaction is over before anything of the run is read.
    tx.execute(update(r).where(r.id == run).values(epoch=r.epoch + 1))
    row = tx.execute(select(r.name, r.epoch, r.owner, r.beat).where(r.id == run)).one_or_none()
    if row is None:
        raise StoreError(
            f"run {run} is not where its index says; `koinon-coordinator db check` says what is damaged"
        )
    name, epoch, before, beat = row
    if before not in ("", owner) and now < beat + LEASE:
        raise Conflict(
            f"run {name!r} is driven by another coordinator, with another --data folder; stop that one first (if it "
            f"is gone, the run is free {beat + LEASE - now:.0f} s from now)"
        )
    # The beat stays: until the take-up itself is stored, with its deadlines moved, nobody owned the run.
    tx.execute(update(r).where(r.id == run).values(owner=owner))
    return Held(epoch, beat)


def epoch_of(tx: Connection, run: str) -> int:
    """The epoch that a run is in."""
    r = models.rows_of(models.Run).c
    return int(tx.execute(select(r.epoch).where(r.id == run)).scalar_one())
