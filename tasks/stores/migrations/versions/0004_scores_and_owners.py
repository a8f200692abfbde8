"""A batch says which scores it was published from, and a try says which process it is.

A step is frozen once released: it names its columns itself and does not import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("scoring_batches", sa.Column("scores", sa.Text))
    op.add_column("attempts", sa.Column("owner", sa.Text))
