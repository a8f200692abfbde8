"""What the tests of the steps share: a site of its own for each test, and a shorter way to put rows into a zone."""

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from tasks.ingest import EventTime, IngestParams, land
from tasks.lake import Manifest
from tasks.site import Site
from tasks.sources import Arrival, FilesSource
from tasks.warehouse import migrate, open_engine


@pytest.fixture(scope="session")
def empty_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated DuckDB file to copy: migrating costs more than most tests."""
    path = tmp_path_factory.mktemp("warehouse") / "empty.duckdb"
    migrate(open_engine(f"duckdb:///{path}"))
    return path


@pytest.fixture
def engine(warehouse_url: str, empty_warehouse: Path) -> sa.Engine:
    """A migrated warehouse; each test runs once on DuckDB and once on PostgreSQL."""
    engine = open_engine(warehouse_url)
    if engine.dialect.name == "duckdb":
        shutil.copy(empty_warehouse, str(engine.url.database))
    migrate(engine)
    return engine


@pytest.fixture
def make_site(tmp_path: Path, empty_warehouse: Path) -> Callable[..., Site]:
    """Make sites of the detector "toy" under one temporary folder, with a migrated DuckDB warehouse."""

    def make(time_zone: str = "UTC", label_delay_days: int = 0, lake_root: str | None = None) -> Site:
        (tmp_path / "sources").mkdir(exist_ok=True)
        if not (tmp_path / "warehouse.duckdb").exists():
            shutil.copy(empty_warehouse, tmp_path / "warehouse.duckdb")
        return Site(
            detector="toy",
            time_zone=time_zone,
            label_delay=timedelta(days=label_delay_days),
            sources=str(tmp_path / "sources"),
            lake_root=lake_root or str(tmp_path / "lake"),
            warehouse_url=f"duckdb:///{tmp_path}/warehouse.duckdb",
            mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db",
            artifacts=None,
            home=tmp_path / "home",
            device="cpu",
            threads=1,
            commit="c0ffee",
        )

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site in UTC."""
    return make_site()


@pytest.fixture
def land_rows(site: Site) -> Callable[..., dict[date, int]]:
    """Land a frame of record_id, event_time and more as one arrival, in as many slices as frames are given."""

    def land_frames(*frames: pd.DataFrame, name: str = "rows", version: str = "1") -> dict[date, int]:
        source = FilesSource(kind="files", path="unread")
        params = IngestParams(source=source, record_id="record_id", event_time=EventTime(column="event_time"))
        tables = [pa.Table.from_pandas(frame, preserve_index=False) for frame in frames]
        arrival = Arrival(name, version, datetime(2026, 3, 9, tzinfo=UTC), lambda: tables)
        return land(site, arrival, params)

    return land_frames


@pytest.fixture
def put_validated(site: Site) -> Callable[[date, pa.Table], Manifest]:
    """Put rows into the validated zone as they are, without a contract."""

    def put(day: date, *slices: pa.Table) -> Manifest:
        partition = site.lake.write("validated", site.detector, day)
        for number, table in enumerate(slices):
            with partition.part(f"part-{number}") as part:
                part.append(table)
        return partition.commit({"validation": {"input_hash": f"landing of {day}"}})

    return put
