"""What is measured of updates and rounds, the digest of a model's tensors, and its difference to the one before.

Of what was there before, nothing was measured: the columns say so by being empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rounds") as batch_op:
        batch_op.add_column(sa.Column("fold_s", sa.Float(precision=53), nullable=False, server_default="0"))
    with op.batch_alter_table("updates") as batch_op:
        batch_op.add_column(sa.Column("stats", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("upload_s", sa.Float(precision=53), nullable=False, server_default="0"))
    with op.batch_alter_table("models") as batch_op:
        for name in ("weights", "delta", "base"):
            batch_op.add_column(sa.Column(name, sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    raise NotImplementedError("a run database goes forward only; restore the backup that was made before")
