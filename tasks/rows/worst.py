"""Keep the worst rows of a stream, in little memory."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]


class WorstRows:
    """The `most` rows with the highest scores of all added rows; of tied rows the earlier is kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: pa.Table | None = None
        self._arrays: list[npt.NDArray[Any]] = [np.empty(0)]

    def add(self, rows: pa.Table, scores: Floats, *others: npt.NDArray[Any]) -> None:
        """Add rows (N,) with their scores (N,) and other arrays (N,) to keep with them."""
        if self._rows is None:
            self._rows, self._arrays = rows, [scores, *others]
        else:
            self._rows = pa.concat_tables([self._rows, rows], promote_options="permissive")
            self._arrays = [np.concatenate(pair) for pair in zip(self._arrays, (scores, *others), strict=True)]
        if len(self._arrays[0]) > 2 * self._most:
            self._cut()

    def take(self) -> tuple[pa.Table | None, *tuple[npt.NDArray[Any], ...]]:
        """The kept rows, worst first (None if none were added), their scores, and the arrays added with them."""
        self._cut()
        return self._rows, *self._arrays

    def _cut(self) -> None:
        order = np.argsort(-self._arrays[0], kind="stable")[: self._most]
        self._arrays = [array[order] for array in self._arrays]
        self._rows = None if self._rows is None else self._rows.take(pa.array(order))
