"""Add to group scores the number of records that the mean is computed from.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # The table was empty before, so the default is never used. DuckDB needs the constraint separately, SQLite does not.
    follows = op.get_context().dialect.name != "sqlite"
    op.add_column("group_scores", sa.Column("records", sa.BigInteger, nullable=follows, server_default=sa.text("0")))
    if follows:
        op.alter_column("group_scores", "records", existing_type=sa.BigInteger, nullable=False)
