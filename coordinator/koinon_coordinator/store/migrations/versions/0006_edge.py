"""How devices are, and what their part in a round has cost.

Nobody said either before: the columns and the table say so by being empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices") as batch_op:
        batch_op.add_column(sa.Column("condition", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("condition_at", sa.Float(precision=53), nullable=True))
    op.create_table(
        "costs",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("client", sa.String(length=128), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("joules", sa.Float(precision=53), nullable=True),
        sa.Column("spent", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_costs_run_runs")),
        sa.PrimaryKeyConstraint("run", "round", "client", name=op.f("pk_costs")),
    )


def downgrade() -> None:
    raise NotImplementedError("a run database goes forward only; restore the backup that was made before")
