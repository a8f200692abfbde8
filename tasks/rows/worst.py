"""The worst rows of all that pass by, in little memory."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]


class WorstRows:
    """The `most` rows with the highest scores of all that were added; ties keep the earlier row."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._scores: Floats = np.empty(0)
        self._rows: pa.Table | None = None

    def add(self, rows: pa.Table, scores: Floats) -> None:
        """Add rows (N,) with their scores (N,)."""
        self._scores = np.concatenate([self._scores, scores])
        self._rows = rows if self._rows is None else pa.concat_tables([self._rows, rows], promote_options="permissive")
        if len(self._scores) > 2 * self._most:
            self._cut()

    def take(self) -> tuple[pa.Table | None, Floats]:
        """The rows kept, worst first, and their scores."""
        self._cut()
        return self._rows, self._scores

    def _cut(self) -> None:
        order = np.argsort(-self._scores, kind="stable")[: self._most]
        self._scores = self._scores[order]
        self._rows = None if self._rows is None else self._rows.take(pa.array(order))
