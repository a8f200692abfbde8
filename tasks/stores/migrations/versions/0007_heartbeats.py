"""Add to attempts the last sign of life of their process, by which those of other hosts are known to have died.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("heartbeat_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("attempts", "heartbeat_at")
