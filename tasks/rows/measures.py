"""How well scores separate anomalous from normal rows: metrics, the threshold curve, recall by kind."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Metrics of the positive class "anomalous"; None where undefined, such as recall without anomalies."""

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    average_precision: float | None
    false_alarm_rate: float | None  # share of the normal rows that are flagged
    rows: int
    anomalies: int


def measure(scores: Floats, is_anomaly: Flags, threshold: float | Floats) -> Metrics:
    """Metrics of scores (N,), higher = more anomalous, against the truth (N,); flagged: strictly above threshold.

    threshold: of all, or of each (N,).
    """
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


def trace_thresholds(scores: Floats, is_anomaly: Flags, threshold: float, most: int = 400) -> pd.DataFrame:
    """Precision, recall and F1 at each threshold (N,), or at up to `most` of them.

    Half of these are evenly spaced by rank among all rows, a quarter from twice as many flags as above the given
    threshold up to the highest score, and a quarter among the anomalous rows.
    """
    order = np.argsort(-scores, kind="stable")
    hits, flagged = np.cumsum(is_anomaly[order]), np.arange(1, len(scores) + 1)
    ends = np.flatnonzero(np.append(np.diff(scores[order]) < 0, True))  # tied rows are flagged together
    if len(ends) > most:
        near = min(max(2 * int((scores[order][ends] > threshold).sum()), 1), len(ends))
        caught = np.searchsorted(ends, np.flatnonzero(is_anomaly[order]))  # the end that flags each anomalous row
        chosen = [_space_out(np.arange(len(ends)), most // 2), _space_out(np.arange(near), most // 4)]
        ends = ends[np.unique(np.concatenate([*chosen, _space_out(caught, most // 4)]))]
    precision, recall = hits[ends] / flagged[ends], hits[ends] / max(int(is_anomaly.sum()), 1)
    f1 = 2 * hits[ends] / (flagged[ends] + max(int(is_anomaly.sum()), 1))
    thresholds = np.nextafter(scores[order][ends], -np.inf)
    return pd.DataFrame({"threshold": thresholds, "precision": precision, "recall": recall, "f1": f1})


def _space_out(places: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """Up to `most` of the places in order, evenly spaced, with the first and the last."""
    return places[np.unique(np.linspace(0, len(places) - 1, most).astype(int))] if len(places) else places


def recall_by_kind(flagged: Flags, is_anomaly: Flags, kinds: pd.Series) -> pd.DataFrame:
    """For each kind of anomaly (N,), its number of rows and the flagged share, commonest first."""
    anomalous = pd.DataFrame({"kind": kinds[is_anomaly].astype(str), "flagged": flagged[is_anomaly]})
    grouped = anomalous.groupby("kind")["flagged"].agg(["size", "mean"]).reset_index()
    grouped.columns = pd.Index(["kind", "rows", "recall"])
    return grouped.sort_values(["rows", "kind"], ascending=[False, True], ignore_index=True)
