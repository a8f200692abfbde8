"""The share of all anomalies above the threshold, estimated from records that people judged without their scores."""

from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from tasks.follow_up.cases import ANOMALY, NORMAL
from tasks.rows.shares import CONFIDENCE, bound_share
from tasks.stores.bulk import read_frame
from tasks.stores.site import Site
from tasks.stores.tables import flagged_anomalies, reviews, samples, scoring_batches

KEY = ("detector", "batch_date", "record_id")


@dataclass(frozen=True)
class Recall:
    """The estimate and its interval, all from 0 to 1, and the judged records below the threshold and above it."""

    value: float
    low: float
    high: float
    below: int
    above: int


def estimate_recall(site: Site) -> Recall | None:
    """The recall over the nights of which both parts of a sample have verdicts; None until there is one.

    Each judged record stands for an equal share of the rows on its side of the threshold. The interval combines bounds
    of the shares of both sides, each at half the error, so it is on the safe side.
    """
    s, f, b, r = samples.c, flagged_anomalies.c, scoring_batches.c, reviews.c
    of = [sa.and_(*(s[name] == t.c[name] for name in KEY)) for t in (reviews, flagged_anomalies)]
    night = sa.and_(b.detector == s.detector, b.batch_date == s.batch_date)
    joined = sa.join(samples, reviews, of[0]).join(scoring_batches, night).outerjoin(flagged_anomalies, of[1])
    columns = (s.batch_date, s.record_id, r.verdict, f.record_id.is_not(None).label("is_above"), b.flagged, b.scored)
    said = sa.select(*columns).select_from(joined).where(s.detector == site.detector)
    with site.warehouse.begin_reading() as connection:
        rows = read_frame(connection, said.order_by(r.reviewed_at, r.reviewer.desc()))
    rows = rows.drop_duplicates(["batch_date", "record_id"], keep="last")  # the verdicts that count
    rows = rows[rows["verdict"].isin((ANOMALY, NORMAL))].reset_index(drop=True)
    rows = rows.assign(is_above=rows["is_above"].astype(bool), is_anomaly=rows["verdict"] == ANOMALY)
    rows = rows[rows.groupby("batch_date")["is_above"].transform("nunique") == 2].copy()  # judged on both sides
    if rows.empty:
        return None
    total = rows["flagged"].where(rows["is_above"], rows["scored"] - rows["flagged"])
    rows["weight"] = total / rows.groupby(["batch_date", "is_above"])["verdict"].transform("size")
    above, below = (_bound_total(rows[chosen]) for chosen in (rows["is_above"], ~rows["is_above"]))
    value, low, high = (
        _divide(up, down) for up, down in ((above[0], below[0]), (above[1], below[2]), (above[2], below[1]))
    )
    return Recall(value, low, high, int((~rows["is_above"]).sum()), int(rows["is_above"].sum()))


def _bound_total(rows: pd.DataFrame) -> tuple[float, float, float]:
    """The number of anomalies that weighted records stand for, with bounds at half the error.

    Clopper-Pearson with the effective number of records (Korn and Graubard, Survey Methodology 24, 1998).
    """
    weight = rows["weight"]
    share = float((weight * rows["is_anomaly"]).sum() / weight.sum())
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    low, high = bound_share(share * effective, effective, 1 - (1 - CONFIDENCE) / 2)
    return tuple(float(weight.sum()) * one for one in (share, low, high))  # type: ignore[return-value]


def _divide(above: float, below: float) -> float:
    return above / (above + below) if above + below else 0.0
