"""Store an attempt's error as its name and parts (what, where, got, expected, todo), next to the text.

A migration is frozen once released: it defines its own columns and does not import tasks.stores.warehouse.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NAMES = ("detector", "batch_date", "attempt", "cause", "error", "parts")
ATTEMPTS = sa.table("attempts", *(sa.column(name) for name in NAMES))
KEY = tuple(ATTEMPTS.c[name] for name in NAMES[:3])
PREFIX = "Flow run encountered an exception: "  # which Prefect put before the error's own text


def upgrade() -> None:
    op.add_column("attempts", sa.Column("error", sa.Text))
    op.add_column("attempts", sa.Column("parts", sa.Text))
    for row in read(sa.select(*KEY, ATTEMPTS.c.cause).where(ATTEMPTS.c.cause.is_not(None))):
        error, parts = read_cause(row.cause)
        same = (column == row[place] for place, column in enumerate(KEY))
        values = {"error": error, "parts": json.dumps(parts, ensure_ascii=False)}
        op.get_bind().execute(sa.update(ATTEMPTS).where(*same).values(values))


def downgrade() -> None:
    op.drop_column("attempts", "parts")
    op.drop_column("attempts", "error")


def read(query: sa.Select[Any]) -> Sequence[Any]:
    """The query's rows; empty when Alembic only prints the SQL."""
    return [] if op.get_context().as_sql else op.get_bind().execute(query).all()


def read_cause(cause: str) -> tuple[str, dict[str, str]]:
    """Parse an error's text into its name and parts: "Name: what", then lines such as "  where: ..."."""
    text = cause.removeprefix(PREFIX)
    named = re.match(r"([A-Z]\w*): ", text)
    error, text = (named.group(1), text[named.end() :]) if named else ("ProcessLost", text)
    what, *others = re.split(r"\n  (where|got|expected|to do): ", text)
    parts = dict(zip(("todo" if name == "to do" else name for name in others[::2]), others[1::2], strict=True))
    return error, {"what": what, **parts}
