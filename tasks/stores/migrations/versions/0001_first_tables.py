"""The first tables: published results, attempts, replaced results, labels and reviews.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Double, because sa.Float is 32-bit in DuckDB. No autoincrement, because DuckDB does not know SERIAL.
Instant = sa.DateTime(timezone=True)


def key(name: str, kind: Any, enforced: bool = True) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=enforced, nullable=False, autoincrement=False)


def flag_values() -> list[sa.Column[Any]]:
    return [
        sa.Column("event_time", Instant, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("percentile_rank", sa.Double, nullable=False),
        sa.Column("p_value", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("causes", sa.Text, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("scored_at", Instant, nullable=False),
        sa.Column("second_stage_probability", sa.Double),
        sa.Column("suppressed", sa.Boolean, nullable=False),
    ]


def upgrade() -> None:
    # In DuckDB, deleting 100,000 indexed rows takes 3.5 s at commit, but 0.1 s without an index. A DuckDB file has one
    # writer, which deletes a night before loading it, so duplicates cannot occur without a key either.
    many_writers = op.get_context().dialect.name == "postgresql"
    op.create_table(
        "flagged_anomalies",
        key("detector", sa.Text, many_writers),
        key("batch_date", sa.Date, many_writers),
        key("record_id", sa.Text, many_writers),
        sa.Column("attempt", sa.Integer, nullable=False),
        *flag_values(),
    )
    op.create_table(
        "superseded_anomalies",
        key("detector", sa.Text, many_writers),
        key("batch_date", sa.Date, many_writers),
        key("record_id", sa.Text, many_writers),
        key("attempt", sa.Integer, many_writers),
        *flag_values(),
        sa.Column("superseded_at", Instant, nullable=False),
        sa.Column("superseded_by", sa.Integer, nullable=False),
    )
    op.create_table(
        "scoring_batches",
        key("detector", sa.Text),
        key("batch_date", sa.Date),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("input_hash", sa.Text, nullable=False),
        sa.Column("rows_in", sa.BigInteger, nullable=False),
        sa.Column("quarantined", sa.BigInteger, nullable=False),
        sa.Column("excluded", sa.BigInteger, nullable=False),
        sa.Column("scored", sa.BigInteger, nullable=False),
        sa.Column("flagged", sa.BigInteger, nullable=False),
        sa.Column("published", sa.BigInteger, nullable=False),
        sa.Column("unseen", sa.BigInteger, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("scored_at", Instant, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
    op.create_table(
        "attempts",
        key("detector", sa.Text),
        key("batch_date", sa.Date),
        key("attempt", sa.Integer),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("finished_at", Instant),
        sa.Column("run_id", sa.Text),
    )
    op.create_table(
        "group_scores",
        key("detector", sa.Text),
        key("batch_date", sa.Date),
        key("group", sa.Text),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("rank", sa.Double),
    )
    op.create_table(
        "labels",
        key("detector", sa.Text),
        key("record_id", sa.Text),
        key("known_at", Instant),
        sa.Column("label", sa.Integer, nullable=False),
    )
    op.create_table(
        "reviews",
        key("detector", sa.Text),
        key("batch_date", sa.Date),
        key("record_id", sa.Text),
        key("reviewer", sa.Text),
        key("reviewed_at", Instant),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
    )
    op.create_table(
        "drift",
        key("detector", sa.Text),
        key("batch_date", sa.Date),
        key("column", sa.Text),
        key("statistic", sa.Text),
        sa.Column("value", sa.Double, nullable=False),
    )
    # Analysts look up a record without knowing its night. DuckDB scans columns fast enough without an index.
    if many_writers:
        op.create_index("flagged_anomalies_record", "flagged_anomalies", ["detector", "record_id"])
