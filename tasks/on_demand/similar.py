"""Closed cases like a given one: their worst flags have nearly the same causes. Shows their verdicts; reads only."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from tasks.follow_up.cases import FLAG_KEY, FLAGS_OF_CASES
from tasks.stores.site import Site
from tasks.stores.tables import case_flags, cases, flagged_anomalies

MOST_READ = 500  # of the newest closed cases, one flag each
MOST_SHOWN = 5
LEAST_ALIKE = 0.5


def find_similar(site: Site, number: int) -> list[dict[str, Any]]:
    """Of the detector's newest judged cases those with the most similar causes, most similar first.

    alike: 0 to 1, the share of the score that the worst flags of both cases have in the same columns; at least
    LEAST_ALIKE. causes: that flag's columns with their shares, largest first.
    """
    with site.warehouse.begin_reading() as connection:
        c = cases.c
        judged = sa.select(c.case_id).where(
            c.detector == site.detector, c.verdict.is_not(None), c.merged_into.is_(None), c.case_id != number
        )
        newest = judged.order_by(c.closed_at.desc(), c.case_id.desc()).limit(MOST_READ)
        numbers = [number, *connection.scalars(newest).all()]
        worst = _select_worst(site.detector, numbers).subquery()
        of_case = sa.and_(c.detector == site.detector, c.case_id == worst.c.case_id)
        columns = (c.case_id, c.entity, c.verdict, c.closed_at, worst.c.causes)
        found = connection.execute(sa.select(*columns).select_from(sa.join(cases, worst, of_case))).all()
    profiles = {row.case_id: profile_causes(json.loads(row.causes)) for row in found}
    if number not in profiles:
        return []
    described = [
        {
            "case": row.case_id,
            "entity": row.entity,
            "verdict": row.verdict,
            "closed_at": row.closed_at.astimezone(site.zone).isoformat(timespec="seconds") if row.closed_at else None,
            "alike": compare_profiles(profiles[number], profiles[row.case_id]),
            "causes": profiles[row.case_id],
        }
        for row in found
        if row.case_id != number
    ]
    alike = [one for one in described if one["alike"] >= LEAST_ALIKE]
    return sorted(alike, key=lambda one: (-one["alike"], -one["case"]))[:MOST_SHOWN]


def _select_worst(detector: str, numbers: list[int]) -> sa.Select[Any]:
    """The causes of the worst flag of each case."""
    flags = flagged_anomalies.c
    order = (flags.score.desc(), flags.batch_date, flags.record_id)
    place = sa.func.row_number().over(partition_by=case_flags.c.case_id, order_by=order).label("place")
    members = sa.select(case_flags.c.case_id, *(case_flags.c[name] for name in FLAG_KEY), place)
    of_cases = (case_flags.c.detector == detector, case_flags.c.case_id.in_(numbers))
    ranked = members.select_from(FLAGS_OF_CASES).where(*of_cases).subquery()
    first = sa.and_(*(ranked.c[name] == flags[name] for name in FLAG_KEY), ranked.c.place == 1)
    return sa.select(ranked.c.case_id, flags.causes).select_from(sa.join(ranked, flagged_anomalies, first))


def profile_causes(causes: list[dict[str, Any]]) -> dict[str, float]:
    """The named columns' shares of what they have together, which add up to 1; parts of a column are added."""
    shares: dict[str, float] = {}
    for cause in causes:
        if cause["column"] != "other" and cause["share"] > 0:
            shares[cause["column"]] = shares.get(cause["column"], 0.0) + cause["share"]
    whole = sum(shares.values())
    return {name: share / whole for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))}


def compare_profiles(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """1 for the same shares, 0 for no column in common: 1 less half the L1 distance."""
    return sum(min(share, other.get(name, 0.0)) for name, share in one.items())
