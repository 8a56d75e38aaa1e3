"""The tables of the run database.

    runs           one row a run: its spec, where it stands, which coordinator owns it, and the operator whose it is. Of
                   rounds up to `remembered` its devices need not know, because they had no memory then
    rounds         one row a round, from its opening to its end; `fold_s` is how long its sum and its step took
    events         what happened in a round, in order: folding them rebuilds it
    participants   one row a device and round: asked, answered, counted or why not
    updates        what a device sent; (run, round, client) is unique, so nothing is counted twice. Small ones have
                   their bytes in the row, large ones are a file; both are scrubbed after their round, by policy. What
                   was measured (`stats` by the device, `upload_s` here) stays. It is for the operator: nothing is
                   decided by it, and the row's seal is not over it
    models         one row a model version, with the strategy's state behind it. `digest` is that of its bytes,
                   `weights` that of the tensors in them, however they are encoded
    metrics        numbers of a round, by name
    incidents      what was refused or went wrong, for the operator
    contents       bytes by SHA-256: small ones in the row, large ones in a file beside the database
    costs          what a device's part in a round has cost, as it says itself (koinon_core.costs), with the joules of
                   all its phases together. For the operator, like an update's `stats`: no chain and no seal is over it
    devices        every device that ever attended or was enrolled: its long-term key, its newest roster entry, until
                   when its certificate is good, whether it was revoked, and how it was when it last said so. A row is
                   for ever: no name has two keys
    tokens         what lets devices in, by the SHA-256 of its secret; `uses` is how many it still has
    operators      who may call what (`role`), and whether they were revoked
    settings       what the federation has once, by name: the owner's pinned roster key and the roster's version
    audit          what was decided about a run, as a hash chain
    payloads       what devices said in the sessions of a secure round, sealed under a key that is a file (vault);
                   both are gone when the round is over

A content is written before the row that names it, in the same transaction or an earlier one. Every change of a run
begins with its row, and only where the row still has the writer's `epoch`: whoever took the run over has set it up.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)  # fmt: skip
from sqlalchemy import Table as CoreTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Audit", "Content", "Cost", "Device", "Event", "Incident", "Metric", "Model", "Operator", "Participant", "Round",
    "Run", "Setting", "Table", "Token", "Update", "rows_of",
]  # fmt: skip

_RUN = "runs.id"


class Table(DeclarativeBase):
    """The base of all tables; constraint names are fixed, so that migrations can name them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own protocol


class Run(Table):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    kind: Mapped[str] = mapped_column(String(16), default="train")
    number: Mapped[int] = mapped_column(default=0)
    closed: Mapped[int] = mapped_column(default=0)
    streak: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float] = mapped_column(Float(53))
    ended_at: Mapped[float | None] = mapped_column(Float(53))
    head: Mapped[str] = mapped_column(String(64), default="")
    recovery: Mapped[int] = mapped_column(default=0)
    beyond: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str] = mapped_column(String(64), default="")
    epoch: Mapped[int] = mapped_column(default=0)
    beat: Mapped[float] = mapped_column(Float(53), default=0.0)
    audit_number: Mapped[int] = mapped_column(default=0)
    audit_hash: Mapped[str] = mapped_column(String(64), default="")
    remembered: Mapped[int] = mapped_column(default=0)
    operator: Mapped[str] = mapped_column(String(64), default="")


class Round(Table):
    __tablename__ = "rounds"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    terms_digest: Mapped[str] = mapped_column(String(64))
    opened_at: Mapped[float] = mapped_column(Float(53))
    asked_at: Mapped[float | None] = mapped_column(Float(53))
    folding_at: Mapped[float | None] = mapped_column(Float(53))
    ended_at: Mapped[float | None] = mapped_column(Float(53))
    bytes_down: Mapped[int] = mapped_column(default=0)
    link: Mapped[str] = mapped_column(String(64), default="")
    head: Mapped[str] = mapped_column(String(64), default="")
    fold_s: Mapped[float] = mapped_column(Float(53), default=0.0)


class Event(Table):
    __tablename__ = "events"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey(_RUN))
    round: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    __table_args__ = (Index(None, "run", "round", "id"),)


class Participant(Table):
    __tablename__ = "participants"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    client: Mapped[str] = mapped_column(String(128), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    answered_at: Mapped[float | None] = mapped_column(Float(53))


class Update(Table):
    __tablename__ = "updates"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey(_RUN))
    round: Mapped[int]
    client: Mapped[str] = mapped_column(String(128))
    digest: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    codec: Mapped[str] = mapped_column(String(16))
    head: Mapped[dict[str, Any]]
    at: Mapped[float] = mapped_column(Float(53))
    data: Mapped[bytes | None] = mapped_column(LargeBinary)
    kept: Mapped[bool] = mapped_column(default=True)
    seal: Mapped[str] = mapped_column(String(64), default="")
    stats: Mapped[dict[str, Any]] = mapped_column(default=dict)
    upload_s: Mapped[float] = mapped_column(Float(53), default=0.0)
    __table_args__ = (UniqueConstraint("run", "round", "client"),)


class Cost(Table):
    __tablename__ = "costs"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    client: Mapped[str] = mapped_column(String(128), primary_key=True)
    at: Mapped[float] = mapped_column(Float(53))
    joules: Mapped[float | None] = mapped_column(Float(53))
    spent: Mapped[dict[str, Any]]


class Model(Table):
    __tablename__ = "models"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(64), default="")
    down: Mapped[str] = mapped_column(String(64), default="")
    kept: Mapped[bool] = mapped_column(default=True)
    weights: Mapped[str] = mapped_column(String(64), default="")
    delta: Mapped[str] = mapped_column(String(64), default="")
    base: Mapped[str] = mapped_column(String(64), default="")
    tuning: Mapped[str] = mapped_column(Text, default="")


class Metric(Table):
    __tablename__ = "metrics"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    value: Mapped[float] = mapped_column(Float(53))


class Incident(Table):
    __tablename__ = "incidents"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), index=True)
    round: Mapped[int]
    client: Mapped[str] = mapped_column(String(128))
    at: Mapped[float] = mapped_column(Float(53))
    code: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)


class Content(Table):
    __tablename__ = "contents"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int]
    data: Mapped[bytes | None] = mapped_column(LargeBinary)


class Audit(Table):
    __tablename__ = "audit"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[str] = mapped_column(String(64))


class Payload(Table):
    __tablename__ = "payloads"
    run: Mapped[str] = mapped_column(ForeignKey(_RUN), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    collection: Mapped[str] = mapped_column(String(16), primary_key=True)
    client: Mapped[str] = mapped_column(String(128), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Device(Table):
    __tablename__ = "devices"
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[str] = mapped_column(String(32))
    first_seen: Mapped[float] = mapped_column(Float(53))
    last_seen: Mapped[float] = mapped_column(Float(53))
    key: Mapped[str | None] = mapped_column(String(64), unique=True)
    entry: Mapped[bytes | None] = mapped_column(LargeBinary)
    entry_version: Mapped[int] = mapped_column(default=0)
    label: Mapped[str] = mapped_column(String(200), default="")
    token: Mapped[str] = mapped_column(String(32), default="")
    enrolled_at: Mapped[float | None] = mapped_column(Float(53))
    expires_at: Mapped[float | None] = mapped_column(Float(53))
    revoked_at: Mapped[float | None] = mapped_column(Float(53))
    revoked_by: Mapped[str] = mapped_column(String(64), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    condition: Mapped[dict[str, Any]] = mapped_column(default=dict)
    condition_at: Mapped[float | None] = mapped_column(Float(53))


class Token(Table):
    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    uses: Mapped[int]
    label: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[float] = mapped_column(Float(53))
    created_by: Mapped[str] = mapped_column(String(64), default="")
    expires_at: Mapped[float] = mapped_column(Float(53))


class Operator(Table):
    __tablename__ = "operators"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Float(53))
    created_by: Mapped[str] = mapped_column(String(64), default="")
    expires_at: Mapped[float | None] = mapped_column(Float(53))
    revoked_at: Mapped[float | None] = mapped_column(Float(53))
    revoked_by: Mapped[str] = mapped_column(String(64), default="")


class Setting(Table):
    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


def rows_of(table: type[Table]) -> CoreTable:
    """The table itself, for statements that no ORM looks at: those are made in a fraction of the time."""
    core = table.__table__
    assert isinstance(core, CoreTable)
    return core
