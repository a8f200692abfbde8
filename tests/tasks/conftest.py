"""Shared by the tests of the steps: a separate site for each test, and a short way to write rows to a zone."""

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from sites import open_site

from tasks.ingest import land
from tasks.rows.params import EventTime, IngestParams
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse


@pytest.fixture(scope="session")
def empty_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated DuckDB file to copy: migrating costs more than most tests."""
    path = tmp_path_factory.mktemp("warehouse") / "empty.duckdb"
    Warehouse(f"duckdb:///{path}").migrate()
    return path


@pytest.fixture
def engine(warehouse_url: str, empty_warehouse: Path) -> Warehouse:
    """A migrated warehouse; each test runs once on DuckDB and once on PostgreSQL."""
    engine = Warehouse(warehouse_url)
    if engine.engine.dialect.name == "duckdb":
        shutil.copy(empty_warehouse, str(engine.engine.url.database))
    engine.migrate()
    return engine


@pytest.fixture
def make_site(tmp_path: Path, empty_warehouse: Path) -> Callable[..., Site]:
    """Make sites of the detector "toy" under one temporary folder, with a migrated DuckDB warehouse."""

    def make(time_zone: str = "UTC", label_delay_days: int = 0, lake_root: str | None = None) -> Site:
        (tmp_path / "sources").mkdir(exist_ok=True)
        if not (tmp_path / "warehouse.duckdb").exists():
            shutil.copy(empty_warehouse, tmp_path / "warehouse.duckdb")
        calendar = {"time_zone": time_zone, "label_delay": timedelta(days=label_delay_days)}
        return open_site(tmp_path, lake=Lake(lake_root or str(tmp_path / "lake")), **calendar)

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
