"""Nights in which far more rows are flagged than the threshold explains, and the column that they have in common."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from tasks.rows.describe import show_value

REAL_ANOMALIES = 3  # times the false alarms, so that a night with many real anomalies is not an alarm in itself


def is_excess(flagged: int, scored: int, most_false_alarms: float) -> bool:
    """Whether more rows are flagged than false alarms and a usual number of anomalies explain.

    most_false_alarms: the upper end of the 95 % interval of the threshold's false-alarm rate. The limit is three times
    that share of the rows, and four standard deviations of a binomial count above it.
    """
    expected = REAL_ANOMALIES * most_false_alarms * scored
    return flagged > expected + 4 * math.sqrt(expected) + 4


def describe_excess(flagged: int, scored: int, most_false_alarms: float, causes: Iterable[str]) -> str:
    """The excess and its likeliest cause, as one sentence. causes: those of the night's flags, as JSON texts."""
    suspect = find_suspect(causes)
    return (
        f"{flagged / scored:.1%} of the rows are flagged, where normal rows are at most {most_false_alarms:.2%}: "
        + (f"{suspect}; " if suspect else "")
        + "the file may be sorted, come from another population, or have a column with another unit or a wrong time"
    )


def find_suspect(causes: Iterable[str]) -> str:
    """The column with the largest mean share of the flags' scores, and its usual value in them; "" without any."""
    shares: dict[str, float] = defaultdict(float)
    named: dict[str, list[dict[str, Any]]] = defaultdict(list)
    total = 0.0
    for text in causes:
        found = json.loads(text)
        whole = sum(cause["share"] for cause in found)
        for cause in found if whole > 0 else []:
            shares[cause["column"]] += cause["share"] / whole
            named[cause["column"]].append(cause)
        total += whole > 0
    shares.pop("other", None)
    if not shares:
        return ""
    column = max(shares, key=lambda name: shares[name])
    numbers = [(cause.get("actual"), cause.get("expected")) for cause in named[column]]
    pairs = [(a, e) for a, e in numbers if isinstance(a, int | float) and isinstance(e, int | float)]
    usual = ""
    if len(pairs) > len(numbers) / 2:
        actual, expected = (median(side) for side in zip(*pairs, strict=True))
        usual = f" (usually {show_value(actual)}, where {show_value(expected)} is expected)"
    return f"{shares[column] / total:.0%} of their scores come from {column}{usual}"
