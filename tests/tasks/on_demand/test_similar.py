"""Judged cases with the same causes are found, with what was said of them."""

from datetime import UTC, date, datetime, timedelta

import pytest
from published import make_flag, publish_flags
from sites import open_site

from tasks.follow_up import actions
from tasks.on_demand.similar import compare_profiles, find_similar, profile_causes
from tasks.rows.params import CasesParams
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

DAY, NOW = date(2026, 7, 1), datetime(2026, 7, 2, 4, tzinfo=UTC)


@pytest.fixture
def site(engine: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Cases 1 to 5, in the order of their worst scores; all but the first and the last are judged."""
    flags = [
        make_flag("a", "one", 9.0, causes={"spend": 3.0, "items": 1.0}),
        make_flag("b", "one", 2.0, causes={"shop": 1.0}),
        make_flag("c", "two", 8.0, causes={"spend": 6.0, "items": 2.0}),
        make_flag("d", "three", 7.0, causes={"spend": 1.0, "items": 1.0}),
        make_flag("e", "four", 6.0, causes={"shop": 1.0, "spend": 0.2}),
        make_flag("f", "five", 5.0, causes={"spend": 3.0, "items": 1.0}),
    ]
    publish_flags(engine, DAY, flags, NOW)
    for number, verdict in enumerate(("confirmed", "false_alarm", "expected"), start=2):
        desk = actions.Desk(engine, "toy", CasesParams(), "kim", NOW + timedelta(hours=number))
        actions.judge_case(desk, number, verdict)
    return open_site(tmp_path_factory.mktemp("site"), warehouse=engine)


def test_the_judged_cases_with_the_same_causes_come_first_with_their_verdicts(site: Site) -> None:
    found = find_similar(site, 1)
    assert [(one["case"], one["entity"], one["verdict"], one["alike"]) for one in found] == [
        (2, "two", "confirmed", 1.0),
        (3, "three", "false_alarm", 0.75),  # 4 has shop; 5 has no verdict
    ]
    assert found[1]["causes"] == {"items": 0.5, "spend": 0.5}
    assert found[0]["closed_at"] == "2026-07-02T06:00:00+00:00"


def test_a_judged_case_is_not_similar_to_itself_and_an_unknown_one_to_none(site: Site) -> None:
    assert [one["case"] for one in find_similar(site, 2)] == [3]
    assert find_similar(site, 99) == []


def test_profiles_leave_out_the_rest_and_add_parts_of_a_column() -> None:
    causes = [
        {"column": "text", "part": "a", "share": 1.0},
        {"column": "spend", "share": 5.0},
        {"column": "text", "part": "b", "share": 2.0},
        {"column": "other", "share": 92.0},
    ]
    assert profile_causes(causes) == {"spend": 0.625, "text": 0.375}
    assert profile_causes([{"column": "other", "share": 1.0}]) == {}
    assert compare_profiles({"a": 0.5, "b": 0.5}, {"a": 0.25, "c": 0.75}) == 0.25
