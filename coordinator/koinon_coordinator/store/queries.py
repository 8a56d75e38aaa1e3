"""What is read: the rows of the run database as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, delete, func, select, tuple_, union

from koinon_coordinator.store import models
from koinon_coordinator.store.changes import Incident, ModelVersion, PayloadRow, UpdateRow
from koinon_coordinator.store.models import rows_of
from koinon_core.audit import Entry
from koinon_core.costs import Spent
from koinon_core.history import Standing
from koinon_core.round.effects import Verdict
from koinon_core.round.events import Event, load
from koinon_core.update import Head, Stats

__all__ = [
    "ParticipantRow", "RoundRow", "RunRow", "SentRow", "audit", "content", "contents", "costs", "events", "heads",
    "incidents", "kept_rounds", "kept_versions", "last_counted", "model_at", "model_before", "release", "round_rows",
    "run_rows", "sent", "standing", "updates", "verdict",
]  # fmt: skip


_MOST_LINKS = 1 << 16  # 2.6 MB of history; a device that was away for longer must be let in anew


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
    head: str
    recovery: int
    beyond: int
    owner: str
    epoch: int
    beat: float
    audit_number: int
    audit_hash: str
    remembered: int
    operator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantRow:
    client: str
    status: str
    reason: str
    answered_at: float | None
    size: int
    examples: int
    stats: Stats = field(default_factory=Stats)
    upload_s: float = 0.0
    partial: bool = False


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
    head: str
    fold_s: float = 0.0
    model: str = ""
    joules: float | None = None
    metered: int = 0
    participants: tuple[ParticipantRow, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        return sum(p.size for p in self.participants)

    @property
    def bits(self) -> float:
        """Bits a parameter: the mean over the updates that say how many they hold; 0 if none does."""
        rates = [p.stats.bits(p.size) for p in self.participants if p.stats.parameters]
        return sum(rates) / len(rates) if rates else 0.0

    @property
    def nmse(self) -> float:
        """Of the update whose codec lost most."""
        return max((p.stats.nmse for p in self.participants), default=0.0)

    @property
    def upload_s(self) -> float:
        """Seconds of the slowest upload."""
        return max((p.upload_s for p in self.participants), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRow:
    """An update as the operator sees it: what it is, what was measured of it, and what became of it. `kept` says
    whether its bytes still are."""

    round: int
    client: str
    digest: str
    codec: str
    size: int
    at: float
    kept: bool
    head: Head
    stats: Stats
    upload_s: float
    status: str
    reason: str


def run_rows(tx: Connection) -> list[RunRow]:
    """Every run, oldest first."""
    return [
        RunRow(**row._mapping) for row in tx.execute(select(rows_of(models.Run)).order_by("created_at", "id"))
    ]


def run_row(tx: Connection, run: str) -> RunRow | None:
    """One run."""
    table = rows_of(models.Run)
    row = tx.execute(select(table).where(table.c.id == run)).one_or_none()
    return RunRow(**row._mapping) if row else None


EVALUATED = "evaluated"
"""The metric of a secure round that says how many of its devices evaluated the model that it began with."""


def evaluated(tx: Connection, run: str, round_: int) -> int:
    """How many of the updates that a round counted had evaluated the model that it began with."""
    m = rows_of(models.Metric).c
    summed = tx.execute(select(m.value).where(m.run == run, m.round == round_, m.name == EVALUATED)).scalar()
    if summed is not None:
        return int(summed)
    u, p = rows_of(models.Update).c, rows_of(models.Participant).c
    mine = (p.run == u.run) & (p.round == u.round) & (p.client == u.client) & (p.status == "counted")
    heads = tx.execute(select(u.head).where(u.run == run, u.round == round_, mine)).scalars()
    return sum(bool(head["evaluation"]) for head in heads)


def measured(tx: Connection, run: str, name: str) -> list[tuple[int, float]]:
    """(round, value) of one metric, in the order of rounds."""
    m = rows_of(models.Metric).c
    found = tx.execute(select(m.round, m.value).where(m.run == run, m.name == name).order_by(m.round))
    return [(number, value) for number, value in found]


def heads(tx: Connection, run: str, round_: int | None = None) -> dict[str, Head]:
    """What came along with updates that were counted, by device: those of one round, or (None) the last of each
    device in a round that trained."""
    u, p, r = (rows_of(t).c for t in (models.Update, models.Participant, models.Round))
    where = (p.run == run) & (p.status == "counted")
    if round_ is None:
        trained = (r.run == p.run) & (r.number == p.round) & (r.kind == "train")
        last = select(p.client, func.max(p.round).label("round")).where(where, trained).group_by(p.client)
    else:
        last = select(p.client, p.round).where(where, p.round == round_)
    mine = last.subquery().c
    where = (u.run == run) & (u.client == mine.client) & (u.round == mine.round)
    rows = tx.execute(select(u.client, u.head).where(where).order_by(u.client))
    return {client: Head.from_json(head) for client, head in rows}


def evaluators(tx: Connection, run: str, every: int, kind: str = "train") -> int:
    """How many evaluated in the last round that was summed of those that evaluate: every `every`th of those that train
    (0: whichever had any), or those of another kind."""
    if not every:
        m = rows_of(models.Metric).c
        any_of_them = (m.run == run) & (m.name == EVALUATED) & (m.value > 0)
        found = tx.execute(select(m.value).where(any_of_them).order_by(m.round.desc()).limit(1)).scalar()
        return int(found or 0)
    r = rows_of(models.Round).c
    due = (r.number - 1) % every == 0 if kind == "train" else r.number > 0
    mine = (r.run == run) & (r.stage == "closed") & (r.kind == kind) & due
    last = tx.execute(select(func.max(r.number)).where(mine)).scalar()
    return evaluated(tx, run, last) if last else 0


def events(tx: Connection, run: str, round_: int) -> list[Event]:
    """The stored events of a round, in order."""
    table = rows_of(models.Event).c
    rows = tx.execute(
        select(table.kind, table.data).where(table.run == run, table.round == round_).order_by(table.id)
    )
    return [load(kind, data) for kind, data in rows]


def updates(tx: Connection, run: str, round_: int) -> list[UpdateRow]:
    """The updates of a round that are kept, by client. Rows of version 0.1.0 have no seal, and are believed."""
    u = rows_of(models.Update).c
    chosen = select(
        u.client, u.round, u.digest, u.size, u.codec, u.head, u.at, u.data, u.seal, u.stats, u.upload_s
    )
    rows = tx.execute(chosen.where(u.run == run, u.round == round_, u.kept).order_by(u.client))
    found = []
    for client, number, digest, size, codec, head, at, data, seal, stats, upload_s in rows:
        row = UpdateRow(
            client, number, digest, size, codec, Head.from_json(head), at, data, stats=Stats.from_json(stats),
            upload_s=upload_s,
        )  # fmt: skip
        found.append(row if seal in ("", row.seal(run)) else replace(row, whole=False))
    return found


def sent(
    tx: Connection, run: str, round_: int | None, client: str | None, after: tuple[int, str], most: int
) -> list[SentRow]:
    """Up to `most` updates of a run, scrubbed ones too, by round and device, from the one after (round, device)
    `after` on: of one round or of all (None), of one device or of all (None)."""
    u, p = rows_of(models.Update).c, rows_of(models.Participant).c
    where = (u.run == run) & (tuple_(u.round, u.client) > after)
    if round_ is not None:
        where &= u.round == round_
    if client is not None:
        where &= u.client == client
    mine = (p.run == u.run) & (p.round == u.round) & (p.client == u.client)
    columns = (
        u.round, u.client, u.digest, u.codec, u.size, u.at, u.kept, u.head, u.stats, u.upload_s,
        func.coalesce(p.status, "").label("status"), func.coalesce(p.reason, "").label("reason"),
    )  # fmt: skip
    joined = select(*columns).select_from(rows_of(models.Update)).outerjoin(rows_of(models.Participant), mine)
    rows = tx.execute(joined.where(where).order_by(u.round, u.client).limit(most))
    return [
        SentRow(**{**row, "head": Head.from_json(row["head"]), "stats": Stats.from_json(row["stats"])})
        for row in rows.mappings()
    ]


def payloads(tx: Connection, run: str, round_: int, attempt: int) -> list[PayloadRow]:
    """What was said in an attempt at a secure round, sealed."""
    p = rows_of(models.Payload).c
    rows = tx.execute(
        select(p.round, p.attempt, p.collection, p.client, p.data)
        .where(p.run == run, p.round == round_, p.attempt == attempt)
        .order_by(p.collection, p.client)
    )
    return [PayloadRow(*row) for row in rows]


def kept_rounds(tx: Connection, run: str) -> list[int]:
    """Rounds of which updates are kept."""
    u = rows_of(models.Update).c
    rows = tx.execute(select(u.round).where(u.run == run, u.kept).distinct().order_by(u.round))
    return list(rows.scalars())


def kept_versions(tx: Connection, run: str) -> list[ModelVersion]:
    """The model versions that are kept, oldest first."""
    m = rows_of(models.Model).c
    rows = tx.execute(
        select(m.round, m.digest, m.state, m.down, m.weights, m.delta, m.base, m.tuning)
        .where(m.run == run, m.kept)
        .order_by(m.round)
    )
    return [ModelVersion(*row) for row in rows]


def model_at(tx: Connection, run: str, round_: int | None) -> tuple[ModelVersion, bool] | None:
    """The model that round `round_` made (0: the first; None: the newest), and whether it is kept."""
    m = rows_of(models.Model).c
    query = select(m.round, m.digest, m.state, m.down, m.weights, m.delta, m.base, m.tuning, m.kept).where(
        m.run == run
    )
    query = query.order_by(m.round.desc()).limit(1) if round_ is None else query.where(m.round == round_)
    row = tx.execute(query).one_or_none()
    return (ModelVersion(*row[:-1]), row[-1]) if row else None


def model_before(tx: Connection, run: str, round_: int) -> tuple[ModelVersion, bool] | None:
    """The model that round `round_` stood on, and whether it is kept."""
    m = rows_of(models.Model).c
    query = select(m.round, m.digest, m.state, m.down, m.weights, m.delta, m.base, m.tuning, m.kept)
    query = query.where(m.run == run, m.round < round_)
    row = tx.execute(query.order_by(m.round.desc()).limit(1)).one_or_none()
    return (ModelVersion(*row[:-1]), row[-1]) if row else None


def standing(tx: Connection, run: str, since: int) -> tuple[Standing, dict[int, str]]:
    """Where the run stands, and the link of every round that is over, from `since` on (0: none of them)."""
    one, r = rows_of(models.Run).c, rows_of(models.Round).c
    number, head, recovery = tx.execute(select(one.number, one.head, one.recovery).where(one.id == run)).one()
    over = select(r.number, r.link).where(r.run == run, r.number >= since, r.link != "").order_by(r.number)
    links = {n: link for n, link in tx.execute(over.limit(_MOST_LINKS))} if since else {}  # noqa: C416 - dict() takes a cursor for a mapping
    return Standing(round=number, head=head, recovery=recovery), links


def last_counted(tx: Connection, run: str, client: str) -> int:
    """The last round that counted an update of this device and of which it should know; 0 if there is none."""
    p, r = rows_of(models.Participant).c, rows_of(models.Run).c
    counted = (p.run == run) & (p.client == client) & (p.status == "counted")
    known = (r.id == p.run) & (p.round > r.remembered)
    return tx.execute(select(func.max(p.round)).where(counted, known)).scalar() or 0


def audit(tx: Connection, run: str, after: int, most: int) -> list[Entry]:
    """Entries of a run's audit log, from the one after number `after` on."""
    a = rows_of(models.Audit).c
    rows = tx.execute(
        select(a.number, a.text, a.hash).where(a.run == run, a.number > after).order_by(a.number).limit(most)
    )
    return [Entry(number, text, hash_) for number, text, hash_ in rows]


def contents(tx: Connection) -> list[tuple[str, int, bool]]:
    """(digest, size, whether it is a file) of every content."""
    c = rows_of(models.Content).c
    rows = tx.execute(select(c.digest, c.size, c.data.is_(None)).order_by(c.digest))
    return [(digest, size, file) for digest, size, file in rows]


def release(tx: Connection, digests: set[str]) -> list[str]:
    """Delete the rows of those contents that no model names any more; returns them."""
    m, c = rows_of(models.Model).c, rows_of(models.Content).c
    # Held first: a change that names one of them meanwhile waits, and then writes its row anew.
    tx.execute(select(c.digest).where(c.digest.in_(digests)).order_by(c.digest).with_for_update()).all()
    named = union(
        select(m.digest).where(m.kept, m.digest.in_(digests)),
        select(m.state).where(m.state.in_(digests)),
        select(m.down).where(m.down.in_(digests)),
        select(m.delta).where(m.delta.in_(digests)),
    )
    free = sorted(digests - set(tx.execute(named).scalars()))
    tx.execute(delete(rows_of(models.Content)).where(c.digest.in_(free)))
    return free


def content(tx: Connection, digest: str) -> tuple[int, bytes | None] | None:
    """(size, bytes or None if it is a blob) of a content."""
    table = rows_of(models.Content).c
    row = tx.execute(select(table.size, table.data).where(table.digest == digest)).one_or_none()
    return (row[0], row[1]) if row else None


def verdict(tx: Connection, run: str, round_: int, client: str) -> tuple[Verdict, str]:
    """What became of a device's part in a round that is over."""
    table = rows_of(models.Participant).c
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
    r, p, u, m = (rows_of(t).c for t in (models.Round, models.Participant, models.Update, models.Metric))
    people: dict[int, list[ParticipantRow]] = {}
    joined = (
        select(p.round, p.client, p.status, p.reason, p.answered_at, u.size, u.head, u.stats, u.upload_s)
        .select_from(rows_of(models.Participant))
        .outerjoin(rows_of(models.Update), (u.run == p.run) & (u.round == p.round) & (u.client == p.client))
        .where(p.run == run, p.round >= since)
        .order_by(p.round, p.client)
    )
    for number, client, status, reason, answered_at, size, head, stats, upload_s in tx.execute(joined):
        row = ParticipantRow(
            client=client, status=status, reason=reason, answered_at=answered_at, size=size or 0,
            examples=(head or {}).get("examples", 0), stats=Stats.from_json(stats or {}), upload_s=upload_s or 0.0,
            partial=(head or {}).get("partial", False),
        )  # fmt: skip
        people.setdefault(number, []).append(row)
    metrics: dict[int, dict[str, float]] = {}
    for number, name, value in tx.execute(
        select(m.round, m.name, m.value).where(m.run == run, m.round >= since).order_by(m.name)
    ):
        metrics.setdefault(number, {})[name] = value
    model = rows_of(models.Model).c
    versions = tx.execute(select(model.round, model.digest).where(model.run == run, model.round >= since))
    made = {number: digest for number, digest in versions}  # noqa: C416 - dict() takes a cursor for a mapping
    c = rows_of(models.Cost).c
    summed = select(c.round, func.sum(c.joules), func.count(c.joules)).where(c.run == run, c.round >= since)
    cost = {number: (joules, metered) for number, joules, metered in tx.execute(summed.group_by(c.round))}
    columns = (
        r.number, r.kind, r.stage, r.reason, r.opened_at, r.asked_at, r.folding_at, r.ended_at, r.bytes_down,
        r.head, r.fold_s,
    )  # fmt: skip
    rows = tx.execute(select(*columns).where(r.run == run, r.number >= since).order_by(r.number))
    return [
        RoundRow(
            **row._mapping, model=made.get(row.number, ""), participants=tuple(people.get(row.number, ())),
            metrics=metrics.get(row.number, {}), joules=cost.get(row.number, (None, 0))[0],
            metered=cost.get(row.number, (None, 0))[1],
        )
        for row in rows
    ]  # fmt: skip


def costs(tx: Connection, run: str, round_: int | None = None) -> dict[tuple[int, str], Spent]:
    """What devices said of the cost of their part, by round and device: in one round, or in all (None)."""
    c = rows_of(models.Cost).c
    where = c.run == run if round_ is None else (c.run == run) & (c.round == round_)
    rows = tx.execute(select(c.round, c.client, c.spent).where(where).order_by(c.round, c.client))
    return {(number, client): Spent.from_json(spent) for number, client, spent in rows}


def incidents(tx: Connection, run: str, most: int = 100) -> list[Incident]:
    """The newest incidents of a run, oldest first."""
    i = rows_of(models.Incident).c
    rows = tx.execute(
        select(i.at, i.client, i.round, i.code, i.message)
        .where(i.run == run)
        .order_by(i.id.desc())
        .limit(most)
    )
    return [Incident(*row) for row in rows][::-1]
