"""What is written, and how: one `Change` is one transaction, whatever it holds.

Closing a round, the new model, the strategy's state, the metrics, the audit entries, the scrubbing of what is kept no
longer and the next round's opening are in one change, so there is no moment at which a crash could find half of them.
It begins with the run's own row, which it may only touch in the epoch that it was made in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from koinon_coordinator.store import models
from koinon_coordinator.store.models import rows_of
from koinon_core.audit import Entry
from koinon_core.canonical import digest_of
from koinon_core.condition import Condition
from koinon_core.costs import Spent
from koinon_core.errors import StoreError
from koinon_core.round.events import Event, Heard, Voiced, dump
from koinon_core.round.machine import Round
from koinon_core.round.state import MASKED_STAGES
from koinon_core.run import Run
from koinon_core.update import Head, Stats

__all__ = [
    "Change",
    "Incident",
    "ModelVersion",
    "PayloadRow",
    "Scrub",
    "Superseded",
    "UpdateRow",
    "beat",
    "create_run",
    "keep_costs",
    "measure",
    "participants",
    "see_device",
    "write",
]


class Superseded(StoreError):
    """Another coordinator has taken the run over; this one may write nothing of it any more."""


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
    """A verified update. `data` is its bytes if they are small, else they are a file already. `whole` is False for a
    row that does not say any more what was written. `stats` is what its device measured of it, `upload_s` how many
    seconds its upload took (0: it came in its message)."""

    client: str
    round: int
    digest: str
    size: int
    codec: str
    head: Head
    at: float
    data: bytes | None
    whole: bool = True
    stats: Stats = field(default_factory=Stats)
    upload_s: float = 0.0

    def seal(self, run: str) -> str:
        """The digest of all that the row says and that may enter a sum; its bytes have their own. What was measured is
        not in it: the seals of rows that are older than the measuring hold, too."""
        return digest_of(
            [run, self.round, self.client, self.digest, self.size, self.codec, self.head.to_json()]
        )


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model, the strategy's state behind it, and the part of that which devices get, by digest. `weights` is the
    SHA-256 of the model's tensors, whichever codec `digest` is of; empty where it is not known. `delta` is the model as
    the difference to the one whose tensors have the digest `base`, where that was worth making. `tuning` is what the
    next secure round is sized by: figures of public sums."""

    round: int
    digest: str
    state: str = ""
    down: str = ""
    weights: str = ""
    delta: str = ""
    base: str = ""
    tuning: str = ""


@dataclass(frozen=True, slots=True)
class PayloadRow:
    """What a device said in a collection of a secure round, as it said it: sealed on its way into the database."""

    round: int
    attempt: int
    collection: str
    client: str
    data: bytes

    @property
    def about(self) -> str:
        """What its seal is bound to."""
        return f"{self.attempt}/{self.collection}/{self.client}"


@dataclass(frozen=True, slots=True)
class Scrub:
    """What is kept no longer: the updates of these rounds, and the states and models of these versions."""

    updates: tuple[int, ...] = ()
    states: tuple[ModelVersion, ...] = ()
    models: tuple[ModelVersion, ...] = ()

    @property
    def contents(self) -> set[str]:
        """Digests that may be needed no more."""
        states = {d for v in (*self.states, *self.models) for d in (v.state, v.down, v.delta)}
        return (states | {v.digest for v in self.models}) - {""}


@dataclass(slots=True)
class Change:
    """Everything that one turn of a run makes durable together, `at` a time, in its owner's `epoch`. `operator` is
    whose run it is, said where it is created."""

    run: Run
    at: float
    epoch: int
    owner: str = ""
    operator: str = ""
    before: Run | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    rounds: dict[int, Round] = field(default_factory=dict)
    updates: list[UpdateRow] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    models: list[ModelVersion] = field(default_factory=list)
    metrics: list[tuple[int, str, float]] = field(default_factory=list)
    contents: list[tuple[str, int, bytes | None]] = field(default_factory=list)
    bytes_down: dict[int, int] = field(default_factory=dict)
    fold_s: dict[int, float] = field(default_factory=dict)
    ended_at: float | None = None
    heads: dict[int, tuple[str, str]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    scrub: Scrub = Scrub()
    payloads: list[PayloadRow] = field(default_factory=list)
    sealed: list[bytes] = field(default_factory=list)
    dismissed: dict[tuple[int, str], str] = field(default_factory=dict)
    """Whose part in which round of an asynchronous run came to nothing, and why: its device may have other work by
    now."""
    opened: list[int] = field(default_factory=list)
    """Secure rounds that are over: what was said in their sessions goes."""

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if this were not written now."""
        moved = self.before is None or _standing(self.before) != _standing(self.run)
        return not (self.events or self.incidents or self.entries or moved)


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
    statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(rows_of(table))
    if not sets:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in sets}
    )


def create_run(tx: Connection, change: Change, created_at: float) -> None:
    """Insert the run and all that its first turn made."""
    run = change.run
    tx.execute(
        insert(rows_of(models.Run)),
        [{
            "id": run.id, "name": run.spec.name, "spec": run.spec.encoded, "created_at": created_at,
            "epoch": change.epoch, "owner": change.owner, "operator": change.operator, **_standing(run),
        }],
    )  # fmt: skip
    write(tx, change)


def write(tx: Connection, change: Change) -> None:
    """Write a change. The unique key of `updates` makes a second contribution of one device impossible."""
    run = change.run
    _stand(tx, change)
    # Setting the size to what it is holds the row against whoever collects contents (store.queries.release).
    contents = [{"digest": d, "size": n, "data": b} for d, n, b in dict.fromkeys(change.contents)]
    _upsert(tx, models.Content, contents, ("digest",), ("size",))
    _write_rounds(tx, run.id, change)
    if change.events:
        dumped = [(number, *dump(event)) for number, event in change.events]
        tx.execute(
            insert(rows_of(models.Event)),
            [{"run": run.id, "round": number, "kind": kind, "data": data} for number, kind, data in dumped],
        )
    _write_updates(tx, run, change.updates)
    _write_payloads(tx, run.id, change)
    if change.models:
        tx.execute(
            insert(rows_of(models.Model)),
            [
                {
                    "run": run.id,
                    "round": m.round,
                    "digest": m.digest,
                    "state": m.state,
                    "down": m.down,
                    "kept": True,
                    "weights": m.weights,
                    "delta": m.delta,
                    "base": m.base,
                    "tuning": m.tuning,
                }
                for m in change.models
            ],
        )
    metrics = [{"run": run.id, "round": r, "name": n, "value": v} for r, n, v in change.metrics]
    _upsert(tx, models.Metric, metrics, ("run", "round", "name"), ("value",))
    if change.incidents:
        tx.execute(
            insert(rows_of(models.Incident)),
            [
                {
                    "run": run.id, "round": i.round, "client": i.client, "at": i.at, "code": i.code,
                    "message": i.message,
                }
                for i in change.incidents
            ],
        )  # fmt: skip
    if change.entries:
        entries = [
            {"run": run.id, "number": e.number, "text": e.text, "hash": e.hash} for e in change.entries
        ]
        tx.execute(insert(rows_of(models.Audit)), entries)
    _scrub(tx, run.id, change.scrub)


def measure(tx: Connection, run: str, round_: int, metrics: Mapping[str, float]) -> None:
    """What the run's owner measured of a round's model; it belongs to no turn, and nobody need own the run."""
    rows = [{"run": run, "round": round_, "name": n, "value": v} for n, v in metrics.items()]
    _upsert(tx, models.Metric, rows, ("run", "round", "name"), ("value",))


def keep_costs(tx: Connection, run: str, round_: int, client: str, spent: Spent, at: float) -> bool:
    """What a device's part in a round has cost, in the place of what it said before; False if it has no part in it. It
    belongs to no turn: whoever owns the run, it is the device's word."""
    p = rows_of(models.Participant).c
    mine = (p.run == run) & (p.round == round_) & (p.client == client)
    if tx.execute(select(p.client).where(mine)).first() is None:
        return False
    row = {
        "run": run,
        "round": round_,
        "client": client,
        "at": at,
        "joules": spent.joules,
        "spent": spent.to_json(),
    }
    _upsert(tx, models.Cost, [row], ("run", "round", "client"), ("at", "joules", "spent"))
    return True


def _write_updates(tx: Connection, run: Run, updates: Sequence[UpdateRow]) -> None:
    rows = [
        {
            "run": run.id, "round": u.round, "client": u.client, "digest": u.digest, "size": u.size,
            "codec": u.codec, "head": u.head.to_json(), "at": u.at, "data": u.data, "kept": True,
            "seal": u.seal(run.id), "stats": u.stats.to_json(), "upload_s": u.upload_s,
        }
        for u in updates
    ]  # fmt: skip
    if not rows:
        return
    if run.spec.aggregation == "open":
        tx.execute(insert(rows_of(models.Update)), rows)
        return
    # Another attempt at a secure round masks the same update anew, in the place of the last one.
    changed = ("digest", "size", "at", "data", "seal", "upload_s")
    _upsert(tx, models.Update, rows, ("run", "round", "client"), changed)


def _write_payloads(tx: Connection, run: str, change: Change) -> None:
    """What was said in sessions; and of rounds that are over, nothing any more."""
    rows = [
        {
            "run": run, "round": p.round, "attempt": p.attempt, "collection": p.collection, "client": p.client,
            "data": sealed,
        }
        for p, sealed in zip(change.payloads, change.sealed, strict=True)
    ]  # fmt: skip
    # A device that lost what it had done does it anew, and its keys are others.
    _upsert(tx, models.Payload, rows, ("run", "round", "attempt", "collection", "client"), ("data",))
    if change.opened:
        table = rows_of(models.Payload)
        tx.execute(delete(table).where(table.c.run == run, table.c.round.in_(change.opened)))


def _stand(tx: Connection, change: Change) -> None:
    """Where the run stands now. This comes first: on a database that several may write to it is what makes a writer
    wait for the one before, and what refuses one whose epoch is over."""
    run = change.run
    values = {**_standing(run), "beat": change.at}
    if change.ended_at is not None:
        values["ended_at"] = change.ended_at
    if change.entries:
        values |= {"audit_number": change.entries[-1].number, "audit_hash": change.entries[-1].hash}
    if tx.execute(_owned(tuple(values)), {**values, "_run": run.id, "_epoch": change.epoch}).rowcount != 1:
        raise Superseded(
            f"run {run.spec.name!r} was taken over by another coordinator after epoch {change.epoch}; this one leaves "
            "it alone"
        )


def _standing(run: Run) -> dict[str, Any]:
    """Where a run stands, as its row says it."""
    return {
        "status": run.status, "reason": run.reason, "kind": run.kind, "number": run.number,
        "closed": run.closed, "streak": run.streak, "head": run.head, "recovery": run.recovery, "beyond": run.beyond,
        "remembered": run.remembered,
    }  # fmt: skip


def _scrub(tx: Connection, run: str, scrub: Scrub) -> None:
    updates, versions = rows_of(models.Update), rows_of(models.Model)
    u, m = updates.c, versions.c
    if scrub.updates:
        where = (u.run == run) & u.round.in_(scrub.updates)
        tx.execute(update(updates).where(where).values(kept=False, data=None))
    if scrub.states:
        where = (m.run == run) & m.round.in_([v.round for v in scrub.states])
        tx.execute(update(versions).where(where).values(state="", down="", delta="", base=""))
    if scrub.models:
        where = (m.run == run) & m.round.in_([v.round for v in scrub.models])
        tx.execute(update(versions).where(where).values(kept=False, state="", down="", delta="", base=""))


def beat(tx: Connection, run: str, epoch: int, at: float, owner: str | None = None) -> bool:
    """Say that the run's owner lives (or, with an empty `owner`, that it has none); False if it is another's."""
    values: dict[str, Any] = {"beat": at} if owner is None else {"beat": at, "owner": owner}
    return tx.execute(_owned(tuple(values)), {**values, "_run": run, "_epoch": epoch}).rowcount == 1


@cache
def _owned(names: tuple[str, ...]) -> Any:
    """The statement that sets these columns of a run in its owner's epoch."""
    run = rows_of(models.Run).c
    mine = (run.id == bindparam("_run")) & (run.epoch == bindparam("_epoch"))
    return update(rows_of(models.Run)).where(mine).values({name: bindparam(name) for name in names})


def _write_rounds(tx: Connection, run: str, change: Change) -> None:
    """Rows of rounds and of their participants, as far as they differ from what is there."""
    known = change.before.round if change.before is not None else None
    rows: list[dict[str, Any]] = []
    people: dict[tuple[int, str], dict[str, Any]] = {}
    answered = {
        (n, e.client): e.at
        for n, e in change.events
        if isinstance(e, Heard | Voiced) and e.collection in ("update", "masked")
    }
    for number, r in change.rounds.items():
        before = known if known is not None and known.terms.round == number else None
        if before is None or before.stage != r.stage:
            rows.append(
                {
                    "run": run, "number": number, "kind": r.terms.kind, "stage": r.stage, "reason": r.reason,
                    "terms_digest": r.terms.digest, "opened_at": r.opened_at, "asked_at": r.asked_at,
                    "folding_at": r.folding_at, "ended_at": r.ended_at,
                    "bytes_down": change.bytes_down.get(number, 0), "fold_s": change.fold_s.get(number, 0.0),
                    "link": change.heads.get(number, ("", ""))[0], "head": change.heads.get(number, ("", ""))[1],
                }
            )  # fmt: skip
        there = set(participants(before)) if before is not None else set()
        for about in participants(r):
            if about in there:
                continue
            asked_in, client, status, reason = about
            row = {"run": run, "round": asked_in, "client": client, "status": status, "reason": reason}
            if (number, client) in answered:
                row["answered_at"] = answered[number, client]
            # The work of one round may be heard of in the next: what came last holds.
            people[asked_in, client] = row
    moving = ("stage", "reason", "asked_at", "folding_at", "ended_at", "bytes_down", "link", "head", "fold_s")
    _upsert(tx, models.Round, rows, ("run", "number"), moving)
    key = ("run", "round", "client")
    heard = [row for row in people.values() if "answered_at" in row]
    others = [row for row in people.values() if "answered_at" not in row]
    _upsert(tx, models.Participant, heard, key, ("status", "reason", "answered_at"))
    _upsert(tx, models.Participant, others, key, ("status", "reason"))
    if change.dismissed:
        p = rows_of(models.Participant).c
        mine = (p.run == run) & (p.round == bindparam("_round")) & (p.client == bindparam("_client"))
        statement = update(rows_of(models.Participant)).where(mine & (p.status == "asked"))
        told = [{"_round": n, "_client": c, "reason": why} for (n, c), why in change.dismissed.items()]
        tx.execute(statement.values(status="left", reason=bindparam("reason")), told)


def participants(r: Round) -> Iterable[tuple[int, str, str, str]]:
    """(round that asked, client, status, reason) of everyone in a round, as the operator sees them."""
    if r.stage == "joined":
        yield from ((r.terms.round, client, "joined", "") for client in r.joined.heard)
    for client in sorted(r.update.asked):
        number = r.round_of(client)
        if client in r.update.heard:
            status = {"closed": "counted", "abandoned": "not_counted"}.get(r.stage, "staged")
            elsewhere = f"in round {r.terms.round}" if number != r.terms.round else ""
            yield number, client, status, r.reason if r.stage == "abandoned" else elsewhere
        elif client in r.update.left:
            yield number, client, "left", r.update.left[client]
        elif r.stage in ("update", *MASKED_STAGES) or r.buffered:  # who works for a buffer goes on
            yield number, client, "asked", ""
        else:
            yield number, client, "cancelled" if r.stage == "abandoned" else "late", r.reason


def see_device(
    tx: Connection, name: str, version: str, at: float, condition: Condition | None = None
) -> None:
    """Note that a device attended, and how it is, if it says so."""
    row: dict[str, Any] = {"name": name, "version": version, "first_seen": at, "last_seen": at}
    changed: tuple[str, ...] = ("version", "last_seen")
    if condition is not None:
        row |= {"condition": condition.to_json(), "condition_at": at}
        changed += ("condition", "condition_at")
    _upsert(tx, models.Device, [row], ("name",), changed)
