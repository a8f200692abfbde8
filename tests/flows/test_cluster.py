"""A night on a real Dask cluster: the same table as on one machine, with killed workers and an untouched warehouse."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from cluster import Cluster, start_cluster, wait_until
from toy import DAYS, FIRST, make_rows, point_to

from flows.cli.main import execute
from tasks.stores.tables import flagged_anomalies, scoring_batches
from tasks.stores.warehouse import Warehouse

NIGHT = FIRST + timedelta(days=DAYS)
Victim = subprocess.Popen[bytes]
CHANCE = {"scored_at", "seconds"}
PARTS = 9
SCORE = ["score", "orders", "--date", str(NIGHT)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with start_cluster(tmp_path_factory.mktemp("dask") / "cluster", workers=2) as running:
        yield running


@pytest.fixture
def place(
    trained_folder: Path, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Copy the trained project, with its warehouse on PostgreSQL and many deliveries waiting for the night."""

    def make(name: str) -> Path:
        shutil.copytree(trained_folder, tmp_path / name)
        point_to(monkeypatch, tmp_path / name)
        with psycopg.connect(f"{postgres_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
            connection.execute(f"create database {name}")
        monkeypatch.setenv("NIGHTJAR_WAREHOUSE", f"{postgres_url}/{name}")
        rows = make_rows(NIGHT, 600)
        for number in range(PARTS):
            share = rows[number::PARTS]
            share.to_csv(tmp_path / name / "sources" / "orders" / f"orders-{NIGHT}-{number:02d}.csv", index=False)
        return tmp_path / name

    return make


def read_table(url: str) -> dict[str, list[str]]:
    with Warehouse(url).begin() as connection:
        return {
            table.name: sorted(
                map(repr, connection.execute(sa.select(*(c for c in table.c if c.name not in CHANCE))).all())
            )
            for table in (flagged_anomalies, scoring_batches)
        }


def count_sessions(postgres_url: str, name: str) -> int:
    """How many times a database was opened."""
    with psycopg.connect(f"{postgres_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute("select pg_stat_clear_snapshot()")
        row = connection.execute("select sessions from pg_stat_database where datname = %s", [name]).fetchone()
    return int(row[0]) if row else 0


def list_receipts(folder: Path) -> dict[str, int]:
    found = (folder / ".nightjar/lake/scores/orders" / f"batch_date={NIGHT}").rglob("part-*.json")
    return {path.name: path.with_suffix(".parquet").stat().st_mtime_ns for path in found}


def test_a_cluster_gives_the_same_table_as_one_machine_even_if_a_worker_is_killed(
    place: Callable[[str], Path], cluster: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("alone")
    assert execute(SCORE) == 0
    folder = place("together")
    monkeypatch.setenv("NIGHTJAR_TASK_RUNNER", cluster.address)
    cluster.let(2)

    def kill_one() -> int:
        wait_until(lambda: len(list_receipts(folder)) >= 2)
        cluster.workers[0].kill()
        cluster.workers[0].wait()
        receipts = len(list_receipts(folder))
        cluster.let(PARTS - receipts)
        return receipts

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one)
        assert execute(SCORE) == 0
        assert killed.result() < PARTS
    assert len(list_receipts(folder)) == PARTS
    assert read_table(f"{postgres_url}/together") == read_table(f"{postgres_url}/alone")
    assert count_sessions(postgres_url, "together") == count_sessions(postgres_url, "alone") > 0
    assert execute(["verify", "orders"]) == 0


def test_a_night_whose_workers_or_scheduler_die_fails_in_bounded_time_and_can_be_resumed(
    place: Callable[[str], Path],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = place("deserted")
    monkeypatch.setenv("NIGHTJAR_TASK_RUNNER", cluster.address)
    monkeypatch.setattr("tasks.spread.PATIENCE_S", 2)

    def run_and_kill(victims: list[Victim], receipts: int) -> str:
        cluster.let(receipts - len(list_receipts(folder)))

        def kill() -> None:
            wait_until(lambda: len(list_receipts(folder)) >= receipts)
            for victim in victims:
                victim.kill()
                victim.wait()

        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(kill)
            assert execute(SCORE) == 1
            killed.result()
        return capsys.readouterr().err

    output = run_and_kill(cluster.workers, receipts=2)
    assert "The Dask cluster has no workers." in output
    assert cluster.address in output
    assert 2 <= len(list_receipts(folder)) < PARTS
    cluster.add_workers(1)
    cluster.wait_for_workers(1)
    output = run_and_kill([cluster.scheduler], receipts=len(list_receipts(folder)) + 1)
    assert "The Dask cluster" in output[output.index("error: ServiceUnreachable") :]
    finished = list_receipts(folder)
    assert len(finished) < PARTS
    monkeypatch.delenv("NIGHTJAR_TASK_RUNNER")
    monkeypatch.setenv("NIGHTJAR_WORKERS", "3")
    assert execute(SCORE) == 0
    assert finished.items() <= list_receipts(folder).items()
