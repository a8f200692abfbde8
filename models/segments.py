"""A threshold for each segment, such as a country, where it has enough calibration rows; otherwise the pooled one.

In: calibration scores (n,) and the segment of each. Conditional on the segment, the rate of false alarms is then as
exact as the pooled one is overall (Mondrian conformal prediction: Vovk, Gammerman & Shafer 2005, section 4.5).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration import Floats, Threshold, fit_threshold, rows_for_quantile, spend_budget
from models.errors import NightjarError, TooFewRows
from models.params import AlarmBudgetPolicy, QuantilePolicy, ThresholdParams

Names = NDArray[np.object_]  # text, or None


@dataclass(frozen=True)
class Segments:
    """The column that names segments, and the thresholds of those that have their own."""

    column: str
    thresholds: Mapping[str, Threshold]


def fit_segments(
    scores: Floats,
    column: str,
    names: Names,
    policy: ThresholdParams,
    rows_per_night: float = np.nan,
    trims: bool = False,
) -> Segments:
    """Fit the policy on the scores of each segment, names (n,); one with too few rows for the policy gets none.

    An alarm budget is shared: each segment gets the quantile that spends it over all rows. Raises NightjarError for
    another policy than these two, and TooFewRows if no segment has enough rows.
    """
    if isinstance(policy, AlarmBudgetPolicy):
        policy = spend_budget(policy, rows_per_night)
    if not isinstance(policy, QuantilePolicy):
        raise NightjarError(
            f"The policy {policy.kind} has no thresholds for segments.",
            got=f"calibrate.by {column} with threshold.kind {policy.kind}",
            expected="the policy quantile or alarm_budget",
            todo="change calibrate.threshold, or remove calibrate.by",
        )
    found: dict[str, Threshold] = {}
    most = 0
    order = np.argsort(names.astype(str), kind="stable")
    order = order[names[order] != None]  # noqa: E711 - elementwise
    ends = np.flatnonzero(names[order][1:] != names[order][:-1]) + 1
    for rows in np.split(order, ends) if len(order) else []:
        name, own = names[rows[0]], scores[rows]
        most = max(most, len(own))
        try:
            found[name] = fit_threshold(own, policy, trims=trims)
        except TooFewRows:
            continue
    if not found:
        raise TooFewRows(
            f"No segment has enough calibration rows for a threshold of its own: calibrate.by {column}.",
            got=f"at most {most:,} rows in one segment",
            expected=f"at least {rows_for_quantile(policy.q):,} rows for the quantile {policy.q:.6g}",
            todo="calibrate on more days, lower threshold.q, or remove calibrate.by",
        )
    return Segments(column, found)
