"""What a person looks for by one word: a case by its number, an entity, or the case of a record."""

import sqlalchemy as sa

from tasks.on_demand.flags import name_entity
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.tables import case_flags, cases, flagged_anomalies


def find(site: Site, rule: RecordRule, text: str) -> tuple[str, str] | None:
    """("entity", NAME), or ("case", NUMBER) of a case or of a flagged record; None: none of them is known.

    An entity whose column is pseudonymised is found by itself too.
    """
    f, m, c = flagged_anomalies.c, case_flags.c, cases.c
    names = name_entity(rule, text) or set()
    with site.warehouse.begin_reading() as connection:
        entity = connection.scalar(sa.select(f.entity).where(f.detector == site.detector, f.entity.in_(names)).limit(1))
        if entity is not None:
            return "entity", entity
        number = connection.scalar(
            sa.select(m.case_id).where(m.detector == site.detector, m.record_id == text).order_by(m.batch_date.desc())
        )
        if number is None and text.lstrip("#").isdecimal() and len(text) < 10:
            wanted = int(text.lstrip("#"))
            number = connection.scalar(sa.select(c.case_id).where(c.detector == site.detector, c.case_id == wanted))
    return None if number is None else ("case", str(number))
