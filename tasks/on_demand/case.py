"""One case as an analyst reads it: what happened in a sentence, its flags with causes and verdicts, and its history."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tasks.errors import CaseMissing
from tasks.follow_up.cases import CLOSED, FLAGS_OF_CASES, OPEN, read_events
from tasks.on_demand.night import summarise_case
from tasks.rows.describe import localise, localise_causes, round_shares, show_value
from tasks.rows.params import ScoreParams
from tasks.rows.reference import Reference, load_reference, name_references
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import case_flags, cases, flagged_anomalies, reviews, scoring_batches
from tasks.stores.warehouse import WITHDRAWN

FLAGS_PER_PAGE = 25
SAID_CAUSES = 3  # in the sentence
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*")
Usual = Mapping[str, tuple[float, float]]
Said = dict[tuple[date, str], list[dict[str, Any]]]  # verdicts by batch date and record, newest first


def read_usual(site: Site, version: Version) -> dict[str, tuple[float, float]]:
    """Between which two values most training rows of a version lie (the middle 80 %), by column of numbers.

    Empty until `monitor` has seen a night of the version.
    """
    kept = site.lake.find_file(name_references(site.detector, version.tags.get("bundle_hash", "")))
    return find_usual(load_reference(json.loads(kept)["columns"])) if kept else {}


def find_usual(reference: Reference) -> dict[str, tuple[float, float]]:
    """The middle 80 % of each column of numbers, as exactly as its bins allow: from an edge to an edge."""
    found = {}
    for name, bins in reference.items():
        if bins.kind not in ("numeric", "log_numeric") or not bins.rows or len(bins.edges) < 2:
            continue
        below = [sum(bins.counts[: place + 1]) / bins.rows for place in range(len(bins.edges))]
        low = max((edge for edge, share in zip(bins.edges, below, strict=True) if share <= 0.1), default=bins.edges[0])
        high = min(
            (edge for edge, share in zip(bins.edges, below, strict=True) if share >= 0.9), default=bins.edges[-1]
        )
        found[name] = (low, high)
    return found


def show_case_page(
    site: Site, params: ScoreParams, number: int, now: datetime, usual: Callable[[int], Usual], page: int = 1
) -> dict[str, Any]:
    """A case with one page of its flags, worst first. usual: read_usual of a version. Raises CaseMissing."""
    detector = site.detector
    with site.warehouse.begin_reading() as connection:
        of_case = (cases.c.detector == detector, cases.c.case_id == number)
        row = connection.execute(sa.select(cases).where(*of_case)).mappings().first()
        if row is None:
            raise CaseMissing(
                f"{detector} has no case {number}.", todo=f"nightjar cases {detector} --all lists all of them"
            )
        nights = _count_nights(connection, detector, number)
        total = sum(flags for _, flags in nights)
        pages = max(1, -(-total // FLAGS_PER_PAGE))
        page = min(max(1, page), pages)
        flags = _read_flags(connection, dict(row), page)
        said = _read_verdicts(connection, detector, number)
        events = read_events(connection, detector, number)
        others = _count_others(connection, detector, number, row["entity"])
        batches = _read_batches(connection, detector, sorted({flag["batch_date"] for flag in flags}))
    case = summarise_case(dict(row), now)
    shown = [_describe(flag, said, site.zone, params) | batches.get(flag["batch_date"], {}) for flag in flags]
    worst = shown[0] if shown else None
    values = usual(worst["model_version"]) if worst else {}
    return {
        "case": case,
        "flags": shown,
        "total": total,
        "page_number": page,
        "pages": pages,
        "nights": [{"batch_date": day, "flags": flags} for day, flags in nights],
        "sentence": tell(worst, total, len(nights), values) if worst else "",
        "usual": values,
        "events": events,
        "others": others,
        "conflicting": find_conflicts(said),
    }


def tell(worst: Mapping[str, Any], flags: int, nights: int, usual: Usual) -> str:
    """What happened, in one sentence, by the largest causes of the worst flag."""
    parts = [text for cause in worst["causes"][:SAID_CAUSES] if (text := _tell_cause(cause, usual))]
    text = _join(parts) if parts else "No single value explains the score"
    others = flags - 1
    if others:
        more = f"{others:,} more flag{'' if others == 1 else 's'}"
        text += f"; {more} in {nights} night{'' if nights == 1 else 's'}"
    return f"{text}."


def _tell_cause(cause: Mapping[str, Any], usual: Usual) -> str:
    column, actual = cause["column"], cause.get("actual")
    if column == "other" or "actual" not in cause:
        return f"an unusual {column} ({cause['part']})" if "part" in cause else ""
    if "part" in cause:
        return f"{column} {cause['part']}: {show_value(actual)}, expected {show_value(cause['expected'])}"
    low, high = usual.get(column, (-math.inf, math.inf))
    if isinstance(actual, int | float) and not low <= actual <= high:
        usually = show_value(low) + (f" to {show_value(high)}" if high != low else "")
        return f"{column} is {show_value(actual)}, usually {usually}"
    return f"{column} is {_shorten(actual)}, expected {show_value(cause['expected'])}"


def _shorten(actual: object) -> str:
    """A value; of a local time not the seconds."""
    text = show_value(actual)
    return text[:16] if LOCAL_TIME.fullmatch(text) else text


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else "; ".join(parts[:-1]) + f"; and {parts[-1]}"


def share_causes(causes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The causes that have a share, each with `percent`: whole numbers that add up to 100."""
    found = [cause for cause in causes if cause["share"] > 0]
    percents = round_shares([cause["share"] for cause in found])
    return [{**cause, "percent": percent} for cause, percent in zip(found, percents, strict=True)]


def _count_nights(connection: sa.Connection, detector: str, number: int) -> list[tuple[date, int]]:
    m = case_flags.c
    counted = sa.select(m.batch_date, sa.func.count()).where(m.detector == detector, m.case_id == number)
    return [(day, flags) for day, flags in connection.execute(counted.group_by(m.batch_date).order_by(m.batch_date))]


def _read_flags(connection: sa.Connection, case: Mapping[str, Any], page: int) -> list[dict[str, Any]]:
    f, m, c = flagged_anomalies.c, case_flags.c, cases.c
    found = sa.select(flagged_anomalies).select_from(FLAGS_OF_CASES)
    found = found.where(m.detector == case["detector"], m.case_id == case["case_id"])
    if case["entity"] is not None:  # says nothing new, and spares the reading of all other flags
        merged = sa.select(c.entity).where(c.detector == case["detector"], c.merged_into == case["case_id"])
        entities = [case["entity"], *connection.scalars(merged).all()]
        if None not in entities:
            found = found.where(f.entity.in_(entities))
    worst = found.order_by((f.score / sa.func.nullif(f.threshold, 0.0)).desc(), f.batch_date, f.record_id)
    rows = connection.execute(worst.offset((page - 1) * FLAGS_PER_PAGE).limit(FLAGS_PER_PAGE)).mappings().all()
    return [dict(row) for row in rows]


def _read_verdicts(
    connection: sa.Connection, detector: str, number: int
) -> dict[tuple[date, str], list[dict[str, Any]]]:
    """All verdicts on the records of a case, by record, newest first."""
    r, m = reviews.c, case_flags.c
    same = sa.and_(m.detector == r.detector, m.batch_date == r.batch_date, m.record_id == r.record_id)
    found = sa.select(r.batch_date, r.record_id, r.reviewer, r.reviewed_at, r.verdict, r.said, r.note)
    rows = connection.execute(
        found.select_from(sa.join(reviews, case_flags, same))
        .where(m.detector == detector, m.case_id == number)
        .order_by(r.reviewed_at.desc(), r.reviewer)
    )
    said: Said = {}
    for row in rows.mappings():
        said.setdefault((row["batch_date"], row["record_id"]), []).append(dict(row))
    return said


def find_conflicts(said: Mapping[Any, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Who contradicts whom: of each person, the latest verdict on a record counts. One text for each pair of words."""
    found: Counter[str] = Counter()
    for verdicts in said.values():
        latest: dict[str, Mapping[str, Any]] = {}
        for one in verdicts:
            latest.setdefault(one["reviewer"], one)
        given = [one for one in latest.values() if one["verdict"] in ("anomaly", "normal")]
        if len({one["verdict"] for one in given}) > 1:
            found["; ".join(sorted(f"{one['reviewer']}: {one['said'] or one['verdict']}" for one in given))] += 1
    return [f"{text} ({records} record{'' if records == 1 else 's'})" for text, records in found.most_common()]


def _count_others(connection: sa.Connection, detector: str, number: int, entity: str | None) -> dict[str, int]:
    """The other cases of the entity: open and closed."""
    c = cases.c
    if entity is None:
        return {OPEN: 0, CLOSED: 0}
    is_closed = c.closed_at.is_not(None)
    counted = sa.select(is_closed, sa.func.count()).where(
        c.detector == detector, c.entity == entity, c.case_id != number, c.merged_into.is_(None)
    )
    found = {bool(closed): count for closed, count in connection.execute(counted.group_by(is_closed))}
    return {OPEN: found.get(False, 0), CLOSED: found.get(True, 0)}


def _read_batches(connection: sa.Connection, detector: str, days: Sequence[date]) -> dict[date, dict[str, Any]]:
    b = scoring_batches.c
    found = sa.select(b.batch_date, b.input_hash, b.scored_at).where(b.detector == detector, b.batch_date.in_(days))
    return {row["batch_date"]: {"input_hash": row["input_hash"]} for row in connection.execute(found).mappings()}


def _describe(
    flag: Mapping[str, Any], said: Mapping[Any, Sequence[Mapping[str, Any]]], zone: ZoneInfo, params: ScoreParams
) -> dict[str, Any]:
    causes = share_causes(localise_causes(json.loads(flag["causes"]), zone))
    verdicts = said.get((flag["batch_date"], flag["record_id"]), [])
    latest = verdicts[0] if verdicts and verdicts[0]["verdict"] != WITHDRAWN else None
    record = json.loads(flag["record"]) if flag["record"] else {}
    names = ("batch_date", "record_id", "event_time", "score", "threshold", "percentile_rank", "p_value", "entity",
             "attempt", "model_name", "model_version", "second_stage_probability", "suppressed_by")  # fmt: skip
    return {name: flag[name] for name in names} | {
        "causes": causes,
        "record": localise(record, zone),
        "multiple": flag["score"] / flag["threshold"] if flag["threshold"] else None,
        "band": params.name_band(flag["percentile_rank"]),
        "verdict": latest and (latest["said"] or latest["verdict"]),
        "reviewer": latest and latest["reviewer"],
    }
