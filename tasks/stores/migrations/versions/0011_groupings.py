"""Add to group scores their grouping, since a detector may have several, and the threshold of each group.

The grouping of earlier rows is unknown, and becomes "". It joins the key, which no database adds a column to: the rows
are copied into a new table. A migration is frozen once released: it defines its own columns and does not import
tasks.stores.warehouse.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

KEPT = ("detector", "batch_date", "group", "score", "rank", "records")


def upgrade() -> None:
    _rebuild(
        [
            _key("detector", sa.Text),
            _key("batch_date", sa.Date),
            _key("grouping", sa.Text),
            _key("group", sa.Text),
            sa.Column("score", sa.Double, nullable=False),
            sa.Column("rank", sa.Double),
            sa.Column("records", sa.BigInteger, nullable=False),
            sa.Column("threshold", sa.Double),
            sa.Column("flagged", sa.Boolean, nullable=False),
        ],
        {"grouping": sa.literal(""), "flagged": sa.false()},
    )


def downgrade() -> None:
    op.execute(sa.delete(sa.table("group_scores", sa.column("grouping"))).where(sa.column("grouping") != ""))
    _rebuild(
        [
            _key("detector", sa.Text),
            _key("batch_date", sa.Date),
            _key("group", sa.Text),
            sa.Column("score", sa.Double, nullable=False),
            sa.Column("rank", sa.Double),
            sa.Column("records", sa.BigInteger, nullable=False),
        ],
        {},
    )


def _rebuild(columns: list[sa.Column[Any]], added: dict[str, sa.ColumnElement[Any]]) -> None:
    """Give the table other columns and another key, and keep its rows."""
    kept = sa.table("group_scores", *map(sa.column, KEPT))
    copied = sa.table("group_scores_copied", *map(sa.column, KEPT))
    op.create_table(
        "group_scores_copied",
        sa.Column("detector", sa.Text),
        sa.Column("batch_date", sa.Date),
        sa.Column("group", sa.Text),
        sa.Column("score", sa.Double),
        sa.Column("rank", sa.Double),
        sa.Column("records", sa.BigInteger),
    )
    op.execute(sa.insert(copied).from_select(KEPT, sa.select(*kept.c)))
    op.drop_table("group_scores")
    op.create_table("group_scores", *columns)
    made = sa.table("group_scores", *map(sa.column, (*KEPT, *added)))
    op.execute(sa.insert(made).from_select([*KEPT, *added], sa.select(*copied.c, *added.values())))
    op.drop_table("group_scores_copied")


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False, nullable=False)
