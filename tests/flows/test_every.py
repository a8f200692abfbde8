"""The flows over all detectors: freshness and the weekly training. For their nights, see test_past."""

from datetime import date, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.objects import State
from toy import DAYS, FIRST, Project

from flows.cli.main import execute
from flows.config.setup import Setup, load_setup
from flows.every import list_missed, prune_every, retrain_every, score_every
from flows.freshness import find_lateness, watch_freshness
from flows.status import StatusLine, list_in_service

LAST = FIRST + timedelta(days=DAYS - 1)
FRESH = {"fresh": 1, "stale": 0, "failed": 0, "missing": 0, "early": 0}


def test_the_freshness_flow_fails_for_a_late_detector_and_says_since_when(trained: Project) -> None:
    state: State[Any] = watch_freshness(return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("orders: the newest published night is 2026-04-02, ")
    assert watch_freshness(max_days_behind=100_000, return_state=True).is_completed()


def test_the_cause_of_lateness_is_readable(trained: Project) -> None:
    line = StatusLine("orders", 1, date(2026, 4, 2), None, FRESH, None)  # type: ignore[arg-type]
    assert find_lateness(line, 100_000) == ""
    never = StatusLine("orders", 1, None, None, FRESH, None)  # type: ignore[arg-type]
    assert find_lateness(never, 0) == "no night is published yet"
    broken = StatusLine("orders", None, None, None, FRESH, "params.yaml: no")  # type: ignore[arg-type]
    assert find_lateness(broken, 0) == "params.yaml: no"
    failed = StatusLine("orders", 1, date(2026, 4, 2), None, FRESH | {"failed": 2}, None)  # type: ignore[arg-type]
    assert find_lateness(failed, 100_000) == "2 nights failed: nightjar status orders"


@pytest.mark.parametrize(("hour", "is_late"), [(5, False), (6, True), (23, True)])
def test_a_night_is_due_from_six_in_the_detectors_own_time_zone(
    trained: Project, monkeypatch: pytest.MonkeyPatch, hour: int, is_late: bool
) -> None:
    zone = ZoneInfo("America/New_York")
    trained.change("params.yaml", "detectors", "orders", "time_zone", value=zone.key)
    monkeypatch.setattr("flows.freshness.datetime", Mock(now=lambda _: datetime(2026, 4, 4, hour, 30, tzinfo=zone)))
    line = StatusLine("orders", 1, date(2026, 4, 2), None, FRESH, None)  # type: ignore[arg-type]
    expected = "the newest published night is 2026-04-02, and 2026-04-03 was due: 1 day late" if is_late else ""
    assert find_lateness(line, 0) == expected


def test_a_scheduled_run_scores_the_detectors_of_its_time_zone(trained: Project) -> None:
    other: State[Any] = score_every(LAST, "America/New_York", return_state=True)
    assert other.is_completed()
    assert other.result() == []
    own: State[Any] = score_every(LAST, "Europe/Berlin", return_state=True)
    assert [(night.detector, night.batch_date) for night in own.result()] == [("orders", LAST)]
    trained.change("params.yaml", "detectors", "orders", "time_zone", value="Mars/Olympus")
    broken: State[Any] = score_every(LAST, "America/New_York", return_state=True)
    assert broken.is_failed()
    assert "Mars/Olympus" in str(broken.message)


def test_the_weekly_pruning_covers_every_detector_and_a_broken_one_stops_no_other(trained: Project) -> None:
    trained.change("params.yaml", "detectors", "broken", value={"time_zone": "Mars/Olympus"})
    trained.change("params.yaml", "detectors", "orders", "retention", value={"validated_days": 1})
    state: State[Any] = prune_every(return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("broken: ")
    outcomes = {outcome.detector: outcome for outcome in state.result(raise_on_failure=False)}
    assert outcomes["orders"].files > 0
    assert load_setup("orders").site.lake.dates("validated", "orders") == []


def test_only_detectors_that_run_every_night_and_have_a_champion_are_in_service(trained: Project) -> None:
    assert list(list_in_service()) == ["orders"]
    trained.change("params.yaml", "detectors", "orders", "run", "every_night", value=False)
    assert list(list_in_service()) == []


def test_a_scheduled_night_also_scores_the_dates_that_were_missed(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [LAST + timedelta(days=n) for n in (1, 2, 4)]  # nothing was delivered on the third
    for day in days:
        trained.write_day(day)
    monkeypatch.setattr(Setup, "yesterday", lambda setup, now=None: days[-1])
    state: State[Any] = score_every(return_state=True)
    assert state.is_completed(), state.message
    assert [night.batch_date for night in state.result()] == [days[2], days[0], days[1]]
    assert list_missed("orders", LAST) == []


def test_missed_nights_are_bounded(trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [LAST + timedelta(days=n) for n in range(1, 5)]
    for day in days:
        trained.write_day(day)
    assert execute(["ingest", "orders"]) == 0
    monkeypatch.setattr(Setup, "yesterday", lambda setup, now=None: days[-1])
    assert list_missed("orders", LAST) == days[:3]  # yesterday is the night itself
    assert list_missed("orders", None) == []
    for most in (2, 0):
        trained.change("params.yaml", "detectors", "orders", "run", "catch_up", value=most)
        assert list_missed("orders", LAST) == days[3 - most : 3]


def test_the_weekly_training_registers_a_challenger_for_each_detector(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    state: State[Any] = retrain_every(return_state=True)
    assert state.is_completed(), state.message
    [made] = state.result()
    assert (made.detector, made.version, made.alias, made.cause) == ("orders", 2, "challenger", "")
    trained.change("params.yaml", "detectors", "orders", "train", "columns", "numeric", value=["items", "nothing"])
    state = retrain_every(return_state=True)
    assert state.is_failed()
    assert (state.message or "").startswith("orders: ")
