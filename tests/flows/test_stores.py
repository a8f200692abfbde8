"""Backup and restore of a whole project, as a user types them."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from toy import CUTOFF, DAYS, FIRST, Project, make_rows

from flows.cli import execute
from tasks.tables import metadata
from tasks.warehouse import begin, open_engine

LAST = FIRST + timedelta(days=DAYS - 1)
STORES = ("lake", "warehouse.duckdb", "mlflow.db", "mlflow-artifacts")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command with --json and return the one document it prints."""
    assert execute([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def read_tables(home: Path) -> dict[str, list[str]]:
    with begin(open_engine(f"duckdb:///{home}/warehouse.duckdb")) as connection:
        return {t.name: sorted(map(repr, connection.execute(sa.select(t)))) for t in metadata.sorted_tables}


def test_a_project_works_on_from_a_backup_in_another_home_and_in_its_own(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, other = trained.folder / ".nightjar", tmp_path / "elsewhere"
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    record = f"{LAST:%m%d}-0299"
    status, told = answer(capsys, "status", "orders"), answer(capsys, "explain", "orders", record)
    tables = read_tables(home)
    made = answer(capsys, "backup", str(tmp_path / "copy"))
    assert made["rows"]["scoring_batches"] == 2
    for name in STORES:
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setenv("NIGHTJAR_HOME", str(other))
    restored = answer(capsys, "restore", str(tmp_path / "copy"))
    assert restored["files"] == made["files"]
    assert read_tables(other) == tables
    assert answer(capsys, "status", "orders") == status
    assert answer(capsys, "explain", "orders", record) == told
    assert answer(capsys, "promote", "orders") == {"detector": "orders", "champion": 2, "before": 1}
    late = LAST + timedelta(days=1)
    trained.write_day(late, make_rows(late))
    assert answer(capsys, "score", "orders", "--date", str(late))["model_version"] == 2
    assert answer(capsys, "rollback", "orders")["champion"] == 1
    trained.change("params.yaml", "detectors", "orders", "retention", value={"quarantine_days": 1})
    planned = answer(capsys, "prune", "orders", "--dry-run")["removed"]
    assert [one["what"] for one in planned] == ["quarantine"]
    assert answer(capsys, "prune")["removed"] == planned
    assert execute(["prune", "orders"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    assert execute(["restore", str(tmp_path / "copy")]) == 1
    assert "not empty" in capsys.readouterr().err

    monkeypatch.delenv("NIGHTJAR_HOME")
    assert execute(["restore", str(tmp_path / "copy")]) == 0
    assert "restored the backup of" in capsys.readouterr().out
    assert read_tables(home) == tables
    assert answer(capsys, "status", "orders") == status
    assert answer(capsys, "explain", "orders", record) == told
