"""What devices say in the sessions of secure rounds, and what the next of them is sized by."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models") as batch_op:
        batch_op.add_column(sa.Column("tuning", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "payloads",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("collection", sa.String(length=16), nullable=False),
        sa.Column("client", sa.String(length=128), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_payloads_run_runs")),
        sa.PrimaryKeyConstraint("run", "round", "attempt", "collection", "client", name=op.f("pk_payloads")),
    )


def downgrade() -> None:
    raise NotImplementedError("a run database goes forward only; restore the backup that was made before")
