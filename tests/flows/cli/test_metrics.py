"""The metrics of a small project as text, as a file and over HTTP, compared with the tables."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from flows.config.setup import load_setup
from tasks.errors import BatchRejected, Failure

LAST = FIRST + timedelta(days=DAYS - 1)
Samples = dict[tuple[str, ...], float]


def parse(text: str) -> Samples:
    """Every sample by name, detector and other label."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def read_metrics(capsys: pytest.CaptureFixture[str], expected: int = 0) -> Samples:
    assert execute(["metrics"]) == expected
    return parse(capsys.readouterr().out)


def ask(project: Project, query: str) -> Any:
    """Query DuckDB directly, not through Nightjar."""
    with duckdb.connect(str(project.folder / ".nightjar" / "warehouse.duckdb")) as connection:
        return connection.execute(query).fetchall()


def add_detectors(project: Project, **sections: Any) -> None:
    """Add detectors next to the working one, each with a copy of its contract."""
    document = yaml.safe_load((project.folder / "params.yaml").read_text())
    for name, changes in sections.items():
        document["detectors"][name] = document["detectors"]["orders"] | changes
        shutil.copy(project.folder / "contracts/orders.yaml", project.folder / f"contracts/{name}.yaml")
    (project.folder / "params.yaml").write_text(yaml.safe_dump(document))


def begins(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


def test_the_metrics_equal_the_tables(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC).timestamp()
    found = read_metrics(capsys)
    columns = "scored, quarantined, excluded, flagged, published, unseen, seconds, threshold, model_version"
    [night] = ask(trained, f"select rows_in, {columns} from scoring_batches where batch_date = '{LAST}'")
    rows_in, scored, quarantined, excluded, flagged, published, unseen, seconds, threshold, version = night
    outcomes = {"scored": scored, "quarantined": quarantined, "excluded": excluded}
    assert {name: found["nightjar_night_rows", "orders", name] for name in outcomes} == outcomes
    assert sum(outcomes.values()) == rows_in
    assert found["nightjar_night_flagged_rows", "orders"] == flagged
    assert found["nightjar_night_published_rows", "orders"] == published > 0
    assert found["nightjar_night_unseen_rows", "orders"] == unseen
    assert found["nightjar_night_finding", "orders", "nothing"] == 1
    assert found["nightjar_night_finding", "orders", "attack"] == 0
    recall = f"select \"column\", value from drift where statistic = 'canary_recall' and batch_date = '{LAST}'"
    [(canary, value), *_] = ask(trained, recall)
    assert found["nightjar_night_canary_recall", canary, "orders"] == value
    assert found["nightjar_night_duration_seconds", "orders"] == seconds
    assert found["nightjar_night_threshold", "orders"] == threshold
    assert found["nightjar_night_model_version", "orders"] == version == found["nightjar_champion_version", "orders"]
    assert execute(["status", "orders", "--json"]) == 0
    states = Counter(night["state"] for night in json.loads(capsys.readouterr().out)["nights"])
    for state in ("fresh", "stale", "failed", "missing", "early"):
        assert found["nightjar_nights", "orders", state] == states[state]
    [(nights,)] = ask(trained, "select count(*) from scoring_batches")
    assert found["nightjar_attempts_total", "orders", "published"] == nights == states["fresh"] == 2
    assert found["nightjar_attempts_total", "orders", "failed"] == found["nightjar_attempts_running", "orders"] == 0
    for what, condition in {"open": "true", "critical": "severity = 'critical'", "overdue": "due_at < now()"}.items():
        [(count,)] = ask(trained, f"select count(*) from cases where state = 'open' and {condition}")
        assert found[f"nightjar_cases_{what}", "orders"] == count
    assert found["nightjar_cases_open", "orders"] > 0
    assert found["nightjar_messages_failed", "orders"] == 0
    assert found["nightjar_detector_up", "orders"] == 1
    [(schema,)] = ask(trained, "select version_num from alembic_version")
    assert found["nightjar_warehouse_schema_version",] == int(schema)
    assert before <= found["nightjar_read_timestamp_seconds",] <= datetime.now(UTC).timestamp()


def test_batch_dates_are_reported_as_the_time_they_start(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained.write_day(date(2199, 1, 1))  # not complete yet
    found = read_metrics(capsys)
    assert found["nightjar_night_batch_date_timestamp_seconds", "orders"] == begins(LAST)
    assert found["nightjar_landed_batch_date_timestamp_seconds", "orders"] == begins(LAST)
    today = datetime.now(ZoneInfo("Europe/Berlin")).date()
    assert found["nightjar_expected_batch_date_timestamp_seconds", "orders"] == begins(today - timedelta(days=1))
    trained.change("params.yaml", "detectors", "orders", "run", value={"nights": 2, "every_night": False})
    assert ("nightjar_expected_batch_date_timestamp_seconds", "orders") not in read_metrics(capsys)


def test_a_failed_night_raises_the_counter_of_failures(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    day = LAST + timedelta(days=1)
    trained.write_day(day, make_rows(day, 10))  # the contract requires 50
    before = read_metrics(capsys)
    assert execute(["score", "orders", "--date", str(day)]) == 1
    assert BatchRejected.__name__ in capsys.readouterr().err
    after = read_metrics(capsys)
    counter = ("nightjar_attempts_total", "orders", "failed")
    assert after[counter] == before[counter] + 1
    assert after["nightjar_nights", "orders", "failed"] == 1
    night = [key for key in before if key[0].startswith("nightjar_night_")]
    assert {key: after[key] for key in night} == {key: before[key] for key in night}  # the published night is unchanged


def test_a_broken_detector_hides_no_other_and_sets_the_exit_code(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    add_detectors(trained, broken={"trian": {}}, untrained={"run": {"nights": 1}})
    assert execute(["metrics"]) == 1
    captured = capsys.readouterr()
    assert "broken: params.yaml has 1 bad key." in captured.err
    found = parse(captured.out)
    up = {name: found["nightjar_detector_up", name] for name in ("broken", "orders", "untrained")}
    assert up == {"broken": 0, "orders": 1, "untrained": 1}
    assert [key for key in found if "broken" in key] == [
        ("nightjar_detector_up", "broken"),
        ("nightjar_detector_error", "broken", "ParamsInvalid"),
    ]
    assert found["nightjar_attempts_total", "untrained", "failed"] == 0
    assert ("nightjar_champion_version", "untrained") not in found


def test_without_its_registry_a_detector_is_down_but_its_nights_are_reported(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_MLFLOW", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert execute(["metrics"]) == 1
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err
    found = parse(captured.out)
    assert found["nightjar_detector_error", "orders", "ServiceUnreachable"] == 1
    assert found["nightjar_night_rows", "orders", "scored"] > 0
    assert ("nightjar_champion_version", "orders") not in found


@pytest.mark.parametrize("schema", ["0003", "9999"])
def test_tables_of_another_version_are_neither_read_nor_migrated(
    trained: Project, capsys: pytest.CaptureFixture[str], schema: str
) -> None:
    ask(trained, f"update alembic_version set version_num = '{schema}'")
    found = read_metrics(capsys, expected=1)
    assert found["nightjar_warehouse_schema_version",] == int(schema)
    assert found["nightjar_detector_error", "orders", "SchemaMismatch"] == 1
    assert ask(trained, "select version_num from alembic_version") == [(schema,)]


def test_before_the_first_run_nothing_is_wrong_and_nothing_is_created(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_metrics(capsys)
    assert found["nightjar_detector_up", "orders"] == 1
    assert not [
        key for key in found if key[0].startswith(("nightjar_night", "nightjar_warehouse", "nightjar_attempts"))
    ]
    assert ask(project, "show tables") == []


def test_labels_contain_only_detectors_and_our_own_states(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"orders", "published", "failed", "scored", "quarantined", "excluded", "fresh", "stale", "missing", "early"}
    names |= {"data_broke", "world_changed", "attack", "nothing"}
    names |= {"shift items", "shift spend", "swap items and spend", "category shop"}  # canaries of its columns
    assert {label for key in read_metrics(capsys) for label in key[1:]} == names


def test_the_textfile_is_replaced_atomically_and_reports_broken_detectors(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "collected"
    folder.mkdir()
    assert execute(["metrics", "--textfile", str(folder / "nightjar.prom")]) == 0
    assert capsys.readouterr().out == ""
    whole = parse((folder / "nightjar.prom").read_text())
    add_detectors(trained, broken={"trian": {}})
    assert execute(["metrics", "--textfile", str(folder / "nightjar.prom")]) == 1
    after = parse((folder / "nightjar.prom").read_text())
    assert after.keys() >= whole.keys()
    assert after["nightjar_detector_up", "broken"] == 0
    assert [path.name for path in folder.iterdir()] == ["nightjar.prom"]
    capsys.readouterr()
    assert execute(["metrics", "--textfile", str(tmp_path / "nowhere" / "nightjar.prom")]) == 1
    assert "A local folder cannot be written." in capsys.readouterr().err


def test_textfile_and_port_cannot_be_combined_and_a_taken_port_is_named(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["metrics", "--textfile", "x.prom", "--port", "0"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert execute(["metrics", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


@pytest.fixture
def endpoint(trained: Project) -> Iterator[str]:
    """The address of `nightjar metrics --port` in a separate process, which must exit cleanly."""
    command = [sys.executable, "-m", "flows.cli.main", "metrics", "--port", "0"]
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_each_scrape_reads_again_and_does_not_fail_without_the_warehouse(trained: Project, endpoint: str) -> None:
    base = endpoint.removesuffix("/metrics")
    assert get(f"{base}/health") == (200, "ok\n")
    assert get(base)[0] == 404
    status, text = get(endpoint)
    before = parse(text)
    assert (status, before["nightjar_detector_up", "orders"]) == (200, 1)

    engine, now = load_setup("orders").site.warehouse, datetime.now(UTC)
    attempt = engine.begin_attempt("orders", LAST, "score", now)
    assert parse(get(endpoint)[1])["nightjar_attempts_running", "orders"] == 1
    engine.fail_attempt("orders", LAST, attempt, Failure("OSError", {"what": "a test"}), now)
    assert parse(get(endpoint)[1])["nightjar_attempts_total", "orders", "failed"] == 1

    warehouse = trained.folder / ".nightjar" / "warehouse.duckdb"
    warehouse.rename(warehouse.with_suffix(".away"))
    warehouse.mkdir()
    status, text = get(endpoint)
    away = parse(text)
    assert (status, away["nightjar_detector_up", "orders"]) == (200, 0)
    assert away["nightjar_detector_error", "orders", "ServiceUnreachable"] == 1
    assert get(f"{base}/health")[0] == 200
    warehouse.rmdir()
    warehouse.with_suffix(".away").rename(warehouse)
    assert parse(get(endpoint)[1])["nightjar_detector_up", "orders"] == 1

    (trained.folder / "params.yaml").write_text("detectors: [")
    status, text = get(endpoint)
    assert status == 503
    assert "params.yaml is not valid YAML" in text


@pytest.mark.parametrize(
    "change",
    [
        "delete from model_version_tags",
        "update model_version_tags set value = 'garbage'",
        "update registered_model_tags set key = 'champion_since.yesterday', value = 'x'; "
        "delete from model_version_tags where key = 'trained_through'",
        "insert into model_versions (name, version, creation_time, last_updated_time, current_stage) "
        "select name, 2, creation_time, last_updated_time, current_stage from model_versions where version = 1; "
        "update registered_model_aliases set version = 2",
    ],
)
def test_a_champion_that_nightjar_did_not_register_hides_no_other_detector(
    trained: Project, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    add_detectors(trained, untrained={})
    with sqlite3.connect(trained.folder / ".nightjar/mlflow.db") as connection:
        connection.executescript(change)
    found = read_metrics(capsys, expected=1)
    assert [found["nightjar_detector_up", name] for name in ("orders", "untrained")] == [0, 1]
    assert found["nightjar_detector_error", "orders", "BundleInvalid"] == 1
    assert execute(["status", "--json"]) == 1
    lines = {line["detector"]: line["error"] for line in json.loads(capsys.readouterr().out)["detectors"]}
    assert "is not a Nightjar bundle" in lines["orders"]
    assert lines["untrained"] is None
    for command in (["status", "orders"], ["run", "orders"], ["prune", "orders"]):
        assert execute(command) == 1
        assert "nightjar promote orders VERSION" in capsys.readouterr().err
    if "version = 2" in change:  # the advice helps
        assert execute(["promote", "orders", "2"]) == 1
        assert execute(["promote", "orders", "1"]) == 0
        assert execute(["status"]) == 0
