"""A project with its lake and model files in a bucket: the same table and bundle, and every command works."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from objects import ObjectStore
from toy import DAYS, FIRST, Project, make_rows, point_to

from flows.cli.main import execute
from flows.config.setup import load_setup
from tasks.stores.tables import flagged_anomalies, scoring_batches
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)
CHANCE = {"scored_at", "seconds"}


def read_table(home: Path) -> dict[str, list[str]]:
    """The published tables without their times."""
    with Warehouse(f"duckdb:///{home}/warehouse.duckdb").begin() as connection:
        return {
            table.name: sorted(
                map(repr, connection.execute(sa.select(*(c for c in table.c if c.name not in CHANCE))).all())
            )
            for table in (flagged_anomalies, scoring_batches)
        }


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def ask(*arguments: str) -> Any:
        code = execute([*arguments, "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    return ask


def test_a_project_in_a_bucket_publishes_the_same_as_on_disk_and_every_command_works(
    trained_folder: Path,
    project: Project,
    object_store: ObjectStore,
    answer: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket, home = object_store.make_bucket(), project.folder / ".nightjar"
    monkeypatch.setenv("NIGHTJAR_LAKE", f"s3://{bucket}/lake")
    monkeypatch.setenv("NIGHTJAR_ARTIFACTS", f"s3://{bucket}/models")
    answer("run", "orders")
    assert read_table(home) == read_table(trained_folder / ".nightjar")
    hashes = [load_setup("orders").site.registry.get_champion().tags["bundle_hash"]]
    assert not (home / "lake").exists()
    assert not (home / "mlflow-artifacts").exists()
    assert object_store.list_keys(bucket, "models/orders/")
    assert object_store.list_uploads(bucket) == []

    late, bad = LAST + timedelta(days=1), make_rows(LAST + timedelta(days=1))
    bad.loc[[3, 4], "spend"] = -1.0
    project.write_day(late, bad)
    project.change("params.yaml", "detectors", "orders", "validate", value={"max_quarantined_fraction": 0.2})
    shutil.rmtree(home / "bundles")  # the bundle comes from the bucket
    assert answer("score", "orders", "--date", str(late))["quarantined"] == 2
    assert execute(["replay", "orders", "--date", str(late)]) == 0
    repaired = tmp_path / "repaired.csv"
    repaired.write_text(capsys.readouterr().out.replace("-1.0", "11.0"))
    answer("replay", "orders", "--date", str(late), "--take", str(repaired))
    assert [night["state"] for night in answer("status", "orders")["nights"]][-3:] == ["fresh"] * 3
    assert {check["result"] for check in answer("verify", "orders")["checks"]} == {"ok"}
    record = f"{late:%m%d}-0299"
    assert answer("explain", "orders", record)["record_id"] == record
    answer("erase", "orders", record)
    answer("backfill", "orders", "--from", str(late), "--to", str(late))

    before = answer("status", "orders")
    answer("backup", str(tmp_path / "copy"))
    other = object_store.make_bucket()
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("NIGHTJAR_LAKE", f"s3://{other}/lake")
    monkeypatch.setenv("NIGHTJAR_ARTIFACTS", f"s3://{other}/models")
    answer("restore", str(tmp_path / "copy"))
    assert answer("status", "orders") == before
    hashes.append(load_setup("orders").site.registry.get_champion().tags["bundle_hash"])
    point_to(monkeypatch, trained_folder)
    hashes.append(load_setup("orders").site.registry.get_champion().tags["bundle_hash"])
    assert len(set(hashes)) == 1
