"""Backup, restore and erasure in a whole project, from the command line."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from toy import CUTOFF, DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from tasks.stores.tables import metadata
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)
STORES = ("lake", "warehouse.duckdb", "mlflow.db", "mlflow-artifacts")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command with --json and return the one document it prints."""
    assert execute([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def read_tables(home: Path) -> dict[str, list[str]]:
    with Warehouse(f"duckdb:///{home}/warehouse.duckdb").begin() as connection:
        return {t.name: sorted(map(repr, connection.execute(sa.select(t)))) for t in metadata.sorted_tables}


def test_a_project_restored_in_another_home_or_its_own_continues_to_work(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, other = trained.folder / ".nightjar", tmp_path / "elsewhere"
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    record = f"{LAST:%m%d}-0299"
    status, explained = answer(capsys, "status", "orders"), answer(capsys, "explain", "orders", record)
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
    assert answer(capsys, "explain", "orders", record) == explained
    assert answer(capsys, "promote", "orders") == {"detector": "orders", "champion": 2, "before": 1, "note": ""}
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
    assert answer(capsys, "explain", "orders", record) == explained


def mentions(home: Path, record_id: str) -> list[str]:
    """The files and tables in a home that contain a record ID; Parquet files and databases are read."""
    found = [f"table {name}" for name, rows in read_tables(home).items() if any(record_id in row for row in rows)]
    for path in sorted(path for path in home.rglob("*") if path.is_file() and "prefect" not in path.parts):
        held = str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
        if record_id.encode() in held and path.suffix not in (".duckdb", ".db"):
            found.append(str(path))
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        return found + ["mlflow.db"] * any(record_id in line for line in connection.iterdump())


def test_an_erased_record_is_found_nowhere_and_its_night_is_scored_again_without_it(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    home, record, learnt = trained.folder / ".nightjar", f"{LAST:%m%d}-0299", f"{FIRST:%m%d}-0007"
    assert mentions(home, record)
    # The first run may have written its summary to the Prefect of another xdist worker; this night writes one here.
    assert answer(capsys, "score", "orders", "--date", str(LAST))
    erased = answer(capsys, "erase", "orders", record)
    zones = {place["what"]: place["rows"] for place in erased["places"]}
    lake, tables = ("landing", "validated", "scores", "unused files in scores"), ("flagged_anomalies", "labels")
    expected = (*lake, *tables, "superseded_anomalies", "cases", "case_flags", "case_events")
    assert zones == dict.fromkeys(expected, 1)
    assert erased["pages"] == [f"reports/orders/{LAST}.html"]
    assert (erased["stale"], erased["fitted"], erased["left"]) == ([str(LAST)], [], [])
    assert erased["summaries"] >= 1
    assert mentions(home, record) == []
    states = {night["batch_date"]: night["state"] for night in answer(capsys, "status", "orders")["nights"]}
    assert states[str(LAST)] == "stale"
    assert answer(capsys, "backfill", "orders", "--from", str(LAST), "--to", str(LAST))["dates"] == [str(LAST)]
    assert answer(capsys, "status", "orders")["nights"][-1]["state"] == "fresh"
    assert mentions(home, record) == []
    assert execute(["erase", "orders", record]) == 1
    assert "does not have this record" in capsys.readouterr().err

    assert execute(["erase", "orders", learnt]) == 0
    shown = capsys.readouterr().out
    assert "version 1 (champion) may have learnt from it" in shown
    assert "backfill" not in shown
    assert mentions(home, learnt) == []
