"""Add to reviews the probability with which the record was selected; 1 for existing rows.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # DuckDB cannot add a column with a constraint, so that comes second; SQLite can add it only with the column.
    follows = op.get_context().dialect.name != "sqlite"
    op.add_column("reviews", sa.Column("inclusion", sa.Double, nullable=follows, server_default=sa.text("1")))
    if follows:
        op.alter_column("reviews", "inclusion", existing_type=sa.Double, nullable=False)
