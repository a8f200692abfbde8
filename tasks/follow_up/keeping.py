"""What people at the desk keep for themselves and each other: notes on nights, and filters under a name."""

import json
from collections.abc import Mapping
from datetime import date

import sqlalchemy as sa

from tasks.follow_up.actions import Desk
from tasks.stores.tables import annotations, saved_filters
from tasks.stores.warehouse import lock_cases


def annotate(desk: Desk, day: date, note: str) -> None:
    """Add a note on a night, published or not."""
    row = {"detector": desk.detector, "batch_date": day, "author": desk.actor, "written_at": desk.now, "note": note}
    with desk.warehouse.begin() as connection:
        connection.execute(sa.insert(annotations).values(**row))


def keep_filter(desk: Desk, name: str, query: Mapping[str, str]) -> None:
    """Keep a filter of the actor's under a name; one of that name is replaced."""
    with desk.warehouse.begin() as connection:
        lock_cases(connection, desk.detector)
        connection.execute(sa.delete(saved_filters).where(*_own(desk, name)))
        text = json.dumps(dict(query), ensure_ascii=False)  # in which `nightjar erase` finds a record
        row = {"detector": desk.detector, "person": desk.actor, "name": name, "query": text}
        connection.execute(sa.insert(saved_filters).values(**row))


def drop_filter(desk: Desk, name: str) -> None:
    """Forget a filter of the actor's."""
    with desk.warehouse.begin() as connection:
        connection.execute(sa.delete(saved_filters).where(*_own(desk, name)))


def read_filters(connection: sa.Connection, detector: str, person: str) -> dict[str, dict[str, str]]:
    """A person's filters by name."""
    c = saved_filters.c
    found = sa.select(c.name, c.query).where(c.detector == detector, c.person == person).order_by(c.name)
    return {name: json.loads(query) for name, query in connection.execute(found)}


def _own(desk: Desk, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    c = saved_filters.c
    return c.detector == desk.detector, c.person == desk.actor, c.name == name
