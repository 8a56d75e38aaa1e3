"""Owners, histories, the audit log; an update's bytes are its row's own.

Runs that were there before have no history yet: it begins when a coordinator takes them up.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INLINE = 64 * 1024


def upgrade() -> None:
    with op.batch_alter_table("runs") as batch_op:
        for name in ("head", "audit_hash"):
            batch_op.add_column(sa.Column(name, sa.String(length=64), nullable=False, server_default=""))
        for name in ("recovery", "beyond", "epoch", "audit_number", "remembered"):
            batch_op.add_column(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("owner", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("beat", sa.Float(precision=53), nullable=False, server_default="0"))
    with op.batch_alter_table("rounds") as batch_op:
        for name in ("link", "head"):
            batch_op.add_column(sa.Column(name, sa.String(length=64), nullable=False, server_default=""))
    with op.batch_alter_table("models") as batch_op:
        batch_op.add_column(sa.Column("kept", sa.Boolean(), nullable=False, server_default=sa.true()))
    with op.batch_alter_table("updates") as batch_op:
        batch_op.add_column(sa.Column("data", sa.LargeBinary(), nullable=True))
        batch_op.add_column(sa.Column("seal", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("kept", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_table(
        "audit",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_audit_run_runs")),
        sa.PrimaryKeyConstraint("run", "number", name=op.f("pk_audit")),
    )
    # Devices had no memory yet: what they did until now, they cannot be asked about.
    op.execute(sa.text("UPDATE runs SET remembered = number"))
    # Small updates move from the common contents to their own rows; large ones, which are files, when they are next
    # opened (store.face).
    op.execute(
        sa.text(
            "UPDATE updates SET data = (SELECT c.data FROM contents c WHERE c.digest = updates.digest) "
            "WHERE size > 0 AND size <= :inline"
        ).bindparams(inline=_INLINE)
    )


def downgrade() -> None:
    raise NotImplementedError("a run database goes forward only; restore the backup that was made before")
