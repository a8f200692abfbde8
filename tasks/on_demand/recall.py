"""The share of all anomalies above the threshold, estimated from records that people judged without their scores."""

from dataclasses import dataclass

import sqlalchemy as sa

from tasks.follow_up.cases import ANOMALY, NORMAL
from tasks.stores.bulk import read_frame
from tasks.stores.site import Site
from tasks.stores.tables import flagged_anomalies, samples, scoring_batches
from tasks.stores.warehouse import select_verdicts

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Recall:
    """The estimate and its interval, all from 0 to 1, and the judged records below the threshold and above it."""

    value: float
    low: float
    high: float
    below: int
    above: int


def estimate_recall(site: Site) -> Recall | None:
    """The recall over the nights with a judged sample; None until both its parts have verdicts.

    Above the threshold and below it, the share of anomalies among judged sampled records stands for all rows there. The
    interval combines exact (Clopper-Pearson) bounds of both shares, each at half the error, so it is on the safe side.
    """
    s, f, b = samples.c, flagged_anomalies.c, scoring_batches.c
    said = select_verdicts(site.detector).subquery()
    same = [sa.and_(s.batch_date == t.c.batch_date, s.record_id == t.c.record_id) for t in (said, flagged_anomalies)]
    joined = sa.join(samples, said, same[0]).outerjoin(flagged_anomalies, sa.and_(same[1], f.detector == site.detector))
    judged = sa.select(s.batch_date, said.c.verdict, f.record_id.is_not(None).label("is_above"))
    judged = judged.select_from(joined).where(s.detector == site.detector, said.c.verdict.in_((ANOMALY, NORMAL)))
    with site.warehouse.begin_reading() as connection:
        rows = read_frame(
            connection, judged.where(s.detector == site.detector, said.c.verdict.in_(("anomaly", "normal")))
        )
        days = sorted(set(rows["batch_date"]))
        nights = sa.select(sa.func.sum(b.scored), sa.func.sum(b.flagged)).where(
            b.detector == site.detector, b.batch_date.in_(days)
        )
        scored, flagged = connection.execute(nights).one()
    is_above = rows["is_above"].astype(bool)
    if rows.empty or is_above.all() or not is_above.any():
        return None
    found = rows["verdict"] == ANOMALY
    above = bound_share(int(found[is_above].sum()), int(is_above.sum()))
    below = bound_share(int(found[~is_above].sum()), int((~is_above).sum()))
    rows_above, rows_below = float(flagged), float(scored - flagged)
    value, low, high = (
        _divide(rows_above * up, rows_below * down)
        for up, down in ((above[0], below[0]), (above[1], below[2]), (above[2], below[1]))
    )
    return Recall(value, low, high, int((~is_above).sum()), int(is_above.sum()))


def bound_share(found: int, of: int) -> tuple[float, float, float]:
    """A share, and its exact bounds at half the error: share, low, high."""
    from scipy.special import betaincinv  # type: ignore[import-untyped] # 0.3 s, which other pages do without

    error = (1 - CONFIDENCE) / 4
    low = float(betaincinv(found, of - found + 1, error)) if found else 0.0
    high = float(betaincinv(found + 1, of - found, 1 - error)) if found < of else 1.0
    return found / of, low, high


def _divide(above: float, below: float) -> float:
    return above / (above + below) if above + below else 0.0
