"""What is read: the rows of the run database as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from koinon_coordinator.store import models
from koinon_coordinator.store.changes import Incident, ModelVersion
from koinon_core.round.effects import Verdict
from koinon_core.round.events import Event, load
from koinon_core.update import Head

__all__ = [
    "ParticipantRow", "RoundRow", "RunRow", "content", "events", "heads", "incidents", "latest_model", "model_at",
    "round_rows", "run_rows", "verdict",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    id: str
    name: str
    spec: bytes
    status: str
    reason: str
    kind: str
    number: int
    closed: int
    streak: int
    created_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantRow:
    client: str
    status: str
    reason: str
    answered_at: float | None
    size: int
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    number: int
    kind: str
    stage: str
    reason: str
    opened_at: float
    asked_at: float | None
    folding_at: float | None
    ended_at: float | None
    bytes_down: int
    model: str = ""
    participants: tuple[ParticipantRow, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        return sum(p.size for p in self.participants)


def run_rows(tx: Connection) -> list[RunRow]:
    """Every run, oldest first."""
    return [RunRow(**row._mapping) for row in tx.execute(select(models.Run.__table__).order_by("created_at"))]


def events(tx: Connection, run: str, round_: int) -> list[Event]:
    """The stored events of a round, in order."""
    table = models.Event
    rows = tx.execute(
        select(table.kind, table.data).where(table.run == run, table.round == round_).order_by(table.id)
    )
    return [load(kind, data) for kind, data in rows]


def heads(tx: Connection, run: str, round_: int) -> dict[str, tuple[str, int, Head]]:
    """(digest, size, head) of the updates of a round, by client."""
    table = models.Update
    rows = tx.execute(
        select(table.client, table.digest, table.size, table.head).where(
            table.run == run, table.round == round_
        )
    )
    return {client: (digest, size, Head.from_json(head)) for client, digest, size, head in rows}


def latest_model(tx: Connection, run: str) -> ModelVersion:
    """The newest model version of a run."""
    return model_at(tx, run, None)  # type: ignore[return-value]  # a run is created with its first model


def model_at(tx: Connection, run: str, round_: int | None) -> ModelVersion | None:
    """The model that round `round_` made (0: the first; None: the newest)."""
    table = models.Model
    query = select(table.round, table.digest, table.state, table.down).where(table.run == run)
    query = (
        query.order_by(table.round.desc()).limit(1) if round_ is None else query.where(table.round == round_)
    )
    row = tx.execute(query).one_or_none()
    return ModelVersion(*row) if row else None


def content(tx: Connection, digest: str) -> tuple[int, bytes | None] | None:
    """(size, bytes or None if it is a blob) of a content."""
    table = models.Content
    row = tx.execute(select(table.size, table.data).where(table.digest == digest)).one_or_none()
    return (row[0], row[1]) if row else None


def verdict(tx: Connection, run: str, round_: int, client: str) -> tuple[Verdict, str]:
    """What became of a device's part in a round that is over."""
    table = models.Participant
    row = tx.execute(
        select(table.status, table.reason).where(
            table.run == run, table.round == round_, table.client == client
        )
    ).one_or_none()
    if row is not None and row[0] == "counted":
        return "COUNTED", ""
    reason = (row[1] if row else "") or "it was not in the sum"
    return "NOT_COUNTED", f"late: round {round_} is over; {reason}"


def round_rows(tx: Connection, run: str, since: int = 0) -> list[RoundRow]:
    """The rounds of a run from number `since` on, with who took part and what was measured."""
    r, p, u, m = models.Round, models.Participant, models.Update, models.Metric
    people: dict[int, list[ParticipantRow]] = {}
    joined = (
        select(p.round, p.client, p.status, p.reason, p.answered_at, u.size, u.head)
        .outerjoin(u, (u.run == p.run) & (u.round == p.round) & (u.client == p.client))
        .where(p.run == run, p.round >= since)
        .order_by(p.round, p.client)
    )
    for number, client, status, reason, answered_at, size, head in tx.execute(joined):
        row = ParticipantRow(
            client=client, status=status, reason=reason, answered_at=answered_at, size=size or 0,
            examples=(head or {}).get("examples", 0),
        )  # fmt: skip
        people.setdefault(number, []).append(row)
    metrics: dict[int, dict[str, float]] = {}
    for number, name, value in tx.execute(
        select(m.round, m.name, m.value).where(m.run == run, m.round >= since).order_by(m.name)
    ):
        metrics.setdefault(number, {})[name] = value
    model = models.Model
    versions = tx.execute(select(model.round, model.digest).where(model.run == run, model.round >= since))
    made = {number: digest for number, digest in versions}  # noqa: C416 - dict() takes a cursor for a mapping
    columns = (
        r.number, r.kind, r.stage, r.reason, r.opened_at, r.asked_at, r.folding_at, r.ended_at, r.bytes_down,
    )  # fmt: skip
    rows = tx.execute(select(*columns).where(r.run == run, r.number >= since).order_by(r.number))
    return [
        RoundRow(
            **row._mapping, model=made.get(row.number, ""), participants=tuple(people.get(row.number, ())),
            metrics=metrics.get(row.number, {}),
        )
        for row in rows
    ]  # fmt: skip


def incidents(tx: Connection, run: str, most: int = 100) -> list[Incident]:
    """The newest incidents of a run, oldest first."""
    i = models.Incident
    rows = tx.execute(
        select(i.at, i.client, i.round, i.code, i.message)
        .where(i.run == run)
        .order_by(i.id.desc())
        .limit(most)
    )
    return [Incident(*row) for row in rows][::-1]
