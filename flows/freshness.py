"""The freshness flow: fails when a due night is not published or a night has failed, once for each cause."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Completed, Failed

from flows.alerts import tell
from flows.config.setup import load_setup
from flows.hooks import mark_crashed
from flows.status import StatusLine, list_in_service, read_line
from tasks.follow_up.facts import DUE_BY
from tasks.rows.escaping import escape_markdown


@flow(name="freshness", flow_run_name="watch freshness", on_running=[mark_crashed])
def watch_freshness(max_days_behind: int = 0) -> State[None]:
    """Check every detector in service, and list each late one with the causes.

    Yesterday's night is due from 06:00 in the detector's time zone. The run fails if the previous one did not know one
    of the causes; otherwise it completes as StillLate. Also tells what alerts.yaml asks for: late nights, digests, and
    messages that a channel did not take before.

    Args:
        max_days_behind: How many days older than the night that is due the newest published night may be.
    """
    lines = [read_line(name) for name in list_in_service()]
    key = f"freshness-{max_days_behind}" if max_days_behind else "freshness"
    known = read_known(key)
    rows = [make_row(line, find_causes(line, max_days_behind)) for line in lines]
    late = list_late(rows)
    create_table_artifact(rows, key=key, description=describe(late))
    tell()
    if not late:
        return Completed(message=f"{len(lines)} fresh")
    message = "\n".join(late)
    return Completed(name="StillLate", message=message) if {*late} <= {*known} else Failed(message=message)


def read_known(key: str) -> list[str]:
    """What the previous run has found late, by its table on Prefect's page."""
    named = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=named, sort=ArtifactSort.UPDATED_DESC, limit=1)
    return [line for one in found for line in list_late(json.loads(str(one.data)))]


def list_late(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each cause in a table of the watch; one of an earlier version has none."""
    return [f"{row['detector']}: {cause}" for row in rows for cause in row.get("causes", "").splitlines()]


def find_causes(line: StatusLine, max_days_behind: int) -> list[str]:
    """Why a detector is late: failed nights with their errors, and a night that is due; empty if it is not.

    A cause reads the same in every run, for as long as it lasts.
    """
    if line.error:
        return [line.error]
    failed = {night.batch_date: f"{night.batch_date} failed: {night.why}" for night in line.nights
              if night.state == "failed"}  # fmt: skip
    due = load_setup(line.detector).yesterday(datetime.now(UTC) - DUE_BY)
    is_late = line.newest_night is None or (due - line.newest_night).days > max_days_behind
    if not is_late or due in failed:
        return list(failed.values())
    why = next((night.why for night in line.nights if night.batch_date == due), "nothing has landed")
    return [*failed.values(), f"{due} was due and is not published: {why}"]


def make_row(line: StatusLine, causes: Sequence[str]) -> dict[str, Any]:
    """A detector's row in the table on Prefect's page."""
    row = {key: str(value) if isinstance(value, date) else value for key, value in line.facts.items() if key != "error"}
    return row | {"causes": "\n".join(causes)}


def describe(late: Sequence[str]) -> str:
    """The text above the table on Prefect's page."""
    return "\n".join(f"- {escape_markdown(cause)}" for cause in late) or "every detector in service is fresh"
