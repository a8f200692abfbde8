"""What a detector reads: typed columns, and the records of a batch as three arrays that follow them.

Strings are already codes here: a category's code is its place in `Column.vocabulary`, and V = len(vocabulary) means
"not seen in fitting". N rows, Fn numeric, Fc categorical and Ft date-time columns, F = Fn + Fc + Ft.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import NightjarError

# Every pass through a network is this many rows, the last one padded: see `iterate_blocks`.
BLOCK = 1024
MISSING_TIME = torch.iinfo(torch.int64).min  # what NumPy calls NaT


@dataclass(frozen=True)
class Column:
    """One column a detector reads; only a categorical one has a vocabulary."""

    name: str
    kind: Literal["numeric", "log_numeric", "categorical", "datetime"]
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Records:
    """Rows of one batch; each part holds the columns of its kind, in the order of the detector's columns.

    numbers: float64 (N, Fn), numeric and log-numeric columns alike; NaN is a missing value.
    codes: int64 (N, Fc); anything outside 0..V-1 reads as "not seen in fitting".
    times: int64 (N, Ft), microseconds since 1970-01-01 UTC; MISSING_TIME is a missing value.
    """

    numbers: Tensor
    codes: Tensor
    times: Tensor

    def __post_init__(self) -> None:
        """Raise NightjarError where shapes or types do not fit."""
        parts = (self.numbers, self.codes, self.times)
        if any(part.ndim != 2 or part.shape[0] != self.numbers.shape[0] for part in parts):
            raise NightjarError(
                "The parts of the records do not match.",
                got=f"shapes {[tuple(part.shape) for part in parts]}",
                expected="three arrays (N, Fn), (N, Fc), (N, Ft) of the same N",
            )
        if [part.dtype for part in parts] != [torch.float64, torch.int64, torch.int64]:
            raise NightjarError(
                "The parts of the records have wrong types.",
                got=str([part.dtype for part in parts]),
                expected="float64 numbers, int64 codes, int64 times",
            )

    def __len__(self) -> int:
        """N."""
        return self.numbers.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Records":
        """Take rows by slice, by positions or by a bool mask (N,)."""
        return Records(self.numbers[rows], self.codes[rows], self.times[rows])


def make_records(
    numbers: NDArray[Any] | None = None, codes: NDArray[Any] | None = None, times: NDArray[Any] | None = None
) -> Records:
    """Wrap arrays as Records, sharing memory where type and flags allow; a part left out has no columns."""
    given = [part for part in (numbers, codes, times) if part is not None]
    empty = np.empty((len(given[0]) if given else 0, 0))
    wanted = ((numbers, np.float64), (codes, np.int64), (times, np.int64))
    # "W": frames hand out read-only arrays, and torch warns about tensors that could write to them.
    parts = [np.require(empty if part is None else part, dtype, ["W"]) for part, dtype in wanted]
    return Records(*(torch.from_numpy(part) for part in parts))


def iterate_blocks(records: Records) -> Iterator[tuple[slice, Records]]:
    """Cut records into blocks of exactly BLOCK rows, the last padded with zeros; the slice says which rows are real.

    Matrix kernels round differently for different shapes. With one shape only, a record's score cannot depend on
    its neighbours, on the size of its batch, or on how the batch was sliced.
    """
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        rows = slice(start, start + len(block))
        yield rows, Records(_pad(block.numbers), _pad(block.codes), _pad(block.times))


def _pad(part: Tensor) -> Tensor:
    if len(part) == BLOCK:
        return part.contiguous()  # the layout of the caller's memory must not choose the kernel either
    padded = part.new_zeros(BLOCK, part.shape[1])
    padded[: len(part)] = part
    return padded
