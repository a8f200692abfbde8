"""Charts as shapes on a canvas of WIDTH x HEIGHT; templates/charts.html draws them as SVG. Nothing here needs torch."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.rows.histogram import SMALLEST, Histogram

WIDTH, HEIGHT = 1000, 200
TREND_DAYS = 30
DECADES = (1, 10, 100, 1000, 10**4, 10**5, 10**6, 10**7)

Chart = dict[str, Any]
Points = npt.NDArray[np.float64]


def lay_out_histogram(histogram: Histogram, threshold: float) -> Chart:
    """Bars of rows by score, both axes logarithmic, with decade ticks and the threshold."""
    low, high = math.log10(histogram.edges[0]), math.log10(histogram.edges[-1])
    tallest = math.log10(1 + max(histogram.counts))

    def across(score: float) -> float:
        return round(WIDTH * (math.log10(score) - low) / (high - low or 1.0), 1)

    def up(rows: int) -> float:
        return round(HEIGHT * math.log10(1 + rows) / tallest, 1)

    bars = [
        {"x": across(start), "width": across(end) - across(start), "height": up(count),
         "flagged": number >= histogram.usual, "title": f"{count:,} rows from {start:.3g} to {end:.3g}"}
        for number, (start, end, count)
        in enumerate(zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False))
        if count
    ]  # fmt: skip
    ticks = [(across(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)]
    grid = [(up(rows), f"{rows:,}") for rows in DECADES if up(rows) <= HEIGHT]
    place = across(max(threshold, SMALLEST)) if threshold > 0 else 0.0
    return {
        "bars": bars,
        "ticks": ticks,
        "grid": grid,
        "threshold": min(max(place, 0.0), float(WIDTH)),
        "label": f"threshold {threshold:.4g}",
        "axis": "score (higher = more anomalous); bar height: rows",
    }


def lay_out_trend(counts: Mapping[date, int], usual: Mapping[date, float], last: date) -> Chart:
    """Bars of flags per night over the TREND_DAYS up to a date; those above the night's usual most are marked.

    usual: the most flags that are usual, by date; not every night has one.
    """
    days = [last - timedelta(days=back) for back in reversed(range(TREND_DAYS))]
    most = max([*(counts.get(day, 0) for day in days), *(usual.get(day, 0) for day in days), 1])
    step = WIDTH / TREND_DAYS
    bars, band = [], []
    for place, day in enumerate(days):
        x = round(place * step, 1)
        if day in usual:
            band.append({"x": x, "width": round(step, 1), "height": round(HEIGHT * usual[day] / most, 1)})
        if day in counts:
            limit = f", up to {usual[day]:,.0f} is usual" if day in usual else ""
            bars.append({
                "x": x + 4, "width": round(step - 8, 1), "height": round(HEIGHT * counts[day] / most, 1),
                "flagged": counts[day] > usual.get(day, math.inf), "title": f"{day}: {counts[day]:,} flags{limit}",
            })  # fmt: skip
    ticks = [(round((place + 0.5) * step, 1), f"{day:%m-%d}") for place, day in enumerate(days) if place % 7 == 1]
    return {"bars": bars, "band": band, "ticks": ticks, "grid": _choose_grid(most, 1), "axis": "flags per night"}


def lay_out_hours(groups: Sequence[Mapping[Any, Any]], extreme: float) -> Chart:
    """Bars of the mean score of each hour, those with a rank above `extreme` marked. groups: rows of group_scores."""
    hours = sorted(((datetime.fromisoformat(one["group"]), one) for one in groups), key=lambda hour: hour[0])
    most = max((one["score"] for _, one in hours), default=0.0) or 1.0
    step = WIDTH / max(len(hours), 24)
    bars = [
        {"x": round(place * step + 2, 1), "width": round(step - 4, 1), "height": round(HEIGHT * one["score"] / most, 1),
         "flagged": one["rank"] > extreme,
         "title": f"{hour:%H:%M}: {one['records']:,} records, mean score {one['score']:.4g}"}
        for place, (hour, one) in enumerate(hours)
    ]  # fmt: skip
    ticks = [(round((place + 0.5) * step, 1), f"{hour:%H}") for place, (hour, _) in enumerate(hours)]
    return {"bars": bars, "ticks": ticks, "grid": _choose_grid(most), "axis": "mean score by hour"}


def lay_out_points(places: Points, is_flagged: npt.NDArray[np.bool_]) -> Chart:
    """Points (N, 2) as two paths, those that are flagged on top; the outermost 0.5 % lie on the edge."""
    low, high = np.quantile(places, [0.005, 0.995], axis=0)
    margin = np.where(high > low, (high - low) * 0.05, 1.0)
    scaled = ((places - low + margin) / (high - low + 2 * margin)).clip(0, 1)
    spots = np.round(scaled * (WIDTH, 2 * HEIGHT)).astype(int)
    usual, flagged = (
        "".join(f"M{x} {2 * HEIGHT - y}h0" for x, y in np.unique(spots[mask], axis=0))
        for mask in (~is_flagged, is_flagged)
    )
    return {"usual": usual, "flagged": flagged, "rows": len(places), "flags": int(is_flagged.sum())}


def _choose_grid(most: float, least: float = 0.0) -> list[tuple[float, str]]:
    """Up to five round values up to the largest, with their heights. least: the smallest step between them."""
    power = 10.0 ** math.floor(math.log10(most))
    step = max(least, next(power * part for part in (0.2, 0.5, 1, 2) if most / (power * part) <= 5))
    return [(round(HEIGHT * step * n / most, 1), f"{step * n:,g}") for n in range(1, int(most / step) + 1)]
