"""What a version's training rows looked like, as counts by bin: no row can be read from it.

In: slices of rows and the detector's columns. Out: for each column its bins and the counts of N rows in them. A number
falls between quantiles of the training rows, a category into the bin of its name, a time into its local hour; of a text
the length counts, of an image the mean of its pixels. Missing values are counted apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from models.columns import Column
from tasks.rows.categories import encode_text
from tasks.rows.images import read_pixels

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUANTILES = (0.01, *(tenth / 10 for tenth in range(1, 10)), 0.99)
MOST_CODES = 20  # categories with a bin of their own; the rarer ones share one
HOURS = 24


@dataclass(frozen=True)
class Bins:
    """A column's bins and the training rows in each: between `edges`, or at one of the `codes`, then the others.

    unseen: the code that no training row has; it counts as the last bin of a categorical column. `median` and `spread`
    (a robust standard deviation), of numbers only, are on the scale that the detector reads: log1p of a log_numeric
    column. mode: the largest share of one value.
    """

    name: str
    kind: str
    edges: tuple[float, ...]
    codes: tuple[int, ...]
    unseen: int | None
    counts: tuple[int, ...]
    missing: int
    median: float
    spread: float
    mode: float

    @property
    def rows(self) -> int:
        """The training rows with a value."""
        return sum(self.counts)

    def count(self, values: Floats) -> Ints:
        """The rows (N,) in each of the B bins; NaN is in none."""
        known = values[~np.isnan(values)]
        if not self.codes:
            return np.bincount(np.searchsorted(np.array(self.edges), known), minlength=len(self.edges) + 1)
        order = np.argsort(self.codes)
        ordered = np.array(self.codes)[order]
        place = np.minimum(np.searchsorted(ordered, known), len(ordered) - 1)
        bins = np.where(ordered[place] == known, order[place], len(self.codes))
        if self.unseen is not None:
            bins = np.where(known == self.unseen, len(self.codes) + 1, bins)
        return np.bincount(bins.astype(np.int64), minlength=len(self.codes) + 1 + (self.unseen is not None))


Reference = Mapping[str, Bins]


def name_references(detector: str, bundle_hash: str) -> str:
    """Where the lake keeps the reference of a bundle, which `monitor` writes on its first night."""
    return f"references/{detector}/{bundle_hash[:32]}.json"


def load_reference(document: Mapping[str, Any]) -> Reference:
    """A reference from JSON: the fields of each column's bins."""
    return TypeAdapter(dict[str, Bins]).validate_python(document)


def read_values(column: Column, values: pa.ChunkedArray, zone: ZoneInfo) -> Floats:
    """What is counted of each row (N,): a number, a category's code, a local hour; NaN if it is missing."""
    if column.kind in ("numeric", "log_numeric"):
        found: Floats = values.cast(pa.float64(), safe=False).to_numpy()
        return np.where(np.isfinite(found), found, np.nan)
    if column.kind == "categorical":
        codes = encode_text(values, column).astype(np.float64)
    elif column.kind == "datetime":
        local = values.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us", tz=zone.key))
        codes = pc.hour(local).cast(pa.float64()).to_numpy(zero_copy_only=False)
    elif column.kind == "image":
        codes = read_pixels(values.drop_null(), column).mean(axis=1, dtype=np.float64)
        return _spread_over(codes, values)
    else:
        codes = pc.utf8_length(values.cast(pa.string())).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), np.nan, codes)


def _spread_over(found: Floats, values: pa.ChunkedArray) -> Floats:
    whole = np.full(len(values), np.nan)
    whole[values.is_valid().to_numpy(zero_copy_only=False)] = found
    return whole


def rescale(kind: str, values: Floats) -> Floats:
    """Numbers on the scale that the detector reads."""
    return np.log1p(np.maximum(values, -0.999)) if kind == "log_numeric" else values


def unscale(kind: str, values: Floats) -> Floats:
    """The inverse of `rescale`."""
    return np.expm1(values) if kind == "log_numeric" else values


def measure_spread(values: Floats) -> tuple[float, float]:
    """The median and the spread of numbers, both 0 without any: the spread is robust unless most values are equal."""
    if not len(values):
        return 0.0, 0.0
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(median), float((high - low) / 1.349 or (values.std() if np.ptp(values) else 0.0))


def measure_mode(values: Floats) -> float:
    """The largest share of one value; 0 without any."""
    return float(np.unique(values, return_counts=True)[1].max() / len(values)) if len(values) else 0.0


def make_bins(column: Column, values: Floats) -> Bins:
    """A column's bins from training values (N,), NaN if missing."""
    known = values[~np.isnan(values)]
    edges: tuple[float, ...] = ()
    codes: tuple[int, ...] = ()
    if column.kind == "categorical":
        found, counts = np.unique(known.astype(np.int64), return_counts=True)
        ranked = [int(code) for code in found[np.argsort(-counts, kind="stable")] if code != column.unseen]
        codes = tuple(ranked[:MOST_CODES]) or (0,)
    elif column.kind == "datetime":
        codes = tuple(range(HOURS))
    else:
        edges = tuple(float(edge) for edge in np.unique(np.quantile(known, QUANTILES))) if len(known) else (0.0,)
    median, spread = measure_spread(rescale(column.kind, known))
    unseen = column.unseen if column.kind == "categorical" else None
    mode, missing = measure_mode(known), len(values) - len(known)
    empty = Bins(column.name, column.kind, edges, codes, unseen, (), missing, median, spread, mode)
    return Bins(**vars(empty) | {"counts": tuple(int(n) for n in empty.count(values))})


def make_reference(columns: Sequence[Column], rows: pa.Table, zone: ZoneInfo) -> Reference:
    """The bins of all columns that are learnt from, from training rows."""
    return {c.name: make_bins(c, read_values(c, rows[c.name], zone)) for c in columns if c.kind != "key"}
