"""What waits for a person: cases by why they wait, approvals, and sampled records that nobody has judged yet."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from tasks.follow_up.approvals import read_approvals
from tasks.follow_up.cases import ANOMALY, BY_SEVERITY, NORMAL, OPEN, read_numbers
from tasks.on_demand.night import summarise_case
from tasks.rows.describe import localise
from tasks.rows.params import SEVERITIES
from tasks.stores.site import Site
from tasks.stores.tables import approvals, case_flags, cases, flagged_anomalies, reviews, samples

MOST_CASES = 100  # on the page
MINE, UNASSIGNED, DUE, CONFLICTING, ALL = "mine", "unassigned", "due", "conflicting", "all"
VIEWS = (MINE, UNASSIGNED, DUE, CONFLICTING, ALL)


def count_waiting(connection: sa.Connection, detector: str, now: datetime) -> dict[str, int]:
    """The open cases of a detector, those of them that are overdue, and the most severe ones."""
    c = cases.c
    found = sa.select(
        sa.func.count(),
        sa.func.count(sa.case((c.due_at <= now, 1))),
        sa.func.count(sa.case((c.severity == SEVERITIES[-1], 1))),
    ).where(c.detector == detector, *_open(now))
    waiting, overdue, critical = connection.execute(found).one()
    return {"open": waiting, "overdue": overdue, "critical": critical}


def _open(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return cases.c.closed_at.is_(None), sa.or_(cases.c.state == OPEN, cases.c.snoozed_until <= now)


def show_queue(site: Site, person: str, view: str, now: datetime) -> dict[str, Any]:
    """The cases of a view, most severe first, with the number of each view, approvals, and samples to judge."""
    detector = site.detector
    with site.warehouse.begin_reading() as connection:
        counts = _count(connection, detector, person, now)
        rows = _read(connection, detector, _view(detector, view, person, now), now)
        waiting = read_approvals(connection, detector, approvals.c.decision.is_(None))
        blind = count_samples(connection, detector, person)
    return {"view": view, "counts": counts, "cases": rows, "approvals": waiting, "blind": blind}


def _view(detector: str, name: str, person: str, now: datetime) -> list[sa.ColumnElement[bool]]:
    c = cases.c
    if name == CONFLICTING:
        return [c.detector == detector, c.merged_into.is_(None), c.case_id.in_(_conflicting(detector))]
    return [c.detector == detector, *_open(now), *_kinds(person, now)[name]]


def _kinds(person: str, now: datetime) -> dict[str, list[sa.ColumnElement[bool]]]:
    """Which of the open cases a view has."""
    c = cases.c
    return {MINE: [c.assignee == person], UNASSIGNED: [c.assignee.is_(None)], DUE: [c.due_at <= now], ALL: []}


def _conflicting(detector: str) -> sa.Select[Any]:
    """The cases with a record of which two people have said the opposite, each by their latest verdict."""
    r, m = reviews.c, case_flags.c
    record = [r.batch_date, r.record_id]
    several = sa.select(*record).where(r.detector == detector).group_by(*record)  # few have more than one reviewer
    shared = several.having(sa.func.count(sa.distinct(r.reviewer)) > 1).subquery()
    recency = sa.func.row_number().over(partition_by=[*record, r.reviewer], order_by=r.reviewed_at.desc())
    same = sa.and_(r.batch_date == shared.c.batch_date, r.record_id == shared.c.record_id)
    said = sa.select(*record, r.verdict, recency.label("recency")).select_from(sa.join(reviews, shared, same))
    latest = said.where(r.detector == detector).subquery()
    both = (
        sa.select(latest.c.batch_date, latest.c.record_id)
        .where(latest.c.recency == 1, latest.c.verdict.in_((ANOMALY, NORMAL)))
        .group_by(latest.c.batch_date, latest.c.record_id)
        .having(sa.func.count(sa.distinct(latest.c.verdict)) > 1)
        .subquery()
    )
    held = sa.and_(m.batch_date == both.c.batch_date, m.record_id == both.c.record_id)
    return sa.select(m.case_id).select_from(sa.join(case_flags, both, held)).where(m.detector == detector)


def _count(connection: sa.Connection, detector: str, person: str, now: datetime) -> dict[str, int]:
    """The number of cases in each view."""
    counts = [
        sa.func.count(sa.case((sa.and_(sa.true(), *which), 1))).label(name)
        for name, which in _kinds(person, now).items()
    ]
    found = connection.execute(sa.select(*counts).where(cases.c.detector == detector, *_open(now))).mappings().all()
    disputed = sa.select(sa.func.count()).select_from(cases).where(*_view(detector, CONFLICTING, person, now))
    return {**found[0], CONFLICTING: connection.scalars(disputed).one()}


def _read(
    connection: sa.Connection, detector: str, which: list[sa.ColumnElement[bool]], now: datetime
) -> list[dict[str, Any]]:
    """One page of cases, with their flags and newest night."""
    ordered = sa.select(cases).where(*which).order_by(BY_SEVERITY.desc(), cases.c.due_at, cases.c.case_id)
    rows = [summarise_case(dict(row), now) for row in connection.execute(ordered.limit(MOST_CASES)).mappings()]
    m = case_flags.c
    held = sa.select(m.case_id, sa.func.count(), sa.func.max(m.batch_date)).where(
        m.detector == detector, m.case_id.in_([row["case"] for row in rows])
    )
    found = {number: (flags, night) for number, flags, night in connection.execute(held.group_by(m.case_id))}
    for row in rows:
        row["flags"], row["night"] = found.get(row["case"], (0, None))
    return rows


def _unjudged(detector: str, person: str) -> tuple[sa.ColumnElement[bool], ...]:
    s, r = samples.c, reviews.c
    judged = sa.select(sa.literal(1)).where(
        r.detector == s.detector, r.batch_date == s.batch_date, r.record_id == s.record_id, r.reviewer == person
    )
    return s.detector == detector, ~judged.exists()


def count_samples(connection: sa.Connection, detector: str, person: str) -> int:
    """The sampled records that a person has not judged."""
    return connection.scalar(sa.select(sa.func.count()).select_from(samples).where(*_unjudged(detector, person))) or 0


def next_sample(site: Site, person: str) -> dict[str, Any] | None:
    """The next sampled record that a person has not judged; None: all are.

    Without its score: they must not know whether it is flagged.
    batch_date, record_id, attempt, inclusion, event_time, entity and record.
    """
    s = samples.c
    wanted = sa.select(samples).where(*_unjudged(site.detector, person)).order_by(s.drawn_at, s.batch_date, s.record_id)
    with site.warehouse.begin_reading() as connection:
        row = connection.execute(wanted.limit(1)).mappings().first()
    if row is None:
        return None
    record: Mapping[str, Any] = json.loads(row["record"]) if row["record"] else {}
    return {**row, "record": localise(record, site.zone)}


def read_inclusion(site: Site, sample: Mapping[str, Any]) -> float:
    """With what probability a sampled record is judged: an alert's is 1, since people see all alerts anyway."""
    f = flagged_anomalies.c
    own = (f.detector == site.detector, f.batch_date == sample["batch_date"], f.record_id == sample["record_id"])
    with site.warehouse.begin_reading() as connection:
        is_alert = connection.scalars(sa.select(~f.suppressed).where(*own)).all()
    return 1.0 if is_alert == [True] else float(sample["inclusion"])


def count_cases_of(site: Site, answers: pd.DataFrame) -> int:
    """The number of cases that hold a record of these verdicts."""
    with site.warehouse.begin_reading() as connection:
        held = read_numbers(connection, site.detector, sorted(set(answers["batch_date"])))
    return held.merge(answers, on=["batch_date", "record_id"])["case_id"].nunique()
