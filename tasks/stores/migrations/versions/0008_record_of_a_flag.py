"""Add to flags whom they are about (entity) and the record's own values that params name (record, JSON).

Both are null for flags published before. A migration is frozen once released: it defines its own columns and does not
import tasks.stores.warehouse.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TABLES = ("flagged_anomalies", "superseded_anomalies")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("entity", sa.Text))
        op.add_column(table, sa.Column("record", sa.Text))
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("flagged_anomalies_entity", "flagged_anomalies", ["detector", "entity"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("flagged_anomalies_entity", "flagged_anomalies")
    for table in TABLES:
        op.drop_column(table, "record")
        op.drop_column(table, "entity")
