"""Add what the desk keeps: locks of cases, approvals, notes on nights, saved filters, and samples to be judged.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

Instant = sa.DateTime(timezone=True)
ADDED = ("approvals", "annotations", "saved_filters", "samples")


def upgrade() -> None:
    op.add_column("cases", sa.Column("locked_by", sa.Text))
    op.add_column("cases", sa.Column("locked_until", Instant))
    op.create_table(
        "approvals",
        _key("detector", sa.Text),
        _key("approval_id", sa.Integer),
        sa.Column("cases", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_at", Instant, nullable=False),
        sa.Column("decision", sa.Text),
        sa.Column("decided_by", sa.Text),
        sa.Column("decided_at", Instant),
    )
    op.create_table(
        "annotations",
        _key("detector", sa.Text),
        _key("batch_date", sa.Date),
        _key("author", sa.Text),
        _key("written_at", Instant),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "saved_filters",
        _key("detector", sa.Text),
        _key("person", sa.Text),
        _key("name", sa.Text),
        sa.Column("query", sa.Text, nullable=False),
    )
    op.create_table(
        "samples",
        _key("detector", sa.Text),
        _key("batch_date", sa.Date),
        _key("record_id", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("inclusion", sa.Double, nullable=False),
        sa.Column("event_time", Instant, nullable=False),
        sa.Column("entity", sa.Text),
        sa.Column("record", sa.Text),
        sa.Column("drawn_at", Instant, nullable=False),
    )


def downgrade() -> None:
    for table in reversed(ADDED):
        op.drop_table(table)
    op.drop_column("cases", "locked_until")
    op.drop_column("cases", "locked_by")


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False, nullable=False)
