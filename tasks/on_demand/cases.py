"""List the cases of a detector, worst first, and show one with its flags and its history, as people read them."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tasks.errors import CaseMissing
from tasks.follow_up.cases import CLOSED, OPEN, SNOOZED, read_cases, read_events, read_members
from tasks.on_demand.flags import describe_flags, name_entity
from tasks.on_demand.queue import count_waiting
from tasks.rows.params import SEVERITIES, ScoreParams
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.tables import Case, cases


@dataclass(frozen=True)
class OpenCases:
    """How many cases are open, how many of them are of the highest severity, and how many are past their due date."""

    open: int
    critical: int
    overdue: int


def count_open(site: Site, now: datetime) -> OpenCases:
    """The open cases of a detector, with the snoozed ones whose time has come."""
    with site.warehouse.begin_reading() as connection:
        return OpenCases(**count_waiting(connection, site.detector, now))


def list_cases(
    site: Site, rule: RecordRule, now: datetime, state: str | None = None, entity: str | None = None
) -> list[dict[str, Any]]:
    """The cases in a state (None: in any) and of an entity, open ones first, then by severity and worst flag.

    A snoozed case is open again once its time has come. An entity whose column is pseudonymised may be given as itself
    or as its pseudonym. Times are in the detector's time zone, ISO 8601.
    """
    which: list[sa.ColumnElement[bool]] = []
    if state is not None:
        which.append(cases.c.closed_at.is_not(None) if state == CLOSED else cases.c.closed_at.is_(None))
    if (names := name_entity(rule, entity)) is not None:
        which.append(cases.c.entity.in_(names))
    rows = _describe_cases(site, now, *which)
    return [row for row in rows if state in (None, row["state"])]


def _describe_cases(site: Site, now: datetime, *which: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
    with site.warehouse.begin_reading() as connection:
        found = read_cases(connection, cases.c.detector == site.detector, *which)
        members = read_members(connection, site.detector, *which)
    flags: dict[int, list[Any]] = {case.case_id: [] for case in found}
    for flag in members.to_dict("records"):
        flags[flag["case_id"]].append(flag)
    rows = [_describe_case(site, case, flags[case.case_id], now) for case in found]
    order = (OPEN, SNOOZED, CLOSED)
    return sorted(
        rows,
        key=lambda row: (
            order.index(row["state"]),
            -list[str](SEVERITIES).index(row["severity"]),
            -(row["worst_rank"] or 0),
            -(row["worst_score"] or 0),
            row["case"],
        ),
    )


def _describe_case(site: Site, case: Case, flags: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """flags: the case's rows of flagged_anomalies, worst first. worst_score: as a multiple of its threshold."""
    days = sorted({flag["batch_date"] for flag in flags})
    state = OPEN if case.snoozed_until and case.snoozed_until <= now else case.state
    return {
        "case": case.case_id,
        "severity": case.severity,
        "state": state,
        "entity": case.entity,
        "record_id": case.record_id,
        "flags": len(flags),
        "nights": len(days),
        "first_night": days[0] if days else None,
        "last_night": days[-1] if days else None,
        "worst_rank": max((flag["percentile_rank"] for flag in flags), default=None),
        "worst_score": max((flag["score"] / flag["threshold"] for flag in flags if flag["threshold"]), default=None),
        "likeliest_cause": _name_cause(flags),
        "assignee": case.assignee,
        "opened_at": _show_time(site, case.opened_at),
        "due_at": _show_time(site, case.due_at),
        "is_overdue": state == OPEN and case.due_at <= now,
        "snoozed_until": _show_time(site, case.snoozed_until) if state == SNOOZED else None,
        "closed_at": _show_time(site, case.closed_at),
        "verdict": case.verdict,
        "merged_into": case.merged_into,
    }


def _show_time(site: Site, instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(site.zone).isoformat(timespec="seconds")


def _name_cause(flags: list[dict[str, Any]]) -> str | None:
    """The column with the largest share in the scores of all flags together, and its share in per cent."""
    shares: Counter[str] = Counter()
    for flag in flags:
        causes = json.loads(flag["causes"])
        whole = sum(cause["share"] for cause in causes) or 1.0
        for cause in causes:
            shares[cause["column"]] += cause["share"] / whole
    named = [(column, share) for column, share in shares.most_common() if share and column != "other"]
    return f"{named[0][0]} {named[0][1] / len(flags):.0%}" if named else None


def show_case(site: Site, params: ScoreParams, number: int, now: datetime) -> dict[str, Any]:
    """One case as list_cases describes it, its flags as `nightjar flags` does, and its history. Raises CaseMissing."""
    found = _describe_cases(site, now, cases.c.case_id == number)
    if not found:
        raise CaseMissing(
            f"{site.detector} has no case {number}.",
            where=f"cases in {site.warehouse.place}",
            todo=f"nightjar cases {site.detector} --all lists all",
        )
    with site.warehouse.begin_reading() as connection:
        members = read_members(connection, site.detector, cases.c.case_id == number).drop(columns="case_id")
        events = read_events(connection, site.detector, number)
    shown = ("happened_at", "kind", "actor", "note", "details")
    history = [
        {name: event[name] for name in shown} | {"happened_at": _show_time(site, event["happened_at"])}
        for event in events
    ]
    return {**found[0], "records": describe_flags(site, params, members), "history": history}
