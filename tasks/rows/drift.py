"""How far a night's rows are from the training rows and from the nights before: statistics and their bounds.

A bound is learnt from the nights before, robustly and by weekday, and is never closer to the usual value than a floor:
with enough rows every difference is significant, so only a difference that also matters counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median

import numpy as np
import numpy.typing as npt

from models.calibration import Threshold, expect_false_alarms
from tasks.rows.reference import HOURS, Bins
from tasks.stores.tables import Drift

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = Mapping[tuple[str, str], float]  # by column and statistic
Counts = tuple[int, int]  # flags and scored rows of a night
MIN_NIGHTS = 5  # of history, before a bound is learnt from it
MIN_OF_WEEKDAY = 3
SPREADS = 5.0  # from the usual value to a bound
ALPHA = 0.01  # of two-sample tests, after the correction for many columns
OF_CATEGORY, COUNTED = "flags_of_one_category", "flags_counted"  # the first with a category's name after it
TOGETHER = "all categories"  # in place of a column's name
CHANCE = 0.01  # that any category of an ordinary night has too many flags
WINSORISED = 3.0  # spreads from the median to which the counts of earlier nights are clipped
POISSON = 0.5  # the spread of the square root of a count that varies by chance alone
ALMOST_SURE = 1e-5  # of counts: the chance to be beyond a control limit
WEEK = 7  # nights whose flags are counted together
SHIFT_EXPLAINS = 0.3  # of the PSI may be left once times are moved back, or columns swapped back
FLOORS: Mapping[str, float] = {  # the least distance from the usual value to a bound
    "psi": 0.05,
    "psi_unflagged": 0.05,
    "score_psi": 0.05,
    "null_share": 0.02,
    "unseen_share": 0.01,
    "mode_share": 0.15,
    "quarantine_share": 0.01,
    "arrival_hours": 3.0,
    "score_shift": 10.0,
}
UNLEARNT: Mapping[str, float] = {  # bounds without a history
    "psi": 0.1,
    "psi_unflagged": 0.1,
    "score_psi": 0.1,
    "null_share": 0.05,
    "unseen_share": 0.02,
    "quarantine_share": 0.03,
}
SHARES = ("null_share", "unseen_share", "mode_share", "renamed_share", "quarantine_share")
FEW = 5  # rows that may always differ
FIXED: Mapping[str, float] = {"hour_shift": 0.5, "renamed_share": 0.05, "swapped": 0.5}


@dataclass(frozen=True)
class PastNight:
    """What was measured of an earlier night, or of a day before the training's cut-off."""

    batch_date: date
    values: Values


def compute_psi(counts: Ints, usual: Ints) -> float:
    """The population stability index of counts (B,) against those of the training rows; 0 without rows."""
    if not counts.sum() or not usual.sum():
        return 0.0
    tonight, then = ((side + 0.5) / (side.sum() + 0.5 * len(side)) for side in (counts, usual))
    return float(((tonight - then) * np.log(tonight / then)).sum())


def compare_counts(counts: Ints, usual: Ints) -> float:
    """The p-value of a chi-squared test of homogeneity; 1 if there is nothing to compare."""
    from scipy.stats import chi2_contingency  # type: ignore[import-untyped] # slow to import

    table = np.array([counts, usual])[:, (counts + usual) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 1.0
    return float(chi2_contingency(table).pvalue)


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if p_values else []


def find_hour_shift(counts: Ints, usual: Ints) -> int:
    """By how many hours (-11 to 11) all times have moved, if that explains the change of the 24 hours; else 0.

    Rows that have moved to another date are elsewhere: their hours are left out.
    """
    left = {}
    for shift in (shift for shift in range(1 - HOURS // 2, HOURS // 2) if shift):
        stayed = np.arange(HOURS) < HOURS - shift if shift > 0 else np.arange(HOURS) >= -shift
        left[shift] = compute_psi(np.roll(counts, -shift)[stayed], usual[stayed])
    shift, now = min(left, key=lambda one: left[one]), compute_psi(counts, usual)
    return shift if now > FLOORS["psi"] and left[shift] < SHIFT_EXPLAINS * now else 0


def find_renamed(counts: Ints, bins: Bins) -> float:
    """The share of rows that a category has lost to categories never seen in training; 0 if none has vanished."""
    if bins.unseen is None or not counts.sum() or not bins.rows:
        return 0.0
    tonight, then = counts / counts.sum(), np.array(bins.counts) / bins.rows
    lost = [before - now for now, before in zip(tonight[:-2], then[:-2], strict=True) if now < 0.2 * before]
    return float(min(max(lost, default=0.0), max(0.0, tonight[-1] - then[-1])))


def compare_medians(now: float, then: float) -> float:
    """How many times as large numbers have become; 1 if it cannot be said."""
    return now / then if now and then and (now > 0) == (then > 0) else 1.0


def learn_usual(history: Sequence[PastNight], key: tuple[str, str], day: date) -> tuple[float, float] | None:
    """The usual value of a statistic and its spread, by weekday where that has enough nights; None: too few nights.

    The median, and the median absolute deviation of all nights from the medians of their weekdays.
    """
    found = [(past.batch_date.weekday(), past.values[key]) for past in history if key in past.values]
    if len(found) < MIN_NIGHTS:
        return None
    whole = median(value for _, value in found)
    by_weekday: dict[int, list[float]] = {}
    for weekday, value in found:
        by_weekday.setdefault(weekday, []).append(value)
    usual = {weekday: median(values) for weekday, values in by_weekday.items() if len(values) >= MIN_OF_WEEKDAY}
    spread = 1.4826 * median(abs(value - usual.get(weekday, whole)) for weekday, value in found)
    return usual.get(day.weekday(), whole), spread


def bound_statistic(
    statistic: str, learnt: tuple[float, float] | None, rows: int, most_false_alarms: float
) -> float | None:
    """The bound of one statistic; None if it has none, or none yet. most_false_alarms: see `bound_values`."""
    name = statistic.split(" ")[0]
    if name in FIXED:
        return max(FIXED[name], FEW / max(rows, 1)) if name in SHARES else FIXED[name]
    if learnt is None:
        unlearnt = UNLEARNT.get(statistic)
        return max(unlearnt, FEW / max(rows, 1)) if unlearnt and statistic in SHARES else unlearnt
    usual, spread = learnt
    margin = SPREADS * spread
    if statistic in SHARES:
        margin = max(margin, SPREADS * math.sqrt(usual * (1 - usual) / max(rows, 1)) + FEW / max(rows, 1))
    if statistic == "flag_rate":
        from scipy.stats import binom

        by_chance = float(binom.ppf(1 - ALMOST_SURE, rows, min(usual, 1.0))) / max(rows, 1)
        return max(usual + margin, by_chance, most_false_alarms)
    if statistic == "flags_of_one_value":
        return usual + max(margin, 5 * math.sqrt(usual) + 5)  # one card's bursts come together
    if statistic == "canary_recall":
        return usual - max(margin, 0.15)
    return usual + max(margin, FLOORS[statistic]) if statistic in FLOORS else None


def bound_rows(rows: int, learnt: tuple[float, float] | None) -> list[Drift]:
    """The night's rows, and the share by which they are fewer or more than usual, with its bound."""
    found = [Drift("", "rows", rows, None)]
    if learnt is None or learnt[0] <= 0:
        return found
    usual, spread = learnt
    bound = max(SPREADS * spread, 4 * math.sqrt(usual), 0.1 * usual) / usual
    lack, excess = max(0.0, 1 - rows / usual), max(0.0, rows / usual - 1)
    return [*found, Drift("", "rows_lacking", lack, bound), Drift("", "rows_in_excess", excess, bound)]


def bound_count(past: Sequence[float], tests: int) -> float | None:
    """The most that chance gives of what was counted on earlier nights; None: too few nights.

    The upper end of the prediction interval for one more night, from Student's t-distribution of the square roots,
    whose spread hardly depends on the count (Anscombe 1948). `tests` such bounds are together passed by chance in
    CHANCE of the nights (Bonferroni). Gross nights of the past are winsorised, so that no attack hides the next.
    """
    from scipy.stats import t

    if len(past) < MIN_NIGHTS:
        return None
    roots = np.sqrt(np.array(past) + 3 / 8)
    middle = float(np.median(roots))
    reach = WINSORISED * max(POISSON, 1.4826 * float(np.median(np.abs(roots - middle))))
    roots = np.clip(roots, middle - reach, middle + reach)
    quantile = float(t.isf(CHANCE / tests, len(past) - 1))
    spread = max(POISSON, float(roots.std(ddof=1))) * math.sqrt(1 + 1 / len(past))
    return (float(roots.mean()) + quantile * spread) ** 2 - 3 / 8


def bound_flags(values: Values, history: Sequence[PastNight], rows: int) -> dict[tuple[str, str], float | None]:
    """The bound of each category's flags, from its own nights before, and the least one of the flag rate."""
    tonight = [key for key in values if key[1].startswith(OF_CATEGORY)]
    tests = 1 + len({*tonight, *(key for past in history for key in past.values if key[1].startswith(OF_CATEGORY))})
    bounds = {}
    for key in tonight:
        past = [night.values.get(key, 0.0) for night in history if (key[0], COUNTED) in night.values]
        bounds[key] = bound_count(past, tests)
    rate = ("", "flag_rate")
    most = bound_count([night.values[rate] * rows for night in history if rate in night.values], tests)
    return bounds | {rate: most and most / max(rows, 1)}


def bound_values(values: Values, history: Sequence[PastNight], day: date, most_false_alarms: float) -> list[Drift]:
    """A night's statistics with their bounds, in their order.

    most_false_alarms: the share of rows up to which chance alone may flag normal ones.
    """
    rows = int(values[("", "rows")])
    found = bound_rows(rows, learn_usual(history, ("", "rows"), day))
    of_flags = bound_flags(values, history, rows)
    most_false_alarms = max(most_false_alarms, of_flags["", "flag_rate"] or 0.0)
    for (column, statistic), value in values.items():
        if statistic.startswith(OF_CATEGORY):
            found.append(Drift(column, statistic, value, of_flags[column, statistic]))
        elif statistic != "rows":
            learnt = learn_usual(history, (column, statistic), day)
            found.append(Drift(column, statistic, value, bound_statistic(statistic, learnt, rows, most_false_alarms)))
    return found


def compare_discoveries(answered: Sequence[Counts], rate: float) -> list[Drift]:
    """How far the false alarms of nights exceed a false-discovery rate; passed by chance 1 time in 100,000.

    In: false alarms and flags of the latest nights whose labels have arrived. The share of false alarms among a night's
    flags is at most the rate on average, so the sum over nights is bounded by a binomial one (Hoeffding 1963).
    """
    if not answered:
        return []
    from scipy.stats import binom

    nights = len(answered)
    shares = sum(false / max(1, flags) for false, flags in answered)
    most = float(binom.ppf(1 - ALMOST_SURE, nights, rate))
    value, bound = (total / (rate * nights) - 1 for total in (shares, most))
    return [Drift("", "false_alarms_in_excess", max(0.0, value), bound)]


def compare_flags(
    recent: Sequence[Counts], answered: Sequence[Counts], threshold: Threshold, spread: float
) -> list[Drift]:
    """How far the latest nights are from the calibration; a bound is passed by chance 1 time in 100,000.

    In: flags of the latest nights, the last one tonight, and false alarms of the latest nights whose labels have
    arrived, each with the rows scored. Anomalies only add flags, so they do not explain fewer than the false alarms.
    With a false-discovery rate, where more anomalies allow more false alarms, see `compare_discoveries`.
    """
    found = []
    week = recent if len(recent) > 1 else ()
    for statistic, nights in (
        ("flags_lacking", recent[-1:]),
        ("week_flags_lacking", week),
        ("false_alarms_in_excess", answered),
    ):
        flags, rows = sum(night[0] for night in nights), sum(night[1] for night in nights)
        chance = expect_false_alarms(threshold, rows, spread, 2 * ALMOST_SURE)
        if chance.expected:
            low, value, high = (count / chance.expected - 1 for count in (chance.low, flags, chance.high))
            value, bound = (value, high) if statistic == "false_alarms_in_excess" else (-value, -low)
            found.append(Drift("", statistic, max(0.0, value), bound))
    return found
