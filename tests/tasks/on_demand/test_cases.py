"""Cases as people read them: in order, in local time, open again once a snooze has ended."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from tasks.errors import CaseMissing
from tasks.follow_up import actions
from tasks.on_demand.cases import list_cases, show_case
from tasks.publish import publish_night
from tasks.rows.params import CasesParams, ScoreParams
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.tables import Night

DAY, NOW = date(2026, 7, 1), datetime(2026, 7, 2, 4, tzinfo=UTC)
RULE = RecordRule(entity="card", pseudonymise=frozenset({"card"}), key=b"key")
CARD = RULE.pseudonym("4000")
CAUSES = json.dumps([{"column": "amount", "share": 3.0}, {"column": "hour", "share": 1.0}])
OTHERS = json.dumps([{"column": "hour", "share": 1.0}, {"column": "other", "share": 9.0}])


@pytest.fixture
def berlin(make_site: Callable[..., Site]) -> Site:
    """A site with cases 1 to 4: of a card with two flags, of a worse one, and of two records without a card."""
    site = make_site("Europe/Berlin")
    flags = pd.DataFrame(
        {
            "record_id": ["a", "b", "c", "d", "e"],
            "entity": [CARD, CARD, "other", None, None],
            "record": json.dumps({"amount": 7.5}),
            "event_time": pd.date_range("2026-07-01", periods=5, freq="h", tz="UTC"),
            "score": [5.0, 4.0, 3.0, 2.0, 1.5],
            "percentile_rank": [99.5, 99.2, 99.95, 99.5, 99.5],
            "p_value": 0.01,
            "causes": [CAUSES, OTHERS, CAUSES, CAUSES, CAUSES],
            "second_stage_probability": None,
            "suppressed": False,
        }
    )
    attempt = site.warehouse.begin_attempt("toy", DAY, "score", NOW)
    night = Night(
        detector="toy", batch_date=DAY, input_hash="h", rows_in=5, quarantined=0, excluded=0, scored=5, flagged=5,
        unseen=0, threshold=1.0, model_name="m", model_version=1, scored_at=NOW, scores=None, attempt=attempt,
        seconds=1.0,
    )  # fmt: skip
    publish_night(site.warehouse, night, flags, NOW, lambda: "h")
    return site


def act(site: Site) -> actions.Desk:
    return actions.Desk(site.warehouse, "toy", CasesParams(), "kim", NOW)


def numbers(site: Site, now: datetime = NOW, **which: Any) -> list[int]:
    return [case["case"] for case in list_cases(site, RULE, now, **which)]


def test_the_worst_case_comes_first_with_what_a_person_needs_to_choose(berlin: Site) -> None:
    worst, second, *_ = found = list_cases(berlin, RULE, NOW, "open")
    assert [case["case"] for case in found] == [2, 1, 3, 4]
    assert (worst["severity"], worst["entity"], worst["worst_rank"]) == ("medium", "other", 99.95)
    assert worst["due_at"] == "2026-07-05T06:00:00+02:00"
    assert (second["flags"], second["nights"], second["first_night"], second["worst_score"]) == (2, 1, DAY, 5.0)
    assert second["likeliest_cause"] == "amount 38%"  # of 75 % in one flag and none in the other
    assert [case["is_overdue"] for case in list_cases(berlin, RULE, NOW + timedelta(days=4))] == [True, *[False] * 3]


def test_cases_are_chosen_by_state_and_by_entity_as_itself_or_its_pseudonym(berlin: Site) -> None:
    actions.judge_case(act(berlin), 2, "expected")
    actions.snooze_case(act(berlin), 3, NOW + timedelta(days=1))
    assert numbers(berlin, state="open") == [1, 4]
    assert numbers(berlin, state="snoozed") == [3]
    assert numbers(berlin, state="closed") == [2]
    assert numbers(berlin) == [1, 4, 3, 2]
    assert numbers(berlin, entity="4000") == numbers(berlin, entity=CARD) == [1]
    assert numbers(berlin, entity="nobody") == []


def test_a_snooze_ends_by_itself(berlin: Site) -> None:
    actions.snooze_case(act(berlin), 3, NOW + timedelta(days=1))
    [asleep] = list_cases(berlin, RULE, NOW + timedelta(hours=23), "snoozed")
    assert (asleep["snoozed_until"], asleep["is_overdue"]) == ("2026-07-03T06:00:00+02:00", False)
    assert numbers(berlin, NOW + timedelta(days=1), state="open") == [2, 1, 3, 4]
    [awake] = [case for case in list_cases(berlin, RULE, NOW + timedelta(days=8)) if case["case"] == 3]
    assert (awake["state"], awake["snoozed_until"], awake["is_overdue"]) == ("open", None, True)


def test_one_case_is_shown_with_its_flags_and_its_history(berlin: Site) -> None:
    actions.judge_case(act(berlin), 1, "new_trend", "since July")
    shown = show_case(berlin, ScoreParams(), 1, NOW)
    assert [(flag["record_id"], flag["record"], flag["verdict"], flag["note"]) for flag in shown["records"]] == [
        ("a", {"amount": 7.5}, "new_trend", "since July"), ("b", {"amount": 7.5}, "new_trend", "since July"),
    ]  # fmt: skip
    assert shown["records"][0]["causes"] == ["amount 75%", "hour 25%"]
    assert [(event["kind"], event["actor"], event["happened_at"]) for event in shown["history"]] == [
        ("opened", "nightjar", "2026-07-02T06:00:00+02:00"),
        ("verdict", "kim", "2026-07-02T06:00:00+02:00"),
        ("closed", "kim", "2026-07-02T06:00:00+02:00"),
    ]
    with pytest.raises(CaseMissing, match="toy has no case 5"):
        show_case(berlin, ScoreParams(), 5, NOW)
