"""One published night as an analyst works through it: its counts beside the usual ones, and its cases, worst first."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tasks.errors import BatchMissing
from tasks.follow_up.cases import CLOSED, FLAGS_OF_CASES, OPEN, SNOOZED
from tasks.rows.describe import describe_causes, describe_values, localise, localise_causes
from tasks.rows.params import SEVERITIES
from tasks.stores.bulk import in_chunks
from tasks.stores.site import Site
from tasks.stores.tables import annotations, case_flags, cases, drift, findings, flagged_anomalies, scoring_batches

CASES_PER_PAGE = 50
TREND_NIGHTS = 60
FIRST_CAUSE = re.compile(r'\[\{"column": ("(?:[^"\\]|\\.)*")')  # of the JSON of causes


@dataclass(frozen=True)
class Wanted:
    """Which cases of a night to show. value: `column=text` of a flag's record, or a text that one of its values has.

    state: open, snoozed, closed or all. search: a text in an entity, a record's id or its values. page: from 1 on.
    """

    state: str = OPEN
    severity: str = ""
    cause: str = ""
    value: str = ""
    search: str = ""
    assignee: str = ""
    page: int = 1


def read_trend(connection: sa.Connection, detector: str, last: date) -> list[dict[str, Any]]:
    """The nights up to a last one, oldest first: batch_date, flagged, and the most flags that are usual.

    usual: monitor's bound of the flag rate, from the nights before and by weekday; None where it has none yet.
    """
    b, d = scoring_batches.c, drift.c
    same = sa.and_(d.detector == b.detector, d.batch_date == b.batch_date, d.statistic == "flag_rate")
    found = sa.select(b.batch_date, b.flagged, (d.bound * b.scored).label("usual"))
    found = found.select_from(sa.outerjoin(scoring_batches, drift, same)).where(
        b.detector == detector, b.batch_date <= last
    )
    newest = connection.execute(found.order_by(b.batch_date.desc()).limit(TREND_NIGHTS)).mappings().all()
    return [dict(row) for row in newest[::-1]]


def find_newest(connection: sa.Connection, detector: str) -> date | None:
    """The newest published night."""
    b = scoring_batches.c
    newest: date | None = connection.scalar(sa.select(sa.func.max(b.batch_date)).where(b.detector == detector))
    return newest


def show_night(site: Site, day: date, wanted: Wanted, now: datetime) -> dict[str, Any]:
    """A night's counts, how many flags are usual, finding, notes and CASES_PER_PAGE cases. Raises BatchMissing."""
    b, detector = scoring_batches.c, site.detector
    with site.warehouse.begin_reading() as connection:
        night = connection.execute(sa.select(scoring_batches).where(b.detector == detector, b.batch_date == day))
        batch = night.mappings().first()
        if batch is None:
            raise BatchMissing(
                f"{detector} has no published night for {day}.",
                todo=f"nightjar status {detector} shows what is published",
            )
        around = sa.select(
            sa.func.max(sa.case((b.batch_date < day, b.batch_date))).label("before"),
            sa.func.min(sa.case((b.batch_date > day, b.batch_date))).label("after"),
        ).where(b.detector == detector)
        neighbours = connection.execute(around).mappings().one()
        trend = read_trend(connection, detector, day)
        all_cases = _read_cases(connection, detector, day, now)
        found = _choose(connection, detector, day, all_cases, wanted)
        pages = max(1, -(-len(found) // CASES_PER_PAGE))
        page = min(max(1, wanted.page), pages)
        shown = found[(page - 1) * CASES_PER_PAGE : page * CASES_PER_PAGE]
        worst = _read_worst(connection, detector, day, shown)
        totals = read_totals(connection, detector, [case["case"] for case in shown])
        finding = _read_finding(connection, detector, day)
        notes = read_notes(connection, detector, day)
    for case in shown:
        case |= totals.get(case["case"], {"all_flags": 0, "nights": 0})
        _describe(case, worst[case["record_id"]], site.zone)
    states = Counter(case["state"] for case in all_cases)
    return {
        "batch": dict(batch),
        "before": neighbours["before"],
        "after": neighbours["after"],
        "trend": trend,
        "usual": trend[-1]["usual"] if trend else None,
        "finding": finding,
        "notes": notes,
        "cases": shown,
        "found": len(found),
        "page_number": page,
        "pages": pages,
        "done": states[CLOSED],
        "total": len(all_cases),
        "states": {state: states[state] for state in (OPEN, SNOOZED, CLOSED)},
        "severities": _count(all_cases, "severity", SEVERITIES[::-1], wanted),
        "causes": Counter(case["cause"] for case in all_cases if case["cause"]).most_common(20),
    }


def list_cases_of_night(site: Site, day: date, wanted: Wanted, now: datetime) -> list[dict[str, Any]]:
    """All cases of a night that are wanted, in the order of the page, for a table: flat values, local times."""
    with site.warehouse.begin_reading() as connection:
        found = _choose(connection, site.detector, day, _read_cases(connection, site.detector, day, now), wanted)
        worst = _read_worst(connection, site.detector, day, found)
    rows = []
    times = ("opened_at", "due_at", "snoozed_until", "closed_at")
    for case in found:
        flag = worst[case["record_id"]]
        rows.append(
            {name: case[name] for name in ("case", "severity", "state", "entity", "flags", "assignee", "verdict")}
            | {name: str(case[name].astimezone(site.zone)) if case[name] else None for name in times}
            | {"worst_record": case["record_id"], "score": case["score"], "threshold": flag["threshold"]}
            | {"causes": "; ".join(describe_causes(json.loads(flag["causes"]), site.zone))}
            | {f"record.{name}": value for name, value in localise(_read_record(flag["record"]), site.zone).items()}
        )
    return rows


def _read_record(record: str | None) -> dict[str, Any]:
    return dict(json.loads(record)) if record else {}


def list_numbers(site: Site, day: date, wanted: Wanted, now: datetime) -> list[int]:
    """The numbers of all cases of a night that are wanted."""
    with site.warehouse.begin_reading() as connection:
        found = _choose(connection, site.detector, day, _read_cases(connection, site.detector, day, now), wanted)
    return [case["case"] for case in found]


def _count(all_cases: Sequence[Mapping[str, Any]], name: str, values: Sequence[str], wanted: Wanted) -> dict[str, int]:
    of_state = [case for case in all_cases if wanted.state in ("all", case["state"])]
    counts = Counter(case[name] for case in of_state)
    return {value: counts[value] for value in values}


def _of_night(detector: str, day: date) -> tuple[sa.ColumnElement[bool], ...]:
    """The flags of a night."""
    f = flagged_anomalies.c
    return f.detector == detector, f.batch_date == day


def _read_cases(connection: sa.Connection, detector: str, day: date, now: datetime) -> list[dict[str, Any]]:
    """The cases with alerts in a night, worst first: by severity, then by their worst alert.

    flags: how many of the night. record_id, cause (a column) and multiple (of the threshold): those of the worst.
    """
    f, m = flagged_anomalies.c, case_flags.c
    place = sa.func.row_number().over(partition_by=m.case_id, order_by=[f.score.desc(), f.record_id])
    flags = sa.func.count().over(partition_by=m.case_id)
    columns = (m.case_id, f.record_id, f.score, f.threshold, f.causes, place.label("place"), flags.label("flags"))
    ranked = sa.select(*columns).select_from(FLAGS_OF_CASES).where(*_of_night(detector, day)).subquery()
    own = [column for column in cases.c if column.name not in ("detector", "record_id", "batch_date")]
    same = sa.and_(cases.c.case_id == ranked.c.case_id, cases.c.detector == detector)
    found = sa.select(*own, *(ranked.c[name] for name in ("record_id", "score", "threshold", "causes", "flags")))
    rows = connection.execute(found.select_from(sa.join(ranked, cases, same)).where(ranked.c.place == 1)).all()
    order = {severity: level for level, severity in enumerate(SEVERITIES)}
    all_cases = []
    for row in rows:
        case = row._asdict()
        multiple = case["score"] / case["threshold"] if case["threshold"] else None
        worst = {"flags": case["flags"], "score": case["score"], "multiple": multiple}
        all_cases.append(summarise_case(case, now) | worst | {"cause": _read_first_cause(case["causes"])})
    return sorted(all_cases, key=lambda case: (-order[case["severity"]], -(case["multiple"] or 0), case["case"]))


def _read_first_cause(causes: str) -> str | None:
    """The column with the largest share: the first. Reading the whole text of each case would take most of the time."""
    first = FIRST_CAUSE.match(causes)
    column = json.loads(first[1]) if first else None
    return None if column == "other" else column


def _choose(
    connection: sa.Connection, detector: str, day: date, all_cases: Sequence[dict[str, Any]], wanted: Wanted
) -> list[dict[str, Any]]:
    found = [case for case in all_cases if _is_wanted(case, wanted)]
    for text, is_value in ((wanted.search, False), (wanted.value, True)):
        if text:
            numbers = _search(connection, detector, day, text, is_value=is_value)
            found = [case for case in found if case["case"] in numbers]
    return found


def _is_wanted(case: Mapping[str, Any], wanted: Wanted) -> bool:
    return (
        wanted.state in ("all", case["state"])
        and wanted.severity in ("", case["severity"])
        and wanted.cause in ("", case["cause"])
        and (not wanted.assignee or wanted.assignee == (case["assignee"] or "nobody"))
    )


def _search(connection: sa.Connection, detector: str, day: date, text: str, *, is_value: bool) -> set[int]:
    """The cases with an alert of the night that has a text, in any case, in its id, its entity or one of its values.

    is_value: a text `column=value` is the whole value of one column.
    """
    f = flagged_anomalies.c
    column, mark, value = text.partition("=") if is_value else ("", "", text)
    wanted = (value if mark else text).strip().casefold()
    # A record is JSON, in which other letters than ASCII are numbers: the database finds too many, and never too few.
    spelt = {wanted, *(json.dumps(one)[1:-1].lower() for one in (wanted, wanted.upper()))}
    places = [f.record] if mark else [f.record, f.entity, f.record_id]
    has = [sa.func.lower(place).contains(one, autoescape=True) for place in places for one in sorted(spelt)]
    columns = (case_flags.c.case_id, f.record, f.entity, f.record_id)
    found = connection.execute(
        sa.select(*columns).select_from(FLAGS_OF_CASES).where(*_of_night(detector, day), sa.or_(*has))
    ).all()
    return {row.case_id for row in found if _has_text(row, column.strip() if mark else None, wanted)}


def _has_text(row: Any, column: str | None, wanted: str) -> bool:
    record = _read_record(row.record)
    if column is not None:
        return str(record.get(column)).casefold() == wanted
    return any(wanted in str(one).casefold() for one in (row.entity or "", row.record_id, *record.values()))


def _read_worst(
    connection: sa.Connection, detector: str, day: date, some: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The worst flags of some cases, by record."""
    f = flagged_anomalies.c
    columns = (f.record_id, f.threshold, f.causes, f.record, f.second_stage_probability)
    found: dict[str, dict[str, Any]] = {}
    for chunk in in_chunks([case["record_id"] for case in some]):
        wanted = (*_of_night(detector, day), f.record_id.in_(chunk))
        found |= {row.record_id: row._asdict() for row in connection.execute(sa.select(*columns).where(*wanted)).all()}
    return found


def summarise_case(case: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """A row of `cases` as pages show it: a snoozed case is open again once its time has come."""
    is_awake = case["state"] == SNOOZED and case["snoozed_until"] <= now
    state = OPEN if is_awake else case["state"]
    is_locked = case["locked_until"] is not None and case["locked_until"] > now
    return {
        "case": case["case_id"],
        "severity": case["severity"],
        "state": state,
        "entity": case["entity"],
        "record_id": case["record_id"],
        "assignee": case["assignee"],
        "opened_at": case["opened_at"],
        "due_at": case["due_at"],
        "is_overdue": state == OPEN and case["due_at"] <= now,
        "snoozed_until": case["snoozed_until"] if state == SNOOZED else None,
        "closed_at": case["closed_at"],
        "verdict": case["verdict"],
        "merged_into": case["merged_into"],
        "locked_by": case["locked_by"] if is_locked else None,
    }


def _describe(case: dict[str, Any], worst: Mapping[str, Any], zone: ZoneInfo) -> None:
    record = _read_record(worst["record"])
    case["values"] = describe_values(record, zone)
    case["causes"] = localise_causes(json.loads(worst["causes"]), zone)
    case["probability"] = worst["second_stage_probability"]


def read_totals(connection: sa.Connection, detector: str, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The flags of cases over all nights, and the number of nights."""
    m = case_flags.c
    counted = sa.select(m.case_id, sa.func.count(), sa.func.count(sa.distinct(m.batch_date)))
    found = connection.execute(counted.where(m.detector == detector, m.case_id.in_(numbers)).group_by(m.case_id))
    return {case: {"all_flags": flags, "nights": nights} for case, flags, nights in found}


def _read_finding(connection: sa.Connection, detector: str, day: date) -> dict[str, Any] | None:
    f = findings.c
    row = connection.execute(sa.select(findings).where(f.detector == detector, f.batch_date == day)).mappings().first()
    return {**row, "evidence": json.loads(row["evidence"])} if row else None


def read_notes(connection: sa.Connection, detector: str, day: date) -> list[dict[str, Any]]:
    """What people noted on a night: author, written_at and note, in order."""
    a = annotations.c
    found = sa.select(a.author, a.written_at, a.note).where(a.detector == detector, a.batch_date == day)
    return [dict(row) for row in connection.execute(found.order_by(a.written_at)).mappings()]
