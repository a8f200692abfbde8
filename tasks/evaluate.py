"""Evaluate a detector against known answers: on test rows before registration, on published nights afterwards.

The results are for people only; nothing flows back into training. This is the only file that may read the truth of
the payments simulator.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
from prefect import get_run_logger, task

from models.calibration import Tuning, search_f_beta
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.policy import PURE
from tasks.rows.limits import LIMIT, has_limits
from tasks.rows.measures import Metrics, measure, recall_by_kind
from tasks.rows.params import IngestParams
from tasks.sources import payments
from tasks.stores.registry import SEARCHED
from tasks.stores.site import Site

NO_SCORES = pa.table({"record_id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})


@dataclass(frozen=True)
class BundleEvaluation:
    """Metrics on the test rows: of the threshold and, as `searched`, of the one with the best F1 on the tuning rows.

    None where the split has no test rows; searched is None also if there are no tuning rows of both kinds, or if the
    policy has searched already.
    """

    metrics: Metrics | None
    searched: Metrics | None = None
    searched_threshold: float = math.nan

    @property
    def tags(self) -> dict[str, str]:
        """The comparison of both thresholds as a version's tag; none without a searched one."""
        if self.metrics is None or self.searched is None:
            return {}
        now, best = ([m.precision, m.recall] for m in (self.metrics, self.searched))
        found = {"threshold": self.searched_threshold, "precision": best[0], "recall": best[1], "now": now}
        return {SEARCHED: json.dumps(found)}


@dataclass(frozen=True)
class NightsEvaluation:
    """Results on published nights: overall metrics, and the recall of each kind of anomaly."""

    metrics: Metrics
    recall_by_kind: dict[str, float]
    rows_by_kind: dict[str, int]


def evaluate_bundle(site: Site, rows: TrainingSet, bundle: Path) -> BundleEvaluation:
    """Evaluate a bundle by the labels known at the cut-off."""
    test, tuning = (read_set(site.lake, site.detector, rows.cutoff, name) for name in ("test", "tuning"))
    if not test.num_rows:
        return BundleEvaluation(None)
    from models.detector import Detector  # imports torch, which evaluate_nights does not need
    from tasks.rows.columns import to_records
    from tasks.rows.judge import find_daily_thresholds

    detector = Detector.load(bundle)
    scores = detector.score(to_records(test, detector.columns)[0])
    is_anomaly, is_tuned = (table[LABEL].to_numpy() == 1 for table in (test, tuning))
    metrics = measure(scores, is_anomaly, find_daily_thresholds(detector, test, scores, site.zone))
    if detector.threshold.policy.kind == "best_f_beta" or is_tuned.all() or not is_tuned.any():
        return BundleEvaluation(metrics)
    tuned = Tuning(detector.score(to_records(tuning, detector.columns)[0]), is_tuned)
    threshold = search_f_beta(tuned, beta=1.0)
    return BundleEvaluation(metrics, measure(scores, is_anomaly, threshold), threshold)


def read_anomalies(site: Site, params: IngestParams, day: date, now: datetime) -> pd.DataFrame:
    """The known anomalies of a batch: record_id and kind.

    For the simulator they are the planted ones; for real data, the records labelled anomalous by `now`.
    """
    if isinstance(params.source, payments.PaymentsSource):
        return payments.read_truth(params.source, site.time_zone, day)
    labels = site.warehouse.read_labels(site.detector, now)
    return labels.loc[labels["label"] == 1, ["record_id"]].assign(kind="labelled")


def evaluate_nights(site: Site, params: IngestParams, nights: Sequence[date], now: datetime) -> NightsEvaluation | None:
    """Compare the scores of published nights with the truth; None if the detector has no labels."""
    if not params.has_labels:
        return None
    lake, scored = site.lake, []
    engine = site.warehouse
    published = {batch.batch_date: batch for batch in engine.read_nights(site.detector)}
    for day in nights:
        manifest = lake.get("scores", site.detector, day, published[day].scores)
        own = [LIMIT] if has_limits(lake, manifest.parts) else []
        slices = [s for part in manifest.parts for s in lake.slices(part, ["record_id", "score", *own])]
        frame = pa.concat_tables([NO_SCORES, *slices], promote_options="permissive").to_pandas()
        truth = read_anomalies(site, params, day, now).set_index("record_id")["kind"]
        frame["kind"] = frame["record_id"].map(truth)
        frame["margin"] = frame["score"] - (frame[LIMIT] if own else published[day].threshold)
        scored.append(frame[["score", "margin", "kind"]])
    rows = pd.concat(scored, ignore_index=True)
    # Thresholds may differ between nights. The margin over the threshold decides flags, and ranks rows as scores do.
    margins, is_anomaly = rows["margin"].to_numpy(), rows["kind"].notna().to_numpy()
    by_kind = recall_by_kind(margins > 0, is_anomaly, rows["kind"]).set_index("kind").sort_index()
    recall = {str(kind): float(share) for kind, share in by_kind["recall"].items()}
    rows_by_kind = {str(kind): int(n) for kind, n in by_kind["rows"].items()}
    return NightsEvaluation(measure(margins, is_anomaly, 0.0), recall, rows_by_kind)


@task(task_run_name="evaluate {site.detector}", **PURE)
def evaluate(site: Site, rows: TrainingSet, bundle: Path) -> BundleEvaluation:
    """Evaluate the calibrated bundle on the test rows."""
    found = evaluate_bundle(site, rows, bundle)
    get_run_logger().info("test rows: %s", asdict(found.metrics) if found.metrics else "none")
    return found
