from datetime import date, timedelta

import pytest

from tasks.rows.drift import PastNight
from tasks.rows.finding import Watched, decide
from tasks.stores.tables import Drift

DAY = date(2026, 11, 20)


def changed(column, psi, p_value=0.0, median_ratio=1.0, bound=0.05):
    """A column's statistics; what is not flagged has changed as much as the whole."""
    return [
        Drift(column, "psi", psi, bound),
        Drift(column, "psi_unflagged", psi, bound),
        Drift(column, "p_value", p_value, None),
        Drift(column, "median_ratio", median_ratio, None),
    ]


FLAGS = [Drift("", "flag_rate", 0.05, 0.02), Drift("terminal", "flags_of_one_value", 40, 12)]


USUAL_ROWS = Drift("", "rows_lacking", 0.0, 0.1)


def find(*drift, history=()):
    return decide("cards", "2026-11-20", Watched([USUAL_ROWS, *drift], history, {"terminal": "T-7"}))


def past(column, *psi):
    return [PastNight(DAY - timedelta(days=len(psi) - n), {(column, "psi"): value}) for n, value in enumerate(psi)]


@pytest.mark.parametrize(
    "drift",
    [
        [Drift("", "rows_lacking", 0.5, 0.1)],
        [Drift("", "rows_in_excess", 1.0, 0.1)],
        [Drift("amount", "null_share", 0.4, 0.02)],
        [Drift("", "quarantine_share", 0.04, 0.01)],
        [Drift("amount", "mode_share", 0.9, 0.2)],
        [Drift("at", "hour_shift", 2, 0.5)],
        [Drift("shop", "renamed_share", 0.3, 0.05)],
        [Drift("shop", "unseen_share", 0.8, 0.01)],
        [Drift("amount", "swapped with km", 1, 0.5)],
        changed("amount", 0.6, median_ratio=100),
        changed("amount", 0.6, median_ratio=0.01),
        changed("amount", 3.0),
    ],
    ids=lambda drift: drift[0].statistic,
)
def test_what_only_a_fault_of_the_data_does_overnight_stops_even_with_many_flags(drift):
    found = find(*drift, *FLAGS)
    assert found.finding == "data_broke"
    assert found.todo.startswith("stop")
    assert all(sentence.endswith(".") for sentence in found.evidence)


def test_a_change_that_has_grown_for_days_is_no_fault_of_the_data():
    growing = past("amount", 0.3, 0.6, 0.9)
    assert find(*changed("amount", 1.2, median_ratio=3.5), history=growing).finding == "world_changed"
    assert (
        find(*changed("amount", 1.2, median_ratio=3.5), history=past("amount", 0.01, 0.02, 0.01)).finding
        == "data_broke"
    )


def test_a_change_of_all_rows_is_a_changed_world_and_the_largest_is_named_first():
    found = find(*changed("amount", 0.1), *changed("country", 0.3), *FLAGS)
    assert found.finding == "world_changed"
    assert found.evidence[0].startswith("country: PSI 0.300")
    assert "nightjar run cards --retrain" in found.todo


def test_a_difference_that_chance_explains_is_none():
    assert find(*changed("amount", 0.3, p_value=0.2)).finding == "nothing"


def test_a_category_that_grows_from_nothing_is_a_changed_world():
    assert find(Drift("shop", "unseen_share", 0.05, 0.01), *FLAGS).finding == "world_changed"


def test_more_flags_among_unchanged_rows_are_an_attack_and_what_they_share_is_named():
    found = find(*changed("amount", 0.01), *FLAGS)
    assert found.finding == "attack"
    assert "40 flags share one terminal, T-7" in found.evidence[1]
    assert "nightjar flags cards --date 2026-11-20" in found.todo


def test_of_the_categories_of_a_column_the_one_with_the_most_flags_beyond_its_bound_is_named():
    drift = [
        Drift("channel", "flags_of_one_category chip", 20, 18.9),
        Drift("channel", "flags_of_one_category app", 49, 37.6),
        Drift("channel", "flags_of_one_category online", 90, 95.0),
        Drift("all categories", "flags_of_one_category IE, app", 39, 0.4),
    ]
    found = find(*drift)
    assert found.finding == "attack"
    assert found.evidence == (
        "39 flags share all categories: IE, app; up to 0 is usual.",
        "49 flags share one channel, app; up to 37 is usual.",
    )


def test_a_column_that_is_suddenly_multiplied_by_one_number_asks_for_its_unit():
    miles = [*changed("km", 0.2, median_ratio=0.621), Drift("km", "psi_rescaled", 0.01, None)]
    found = find(*miles, history=past("km", 0.01, 0.01, 0.01))
    assert found.finding == "world_changed"
    assert found.evidence[0] == (
        "km: PSI 0.200 without the flagged rows, bound 0.050; suddenly all its values are 0.621 times the training's, "
        "as in another unit."
    )
    assert found.todo.startswith("ask for the unit; if it is wrong, have the data delivered again, then nightjar score")
    for history, left in ((past("km", 0.15, 0.18, 0.19), 0.01), (past("km", 0.01, 0.01, 0.01), 0.15)):
        other = find(*miles[:-1], Drift("km", "psi_rescaled", left, None), history=history)
        assert (other.finding, "unit" in other.todo) == ("world_changed", False)


def test_few_rows_on_a_holiday_are_a_note():
    few = Drift("", "rows", 2000, None), Drift("", "rows_lacking", 0.6, 0.1)
    assert "add the date to monitor.holidays" in decide("cards", "2026-12-25", Watched(few, (), {})).todo
    found = decide("cards", "2026-12-25", Watched(few, (), {}, is_holiday=True))
    assert found.finding == "nothing"
    assert found.evidence[0].startswith("A holiday: 2,000 rows, 60% fewer than usual on this weekday")
    broken = (*few, Drift("amount", "null_share", 0.4, 0.02))
    assert decide("cards", "2026-12-25", Watched(broken, (), {}, is_holiday=True)).finding == "data_broke"


@pytest.mark.parametrize("statistic", ["canary_recall", "arrival_hours", "score_psi", "score_shift"])
def test_some_statistics_are_evidence_but_no_finding(statistic):
    value, bound = (0.1, 0.8) if statistic == "canary_recall" else (0.8, 0.1)
    found = find(Drift("shift amount", statistic, value, bound))
    assert (found.finding, found.todo) == ("nothing", "")
    assert len(found.evidence) == 1


def test_too_few_nights_to_know_what_is_usual_are_said():
    found = decide("cards", "2026-11-20", Watched([], (), {}))
    assert found.finding == "nothing"
    assert "Fewer than 5 earlier nights" in found.evidence[0]


@pytest.mark.parametrize(
    ("statistic", "sentence"),
    [
        ("flags_lacking", "95% fewer flags than normal rows alone should give; up to 60% fewer is chance."),
        ("week_flags_lacking", "Over a week 95% fewer flags than normal rows alone should give; up to 60% fewer"),
        ("false_alarms_in_excess", "In the latest nights with labels, 95% more false alarms than the calibration says"),
    ],
)
def test_flags_that_do_not_fit_the_calibration_are_said_and_make_no_finding(statistic, sentence):
    found = find(Drift("", statistic, 0.95, 0.6))
    assert found.finding == "nothing"
    assert any(one.startswith(sentence) for one in found.evidence)
    assert find(Drift("", statistic, 0.5, 0.6)).evidence == ()
