"""Thresholds, percentile ranks and p-values from the scores of clean rows that were not used for fitting.

Input: float64 scores (n,). A record is flagged when its score is strictly greater than the threshold. The quantile
threshold is exact for finite n: Vovk 2012, arXiv:1209.2673. p-values: Bates et al. 2023, arXiv:2104.08279. Rows
without labels may hide anomalies: scores beyond the tail of the others are left out, see `count_suspects`.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.errors import NightjarError, TooFewRows
from models.params import (
    AlarmBudgetPolicy,
    FalseDiscoveryPolicy,
    FixedPolicy,
    QuantilePolicy,
    RecallPolicy,
    ThresholdParams,
)

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
TAIL = 0.7, 0.9  # the scores whose tail is extended: above normal noise, below up to 10 % of anomalies
SURE = 3  # standard deviations by which the highest scores must outnumber that tail
FEWEST_DAYS = 5  # of calibration, to measure how much days vary
MOST_CORRELATED = 0.5  # rows of one night


@dataclass(frozen=True)
class Recall:
    """How many known anomalies of the tuning rows a threshold flags, and the 95 % interval of its recall."""

    flagged: int
    anomalies: int
    interval_low: float
    interval_high: float

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.flagged / self.anomalies:.1%} of anomalies (95 % interval {self.interval_low:.1%} to "
            f"{self.interval_high:.1%}, from {self.anomalies:,} known ones)"
        )


@dataclass(frozen=True)
class Threshold:
    """The threshold, and the share of clean records that it will flag: estimate and 95 % interval, from n rows.

    trimmed: how many of the highest scores were also left out; the interval holds whether they are anomalies or not.
    recall: of a threshold that was chosen for it. With a false-discovery rate each night has a threshold of its own,
    see `discover`; this one is that of a record judged alone, as the only anomaly of a night.
    """

    value: float
    policy: ThresholdParams
    n: int
    false_alarm_rate: float
    interval_low: float
    interval_high: float
    # Omitted at 0, so that bundles calibrated on all their rows keep their bytes.
    trimmed: Annotated[int, Field(exclude_if=lambda given: not given)] = 0
    recall: Annotated[Recall | None, Field(exclude_if=lambda given: given is None)] = None

    @property
    def discovery_rate(self) -> float | None:
        """The false-discovery rate by which each night gets a threshold of its own; None if all have the same."""
        return self.policy.at_most if isinstance(self.policy, FalseDiscoveryPolicy) else None


@dataclass(frozen=True)
class FalseAlarms:
    """How many of a night's normal rows will be flagged: the expected number, and the ends of its interval.

    spread: see `measure_spread`. discovery_rate: the share of a night's flags that are false alarms is at most this on
    average; None for a threshold that is the same every night.
    """

    rows: int
    expected: float
    low: int
    high: int
    spread: float
    discovery_rate: float | None = None

    def __str__(self) -> str:
        """In words."""
        if self.discovery_rate is not None:
            return (
                "each night has its own threshold, so that on average at most "
                f"{100 * self.discovery_rate:.3g} % of its flags are false alarms"
            )
        varied = f"; the variance between days is {self.spread:.1f} times that of chance" if self.spread >= 1.05 else ""
        return (
            f"{self.expected:,.{0 if self.expected >= 10 else 1}f} false alarms are expected in a night of "
            f"{self.rows:,} normal rows (95 % of such nights: {self.low:,} to {self.high:,}{varied})"
        )


@dataclass(frozen=True)
class Tuning:
    """Scores (m,) of labelled rows and whether each is an anomaly, bool (m,)."""

    scores: Floats
    is_anomaly: NDArray[np.bool_]


def fit_threshold(
    scores: Floats,
    policy: ThresholdParams,
    tuning: Tuning | None = None,
    rows_per_night: float = math.nan,
    trims: bool = False,
) -> Threshold:
    """Find the policy's threshold and the share of clean records above it.

    Only best_f_beta and recall use tuning; only alarm_budget and false_discovery_rate use rows_per_night. trims: some
    rows may be anomalies, so the suspects of `count_suspects` are left out, as long as enough rows for the quantile
    remain. Raises TooFewRows if there are too few rows for the quantile, the requested width, the search or a single
    discovery, and NightjarError if a budget is not smaller than a night.
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
    ordered = np.sort(scores)
    trimmed = count_suspects(ordered) if trims else 0
    if isinstance(policy, QuantilePolicy):
        return _fit_quantile(ordered, policy, trimmed)
    if isinstance(policy, AlarmBudgetPolicy):
        return replace(_fit_quantile(ordered, spend_budget(policy, rows_per_night), trimmed), policy=policy)
    if isinstance(policy, FalseDiscoveryPolicy):
        return _fit_alone(ordered, policy, rows_per_night, trimmed)
    recall = None
    if isinstance(policy, RecallPolicy):
        value, recall = keep_recall(tuning, policy.at_least)
    else:
        value = policy.value if isinstance(policy, FixedPolicy) else search_f_beta(tuning, policy.beta)
    # The value does not depend on these rows, so the number above it is binomial: Clopper & Pearson 1934.
    n = len(scores) - trimmed
    above = int(np.count_nonzero(ordered[:n] > value))
    low, high = _bound_low(above, n + 1 - above), _bound_high(above + trimmed + 1, n - above)
    return Threshold(value, policy, n, above / n, low, high, trimmed, recall)


def count_suspects(ordered: Floats) -> int:
    """How many more high scores (sorted) there are than the tail of the others predicts; 0 unless it is beyond chance.

    Between the quantiles of `TAIL`, scores are taken to fall like a Pareto tail, fitted by likelihood with the higher
    scores as censored (Hill 1975, doi:10.1214/aos/1176343247). Scores of normal rows mostly fall faster further out, so
    few are beyond the extended tail. The excess is counted where it is surest, by `SURE` standard deviations at least.
    """
    n = len(ordered)
    start, end = (int(share * n) for share in TAIL)
    if start == 0 or not ordered[start - 1] > 0:
        return 0  # too few rows, or no tail
    distances = np.log(ordered[start:]) - np.log(ordered[start - 1])
    fitted = end - start
    length = distances[:fitted].sum() + (n - end) * distances[fitted - 1]
    if fitted == 0 or length == 0:
        return 0  # a tail of equal scores, or of scores with equal logarithms
    rate = fitted / length
    beyond = distances[fitted:]
    found = np.arange(n - end, 0, -1)  # scores at least as high
    expected = (n - start) * np.exp(-rate * beyond)
    # Chance in the count, of one at least, and in the rate, whose relative deviation is fitted ** -0.5.
    deviation = np.sqrt(expected + 1 + (expected * rate * beyond) ** 2 / fitted)
    excess = found - expected
    place = int(np.argmax(excess - SURE * deviation))
    return round(float(excess[place])) if excess[place] > SURE * deviation[place] else 0


def percentile_ranks(scores: Floats, calibration: Floats) -> Floats:
    """Share of calibration scores (sorted) strictly below each score, 0 to 100."""
    return _count_below(scores, calibration).astype(np.float64) / len(calibration) * 100


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-value, (1 + number of calibration scores (sorted) >= score) / (n + 1): small is anomalous."""
    return (1.0 + len(calibration) - _count_below(scores, calibration)) / (len(calibration) + 1)


def bound_discoveries(calibration: Floats, rate: float) -> float:
    """The score that all discoveries exceed: a p-value above the rate never is one. calibration: sorted, (n,)."""
    return float(calibration[len(calibration) - _count_steps(calibration, rate)])


def discover(calibration: Floats, scores: Floats, rows: int, rate: float) -> float:
    """The threshold of one night at a false-discovery rate (Benjamini & Hochberg 1995) over its conformal p-values.

    In: sorted calibration scores (n,), and the scores (M,) above `bound_discoveries` of a night of `rows` rows. Where k
    rows have a p-value of at most k * rate / rows, they are flagged, with the largest such k; without one nothing is.
    The p-values share their calibration scores; the rate holds all the same (Bates et al. 2023, theorem 2).
    """
    steps, n = _count_steps(calibration, rate), len(calibration)
    above = n - _count_below(scores, calibration)  # calibration scores at least as high: p = (1 + above) / (n + 1)
    found = np.bincount(above[above < steps], minlength=steps).cumsum()  # rows by their highest p-value
    exact = Fraction(str(rate))
    passed = [step for step in range(steps) if (step + 1) * rows <= exact * int(found[step]) * (n + 1)]
    if not passed:
        return float(max(calibration[-1], scores.max(initial=-np.inf)))
    return float(calibration[n - 1 - passed[-1]])


def _count_steps(calibration: Floats, rate: float) -> int:
    """How many of the n + 1 possible p-values are at most the rate."""
    return math.floor((len(calibration) + 1) * Fraction(str(rate)))


def _count_below(scores: Floats, calibration: Floats) -> NDArray[np.int64]:
    order = np.argsort(scores)  # neighbours are found in the cache: a third of the time
    below = np.empty(len(scores), dtype=np.int64)
    below[order] = np.searchsorted(calibration, scores[order], side="left")
    return below


def _fit_quantile(ordered: Floats, policy: QuantilePolicy, trimmed: int) -> Threshold:
    """Take the k-th smallest score; the false-alarm rate then follows Beta(n + 1 - k, k) for any score distribution.

    If the k-th score is tied with later ones, up to the u-th, fewer records exceed it: the upper bound stays valid, the
    lower bound becomes that of the n - u scores above the tie, and the estimate counts from u. The upper bound counts
    the trimmed scores as normal ones above the threshold, the lower bound and the estimate do not.
    """
    trimmed = max(0, min(trimmed, len(ordered) - rows_for_quantile(policy.q)))
    n = len(ordered) - trimmed
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
    u = int(np.searchsorted(ordered[:n], value, side="right"))
    low = _bound_low(n + 1 - k, k) if u == k else _bound_low(n - u, u + 1)
    high = _bound_high(n + trimmed + 1 - k, k)
    return Threshold(value, policy, n, (n + 1 - u) / (n + 1), low, high, trimmed)


def _fit_alone(ordered: Floats, policy: FalseDiscoveryPolicy, rows_per_night: float, trimmed: int) -> Threshold:
    """Take the quantile above which a record is flagged that is the only anomaly of a night."""
    q = 1 - policy.at_most / rows_per_night
    needed = rows_for_quantile(q)
    if len(ordered) < needed:
        raise TooFewRows(
            f"There are too few calibration rows for a false-discovery rate of {policy.at_most:g}.",
            got=f"{len(ordered)} rows: a single anomaly in a night of {rows_per_night:.0f} rows could never be flagged",
            expected=f"at least {needed} rows: {needed - len(ordered)} are missing",
            todo="calibrate on more days, or raise threshold.at_most",
        )
    return replace(_fit_quantile(ordered, QuantilePolicy(q=q), trimmed), policy=policy)


def spend_budget(policy: AlarmBudgetPolicy, rows_per_night: float) -> QuantilePolicy:
    """The quantile that spends an alarm budget. Raises NightjarError if the budget is not smaller than a night."""
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


def rows_for_loss(loss: float, confidence: float) -> int:
    """The smallest number of confirmed anomalies that bounds a loss of recall with this confidence (Wilks 1941)."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - loss))


def bound_quantile(ordered: Floats, q: float) -> tuple[float, float]:
    """Two of the sorted scores (n,) between which the true quantile q lies with 95 % confidence.

    The number of scores below it is binomial, whatever their distribution; -inf or inf where n is too small.
    """
    from scipy.special import betainc  # type: ignore[import-untyped]

    n, tail = len(ordered), (1 - CONFIDENCE) / 2
    below = np.arange(n)
    at_most = betainc(n - below, below + 1, 1 - q)  # the probability that at most `below` lie below it
    low, high = int(np.searchsorted(at_most, tail, side="right")), int(np.searchsorted(at_most, 1 - tail))
    return float(ordered[low - 1]) if low else -math.inf, float(ordered[high]) if high < n else math.inf


def measure_spread(is_flagged: NDArray[np.bool_], days: NDArray[np.int64]) -> float:
    """The variance of the numbers of flags between days, as a multiple of that of chance; at least 1.

    In: calibration rows, flagged or not and their days (n,). Pearson's statistic per degree of freedom (McCullagh &
    Nelder 1989, section 4.5); 1 with fewer than FEWEST_DAYS days or without flags.
    """
    _, day, rows = np.unique(days, return_inverse=True, return_counts=True)
    rate = is_flagged.mean() if len(is_flagged) else 0.0
    if len(rows) < FEWEST_DAYS or not 0 < rate < 1:
        return 1.0
    flags = np.bincount(day, weights=is_flagged)
    statistic = ((flags - rows * rate) ** 2 / (rows * rate * (1 - rate))).sum()
    return max(1.0, float(statistic / (len(rows) - 1)))


def expect_false_alarms(
    threshold: Threshold, rows: int, spread: float = 1.0, outside: float = 1 - CONFIDENCE
) -> FalseAlarms:
    """How many of the next `rows` normal rows exceed the threshold; at most a share `outside` of nights is beyond.

    Exact with spread 1, for rows that could be exchanged with the calibration rows: the number above the k-th smallest
    of n scores is beta-binomial with the Beta(n + 1 - k, k) of the rate (Gumbel & von Schelling 1950,
    doi:10.1214/aoms/1177729842). With ties, suspects, or a threshold that does not depend on the scores, the ends are
    those of two beta-binomials (Thatcher 1964, doi:10.1111/j.2517-6161.1964.tb00550.x), and fewer nights are beyond.
    A larger spread multiplies the variance.
    """
    from scipy.stats import betabinom  # type: ignore[import-untyped] # a second to import

    low, high = (widen(*pair, rows, spread) for pair in find_betas(threshold))
    least = betabinom.ppf(outside / 2, rows, *low) if low[0] else 0
    most = betabinom.ppf(1 - outside / 2, rows, *high) if high[1] else rows
    expected = threshold.false_alarm_rate * rows
    return FalseAlarms(rows, expected, int(least), int(most), spread, threshold.discovery_rate)


def widen(a: float, b: float, rows: int, spread: float) -> tuple[float, float]:
    """The beta distribution of the same mean whose beta-binomial of `rows` rows has `spread` times the variance."""
    if spread == 1 or rows < 2:
        return a, b
    correlation = min((spread * (1 + (rows - 1) / (a + b + 1)) - 1) / (rows - 1), MOST_CORRELATED)
    factor = (1 / correlation - 1) / (a + b)
    return a * factor, b * factor


def find_betas(threshold: Threshold) -> tuple[tuple[int, int], tuple[int, int]]:
    """The beta distributions of which the rate's interval has its lower and its upper end; (0, b) or (a, 0): 0 or 1."""
    lower, higher = threshold.n + 1, threshold.n + threshold.trimmed + 1
    # The ends rise with a, by more than rounding can move them.
    low = bisect_left(range(lower), threshold.interval_low * (1 - 1e-9), key=lambda a: _bound_low(a, lower - a))
    high = bisect_left(range(1, higher), threshold.interval_high * (1 - 1e-9), key=lambda a: _bound_high(a, higher - a))
    return (low, lower - low), (high + 1, higher - high - 1)


def _width(n: int, q: float) -> float:
    k = _rank(n, q)
    return _bound_high(n + 1 - k, k) - _bound_low(n + 1 - k, k)


def _bound_low(a: int, b: int) -> float:
    return _beta_quantile(a, b, (1 - CONFIDENCE) / 2) if a > 0 else 0.0


def _bound_high(a: int, b: int) -> float:
    return _beta_quantile(a, b, (1 + CONFIDENCE) / 2) if b > 0 else 1.0


def _beta_quantile(a: int, b: int, share: float) -> float:
    from scipy.special import betaincinv  # 0.3 s, which scoring does without

    return float(betaincinv(a, b, share))


def keep_recall(tuning: Tuning | None, at_least: float) -> tuple[float, Recall]:
    """The highest threshold that a new anomaly exceeds with this probability, and its recall; exact for finite m.

    It lies just below the k-th smallest score of the m known anomalies, k = floor((m + 1)(1 - at_least)), as the
    quantile of clean rows does above theirs. The interval is that of Clopper & Pearson 1934; anomalies tied with the
    k-th are flagged too and do not raise its lower end. Raises TooFewRows.
    """
    known = np.sort(tuning.scores[tuning.is_anomaly]) if tuning else np.empty(0)
    m = len(known)
    k = math.floor((m + 1) * (1 - Fraction(str(at_least))))
    if k < 1:
        needed = rows_for_quantile(at_least)
        raise TooFewRows(
            f"There are too few known anomalies among the tuning rows for a recall of {at_least:g}.",
            got=f"{m} anomalies among {len(tuning.scores) if tuning else 0} tuning rows",
            expected=f"at least {needed} anomalies, by label or verdict: {needed - m} are missing",
            todo="widen the tuning dates, judge more flags, or lower threshold.at_least",
        )
    flagged = m - int(np.searchsorted(known, known[k - 1]))
    value = float(np.nextafter(known[k - 1], -np.inf))
    return value, Recall(flagged, m, _bound_low(m + 1 - k, k), _bound_high(flagged + 1, m - flagged))


def search_f_beta(tuning: Tuning | None, beta: float) -> float:
    """Search all gaps between tuning scores; return the middle of the best gap, of equal ones the highest.

    Raises TooFewRows without labelled rows of both kinds.
    """
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
