"""Add what follows a published night: cases and their events, findings, deliveries and suppressions.

A review also says on which attempt it was given and in which word, a flag which suppression holds it back, and a drift
statistic its bound. All are null for rows of before. A migration is frozen once released: it defines its own columns
and does not import tasks.stores.warehouse.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

Instant = sa.DateTime(timezone=True)
FLAGS = ("flagged_anomalies", "superseded_anomalies")
ADDED = ("cases", "case_flags", "case_events", "findings", "deliveries", "suppressions")


def upgrade() -> None:
    op.create_table(
        "cases",
        _key("detector", sa.Text),
        _key("case_id", sa.Integer),
        sa.Column("entity", sa.Text),
        sa.Column("batch_date", sa.Date),
        sa.Column("record_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("assignee", sa.Text),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("opened_at", Instant, nullable=False),
        sa.Column("due_at", Instant, nullable=False),
        sa.Column("snoozed_until", Instant),
        sa.Column("closed_at", Instant),
        sa.Column("verdict", sa.Text),
        sa.Column("merged_into", sa.Integer),
    )
    many_writers = op.get_context().dialect.name == "postgresql"  # see 0001: an index makes DuckDB's deletions slow
    op.create_table(
        "case_flags",
        _key("detector", sa.Text, many_writers),
        _key("batch_date", sa.Date, many_writers),
        _key("record_id", sa.Text, many_writers),
        sa.Column("case_id", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
    )
    if many_writers:
        op.create_index("case_flags_case", "case_flags", ["detector", "case_id"])
    op.create_table(
        "case_events",
        _key("detector", sa.Text),
        _key("case_id", sa.Integer),
        _key("number", sa.Integer),
        sa.Column("happened_at", Instant, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("details", sa.Text),
    )
    op.create_table(
        "findings",
        _key("detector", sa.Text),
        _key("batch_date", sa.Date),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("finding", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("todo", sa.Text, nullable=False),
        sa.Column("found_at", Instant, nullable=False),
    )
    op.create_table(
        "deliveries",
        _key("delivery_id", sa.Text),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("detector", sa.Text, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
        sa.Column("raised_at", Instant, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due_at", Instant),
        sa.Column("sent_at", Instant),
    )
    op.create_table(
        "suppressions",
        _key("detector", sa.Text),
        _key("suppression_id", sa.Integer),
        sa.Column("entity", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("added_at", Instant, nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("ended_at", Instant),
    )
    op.add_column("reviews", sa.Column("attempt", sa.Integer))
    op.add_column("reviews", sa.Column("said", sa.Text))
    op.add_column("drift", sa.Column("bound", sa.Double))
    for table in FLAGS:
        op.add_column(table, sa.Column("suppressed_by", sa.Text))


def downgrade() -> None:
    for table in FLAGS:
        op.drop_column(table, "suppressed_by")
    op.drop_column("drift", "bound")
    op.drop_column("reviews", "said")
    op.drop_column("reviews", "attempt")
    for table in reversed(ADDED):
        op.drop_table(table)


def _key(name: str, kind: type[sa.types.TypeEngine[Any]], is_key: bool = True) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=is_key, autoincrement=False, nullable=False)
