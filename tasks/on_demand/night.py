"""One published night as an analyst works through it: its counts beside the usual ones, and its cases, worst first."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import sqlalchemy as sa

from tasks.errors import BatchMissing
from tasks.follow_up.cases import CLOSED, OPEN, SNOOZED
from tasks.rows.describe import describe_causes, describe_values, localise, localise_causes
from tasks.rows.params import SEVERITIES
from tasks.stores.site import Site
from tasks.stores.tables import annotations, case_flags, cases, findings, flagged_anomalies, scoring_batches

MOST_FLAGS = 5000  # of a night that are read, the worst; the page says so
CASES_PER_PAGE = 50
TREND_NIGHTS = 60
USUAL_NIGHTS = 28  # before a night, from which its usual band comes
USUAL = (0.1, 0.9)  # quantiles of their flags
FLAG_COLUMNS = ("record_id", "event_time", "score", "percentile_rank", "p_value", "threshold", "causes", "entity",
                "record", "second_stage_probability", "model_version")  # fmt: skip


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


def read_trend(connection: sa.Connection, detector: str, last: date | None = None) -> list[dict[str, Any]]:
    """The nights up to a last one, oldest first: batch_date, flagged, scored, and usual: (low, high) flags, or None."""
    b = scoring_batches.c
    found = sa.select(b.batch_date, b.flagged, b.scored).where(b.detector == detector)
    if last:
        found = found.where(b.batch_date <= last)
    rows = connection.execute(found.order_by(b.batch_date.desc()).limit(TREND_NIGHTS + USUAL_NIGHTS)).mappings()
    nights = [dict(row) for row in rows][::-1]
    for place, night in enumerate(nights):
        before = [one["flagged"] for one in nights[max(0, place - USUAL_NIGHTS) : place]]
        night["usual"] = tuple(float(x) for x in np.quantile(before, USUAL)) if len(before) >= 3 else None
    return nights[-TREND_NIGHTS:]


def find_newest(connection: sa.Connection, detector: str) -> date | None:
    """The newest published night."""
    b = scoring_batches.c
    newest: date | None = connection.scalar(sa.select(sa.func.max(b.batch_date)).where(b.detector == detector))
    return newest


def show_night(site: Site, day: date, wanted: Wanted, now: datetime) -> dict[str, Any]:
    """A night's counts, usual band, finding, notes and cases, CASES_PER_PAGE of them. Raises BatchMissing."""
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
        flags = _read_flags(connection, detector, day)
        all_cases = _gather(flags, _read_cases(connection, detector, day), site, now)
        found = [case for case in all_cases if _is_wanted(case, wanted)]
        pages = max(1, -(-len(found) // CASES_PER_PAGE))
        page = min(max(1, wanted.page), pages)
        shown = found[(page - 1) * CASES_PER_PAGE : page * CASES_PER_PAGE]
        totals = read_totals(connection, detector, [case["case"] for case in shown])
        finding = _read_finding(connection, detector, day)
        notes = read_notes(connection, detector, day)
    for case in shown:
        case |= totals.get(case["case"], {"all_flags": 0, "nights": 0})
        _describe(case, site.zone)
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
        "is_cut": len(flags) == MOST_FLAGS,
    }


def list_cases_of_night(site: Site, day: date, wanted: Wanted, now: datetime) -> list[dict[str, Any]]:
    """All cases of a night that are wanted, in the order of the page, for a table: flat values, local times."""
    with site.warehouse.begin_reading() as connection:
        flags = _read_flags(connection, site.detector, day)
        found = _gather(flags, _read_cases(connection, site.detector, day), site, now)
    rows = []
    for case in found:
        if _is_wanted(case, wanted):
            worst = case["own"][0]
            times = ("opened_at", "due_at", "snoozed_until", "closed_at")
            rows.append(
                {name: case[name] for name in ("case", "severity", "state", "entity", "flags", "assignee", "verdict")}
                | {
                    name: case[name] and case[name].astimezone(site.zone).isoformat(timespec="seconds")
                    for name in times
                }
                | {"worst_record": worst["record_id"], "score": worst["score"], "threshold": worst["threshold"]}
                | {"causes": "; ".join(describe_causes(case["causes"], site.zone))}
                | localise(json.loads(worst["record"]) if worst["record"] else {}, site.zone)
            )
    return rows


def list_numbers(site: Site, day: date, wanted: Wanted, now: datetime) -> list[int]:
    """The numbers of all cases of a night that are wanted."""
    return [row["case"] for row in list_cases_of_night(site, day, wanted, now)]


def _count(all_cases: Sequence[Mapping[str, Any]], name: str, values: Sequence[str], wanted: Wanted) -> dict[str, int]:
    of_state = [case for case in all_cases if wanted.state in ("all", case["state"])]
    counts = Counter(case[name] for case in of_state)
    return {value: counts[value] for value in values}


def _read_flags(connection: sa.Connection, detector: str, day: date) -> list[dict[str, Any]]:
    """The alerts of a night with the number of their case, worst first."""
    f, m = flagged_anomalies.c, case_flags.c
    same = sa.and_(m.detector == f.detector, m.batch_date == f.batch_date, m.record_id == f.record_id)
    found = (
        sa.select(m.case_id, *(f[name] for name in FLAG_COLUMNS))
        .select_from(sa.join(flagged_anomalies, case_flags, same))
        .where(f.detector == detector, f.batch_date == day)
        .order_by(f.score.desc(), f.record_id)
        .limit(MOST_FLAGS)
    )
    return [dict(row) for row in connection.execute(found).mappings()]


def _read_cases(connection: sa.Connection, detector: str, day: date) -> dict[int, dict[str, Any]]:
    """The cases that hold a flag of a night, by number."""
    m = case_flags.c
    held = sa.select(m.case_id).where(m.detector == detector, m.batch_date == day)
    found = sa.select(cases).where(cases.c.detector == detector, cases.c.case_id.in_(held))
    return {row["case_id"]: dict(row) for row in connection.execute(found).mappings()}


def _gather(
    flags: Sequence[Mapping[str, Any]], known: Mapping[int, Mapping[str, Any]], site: Site, now: datetime
) -> list[dict[str, Any]]:
    """The cases, worst first: by severity, then by their worst flag of the night."""
    held: dict[int, list[Mapping[str, Any]]] = {}
    for flag in flags:
        held.setdefault(flag["case_id"], []).append(flag)
    rows = []
    for number, own in held.items():
        case, worst = known[number], own[0]
        causes = json.loads(worst["causes"])
        rows.append(
            summarise_case(case, now)
            | {
                "flags": len(own),
                "causes": causes,
                "cause": next((one["column"] for one in causes if one["share"] and one["column"] != "other"), None),
                "score": worst["score"] / worst["threshold"] if worst["threshold"] else None,
                "own": own,
            }
        )
    order = list[str](SEVERITIES)
    return sorted(rows, key=lambda row: (-order.index(row["severity"]), -(row["score"] or 0), row["case"]))


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


def _is_wanted(case: Mapping[str, Any], wanted: Wanted) -> bool:
    column, is_column, text = wanted.value.partition("=")
    return (
        wanted.state in ("all", case["state"])
        and wanted.severity in ("", case["severity"])
        and wanted.cause in ("", case["cause"])
        and (not wanted.assignee or wanted.assignee == (case["assignee"] or "nobody"))
        and (not wanted.search or _has(case, wanted.search))
        and (not wanted.value or (_has_value(case, column, text) if is_column else _has(case, wanted.value)))
    )


def _has(case: Mapping[str, Any], text: str) -> bool:
    wanted = text.casefold()
    texts = (case["entity"], *(flag[name] for flag in case["own"] for name in ("record_id", "record")))
    return any(wanted in one.casefold() for one in texts if one)


def _has_value(case: Mapping[str, Any], column: str, text: str) -> bool:
    records = (json.loads(flag["record"]) for flag in case["own"] if flag["record"])
    return any(str(record.get(column.strip())).casefold() == text.strip().casefold() for record in records)


def _describe(case: dict[str, Any], zone: ZoneInfo) -> None:
    worst = case.pop("own")[0]
    record = json.loads(worst["record"]) if worst["record"] else {}
    case["values"] = describe_values(record, zone)
    case["causes"] = localise_causes(case["causes"], zone)
    case["record_id"] = case["record_id"] or worst["record_id"]
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
