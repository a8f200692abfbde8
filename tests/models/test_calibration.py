import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, betabinom, binom, binomtest, chi2_contingency, norm

from models.calibration import (
    FalseAlarms,
    Threshold,
    Tuning,
    bound_discoveries,
    bound_quantile,
    count_suspects,
    discover,
    expect_false_alarms,
    find_betas,
    fit_threshold,
    measure_spread,
    p_values,
    percentile_ranks,
    widen,
)
from models.errors import NightjarError, TooFewRows
from models.params import (
    AlarmBudgetPolicy,
    BestFBetaPolicy,
    FalseDiscoveryPolicy,
    FixedPolicy,
    QuantilePolicy,
    RecallPolicy,
)

FEW_VALUES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20)


def fit(n: int, q: float, width: float | None = None) -> Threshold:
    return fit_threshold(
        np.random.default_rng(n).permutation(n).astype(float), QuantilePolicy(q=q, max_interval_width=width)
    )


@given(FEW_VALUES, FEW_VALUES)
@settings(deadline=None)
def test_ranks_and_p_values_agree_with_counting(scores: list[float], calibration: list[float]) -> None:
    ordered = np.sort(calibration)
    below = [sum(c < s for c in calibration) / len(calibration) * 100 for s in scores]
    at_least = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert np.allclose(percentile_ranks(np.array(scores), ordered), below)
    assert np.allclose(p_values(np.array(scores), ordered), at_least)


def test_the_quantile_threshold_is_the_kth_smallest_score() -> None:
    threshold = fit(199, 0.9)  # k = ceil(200 * 0.9) = 180
    assert threshold.value == 179
    assert threshold.n == 199
    assert np.isclose(threshold.false_alarm_rate, 0.1)
    assert np.isclose(threshold.interval_low, beta.ppf(0.025, 20, 180))
    assert np.isclose(threshold.interval_high, beta.ppf(0.975, 20, 180))


def test_q_is_read_as_it_was_written() -> None:
    assert fit(99, 0.07).value == 6  # k = 7; in floats 100 * 0.07 lies above 7


def test_the_false_alarm_rate_falls_into_its_interval_as_often_as_promised() -> None:
    rng = np.random.default_rng(7)
    thresholds = [fit_threshold(rng.uniform(size=150), QuantilePolicy(q=0.95)) for _ in range(400)]
    rates = np.array([1 - t.value for t in thresholds])  # of uniform scores
    inside = [t.interval_low <= rate <= t.interval_high for t, rate in zip(thresholds, rates, strict=True)]
    assert 0.92 <= np.mean(inside) <= 0.98
    assert abs(rates.mean() - thresholds[0].false_alarm_rate) < 0.005


def count_orders(n: int, k: int, rows: int) -> list[float]:
    """The probability of each number of `rows` new scores above the k-th of n, by all orders of old and new scores."""
    counts = [0] * (rows + 1)
    for places in combinations(range(n + rows), n):  # of the old scores, by size
        counts[n + rows - 1 - places[k - 1] - (n - k)] += 1
    return [count / sum(counts) for count in counts]


@pytest.mark.parametrize(("n", "k", "rows"), [(9, 9, 6), (9, 5, 7), (4, 4, 12), (12, 11, 5)])
def test_the_number_of_false_alarms_has_the_distribution_that_all_orders_of_the_rows_give(n, k, rows) -> None:
    threshold = fit(n, (k - 0.5) / (n + 1))
    low, high = find_betas(threshold)
    assert low == high == (n + 1 - k, k)
    chances = count_orders(n, k, rows)
    assert chances == pytest.approx(betabinom.pmf(range(rows + 1), rows, *low))
    for outside in (0.05, 0.3):
        found = expect_false_alarms(threshold, rows, outside=outside)
        assert found.expected == pytest.approx(sum(count * chance for count, chance in enumerate(chances)))
        assert sum(chances[: found.low]) <= outside / 2 < sum(chances[: found.low + 1]) + 1e-12
        assert sum(chances[found.high + 1 :]) <= outside / 2 < sum(chances[found.high :]) + 1e-12


@pytest.mark.parametrize("policy", [QuantilePolicy(q=0.95), FixedPolicy(value=0.95), QuantilePolicy(q=0.5)])
@pytest.mark.parametrize("digits", [2, 16])
def test_nights_have_as_many_false_alarms_as_expected(policy: QuantilePolicy | FixedPolicy, digits: int) -> None:
    rng, inside = np.random.default_rng(3), []
    for _ in range(1500):
        old, new = rng.uniform(size=150).round(digits), rng.uniform(size=400).round(digits)
        found = expect_false_alarms(threshold := fit_threshold(old, policy), 400)
        inside.append(found.low <= (new > threshold.value).sum() <= found.high)
    assert np.mean(inside) >= 0.94
    assert np.mean(inside) <= (0.98 if digits == 16 else 1)


@given(st.integers(1, 300), st.integers(0, 30), st.floats(0.01, 0.99), st.booleans())
def test_the_distributions_of_the_rate_are_found_again_from_its_interval(
    n: int, trimmed: int, share: float, is_fixed: bool
) -> None:
    k = max(1, round(share * n))
    pairs = ((n - k, k + 1), (n - k + trimmed + 1, k)) if is_fixed else ((n + 1 - k, k), (n + trimmed + 1 - k, k))
    ends = float(beta.ppf(0.025, *pairs[0])) if pairs[0][0] else 0.0, float(beta.ppf(0.975, *pairs[1]))
    assert find_betas(Threshold(1.0, QuantilePolicy(), n, share, *ends, trimmed)) == pairs


def test_a_threshold_that_no_row_or_every_row_exceeds_has_one_end_only() -> None:
    none = expect_false_alarms(fit_threshold(np.ones(50), FixedPolicy(value=2.0)), 100)
    every = expect_false_alarms(fit_threshold(np.ones(50), FixedPolicy(value=0.0)), 100)
    assert (none.expected, none.low, every.expected, every.high) == (0, 0, 100, 100)
    assert none.high == 100 - every.low == betabinom.ppf(0.975, 100, 1, 50)
    assert expect_false_alarms(fit(199, 0.9), 0) == FalseAlarms(0, 0, 0, 0, 1.0)


def test_the_spread_of_days_is_pearsons_statistic_of_their_counts() -> None:
    rng = np.random.default_rng(1)
    days = rng.permutation(np.repeat([3, 4, 7, 8, 9], [200, 210, 190, 180, 220]))
    is_flagged = rng.random(1000) < np.where(days == 7, 0.2, 0.05)
    counts = [[(is_flagged & (days == day)).sum(), (~is_flagged & (days == day)).sum()] for day in (3, 4, 7, 8, 9)]
    assert measure_spread(is_flagged, days) == pytest.approx(chi2_contingency(np.array(counts)).statistic / 4)
    assert measure_spread(is_flagged, np.arange(1000) % 5) >= 1
    few = days != 9
    assert measure_spread(is_flagged[few], days[few]) == 1  # four days are too few
    assert measure_spread(np.zeros(1000, bool), days) == measure_spread(np.empty(0, bool), np.empty(0, np.int64)) == 1


def test_a_spread_multiplies_the_variance_and_keeps_the_mean() -> None:
    for a, b, rows, spread in ((450, 44550, 5000, 2.1), (20, 180, 300, 1.4), (3, 97, 10, 5.0)):
        wide = widen(a, b, rows, spread)
        exact, found = (betabinom.stats(rows, *pair) for pair in ((a, b), wide))
        assert found[0] == pytest.approx(exact[0])
        assert found[1] == pytest.approx(spread * exact[1])
    assert widen(1, 99, 100, 1e9)[0] > 0  # as much as rows can vary
    threshold = fit(199, 0.9)
    exact, wide = (expect_false_alarms(threshold, 1000, spread) for spread in (1.0, 2.0))
    assert wide.low < exact.low < exact.high < wide.high and wide.expected == exact.expected


def test_nights_that_vary_have_as_many_false_alarms_as_expected() -> None:
    rng, inside = np.random.default_rng(4), {"exact": [], "widened": []}
    for _ in range(150):
        levels = rng.lognormal(0, 0.3, 40)
        nights = [rng.exponential(levels[day], 1000) for day in range(40)]  # their rates differ
        scores, days = np.concatenate(nights[:9]), np.repeat(np.arange(9), 1000)
        threshold = fit_threshold(scores, QuantilePolicy(q=0.95))
        spread = measure_spread(scores > threshold.value, days)
        for name, ratio in (("exact", 1.0), ("widened", spread)):
            found = expect_false_alarms(threshold, 1000, ratio)
            inside[name] += [found.low <= (night > threshold.value).sum() <= found.high for night in nights[9:]]
    assert np.mean(inside["exact"]) < 0.6
    assert np.mean(inside["widened"]) > 0.85


def test_expected_false_alarms_in_words() -> None:
    text = str(expect_false_alarms(fit(199, 0.9), 1000))
    assert text == "100 false alarms are expected in a night of 1,000 normal rows (95 % of such nights: 59 to 149)"
    varied = str(expect_false_alarms(fit(199, 0.9), 1000, 2.0))
    assert varied.endswith("to 172; the variance between days is 2.0 times that of chance)")
    assert str(FalseAlarms(90, 0.94, 0, 4, 1.0)).startswith("0.9 false alarms are expected")


def test_too_few_rows_for_the_quantile_say_how_many_are_missing() -> None:
    assert fit(99, 0.99).value == 98
    with pytest.raises(TooFewRows, match="at least 99 rows: 1 are missing"):
        fit(98, 0.99)


def test_an_interval_wider_than_requested_says_how_many_rows_are_missing_and_they_suffice() -> None:
    with pytest.raises(TooFewRows) as raised:
        fit(300, 0.99, width=0.01)
    needed = int(str(raised.value).split("about ")[1].split(" rows")[0])
    assert f"{needed - 300} are missing" in str(raised.value)
    threshold = fit(needed, 0.99, width=0.01)
    assert threshold.interval_high - threshold.interval_low <= 0.01
    with pytest.raises(TooFewRows):
        fit(needed - 1, 0.99, width=0.01)


def test_ties_above_the_threshold_lower_the_rate_and_the_lower_end_only() -> None:
    scores = np.array([0.0] * 80 + [1.0] * 15 + [2.0] * 4)
    threshold = fit_threshold(scores, QuantilePolicy(q=0.9))  # k = 90, tied up to u = 95
    assert threshold.value == 1
    assert threshold.false_alarm_rate == (100 - 95) / 100
    assert np.isclose(threshold.interval_low, binomtest(4, 99).proportion_ci(method="exact").low)
    assert np.isclose(threshold.interval_high, beta.ppf(0.975, 10, 90))


def test_scores_that_are_all_equal_never_flag_one_another() -> None:
    threshold = fit_threshold(np.ones(99), QuantilePolicy(q=0.9))
    assert (threshold.value, threshold.interval_low) == (1, 0)


@pytest.mark.parametrize("value", [-1.0, 0.5, 9.0])
def test_a_fixed_threshold_comes_with_the_exact_binomial_interval(value: float) -> None:
    scores = np.linspace(0, 1, 50)
    threshold = fit_threshold(scores, FixedPolicy(value=value))
    exact = binomtest(int((scores > value).sum()), 50).proportion_ci(method="exact")
    assert threshold.value == value and threshold.false_alarm_rate == np.mean(scores > value)
    assert np.allclose([threshold.interval_low, threshold.interval_high], [exact.low, exact.high])


@given(st.lists(st.tuples(st.integers(0, 6).map(float), st.booleans()), min_size=2, max_size=15), st.floats(0.3, 3))
@settings(deadline=None)
def test_the_best_f_beta_threshold_beats_every_other(rows: list[tuple[float, bool]], beta_value: float) -> None:
    scores, truth = np.array([score for score, _ in rows]), np.array([is_anomaly for _, is_anomaly in rows])
    policy = BestFBetaPolicy(beta=beta_value)
    if truth.all() or not truth.any():
        with pytest.raises(TooFewRows):
            fit_threshold(scores, policy, Tuning(scores, truth))
        return

    def measure(value: float) -> float:
        hits = np.sum((scores > value) & truth)
        return (1 + policy.beta**2) * hits / (policy.beta**2 * truth.sum() + np.sum(scores > value))

    found = fit_threshold(scores, policy, Tuning(scores, truth)).value
    assert np.isclose(measure(found), max(measure(value) for value in [-1.0, *scores]))


def test_the_best_f_beta_threshold_lies_between_the_scores_it_parts() -> None:
    tuning = Tuning(np.array([1.0, 2.0, 4.0, 5.0]), np.array([False, False, True, True]))
    assert fit_threshold(np.arange(9.0), BestFBetaPolicy(), tuning).value == 3
    close = Tuning(np.array([1.0, np.nextafter(1.0, 2)]), np.array([False, True]))
    assert fit_threshold(np.arange(9.0), BestFBetaPolicy(), close).value == 1


def test_a_recall_is_kept_by_the_lowest_of_known_anomalies_that_may_be_missed() -> None:
    tuning = Tuning(np.arange(40.0), np.arange(40) >= 20)  # k = floor(21 * 0.1) = 2 of 20 anomalies
    found = fit_threshold(np.arange(30.0), RecallPolicy(at_least=0.9), tuning)
    assert found.value == np.nextafter(21.0, 0)
    assert found.recall is not None and (found.recall.flagged, found.recall.anomalies) == (19, 20)
    exact = binomtest(19, 20).proportion_ci(method="exact")
    assert np.allclose([found.recall.interval_low, found.recall.interval_high], [exact.low, exact.high])
    assert found.false_alarm_rate == 9 / 30
    assert str(found.recall) == "95.0% of anomalies (95 % interval 75.1% to 99.9%, from 20 known ones)"


def test_new_anomalies_are_flagged_as_often_as_the_recall_policy_promises() -> None:
    rng, recalls, inside = np.random.default_rng(6), [], []
    for _ in range(600):
        known = rng.normal(size=45)
        found = fit_threshold(np.zeros(9), RecallPolicy(at_least=0.8), Tuning(known, np.ones(45, bool)))
        assert found.recall is not None
        recalls.append(norm.sf(found.value))
        inside.append(found.recall.interval_low <= recalls[-1] <= found.recall.interval_high)
    assert 0.8 - 3 * np.std(recalls) / 600**0.5 <= np.mean(recalls) <= 0.82
    assert np.mean(inside) >= 0.94


def test_anomalies_that_are_tied_are_flagged_together_and_do_not_raise_the_lower_end() -> None:
    tied = fit_threshold(np.zeros(9), RecallPolicy(at_least=0.5), Tuning(np.ones(20), np.ones(20, bool)))
    assert tied.recall is not None and (tied.recall.flagged, tied.recall.interval_high) == (20, 1)
    assert tied.recall.interval_low == pytest.approx(beta.ppf(0.025, 11, 10))


@pytest.mark.parametrize("rows", [8, 0])
def test_too_few_known_anomalies_for_a_recall_say_how_many_are_missing(rows: int) -> None:
    tuning = Tuning(np.arange(100.0), np.arange(100) < rows)
    with pytest.raises(TooFewRows, match=f"(?s){rows} anomalies among 100 tuning rows.*{9 - rows} are missing"):
        fit_threshold(np.arange(9.0), RecallPolicy(at_least=0.9), tuning)
    assert fit_threshold(np.arange(9.0), RecallPolicy(at_least=0.9), Tuning(np.arange(9.0), np.ones(9, bool))).recall


def test_no_rows_and_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(TooFewRows, match="no calibration rows"):
        fit_threshold(np.empty(0), FixedPolicy(value=1.0))
    with pytest.raises(NightjarError, match="1 of 2 scores"):
        fit_threshold(np.array([1.0, np.nan]), FixedPolicy(value=1.0))
    with pytest.raises(TooFewRows, match="tuning rows"):
        fit_threshold(np.ones(3), BestFBetaPolicy())


def test_an_alarm_budget_is_the_quantile_that_leaves_that_many_clean_records_per_night() -> None:
    scores = np.random.default_rng(1).uniform(size=999)
    budget = fit_threshold(scores, AlarmBudgetPolicy(false_alarms_per_night=20), rows_per_night=1000)
    quantile = fit_threshold(scores, QuantilePolicy(q=0.98))
    assert budget.value == quantile.value
    assert budget.false_alarm_rate * 1000 == pytest.approx(20)
    assert isinstance(budget.policy, AlarmBudgetPolicy)
    with pytest.raises(TooFewRows):
        fit_threshold(scores, AlarmBudgetPolicy(false_alarms_per_night=0.5), rows_per_night=1000)
    with pytest.raises(NightjarError, match="not smaller than a night"):
        fit_threshold(scores, AlarmBudgetPolicy(false_alarms_per_night=20), rows_per_night=20)


def count_by_hand(scores: np.ndarray) -> int:
    """As documented, row by row: the excess where it is the most deviations certain."""
    ordered = sorted(scores.tolist())
    n = len(ordered)
    start, end = n * 7 // 10, n * 9 // 10
    floor, ceiling = ordered[start - 1], ordered[end - 1]
    exposure = sum(np.log(min(score, ceiling) / floor) for score in ordered[start:])
    rate = (end - start) / exposure
    most, found = 0.0, 0
    for score in ordered[end:]:
        distance = np.log(score / floor)
        expected = (n - start) * (score / floor) ** -rate
        excess = sum(other >= score for other in ordered) - expected
        sure = excess - 3 * (expected + 1 + (expected * rate * distance) ** 2 / (end - start)) ** 0.5
        if sure > most:
            most, found = sure, round(excess)
    return found


@pytest.mark.parametrize("hidden", [0, 10, 40, 100])
@pytest.mark.parametrize("tail", ["exponential", "lognormal", "pareto"])
def test_suspects_agree_with_counting_row_by_row(tail: str, hidden: int) -> None:
    rng = np.random.default_rng(hidden)
    clean = {"exponential": rng.exponential, "lognormal": rng.lognormal, "pareto": lambda size: 1 + rng.pareto(4, size)}
    scores = np.concatenate([clean[tail](size=2000 - hidden), 40 * rng.uniform(1, 5, hidden)])
    assert count_suspects(np.sort(scores)) == count_by_hand(scores)


@pytest.mark.parametrize("tail", ["exponential", "normal", "lognormal", "uniform", "pareto"])
def test_scores_of_normal_rows_alone_are_not_suspected(tail: str) -> None:
    draw = {
        "exponential": lambda rng: rng.exponential(size=3000),
        "normal": lambda rng: np.abs(rng.normal(size=3000)),
        "lognormal": lambda rng: rng.lognormal(size=3000),
        "uniform": lambda rng: rng.uniform(size=3000),
        "pareto": lambda rng: 1 + rng.pareto(3, size=3000),
    }[tail]
    found = [count_suspects(np.sort(draw(np.random.default_rng(seed)))) for seed in range(100)]
    assert np.count_nonzero(found) <= 5


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02])
def test_hidden_anomalies_hardly_move_the_threshold(share: float) -> None:
    rng = np.random.default_rng(7)
    clean, hidden = rng.lognormal(0, 0.4, 4000), 6 * rng.lognormal(0, 0.7, round(share * 4000))
    scores, later = np.concatenate([clean, hidden]), 6 * rng.lognormal(0, 0.7, 4000)
    threshold, known = fit_threshold(scores, QuantilePolicy(), trims=True), fit_threshold(clean, QuantilePolicy())
    assert (later > threshold.value).mean() >= 0.8 * (later > known.value).mean()
    assert threshold.n + threshold.trimmed == len(scores)


def test_the_interval_covers_both_that_suspects_are_anomalies_and_that_they_are_normal() -> None:
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.lognormal(0, 0.4, 980), np.full(20, 1e3)])
    threshold = fit_threshold(scores, QuantilePolicy(), trims=True)
    n, k = threshold.n, math.ceil((threshold.n + 1) * 0.99)
    assert (n + threshold.trimmed, threshold.trimmed) == (1000, 20)
    assert threshold.value == np.sort(scores)[k - 1]
    assert np.isclose(threshold.interval_low, beta.ppf(0.025, n + 1 - k, k))
    assert np.isclose(threshold.interval_high, beta.ppf(0.975, 1001 - k, k))


@pytest.mark.parametrize("policy", [QuantilePolicy(), AlarmBudgetPolicy(false_alarms_per_night=1)])
def test_trimming_leaves_as_many_rows_as_the_quantile_needs(policy: QuantilePolicy | AlarmBudgetPolicy) -> None:
    scores = np.concatenate([np.linspace(1, 1.2, 95), np.full(6, 1e6)])
    threshold = fit_threshold(scores, policy, rows_per_night=100, trims=True)
    assert (threshold.n, threshold.trimmed) == (99, 2)


@pytest.mark.parametrize(
    "scores", [[1.0], [1.0, 2.0], [0.0] * 500, [2.0] * 500, [0.0] * 450 + [5.0] * 50, [-1.0] * 200 + [3.0] * 5]
)
def test_no_tail_no_suspects(scores: list[float]) -> None:
    assert count_suspects(np.array(scores)) == 0


@example([0.0, 9.999999999999196e299, 9.999999999999198e299, 9.999999999999198e299])  # their logarithms are equal
@given(st.lists(st.floats(-1e300, 1e300), max_size=60))
def test_suspects_are_fewer_than_a_tenth_of_any_scores(scores: list[float]) -> None:
    assert 0 <= count_suspects(np.sort(np.array(scores))) <= math.ceil(len(scores) / 10)


def test_the_quantile_lies_between_its_bounds_as_often_as_they_promise() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(1000):
        low, high = bound_quantile(np.sort(rng.exponential(size=500)), 0.95)
        held += low <= -np.log(0.05) <= high
    assert 940 <= held <= 990  # exact in that it never promises too much


@pytest.mark.parametrize(("n", "q"), [(500, 0.95), (44969, 0.99), (100, 0.5)])
def test_the_bounds_of_a_quantile_are_order_statistics_of_a_binomial(n: int, q: float) -> None:
    low, high = bound_quantile(np.arange(1.0, n + 1), q)  # the k-th smallest is k
    assert binom.cdf(low - 1, n, q) <= 0.025 < binom.cdf(low, n, q)
    assert binom.cdf(high - 2, n, q) < 0.975 <= binom.cdf(high - 1, n, q)


def test_too_few_scores_bound_a_quantile_on_one_side_only() -> None:
    low, high = bound_quantile(np.arange(50.0), 0.99)
    assert np.isfinite(low)
    assert high == np.inf
    assert bound_quantile(np.arange(50.0), 0.01)[0] == -np.inf


def reject(p_values: list[Fraction], rate: Fraction) -> set[int]:
    """The positions that Benjamini and Hochberg's procedure rejects, as their paper has it."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    passed = [k for k, i in enumerate(order, start=1) if p_values[i] <= k * rate / len(p_values)]
    return set(order[: max(passed, default=0)])


@given(FEW_VALUES, FEW_VALUES, st.integers(1, 99))
@settings(deadline=None)
def test_the_discoveries_are_those_of_benjamini_and_hochberg(
    scores: list[float], calibration: list[float], percent: int
) -> None:
    ordered, night = np.sort(calibration), np.array(scores)
    rate, n = percent / 100, len(calibration)
    if (n + 1) * Fraction(percent, 100) < 1:
        return  # no p-value is as low as the rate
    least = bound_discoveries(ordered, rate)
    threshold = discover(ordered, night[night > least], len(night), rate)
    exact = [Fraction(1 + sum(c >= s for c in calibration), n + 1) for s in scores]
    assert threshold >= least
    assert set(np.flatnonzero(night > threshold)) == reject(exact, Fraction(percent, 100))


def test_a_night_without_discoveries_flags_not_even_its_highest_score() -> None:
    calibration = np.arange(99.0)
    assert discover(calibration, np.array([98.5]), 11, 0.1) == 98.5  # p = 1/100 > 0.1/11
    assert discover(calibration, np.array([98.5]), 10, 0.1) == 98  # p = 1/100 = 0.1/10
    assert discover(calibration, np.array([98.5, 98.6]), 20, 0.1) == 98
    assert discover(calibration, np.empty(0), 5, 0.1) == 98


def test_the_share_of_false_alarms_is_as_low_as_the_rate_promises() -> None:
    rng, rate, shares, found = np.random.default_rng(3), 0.2, [], []
    for _ in range(2000):
        calibration = np.sort(rng.normal(size=999))
        night = np.concatenate([rng.normal(size=180), rng.normal(loc=3.5, size=20)])
        is_flag = night > discover(calibration, night, len(night), rate)
        shares.append(is_flag[:180].sum() / max(1, is_flag.sum()))
        found.append(is_flag[180:].mean())
    assert 0.165 < np.mean(shares) < 0.19  # rate * 180/200 normal rows = 0.18
    assert np.mean(found) > 0.8


def test_a_discovery_rate_is_that_of_nights_and_a_record_alone_has_the_quantile_of_a_single_discovery() -> None:
    scores = np.random.default_rng(4).permutation(999).astype(float)
    threshold = fit_threshold(scores, FalseDiscoveryPolicy(at_most=0.1), rows_per_night=100)
    assert threshold.value == 998  # of 999 scores, the highest: p = 1/1000 = 0.1/100
    assert str(expect_false_alarms(threshold, 100)) == (
        "each night has its own threshold, so that on average at most 10 % of its flags are false alarms"
    )


def test_too_few_rows_for_a_single_discovery_say_how_many_are_missing() -> None:
    with pytest.raises(TooFewRows, match=r"too few calibration rows for a false-discovery rate of 0\.1") as raised:
        fit_threshold(np.arange(998.0), FalseDiscoveryPolicy(at_most=0.1), rows_per_night=100)
    assert raised.value.expected == "at least 999 rows: 1 are missing"
    assert raised.value.got == "998 rows: a single anomaly in a night of 100 rows could never be flagged"
