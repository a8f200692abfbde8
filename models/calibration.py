"""Thresholds, percentile ranks and p-values from the scores of clean rows that were not used for fitting.

Input: float64 scores (n,). A record is flagged when its score is strictly greater than the threshold. The quantile
threshold is exact for finite n: Vovk 2012, arXiv:1209.2673. p-values: Bates et al. 2023, arXiv:2104.08279.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.errors import NightjarError, TooFewRows
from models.params import AlarmBudgetPolicy, FixedPolicy, QuantilePolicy, ThresholdParams

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Threshold:
    """The threshold, and the share of clean records that it will flag: estimate and 95 % interval, from n rows."""

    value: float
    policy: ThresholdParams
    n: int
    false_alarm_rate: float
    interval_low: float
    interval_high: float


@dataclass(frozen=True)
class Tuning:
    """Scores (m,) of labelled rows and whether each is an anomaly, bool (m,)."""

    scores: Floats
    is_anomaly: NDArray[np.bool_]


def fit_threshold(
    scores: Floats, policy: ThresholdParams, tuning: Tuning | None = None, rows_per_night: float = math.nan
) -> Threshold:
    """Find the policy's threshold and the share of clean records above it.

    Only best_f_beta uses tuning, only alarm_budget uses rows_per_night. Raises TooFewRows if there are too few rows for
    the quantile, the requested width or the search, and NightjarError if a budget is not smaller than a night.
    """
    if len(scores) == 0:
        raise TooFewRows("There are no calibration rows.", got="0 rows", expected="at least 1 row")
    if not np.isfinite(scores).all():
        raise NightjarError(
            "Some calibration scores are not finite.",
            got=f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores",
            expected="finite scores",
            todo="fit the detector again and check its losses",
        )
    if isinstance(policy, QuantilePolicy):
        return _fit_quantile(np.sort(scores), policy)
    if isinstance(policy, AlarmBudgetPolicy):
        return replace(_fit_quantile(np.sort(scores), _spend(policy, rows_per_night)), policy=policy)
    value = policy.value if isinstance(policy, FixedPolicy) else _search_f_beta(tuning, policy.beta)
    # The value does not depend on these rows, so the number above it is binomial: Clopper & Pearson 1934.
    n, above = len(scores), int(np.count_nonzero(scores > value))
    low, high = _bound_low(above, n + 1 - above), _bound_high(above + 1, n - above)
    return Threshold(value, policy, n, above / n, low, high)


def percentile_ranks(scores: Floats, calibration: Floats) -> Floats:
    """Share of calibration scores (sorted) strictly below each score, 0 to 100."""
    below: Floats = np.searchsorted(calibration, scores, side="left").astype(np.float64)
    return below / len(calibration) * 100


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-value, (1 + number of calibration scores (sorted) >= score) / (n + 1): small is anomalous."""
    below = np.searchsorted(calibration, scores, side="left")
    return (1.0 + len(calibration) - below) / (len(calibration) + 1)


def _fit_quantile(ordered: Floats, policy: QuantilePolicy) -> Threshold:
    """Take the k-th smallest score; the false-alarm rate then follows Beta(n + 1 - k, k) for any score distribution.

    If the k-th score is tied with later ones, up to the u-th, fewer records exceed it: the upper bound stays valid, the
    lower bound becomes that of the n - u scores above the tie, and the estimate counts from u.
    """
    n = len(ordered)
    k = _rank(n, policy.q)
    if k > n:
        needed = rows_for_quantile(policy.q)
        raise TooFewRows(
            f"There are too few calibration rows for the quantile {policy.q}.",
            got=f"{n} rows",
            expected=f"at least {needed} rows: {needed - n} are missing",
            todo="calibrate on more days, or lower threshold.q",
        )
    _check_width(n, policy)
    value = float(ordered[k - 1])
    u = int(np.searchsorted(ordered, value, side="right"))
    low = _bound_low(n + 1 - k, k) if u == k else _bound_low(n - u, u + 1)
    return Threshold(value, policy, n, (n + 1 - u) / (n + 1), low, _bound_high(n + 1 - k, k))


def _spend(policy: AlarmBudgetPolicy, rows_per_night: float) -> QuantilePolicy:
    if not policy.false_alarms_per_night < rows_per_night:
        raise NightjarError(
            "The alarm budget is not smaller than a night.",
            got=f"{policy.false_alarms_per_night:g} false alarms per night of {rows_per_night:g} rows",
            expected="fewer false alarms than rows",
            todo="lower threshold.false_alarms_per_night",
        )
    return QuantilePolicy(q=1 - policy.false_alarms_per_night / rows_per_night)


def _check_width(n: int, policy: QuantilePolicy) -> None:
    limit = policy.max_interval_width
    if limit is None or _width(n, policy.q) <= limit:
        return
    too_few = needed = n
    while _width(needed, policy.q) > limit:
        too_few, needed = needed, 2 * needed
    while needed - too_few > 1:
        middle = (too_few + needed) // 2
        too_few, needed = (too_few, middle) if _width(middle, policy.q) <= limit else (middle, needed)
    raise TooFewRows(
        "There are too few calibration rows for the requested accuracy of the false-alarm rate.",
        got=f"{n} rows, a 95 % interval {_width(n, policy.q):.4g} wide",
        expected=f"at most {limit:g} wide, from about {needed} rows: {needed - n} are missing",
        todo="calibrate on more days, or raise threshold.max_interval_width",
    )


def _rank(n: int, q: float) -> int:
    # Decimal q as written: in floats 100 * 0.07 is 7.000000000000001, and its ceiling 8.
    return math.ceil((n + 1) * Fraction(str(q)))


def rows_for_quantile(q: float) -> int:
    """The smallest number of calibration rows for the quantile q."""
    exact = Fraction(str(q))
    return math.ceil(exact / (1 - exact))


def _width(n: int, q: float) -> float:
    k = _rank(n, q)
    return _bound_high(n + 1 - k, k) - _bound_low(n + 1 - k, k)


def _bound_low(a: int, b: int) -> float:
    return _beta_quantile(a, b, (1 - CONFIDENCE) / 2) if a > 0 else 0.0


def _bound_high(a: int, b: int) -> float:
    return _beta_quantile(a, b, (1 + CONFIDENCE) / 2) if b > 0 else 1.0


def _beta_quantile(a: int, b: int, share: float) -> float:
    from scipy.special import betaincinv  # type: ignore[import-untyped] # 0.3 s, which scoring does without

    return float(betaincinv(a, b, share))


def _search_f_beta(tuning: Tuning | None, beta: float) -> float:
    """Search all gaps between tuning scores; return the middle of the best gap, of equal ones the highest."""
    anomalies = 0 if tuning is None else int(tuning.is_anomaly.sum())
    rows = 0 if tuning is None else len(tuning.scores)
    if tuning is None or anomalies == 0 or anomalies == rows:
        raise TooFewRows(
            "The best F-beta threshold needs labelled tuning rows of both kinds.",
            got=f"{anomalies} anomalies among {rows} tuning rows",
            expected="at least 1 anomaly and 1 normal row",
            todo="widen the tuning dates, or use the quantile policy",
        )
    descending = np.argsort(-tuning.scores, kind="stable")
    scores, hits = tuning.scores[descending], np.cumsum(tuning.is_anomaly[descending])  # (m,)
    flagged = np.arange(1, rows + 1)
    f_beta = (1 + beta**2) * hits / (beta**2 * anomalies + flagged)
    next_lower = np.append(scores[1:], -np.inf)
    f_beta[scores == next_lower] = -1.0  # no threshold inside a tie
    best = int(np.argmax(f_beta))
    if best == rows - 1:
        return float(np.nextafter(scores[best], -np.inf))
    middle = scores[best] / 2 + scores[best + 1] / 2
    # Between adjacent floats the middle may round up to the higher one, which must be flagged.
    return float(middle if middle < scores[best] else scores[best + 1])
