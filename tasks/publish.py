"""Publish one night: its flags, groups and counts replace the batch's earlier ones in one transaction, cases included.

Whether it runs twice, concurrently in two processes, or is killed, readers see the complete old or new result.
An attempt overtaken by a newer one, or whose input has changed, is refused; replaced rows are archived.
The fencing number follows M. Kleppmann, "How to do distributed locking" (2016).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from tasks.errors import Failure, PublishConflict, ReconciliationFailed
from tasks.follow_up.cases import place_alerts
from tasks.follow_up.suppressions import suppress_flags
from tasks.policy import IO
from tasks.rows.groups import rank_groups
from tasks.rows.limits import LIMIT
from tasks.rows.params import CasesParams
from tasks.rows.record import RecordRule
from tasks.stores.bulk import load_rows
from tasks.stores.lake import Lake, Manifest, quote
from tasks.stores.site import Site
from tasks.stores.tables import (
    Night,
    Scored,
    attempts,
    flagged_anomalies,
    group_scores,
    scoring_batches,
    superseded_anomalies,
)
from tasks.stores.warehouse import Warehouse, lock_key, read_past_groups

# The columns of a flag that come from scoring; the night adds the rest.
FLAG_COLUMNS = [
    "record_id",
    "event_time",
    "score",
    "percentile_rank",
    "p_value",
    "causes",
    "second_stage_probability",
    "suppressed",
]
RECORD_COLUMNS = ["entity", "record", "suppressed_by"]  # looked up when the night is published; null without them
NO_RECORD, CASES = RecordRule(), CasesParams()
NIGHT_COLUMNS = ["detector", "batch_date", "attempt", "threshold", "model_name", "model_version", "scored_at"]


def reconcile_counts(night: Night, flags: pd.DataFrame) -> None:
    """Raise ReconciliationFailed unless every row of the batch is accounted for exactly once."""
    accounted = night.scored + night.quarantined + night.excluded
    broken = {
        "rows in = scored + quarantined + excluded": night.rows_in == accounted,
        "flags to publish <= flagged <= scored": len(flags) <= night.flagged <= night.scored,
        "one flag per record": flags["record_id"].is_unique,
    }
    failed = [rule for rule, holds in broken.items() if not holds]
    if failed:
        raise ReconciliationFailed(
            "The night's counts do not add up; nothing was published.",
            where=_describe_batch(night),
            got=f"rows in {night.rows_in}, scored {night.scored}, quarantined {night.quarantined}, excluded "
            f"{night.excluded}, flagged {night.flagged}, flags to publish {len(flags)}",
            expected="; ".join(failed),
            todo="run the night again; if the counts still differ, a step lost or duplicated rows: report this message",
        )


def build_rows(night: Night, flags: pd.DataFrame) -> pd.DataFrame:
    """The rows of flagged_anomalies: the flags and the columns common to the night.

    A flag that has a threshold of its own keeps it: that of its segment.
    """
    common = {name: getattr(night, name) for name in NIGHT_COLUMNS} | {n: flags[n] for n in flags if n == LIMIT}
    return flags.reindex(columns=[*FLAG_COLUMNS, *RECORD_COLUMNS]).assign(**common)


def publish_night(
    warehouse: Warehouse,
    night: Night,
    flags: pd.DataFrame,
    now: datetime,
    current_input_hash: Callable[[], str],
    groups: pd.DataFrame | None = None,
    cases: CasesParams = CASES,
) -> None:
    """Replace the batch's published result with this night's, completely or not at all.

    flags: one row per alert or suppressed flag, FLAG_COLUMNS and optionally RECORD_COLUMNS. `current_input_hash` reads
    the landing manifest; it is called while the batch is locked. groups: of `combine_groups`, compared now with those
    of the detector's earlier batch dates. cases: how severe the cases are that alerts join or open.
    Raises ReconciliationFailed, PublishConflict and ServiceUnreachable.
    """
    reconcile_counts(night, flags)
    rows = build_rows(night, flags)
    with warehouse.begin() as connection:
        lock_key(connection, night.detector, night.batch_date.isoformat())
        _refuse_overtaken(connection, night, current_input_hash())
        _archive_flags(connection, night, now)
        connection.execute(sa.delete(flagged_anomalies).where(*_of_batch(flagged_anomalies, night)))
        load_rows(connection, flagged_anomalies, rows)
        _replace_groups(connection, night, groups)
        _replace_batch(connection, night, len(flags))
        _finish_attempt(connection, night, now)
        place_alerts(connection, night, cases, now)


def _refuse_overtaken(connection: sa.Connection, night: Night, input_hash: str) -> None:
    published = connection.scalar(sa.select(scoring_batches.c.attempt).where(*_of_batch(scoring_batches, night)))
    if published is not None and published > night.attempt:
        raise PublishConflict(
            "A newer attempt has already published this batch; nothing was changed.",
            where=_describe_batch(night),
            got=f"attempt {night.attempt}, published is attempt {published}",
            todo="nothing: the newer result is valid; run the night again only if that result is wrong",
        )
    if input_hash != night.input_hash:
        raise PublishConflict(
            "The batch's input changed while it was scored; nothing was published.",
            where=_describe_batch(night),
            got=f"landing now has input hash {input_hash}",
            expected=f"{night.input_hash}, the input that was scored",
            todo="run the night again to score the new input",
        )


def _archive_flags(connection: sa.Connection, night: Night, now: datetime) -> None:
    """Archive the rows that will be replaced, except rows of the same attempt, which are a repeat."""
    names = flagged_anomalies.c.keys()
    when = sa.literal(now, superseded_anomalies.c.superseded_at.type)
    old = sa.select(*flagged_anomalies.c, when, sa.literal(night.attempt))
    older = flagged_anomalies.c.attempt < night.attempt
    connection.execute(
        sa.insert(superseded_anomalies).from_select(
            [*names, "superseded_at", "superseded_by"], old.where(*_of_batch(flagged_anomalies, night), older)
        )
    )


def _replace_groups(connection: sa.Connection, night: Night, groups: pd.DataFrame | None) -> None:
    connection.execute(sa.delete(group_scores).where(*_of_batch(group_scores, night)))
    if groups is None or groups.empty:
        return
    past = read_past_groups(connection, night.detector, night.threshold, night.batch_date)
    named = rank_groups(groups, past).assign(detector=night.detector, batch_date=night.batch_date)
    load_rows(connection, group_scores, named)


def _replace_batch(connection: sa.Connection, night: Night, published: int) -> None:
    connection.execute(sa.delete(scoring_batches).where(*_of_batch(scoring_batches, night)))
    connection.execute(sa.insert(scoring_batches).values(asdict(night) | {"published": published}))


def _finish_attempt(connection: sa.Connection, night: Night, now: datetime) -> None:
    this = (*_of_batch(attempts, night), attempts.c.attempt == night.attempt)
    alive = attempts.c.status.in_(("running", "published"))  # published: a repeat, after a commit without an answer
    outcome = {
        "status": "published",
        "step": "publish",
        "cause": None,
        "error": None,
        "parts": None,
        "finished_at": now,
    }
    if connection.execute(sa.update(attempts).where(*this, alive).values(outcome)).rowcount != 1:
        if cause := connection.scalar(sa.select(attempts.c.cause).where(*this)):
            raise PublishConflict(
                "The attempt has been marked as failed; nothing was published.",
                where=_describe_batch(night),
                got=cause,
                expected="an attempt that is running",
                todo="run the night again; finished parts are reused",
            )
        raise PublishConflict(
            "The attempt number is not from this warehouse; nothing was published.",
            where=_describe_batch(night),
            got=f"attempt {night.attempt}",
            todo="publish to the warehouse in which the night began",
        )


def _of_batch(table: sa.Table, night: Night) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.detector == night.detector, table.c.batch_date == night.batch_date


def _describe_batch(night: Night) -> str:
    return f"detector {night.detector}, batch {night.batch_date}, attempt {night.attempt}"


@dataclass(frozen=True)
class Begun:
    """A night's fencing number, and when it began."""

    attempt: int
    started_at: datetime


@task(task_run_name="begin {site.detector} {batch_date}", **IO)
def begin_night(site: Site, batch_date: date) -> Begun:
    """Get the fencing number of this attempt; an attempt with a higher number may overtake it."""
    now = datetime.now(UTC)
    context = TaskRunContext.get()
    run_id = str(context.task_run.flow_run_id) if context else None
    number = site.warehouse.begin_attempt(site.detector, batch_date, "begin", now, run_id)
    return Begun(number, now)


def fail_night(site: Site, run_id: str, failure: Failure) -> None:
    """Record that the attempt of a flow run failed, and why."""
    for attempt in site.warehouse.read_attempts(site.detector):
        if attempt.run_id == run_id:
            key = (attempt.detector, attempt.batch_date, attempt.attempt)
            site.warehouse.fail_attempt(*key, failure, datetime.now(UTC))


def add_records(lake: Lake, validated: Manifest, flags: pd.DataFrame, rule: RecordRule) -> pd.DataFrame:
    """The flags with entity and record, from the rows that were scored. Raises PublishConflict if one is gone."""
    if flags.empty or not rule.columns:
        return flags
    wanted = pa.table({"record_id": pa.array(flags["record_id"], pa.string())})
    columns = ", ".join(f"parts.{quote(name)}" for name in rule.columns)
    sql = f"select record_id, {columns} from parts join wanted using (record_id)"  # noqa: S608 - quoted
    rows = lake.query(sql, validated.parts, wanted=wanted)
    records = rule.describe(rows).assign(record_id=rows["record_id"].to_pylist())
    if len(records) != len(flags):
        raise PublishConflict(
            "Another run validated the batch again while it was scored; nothing was published.",
            got=f"{len(records)} of {len(flags)} flagged records in the validated rows",
            todo="nothing if the other run publishes; otherwise run the night again",
        )
    return flags.merge(records, on="record_id", how="left", validate="one_to_one")


def publish_scored(
    site: Site, begun: Begun, scored: Scored, rule: RecordRule = NO_RECORD, cases: CasesParams = CASES
) -> Night:
    """Publish a scored batch from the lake; returns the night as published."""
    now, lake = datetime.now(UTC), site.lake
    night = Night(**vars(scored), attempt=begun.attempt, seconds=(now - begun.started_at).total_seconds())
    facts = lake.get("scores", site.detector, scored.batch_date, scored.scores).facts
    flags, groups = lake.read_frame(facts["flags"]), lake.read_frame(facts["groups"])
    flags = add_records(lake, lake.get("validated", site.detector, scored.batch_date), flags, rule)
    flags = suppress_flags(site.warehouse, site.detector, flags, now)
    reports = site.read_reports(site.list_reached(scored.batch_date))  # not while the warehouse is open to write
    input_hash = lambda: str(site.hash_inputs([scored.batch_date], reports)[scored.batch_date])  # noqa: E731
    publish_night(site.warehouse, night, flags, now, input_hash, groups, cases)
    return night


@task(task_run_name="publish {site.detector} {scored.batch_date}", **IO)
def publish(site: Site, begun: Begun, scored: Scored, rule: RecordRule, cases: CasesParams) -> Night:
    """Publish a scored batch; returns its row of scoring_batches."""
    night = publish_scored(site, begun, scored, rule, cases)
    get_run_logger().info("published %s: %d flagged", _describe_batch(night), night.flagged)
    return night
