"""Suppressions: flags of an entity, or with a first cause, that do not count as alerts for a while; by whom and why.

The flags are published all the same, with suppressed_by: the number of the suppression, or SECOND_STAGE.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import sqlalchemy as sa

from tasks.errors import CaseRefused, ParamsInvalid
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.tables import SECOND_STAGE, cases, flagged_anomalies, suppressions
from tasks.stores.warehouse import Warehouse, lock_key

LAST_DAY = date.max - timedelta(days=1)  # the last that ends
LONGEST = timedelta(days=366)  # for a cause of an entity: then a person looks again


@dataclass(frozen=True)
class Suppression:
    """One row of `suppressions`. entity or cause None: any; with both, a flag must have both."""

    detector: str
    suppression_id: int
    entity: str | None
    cause: str | None
    reason: str
    author: str
    added_at: datetime
    expires_at: datetime
    ended_at: datetime | None

    def is_active(self, now: datetime) -> bool:
        """Whether it holds at an instant."""
        return self.added_at <= now < min(self.expires_at, self.ended_at or self.expires_at)

    def covers(self, entity: object, cause: str) -> bool:
        """Whether it holds for a flag of this entity with this first cause."""
        return self.entity in (None, entity) and self.cause in (None, cause)


def mark_flags(flags: pd.DataFrame, active: Sequence[Suppression]) -> pd.DataFrame:
    """The flags with `suppressed` and `suppressed_by`, of several suppressions the oldest.

    flags: entity (optional), causes, and suppressed, which is true of those of the second stage.
    """
    ordered = sorted(active, key=lambda one: one.suppression_id)
    entities = flags["entity"] if "entity" in flags else [None] * len(flags)
    rows = zip(entities, flags["causes"].map(_find_first_cause), flags["suppressed"], strict=True)
    by = [SECOND_STAGE if is_second else _find_first(ordered, entity, cause) for entity, cause, is_second in rows]
    return flags.assign(
        suppressed=pd.Series([one is not None for one in by], flags.index, bool),
        suppressed_by=pd.Series(by, flags.index, object),
    )


def _find_first(ordered: Sequence[Suppression], entity: object, cause: str) -> str | None:
    return next((str(one.suppression_id) for one in ordered if one.covers(entity, cause)), None)


def _find_first_cause(causes: str) -> str:
    """The column with the largest share of the score; "" without any."""
    named = [cause for cause in json.loads(causes) if cause["column"] != "other"]
    return str(max(named, key=lambda cause: cause["share"])["column"]) if named else ""


def suppress_flags(warehouse: Warehouse, detector: str, flags: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """The flags of a night that is published now, marked by the suppressions that are active."""
    found = read_suppressions(warehouse, detector)
    return mark_flags(flags, [one for one in found if one.is_active(now)])


def read_suppressions(warehouse: Warehouse, detector: str) -> list[Suppression]:
    """All suppressions of a detector, ended ones included, by number."""
    found = sa.select(suppressions).where(suppressions.c.detector == detector)
    with warehouse.begin_reading() as connection:
        rows = connection.execute(found.order_by(suppressions.c.suppression_id)).mappings()
        return [Suppression(**row) for row in rows]


def count_suppressed(warehouse: Warehouse, detector: str) -> dict[int, int]:
    """The published flags that each suppression holds back, by its number."""
    flags = flagged_anomalies.c
    own = (flags.detector == detector, flags.suppressed_by.is_not(None), flags.suppressed_by != SECOND_STAGE)
    counted = sa.select(flags.suppressed_by, sa.func.count()).where(*own).group_by(flags.suppressed_by)
    with warehouse.begin_reading() as connection:
        return {int(row[0]): row[1] for row in connection.execute(counted)}


def add_suppression(
    warehouse: Warehouse,
    detector: str,
    entity: str | None,
    cause: str | None,
    reason: str,
    author: str,
    now: datetime,
    expires_at: datetime,
) -> Suppression:
    """Add a suppression, which holds for nights published from now on, and return it with its number."""
    if entity is None and cause is None:
        raise ValueError("a suppression of everything")
    with warehouse.begin() as connection:
        return _insert(connection, Suppression(detector, 0, entity, cause, reason, author, now, expires_at, None))


def suppress_cause(
    warehouse: Warehouse,
    detector: str,
    entity: str,
    cause: str,
    reason: str,
    author: str,
    now: datetime,
    expires_at: datetime,
) -> Suppression:
    """Suppress a cause for an entity of which a case was judged, as add_suppression does. Raises CaseRefused."""
    judged = (cases.c.detector == detector, cases.c.entity == entity, cases.c.verdict.is_not(None))
    with warehouse.begin() as connection:
        if not connection.scalar(sa.select(sa.func.count()).select_from(cases).where(*judged)):
            raise CaseRefused(
                "No case of this entity has a verdict, so its causes cannot be suppressed; nothing was changed.",
                where=f"cases of {detector}",
                expected="a verdict that says why its flags need no look",
                todo="give a verdict on one of its cases first",
            )
        if not reason.strip() or not now < expires_at <= now + LONGEST:
            raise CaseRefused(
                "A cause is suppressed for a reason and until a date; nothing was changed.",
                got=f"reason {reason.strip()!r}, until {expires_at:%Y-%m-%d %H:%M %Z}",
                expected=f"a reason, and a date that is not over, at most {LONGEST.days} days from now",
            )
        one = Suppression(detector, 0, entity, cause, reason.strip(), author, now, expires_at, None)
        return _insert(connection, one)


def _insert(connection: sa.Connection, one: Suppression) -> Suppression:
    """Insert a suppression under the next number of its detector."""
    lock_key(connection, one.detector, "suppressions")
    column = suppressions.c.suppression_id
    newest = connection.scalar(sa.select(sa.func.max(column)).where(suppressions.c.detector == one.detector))
    numbered = replace(one, suppression_id=(newest or 0) + 1)
    connection.execute(sa.insert(suppressions).values(vars(numbered)))
    return numbered


def request_suppression(
    site: Site,
    rule: RecordRule,
    columns: Sequence[str],
    entity: str | None,
    cause: str | None,
    reason: str,
    author: str,
    last: date,
    now: datetime,
) -> Suppression:
    """Add a suppression that holds through a date, as people ask for it.

    entity: as itself or as its pseudonym. columns: those that the detector reads, which a cause is one of. Raises
    ParamsInvalid if it lacks a reason or names nothing, if the date is over, and if the detector has no such cause or
    no entities.
    """
    expires = site.start_of(min(last, LAST_DAY) + timedelta(days=1)).astimezone(UTC)
    if (entity is None and cause is None) or not reason.strip() or expires <= now:
        raise ParamsInvalid(
            "A suppression needs an entity or a cause, a reason, and a last day that is not over.",
            got=f"entity {entity or 'none'}, cause {cause or 'none'}, reason {reason.strip() or 'none'}, until {last}",
            todo="give what is missing; without an end nobody would look at it again",
        )
    if entity is not None and rule.entity is None:
        raise ParamsInvalid(
            f"{site.detector} has no entities, so none can be suppressed.",
            where="entity in params.yaml",
            todo="name the column of the entity, or suppress by cause",
        )
    if cause is not None and cause not in columns:
        raise ParamsInvalid(
            f"{cause!r} is never a cause: {site.detector} does not read this column.",
            where="train.columns in params.yaml",
            expected=", ".join(columns),
            todo="use one of these columns",
        )
    if entity is not None and rule.hides_entity and not _is_published(site, entity):
        entity = rule.pseudonym(entity)
    return add_suppression(site.warehouse, site.detector, entity, cause, reason.strip(), author, now, expires)


def _is_published(site: Site, entity: str) -> bool:
    """Whether flags were published of this entity as it is given: it is a pseudonym already."""
    flags = flagged_anomalies.c
    one = sa.select(flags.record_id).where(flags.detector == site.detector, flags.entity == entity).limit(1)
    with site.warehouse.begin_reading() as connection:
        return connection.scalar(one) is not None


def end_suppression(warehouse: Warehouse, detector: str, number: int, now: datetime) -> None:
    """End a suppression before it expires; one that has ended stays as it is. Raises ParamsInvalid if unknown."""
    known = {one.suppression_id: one for one in read_suppressions(warehouse, detector)}
    if number not in known:
        raise ParamsInvalid(
            f"{detector} has no suppression {number}.",
            expected=", ".join(map(str, known)) or "no suppression at all",
            todo=f"nightjar suppress {detector} lists them",
        )
    if known[number].is_active(now):
        of = (suppressions.c.detector == detector, suppressions.c.suppression_id == number)
        with warehouse.begin() as connection:
            connection.execute(sa.update(suppressions).where(*of).values(ended_at=now))
