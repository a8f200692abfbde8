"""Faults as a user and Prefect see them: a service that is away for a moment, and a home that cannot be made."""

from datetime import timedelta
from pathlib import Path

import pytest
from toy import DAYS, FIRST, Project

from flows.cli.main import execute
from tasks.errors import ServiceUnreachable
from tasks.stores import registry

LAST = FIRST + timedelta(days=DAYS - 1)


def test_a_registry_that_is_away_for_a_moment_costs_one_more_try(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[str] = []
    resolve = registry.Registry.get_champion

    def stumble(store: registry.Registry) -> registry.Version:
        tries.append(store.detector)
        if len(tries) == 1:
            raise ServiceUnreachable("MLflow does not answer")
        return resolve(store)

    monkeypatch.setattr(registry.Registry, "get_champion", stumble)
    assert execute(["score", "orders", "--date", str(LAST)]) == 0
    assert tries == ["orders", "orders"]
    assert f"{LAST}: 300 rows scored" in capsys.readouterr().out


def test_a_fault_that_stays_ends_a_night_red_with_one_message_and_marks_its_try(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = trained.folder / ".nightjar" / "lake"
    [part] = (lake / "landing" / "orders" / f"batch_date={LAST}").rglob("*.parquet")
    trained.change("contracts/orders.yaml", "columns", "spend", "nullable", value=True)  # validated anew
    part.write_bytes(part.read_bytes()[:-100])
    assert execute(["score", "orders", "--date", str(LAST)]) == 1
    told = capsys.readouterr().err
    assert "A part of the lake is missing or damaged." in told
    assert part.name in told
    assert "to do: " in told
    assert "Traceback" not in told[told.index("error: ") :]
    assert execute(["status", "orders"]) == 0
    assert "fresh" in capsys.readouterr().out  # the published night stands


def test_a_home_that_cannot_be_made_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "file" / "home"))
    assert execute(["status", "orders"]) == 1
    assert "The home folder cannot be created" in capsys.readouterr().err
