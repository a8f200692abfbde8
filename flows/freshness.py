"""The freshness flow: fails while a detector's newest published night is too old, or a night has failed."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.config.setup import load_setup
from flows.hooks import mark_crashed
from flows.status import StatusLine, list_in_service, read_line
from tasks.rows.escaping import escape_markdown

DUE_BY = timedelta(hours=6)  # after midnight in the detector's time zone, yesterday's night must be published


@flow(name="freshness", flow_run_name="watch freshness", on_running=[mark_crashed])
def watch_freshness(max_days_behind: int = 0) -> State[None]:
    """Check every detector in service. Fails if one is late, and lists each late detector with the cause.

    Yesterday's night is due from 06:00 in the detector's time zone.

    Args:
        max_days_behind: How many days older than the night that is due the newest published night may be.
    """
    lines = [read_line(name) for name in list_in_service()]
    late = [f"{line.detector}: {cause}" for line in lines if (cause := find_lateness(line, max_days_behind))]
    create_table_artifact([make_row(line, late) for line in lines], key="freshness", description=describe(late))
    if late:
        return Failed(message="\n".join(late))
    return Completed(message=f"{len(lines)} fresh")


def find_lateness(line: StatusLine, max_days_behind: int) -> str:
    """Why a detector is late; empty if it is not."""
    if line.error:
        return line.error
    if line.newest_night is None:
        return "no night is published yet"
    due = load_setup(line.detector).yesterday(datetime.now(UTC) - DUE_BY)
    behind = (due - line.newest_night).days
    if behind > max_days_behind:
        days = "day" if behind == 1 else "days"
        return f"the newest published night is {line.newest_night}, and {due} was due: {behind} {days} late"
    failed = line.counts["failed"]
    return f"{failed} nights failed: nightjar status {line.detector}" if failed else ""


def make_row(line: StatusLine, late: Sequence[str]) -> dict[str, Any]:
    """A detector's row in the table on Prefect's page."""
    facts = {key: value for key, value in asdict(line).items() if key not in ("counts", "error")}
    row = {key: str(value) if isinstance(value, date) else value for key, value in facts.items()} | line.counts
    return row | {"late": any(cause.startswith(f"{line.detector}: ") for cause in late)}


def describe(late: Sequence[str]) -> str:
    """The text above the table on Prefect's page."""
    return "\n".join(f"- {escape_markdown(cause)}" for cause in late) or "every detector in service is fresh"
