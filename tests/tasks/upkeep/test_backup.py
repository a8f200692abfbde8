"""Backups of small stores: what is copied, what is refused, and what a restore leaves when it is cut short."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from texts import AWKWARD

from tasks.errors import BackupInvalid, ServiceUnreachable, SourceInvalid, StoreNotEmpty
from tasks.stores import warehouse
from tasks.stores.bulk import load_rows
from tasks.stores.lake import Lake
from tasks.stores.tables import attempts, case_events, case_flags, cases, flagged_anomalies, labels, metadata, reviews
from tasks.stores.warehouse import Warehouse
from tasks.upkeep import backup, registry_copy

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Stores:
    """The stores that all detectors share, and where a restore puts MLflow's files."""

    lake: Lake
    warehouse: Warehouse
    mlflow_uri: str
    artifacts: str


def back_up(stores: Stores, folder: Path, with_mlflow: bool) -> backup.BackupManifest:
    return backup.back_up(stores.lake, stores.warehouse, stores.mlflow_uri if with_mlflow else None, folder)


def restore(stores: Stores, folder: Path) -> backup.BackupManifest:
    return backup.restore(stores.lake, stores.warehouse, stores.mlflow_uri, stores.artifacts, folder)


def make_flags(record_ids: list[str]) -> pd.DataFrame:
    rows = len(record_ids)
    times = pd.Series([NOW] * rows)
    return pd.DataFrame(
        {"record_id": record_ids, "detector": "toy", "batch_date": DAY, "attempt": 1, "event_time": times,
         "score": np.linspace(1, 2, rows), "percentile_rank": 99.5, "p_value": 0.01, "threshold": 0.1 + 0.2,
         "causes": "[]", "model_name": "m", "model_version": 1, "scored_at": times,
         "second_stage_probability": [None, *[0.25] * (rows - 1)], "suppressed": False}
    )  # fmt: skip


def fill(engine: Warehouse) -> None:
    engine.migrate()
    engine.begin_attempt("toy", DAY, "score", NOW, None)
    learnt = pd.DataFrame({"record_id": AWKWARD, "label": 1, "known_at": NOW})
    engine.add_labels("toy", learnt)
    with engine.begin() as connection:
        load_rows(connection, flagged_anomalies, make_flags([*AWKWARD, "plain"]))
        of_case = {"detector": "toy", "severity": "low", "opened_at": NOW, "due_at": NOW}
        closed = {"state": "closed", "closed_at": NOW, "merged_into": 1, "batch_date": DAY, "record_id": "plain"}
        connection.execute(sa.insert(cases).values(of_case | {"case_id": 1, "state": "open", "entity": "ann"}))
        connection.execute(sa.insert(cases).values(of_case | {"case_id": 2} | closed))
        key = {"detector": "toy", "case_id": 1}
        connection.execute(sa.insert(case_flags).values(**key, batch_date=DAY, record_id="plain", attempt=1))
        event = {"number": 1, "happened_at": NOW, "kind": "note", "actor": "kim"}
        connection.execute(sa.insert(case_events).values(**key, **event, note="a\nb"))


def read_all(engine: Warehouse) -> dict[str, list[tuple[object, ...]]]:
    with engine.begin() as connection:
        tables = metadata.sorted_tables
        return {t.name: sorted(map(tuple, connection.execute(sa.select(t))), key=repr) for t in tables}


@pytest.fixture
def stores(tmp_path: Path, warehouse_url: str) -> Stores:
    """A lake with one partition, filled tables, no MLflow yet."""
    fill(Warehouse(warehouse_url))
    lake = Lake(str(tmp_path / "lake"))
    put_partition(lake, [1, 2, 3])
    return Stores(lake, Warehouse(warehouse_url), f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))


def put_partition(lake: Lake, values: list[int]) -> None:
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(pa.table({"record_id": [str(value) for value in values]}))
    partition.commit({})


def move(folder: Path, url: str) -> Stores:
    """Empty stores elsewhere."""
    lake, warehouse = Lake(str(folder / "lake")), Warehouse(url)
    return Stores(lake, warehouse, f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"))


def test_what_is_restored_is_what_was_backed_up(stores: Stores, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = back_up(stores, tmp_path / "copy", with_mlflow=True)
    assert made.rows["labels"] == len(AWKWARD)
    is_postgres = stores.warehouse.url.startswith("postgresql")
    url = request.getfixturevalue("postgres_warehouse_url") if is_postgres else f"duckdb:///{tmp_path}/new.duckdb"
    # The fixture of PostgreSQL's URL is made once a test: its database is the one that was backed up.
    url = make_database(url) if is_postgres else url
    restored = move(tmp_path / "elsewhere", url)
    restore(restored, tmp_path / "copy")
    assert read_all(Warehouse(url)) == read_all(stores.warehouse)
    old, new = stores.lake, restored.lake
    assert new.files("") == old.files("")
    assert new.get("landing", "toy", DAY) == old.get("landing", "toy", DAY)


def make_database(url: str) -> str:
    """Another empty database on the same server."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.engine.connect() as connection:
        connection.execute(sa.text(f'create database "{sa.make_url(url).database}_copy"'))
    return f"{url}_copy"


def test_a_backup_of_duckdb_fills_postgresql(tmp_path: Path, postgres_warehouse_url: str) -> None:
    source = f"duckdb:///{tmp_path}/source.duckdb"
    fill(Warehouse(source))
    backup.export_tables(Warehouse(source), tmp_path / "tables")
    backup.fill_tables(Warehouse(postgres_warehouse_url), tmp_path / "tables", warehouse.SCHEMA_VERSION)
    assert read_all(Warehouse(postgres_warehouse_url)) == read_all(Warehouse(source))


def test_tables_are_written_piece_by_piece(engine: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(engine)
    monkeypatch.setattr(backup, "ROWS", 2)
    rows = backup.export_tables(engine, tmp_path / "tables")
    assert rows["flagged_anomalies"] == len(AWKWARD) + 1
    assert len(pd.read_parquet(tmp_path / "tables" / "flagged_anomalies.parquet")) == len(AWKWARD) + 1


def test_a_backup_of_older_tables_is_migrated_after_they_are_filled(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = pd.DataFrame(
        {"detector": ["toy"], "batch_date": [DAY], "record_id": ["a"], "reviewer": ["kim"],
         "reviewed_at": [pd.Timestamp(NOW)], "verdict": ["normal"], "note": [None]}
    )  # fmt: skip
    (tmp_path / "tables").mkdir()
    old.to_parquet(tmp_path / "tables" / "reviews.parquet")
    engine = Warehouse(warehouse_url)
    backup.fill_tables(engine, tmp_path / "tables", "0001")
    with engine.begin() as connection:
        assert connection.scalar(sa.select(reviews.c.inclusion)) == 1.0


@pytest.fixture
def duckdb_stores(tmp_path: Path, empty_warehouse: Path) -> Stores:
    shutil.copy(empty_warehouse, tmp_path / "warehouse.duckdb")
    put_partition(Lake(str(tmp_path / "lake")), [1, 2, 3])
    return move(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")


def test_a_file_that_was_altered_is_found_before_anything_is_touched(duckdb_stores: Stores, tmp_path: Path) -> None:
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    victim = tmp_path / "copy" / "warehouse" / "labels.parquet"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    (tmp_path / "copy" / "warehouse" / "drift.parquet").unlink()
    with pytest.raises(BackupInvalid, match=r"drift.parquet is missing; warehouse/labels.parquet was altered"):
        restore(move(tmp_path / "new", f"duckdb:///{tmp_path}/new/w.duckdb"), tmp_path / "copy")
    assert not (tmp_path / "new" / "lake").exists()
    assert not (tmp_path / "new" / "w.duckdb").exists()


def test_a_backup_that_was_cut_short_is_none(tmp_path: Path, duckdb_stores: Stores) -> None:
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    (tmp_path / "copy" / "manifest.json").unlink()
    with pytest.raises(BackupInvalid, match="backup is incomplete"):
        restore(duckdb_stores, tmp_path / "copy")
    with pytest.raises(StoreNotEmpty, match="not empty"):
        back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)


def test_a_backup_cannot_write_outside_of_the_stores(tmp_path: Path, duckdb_stores: Stores) -> None:
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    path = tmp_path / "copy" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["../outside"] = {"size": 0, "sha256": ""}
    path.write_text(json.dumps(document))
    with pytest.raises(BackupInvalid, match="is outside the backup"):
        restore(duckdb_stores, tmp_path / "copy")


def test_stores_that_hold_something_else_are_refused(tmp_path: Path, duckdb_stores: Stores) -> None:
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    new = move(tmp_path / "new", f"duckdb:///{tmp_path}/new/w.duckdb")
    put_partition(new.lake, [4])
    with pytest.raises(StoreNotEmpty, match="The lake is not empty"):
        restore(new, tmp_path / "copy")
    new = move(tmp_path / "newer", f"duckdb:///{tmp_path}/newer/w.duckdb")
    fill(new.warehouse)
    with pytest.raises(StoreNotEmpty, match=r"attempts 1 rows, .*flagged_anomalies 11 rows"):
        restore(new, tmp_path / "copy")
    assert new.lake.files("") == {}


@pytest.mark.parametrize("step", ["import_registry", "fill_lake", "fill_tables"])
@pytest.mark.slow
def test_a_restore_that_was_cut_short_is_run_again(
    tmp_path: Path, duckdb_stores: Stores, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fill(duckdb_stores.warehouse)
    make_registry(tmp_path / "mlflow.db", tmp_path / "artifacts")
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    new = move(tmp_path / "new", f"duckdb:///{tmp_path}/new/w.duckdb")
    where = registry_copy if step == "import_registry" else backup
    whole = getattr(where, step)

    def stop_after(*arguments: object) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    def stop_before(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, step, stop_before if step == "fill_tables" else stop_after)
    with pytest.raises(KeyboardInterrupt):
        restore(new, tmp_path / "copy")
    monkeypatch.undo()
    restore(new, tmp_path / "copy")
    assert read_all(new.warehouse) == read_all(duckdb_stores.warehouse)
    assert new.lake.get("landing", "toy", DAY).rows == 3


def make_registry(database: Path, artifacts: Path) -> None:
    """The four tables of MLflow's database that name places, for two experiments of which one's name begins so too."""
    for name in ("toy", "toy2"):
        (artifacts / name / "m").mkdir(parents=True)
        (artifacts / name / "m" / "MLmodel").write_text(f"artifact_path: {(artifacts / name).as_uri()}/m\n")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("create table experiments (name text, artifact_location text)")
        connection.execute("create table runs (artifact_uri text)")
        connection.execute("create table logged_models (artifact_location text)")
        connection.execute("create table model_versions (source text, storage_location text)")
        for name in ("toy", "toy2"):
            place = (artifacts / name).as_uri()
            connection.execute("insert into experiments values (?, ?)", (f"nightjar-{name}", place))
            connection.execute("insert into runs values (?)", (f"{place}/run/artifacts",))
            connection.execute("insert into logged_models values (?)", (f"{place}/m",))
            connection.execute("insert into model_versions values (?, ?)", ("models:/m", f"{place}/m"))


def test_the_places_that_mlflow_names_move_with_it(tmp_path: Path) -> None:
    make_registry(tmp_path / "mlflow.db", tmp_path / "artifacts")
    experiments = registry_copy.export_registry(tmp_path / "mlflow.db", tmp_path / "copy")
    new = tmp_path / "new"
    registry_copy.import_registry(tmp_path / "copy", experiments, new / "mlflow.db", str(new / "artifacts"))
    with closing(sqlite3.connect(new / "mlflow.db")) as connection:
        text = "\n".join(connection.iterdump())
    assert (tmp_path / "artifacts").as_uri() not in text
    assert text.count((new / "artifacts" / "toy").as_uri() + "/") == 3
    assert text.count((new / "artifacts" / "toy2").as_uri() + "/") == 3
    assert (new / "artifacts" / "toy" / "m" / "MLmodel").read_text() == (
        f"artifact_path: {(new / 'artifacts' / 'toy').as_uri()}/m\n"
    )


def test_an_mlflow_with_other_runs_is_left_alone(tmp_path: Path, duckdb_stores: Stores) -> None:
    make_registry(tmp_path / "mlflow.db", tmp_path / "artifacts")
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    make_registry(tmp_path / "new.db", tmp_path / "others")
    before = (tmp_path / "new.db").read_bytes()
    empty = (Lake(str(tmp_path / "new")), Warehouse(f"duckdb:///{tmp_path}/n.duckdb"))
    new = Stores(*empty, f"sqlite:///{tmp_path}/new.db", str(tmp_path))
    with pytest.raises(StoreNotEmpty, match=r"MLflow is not empty[\s\S]*2 runs"):
        restore(new, tmp_path / "copy")
    assert (tmp_path / "new.db").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_tracking_server_is_refused_before_anything_is_written(tmp_path: Path, duckdb_stores: Stores) -> None:
    served = replace(duckdb_stores, mlflow_uri="http://u:s3cret@127.0.0.1:9")
    with pytest.raises(BackupInvalid, match="--without-mlflow") as refused:
        back_up(served, tmp_path / "copy", with_mlflow=True)
    assert "s3cret" not in str(refused.value)
    assert not (tmp_path / "copy").exists()
    assert back_up(served, tmp_path / "copy", with_mlflow=False).experiments is None
    restore(move(tmp_path / "new", f"duckdb:///{tmp_path}/new/w.duckdb"), tmp_path / "copy")


def test_a_damaged_part_of_the_lake_is_not_copied_as_if_it_were_whole(tmp_path: Path, duckdb_stores: Stores) -> None:
    lake = duckdb_stores.lake
    [part] = lake.get("landing", "toy", DAY).parts
    lake.replace(part.path, lake.read(part.path)[:-1] + b"!")
    with pytest.raises(SourceInvalid, match="damaged"):
        back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)


def test_what_was_pruned_from_landing_is_remembered_by_a_backup(tmp_path: Path, duckdb_stores: Stores) -> None:
    lake = duckdb_stores.lake
    lake.remember_landing("landing/toy/batch_date=2026-03-01/manifest.json")
    back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    new = move(tmp_path / "new", f"duckdb:///{tmp_path}/new/w.duckdb")
    restore(new, tmp_path / "copy")
    assert new.lake.pruned("toy") == lake.pruned("toy")


def test_files_that_no_manifest_names_stay_behind(tmp_path: Path, duckdb_stores: Stores) -> None:
    duckdb_stores.lake.replace("landing/toy/batch_date=2026-03-01/attempt=9/part-0-dead.parquet", b"dead")
    made = back_up(duckdb_stores, tmp_path / "copy", with_mlflow=True)
    assert not [name for name in made.files if "attempt=9" in name]


def test_a_lake_in_object_storage_is_copied_too(tmp_path: Path, duckdb_stores: Stores) -> None:
    remote = Lake(f"memory://{tmp_path.name}/lake")
    put_partition(remote, [7])
    back_up(replace(duckdb_stores, lake=remote), tmp_path / "copy", with_mlflow=True)
    there = Lake(f"memory://{tmp_path.name}/other")
    restore(replace(move(tmp_path, f"duckdb:///{tmp_path}/n.duckdb"), lake=there), tmp_path / "copy")
    assert there.get("landing", "toy", DAY).rows == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, duckdb_stores: Stores) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceUnreachable, match="cannot be written"):
        back_up(duckdb_stores, tmp_path / "file" / "copy", with_mlflow=True)


def test_the_tables_of_a_backup_are_of_one_moment(postgres_warehouse_url: str, tmp_path: Path, monkeypatch) -> None:
    engine = Warehouse(postgres_warehouse_url)
    fill(engine)
    export = backup._export_table
    written: list[str] = []

    def interrupt(connection: sa.Connection, table: sa.Table, folder: Path, detector: str | None) -> int:
        if not written:
            connection.execute(sa.select(sa.func.count()).select_from(labels))  # the snapshot is taken by now
            with Warehouse(postgres_warehouse_url).begin() as other:
                other.execute(sa.delete(labels))
                other.execute(sa.delete(attempts))
        written.append(table.name)
        return export(connection, table, folder, detector)

    monkeypatch.setattr(backup, "_export_table", interrupt)
    rows = backup.export_tables(engine, tmp_path / "tables")
    assert rows["labels"] == len(AWKWARD)
    assert rows["attempts"] == 1
