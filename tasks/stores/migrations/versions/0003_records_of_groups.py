"""A group's score says of how many records it is the mean.

A step is frozen once released: it names its columns itself and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Nothing wrote this table before, so the default never shows; DuckDB wants the constraint on its own, SQLite not.
    follows = op.get_context().dialect.name != "sqlite"
    op.add_column("group_scores", sa.Column("records", sa.BigInteger, nullable=follows, server_default=sa.text("0")))
    if follows:
        op.alter_column("group_scores", "records", existing_type=sa.BigInteger, nullable=False)
