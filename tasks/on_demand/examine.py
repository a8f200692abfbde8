"""An experiment's results for its bundle: metrics.json, curves as CSV and pictures."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.bundle import dump_json
from models.detector import Detector
from models.encoders import encode_records
from models.records import Records
from tasks.errors import TooFewRows
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.pages import pictures
from tasks.rows.columns import to_records
from tasks.rows.measures import Flags, Floats, measure, recall_by_kind, trace_thresholds
from tasks.rows.params import LabelColumn
from tasks.stores.site import Site


def find_repeats(encoded: npt.NDArray[np.float32]) -> Flags:
    """The mask (N,) of encoded rows (N, D) that are equal to an earlier row."""
    seen = pd.util.hash_array(np.ascontiguousarray(encoded).view(f"V{encoded.shape[1] * 4}").ravel().astype(object))
    return pd.Series(seen).duplicated().to_numpy()


def examine_bundle(site: Site, rows: TrainingSet, bundle: Path, labels: LabelColumn | None) -> None:
    """Write an experiment's results into the site's home: metrics.json, curves as CSV, pictures under plots/.

    The curves use the tuning rows if they have anomalies, as a threshold search would, otherwise the test rows.
    Everything else uses the test rows. Raises TooFewRows without test rows.
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
    """The rows of a labelled set with their scores (N,), the truth (N,) and the kind of anomaly (N,)."""

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
