"""Faults as a user and Prefect see them: a short outage, a persistent fault, and a home that cannot be created."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from toy import DAYS, FIRST, Project

from flows.cli.main import execute
from tasks.errors import ServiceUnreachable
from tasks.stores import registry

LAST = FIRST + timedelta(days=DAYS - 1)


def test_a_registry_that_is_unreachable_for_a_moment_costs_one_retry(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    resolve = registry.Registry.get_champion

    def stumble(store: registry.Registry) -> registry.Version:
        calls.append(store.detector)
        if len(calls) == 1:
            raise ServiceUnreachable("MLflow does not answer")
        return resolve(store)

    monkeypatch.setattr(registry.Registry, "get_champion", stumble)
    assert execute(["score", "orders", "--date", str(LAST)]) == 0
    assert calls == ["orders", "orders"]
    assert f"{LAST}: 300 rows scored" in capsys.readouterr().out


def read_run(run_id: str) -> Any:
    """The flow run, as Prefect keeps it."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run_id))


def test_a_persistent_fault_fails_the_night_with_one_message_and_marks_its_attempt(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[dict[str, Any]] = []  # what Prefect's server would get: its sender drops what a busy server refuses
    monkeypatch.setattr("prefect.logging.handlers._api_log_sink", sent.append)
    lake = trained.folder / ".nightjar" / "lake"
    [part] = (lake / "landing" / "orders" / f"batch_date={LAST}").rglob("*.parquet")
    trained.change("contracts/orders.yaml", "columns", "spend", "nullable", value=True)  # forces validation
    part.write_bytes(part.read_bytes()[:-100])
    assert execute(["score", "orders", "--date", str(LAST)]) == 1
    error = capsys.readouterr().err
    assert "A part of the lake is missing or damaged." in error
    assert part.name in error
    assert "to do: " in error
    assert "Traceback" not in error
    assert error.count("A part of the lake is missing or damaged.") == 1
    [run_id] = {log["flow_run_id"] for log in sent}
    assert read_run(run_id).tags == ["orders"]
    logs = [log["message"] for log in sent]
    assert "landed 0 arrivals, 0 rows, 0 labels" in logs
    assert sum("  to do: " in text for text in logs) == 1
    assert "Traceback" not in "".join(logs)
    assert execute(["status", "orders"]) == 0
    assert "fresh" in capsys.readouterr().out  # the published night is unchanged


def test_a_first_training_without_its_source_names_the_source(
    prefect_server: None, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.change("params.yaml", "detectors", "orders", "ingest", "source", "path", value="elsewhere/*.csv")
    assert execute(["train", "orders"]) == 1
    assert "elsewhere/*.csv" in capsys.readouterr().err


def test_a_home_that_cannot_be_created_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "file" / "home"))
    assert execute(["status", "orders"]) == 1
    assert "The home folder cannot be created" in capsys.readouterr().err


def test_a_bad_file_of_another_day_stops_no_night_and_is_named_by_every_command(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    tonight, tomorrow = (LAST + timedelta(days=n) for n in (1, 2))
    trained.write_day(tonight)
    (trained.orders / f"orders-{FIRST}-late.csv").write_text("order_id,placed_at\n")
    trained.write_day(tomorrow).write_bytes(b"PK\3\4 no zip")
    assert execute(["score", "orders", "--date", str(tonight)]) == 0
    assert f"{tonight}: 300 rows scored" in capsys.readouterr().out
    assert execute(["score", "orders", "--date", str(tomorrow)]) == 1  # none of its rows have landed
    assert f"2 of {DAYS + 3} files did not land" in capsys.readouterr().err
    assert execute(["status", "orders"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"2 of {DAYS + 3} files did not land" in shown
    assert execute(["run", "orders"]) == 1
    printed = capsys.readouterr()
    assert "orders: scored by" in printed.out
    assert f"orders-{tomorrow}.csv" in printed.err
