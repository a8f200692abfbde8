"""Whether judged cases were worth a look, as people say of them: the share, all together and by week. Reads only."""

import json
from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa

from tasks.follow_up.cases import WORTH
from tasks.rows.shares import Share, estimate_share
from tasks.stores.site import Site
from tasks.stores.tables import case_events, cases

YES = json.dumps({WORTH: True})  # the details of such an event


@dataclass(frozen=True)
class Worth:
    """The share of the cases with an answer that somebody found worth a look. judged: all cases with a verdict.

    weeks: the same by the week in which they were closed, by its Monday, in the detector's time zone; oldest first.
    """

    whole: Share
    weeks: tuple[tuple[date, Share], ...]
    judged: int


def count_worth(site: Site) -> Worth:
    """Count the judged cases that were worth a look: of each person, the newest answer on a case counts."""
    e, c = case_events.c, cases.c
    recency = sa.func.row_number().over(partition_by=(e.case_id, e.actor), order_by=e.number.desc()).label("recency")
    given = sa.select(e.case_id, e.details, recency).where(e.detector == site.detector, e.kind == WORTH).subquery()
    is_yes = sa.func.max(sa.case((given.c.details == YES, 1), else_=0)).label("is_worth")
    answers = sa.select(given.c.case_id, is_yes).where(given.c.recency == 1).group_by(given.c.case_id).subquery()
    is_judged = (c.detector == site.detector, c.verdict.is_not(None), c.merged_into.is_(None))
    joined = sa.join(cases, answers, c.case_id == answers.c.case_id)
    found = sa.select(c.closed_at, answers.c.is_worth).select_from(joined).where(*is_judged).order_by(c.closed_at)
    with site.warehouse.begin_reading() as connection:
        judged = connection.scalar(sa.select(sa.func.count()).select_from(cases).where(*is_judged)) or 0
        rows = connection.execute(found).all()
    weeks: dict[date, list[int]] = {}
    for row in rows:
        day = row.closed_at.astimezone(site.zone).date()
        weeks.setdefault(day - timedelta(days=day.weekday()), []).append(row.is_worth)
    return Worth(
        estimate_share(sum(row.is_worth for row in rows), len(rows)),
        tuple((monday, estimate_share(sum(answers), len(answers))) for monday, answers in weeks.items()),
        judged,
    )
