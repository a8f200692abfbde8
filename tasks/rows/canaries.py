"""Canaries: rows of tonight made anomalous in memory, to see whether the detector still notices. Never published.

In: N rows and the training reference. Out: the rows with one thing wrong. Their recall is a figure of quality that
needs no labels.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from models.columns import Column
from models.detector import Detector
from tasks.rows.judge import judge
from tasks.rows.params import Canary, CategoryCanary, ShiftCanary, SwapCanary
from tasks.rows.reference import Reference, rescale, unscale

SHIFTED_BY_DEFAULT = 3  # columns
CANARY_ROWS = 200  # of each canary
LARGEST = 2.0**31 - 1  # of a shifted whole number


def name_canary(canary: Canary) -> str:
    """A canary's name, such as "shift amount"."""
    return f"{canary.kind} {' and '.join(canary.changes)}"


def choose_canaries(columns: Sequence[Column]) -> tuple[Canary, ...]:
    """The canaries where params name none: numbers shifted, two numbers swapped, a rare category."""
    numbers = [c.name for c in columns if c.kind in ("numeric", "log_numeric")]
    categories = [c.name for c in columns if c.kind == "categorical" and len(c.vocabulary) > 1]
    chosen: list[Canary] = [ShiftCanary(kind="shift", column=name) for name in numbers[-SHIFTED_BY_DEFAULT:]]
    if len(numbers) > 1:
        chosen.append(SwapCanary(kind="swap", columns=(numbers[0], numbers[-1])))
    chosen += [CategoryCanary(kind="category", column=name) for name in categories[:1]]
    return tuple(chosen)


def list_canaries(given: Sequence[Canary] | None, columns: Sequence[Column]) -> tuple[Canary, ...]:
    """The canaries of params that a version with these columns reads, or, if given is None, those chosen by kind."""
    if given is None:
        return choose_canaries(columns)
    known = {column.name for column in columns}  # of a version that may be older than the params
    return tuple(canary for canary in given if known.issuperset(canary.changes))


def list_segments(canaries: Sequence[Canary]) -> list[str]:
    """The columns by which canaries choose their categories, in addition to those that a detector reads."""
    return [canary.segment for canary in canaries if isinstance(canary, CategoryCanary) and canary.segment]


def measure_recall(
    detector: Detector,
    columns: Sequence[Column],
    reference: Reference,
    rows: pa.Table,
    canaries: Sequence[Canary],
    seed: int,
    most: int = CANARY_ROWS,
) -> dict[str, float]:
    """By name, the share of each canary's rows that become alerts; at most `most` rows each, drawn by the seed.

    columns: of the version that the reference is of, so that two versions can be given the same canaries. A canary
    whose segment the rows lack is left out: they were validated without it.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    for canary in canaries if rows.num_rows else ():
        if not {*list_segments([canary])} <= {*rows.column_names}:
            continue
        chosen = np.sort(rng.choice(rows.num_rows, min(most, rows.num_rows), replace=False))
        judged = judge(detector, make_canary(rows.take(pa.array(chosen)), canary, columns, reference, rng))
        found[name_canary(canary)] = float(judged.is_alert.mean())
    return found


def make_canary(
    rows: pa.Table, canary: Canary, columns: Sequence[Column], reference: Reference, rng: np.random.Generator
) -> pa.Table:
    """The rows with a column shifted, two columns swapped, or a category that does not belong to them."""
    if isinstance(canary, SwapCanary):
        first, second = canary.columns
        return _replace(_replace(rows, first, rows[second]), second, rows[first])
    if isinstance(canary, ShiftCanary):
        bins = reference[canary.column]
        values = rescale(bins.kind, rows[canary.column].cast(pa.float64(), safe=False).to_numpy())
        moved = unscale(bins.kind, values + canary.spreads * (bins.spread or 1.0))
        if pa.types.is_integer(rows.schema.field(canary.column).type):
            moved = np.clip(np.rint(moved), -LARGEST, LARGEST)
        return _replace(rows, canary.column, pa.array(moved, from_pandas=True))
    if canary.segment is not None:
        return _replace(rows, canary.column, _take_from_other_segments(rows, canary.column, canary.segment, rng))
    vocabulary = next(column.vocabulary for column in columns if column.name == canary.column)
    known = [vocabulary[code] for code in reference[canary.column].codes if code < len(vocabulary)]
    return _replace(rows, canary.column, pa.array(known[-1:] * rows.num_rows)) if known else rows


def _take_from_other_segments(rows: pa.Table, column: str, segment: str, rng: np.random.Generator) -> pa.ChunkedArray:
    """A column's values, each from a row of another segment, if there is one."""
    segments = np.array(rows[segment].cast(pa.string()).to_pylist(), dtype=object)
    order = rng.permutation(rows.num_rows)
    source = np.arange(rows.num_rows)
    for row in range(rows.num_rows):
        others = order[segments[order] != segments[row]]
        source[row] = others[row % len(others)] if len(others) else row
    return rows[column].take(pa.array(source))


def _replace(rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    field = rows.schema.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, values.cast(field.type, safe=False))
