"""What an entity did up to an instant: its records of 24 hours and 30 days, flagged or not, from the validated rows.

The lake keeps an entity's own name, the tables perhaps only its pseudonym. One of its flagged records tells the two
apart: its validated row holds the name, so that no name has to be hashed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from tasks.errors import CaseMissing
from tasks.rows.limits import name_limit
from tasks.rows.record import RecordRule
from tasks.stores.lake import Part, quote
from tasks.stores.site import Site
from tasks.stores.tables import case_flags, cases, flagged_anomalies, scoring_batches

DAY, MONTH = timedelta(days=1), timedelta(days=30)
MOST_SHOWN = 200  # records, the newest
IN_DAY, IN_MONTH = "records of 24 hours", "records of 30 days"  # as no column of a record is named
Key = tuple[date, str]  # batch date and record_id


@dataclass(frozen=True)
class History:
    """An entity's records up to an instant.

    records: newest first, at most MOST_SHOWN, each with batch_date, record_id, event_time (ISO 8601, in the
    detector's time zone; None for a table without times), record (the values that params publish), score, times (the
    score as a multiple of its threshold; both None: not scored, or the scores are gone), is_flagged, suppressed_by; and
    its place, 0 to 1: x in a picture of the 30 days, day_x in one of the last 24 hours (None: earlier), and y, from
    below. in_day and in_month count all records. threshold_y: where the threshold lies. missing: dates without
    validated rows. why: why there are no records at all.
    """

    entity: str | None
    until: datetime | None
    records: list[dict[str, Any]]
    in_day: int = 0
    in_month: int = 0
    threshold_y: float = 0.5
    missing: tuple[date, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class _Known:
    """What the warehouse knows of the window: the entity's flags by key, and of each night threshold and scores."""

    flags: dict[Key, Any]
    nights: dict[date, tuple[float, str | None]]


def read_case_history(site: Site, rule: RecordRule, number: int) -> History:
    """The history of a case's entity, up to the case's newest flag. Raises CaseMissing."""
    flags = flagged_anomalies.c
    of_flag = sa.and_(*(case_flags.c[name] == flags[name] for name in ("detector", "batch_date", "record_id")))
    newest = sa.select(sa.func.max(flags.event_time)).select_from(sa.join(case_flags, flagged_anomalies, of_flag))
    of_case = (cases.c.detector == site.detector, cases.c.case_id == number)
    with site.warehouse.begin_reading() as connection:
        case = connection.execute(sa.select(cases.c.entity).where(*of_case)).one_or_none()
        members = (case_flags.c.detector == site.detector, case_flags.c.case_id == number)
        until = connection.scalar(newest.where(*members))
    if case is None:
        raise CaseMissing(
            f"{site.detector} has no case {number}.",
            where=f"cases in {site.warehouse.place}",
            todo=f"nightjar cases {site.detector} --all lists all",
        )
    if case.entity is None or until is None:
        why = "This case names no entity." if case.entity is None else "No record of this case is flagged any more."
        return History(case.entity, until, [], why=why)
    return read_history(site, rule, case.entity, until)


def read_history(site: Site, rule: RecordRule, entity: str, until: datetime) -> History:
    """The records of an entity, named as in the tables, in the 30 days up to an instant and at it."""
    days = list_days(site, until)
    parts = {day: found.parts for day in days if (found := site.lake.find("validated", site.detector, day))}
    missing = tuple(day for day in days if day not in parts)
    known = _read_known(site, entity, days)
    value, why = _find_value(site, rule, entity, parts, known)
    if value is None:
        return History(entity, until, [], missing=missing, why=why)
    every = tuple(part for found in parts.values() for part in found)
    rows = _read_rows(site, rule, every, value, until)
    records = _describe_rows(site, rule, rows, known)
    in_day, in_month = ((rows[name].to_pylist() or [0])[0] for name in (IN_DAY, IN_MONTH))
    return History(entity, until, records, in_day, in_month, lay_out(records, until), missing)


def list_days(site: Site, until: datetime) -> list[date]:
    """The batch dates of the 30 days up to an instant."""
    last = until.astimezone(site.zone).date()
    first = (until - MONTH).astimezone(site.zone).date()
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _find_value(
    site: Site, rule: RecordRule, entity: str, parts: Mapping[date, tuple[Part, ...]], known: _Known
) -> tuple[pa.ChunkedArray | None, str]:
    """The entity's own name, in one row, from the newest flagged record of it whose row is still there; or why not."""
    newest = {day: record_id for day, record_id in sorted(known.flags) if day in parts}  # one for each night
    why = "The validated rows of its flags are no longer in the lake (retention.validated_days)."
    for day, record_id in reversed(newest.items()):
        if rule.entity is None or not _have(site, parts[day], rule.entity):
            continue
        wanted = pa.table({"record_id": pa.array([record_id], pa.string())})
        sql = f"select parts.{quote(rule.entity)} from parts join wanted using (record_id) limit 1"  # noqa: S608 - quoted
        found = site.lake.query(sql, parts[day], wanted=wanted)
        if replace(rule, show=()).describe(found)["entity"].tolist() == [entity]:
            return found[rule.entity], ""
        if found.num_rows:
            why = "It was published under another pseudonym key, or params named another column as the entity."
    return None, why


def _have(site: Site, parts: tuple[Part, ...], column: str) -> bool:
    return any(column in site.lake.columns(part) for part in parts)


def _read_rows(
    site: Site, rule: RecordRule, parts: tuple[Part, ...], name: pa.ChunkedArray, until: datetime
) -> pa.Table:
    """The newest records of an entity, with the columns that the rule reads, and the numbers of all of them."""
    there = {column for part in parts for column in site.lake.columns(part)}
    names = [name for name in rule.columns if name not in ("record_id", "event_time")]
    shown = [f"parts.{quote(name)}" if name in there else f"null as {quote(name)}" for name in names]
    times = {"day": until - DAY, "month": until - MONTH, "until": until}
    wanted = pa.table(
        {"name": name, **{key: pa.array([time], pa.timestamp("us", "UTC")) for key, time in times.items()}}
    )
    entity = quote(str(rule.entity))
    sql = f"""
        select {", ".join(("parts.record_id", "parts.event_time", *shown))},
            count(*) over () as {quote(IN_MONTH)},
            count(*) filter (parts.event_time > wanted.day) over () as {quote(IN_DAY)}
        from parts join wanted on cast(parts.{entity} as varchar) = cast(wanted.name as varchar)
            and parts.event_time > wanted.month and parts.event_time <= wanted.until
        order by parts.event_time desc, parts.record_id limit {MOST_SHOWN}
    """  # noqa: S608 - quoted
    return site.lake.query(sql, parts, wanted=wanted)


def _read_known(site: Site, entity: str, days: Sequence[date]) -> _Known:
    flags, nights = flagged_anomalies.c, scoring_batches.c
    values = (flags.batch_date, flags.record_id, flags.score, flags.threshold, flags.suppressed_by)
    bounds = (days[0], days[-1])
    of_entity = (flags.detector == site.detector, flags.entity == entity, flags.batch_date.between(*bounds))
    of_nights = (nights.detector == site.detector, nights.batch_date.between(*bounds))
    with site.warehouse.begin_reading() as connection:
        flagged = connection.execute(sa.select(*values).where(*of_entity)).all()
        scored = connection.execute(sa.select(nights.batch_date, nights.threshold, nights.scores).where(*of_nights))
        published = {row.batch_date: (row.threshold, row.scores) for row in scored}
    return _Known({(row.batch_date, row.record_id): row for row in flagged}, published)


def _read_scores(site: Site, known: _Known, keys: Sequence[Key]) -> dict[Key, tuple[float, float]]:
    """Scores and thresholds of records, as far as their nights are published and their scores still in the lake."""
    asked: dict[date, list[str]] = {}
    for day, record_id in keys:
        if day in known.nights and (day, record_id) not in known.flags:
            asked.setdefault(day, []).append(record_id)
    found: dict[Key, tuple[float, float]] = {}
    for day, ids in asked.items():
        if scores := site.lake.find("scores", site.detector, day, known.nights[day][1]):
            wanted = pa.table({"record_id": pa.array(ids, pa.string())})
            limit = name_limit(site.lake, scores.parts, known.nights[day][0])
            sql = f"select record_id, score, {limit} as own from parts join wanted using (record_id)"  # noqa: S608
            rows = site.lake.query(sql, scores.parts, wanted=wanted)
            found |= {(day, row["record_id"]): (row["score"], row["own"]) for row in rows.to_pylist()}
    return found


def _describe_rows(site: Site, rule: RecordRule, rows: pa.Table, known: _Known) -> list[dict[str, Any]]:
    times = rows["event_time"].to_pylist()
    keys = [
        (when.astimezone(site.zone).date(), one) for when, one in zip(times, rows["record_id"].to_pylist(), strict=True)
    ]
    scores = _read_scores(site, known, keys)
    shown = rule.describe(rows)["record"]
    return [
        _describe_row(site, known, key, scores.get(key), when) | {"record": json.loads(values) if values else None}
        for key, when, values in zip(keys, times, shown, strict=True)
    ]


def _describe_row(
    site: Site, known: _Known, key: Key, scored: tuple[float, float] | None, when: datetime
) -> dict[str, Any]:
    flag = known.flags.get(key)
    score, threshold = (flag.score, flag.threshold) if flag else scored or (None, None)
    return {
        "batch_date": key[0],
        "record_id": key[1],
        "when": when,
        "event_time": when.astimezone(site.zone).isoformat(timespec="seconds") if site.has_times else None,
        "score": score,
        "times": score / threshold if score is not None and threshold else None,
        "is_flagged": flag is not None,
        "suppressed_by": flag.suppressed_by if flag else None,
    }


def lay_out(records: list[dict[str, Any]], until: datetime) -> float:
    """Give each record its place in the pictures, instead of `when`; returns the threshold's height.

    Heights are on a logarithmic scale.
    """
    highest = math.log1p(max((row["times"] or 0.0 for row in records), default=0.0))
    top = max(highest, math.log1p(2.0))
    for row in records:
        age = until - row.pop("when")
        row["x"] = 1 - age / MONTH
        row["day_x"] = 1 - age / DAY if age < DAY else None
        row["y"] = math.log1p(max(row["times"] or 0.0, 0.0)) / top
    return math.log1p(1.0) / top
