"""Flags by night as a picture: who, or which cause, stands out in which nights. Reads only.

One lane for each entity, or for each first cause, and one cell for each of its nights with flags. Lanes are in order of
their worst flag. A suppressed flag counts only where a cell, or a lane, has no other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from tasks.rows.params import DetectorParams
from tasks.stores.site import Site
from tasks.stores.tables import flagged_anomalies, scoring_batches

NIGHTS = (7, 30, 60)  # that a page may show
MOST_LANES = 50  # on a page
FLAGS = flagged_anomalies.c
IS_ALERT = sa.and_(~FLAGS.suppressed, FLAGS.suppressed_by.is_(None))
TIMES_THRESHOLD = FLAGS.score / sa.func.nullif(FLAGS.threshold, 0)


@dataclass(frozen=True)
class Lane:
    """One row of the picture. name: the entity or the cause; None: any other cause. cells: by night, None: no flag."""

    name: str | None
    worst: dict[str, Any]
    cells: list[dict[str, Any] | None]


@dataclass(frozen=True)
class Lanes:
    """Lanes over the same nights, which are published ones, oldest first. has_next: there are more on the next page."""

    nights: list[date]
    lanes: list[Lane]
    page: int = 1
    has_next: bool = False


def find_nights(connection: sa.Connection, detector: str, most: int, last: date | None = None) -> list[date]:
    """The newest published nights up to a last one, oldest first."""
    found = sa.select(scoring_batches.c.batch_date).where(scoring_batches.c.detector == detector)
    if last is not None:
        found = found.where(scoring_batches.c.batch_date <= last)
    newest = found.order_by(scoring_batches.c.batch_date.desc()).limit(most)
    return sorted(connection.scalars(newest).all())


def draw_entities(
    site: Site, params: DetectorParams, nights: int = 30, page: int = 1, last: date | None = None
) -> Lanes:
    """A lane for each entity with flags in the newest nights, those with the worst alerts first. page: from 1 on."""
    with site.warehouse.begin_reading() as connection:
        days = find_nights(connection, site.detector, nights, last)
        of_nights = (*_of(site.detector, days), FLAGS.entity.is_not(None))
        ranked = _order(select_worst(FLAGS.entity).where(*of_nights))
        start = (page - 1) * MOST_LANES
        found = connection.execute(ranked.limit(MOST_LANES + 1).offset(start)).all() if days else []
        names = [row.entity for row in found[:MOST_LANES]]
        cells = select_worst(FLAGS.entity, FLAGS.batch_date).where(*of_nights, FLAGS.entity.in_(names))
        rows = connection.execute(cells).all() if names else []
    return Lanes(days, _lay_out(params, days, found[:MOST_LANES], rows), page, len(found) > MOST_LANES)


def draw_causes(site: Site, params: DetectorParams, nights: int = 30, last: date | None = None) -> Lanes:
    """A lane for each column that is the first cause of a flag in the newest nights, those with the worst first."""
    cause = name_first_cause(params.train.columns.names).label("entity")
    with site.warehouse.begin_reading() as connection:
        days = find_nights(connection, site.detector, nights, last)
        each = select_worst(cause, FLAGS.batch_date).where(*_of(site.detector, days))
        rows = connection.execute(each).all() if days else []
    by_cause: dict[str | None, list[Any]] = {}
    for row in rows:
        by_cause.setdefault(row.entity, []).append(row)
    found = [_combine(name, cells) for name, cells in by_cause.items()]
    ranked = sorted(found, key=lambda row: ([-(getattr(row, name) or 0) for name in WORST], row.entity or ""))
    return Lanes(days, _lay_out(params, days, ranked, rows))


def name_first_cause(columns: Sequence[str]) -> sa.ColumnElement[str]:
    """The first cause of a flag, null if it is no longer one of the columns. By its JSON's first characters.

    Parsing the JSON of 100,000 flags would take longer than all else on a page, and is another function in each engine.
    """
    heads = [(f'[{{"column": {json.dumps(name)},', name) for name in columns]
    found = [(sa.func.substr(FLAGS.causes, 1, len(head)) == head, sa.literal(name)) for head, name in heads]
    return sa.case(*found, else_=sa.null())


WORST = ("alert_rank", "alert_score", "any_rank", "any_score")


def select_worst(*keys: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """For each key: flags, alerts, and the highest rank and score, as a multiple of its threshold, of both."""
    of_alert = [sa.func.max(sa.case((IS_ALERT, value))) for value in (FLAGS.percentile_rank, TIMES_THRESHOLD)]
    of_any = [sa.func.max(FLAGS.percentile_rank), sa.func.max(TIMES_THRESHOLD)]
    worst = [value.label(name) for name, value in zip(WORST, (*of_alert, *of_any), strict=True)]
    counts = (sa.func.count().label("flags"), sa.func.sum(sa.case((IS_ALERT, 1), else_=0)).label("alerts"))
    return sa.select(*keys, *counts, *worst).group_by(*keys)


def _combine(name: str | None, cells: Sequence[Any]) -> Any:
    """Rows of select_worst of several nights as one."""
    counts = {key: sum(getattr(cell, key) for cell in cells) for key in ("flags", "alerts")}
    worst = {key: max(getattr(cell, key) or 0.0 for cell in cells) for key in WORST}
    return SimpleNamespace(entity=name, **counts, **worst)


def describe_worst(params: DetectorParams, row: Any) -> dict[str, Any]:
    """A row of select_worst: flags, suppressed, severity, rank, times (the threshold), and all that as a text."""
    flags, alerts = int(row.flags), int(row.alerts)
    rank, times = (row.alert_rank, row.alert_score) if alerts else (row.any_rank, row.any_score)
    severity = params.cases.find_severity(rank, alerts)
    suppressed = "" if alerts == flags else f", {flags - alerts:,} suppressed" if alerts else ", suppressed"
    worst = "" if times is None else f", worst {times:.3g} times the threshold"
    return {
        "flags": flags,
        "suppressed": flags - alerts,
        "is_suppressed": not alerts,
        "severity": severity,
        "rank": rank,
        "times": times,
        "text": f"{flags:,} flag{'' if flags == 1 else 's'}{suppressed}{worst}, {severity}",
    }


def _of(detector: str, days: Sequence[date]) -> tuple[sa.ColumnElement[bool], ...]:
    bounds = (days[0], days[-1]) if days else (date.min, date.min)
    return FLAGS.detector == detector, FLAGS.batch_date.between(*bounds)


def _order(ranked: sa.Select[Any]) -> sa.Select[Any]:
    """The lane with the worst alert first; those without an alert last. Engines sort nulls differently."""
    c = ranked.subquery().c
    name = next(iter(c))
    keys = [sa.func.coalesce(c[value], 0).desc() for value in WORST]
    return sa.select(*c).order_by(*keys, name)


def _lay_out(params: DetectorParams, days: list[date], found: Sequence[Any], rows: Sequence[Any]) -> list[Lane]:
    place = {day: number for number, day in enumerate(days)}
    cells: dict[str | None, list[dict[str, Any] | None]] = {row.entity: [None] * len(days) for row in found}
    for row in rows:
        if row.batch_date in place:
            cells[row.entity][place[row.batch_date]] = describe_worst(params, row)
    return [Lane(row.entity, describe_worst(params, row), cells[row.entity]) for row in found]
