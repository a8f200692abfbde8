"""Reviews say with which chance their record was asked about: 1 for what was written by hand before.

A step is frozen once released: it names its columns itself and does not import tasks.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # DuckDB adds no column with a constraint, so the constraint follows.
    op.add_column("reviews", sa.Column("inclusion", sa.Double, server_default="1"))
    op.alter_column("reviews", "inclusion", nullable=False)
