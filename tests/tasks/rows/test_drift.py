from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, chi2_contingency, t

from models.calibration import fit_threshold
from models.columns import Column
from models.params import QuantilePolicy
from tasks.rows.drift import (
    PastNight,
    bound_values,
    compare_counts,
    compare_discoveries,
    compare_flags,
    compute_psi,
    correct_p_values,
    find_hour_shift,
    find_renamed,
    learn_usual,
)
from tasks.rows.reference import make_bins

MONDAY = date(2026, 11, 2)


def make_history(statistic, *values, column="", first=MONDAY):
    return [PastNight(first + timedelta(days=n), {(column, statistic): value}) for n, value in enumerate(values)]


def bound(statistic, value, history, *, rows=5000, day=MONDAY + timedelta(days=28), column=""):
    values = {("", "rows"): rows, (column, statistic): value}
    found = bound_values(values, history, day, most_false_alarms=0.011)
    return next(one for one in found if one.statistic == statistic)


def test_psi_is_the_formula_and_zero_for_equal_shares():
    counts, usual = np.array([500, 300, 200]), np.array([4000, 3000, 3000])
    p, q = counts / 1000, usual / 10000
    assert compute_psi(counts, usual) == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.01)
    assert compute_psi(usual * 7, usual) == pytest.approx(0, abs=1e-6)
    assert compute_psi(np.zeros(3, int), usual) == compute_psi(counts, np.zeros(3, int)) == 0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=20))
def test_psi_and_p_values_are_finite_for_any_counts(pairs):
    counts, usual = np.array(pairs).T
    assert 0 <= compute_psi(counts, usual) < 50
    assert 0 <= compare_counts(counts, usual) <= 1


def test_the_two_sample_test_is_that_of_scipy_and_leaves_out_empty_bins():
    counts, usual = np.array([50, 30, 0, 20]), np.array([500, 250, 0, 250])
    assert compare_counts(counts, usual) == chi2_contingency(np.array([counts, usual])[:, [0, 1, 3]]).pvalue
    assert compare_counts(np.array([9]), np.array([9])) == 1
    assert correct_p_values([]) == []
    assert correct_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])


@pytest.mark.parametrize("hours", [-6, -2, 1, 2, 11])
def test_moved_times_are_found_and_other_changes_of_hours_are_not(hours):
    usual = np.round(1000 * np.exp(-0.5 * ((np.arange(24) - 13) / 3) ** 2)).astype(int)
    assert find_hour_shift(np.roll(usual, hours), usual) == hours
    assert find_hour_shift(usual, usual) == 0
    at_night = usual.copy()
    at_night[:6] += 300
    assert find_hour_shift(at_night, usual) == 0


def test_a_renamed_category_is_told_from_a_new_one():
    column = Column("shop", "categorical", ("north", "south"))
    bins = make_bins(column, np.array([0.0] * 60 + [1.0] * 40))
    renamed = bins.count(np.array([2.0] * 60 + [1.0] * 40))
    grown = bins.count(np.array([0.0] * 50 + [1.0] * 30 + [2.0] * 20))
    assert find_renamed(renamed, bins) == pytest.approx(0.6)
    assert find_renamed(grown, bins) == 0


def test_the_usual_value_goes_by_weekday_where_there_are_enough():
    rows = [1000, 1000, 1000, 1000, 1000, 300, 300] * 4
    history = make_history("rows", *rows)
    assert learn_usual(history, ("", "rows"), MONDAY + timedelta(days=28)) == (1000, 0)
    assert learn_usual(history, ("", "rows"), MONDAY + timedelta(days=33)) == (300, 0)
    assert learn_usual(history[:4], ("", "rows"), MONDAY) is None


@pytest.mark.parametrize(("rows", "is_beyond"), [(300, False), (280, False), (150, True), (1000, True)])
def test_half_of_a_saturday_is_missed_and_an_ordinary_one_is_not(rows, is_beyond):
    history = make_history("rows", *[1000, 1010, 990, 1000, 1005, 300, 305] * 4)
    found = bound_values({("", "rows"): rows}, history, MONDAY + timedelta(days=33), 0.01)
    assert any(one.is_beyond for one in found) == is_beyond


def test_one_gross_night_does_not_move_a_bound():
    quiet = make_history("psi", *[0.01] * 20, column="amount")
    spoilt = [*quiet[:-1], PastNight(quiet[-1].batch_date, {("amount", "psi"): 9.0})]
    bounds = [bound("psi", 0.02, history, column="amount").bound for history in (quiet, spoilt)]
    assert bounds[0] == pytest.approx(bounds[1], abs=0.01)


def test_the_flag_rate_may_be_as_high_as_chance_lets_it_from_the_threshold_or_from_the_usual_rate():
    few, many = (bound("flag_rate", 0.02, [], rows=n) for n in (100, 100_000))
    assert few.bound is None and many.bound is None  # the real anomalies are not known yet
    low, high = (make_history("flag_rate", *[rate] * 10) for rate in (0.005, 0.03))
    assert bound("flag_rate", 0.02, low).bound == 0.011  # as `most_false_alarms`
    assert bound("flag_rate", 0.02, low).is_beyond
    few, many = (bound("flag_rate", 0.05, high, rows=n) for n in (100, 100_000))
    assert few.bound == pytest.approx(binom.ppf(1 - 1e-5, 100, 0.03) / 100)
    assert not few.is_beyond and many.is_beyond


def count_categories(*nights, column="channel"):
    """Nights with these flags by category."""
    return [
        {(column, "flags_counted"): float(sum(counts.values()))}
        | {(column, f"flags_of_one_category {name}"): float(count) for name, count in counts.items()}
        for counts in nights
    ]


def bound_categories(tonight, *before):
    history = [PastNight(MONDAY + timedelta(days=n), found) for n, found in enumerate(count_categories(*before))]
    values = {("", "rows"): 5000, **count_categories(tonight)[0]}
    found = bound_values(values, history, MONDAY + timedelta(days=len(before)), most_false_alarms=0.011)
    return {one.statistic.removeprefix("flags_of_one_category "): one for one in found}


def test_flags_of_a_category_are_bounded_by_its_own_past_and_not_by_the_commonest():
    rng = np.random.default_rng(1)
    before = [{"shop": int(rng.poisson(40)), "app": int(rng.poisson(10))} for _ in range(28)]
    found = bound_categories({"shop": 44, "app": 36, "new": 4}, *before)
    assert found["app"].is_beyond and not found["shop"].is_beyond and not found["new"].is_beyond
    roots = np.sqrt(np.array([night["app"] for night in before]) + 0.375)
    upper = roots.mean() + t.isf(0.01 / 4, 27) * max(0.5, roots.std(ddof=1)) * np.sqrt(1 + 1 / 28)
    assert found["app"].bound == pytest.approx(upper**2 - 0.375)  # three categories and the flag rate are tested
    assert bound_categories({"shop": 44, "app": 36, "new": 12}, *before)["new"].is_beyond
    assert bound_categories({"app": 500}, *before[:4])["app"].bound is None  # too few nights


def test_a_night_on_which_a_category_had_no_flag_counts_and_one_that_was_not_measured_does_not():
    none = [{"shop": 3}] * 10
    assert bound_categories({"app": 9}, *none)["app"].is_beyond
    history = [PastNight(MONDAY + timedelta(days=n), {("", "rows"): 5000.0}) for n in range(10)]
    values = {("", "rows"): 5000, **count_categories({"app": 9})[0]}
    found = bound_values(values, history, MONDAY + timedelta(days=10), most_false_alarms=0.011)
    assert all(one.bound is None for one in found if one.column == "channel")


def test_an_attack_of_some_nights_does_not_hide_that_it_goes_on():
    rng = np.random.default_rng(2)
    before = [{"app": int(count)} for count in rng.poisson(10, 28)]
    assert bound_categories({"app": 60}, *before, *[{"app": 60}] * 5)["app"].is_beyond


def test_ordinary_nights_have_no_category_beyond_its_bound_more_often_than_said():
    rng = np.random.default_rng(3)
    usual = rng.gamma(0.5, 10.0, 60)
    passed = 0
    for _ in range(300):
        nights = rng.poisson(usual * rng.gamma(20, 1 / 20, (29, 60)))
        named = [{f"c{place}": int(count) for place, count in enumerate(night) if count} for night in nights]
        passed += any(one.is_beyond for one in bound_categories(named[-1], *named[:-1]).values())
    assert passed <= 8  # of 300; up to 3 are expected, and more than 8 in 1 of 250 cases


THRESHOLD = fit_threshold(np.arange(9999.0), QuantilePolicy(q=0.99))  # 1 % of the rows, from Beta(100, 9900)


def compare(recent, answered=(), spread=1.0):
    return {one.statistic: one for one in compare_flags(recent, answered, THRESHOLD, spread)}


def test_flags_that_are_fewer_than_the_false_alarms_alone_are_beyond_their_bound():
    least = int(betabinom.ppf(1e-5, 5000, 100, 9900))
    for flags, is_beyond in ((least - 1, True), (least, False), (50, False), (5000, False)):
        found = compare([(flags, 5000)])["flags_lacking"]
        assert found.is_beyond is is_beyond
        assert found.value == pytest.approx(max(0, 1 - flags / 50))
    assert found.bound == pytest.approx(1 - least / 50)
    assert not compare([(least - 1, 5000)], spread=2.0)["flags_lacking"].is_beyond
    assert not compare([(0, 300)])["flags_lacking"].is_beyond  # none of three is no wonder
    assert compare([(0, 0)]) == {}


def test_a_week_shows_what_one_night_cannot():
    nights = [(0, 300)] * 7
    found = compare(nights)
    assert "week_flags_lacking" not in compare(nights[:1])
    assert not found["flags_lacking"].is_beyond and found["week_flags_lacking"].is_beyond
    assert not compare([(3, 300)] * 7)["week_flags_lacking"].is_beyond


def test_false_alarms_by_label_are_beyond_their_bound_if_chance_does_not_give_so_many():
    most = int(betabinom.ppf(1 - 1e-5, 15_000, 100, 9900))
    for flags, is_beyond in ((most + 1, True), (most, False), (0, False)):
        answered = [(flags // 3, 5000), (flags // 3, 5000), (flags - 2 * (flags // 3), 5000)]
        assert compare([(50, 5000)], answered)["false_alarms_in_excess"].is_beyond is is_beyond
    assert "false_alarms_in_excess" not in compare([(50, 5000)])


def test_a_false_discovery_rate_allows_more_false_alarms_in_nights_with_more_anomalies():
    def compare(answered):
        return compare_discoveries(answered, 0.1)

    [found] = compare([(10, 100)] * 7)
    assert found.value == 0 and not found.is_beyond
    [found] = compare([(60, 100)] * 7)
    most = binom.ppf(1 - 1e-5, 7, 0.1)
    assert found.value == pytest.approx(5) and found.bound == pytest.approx(most / 0.7 - 1)
    assert not found.is_beyond  # seven nights say little
    assert [one.is_beyond for one in compare([(90, 100)] * 7)] == [True]
    [found] = compare([(0, 0), (1, 1), (0, 3)])  # a single false alarm is the share 1 of its night
    assert found.value == pytest.approx(1 / 0.3 - 1)
    assert compare([]) == []


def test_a_falling_canary_is_beyond_its_bound():
    history = make_history("canary_recall", *[0.8] * 10, column="shift amount")
    assert not bound("canary_recall", 0.7, history, column="shift amount").is_beyond
    assert bound("canary_recall", 0.5, history, column="shift amount").is_beyond
    assert bound("canary_recall", 0.0, [], column="shift amount").bound is None


@pytest.mark.parametrize("statistic", ["null_share", "unseen_share", "mode_share", "quarantine_share", "renamed_share"])
def test_a_few_rows_of_a_small_night_are_never_beyond_a_bound(statistic):
    for history in ([], make_history(statistic, *[0.0] * 10, column="shop")):
        assert not bound(statistic, 5 / 30, history, rows=30, column="shop").is_beyond
    assert bound("null_share", 0.5, history, rows=30, column="shop").is_beyond
