"""What is written, and how: one `Change` is one transaction, whatever it holds.

Closing a round, the new model, the strategy's state, the metrics and the next round's opening are in one
change, so there is no moment at which a crash could find half of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from koinon_coordinator.store import models
from koinon_core.round.events import Event, Heard, dump
from koinon_core.round.machine import Round
from koinon_core.run import Run
from koinon_core.update import Head

__all__ = [
    "Change",
    "Incident",
    "ModelVersion",
    "UpdateRow",
    "create_run",
    "participants",
    "see_device",
    "write",
]


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was refused or went wrong."""

    at: float
    client: str
    round: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """A verified update. `data` is its bytes if they are small, else they are a blob already."""

    client: str
    round: int
    digest: str
    size: int
    codec: str
    head: Head
    at: float
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model, the strategy's state behind it, and the part of that which devices get, by digest."""

    round: int
    digest: str
    state: str = ""
    down: str = ""


@dataclass(slots=True)
class Change:
    """Everything that one turn of a run makes durable together."""

    run: Run
    before: Run | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    rounds: dict[int, Round] = field(default_factory=dict)
    updates: list[UpdateRow] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    models: list[ModelVersion] = field(default_factory=list)
    metrics: list[tuple[int, str, float]] = field(default_factory=list)
    contents: list[tuple[str, int, bytes | None]] = field(default_factory=list)
    bytes_down: dict[int, int] = field(default_factory=dict)
    ended_at: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if this were not written now."""
        moved = self.before is None or self.before.status != self.run.status
        return not (self.events or self.incidents or moved)


def _upsert(
    tx: Connection,
    table: Any,
    rows: Sequence[dict[str, Any]],
    keys: tuple[str, ...],
    sets: tuple[str, ...] = (),
) -> None:
    """Insert `rows`; where `keys` exist already, set `sets` (or leave them as they are)."""
    if rows:
        tx.execute(_upsert_statement(tx.dialect.name, table, keys, sets), list(rows))


@cache
def _upsert_statement(dialect: str, table: Any, keys: tuple[str, ...], sets: tuple[str, ...]) -> Any:
    # Built once for each shape: building it takes longer than running it.
    statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    if not sets:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in sets}
    )


def create_run(tx: Connection, change: Change, created_at: float) -> None:
    """Insert the run and all that its first turn made."""
    run = change.run
    tx.execute(
        insert(models.Run),
        [{
            "id": run.id, "name": run.spec.name, "spec": run.spec.encoded, "status": run.status,
            "reason": run.reason, "kind": run.kind, "number": run.number, "closed": run.closed,
            "streak": run.streak, "created_at": created_at,
        }],
    )  # fmt: skip
    write(tx, change)


def write(tx: Connection, change: Change) -> None:
    """Write a change. The unique key of `updates` makes a second contribution of one device impossible."""
    run = change.run
    contents = [*change.contents, *((u.digest, u.size, u.data) for u in change.updates if u.size)]
    _upsert(
        tx, models.Content, [{"digest": d, "size": n, "data": b} for d, n, b in dict.fromkeys(contents)], ("digest",)
    )  # fmt: skip
    _write_rounds(tx, run.id, change)
    if change.events:
        rows = [(number, *dump(event)) for number, event in change.events]
        tx.execute(
            insert(models.Event),
            [{"run": run.id, "round": number, "kind": kind, "data": data} for number, kind, data in rows],
        )
    if change.updates:
        tx.execute(
            insert(models.Update),
            [
                {
                    "run": run.id, "round": u.round, "client": u.client, "digest": u.digest, "size": u.size,
                    "codec": u.codec, "head": u.head.to_json(), "at": u.at,
                }
                for u in change.updates
            ],
        )  # fmt: skip
    if change.models:
        tx.execute(
            insert(models.Model),
            [
                {"run": run.id, "round": m.round, "digest": m.digest, "state": m.state, "down": m.down}
                for m in change.models
            ],
        )
    metrics = [{"run": run.id, "round": r, "name": n, "value": v} for r, n, v in change.metrics]
    _upsert(tx, models.Metric, metrics, ("run", "round", "name"), ("value",))
    if change.incidents:
        tx.execute(
            insert(models.Incident),
            [
                {
                    "run": run.id, "round": i.round, "client": i.client, "at": i.at, "code": i.code,
                    "message": i.message,
                }
                for i in change.incidents
            ],
        )  # fmt: skip
    values = _standing(run)
    if change.ended_at is not None:
        values["ended_at"] = change.ended_at
    if change.before is None or values != _standing(change.before):
        tx.execute(update(models.Run).where(models.Run.id == run.id).values(values))


def _standing(run: Run) -> dict[str, Any]:
    """Where a run stands, as its row says it."""
    return {
        "status": run.status, "reason": run.reason, "kind": run.kind, "number": run.number,
        "closed": run.closed, "streak": run.streak,
    }  # fmt: skip


def _write_rounds(tx: Connection, run: str, change: Change) -> None:
    """Rows of rounds and of their participants, as far as they differ from what is there."""
    known = change.before.round if change.before is not None else None
    rows: list[dict[str, Any]] = []
    heard: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    answered = {
        (n, e.client): e.at for n, e in change.events if isinstance(e, Heard) and e.collection == "update"
    }
    for number, r in change.rounds.items():
        before = known if known is not None and known.terms.round == number else None
        if before is None or before.stage != r.stage:
            rows.append(
                {
                    "run": run, "number": number, "kind": r.terms.kind, "stage": r.stage, "reason": r.reason,
                    "terms_digest": r.terms.digest, "opened_at": r.opened_at, "asked_at": r.asked_at,
                    "folding_at": r.folding_at, "ended_at": r.ended_at,
                    "bytes_down": change.bytes_down.get(number, 0),
                }
            )  # fmt: skip
        there = set(participants(before)) if before is not None else set()
        for client, status, reason in participants(r):
            if (client, status, reason) in there:
                continue
            row = {"run": run, "round": number, "client": client, "status": status, "reason": reason}
            at = answered.get((number, client))
            (others if at is None else heard).append(row if at is None else {**row, "answered_at": at})
    moving = ("stage", "reason", "asked_at", "folding_at", "ended_at", "bytes_down")
    _upsert(tx, models.Round, rows, ("run", "number"), moving)
    key = ("run", "round", "client")
    _upsert(tx, models.Participant, heard, key, ("status", "reason", "answered_at"))
    _upsert(tx, models.Participant, others, key, ("status", "reason"))


def participants(r: Round) -> Iterable[tuple[str, str, str]]:
    """(client, status, reason) of everyone in a round, as the operator sees them."""
    if r.stage == "joined":
        yield from ((client, "joined", "") for client in r.joined.heard)
    for client in sorted(r.update.asked):
        if client in r.update.heard:
            status = {"closed": "counted", "abandoned": "not_counted"}.get(r.stage, "staged")
            yield client, status, r.reason if r.stage == "abandoned" else ""
        elif client in r.update.left:
            yield client, "left", r.update.left[client]
        elif r.stage == "update":
            yield client, "asked", ""
        else:
            yield client, "cancelled" if r.stage == "abandoned" else "late", r.reason


def see_device(tx: Connection, name: str, version: str, at: float) -> None:
    """Note that a device attended."""
    row = {"name": name, "version": version, "first_seen": at, "last_seen": at}
    _upsert(tx, models.Device, [row], ("name",), ("version", "last_seen"))
