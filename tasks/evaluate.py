"""Measure a detector where the answer is known: on test rows before it is registered, on published nights after.

Everything here is for people to read; nothing flows back into training. This is the only file that may ask the
payments simulator for its truth.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from prefect import get_run_logger, task

from models.bundle import dump_json
from models.detector import Detector
from models.encoders import encode_records
from models.records import Records
from tasks.errors import TooFewRows
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.pages import pictures
from tasks.params import IngestParams, LabelColumn
from tasks.policy import PURE
from tasks.rows.columns import to_records
from tasks.sources import payments
from tasks.stores.site import Site

NO_SCORES = pa.table({"record_id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Detection of the positive class "anomalous"; None where it cannot be computed, such as recall of no anomaly."""

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    average_precision: float | None
    false_alarm_rate: float | None  # share of the normal rows that are flagged
    rows: int
    anomalies: int


@dataclass(frozen=True)
class NightsEvaluation:
    """What the published nights caught: overall, and the recall of each kind of planted anomaly."""

    metrics: Metrics
    recall_by_kind: dict[str, float]
    rows_by_kind: dict[str, int]


def measure(scores: Floats, is_anomaly: Flags, threshold: float) -> Metrics:
    """Metrics of scores (N,), higher = more anomalous, against the truth (N,); flagged is strictly above threshold."""
    from sklearn.metrics import average_precision_score, roc_auc_score  # a second to import

    flagged = scores > threshold
    hits, positives, flags = int((flagged & is_anomaly).sum()), int(is_anomaly.sum()), int(flagged.sum())
    normals = len(scores) - positives
    both = positives > 0 and normals > 0
    return Metrics(
        precision=hits / flags if flags else None,
        recall=hits / positives if positives else None,
        f1=2 * hits / (flags + positives) if flags + positives else None,
        auroc=float(roc_auc_score(is_anomaly, scores)) if both else None,
        average_precision=float(average_precision_score(is_anomaly, scores)) if positives else None,
        false_alarm_rate=(flags - hits) / normals if normals else None,
        rows=len(scores),
        anomalies=positives,
    )


def evaluate_bundle(site: Site, rows: TrainingSet, bundle: Path) -> Metrics | None:
    """Metrics on the test rows, by the labels known at the cut-off; None where the split has no test rows."""
    table = read_set(site.lake, site.detector, rows.cutoff, "test")
    if not table.num_rows:
        return None
    detector = Detector.load(bundle)
    records, _ = to_records(table, detector.columns)
    return measure(detector.score(records), table[LABEL].to_numpy() == 1, detector.threshold.value)


def trace_thresholds(scores: Floats, is_anomaly: Flags, most: int = 400) -> pd.DataFrame:
    """Precision, recall and F1 of flagging what scores above each threshold; at most `most` of them, evenly ranked."""
    order = np.argsort(-scores, kind="stable")
    hits, flagged = np.cumsum(is_anomaly[order]), np.arange(1, len(scores) + 1)
    ends = np.flatnonzero(np.append(np.diff(scores[order]) < 0, True))  # a tie is flagged whole or not at all
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, most).astype(int))]
    precision, recall = hits[ends] / flagged[ends], hits[ends] / max(int(is_anomaly.sum()), 1)
    f1 = 2 * hits[ends] / (flagged[ends] + max(int(is_anomaly.sum()), 1))
    thresholds = np.nextafter(scores[order][ends], -np.inf)
    return pd.DataFrame({"threshold": thresholds, "precision": precision, "recall": recall, "f1": f1})


def recall_by_kind(flagged: Flags, is_anomaly: Flags, kinds: pd.Series) -> pd.DataFrame:
    """For each kind of anomaly (N,) its test rows and the share that is flagged, commonest first."""
    anomalous = pd.DataFrame({"kind": kinds[is_anomaly].astype(str), "flagged": flagged[is_anomaly]})
    grouped = anomalous.groupby("kind")["flagged"].agg(["size", "mean"]).reset_index()
    grouped.columns = pd.Index(["kind", "rows", "recall"])
    return grouped.sort_values(["rows", "kind"], ascending=[False, True], ignore_index=True)


def find_repeats(encoded: npt.NDArray[np.float32]) -> Flags:
    """The mask (N,) of rows that an earlier row equals in everything the detector reads, (N, D)."""
    seen = pd.util.hash_array(np.ascontiguousarray(encoded).view(f"V{encoded.shape[1] * 4}").ravel().astype(object))
    return pd.Series(seen).duplicated().to_numpy()


def examine_bundle(site: Site, rows: TrainingSet, bundle: Path, labels: LabelColumn | None) -> None:
    """Write what an experiment shows into the site's home: metrics.json, curves as CSV, pictures under plots/.

    The curves come from the tuning rows where these hold anomalies, as a threshold search would see them, otherwise
    from the test rows; everything else comes from the test rows. Raises TooFewRows without test rows.
    """
    detector = Detector.load(bundle)
    test = _Judged.read(site, rows, detector, "test", labels)
    if not len(test.records):
        raise TooFewRows(
            "There are no test rows to measure on.",
            where=f"detectors.{site.detector}.filter.splits",
            got=rows.split,
            expected="a share, or days, for test",
            todo="give filter.splits some test rows in params.yaml",
        )
    tuning = _Judged.read(site, rows, detector, "tuning", labels)
    threshold = detector.threshold
    once = ~find_repeats(encode_records(detector.encoder, test.records).numpy())
    metrics = asdict(measure(test.scores, test.is_anomaly, threshold.value)) | {
        "threshold": threshold.value,
        "expected_false_alarm_rate": threshold.false_alarm_rate,
        "mean_score_normal": _mean(test.scores[~test.is_anomaly]),
        "mean_score_anomalous": _mean(test.scores[test.is_anomaly]),
        "without_repeated_rows": asdict(measure(test.scores[once], test.is_anomaly[once], threshold.value)),
    }
    (site.home / "metrics.json").write_bytes(dump_json(metrics))
    searched = tuning if tuning.is_anomaly.any() and not tuning.is_anomaly.all() else test
    curve = trace_thresholds(searched.scores, searched.is_anomaly)
    curve.to_csv(site.home / "thresholds.csv", index=False)
    by_kind = recall_by_kind(test.scores > threshold.value, test.is_anomaly, test.kinds)
    by_kind.to_csv(site.home / "recall_by_kind.csv", index=False)
    pictures.draw_all(site.home / "plots", detector, test.records, test.scores, test.is_anomaly, curve)


@dataclass(frozen=True, eq=False)
class _Judged:
    """The rows of a labelled set with their scores (N,), the truth (N,) and what kind of anomaly each one is (N,)."""

    records: Records
    scores: Floats
    is_anomaly: Flags
    kinds: pd.Series

    @classmethod
    def read(
        cls, site: Site, rows: TrainingSet, detector: Detector, name: str, labels: LabelColumn | None
    ) -> "_Judged":
        table = read_set(site.lake, site.detector, rows.cutoff, name)
        records, _ = to_records(table, detector.columns)
        kinds = pd.Series("anomaly", index=range(len(records)))
        if labels and labels.column in table.column_names:
            kinds = table[labels.column].to_pandas()
        return cls(records, detector.score(records), table[LABEL].to_numpy() == 1, kinds)


def _mean(scores: Floats) -> float | None:
    return float(scores.mean()) if len(scores) else None


def read_truth(site: Site, params: IngestParams, day: date, now: datetime) -> pd.DataFrame:
    """The anomalies of a batch, as far as anybody can know them: record_id and kind.

    For the simulator this is what it planted; for real data, the records labelled anomalous by `now`.
    """
    if isinstance(params.source, payments.PaymentsSource):
        return payments.read_truth(params.source, site.time_zone, day)
    labels = site.warehouse.read_labels(site.detector, now)
    return labels.loc[labels["label"] == 1, ["record_id"]].assign(kind="labelled")


def evaluate_nights(site: Site, params: IngestParams, nights: Sequence[date], now: datetime) -> NightsEvaluation | None:
    """Hold the scores of published nights against the truth; None where the detector has no labels at all."""
    if params.labels is None and not isinstance(params.source, payments.PaymentsSource):
        return None
    lake, scored = site.lake, []
    engine = site.warehouse
    published = {batch.batch_date: batch for batch in engine.read_batches(site.detector)}
    for day in nights:
        manifest = lake.get("scores", site.detector, day, published[day].scores)
        slices = [s for part in manifest.parts for s in lake.slices(part, ["record_id", "score"])]
        frame = pa.concat_tables([NO_SCORES, *slices], promote_options="permissive").to_pandas()
        truth = read_truth(site, params, day, now).set_index("record_id")["kind"]
        frame["kind"] = frame["record_id"].map(truth)
        frame["margin"] = frame["score"] - published[day].threshold
        scored.append(frame[["score", "margin", "kind"]])
    rows = pd.concat(scored, ignore_index=True)
    # Nights may differ in threshold: the margin says who is flagged, and ranks rows of one threshold like the score.
    margins, is_anomaly = rows["margin"].to_numpy(), rows["kind"].notna().to_numpy()
    by_kind = recall_by_kind(margins > 0, is_anomaly, rows["kind"]).set_index("kind").sort_index()
    recall = {str(kind): float(share) for kind, share in by_kind["recall"].items()}
    rows_by_kind = {str(kind): int(n) for kind, n in by_kind["rows"].items()}
    return NightsEvaluation(measure(margins, is_anomaly, 0.0), recall, rows_by_kind)


@task(task_run_name="evaluate {site.detector}", **PURE)
def evaluate(site: Site, rows: TrainingSet, bundle: Path) -> Metrics | None:
    """Measure the calibrated bundle on the test rows."""
    metrics = evaluate_bundle(site, rows, bundle)
    get_run_logger().info("test rows: %s", asdict(metrics) if metrics else "none")
    return metrics
