"""An experiment's results for its bundle: metrics.json, curves as CSV and pictures."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from prefect import get_run_logger, task

from models.bundle import dump_json
from models.detector import Detector
from models.encoders import encode_records
from models.records import Records
from tasks.errors import TooFewRows, describe_failure
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.pages import pictures
from tasks.policy import PURE
from tasks.rows.columns import to_records
from tasks.rows.images import DRAWN, draw_images
from tasks.rows.judge import find_daily_thresholds
from tasks.rows.measures import Flags, Floats, measure, recall_by_kind, trace_thresholds
from tasks.rows.params import LabelColumn
from tasks.stores.site import Site

PLANTED = 1000  # of each kind of drawn image


def find_repeats(encoded: npt.NDArray[np.float32]) -> Flags:
    """The mask (N,) of encoded rows (N, D) that are equal to an earlier row."""
    seen = pd.util.hash_array(np.ascontiguousarray(encoded).view(f"V{encoded.shape[1] * 4}").ravel().astype(object))
    return pd.Series(seen).duplicated().to_numpy()


def examine_bundle(site: Site, rows: TrainingSet, bundle: Path, labels: LabelColumn | None) -> None:
    """Write an experiment's results into the site's home: metrics.json, curves as CSV, pictures under plots/.

    The curves use the tuning rows if they have anomalies, as a threshold search would, otherwise the test rows.
    Everything else uses the test rows. A detector of images is also shown images that are drawn: `plant_images`.
    Raises TooFewRows without test rows.
    """
    detector = Detector.load(bundle)
    test = _Judged.read(site, rows, detector, "test", labels)
    if not len(test.records):
        raise TooFewRows(
            "There are no test rows to evaluate on.",
            where=f"detectors.{site.detector}.filter.splits",
            got=rows.split,
            expected="a share, or days, for test",
            todo="give filter.splits some test rows in params.yaml",
        )
    threshold = detector.threshold
    once = ~find_repeats(encode_records(detector.encoder, test.records).numpy())
    metrics = asdict(measure(test.scores, test.is_anomaly, test.limits)) | {
        "threshold": threshold.value,
        "expected_false_alarm_rate": threshold.false_alarm_rate,
        "mean_score_normal": _mean(test.scores[~test.is_anomaly]),
        "mean_score_anomalous": _mean(test.scores[test.is_anomaly]),
        "without_repeated_rows": asdict(measure(test.scores[once], test.is_anomaly[once], test.limits[once])),
    }
    planted = plant_images(detector, test.records[:PLANTED])
    found = {kind: detector.score(records) for kind, records in planted.items()}
    if planted:
        metrics["planted"] = {
            kind: {"recall": float((scores > threshold.value).mean()), "mean_score": _mean(scores)}
            for kind, scores in found.items()
        }
    (site.home / "metrics.json").write_bytes(dump_json(metrics))
    curve = trace_curve(site, rows, detector, test)
    curve.to_csv(site.home / "thresholds.csv", index=False)
    scores = np.concatenate([test.scores, *found.values()])
    limits = np.append(test.limits, np.full(len(scores) - len(test.scores), threshold.value))
    is_anomaly = np.append(test.is_anomaly, np.ones(len(scores) - len(test.scores), dtype=bool))
    kinds = pd.concat([test.kinds, *(pd.Series(f"planted {k}", range(len(s))) for k, s in found.items())])
    by_kind = recall_by_kind(scores > limits, is_anomaly, kinds.reset_index(drop=True))
    by_kind.to_csv(site.home / "recall_by_kind.csv", index=False)
    pictures.draw_all(site.home / "plots", detector, test.records, test.scores, test.is_anomaly, curve)
    pictures.draw_images(site.home / "plots" / "images.png", detector, test.records, test.scores)
    if planted:
        pictures.draw_planted(site.home / "plots" / "planted.png", detector, planted)


def plant_images(detector: Detector, records: Records) -> dict[str, Records]:
    """The records (N,) with each kind of drawn image in the place of their own; none for a detector without images."""
    shapes = [column.shape for column in detector.columns if column.kind == "image"]
    rng, n = np.random.default_rng(0), len(records)
    found = {}
    for kind in DRAWN if shapes else ():
        pixels = np.hstack([draw_images(kind, n, shape, rng).reshape(n, -1) for shape in shapes])  # (N, P)
        found[kind] = replace(records, pixels=torch.from_numpy(pixels))
    return found


def trace_curve(site: Site, rows: TrainingSet, detector: Detector, test: "_Judged") -> pd.DataFrame:
    """The metrics by threshold: on the tuning rows if they have anomalies, as a search would, else on the test rows."""
    tuning = _Judged.read(site, rows, detector, "tuning", None)
    searched = tuning if tuning.is_anomaly.any() and not tuning.is_anomaly.all() else test
    return trace_thresholds(searched.scores, searched.is_anomaly, detector.threshold.value)


@task(task_run_name="examine {site.detector}", **PURE)
def draw_pictures(site: Site, rows: TrainingSet, bundle: Path, folder: Path) -> None:
    """Draw the pictures of a training into a folder: losses and, if there are test rows, what they show.

    No picture shows a record, since an erased one would stay in MLflow. One that cannot be drawn is logged.
    """
    try:
        pictures.draw_losses(folder / "losses.png", pd.read_csv(site.epochs(rows.cutoff)))
        detector = Detector.load(bundle)
        test = _Judged.read(site, rows, detector, "test", None)
        if len(test.records):
            curve = trace_curve(site, rows, detector, test)
            pictures.draw_all(folder, detector, test.records, test.scores, test.is_anomaly, curve)
    except Exception as error:  # noqa: BLE001 - the training is more important than its pictures
        get_run_logger().warning("some pictures are missing: %s", describe_failure(error).line)


@dataclass(frozen=True, eq=False)
class _Judged:
    """The rows of a labelled set: scores and thresholds (N,), the truth (N,) and the kind of anomaly (N,)."""

    records: Records
    scores: Floats
    limits: Floats
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
        scores = detector.score(records)
        limits = find_daily_thresholds(detector, table, scores, site.zone)
        return cls(records, scores, limits, table[LABEL].to_numpy() == 1, kinds)


def _mean(scores: Floats) -> float | None:
    return float(scores.mean()) if len(scores) else None
