"""Reviews say with which chance their record was asked about: 1 for what was written by hand before.

A step is frozen once released: it names its columns itself and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # DuckDB adds no column with a constraint, so the constraint follows; SQLite adds it with the column or never.
    follows = op.get_context().dialect.name != "sqlite"
    op.add_column("reviews", sa.Column("inclusion", sa.Double, nullable=follows, server_default=sa.text("1")))
    if follows:
        op.alter_column("reviews", "inclusion", existing_type=sa.Double, nullable=False)
