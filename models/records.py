"""A batch's records as the arrays that a detector reads, one per kind of column.

Strings are already codes here: the code of a category or token is its index in `Column.vocabulary`, and
V = `Column.unseen` means "not seen in fitting"; V - 1 is a rare value where the column has any. N rows, Fn numeric, Fc
categorical and Ft date-time columns; P pixels of all image columns together, L tokens of all sequence columns together;
Fe is 1 if a column says whom a record is about, otherwise 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import NightjarError

# Rows in every pass through a network, the last one padded: see `iterate_blocks`. Too few to keep a GPU busy.
BLOCK, GPU_BLOCK = 1024, 65_536
CPU = torch.device("cpu")
TYPES = (np.float64, np.int64, np.int64, np.uint8, np.int64, np.int64)  # of the parts of records
DTYPES = [torch.from_numpy(np.empty(0, kind)).dtype for kind in TYPES]


@dataclass(frozen=True, eq=False)
class Records:
    """Rows of one batch; each part has the columns of its kind, in the order of the detector's columns.

    Encoding is fastest where each column is contiguous in memory.

    numbers: float64 (N, Fn), numeric and log_numeric columns; NaN is a missing value.
    codes: int64 (N, Fc); anything outside 0..V-1 reads as "not seen in fitting".
    times: int64 (N, Ft), microseconds since 1970-01-01 UTC; MISSING_TIME is a missing value.
    pixels: uint8 (N, P), row by row, 0 to 255.
    tokens: int64 (N, L), PADDING after the end of a sequence; anything else outside 0..V-1 is "not seen in fitting".
    entities: int64 (N, Fe), hashes of whom a record is about; NO_ENTITY is a missing value.
    """

    numbers: Tensor
    codes: Tensor
    times: Tensor
    pixels: Tensor
    tokens: Tensor
    entities: Tensor

    def __post_init__(self) -> None:
        """Raise NightjarError if shapes or types are wrong."""
        if any(part.ndim != 2 or part.shape[0] != self.numbers.shape[0] for part in self.parts):
            raise NightjarError(
                "The parts of the records do not match.",
                got=f"shapes {[tuple(part.shape) for part in self.parts]}",
                expected="arrays (N, Fn), (N, Fc), (N, Ft), (N, P), (N, L), (N, Fe) with the same N",
            )
        if [part.dtype for part in self.parts] != DTYPES:
            raise NightjarError(
                "The parts of the records have wrong types.",
                got=str([part.dtype for part in self.parts]),
                expected="float64 numbers, int64 codes, int64 times, uint8 pixels, int64 tokens, int64 entities",
            )

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All arrays, in order."""
        return self.numbers, self.codes, self.times, self.pixels, self.tokens, self.entities

    @property
    def widths(self) -> tuple[int, ...]:
        """Fn, Fc, Ft, P, L and Fe."""
        return tuple(part.shape[1] for part in self.parts)

    def __len__(self) -> int:
        """N."""
        return self.numbers.shape[0]

    def to(self, device: torch.device) -> "Records":
        """The rows on a device; copied to a GPU through pinned pages, so that the copy is asynchronous."""
        pinned = (torch.empty_like(part, pin_memory=True).copy_(part) for part in self.parts)
        parts = pinned if device.type == "cuda" else self.parts
        return Records(*(part.to(device, non_blocking=True) for part in parts))

    def __getitem__(self, rows: slice | Tensor) -> "Records":
        """Take rows by slice, by positions or by a bool mask (N,)."""
        return Records(*(part[rows] for part in self.parts))


def make_records(
    numbers: NDArray[Any] | None = None,
    codes: NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
    pixels: NDArray[Any] | None = None,
    tokens: NDArray[Any] | None = None,
    entities: NDArray[Any] | None = None,
) -> Records:
    """Wrap arrays as Records, sharing memory where type and flags allow; an omitted part has no columns."""
    wanted = tuple(zip((numbers, codes, times, pixels, tokens, entities), TYPES, strict=True))
    given = [part for part, _ in wanted if part is not None]
    empty = np.empty((len(given[0]) if given else 0, 0))
    # "W": frames return read-only arrays, and torch warns about tensors that could write to them.
    parts = [np.require(empty if part is None else part, dtype, ["W"]) for part, dtype in wanted]
    return Records(*(torch.from_numpy(part) for part in parts))


def iterate_blocks(
    records: Records, size: int = BLOCK, device: torch.device = CPU, together: int = 1
) -> Iterator[tuple[slice, Records]]:
    """Cut records into blocks of exactly `size` rows, the last padded with zeros; the slice says which rows are real.

    Matrix kernels round differently for different shapes. With a single shape, a record's score cannot depend on the
    other rows, on the size of its batch, or on how the batch was sliced. together: up to this many blocks come as one
    piece, for work on single elements, which rounds the same whatever the shape.
    """
    for start in range(0, len(records), size * together):
        piece = records[start : start + size * together]
        rows = slice(start, start + len(piece))
        yield rows, Records(*(_pad(part, size) for part in piece.parts)).to(device)


def _pad(part: Tensor, size: int) -> Tensor:
    lacking = -len(part) % size
    return torch.cat([part, part.new_zeros(lacking, part.shape[1])]) if lacking else part
