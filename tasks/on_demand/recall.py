"""The share of all anomalies above the threshold, estimated from records that people judged without their scores."""

from dataclasses import dataclass

import sqlalchemy as sa

from tasks.follow_up.cases import ANOMALY, NORMAL
from tasks.rows.shares import CONFIDENCE, estimate_share
from tasks.stores.bulk import read_frame
from tasks.stores.site import Site
from tasks.stores.tables import flagged_anomalies, samples, scoring_batches
from tasks.stores.warehouse import select_verdicts


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
    counts = [(int(found[chosen].sum()), int(chosen.sum())) for chosen in (is_above, ~is_above)]
    above, below = (_estimate(*one) for one in counts)
    rows_above, rows_below = float(flagged), float(scored - flagged)
    value, low, high = (
        _divide(rows_above * up, rows_below * down)
        for up, down in ((above[0], below[0]), (above[1], below[2]), (above[2], below[1]))
    )
    return Recall(value, low, high, below=counts[1][1], above=counts[0][1])


def _estimate(anomalies: int, judged: int) -> tuple[float, float, float]:
    """The share of anomalies among judged records, with bounds at half the error."""
    found = estimate_share(anomalies, judged, 1 - (1 - CONFIDENCE) / 2)
    return found.share or 0.0, found.low or 0.0, 1.0 if found.high is None else found.high


def _divide(above: float, below: float) -> float:
    return above / (above + below) if above + below else 0.0
