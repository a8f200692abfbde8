"""What MLflow loads: `mlflow models serve` on a host with our package answers with score, rank, p-value and flag.

In: a frame with the detector's columns. Out, row by row: score, percentile_rank, p_value, is_flagged; of a detector
with a reducer also second_stage_probability (NaN where not flagged) and is_suppressed.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from models.detector import Detector
from tasks.columns import to_records


class ServedDetector:
    """A detector behind MLflow's `predict`."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score the rows of a frame that has the detector's columns; others are ignored."""
        names = [column.name for column in self.detector.columns]
        records, _ = to_records(pa.Table.from_pandas(frame[names], preserve_index=False), self.detector.columns)
        scores = self.detector.score(records)
        is_flagged = scores > self.detector.threshold.value
        answer = pd.DataFrame(
            {
                "score": scores,
                "percentile_rank": self.detector.rank(scores),
                "p_value": self.detector.p_value(scores),
                "is_flagged": is_flagged,
            }
        )
        if self.detector.reducer is None:
            return answer
        probabilities, is_suppressed = self.detector.reduce(records)
        return answer.assign(
            second_stage_probability=np.where(is_flagged, probabilities, np.nan),
            is_suppressed=is_flagged & is_suppressed,
        )


def _load_pyfunc(path: str) -> ServedDetector:
    return ServedDetector(Detector.load(Path(path)))
