"""The flows over all detectors: freshness and the weekly training. For their nights, see test_past."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest
from mlflow import MlflowClient
from prefect.client.schemas.objects import State
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from flows.config.setup import Setup, load_setup
from flows.every import list_missed, prune_every, retrain_every, score_every
from flows.freshness import DUE_BY, find_causes, read_known, watch_freshness
from flows.status import StatusLine, list_in_service
from tasks.upkeep.ledger import BatchState

LAST = FIRST + timedelta(days=DAYS - 1)
NEXT = LAST + timedelta(days=1)
FRESH = {"fresh": 1, "stale": 0, "failed": 0, "missing": 0, "early": 0}


def test_the_freshness_watch_names_rejected_and_missing_nights_and_is_red_once_for_each_cause(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Setup, "yesterday", lambda setup, now=None: NEXT)
    missing = f"orders: {NEXT} was due and is not published: nothing has landed"
    assert watch() == ("Failed", missing)
    assert watch() == ("StillLate", missing)
    assert watch(max_days_behind=100_000) == ("Completed", "1 fresh")
    assert watch() == ("StillLate", missing)

    trained.write_day(NEXT, make_rows(NEXT).head(3))
    assert execute(["score", "orders", "--date", str(NEXT)]) == 1
    name, rejected = watch()
    assert name == "Failed"
    assert rejected.startswith(f"orders: {NEXT} failed: BatchRejected: The batch broke the contract: rows ")
    assert rejected.endswith(": got 3; nothing of it is scored or trained on.")
    assert "\n" not in rejected
    assert execute(["score", "orders", "--date", str(NEXT)]) == 1  # the same cause
    assert watch() == ("StillLate", rejected)
    assert execute(["status", "orders", "--check"]) == 1
    assert read_known("freshness") == [rejected]

    later = NEXT + timedelta(days=1)
    monkeypatch.setattr(Setup, "yesterday", lambda setup, now=None: later)
    name, both = watch()
    assert (name, both.splitlines()[0]) == ("Failed", rejected)
    assert both.splitlines()[1] == f"orders: {later} was due and is not published: nothing has landed"
    trained.write_day(NEXT)
    trained.write_day(later)
    for day in (NEXT, later):
        assert execute(["score", "orders", "--date", str(day)]) == 0, capsys.readouterr().err
    assert watch() == ("Completed", "1 fresh")
    monkeypatch.setattr(Setup, "yesterday", lambda setup, now=None: later + timedelta(days=1))
    assert watch()[0] == "Failed"


def watch(**parameters: int) -> tuple[str, str]:
    """The name and the message of the watch's final state."""
    state: State[Any] = watch_freshness(**parameters, return_state=True)
    return str(state.name), str(state.message)


def test_the_causes_of_lateness_are_readable(trained: Project) -> None:
    due = load_setup("orders").yesterday(datetime.now(UTC) - DUE_BY)
    line = StatusLine("orders", 1, date(2026, 4, 2), None, FRESH, None)  # type: ignore[arg-type]
    assert find_causes(line, 100_000) == []
    never = replace(line, newest_night=None)
    assert find_causes(never, 0) == [f"{due} was due and is not published: nothing has landed"]
    unscored = replace(line, nights=(BatchState(due, "missing", "never scored", None, 1),))
    assert find_causes(unscored, 0) == [f"{due} was due and is not published: never scored"]
    broken = replace(line, error="params.yaml: no")
    assert find_causes(broken, 0) == ["params.yaml: no"]
    failed = replace(line, nights=(BatchState(due, "failed", "BatchRejected: no rows", None, 1),))
    for behind in (0, 100_000):
        assert find_causes(failed, behind) == [f"{due} failed: BatchRejected: no rows"]


@pytest.mark.parametrize(("hour", "is_late"), [(5, False), (6, True), (23, True)])
def test_a_night_is_due_from_six_in_the_detectors_own_time_zone(
    trained: Project, monkeypatch: pytest.MonkeyPatch, hour: int, is_late: bool
) -> None:
    zone = ZoneInfo("America/New_York")
    trained.change("params.yaml", "detectors", "orders", "time_zone", value=zone.key)
    monkeypatch.setattr("flows.freshness.datetime", Mock(now=lambda _: datetime(2026, 4, 4, hour, 30, tzinfo=zone)))
    line = StatusLine("orders", 1, date(2026, 4, 2), None, FRESH, None)  # type: ignore[arg-type]
    expected = ["2026-04-03 was due and is not published: nothing has landed"] if is_late else []
    assert find_causes(line, 0) == expected


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
    site = load_setup("orders").site
    client = MlflowClient(site.registry.uri)
    run = client.get_run(str(client.get_model_version(site.registry.model_name, "2").run_id))
    losses = client.get_metric_history(run.info.run_id, "stopping_loss")
    assert [one.step for one in losses] == list(range(1, len(losses) + 1))
    assert {one.dataset.name for one in run.inputs.dataset_inputs} >= {"fit", "calibration", "test"}
    pictures = {one.path for one in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures >= {
        f"pictures/{name}.png" for name in ("losses", "scores", "ranking", "thresholds", "confusion", "latent")
    }
    trained.change("params.yaml", "detectors", "orders", "train", "columns", "numeric", value=["items", "nothing"])
    state = retrain_every(return_state=True)
    assert state.is_failed()
    assert (state.message or "").startswith("orders: ")
