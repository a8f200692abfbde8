"""What is known of one entity: its flags by night, its cases, the entities that share its values, its suppressions.

Reads only. An entity is named as in the tables: if its column is pseudonymised, by its pseudonym.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tasks.errors import RecordMissing
from tasks.follow_up.cases import FLAG_KEY, read_cases
from tasks.follow_up.suppressions import Suppression
from tasks.on_demand.explorer import describe_worst, find_nights, name_first_cause, select_worst
from tasks.on_demand.flags import RECORD, describe_judged, name_entity
from tasks.rows.params import DetectorParams
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.tables import Case, case_flags, cases, flagged_anomalies, scoring_batches, suppressions
from tasks.stores.warehouse import select_verdicts

LEAST_DAYS = 30
PAGE = 50  # flags on a page, and cases at most
OWN_FLAGS = 200  # the newest of the entity, whose values are compared
RECENT_FLAGS = 3000  # with those of the newest of all entities
MOST_OTHERS = 10
MOST_SHARED = 3  # values of each of them, the rarest
FLAGS = flagged_anomalies.c


@dataclass(frozen=True)
class Entity:
    """What is known of an entity.

    flags, suppressed: of all nights. nights: those with flags, by date, see lay_out. records: one page of its flags as
    list_flags has them, newest first; of `night` only, if one is given. cases: newest first. causes: columns that were
    the first cause of a flag, with the numbers of flags, most first. suppressions: those that hold now, of the entity
    or of any. may_suppress: one of its cases has a verdict.
    """

    entity: str
    flags: int
    suppressed: int
    nights: list[dict[str, Any]]
    night: date | None
    records: list[dict[str, Any]]
    page: int
    has_next: bool
    cases: list[dict[str, Any]]
    causes: list[tuple[str, int]]
    suppressions: list[Suppression]
    may_suppress: bool


def show_entity(
    site: Site,
    params: DetectorParams,
    rule: RecordRule,
    given: str,
    now: datetime,
    page: int = 1,
    night: date | None = None,
) -> Entity:
    """What is known of an entity, given as itself or as its pseudonym. page: of its flags, from 1 on.

    Raises RecordMissing if nothing was ever published of it.
    """
    with site.warehouse.begin_reading() as connection:
        entity = _find_entity(connection, site, rule, given)
        of_entity = (FLAGS.detector == site.detector, FLAGS.entity == entity)
        worst = select_worst(FLAGS.batch_date).where(*of_entity).order_by(FLAGS.batch_date)
        nights = [{"batch_date": row.batch_date, **describe_worst(params, row)} for row in connection.execute(worst)]
        newest = find_nights(connection, site.detector, 1)
        records, has_next = _read_records(connection, site, params, of_entity, page, night)
        found = read_cases(connection, *_of_cases(site.detector, entity))
        listed = sorted(found, key=lambda case: (case.opened_at, case.case_id), reverse=True)[:PAGE]
        flags = _count_flags(connection, site.detector, [case.case_id for case in listed])
        causes = _count_causes(connection, params, of_entity)
        active = _read_active(connection, site.detector, entity, now)
    return Entity(
        entity=entity,
        flags=sum(night["flags"] for night in nights),
        suppressed=sum(night["suppressed"] for night in nights),
        nights=lay_out(nights, newest),
        night=night,
        records=records,
        page=page,
        has_next=has_next,
        cases=[_describe_case(site, case, flags.get(case.case_id, 0)) for case in listed],
        causes=causes,
        suppressions=active,
        may_suppress=any(case.verdict for case in found),
    )


def lay_out(nights: Sequence[dict[str, Any]], newest: Sequence[date] = ()) -> list[dict[str, Any]]:
    """Give each night, as describe_worst has it, its place in pictures of at least LEAST_DAYS days, 0 to 1.

    The pictures end with the newest published night. first, last: their days. x: the night's left edge. flags_y,
    alerts_y, score_y, threshold_y: heights of the numbers of flags and of alerts, of the worst score, and of the
    threshold beside it.
    """
    if not nights:
        return []
    last = max([nights[-1]["batch_date"], *newest])
    first = min(nights[0]["batch_date"], last - timedelta(days=LEAST_DAYS - 1))
    days = (last - first).days + 1
    most = max(night["flags"] for night in nights)
    top = max(1.0, *(night["times"] or 0.0 for night in nights))
    return [
        night
        | {
            "first": first,
            "last": last,
            "x": (night["batch_date"] - first).days / days,
            "width": 1 / days,
            "flags_y": night["flags"] / most,
            "alerts_y": (night["flags"] - night["suppressed"]) / most,
            "score_y": (night["times"] or 0.0) / top,
            "threshold_y": 1 / top,
        }
        for night in nights
    ]


def _find_entity(connection: sa.Connection, site: Site, rule: RecordRule, given: str) -> str:
    """The entity as the tables name it. Raises RecordMissing."""
    names = sorted(name_entity(rule, given) or {given}, key=lambda name: name != given)
    for table in (flagged_anomalies, cases):
        known = sa.select(table.c.entity).where(table.c.detector == site.detector, table.c.entity.in_(names)).distinct()
        there = set(connection.scalars(known).all())
        if found := [name for name in names if name in there]:
            return found[0]
    raise RecordMissing(
        f"No published night of {site.detector} flagged a record of this entity.",
        where=f"flagged_anomalies and cases in {site.warehouse.place}",
        got="an entity without flags and cases",
        expected="an entity as the list of flags or cases shows it",
        todo=f"nightjar cases {site.detector} --all lists all; an entity that was never flagged has no page",
    )


def _read_records(
    connection: sa.Connection,
    site: Site,
    params: DetectorParams,
    of_entity: Sequence[sa.ColumnElement[bool]],
    page: int,
    night: date | None,
) -> tuple[list[dict[str, Any]], bool]:
    """One page of flags, newest first, and whether there are more."""
    which = [*of_entity] if night is None else [*of_entity, FLAGS.batch_date == night]
    newest = sa.select(flagged_anomalies).where(*which).order_by(*_newest(flagged_anomalies))
    flag = newest.limit(PAGE + 1).offset((page - 1) * PAGE).cte("flag")
    said = select_verdicts(site.detector, records=sa.select(flag.c.record_id)).subquery()
    with_case = sa.outerjoin(flag, case_flags, sa.and_(*(flag.c[name] == case_flags.c[name] for name in FLAG_KEY)))
    of_record = sa.and_(*(flag.c[name] == said.c[name] for name in RECORD))
    values = (flag, case_flags.c.case_id, said.c.verdict, said.c.said, said.c.note)
    chosen = sa.select(*values).select_from(sa.outerjoin(with_case, said, of_record))
    found = connection.execute(chosen.order_by(*_newest(flag))).mappings().all()
    return describe_judged(site, params.score, found[:PAGE]), len(found) > PAGE


def _newest(table: sa.FromClause) -> tuple[sa.ColumnElement[Any], ...]:
    """The order of flags, newest first."""
    return table.c.batch_date.desc(), table.c.event_time.desc(), table.c.record_id


def _of_cases(detector: str, entity: str) -> tuple[sa.ColumnElement[bool], ...]:
    return cases.c.detector == detector, cases.c.entity == entity


def _count_flags(connection: sa.Connection, detector: str, numbers: Sequence[int]) -> dict[int, int]:
    of_cases = (case_flags.c.detector == detector, case_flags.c.case_id.in_(numbers))
    counted = sa.select(case_flags.c.case_id, sa.func.count()).where(*of_cases).group_by(case_flags.c.case_id)
    return dict(connection.execute(counted).tuples().all()) if numbers else {}


def _describe_case(site: Site, case: Case, flags: int) -> dict[str, Any]:
    at = {name: getattr(case, name) for name in ("opened_at", "closed_at")}
    return {
        "case": case.case_id,
        "state": case.state,
        "severity": case.severity,
        "verdict": case.verdict,
        "assignee": case.assignee,
        "merged_into": case.merged_into,
        "flags": flags,
        **{name: when and when.astimezone(site.zone).isoformat(timespec="seconds") for name, when in at.items()},
    }


def _count_causes(
    connection: sa.Connection, params: DetectorParams, of_entity: Sequence[sa.ColumnElement[bool]]
) -> list[tuple[str, int]]:
    cause = name_first_cause(params.train.columns.names).label("cause")
    counted = sa.select(cause, sa.func.count()).where(*of_entity).group_by(cause)
    found = [(name, flags) for name, flags in connection.execute(counted) if name]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _read_active(connection: sa.Connection, detector: str, entity: str, now: datetime) -> list[Suppression]:
    c = suppressions.c
    which = (c.detector == detector, sa.or_(c.entity == entity, c.entity.is_(None)))
    found = sa.select(suppressions).where(*which).order_by(c.suppression_id)
    every = [Suppression(**row) for row in connection.execute(found).mappings()]
    return [one for one in every if one.is_active(now)]


def read_others(site: Site, rule: RecordRule, entity: str) -> list[dict[str, Any]]:
    """The entities that share values with one, of the newest flags of both: see find_others."""
    named = (FLAGS.detector == site.detector, FLAGS.entity.is_not(None), FLAGS.record.is_not(None))
    shown = sa.select(FLAGS.entity, FLAGS.record).where(*named).order_by(*_newest(flagged_anomalies))
    with site.warehouse.begin_reading() as connection:
        own = connection.execute(shown.where(FLAGS.entity == entity).limit(OWN_FLAGS)).all()
        since = FLAGS.batch_date >= _find_recent(connection, site.detector)
        recent = connection.execute(shown.where(since).limit(RECENT_FLAGS)).all() if own else []
    columns = [name for name in rule.show if name != rule.entity]
    others = ((one.entity, json.loads(one.record)) for one in recent if one.entity != entity)
    return find_others([json.loads(one.record) for one in own], others, columns)


def _find_recent(connection: sa.Connection, detector: str) -> date:
    """The first of the newest nights that have RECENT_FLAGS together: sorting the flags of all would take longer."""
    c = scoring_batches.c
    nights = sa.select(c.batch_date, c.published).where(c.detector == detector).order_by(c.batch_date.desc())
    day, found = date.min, 0
    for night in connection.execute(nights).all():
        day, found = night.batch_date, found + night.published
        if found >= RECENT_FLAGS:
            break
    return day


def find_others(
    own: Sequence[Mapping[str, Any]], others: Iterable[tuple[str, Mapping[str, Any]]], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The entities that share a value with one, the rarest shared value first; at most MOST_OTHERS.

    own: the records of its flags. others: entity and record of those of others. Each is a dict: entity, and shared, its
    MOST_SHARED rarest values: column, value, and the number of entities that have it, the one included. A number with
    decimals is a measurement, and no value to share.
    """
    holders: dict[tuple[str, Any], set[str]] = {
        (column, record[column]): set()
        for record in own
        for column in columns
        if isinstance(record.get(column), str | int) and not isinstance(record[column], bool)
    }
    for name, record in others:
        for column in columns:
            value = record.get(column)
            if isinstance(value, str | int) and (names := holders.get((column, value))) is not None:
                names.add(name)
    shared: dict[str, list[tuple[int, str, Any]]] = {}
    for (column, value), names in holders.items():
        for name in names:
            shared.setdefault(name, []).append((1 + len(names), column, value))
    rarest = {name: sorted(values, key=lambda one: (one[0], one[1], str(one[2]))) for name, values in shared.items()}
    ranked = sorted(rarest, key=lambda name: ([one[0] for one in rarest[name]][:1], -len(rarest[name]), name))
    return [
        {
            "entity": name,
            "shared": [
                {"column": column, "value": value, "entities": many}
                for many, column, value in rarest[name][:MOST_SHARED]
            ],
        }
        for name in ranked[:MOST_OTHERS]
    ]
