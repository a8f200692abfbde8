"""Add to batches the scores they were published from, and to attempts the process that runs them.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("scoring_batches", sa.Column("scores", sa.Text))
    op.add_column("attempts", sa.Column("owner", sa.Text))
