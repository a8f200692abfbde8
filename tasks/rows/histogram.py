"""The histogram of a batch's scores, counted by DuckDB; the threshold is an edge: no bin holds flags and other rows."""

import math
from dataclasses import dataclass

import numpy as np

from tasks.rows.limits import LIMIT, has_limits
from tasks.stores.lake import Lake, Manifest

BINS = 60
SMALLEST = 1e-12  # the axis is logarithmic; lower scores are counted here


@dataclass(frozen=True)
class Histogram:
    """Counts of rows by score: edges (B + 1,), equally spaced in the logarithm on each side of the threshold.

    counts (B,). usual: the number of bins up to the threshold; the rows of the others are flagged.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    usual: int


def count_scores(lake: Lake, scores: Manifest, threshold: float) -> Histogram | None:
    """The histogram of a batch's scores; None if no rows were scored.

    Where thresholds go by segment, a score is drawn as the same multiple of `threshold` as it is of its own.
    """
    if not scores.parts:
        return None
    shown, limit_of_row = "score", f"{threshold!r}"
    if has_limits(lake, scores.parts):
        shown, limit_of_row = f"score / greatest({LIMIT}, {SMALLEST!r}) * {threshold!r}", LIMIT
    height, is_flag = f"log10(greatest({shown}, {SMALLEST!r}))", f"score > {limit_of_row}"
    sql = f"select min({height}), max({height}), not bool_and({is_flag}), bool_or({is_flag}) from parts"  # noqa: S608
    low, high, has_usual, has_flags = lake.query(sql, scores.parts).to_pylist()[0].values()
    limit, usual = (high, BINS) if has_usual else (low, 0)
    if has_usual and has_flags:
        limit = min(max(math.log10(max(threshold, SMALLEST)), low), high)
        usual = min(max(round(BINS * (limit - low) / (high - low or 1.0)), 1), BINS - 1)
    edges = [*np.linspace(low, limit, usual, endpoint=False), *np.linspace(limit, high, BINS - usual + 1)]
    below = _name_bin(height, low, limit, usual)
    above = f"{usual} + {_name_bin(height, limit, high, BINS - usual)}"
    number = f"(case when {is_flag} then {above} else {below} end)::int"
    sql = f"select {number} as bin, count(*) as n from parts group by 1"  # noqa: S608
    rows = lake.query(sql, scores.parts)
    counts = dict(zip(rows["bin"].to_pylist(), rows["n"].to_pylist(), strict=True))
    return Histogram(tuple(float(10**edge) for edge in edges), tuple(counts.get(n, 0) for n in range(BINS)), usual)


def _name_bin(height: str, low: float, high: float, bins: int) -> str:
    """SQL for the number of the bin in which a height is, of `bins` between low and high."""
    step = (high - low) / max(bins, 1) or 1.0
    return f"greatest(0, least(floor(({height} - ({low!r})) / {step!r}), {bins - 1}))"
