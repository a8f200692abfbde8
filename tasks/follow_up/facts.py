"""What the rules of alerts.yaml ask about: facts of a detector's nights and cases, read from the warehouse's tables."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tasks.errors import Failure
from tasks.follow_up.alerts import Fact
from tasks.stores.site import Site
from tasks.stores.tables import (
    Attempt,
    PublishedNight,
    case_events,
    case_flags,
    cases,
    drift,
    findings,
    flagged_anomalies,
)

DUE_BY = timedelta(hours=6)  # after midnight in the detector's time zone, yesterday's night must be published
CANARY_RECALL = "canary_recall"  # a statistic of `drift`; its column is the canary's name
JOINED = "joined"  # an event of a case
NOTHING = "nothing"  # a finding
IS_NO_FAILURE = {"BatchMissing", "PublishConflict"}  # a late file; another attempt's night is the valid one
CAUSES = {"data_broke": "the data broke", "world_changed": "the world has changed", "attack": "it may be an attack"}


def read_facts(site: Site, since: datetime, now: datetime, is_nightly: bool) -> list[Fact]:
    """The facts of a detector that became known after an instant, in their order.

    is_nightly: a night is due every day, so that one may be late.
    """
    attempts = site.warehouse.read_attempts(site.detector)
    nights = [night for night in site.warehouse.read_nights(site.detector) if night.scored_at > since]
    found = [
        *list_failures(attempts, now),
        *list_budgets(nights, _count_alerts(site, [night.batch_date for night in nights])),
        *_list_findings(site, since),
        *_list_recalls(site, nights),
        *_list_cases(site, since),
        *list_recovered(attempts, late := list_late(site, attempts, now) if is_nightly else []),
        *late,
    ]
    return sorted((fact for fact in found if since < fact.at <= now), key=lambda fact: fact.at)


def list_failures(attempts: Iterable[Attempt], now: datetime) -> list[Fact]:
    """The attempts that failed or were rejected, whatever became of their nights later."""
    facts = []
    for one in attempts:
        if (failure := _find_failure(one)) is None:
            continue
        is_rejected = failure.error == "BatchRejected"
        what = "was rejected by its contract" if is_rejected else "failed"
        parts = [failure.line, *(f"{name}: {failure.parts[name]}" for name in ("got", "todo") if name in failure.parts)]
        facts.append(
            Fact(
                kind="night_rejected" if is_rejected else "night_failed",
                detector=one.detector,
                about=f"{one.detector} {one.batch_date} {failure.error}",
                day=one.batch_date,
                at=one.finished_at or now,
                title=f"{one.detector}: the night of {one.batch_date} {what}",
                body="\n".join([*parts, f"nightjar status {one.detector}"]),
            )
        )
    return facts


def _find_failure(attempt: Attempt) -> Failure | None:
    """Why an attempt failed; None if it did not, or for a reason that people need not hear of."""
    failure = attempt.failure if attempt.status == "failed" else None
    return None if failure is None or failure.error in IS_NO_FAILURE else failure


def list_late(site: Site, attempts: Sequence[Attempt], now: datetime) -> list[Fact]:
    """The nights that were not published by six in the morning, since the first attempt at any night."""
    if not attempts:
        return []
    published: dict[date, datetime] = {}
    for one in attempts:
        if one.status == "published" and one.finished_at:
            published[one.batch_date] = min(one.finished_at, published.get(one.batch_date, one.finished_at))
    day, facts = min(one.started_at for one in attempts).astimezone(site.zone).date(), []
    while (due := site.start_of(day + timedelta(days=1)) + DUE_BY) <= now:
        if day not in published or published[day] > due:
            facts.append(
                Fact(
                    kind="night_late",
                    detector=site.detector,
                    about=f"{site.detector} {day}",
                    day=day,
                    at=due,
                    title=f"{site.detector}: the night of {day} is late",
                    body=f"It was due at {due:%H:%M} ({site.time_zone}).\nnightjar status {site.detector}",
                )
            )
        day += timedelta(days=1)
    return facts


def list_recovered(attempts: Iterable[Attempt], late: Iterable[Fact]) -> list[Fact]:
    """The nights that were published after all: after an attempt that failed, or after they were due."""
    broken = {fact.day: "it was late" for fact in late}
    facts = []
    for one in sorted(attempts, key=lambda attempt: (attempt.batch_date, attempt.attempt)):
        if failure := _find_failure(one):
            broken[one.batch_date] = f"attempt {one.attempt} had failed: {failure.line}"
        elif one.status == "published" and one.finished_at and (why := broken.pop(one.batch_date, None)):
            facts.append(
                Fact(
                    kind="night_recovered",
                    detector=one.detector,
                    about=f"{one.detector} {one.batch_date} attempt {one.attempt}",
                    day=one.batch_date,
                    at=one.finished_at,
                    title=f"{one.detector}: the night of {one.batch_date} is published",
                    body=f"Attempt {one.attempt} succeeded; {why}\nnightjar status {one.detector}",
                )
            )
    return facts


def list_budgets(nights: Iterable[PublishedNight], alerts: Mapping[date, int]) -> list[Fact]:
    """The alerts of each published night, and how many flags score.max_alerts left out."""
    return [
        Fact(
            kind="over_budget",
            detector=one.detector,
            about=f"{one.detector} {one.batch_date}",
            day=one.batch_date,
            at=one.scored_at,
            title=f"{one.detector}: {alerts.get(one.batch_date, 0):,} alerts in the night of {one.batch_date}",
            body=f"{one.flagged:,} of {one.scored:,} rows are flagged"
            + (f"; score.max_alerts left out {cut:,} of them" if (cut := one.flagged - one.published) else "")
            + f".\nnightjar flags {one.detector} --date {one.batch_date}",
            number=alerts.get(one.batch_date, 0),
            beyond=one.flagged - one.published,
        )
        for one in nights
    ]


def _count_alerts(site: Site, days: Sequence[date]) -> dict[date, int]:
    table = flagged_anomalies
    counted = sa.select(table.c.batch_date, sa.func.count()).where(
        table.c.detector == site.detector, table.c.batch_date.in_(days), sa.not_(table.c.suppressed)
    )
    with site.warehouse.begin_reading() as connection:
        return {row[0]: row[1] for row in connection.execute(counted.group_by(table.c.batch_date))}


def _list_findings(site: Site, since: datetime) -> list[Fact]:
    of = (findings.c.detector == site.detector, findings.c.finding != NOTHING, findings.c.found_at > since)
    rows = _select(site, sa.select(findings).where(*of))
    return [
        Fact(
            kind="drifted",
            detector=site.detector,
            about=f"{site.detector} {row['batch_date']} {row['finding']}",
            day=row["batch_date"],
            at=row["found_at"],
            title=f"{site.detector}: {CAUSES.get(row['finding'], row['finding'])} (night of {row['batch_date']})",
            body="\n".join([*map(str, json.loads(row["evidence"])), row["todo"]]),
            finding=row["finding"],
        )
        for row in rows
    ]


def _list_recalls(site: Site, nights: Iterable[PublishedNight]) -> list[Fact]:
    of = (drift.c.detector == site.detector, drift.c.statistic == CANARY_RECALL)
    recalls: dict[date, list[Mapping[str, Any]]] = {}
    for row in _select(site, sa.select(drift).where(*of).order_by(drift.c.value, drift.c.column)):
        recalls.setdefault(row["batch_date"], []).append(row)
    return [
        Fact(
            kind="canary_recall",
            detector=site.detector,
            about=f"{site.detector} {night.batch_date}",
            day=night.batch_date,
            at=night.scored_at,
            title=f"{site.detector}: only {found[0]['value']:.0%} of the canary {found[0]['column']} was found in the "
            f"night of {night.batch_date}",
            body="\n".join(["Recall by canary:", *(f"{row['column']}: {row['value']:.0%}" for row in found)]),
            number=found[0]["value"],
            beyond=sum(row["bound"] is not None and row["value"] < row["bound"] for row in found),
        )
        for night in nights
        if (found := recalls.get(night.batch_date))
    ]


def _list_cases(site: Site, since: datetime) -> list[Fact]:
    """The cases that were opened, or joined by flags, which may have raised their severity."""
    news = (case_events.c.detector == site.detector, case_events.c.kind == JOINED, case_events.c.happened_at > since)
    latest = sa.select(case_events.c.case_id, sa.func.max(case_events.c.happened_at).label("at")).where(*news)
    joined = {row["case_id"]: row["at"] for row in _select(site, latest.group_by(case_events.c.case_id))}
    is_joined = cases.c.case_id.in_(sa.select(case_events.c.case_id).where(*news))  # a list may be too long to send
    told = (cases.c.detector == site.detector, sa.or_(cases.c.opened_at > since, is_joined))
    found = _select(site, sa.select(cases).where(*told))
    flags = _list_case_flags(site, sa.select(cases.c.case_id).where(*told))
    return [
        Fact(
            kind="case",
            detector=site.detector,
            about=f"{site.detector} case {row['case_id']} {row['severity']}",
            day=min(flag["batch_date"] for flag in of_case),
            at=max(row["opened_at"], joined.get(row["case_id"], row["opened_at"])),
            # Never a record_id: erasing a record does not look into messages.
            title=f"{site.detector}: case {row['case_id']} is {row['severity']}"
            + (f": {row['entity']}" if row["entity"] else ""),
            body=f"flags: {len(of_case):,}; due {row['due_at'].astimezone(site.zone):%Y-%m-%d %H:%M}, {site.time_zone}"
            f"\nnightjar case {site.detector} {row['case_id']}",
            severity=row["severity"],
            records=[json.loads(flag["record"]) for flag in of_case if flag["record"]],
        )
        for row in found
        if (of_case := flags.get(row["case_id"]))
    ]


def _list_case_flags(site: Site, numbers: sa.Select[Any]) -> dict[int, list[Mapping[str, Any]]]:
    """The published flags of each case: batch_date and record."""
    key = ("detector", "batch_date", "record_id")
    joined = case_flags.join(flagged_anomalies, sa.and_(*(case_flags.c[k] == flagged_anomalies.c[k] for k in key)))
    columns = (case_flags.c.case_id, case_flags.c.batch_date, flagged_anomalies.c.record)
    of = (case_flags.c.detector == site.detector, case_flags.c.case_id.in_(numbers))
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in _select(site, sa.select(*columns).select_from(joined).where(*of)):
        found.setdefault(row["case_id"], []).append(row)
    return found


def _select(site: Site, query: sa.Select[Any]) -> list[Mapping[str, Any]]:
    with site.warehouse.begin_reading() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
