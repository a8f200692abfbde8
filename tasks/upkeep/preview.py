"""What a second stage learnt now from all verdicts would change in the last nights. Registers and changes nothing.

A flag with a verdict is judged by a classifier and a cut that have not seen it, as `nightjar reduce` measures its gain;
any other flag by the stage that `nightjar reduce` would register. Beside it stands the second stage that is in use.
"""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd
import sqlalchemy as sa

from models.detector import Detector
from models.reducer import Gain, check_loss, learn
from tasks.errors import ReducerRefused
from tasks.follow_up.cases import ANOMALY
from tasks.rows.judge import Mask
from tasks.rows.params import ReviewParams
from tasks.rows.shares import Share, estimate_share
from tasks.stores.bulk import read_frame
from tasks.stores.site import Site
from tasks.stores.tables import SECOND_STAGE, flagged_anomalies, reviews, scoring_batches
from tasks.upkeep.reduce import describe_rows, lack_verdicts

NIGHTS = 30


@dataclass(frozen=True)
class Stage:
    """What a second stage does with flags: how many stay alerts, and how many confirmed anomalies it suppresses.

    learnt: how many of the confirmed anomalies it has learnt from, so that `lost` may look too small.
    """

    alerts: int
    suppressed: int
    lost: Share
    learnt: int = 0


@dataclass(frozen=True)
class CauseChange:
    """The flags with one first cause: how many are suppressed now and would be then, and confirmed ones among them."""

    cause: str
    flags: int
    suppressed_now: int
    suppressed_then: int
    confirmed: int
    lost_now: int
    lost_then: int


@dataclass(frozen=True)
class Preview:
    """The second stage in use (now; None: there is none) and one learnt now (then), on flags of the last nights.

    flags: published ones whose row is kept and that the version flags, too. left_out: all others, among them those that
    a person suppressed. returning: suppressed now, alerts then; going: the other way round. causes: most flags first.
    refusal: why `nightjar reduce` would not register it; "" if it would.
    """

    version: int
    nights: int
    first: date | None
    last: date | None
    flags: int
    left_out: int
    now: Stage | None
    then: Stage
    returning: int
    going: int
    causes: tuple[CauseChange, ...]
    gain: Gain
    refusal: str


def preview_reducer(site: Site, params: ReviewParams, version: int | None = None, nights: int = NIGHTS) -> Preview:
    """What learning a second stage for a version (default: the champion) would change in the newest published nights.

    Raises ChampionMissing and TooFewRows.
    """
    registry = site.registry
    base = registry.get_champion() if version is None else registry.get_version(version)
    detector = Detector.load(registry.fetch_bundle(base))
    given = site.warehouse.read_reviews(site.detector)
    days = [night.batch_date for night in site.warehouse.read_nights(site.detector)][-nights:]
    flags = _read_flags(site, days)
    both = given.merge(flags, "outer", ["batch_date", "record_id"]) if len(given) and len(flags) else given.iloc[:0]
    found = describe_rows(site, detector, both)
    if found is None or not found.is_reviewed.any():
        raise lack_verdicts(site.detector, len(given))
    reducer, is_kept = learn(found.verdicts, params.reducer, params.limits)
    suppressed_then = reducer.suppresses(reducer.predict(found.features))
    suppressed_then[found.is_reviewed & found.is_flag] = ~is_kept
    refusal = ""
    try:
        check_loss(reducer.header.gain, params.limits)
    except ReducerRefused as error:
        refusal = error.line
    chosen = found.is_flag & (found.rows["is_ours"] == True).to_numpy()  # noqa: E712 - NaN where there is no flag
    now, then = found.is_suppressed[chosen], suppressed_then[chosen]
    rows = found.rows[chosen]
    confirmed = (rows["verdict"] == ANOMALY).to_numpy()
    through = _find_learnt(detector)
    learnt = int((confirmed & (rows["batch_date"] <= through).to_numpy()).sum()) if through else 0
    return Preview(
        version=base.version,
        nights=len(days),
        first=days[0] if days else None,
        last=days[-1] if days else None,
        flags=len(rows),
        left_out=len(flags) - len(rows),
        now=_measure(now, confirmed, learnt) if detector.reducer else None,
        then=_measure(then, confirmed),
        returning=int((now & ~then).sum()),
        going=int((then & ~now).sum()),
        causes=count_causes(rows["cause"], now, then, confirmed),
        gain=reducer.header.gain,
        refusal=refusal,
    )


def _read_flags(site: Site, days: list[date]) -> pd.DataFrame:
    """The published flags of nights: batch_date, record_id, cause (the first) and is_ours (no person suppressed it)."""
    f = flagged_anomalies.c
    flags = sa.select(f.batch_date, f.record_id, f.causes, f.suppressed_by)
    with site.warehouse.begin_reading() as connection:
        found = read_frame(connection, flags.where(f.detector == site.detector, f.batch_date.in_(days)))
    return pd.DataFrame(
        {
            "batch_date": found["batch_date"],
            "record_id": found["record_id"],
            "cause": [json.loads(causes)[0]["column"] for causes in found["causes"]],
            "is_ours": found["suppressed_by"].fillna(SECOND_STAGE).eq(SECOND_STAGE),
        }
    )


def _find_learnt(detector: Detector) -> date | None:
    """The last night from which a detector's second stage has learnt."""
    origin = detector.lineage.get("reducer")
    through = origin.get("reviewed_through") if isinstance(origin, dict) else None
    return date.fromisoformat(str(through)) if through else None


def _measure(suppressed: Mask, confirmed: Mask, learnt: int = 0) -> Stage:
    count = int(suppressed.sum())
    lost = estimate_share(int((suppressed & confirmed).sum()), int(confirmed.sum()))
    return Stage(len(suppressed) - count, count, lost, learnt)


def count_causes(causes: pd.Series, now: Mask, then: Mask, confirmed: Mask) -> tuple[CauseChange, ...]:
    """The changes by first cause (N,), most flags first."""
    counts = pd.DataFrame(
        {
            "flags": np.ones(len(causes), dtype=np.int64),
            "suppressed_now": now,
            "suppressed_then": then,
            "confirmed": confirmed,
            "lost_now": now & confirmed,
            "lost_then": then & confirmed,
        }
    ).groupby(causes.to_numpy()).sum()  # fmt: skip
    ordered = counts.rename_axis("cause").reset_index().sort_values(["flags", "cause"], ascending=[False, True])
    return tuple(
        CauseChange(cause, *(int(count) for count in counted)) for cause, *counted in ordered.itertuples(index=False)
    )


def read_stamp(site: Site, params: ReviewParams) -> Hashable:
    """What a preview for the champion depends on: the same as long as the preview is the same."""
    champion = site.registry.get_champion()
    r, b = reviews.c, scoring_batches.c
    said = sa.select(sa.func.count(), sa.func.max(r.reviewed_at)).where(r.detector == site.detector)
    published = sa.select(sa.func.count(), sa.func.max(b.attempt)).where(b.detector == site.detector)
    with site.warehouse.begin_reading() as connection:
        counts = (*connection.execute(said).one(), *connection.execute(published).one())
    return (site.registry.check_tags(champion), params.model_dump_json(), *counts)
