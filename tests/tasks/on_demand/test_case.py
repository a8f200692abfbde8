"""One case as a page shows it: the sentence, what is usual, shares that add up, and who contradicts whom."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import make_flag, publish_flags

from models.columns import Column
from tasks.on_demand.case import find_conflicts, find_usual, share_causes, show_case_page, tell
from tasks.on_demand.night import Wanted, list_cases_of_night, list_numbers, show_night
from tasks.rows.params import ScoreParams
from tasks.rows.reference import make_bins
from tasks.stores.site import Site
from tasks.stores.tables import Drift, Finding

NOW = datetime(2026, 7, 2, 4, tzinfo=UTC)
USUAL = {"payments_1h": (1.0, 3.0), "amount": (2.0, 80.0), "age": (7.0, 7.0)}


def cause(column: str, actual: Any, expected: Any, **others: Any) -> dict[str, Any]:
    return {"column": column, "share": 1.0, "actual": actual, "expected": expected} | others


@pytest.mark.parametrize(
    ("causes", "flags", "nights", "expected"),
    [
        ([cause("payments_1h", 10, 2.4)], 1, 1, "payments_1h is 10, usually 1 to 3."),
        ([cause("payments_1h", 2, 8.4)], 1, 1, "payments_1h is 2, expected 8.4."),  # usual by itself
        ([cause("age", 9.5, 7.2)], 1, 1, "age is 9.5, usually 7."),
        ([cause("country", "KP", "DE"), cause("amount", 950.0, 20)], 3, 2,
         "country is KP, expected DE; and amount is 950, usually 2 to 80; 2 more flags in 2 nights."),
        ([cause("time", "2026-07-01 03:04:05+02:00", "around 14:00 CEST")], 2, 1,
         "time is 2026-07-01 03:04, expected around 14:00 CEST; 1 more flag in 1 night."),
        ([cause("text", "E9", "E1", part="token 3")], 1, 1, "text token 3: E9, expected E1."),
        ([{"column": "scan", "share": 1.0, "part": "row 3, column 4"}], 1, 1, "an unusual scan (row 3, column 4)."),
        ([{"column": "other", "share": 1.0}], 1, 1, "No single value explains the score."),
        ([cause("amount", None, 20)], 1, 1, "amount is None, expected 20."),
        ([cause("secret", "masked", "masked")], 1, 1, "secret is masked, expected masked."),
    ],
)  # fmt: skip
def test_a_sentence_says_what_happened(causes: list[dict[str, Any]], flags: int, nights: int, expected: str) -> None:
    assert tell({"causes": causes}, flags, nights, USUAL) == expected


@given(st.lists(st.floats(0, 1e6), max_size=6))
def test_shares_are_whole_per_cents_that_add_up(shares: list[float]) -> None:
    found = share_causes([{"column": "c", "share": share} for share in shares])
    assert sum(one["percent"] for one in found) == (100 if found else 0)
    assert len(found) == sum(share > 0 for share in shares)


@given(st.integers(0, 2**32), st.sampled_from(["numeric", "log_numeric"]))
def test_most_rows_lie_within_what_is_usual(seed: int, kind: str) -> None:
    values = np.random.default_rng(seed).gamma(2, 10, 2000)
    usual = find_usual({"amount": make_bins(Column("amount", kind), values)})
    low, high = usual["amount"]
    assert low == pytest.approx(np.quantile(values, 0.1), rel=0.05)
    assert high == pytest.approx(np.quantile(values, 0.9), rel=0.05)


@pytest.mark.parametrize("values", [np.full(50, 3.0), np.array([]), np.array([np.nan, 2.0])])
def test_columns_without_variety_have_one_usual_value_or_none(values: np.ndarray[Any, Any]) -> None:
    usual = find_usual({"amount": make_bins(Column("amount", "numeric"), values)})
    assert all(low <= high for low, high in usual.values())


def said(reviewer: str, verdict: str, word: str | None = None) -> dict[str, Any]:
    return {"reviewer": reviewer, "verdict": verdict, "said": word}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([said("ann", "anomaly", "confirmed"), said("ben", "normal", "expected")],
         ["ann: confirmed; ben: expected (1 record)"]),
        ([said("ann", "normal"), said("ann", "anomaly")], []),  # ann has changed her mind
        ([said("ann", "normal", "expected"), said("ben", "normal", "false_alarm")], []),
        ([said("ann", "anomaly"), said("ben", "unresolved")], []),
        ([said("ann", "anomaly"), said("ben", "withdrawn"), said("ben", "normal")], []),
        ([], []),
    ],
)  # fmt: skip
def test_people_disagree_by_the_latest_word_of_each(verdicts: list[dict[str, Any]], expected: list[str]) -> None:
    assert find_conflicts({("day", "r"): verdicts}) == expected


@pytest.fixture
def busy(make_site: Callable[..., Site]) -> Site:
    """Nine nights of one card, the last with many flags, all in one case."""
    site = make_site("Europe/Berlin")
    for number in range(9):
        day = date(2026, 6, 1) + timedelta(days=number)
        flags = [
            make_flag(f"{number}-{one}", "card", 1 + one / 10) for one in range(21 if number == 8 else 1 + number % 3)
        ]
        publish_flags(site.warehouse, day, flags, NOW)
    return site


def test_a_night_is_compared_with_what_monitor_finds_usual(busy: Site) -> None:
    day = date(2026, 6, 9)
    finding = Finding("toy", day, 1, "attack", ("many flags",), "look now", NOW)
    busy.warehouse.replace_drift(finding, [Drift("", "flag_rate", 1.0, 0.5), Drift("amount", "psi", 0.1, 0.2)])
    facts = show_night(busy, day, Wanted(), NOW)
    assert facts["usual"] == 10.5  # half of the 21 rows
    assert [(night["flagged"], night["usual"]) for night in facts["trend"]][-2:] == [(2, None), (21, 10.5)]
    assert facts["finding"]["evidence"] == ["many flags"]
    assert (facts["before"], facts["after"]) == (date(2026, 6, 8), None)


def test_a_long_case_comes_in_pages_worst_first_and_pages_agree(busy: Site) -> None:
    seen: list[str] = []
    for page in range(1, 4):
        facts = show_case_page(busy, ScoreParams(), 1, NOW, lambda version: {}, page)
        seen += [flag["record_id"] for flag in facts["flags"]] if facts["page_number"] == page else []
    assert len(seen) == len(set(seen)) == facts["total"] == 21 + sum(1 + number % 3 for number in range(8))
    first = show_case_page(busy, ScoreParams(), 1, NOW, lambda version: {})
    scores = [flag["score"] for flag in first["flags"]]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1.5
    assert [night["flags"] for night in first["nights"]][-1] == 21


def test_the_flags_of_a_merged_case_are_shown_although_their_entity_differs(make_site: Callable[..., Site]) -> None:
    from tasks.follow_up import actions
    from tasks.rows.params import CasesParams

    site = make_site("UTC")
    publish_flags(
        site.warehouse, date(2026, 7, 1), [make_flag("a", "card"), make_flag("b", "other"), make_flag("c", None)], NOW
    )
    desk = actions.Desk(site.warehouse, "toy", CasesParams(), "ann", NOW)
    actions.merge_case(desk, 2, 1)
    assert {flag["record_id"] for flag in show_case_page(site, ScoreParams(), 1, NOW, lambda version: {})["flags"]} == {
        "a",
        "b",
    }
    actions.merge_case(desk, 3, 1)
    facts = show_case_page(site, ScoreParams(), 1, NOW, lambda version: {})
    assert {flag["record_id"] for flag in facts["flags"]} == {"a", "b", "c"}
    [shown] = list_cases_of_night(site, date(2026, 7, 1), Wanted(), NOW)
    assert (shown["case"], shown["flags"]) == (1, 3)


def test_the_first_cause_is_read_as_json_has_it(make_site: Callable[..., Site]) -> None:
    site, name = make_site("UTC"), 'an "odd" \\ näme'
    flag = make_flag("a", "card", causes={name: 2.0})
    assert json.loads(flag["causes"])[0]["column"] == name
    other = make_flag("b", "none") | {"causes": json.dumps([{"column": "other", "share": 1.0}])}
    publish_flags(site.warehouse, date(2026, 7, 1), [flag, other], NOW)
    facts = show_night(site, date(2026, 7, 1), Wanted(cause=name), NOW)
    assert [case["cause"] for case in facts["cases"]] == [name]
    assert facts["causes"] == [(name, 1)]


def test_values_named_as_columns_of_ours_never_take_their_place(make_site: Callable[..., Site]) -> None:
    site = make_site("UTC")
    names = {"case": 7, "state": "closed", "score": "x", "entity": "none", "city": "Zürich"}
    flags = [make_flag("a", "card", record=names), make_flag("b", "other", record={"city": "Bern"})]
    publish_flags(site.warehouse, date(2026, 7, 1), flags, NOW)
    for wanted in (Wanted(value="city=zürich"), Wanted(search="ZÜRICH"), Wanted(value="Zürich")):
        assert list_numbers(site, date(2026, 7, 1), wanted, NOW) == [1]
    [row] = list_cases_of_night(site, date(2026, 7, 1), Wanted(search="zürich"), NOW)
    assert (row["case"], row["state"], row["entity"], row["record.case"]) == (1, "open", "card", 7)
