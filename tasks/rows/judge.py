"""Judge rows as a night does: score, rank, p-value, flag, second stage and, on request, causes.

In: a detector, and N rows with its columns. Out: one Judgement of arrays (N,). Nights, loose files, rank, explain,
serving and verify all use it, so none of them can forget the second stage, which runs on flags only.
"""

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from models.calibration import Floats
from models.detector import Detector
from models.segments import Names
from tasks.rows.categories import translate
from tasks.rows.causes import name_causes
from tasks.rows.columns import to_records
from tasks.rows.schema import batch_dates_of
from tasks.stores.lake import Lake

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Judgement:
    """A detector's judgement of N rows, arrays (N,); ranks, p-values and flags are computed from the scores on demand.

    second_stage_probability: that the flag is a true anomaly; NaN if the row is not flagged or the detector has no
    reducer. is_unseen: the row has an unseen category or token.
    """

    detector: Detector
    threshold: Floats
    rows: pa.Table
    score: Floats
    second_stage_probability: Floats
    is_unseen: Mask

    @cached_property
    def percentile_rank(self) -> Floats:
        """Share of calibration scores strictly below, 0 to 100."""
        return self.detector.rank(self.score)

    @cached_property
    def p_value(self) -> Floats:
        """Conformal p-values, in (0, 1]."""
        return self.detector.p_value(self.score)

    @cached_property
    def is_flagged(self) -> Mask:
        """Rows that score strictly above their threshold."""
        return self.score > self.threshold

    @cached_property
    def is_suppressed(self) -> Mask:
        """Flags that the second stage suppresses; the other flags are alerts."""
        if self.detector.reducer is None:
            return np.zeros(len(self.score), dtype=bool)
        return self.detector.reducer.suppresses(self.second_stage_probability)

    @property
    def is_alert(self) -> Mask:
        """Flags that the second stage does not suppress."""
        return self.is_flagged & ~self.is_suppressed

    def __getitem__(self, chosen: Mask) -> "Judgement":
        """Take rows by a bool mask (N,)."""
        return replace(
            self,
            threshold=self.threshold[chosen],
            rows=self.rows.filter(pa.array(chosen)),
            score=self.score[chosen],
            second_stage_probability=self.second_stage_probability[chosen],
            is_unseen=self.is_unseen[chosen],
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, by the names used in responses and files."""
        return {
            "score": self.score,
            "percentile_rank": self.percentile_rank,
            "p_value": self.p_value,
            "is_flagged": self.is_flagged,
            "second_stage_probability": self.second_stage_probability,
            "is_suppressed": self.is_suppressed,
        }

    def only(self) -> dict[str, Any]:
        """The judgement of a single row as plain values; None for a missing probability."""
        values = {name: array.item() for name, array in self.arrays().items()}
        if math.isnan(values["second_stage_probability"]):
            values["second_stage_probability"] = None
        return values

    def name_causes(self, masked: Set[str], most: int) -> list[str]:
        """The causes of every row, see `causes.name_causes`; slower than judging, meant for flags."""
        if not len(self.score):
            return []
        records, _ = to_records(self.rows, self.detector.columns)
        return name_causes(self.detector.explain(records), self.rows, self.detector.columns, masked, most)


def load_detector(lake: Lake, name: str, bundle: Path) -> Detector:
    """A detector to judge rows with, from its bundle and the rows that it was fitted on, if the lake still has them.

    A network may rebuild a small count as a negative number: the fit rows say which columns never have one.
    """
    detector = Detector.load(bundle)
    cutoff = detector.lineage.get("cutoff")
    clean = lake.find("clean", name, date.fromisoformat(str(cutoff))) if cutoff else None
    if clean is None or clean.hash != detector.lineage.get("data_hash"):
        return detector
    lowest = [lake.lowest(part) for part in clean.parts if part.source == "fit"]
    numbers = [column.name for column in detector.columns if "numeric" in column.kind]
    never = {one for one in numbers if lowest and all(found.get(one, -1) >= 0 for found in lowest)}
    return replace(detector, nonnegative=frozenset(never))


def read_segments(column: pa.ChunkedArray) -> Names:
    """The segment of each row (N,): its value as text, or None."""
    return translate(column, lambda texts: np.array(texts, dtype=object))


def find_thresholds(detector: Detector, rows: pa.Table) -> Floats:
    """The threshold of each row (N,): that of its segment, or the detector's."""
    pooled, segments = detector.threshold.value, detector.segments
    if segments is None or not rows.num_rows:
        return np.full(rows.num_rows, pooled)
    own: dict[str | None, float] = {name: found.value for name, found in segments.thresholds.items()}
    return translate(rows[segments.column], lambda texts: np.array([own.get(text, pooled) for text in texts]))


def find_night_thresholds(detector: Detector, rows: pa.Table, score: Floats) -> Floats:
    """The threshold of each row (N,) of a whole night, or of a random sample of one, from their scores (N,)."""
    if detector.discovery_rate is None:
        return find_thresholds(detector, rows)
    return np.full(len(score), detector.find_threshold([score])[0])


def find_daily_thresholds(detector: Detector, rows: pa.Table, score: Floats, zone: ZoneInfo) -> Floats:
    """The threshold of each row (N,) of whole nights, told apart by their event times."""
    if detector.discovery_rate is None:
        return find_thresholds(detector, rows)
    found, days = np.empty(len(score)), batch_dates_of(rows["event_time"], zone).to_numpy()
    for day in np.unique(days):
        chosen = days == day
        found[chosen] = detector.find_threshold([score[chosen]])[0]
    return found


def find_level(detector: Detector, slices: Iterable[pa.Table]) -> float | None:
    """The threshold by which to judge a whole night or file, from its rows; None for those of `find_thresholds`.

    The slices are only read if the detector gives each night a threshold of its own.
    """
    if detector.discovery_rate is None:
        return None
    return detector.find_threshold(detector.score(to_records(rows, detector.columns)[0]) for rows in slices)[0]


def judge(detector: Detector, rows: pa.Table, threshold: float | Floats | None = None) -> Judgement:
    """Judge rows (N,) by their thresholds, or by the given one or ones (N,). Raises BatchRejected, see `to_records`."""
    records, is_unseen = to_records(rows, detector.columns)
    score = detector.score(records)
    level = find_thresholds(detector, rows) if threshold is None else np.broadcast_to(threshold, score.shape)
    flagged = np.flatnonzero(score > level)  # positions: with a mask, torch's threads would wait for busy cores
    probability = np.full(len(score), np.nan)
    probability[flagged], _ = detector.reduce(records[torch.from_numpy(flagged)])
    return Judgement(detector, level, rows, score, probability, is_unseen)
