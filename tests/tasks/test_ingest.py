import dataclasses
import gc
import gzip
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.ingest import find_strays, ingest_arrivals, land
from tasks.rows.contract import Contract
from tasks.rows.labels import interpret_labels
from tasks.rows.params import EventTime, IngestParams, LabelColumn, ValidateParams
from tasks.rows.schema import batch_dates_of
from tasks.sources import payments
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource
from tasks.sources.kinds import Window
from tasks.sources.sql import SqlSource
from tasks.stores.lake import Lake, PartitionWriter
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse
from tasks.validate import STRAY, validate_batches

DAY = date(2026, 3, 1)
NEXT = date(2026, 3, 2)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
WINDOW = Window(DAY, NEXT, LATER)
CSV = (
    "payment_id,at,amount,country\n"
    "p1,2026-03-01T10:00:00Z,12.5,DE\n"
    'p2,2026-03-02T00:00:00Z,"12,50",FR\n'
    "p3,2026-03-01T23:59:59.999999Z,,\n"
)


def configure(path: str = "unread.csv", record_id: str | None = "payment_id", **changes) -> IngestParams:
    """The ingest section of files with the columns of CSV."""
    fields = {"source": FilesSource(kind="files", path=path), "event_time": EventTime(column="at")} | changes
    return IngestParams(record_id=record_id, **fields)


def ingest(site: Site, params: IngestParams, now: datetime = LATER):
    return ingest_arrivals(site, params, Window(DAY, NEXT, now))


def read_landing(site: Site, *days: date) -> pd.DataFrame:
    days = days or site.lake.dates("landing", "toy")
    parts = [part for day in days for part in site.lake.get("landing", "toy", day).parts]
    return pd.concat([s.to_pandas() for part in parts for s in site.lake.slices(part)], ignore_index=True)


def put(site: Site, name: str, data: str | bytes) -> Path:
    path = Path(site.sources) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def as_parquet(text: str = CSV) -> bytes:
    sink = pa.BufferOutputStream()
    frame = pd.DataFrame([line.split(";") for line in text.replace('"12,50"', "12.50").replace(",", ";").splitlines()])
    pq.write_table(pa.Table.from_pandas(frame.iloc[1:].set_axis(frame.iloc[0], axis=1), preserve_index=False), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "data", "path"),
    [
        ("pay.csv", CSV.encode(), "pay.csv"),
        ("pay.csv.gz", gzip.compress(CSV.encode(), mtime=0), "pay.csv.gz"),
        ("pay.parquet", as_parquet(), "pay.parquet"),
        ("in/pay.csv", CSV.encode(), "in"),
        ("in/deeper/pay.parquet", as_parquet(), "in"),
        ("in/pay.csv", CSV.encode(), "in/p*.csv"),
        ("in/2026/pay.csv.gz", gzip.compress(CSV.encode(), mtime=0), "in/*/pay.*"),
    ],
)
def test_files_of_each_kind_land_by_date(site, name, data, path):
    put(site, name, data)
    done = ingest(site, configure(path))
    assert (done.dates, done.arrivals, done.rows, done.labels) == ((DAY, NEXT), 1, 3, 0)
    assert read_landing(site, DAY)["record_id"].tolist() == ["p1", "p3"]
    assert read_landing(site, NEXT)["record_id"].tolist() == ["p2"]


@pytest.mark.parametrize("held_bytes", [0, 1 << 28])
def test_dates_beyond_the_open_files_land_whole_and_once(site, monkeypatch, held_bytes):
    monkeypatch.setattr("tasks.ingest.OPEN_FILES", 2)
    monkeypatch.setattr("tasks.ingest.HELD_BYTES", held_bytes)
    monkeypatch.setattr("tasks.sources.content.SLICE_ROWS", 4)
    days = [date(2020, 1, 1) + timedelta(days=(7 * n) % 20) for n in range(60)]
    frame = pd.DataFrame({"payment_id": [f"p{n}" for n in range(60)], "at": days, "amount": range(60)})
    frame.to_parquet(put(site, "pay.parquet", b""))
    window = Window(date(2020, 1, 1), date(2020, 12, 31), LATER)
    done = ingest_arrivals(site, configure("pay.parquet"), window)
    assert (len(done.dates), done.rows) == (20, 60)
    assert ingest_arrivals(site, configure("pay.parquet"), window).arrivals == 0
    for day in set(days):
        assert read_landing(site, day)["amount"].tolist() == [n for n in range(60) if days[n] == day]


def test_rows_without_a_time_join_the_date_with_most_rows(site):
    put(site, "pay.csv", CSV + "p4,,1,DE\np5,TOTAL,1,DE\n")
    ingest(site, configure("pay.csv"))
    assert read_landing(site, DAY)["record_id"].tolist() == ["p1", "p3", "p4", "p5"]


def test_local_times_land_on_the_date_of_their_zone(site):
    site = dataclasses.replace(site, time_zone="Europe/Berlin")
    put(site, "pay.csv", CSV.replace("Z", ""))
    ingest(site, configure("pay.csv", event_time=EventTime(column="at", local=True)))
    assert read_landing(site, DAY)["record_id"].tolist() == ["p1", "p3"]
    assert read_landing(site, DAY)["event_time"][0] == pd.Timestamp("2026-03-01T09:00Z")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_source_may_be_any_fsspec_url(site, tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/bucket/pay.csv"
    with fsspec.open(url, "w", auto_mkdir=True) as file:
        file.write(CSV)
    assert ingest(site, configure(url)).rows == 3
    assert ingest(site, configure(url)).arrivals == 0


@pytest.mark.parametrize("name", ["events.log", "events.gz"])
def test_a_line_is_a_record_and_an_empty_one_has_no_text(site, name, monkeypatch):
    monkeypatch.setattr("tasks.sources.content.SLICE_ROWS", 2)
    text = b'5 22 5 \n\n5,9;"x\n'
    put(site, name, gzip.compress(text, mtime=0) if name.endswith("gz") else text)
    source = FilesSource(kind="files", path=name, line_column="events")
    ingest(site, configure(source=source, record_id=None, event_time=EventTime(rows_per_day=9, first_date=DAY)))
    assert read_landing(site)["events"].fillna("null").tolist() == ["5 22 5", "null", '5,9;"x']


def test_the_file_a_row_came_from_may_be_its_label(site):
    put(site, "in/good.log", "1\n2\n")
    put(site, "in/bad.log", "3\n")
    changes = {
        "source": FilesSource(kind="files", path="in", line_column="events"),
        "event_time": EventTime(rows_per_day=9, first_date=DAY),
        "labels": LabelColumn(column="file", normal=("good.log",)),
    }
    assert ingest(site, configure(record_id=None, file_column="file", **changes)).labels == 3
    rows = read_landing(site).set_index("record_id")
    assert rows["file"].to_dict() == {f"{n}.log:{k:09d}": f"{n}.log" for n, k in (("bad", 0), ("good", 0), ("good", 1))}
    labels = site.warehouse.read_labels("toy", LATER)
    assert labels.loc[labels["label"] == 1, "record_id"].tolist() == ["bad.log:000000000"]


def test_text_that_is_not_utf_8_is_refused(site):
    put(site, "bad.log", b"\xff\xfe\x00")
    source = FilesSource(kind="files", path="bad.log", line_column="events")
    with pytest.raises(SourceInvalid, match="damaged"):
        ingest(site, configure(source=source, record_id=None, event_time=EventTime(rows_per_day=9, first_date=DAY)))


def test_values_of_a_csv_stay_text_until_validation(site):
    put(site, "pay.csv", CSV)
    ingest(site, configure("pay.csv"))
    rows = read_landing(site).set_index("record_id")
    assert rows.columns.tolist() == ["event_time", "amount", "country"]
    assert rows.loc[["p1", "p2"], "amount"].tolist() == ["12.5", "12,50"]
    assert rows.loc["p3", ["amount", "country"]].isna().all()
    assert rows.loc["p3", "event_time"] == pd.Timestamp("2026-03-01T23:59:59.999999Z")


def test_rows_of_a_query_land_whatever_is_null_in_the_first_slice(site, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.sources.sql.SLICE_ROWS", 2)
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("create table payments (payment_id text, at text, amount real, country text)")
        rows = [("p1", None, None), ("p2", 2, None), ("p3", 3.5, "DE"), ("p4", None, "FR"), ("p5", 5, None)]
        moments = [f"2026-03-0{1 + i % 2} 12:00:00" for i in range(5)]
        connection.executemany(
            "insert into payments values (?, ?, ?, ?)",
            [(record, at, *values) for at, (record, *values) in zip(moments, rows, strict=True)],
        )
    source = SqlSource(kind="sql", url=f"sqlite:///{tmp_path}/source.db", query="select * from payments")
    now = datetime(2026, 3, 3, tzinfo=UTC)  # the flow's clock, which stood before the query is read
    done = ingest(site, configure(source=source), now)
    assert (done.dates, done.rows) == ((DAY, NEXT), 5)
    found = read_landing(site).set_index("record_id").sort_index()
    assert found["amount"].fillna(-1).tolist() == [-1, 2, 3.5, -1, 5]
    assert found["country"].fillna("").tolist() == ["", "", "DE", "FR", ""]
    hashes = [site.lake.get("landing", "toy", day).hash for day in (DAY, NEXT)]
    ingest(site, configure(source=source), now + timedelta(days=1))
    assert [site.lake.get("landing", "toy", day).hash for day in (DAY, NEXT)] == hashes


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("sqlite:///{tmp}/source.db", "The query cannot be read"),
        ("nonsense with s3cret", "is invalid"),
        ("postgresql://reader:pass@s3cret@127.0.0.1:1/bank", "is invalid"),
        ("postgresql://127.0.0.1:s3cret/bank", "is invalid"),
        ("mssql+pyodbc://?odbc_connect=PWD%3Ds3cret", "driver"),
        ("nothing://reader:s3cret@host/bank", "driver"),
    ],
)
def test_a_query_that_fails_says_so_without_the_password(site, tmp_path, url, what):
    (tmp_path / "source.db").touch()
    source = SqlSource(kind="sql", url=url.format(tmp=tmp_path), query="select * from nowhere")
    with pytest.raises(SourceInvalid, match=f"(?i){what}") as caught:
        ingest(site, configure(source=source))
    assert "s3cret" not in str(caught.value)
    assert site.lake.dates("landing", "toy") == []


def test_a_query_with_a_binary_column_is_refused_with_its_cause(site, tmp_path):
    (tmp_path / "source.db").touch()
    source = SqlSource(
        kind="sql", url=f"sqlite:///{tmp_path}/source.db", query="select 'a' as payment_id, x'00ff' as b"
    )
    with pytest.raises(SourceInvalid, match="a column of binary values"):
        ingest(site, configure(source=source))


CHANGES = ("drop table payments", "delete from payments returning *", "insert into payments values ('b') returning *")


@pytest.mark.parametrize("query", CHANGES)
def test_a_query_cannot_change_its_database(site, tmp_path, query):
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("create table payments (payment_id text)")
        connection.execute("insert into payments values ('a')")
    with pytest.raises(SourceInvalid, match="readonly"):
        ingest(site, configure(source=SqlSource(kind="sql", url=f"sqlite:///{tmp_path}/source.db", query=query)))
    with sqlite3.connect(tmp_path / "source.db") as connection:
        assert connection.execute("select * from payments").fetchall() == [("a",)]


def test_a_query_cannot_change_a_database_of_postgresql(site, postgres_url):
    url = sa.make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table payments (payment_id text)")
        connection.exec_driver_sql("insert into payments values ('a')")
    write = "with gone as (delete from payments returning *) select * from gone"
    for query in (*CHANGES, write, "select 1; drop table payments; commit"):
        with pytest.raises(SourceInvalid):
            ingest(site, configure(source=SqlSource(kind="sql", url=url, query=query)))
    with engine.begin() as connection:
        assert connection.exec_driver_sql("select * from payments").fetchall() == [("a",)]
        connection.exec_driver_sql("drop table payments")
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql", "postgres"])
def test_a_database_that_does_not_answer_is_a_service_that_is_tried_again(site, scheme):
    url = f"{scheme}://reader:s3cret@127.0.0.1:1/bank?sslpassword=s3cret"
    with pytest.raises(
        ServiceUnreachable, match=r"(?is)source's database does not answer.*connection refused"
    ) as caught:
        ingest(site, configure(source=SqlSource(kind="sql", url=url, query="select 1")))
    assert "s3cret" not in str(caught.value)
    assert site.lake.dates("landing", "toy") == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's cursor, left open by pandas
def test_a_query_that_loses_its_server_lands_nothing_and_one_with_a_wrong_login_is_no_lost_server(site, postgres_url):
    at = sa.make_url(postgres_url).set(database="postgres")
    there, nobody = (one.render_as_string(hide_password=False) for one in (at, at.set(username="nobody")))
    source = SqlSource(kind="sql", url=there, query="select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(ServiceUnreachable):
        ingest(site, configure(source=source))
    for url, query in ((nobody, "select 1"), (there, "select * from nowhere"), (there, "select 1 / 0")):
        with pytest.raises(SourceInvalid):
            ingest(site, configure(source=SqlSource(kind="sql", url=url, query=query)))
    assert site.lake.dates("landing", "toy") == []
    gc.collect()  # the cursor, of which psycopg warns, while that is ignored


@pytest.mark.parametrize("driver", ["sqlite", "duckdb"])
def test_a_mistyped_database_file_is_not_created(site, tmp_path, driver):
    source = SqlSource(kind="sql", url=f"{driver}:///{tmp_path}/nosuch.db", query="select 1")
    with pytest.raises(SourceInvalid, match="does not exist"):
        ingest(site, configure(source=source))
    assert not (tmp_path / "nosuch.db").exists()


def test_without_an_id_column_a_row_is_named_by_its_file_and_number(site):
    put(site, "in/day.one.csv", CSV)
    put(site, "in/day.two.csv", CSV)
    ingest(site, configure("in", record_id=None))
    assert sorted(read_landing(site)["record_id"]) == [f"day.{n}:{row:09d}" for n in ("one", "two") for row in range(3)]
    assert "payment_id" in read_landing(site).columns


def test_files_of_one_name_in_two_folders_are_two_files(site):
    put(site, "in/berlin/pay.csv", "payment_id,at\na,2026-03-01T10:00:00Z\n")
    put(site, "in/paris/pay.csv", "payment_id,at\nb,2026-03-01T10:00:00Z\n")
    for path in ("in", "in/*/pay.csv"):
        ingest(site, configure(path))
        assert sorted(read_landing(site)["record_id"]) == ["a", "b"]
        assert ingest(site, configure(path)).arrivals == 0


def test_event_time_may_be_seconds_since_an_instant(site):
    put(site, "pay.csv", "payment_id,s\na,0\nb,86399.5\nc,86400\nd,x\ne,inf\nf,1e30\ng,-1e11\n")
    rule = EventTime(column="s", seconds_since=datetime(2026, 3, 1, tzinfo=UTC))
    ingest(site, configure("pay.csv", event_time=rule))
    rows = read_landing(site, DAY).set_index("record_id")
    assert rows.loc["b", "event_time"] == pd.Timestamp("2026-03-01T23:59:59.5Z")
    assert rows.loc[list("defg"), "event_time"].isna().all()
    assert rows["s"].tolist() == ["0", "86399.5", "x", "inf", "1e30", "-1e11"]
    assert read_landing(site, NEXT)["record_id"].tolist() == ["c"]


def test_each_iso_form_of_an_event_time_is_read_whatever_the_row_before_contains(site):
    moments = ["2026-03-01T10:00:00Z", "2026-03-01T10:00:00.25Z", "2026-03-01 11:00:00+01:00", "2026-03-01", "soon", ""]
    put(site, "pay.csv", "payment_id,at\n" + "".join(f"p{i},{moment}\n" for i, moment in enumerate(moments)))
    ingest(site, configure("pay.csv"))
    found = read_landing(site)["event_time"]
    assert found[:4].tolist() == [
        pd.Timestamp(t, tz="UTC")
        for t in ("2026-03-01 10:00", "2026-03-01 10:00:00.25", "2026-03-01 10:00", "2026-03-01")
    ]
    assert found[4:].isna().all()


def test_rows_without_a_readable_event_time_join_the_first_date_of_their_file(site):
    put(site, "pay.csv", "payment_id,at\nx,never\na,2026-03-02T10:00:00Z\nb,2026-03-01T10:00:00Z\ny,\n")
    assert ingest(site, configure("pay.csv")).rows == 4
    assert sorted(read_landing(site, DAY)["record_id"]) == ["b", "x", "y"]


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("UTC", "2026-03-29T00:00:00Z", 24),
        ("Europe/Berlin", "2026-03-28T23:00:00Z", 23),  # clocks go forward
        ("Europe/Berlin", "2026-10-24T22:00:00Z", 25),  # and back
        ("America/New_York", "2026-11-01T04:00:00Z", 25),
        ("Asia/Kathmandu", "2026-05-04T18:15:00Z", 24),
    ],
)
def test_a_batch_date_begins_and_ends_at_local_midnight(make_site, zone, first, hours):
    start = pd.Timestamp(first)
    end = start + pd.Timedelta(hours=hours)
    tick = pd.Timedelta(microseconds=1)
    times = [start - tick, start, end - tick, end]
    day = start.astimezone(ZoneInfo(zone)).date()
    expected = [day - timedelta(days=1), day, day, day + timedelta(days=1)]
    found = batch_dates_of(pa.array(times, pa.timestamp("us", tz="UTC")), ZoneInfo(zone))
    assert found.to_pylist() == expected
    site = make_site(zone)
    put(site, "pay.csv", "payment_id,at\n" + "".join(f"{i},{t.isoformat()}\n" for i, t in enumerate(times)))
    assert ingest(site, configure("pay.csv")).dates == tuple(sorted(set(expected)))
    assert read_landing(site, day)["record_id"].tolist() == ["1", "2"]


def test_a_second_ingest_does_nothing(site):
    put(site, "in/pay.csv", CSV)
    ingest(site, configure("in"))
    before = [site.lake.get("landing", "toy", day) for day in (DAY, NEXT)]
    again = ingest(site, configure("in"))
    assert (again.dates, again.arrivals, again.rows, again.labels) == ((), 0, 0, 0)
    assert [site.lake.get("landing", "toy", day) for day in (DAY, NEXT)] == before


def test_a_changed_file_takes_the_place_of_its_older_part(site):
    put(site, "in/a.csv", "payment_id,at,amount\na,2026-03-01T10:00:00Z,1\n")
    put(site, "in/b.csv", "payment_id,at,amount\nb,2026-03-01T11:00:00Z,2\n")
    ingest(site, configure("in"))
    before = site.lake.get("landing", "toy", DAY)
    put(site, "in/a.csv", "payment_id,at,amount\na,2026-03-01T10:00:00Z,100\nc,2026-03-01T12:00:00Z,3\n")
    assert ingest(site, configure("in")).arrivals == 1
    rows = read_landing(site).set_index("record_id").sort_index()
    assert rows["amount"].tolist() == ["100", "2", "3"]
    after = site.lake.get("landing", "toy", DAY)
    assert after.hash != before.hash
    assert next(p for p in after.parts if p.source == "b.csv") in before.parts


@pytest.mark.parametrize("still_there", [True, False])
def test_a_corrected_file_leaves_nothing_on_a_date_that_its_rows_have_left(site, still_there):
    put(site, "in/a.csv", "payment_id,at\na,2026-03-01T10:00:00Z\n")
    if still_there:
        put(site, "in/b.csv", "payment_id,at\nb,2026-03-01T11:00:00Z\n")
    ingest(site, configure("in"))
    before = site.lake.get("landing", "toy", DAY)
    put(site, "in/a.csv", "payment_id,at\na,2026-03-02T10:00:00Z\n")
    assert ingest(site, configure("in")).dates == (NEXT,)
    after = site.lake.get("landing", "toy", DAY)
    assert [part.source for part in after.parts] == ["b.csv"] * still_there
    assert after.hash != before.hash
    assert read_landing(site, NEXT)["record_id"].tolist() == ["a"]
    assert ingest(site, configure("in")).arrivals == 0


def test_an_older_version_that_a_crash_left_elsewhere_goes_with_the_next_ingest(site, monkeypatch):
    put(site, "pay.csv", "payment_id,at\na,2026-03-01T10:00:00Z\n")
    ingest(site, configure("pay.csv"))
    put(site, "pay.csv", "payment_id,at,n\na,2026-03-02T10:00:00Z,1\n")
    whole = PartitionWriter.commit

    def die_at_the_old_date(self, facts, keep=()):
        if not self.parts:
            raise KeyboardInterrupt
        return whole(self, facts, keep)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(PartitionWriter, "commit", die_at_the_old_date)
        ingest(site, configure("pay.csv"))
    assert len(read_landing(site)) == 2
    hash_before = site.lake.get("landing", "toy", NEXT).hash
    assert ingest(site, configure("pay.csv")).arrivals == 1
    assert site.lake.get("landing", "toy", DAY).parts == ()
    assert site.lake.get("landing", "toy", NEXT).hash == hash_before
    assert ingest(site, configure("pay.csv")).arrivals == 0


def test_what_was_pruned_of_an_older_version_is_gone_for_good(site):
    put(site, "pay.csv", "payment_id,at\na,2026-03-01T10:00:00Z\nb,2026-03-02T10:00:00Z\n")
    ingest(site, configure("pay.csv"))
    path = site.lake.manifest_path("landing", "toy", DAY)
    site.lake.remember_landing(path)
    site.lake.remove(path)
    assert ingest(site, configure("pay.csv")).arrivals == 0
    put(site, "pay.csv", "payment_id,at,n\na,2026-03-02T10:00:00Z,1\n")
    assert ingest(site, configure("pay.csv")).dates == (NEXT,)
    assert site.lake.find("landing", "toy", DAY) is None
    assert ingest(site, configure("pay.csv")).arrivals == 0


def test_what_a_query_asks_for_no_longer_stays(site, tmp_path):
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("create table payments (payment_id text, at text)")
        connection.execute("insert into payments values ('a', '2026-03-01 10:00:00'), ('b', '2026-03-02 10:00:00')")
    source = SqlSource(kind="sql", url=f"sqlite:///{tmp_path}/source.db", query="select * from payments")
    ingest(site, configure(source=source), datetime(2026, 3, 3, tzinfo=UTC))
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("delete from payments where payment_id = 'a'")
    assert ingest(site, configure(source=source), datetime(2026, 3, 4, tzinfo=UTC)).dates == (NEXT,)
    assert sorted(read_landing(site)["record_id"]) == ["a", "b"]


def query_payments(site: Site, folder: Path, query: str = "select * from payments") -> IngestParams:
    return configure(source=SqlSource(kind="sql", url=f"sqlite:///{folder}/source.db", query=query))


def write_payments(folder: Path, *rows: tuple[str, str, float]) -> None:
    with sqlite3.connect(folder / "source.db") as connection:
        connection.execute("create table if not exists payments (payment_id text primary key, at text, amount real)")
        connection.executemany("insert or replace into payments values (?, ?, ?)", rows)


def list_files(site: Site) -> dict[str, int]:
    root = Path(site.lake.root)
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*.parquet")}


def test_a_query_that_gives_the_same_rows_again_adds_no_file_to_the_lake(site, tmp_path):
    days = [DAY + timedelta(days=n) for n in range(5)]
    write_payments(tmp_path, *((f"{day}-{n}", f"{day} 10:00:00", n) for day in days for n in range(3)))
    params, now = query_payments(site, tmp_path), datetime(2026, 3, 9, tzinfo=UTC)
    ingest(site, params, now)
    files = list_files(site)
    assert len(files) == 5
    for later in range(1, 4):
        ingest(site, params, now + timedelta(days=later))
        assert list_files(site) == files
    write_payments(tmp_path, (f"{days[2]}-1", f"{days[2]} 10:00:00", 7), ("new", f"{days[4]} 11:00:00", 1))
    before = {day: site.lake.get("landing", "toy", day).hash for day in days}
    ingest(site, params, now + timedelta(days=5))
    assert [day for day in days if site.lake.get("landing", "toy", day).hash != before[day]] == [days[2], days[4]]
    assert sorted(read_landing(site, days[2])["amount"]) == [0, 2, 7]
    assert len(read_landing(site)) == 16


@pytest.mark.parametrize("order", ["payment_id desc", "amount", "random()"])
def test_rows_and_columns_of_a_query_in_another_order_change_nothing(site, tmp_path, order):
    write_payments(tmp_path, *((f"p{n}", f"2026-03-0{1 + n % 2} 10:00:00", n % 5) for n in range(40)))
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("create view seen as select * from payments order by payment_id")
    ingest(site, query_payments(site, tmp_path, "select * from seen"), datetime(2026, 3, 3, tzinfo=UTC))
    files, hashes = list_files(site), [site.lake.get("landing", "toy", day).hash for day in (DAY, NEXT)]
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("drop view seen")
        connection.execute(f"create view seen as select amount, at, payment_id from payments order by {order}")
    ingest(site, query_payments(site, tmp_path, "select * from seen"), datetime(2026, 3, 4, tzinfo=UTC))
    assert list_files(site) == files
    assert [site.lake.get("landing", "toy", day).hash for day in (DAY, NEXT)] == hashes


def test_a_query_whose_rows_are_dated_by_another_rule_lands_again(make_site, tmp_path):
    write_payments(tmp_path, ("a", "2026-03-01 10:00:00", 1), ("b", "2026-03-02 10:00:00", 2))
    for zone in ("UTC", "Africa/Abidjan"):  # the same hours
        site = dataclasses.replace(make_site(), time_zone=zone)
        ingest(site, query_payments(site, tmp_path), datetime(2026, 3, 9, tzinfo=UTC))
        rules = {part.rule for day in (DAY, NEXT) for part in site.lake.get("landing", "toy", day).parts}
        assert rules == {query_payments(site, tmp_path).hash_landing(zone)}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Pacific/Auckland", "America/Los_Angeles"])
def test_a_query_may_ask_for_the_latest_days_and_lands_only_whole_ones(site, tmp_path, zone):
    site = dataclasses.replace(site, time_zone=zone)
    hours = pd.date_range("2026-03-01T00:30", "2026-03-09T23:30", freq="h")
    write_payments(tmp_path, *((str(n), f"{hour}", n) for n, hour in enumerate(hours)))
    params = query_payments(site, tmp_path, "select * from payments where at >= :since and at < '2026-03-10'")
    ingest_arrivals(site, params, Window(date.min, date(2026, 3, 9), datetime(2026, 3, 10, tzinfo=UTC)))
    rows = read_landing(site)
    assert len(rows) == len(hours)
    first = date(2026, 3, 6)
    done = ingest_arrivals(site, params, Window(first, date(2026, 3, 9), datetime(2026, 3, 11, tzinfo=UTC)))
    assert min(done.dates) == first
    assert done.rows == sum(day >= first for day in batch_dates_of(pa.array(rows["event_time"]), site.zone).to_pylist())
    pd.testing.assert_frame_equal(read_landing(site), rows)


def test_a_query_of_postgresql_may_ask_for_the_latest_days(site, postgres_url):
    url = sa.make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)
    rows = "select n::text as payment_id, timestamptz '2026-03-01 00:00Z' + n * interval '1 hour' as at"
    query = f"select * from ({rows} from generate_series(0, 47) as n) as rows where at >= :since"
    source = SqlSource(kind="sql", url=url, query=query)
    window = Window(NEXT, NEXT, datetime(2026, 3, 3, tzinfo=UTC))
    assert ingest_arrivals(site, configure(source=source), window).dates == (NEXT,)
    assert len(read_landing(site)) == 24


def test_a_query_that_has_nothing_on_the_latest_days_lands_nothing_and_is_no_error(site, tmp_path):
    write_payments(tmp_path, ("a", "2026-03-01 10:00:00", 1))
    params = query_payments(site, tmp_path, "select * from payments where at >= :since")
    ingest(site, params, datetime(2026, 3, 3, tzinfo=UTC))
    for first in (NEXT, date(2026, 3, 9)):  # with a row of the day before, and with none
        window = Window(first, date(2026, 3, 9), datetime(2026, 3, 10, tzinfo=UTC))
        assert ingest_arrivals(site, params, window).dates == ()
    assert read_landing(site)["record_id"].tolist() == ["a"]


def make_arrival(number: int) -> Arrival:
    """One row on each of DAY and NEXT."""
    rows = {"payment_id": [f"{number}-{n}" for n in range(2)], "at": [f"{day}T10:00:00Z" for day in (DAY, NEXT)]}
    return Arrival(f"{number}.csv", "1", LATER, lambda: [pa.table(rows)])


def test_arrivals_that_land_at_the_same_time_all_stay(site, warehouse_url, monkeypatch):
    site = dataclasses.replace(site, warehouse=Warehouse(warehouse_url))
    Warehouse(warehouse_url).migrate()
    find = Lake.find

    def find_slowly(*arguments):
        found = find(*arguments)
        time.sleep(0.02)  # so that without the lock all have read before the first one writes
        return found

    monkeypatch.setattr(Lake, "find", find_slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: land(site, make_arrival(number), configure()), range(4)))
    for day in (DAY, NEXT):
        assert sorted(part.source for part in site.lake.get("landing", "toy", day).parts) == [
            f"{number}.csv" for number in range(4)
        ]


LAND_FOUR = """
import pickle, sys
from datetime import UTC, datetime
import pyarrow as pa
from tasks.ingest import EventTime, IngestParams, land
from tasks.sources.files import Arrival, FilesSource
site, params = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
for number in range(4):
    table = pa.table({"payment_id": [str(number)], "at": ["2026-03-01T10:00:00Z"]})
    land(site, Arrival(f"other-{number}.csv", "1", datetime(2026, 3, 2, tzinfo=UTC), lambda: [table]), params)
"""


@pytest.mark.slow
def test_two_processes_that_land_at_once_lose_no_arrival(site):
    command = [sys.executable, "-c", LAND_FOUR]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdin.write(pickle.dumps((site, configure())))
        other.stdin.close()
        other.stdout.readline()
        for number in range(4):
            land(site, make_arrival(number), configure())
    assert other.returncode == 0
    assert len(site.lake.get("landing", "toy", DAY).parts) == 8


def test_a_late_file_adds_a_part_with_its_arrival_time(site):
    source = payments.PaymentsSource(kind="payments", seed=1, rows_per_day=2_000, first_date=DAY - timedelta(days=28))
    params = configure(source=source, event_time=EventTime(column="event_time"))
    assert payments.is_late_date(source, DAY)
    due = datetime(2026, 3, 2, 2, tzinfo=UTC)
    first = ingest_arrivals(site, params, Window(DAY, DAY, due))
    assert first.arrivals == 1
    assert ingest_arrivals(site, params, Window(DAY, DAY, due + timedelta(days=1))).arrivals == 0
    before = site.lake.get("landing", "toy", DAY)
    late = ingest_arrivals(site, params, Window(DAY, DAY, due + timedelta(days=2)))
    after = site.lake.get("landing", "toy", DAY)
    assert (late.arrivals, late.dates) == (1, (DAY,))
    assert after.parts[0] == before.parts[0]
    assert after.rows == first.rows + late.rows
    arrived = [datetime.fromisoformat(part.arrived_at) for part in after.parts]
    assert arrived == [due, due + timedelta(days=2)]
    assert after.hash != before.hash


def test_labels_of_the_feed_are_kept_as_far_as_they_are_known(site):
    source = payments.PaymentsSource(kind="payments", seed=1, rows_per_day=2_000, first_date=DAY)
    params = configure(source=source, event_time=EventTime(column="event_time"))
    [reports] = payments.read_reports(source, "UTC", DAY, DAY)
    middle = reports["known_at"].sort_values().iloc[len(reports) // 2].to_pydatetime()
    for now in (middle, LATER):
        ingest_arrivals(site, params, Window(DAY, DAY, now))
        found = site.warehouse.read_labels("toy", LATER)
        assert set(found["record_id"]) == set(reports.loc[reports["known_at"] <= now, "record_id"])


@pytest.mark.parametrize("name", ["pay.csv", "pay.parquet"])
def test_labels_in_a_column_are_known_after_the_label_delay(make_site, name):
    site = make_site(label_delay_days=3)
    frame = pd.DataFrame(
        {
            "payment_id": ["a", "b", "c", "d"],
            "at": ["2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z", "2026-03-02T12:00:00Z", "2026-03-02T13:00:00Z"],
            "fraud": pd.array([1, 0, None, 2], "Int64"),
        }
    )
    put(site, name, frame.to_parquet(index=False) if name.endswith("parquet") else frame.to_csv(index=False))
    params = configure(name, labels=LabelColumn(column="fraud", anomalous=("1", "2")))
    assert ingest(site, params).labels == 3
    engine = site.warehouse
    found = engine.read_labels("toy", LATER)
    assert found[["record_id", "label"]].to_numpy().tolist() == [["a", 1], ["b", 0], ["d", 1]]
    assert found["known_at"].tolist() == [
        pd.Timestamp(f"2026-03-0{day}T{hour}:00:00Z") for day, hour in ((4, 10), (4, 11), (5, 13))
    ]
    assert engine.read_labels("toy", datetime(2026, 3, 4, 10, 30, tzinfo=UTC))["record_id"].tolist() == ["a"]
    assert ingest(site, params).labels == 0


def test_a_corrected_file_corrects_its_labels_from_its_arrival_on(make_site):
    site = make_site(label_delay_days=1)
    params = configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",)))
    header, rows = "payment_id,at,fraud\n", ["a,2026-03-01T10:00:00Z,0\n", "b,2026-03-01T10:00:00Z,\n"]
    put(site, "pay.csv", header + "".join(rows))
    ingest(site, params)
    corrected = put(site, "pay.csv", header + "".join(rows).replace("Z,0", "Z,1").replace("Z,\n", "Z,1\n"))
    arrived = datetime(2026, 3, 20, 12, tzinfo=UTC)
    os.utime(corrected, (arrived.timestamp(), arrived.timestamp()))
    assert ingest(site, params).labels == 2
    engine = site.warehouse
    before = engine.read_labels("toy", arrived - timedelta(microseconds=1))
    assert before[["record_id", "label"]].to_numpy().tolist() == [["a", 0]]
    after = engine.read_labels("toy", arrived)
    assert after[["record_id", "label"]].to_numpy().tolist() == [["a", 1], ["b", 1]]
    assert after["known_at"].tolist() == [arrived, arrived]
    corrected.touch()
    assert ingest(site, params).labels == 0


def test_a_correction_that_comes_before_its_label_was_due_counts_when_it_is_due(make_site):
    site = make_site(label_delay_days=7)
    params = configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",)))
    for label in "01":
        path = put(site, "pay.csv", f"payment_id,at,fraud\na,2026-03-01T10:00:00Z,{label}\n")
        arrived = datetime(2026, 3, 2 + int(label), tzinfo=UTC).timestamp()
        os.utime(path, (arrived, arrived))
        ingest(site, params)
    due = datetime(2026, 3, 8, 10, tzinfo=UTC)
    engine = site.warehouse
    assert engine.read_labels("toy", due - timedelta(seconds=1)).empty
    assert engine.read_labels("toy", due + timedelta(seconds=1))["label"].tolist() == [1]


def test_two_labels_of_one_record_in_a_corrected_file_are_refused(site):
    params = configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",)))
    put(site, "pay.csv", "payment_id,at,fraud\na,2026-03-01T10:00:00Z,0\n")
    ingest(site, params)
    put(site, "pay.csv", "payment_id,at,fraud\na,2026-03-01T10:00:00Z,0\na,2026-03-01T10:00:00Z,1\n")
    with pytest.raises(SourceInvalid, match="contradictory"):
        ingest(site, params)


def test_progress_is_reported_per_arrival(site):
    put(site, "in/a.csv", CSV)
    put(site, "in/b.csv", CSV)
    reported = []
    ingest_arrivals(site, configure("in"), WINDOW, lambda done, total: reported.append((done, total)))
    assert reported == [(1, 2), (2, 2)]


def check_nothing_lands(site: Site, params: IngestParams, what: str, never: str = "\0") -> None:
    with pytest.raises(SourceInvalid) as caught:
        ingest(site, params)
    message = str(caught.value)
    assert what in message
    assert never not in message
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == ["where", "got", "expected", "to do"]
    assert site.lake.dates("landing", "toy") == []


LONG = CSV + "".join(f"q{i},2026-03-01T10:00:00Z,{i},DE\n" for i in range(5_000))


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("elsewhere.csv", CSV, "no file"),
        ("pay.csv", "", "empty"),
        ("pay.csv", "\n", "empty"),
        ("pay.csv", "payment_id,at,amount\n", "nothing to land"),
        ("pay.csv", "payment_id,at,amount", "nothing to land"),
        ("pay.csv", CSV + "p4,2026-03-01T10:0", "truncated or damaged"),
        ("pay.csv", CSV + "p4,2026-03-01T10:00:00Z,1,DE,more\n" * 4, "another number of values"),
        ("pay.csv", CSV.encode() + b"p4,2026-03-01T10:00:00Z,1,\xff\xfe\n", "not UTF-8 text"),
        ("pay.csv", CSV.replace("payment_id", "id"), "lacks payment_id"),
        ("pay.csv", CSV.replace("at,", "when,", 1), "lacks at"),
        ("pay.csv", CSV.replace("country", "amount"), "two columns with the same name"),
        ("pay.csv", CSV.replace("2026", "twenty"), "nothing to land"),
        ("pay.csv.gz", gzip.compress(LONG.encode(), mtime=0)[:-400], "truncated or damaged"),
        (
            "pay.csv.gz",
            gzip.compress(LONG.encode(), mtime=0)[:2000] + b"noise" * 4 + gzip.compress(LONG.encode(), mtime=0)[2020:],
            "damaged",
        ),
        ("pay.csv.gz", gzip.compress(b"", mtime=0), "empty"),
        ("pay.parquet", as_parquet()[:-50], "truncated or damaged"),
        ("pay.parquet", "", "empty"),
        ("pay.parquet", as_parquet(CSV.replace("payment_id", "id")), "lacks payment_id"),
        ("pay.parquet", as_parquet(CSV.splitlines()[0]), "nothing to land"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_nothing_of_it_lands(site, name, data, what):
    put(site, name, data)
    path = "pay.csv" if name == "elsewhere.csv" else name
    check_nothing_lands(site, configure(path), what)


@pytest.mark.parametrize("path", ["in", "in/*.csv", "in/pay.csv", "memory://nowhere/pay.csv"])
def test_a_source_without_a_file_says_where_it_looked(site, path):
    Path(site.sources, "in").mkdir()
    check_nothing_lands(site, configure(path), path)


@pytest.mark.parametrize("stray", ["1900-01-01", "1601-01-01", "1970-01-01", "2199-12-31"])
def test_a_row_with_an_impossible_date_makes_no_batch_and_is_quarantined(site, stray):
    rows = [f"p{n},2026-03-0{1 + n // 60}T10:00:00Z" for n in range(180)]
    rows[7] = f"p7,{stray}T00:00:00Z"
    rows[9] = "p9,never"
    put(site, "pay.csv", "payment_id,at\n" + "\n".join(rows))
    assert ingest(site, configure("pay.csv")).rows == 180
    days = site.lake.dates("landing", "toy")
    assert days == [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
    found = validate_batches(site, Contract.model_validate({"columns": {}}), days, ValidateParams())
    reasons = {day.batch_date: day.reasons for day in found if day.reasons}
    [(home, why)] = reasons.items()
    assert home == days[1]  # the date with the most rows
    assert why == {"event_time column values to not be null": 1, STRAY: 1}
    assert sum(day.rows_in for day in found) == 180
    assert ingest(site, configure("pay.csv")).arrivals == 0  # it has landed whole
    assert not list(Path(site.lake.root).rglob(f"*{stray}*/**/*.parquet"))


TOMORROW = datetime.now(UTC).date() + timedelta(days=1)


@pytest.mark.parametrize(
    ("days", "strays"),
    [
        ({0: 1}, set()),
        ({0: 5, -20: 1}, set()),  # a late row
        ({0: 50, -4000: 1, 2: 1}, {-4000, 2}),
        ({0: 50, -31: 1}, set()),
        ({-n: 10 for n in range(400)} | {-700: 5}, set()),  # as far again as the rest spans
        ({-n: 10 for n in range(400)} | {-900: 5}, {-900}),
        ({-n: 10 for n in range(400)} | {-900: 500}, set()),  # too many rows to be a mistake
        ({0: 5, 1: 5, 2: 1}, {2}),
        ({2: 5, 3: 5}, set()),  # nothing else to put them with
    ],
)
def test_a_date_is_a_stray_if_few_rows_lie_far_from_the_others_or_after_tomorrow(days, strays):
    today = TOMORROW - timedelta(days=1)
    found = find_strays({today + timedelta(days=n): rows for n, rows in days.items()}, EventTime(column="at"))
    assert {(day - today).days for day in found} == strays


@given(st.dictionaries(st.dates(date(1900, 1, 1), date(2020, 1, 1)), st.integers(1, 1000), min_size=1))
def test_strays_are_few_and_never_the_date_with_the_most_rows(rows):
    strays = find_strays(rows, EventTime(column="at"))
    assert sum(rows[day] for day in strays) <= max(0.02 * sum(rows.values()), 2)
    assert len(strays) < len(rows)


def test_a_changed_time_zone_lands_the_rows_again(make_site):
    put(make_site("UTC"), "pay.csv", "payment_id,at\na,2026-03-01T10:00:00Z\nb,2026-03-01T23:30:00Z\n")
    for zone, days in (("UTC", [DAY]), ("Europe/Berlin", [DAY, NEXT])):
        site = make_site(zone)
        assert ingest(site, configure("pay.csv")).dates == tuple(days)
        assert ingest(site, configure("pay.csv")).dates == ()


def test_a_changed_label_rule_reads_the_labels_again(site):
    put(site, "pay.csv", "payment_id,at,fraud\na,2026-03-01T10:00:00Z,2\nb,2026-03-01T10:00:00Z,0\n")
    for anomalous, labels in ((("1", "2"), [1, 0]), (("1",), [0, 0])):
        rule = LabelColumn(column="fraud", anomalous=anomalous, normal=("0",) if len(anomalous) > 1 else ("0", "2"))
        before = site.lake.find("landing", "toy", DAY)
        ingest(site, configure("pay.csv", labels=rule))
        assert site.warehouse.read_labels("toy", LATER)["label"].tolist() == labels
    assert before
    assert site.lake.get("landing", "toy", DAY).hash == before.hash  # the rows are the same, so no night is stale


def test_a_file_without_the_label_column_lands_without_labels(site):
    put(site, "pay.csv", CSV)
    done = ingest(site, configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",))))
    assert (done.rows > 0, done.labels) == (True, 0)
    assert done.notes == ("1 files, such as pay.csv, lack the label column fraud: no labels",)


@pytest.mark.parametrize(("bad", "good"), [("yes", "no"), ("fraud", "ok"), ("2", "0"), ("-1", "1")])
def test_a_label_that_means_neither_is_refused_with_its_values(site, bad, good):
    put(site, "pay.csv", f"payment_id,at,fraud\na,2026-03-01,{bad}\nb,2026-03-01,{good}\nc,2026-03-01,{bad}\n")
    params = configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",)))
    check_nothing_lands(site, params, f"{bad!r} (2 rows)")


SPELLINGS = st.sampled_from(["{0}", " {0}", "{0} ", "{0}.0", "+{0}", "{0}e0", "00{0}"])


@given(st.lists(st.tuples(st.sampled_from("01"), SPELLINGS), min_size=1))
def test_numbers_mean_the_same_label_however_they_are_spelt(rows):
    texts = pd.Series([spelling.format(label) for label, spelling in rows])
    for rule in ({"anomalous": ("1",)}, {"anomalous": ("1.0",), "normal": ("0",)}, {"normal": ("0.0",)}):
        assert interpret_labels(LabelColumn(column="fraud", **rule), texts).tolist() == [
            int(label) for label, _ in rows
        ]


@given(st.lists(st.sampled_from(["yes", "Yes", "YES", "y", " Y", "no", "No", "n", "N "]), min_size=1))
def test_words_mean_the_same_label_however_they_are_spelt(words):
    for rule in ({"anomalous": ("Y",), "normal": ("n",)}, {"normal": ("No",)}):
        found = interpret_labels(LabelColumn(column="fraud", **rule), pd.Series(words))
        assert found.tolist() == [int("y" in word.lower()) for word in words]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pa.array([True, False, None]), [1, 0]),
        (pa.array([1.0, 0.0, float("nan")]), [1, 0]),
        (pa.array([1, 0, None], pa.int8()), [1, 0]),
        (pa.array(["TRUE", "false", "N/A"]).dictionary_encode(), [1, 0]),
        (pa.array(["1", "", "?"]), [1]),
    ],
)
def test_labels_of_any_type_are_read_and_a_missing_one_is_no_label(site, values, labels):
    table = pa.table({"payment_id": ["a", "b", "c"], "at": ["2026-03-01"] * 3, "fraud": values})
    pq.write_table(table, Path(site.sources) / "pay.parquet")
    ingest(site, configure("pay.parquet", labels=LabelColumn(column="fraud", anomalous=("1",))))
    assert site.warehouse.read_labels("toy", LATER)["label"].tolist() == labels


def test_a_kind_of_anomaly_may_be_called_missing_or_unknown():
    kinds = pd.Series(["missing", "Unknown", "fine", "n/a"])
    found = interpret_labels(LabelColumn(column="fault", normal=("fine",)), kinds)
    assert found[:3].tolist() == [1, 1, 0]
    assert found.isna().tolist() == [False, False, False, True]


def test_a_listed_word_is_a_label_even_if_it_usually_means_missing():
    rule = LabelColumn(column="fraud", anomalous=("fraud",), normal=("none",))
    assert interpret_labels(rule, pd.Series(["None", "Fraud", "nan", None])).isna().tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_a_file_that_breaks_off_after_whole_slices_leaves_nothing(site):
    def read():
        yield pa.table({"payment_id": ["a"], "at": ["2026-03-01T10:00:00Z"]})
        raise SourceInvalid("The file is truncated or damaged.")

    arrival = Arrival("pay.csv", "1", LATER, read)
    with pytest.raises(SourceInvalid):
        land(site, arrival, configure())
    assert site.lake.dates("landing", "toy") == []


@pytest.mark.parametrize(
    "data", [b"", b"payment_id,at,amount\n", CSV.encode() + b"p4,2026-03-01T10:0", as_parquet()[:-50], b"PK\3\4 no zip"]
)
def test_a_bad_file_stops_no_other_and_is_named_until_it_is_replaced(site, data):
    put(site, "in/a.csv", CSV)
    put(site, "in/c.csv", CSV)
    bad = put(site, "in/b.csv", data)
    for _ in range(2):
        with pytest.raises(SourceInvalid, match=r"b\.csv"):
            ingest(site, configure("in"))
        assert len(read_landing(site)) == 6
    bad.write_text(CSV)
    assert ingest(site, configure("in")).arrivals == 1
    assert len(read_landing(site)) == 9


def test_a_file_dated_in_the_future_lands_and_is_named(site):
    path, now = put(site, "pay.csv", CSV), datetime(2026, 3, 3, tzinfo=UTC)
    os.utime(path, (now.timestamp() + 86_400,) * 2)
    done = ingest(site, configure("pay.csv"), now)
    assert done.rows == 3
    assert "pay.csv is dated 2026-03-04 00:00 UTC, in the future" in done.notes[0]
    assert {part.arrived_at for part in site.lake.get("landing", "toy", DAY).parts} == {now.isoformat()}
    assert ingest(site, configure("pay.csv"), now).arrivals == 0


def test_all_bad_files_are_in_one_error(site):
    put(site, "in/a.csv", CSV)
    put(site, "in/b.csv", "")
    put(site, "in/c.csv", CSV.replace("at,", "when,", 1))
    with pytest.raises(SourceInvalid, match=r"2 of 3 files did not land: b\.csv, c\.csv") as refused:
        ingest(site, configure("in"))
    assert "b.csv: The file is empty" in str(refused.value)
    assert "c.csv: The source lacks at" in str(refused.value)


@pytest.mark.parametrize("path", ["in", "in/*", "in/**"])
def test_markers_and_links_to_nowhere_are_passed_over(site, path):
    put(site, "in/pay.csv", CSV)
    names = [
        "_SUCCESS",
        "_temporary/0/pay.csv",
        ".DS_Store",
        ".pay.csv.crc",
        "pay.csv.crc",
        "z.csv.tmp",
        "README",
        "a.md",
    ]
    for name in names:
        put(site, f"in/{name}", b"\0\1")
    Path(site.sources, "in", "gone.csv").symlink_to("nowhere.csv")
    Path(site.sources, "in", "loop.csv").symlink_to("loop.csv")
    Path(site.sources, "in", "up.csv").symlink_to("..")
    os.mkfifo(Path(site.sources, "in", "pipe.csv"))
    assert ingest(site, configure(path)).rows == 3


def test_a_folder_with_nothing_but_markers_has_no_file(site):
    put(site, "in/_SUCCESS", "")
    check_nothing_lands(site, configure("in"), "no file")


def test_a_file_named_in_full_is_read_whatever_its_name(site):
    put(site, "_pay[1].csv", CSV)
    assert ingest(site, configure("_pay[1].csv")).rows == 3


def test_a_partition_folder_is_a_column_of_its_rows(site):
    put(site, "in/land=DE/shop=a%2Fb/pay.csv", f"{CSV}TOTAL,,\n")
    put(site, "in/land=__HIVE_DEFAULT_PARTITION__/shop=c/pay.parquet", as_parquet())
    put(site, "in/land=FR/shop=c/pay.csv", CSV.replace("country", "shop"))  # the file's own column counts
    ingest(site, configure("in"))
    rows = read_landing(site, NEXT).fillna("null")
    assert sorted(zip(rows["land"], rows["shop"], strict=True)) == [("DE", "a/b"), ("FR", "FR"), ("null", "c")]


def test_landing_in_slices_is_landing_at_once(site, land_rows):
    frame = pd.DataFrame({"record_id": list("abcd"), "event_time": ["2026-03-01", "2026-03-02"] * 2, "n": range(4)})
    assert land_rows(frame, name="one") == {DAY: 2, NEXT: 2}
    assert land_rows(frame.iloc[:1], frame.iloc[1:], name="two") == {DAY: 2, NEXT: 2}
    whole, sliced = (
        pd.concat(s.to_pandas() for s in site.lake.slices(part)) for part in site.lake.get("landing", "toy", DAY).parts
    )
    pd.testing.assert_frame_equal(whole.reset_index(drop=True), sliced.reset_index(drop=True))


def test_a_file_that_a_crash_left_on_one_of_its_dates_lands_again(site, monkeypatch):
    put(site, "pay.csv", CSV)
    whole = PartitionWriter.commit

    def die_at_the_second_date(self, facts, keep=()):
        if site.lake.dates("landing", "toy"):
            raise KeyboardInterrupt
        return whole(self, facts, keep)

    monkeypatch.setattr(PartitionWriter, "commit", die_at_the_second_date)
    with pytest.raises(KeyboardInterrupt):
        ingest(site, configure("pay.csv"))
    assert site.lake.dates("landing", "toy") == [DAY]
    monkeypatch.setattr(PartitionWriter, "commit", whole)
    assert ingest(site, configure("pay.csv")).rows == 3
    assert len(read_landing(site)) == 3
    assert ingest(site, configure("pay.csv")).arrivals == 0


def test_rows_do_not_land_before_their_labels_are_kept(site, monkeypatch):
    put(site, "pay.csv", "payment_id,at,fraud\np1,2026-03-01T10:00:00Z,1\n")
    params = configure("pay.csv", labels=LabelColumn(column="fraud", anomalous=("1",)))

    def be_away(*_):
        raise ServiceUnreachable("the warehouse does not answer")

    with monkeypatch.context() as broken, pytest.raises(ServiceUnreachable):
        broken.setattr("tasks.stores.warehouse.Warehouse.add_labels", be_away)
        ingest(site, params)
    assert site.lake.dates("landing", "toy") == []
    assert ingest(site, params).labels == 1


def test_words_that_look_like_null_stay_text(site):
    put(site, "pay.csv", "payment_id,at,country\np1,2026-03-01T10:00:00Z,NA\np2,2026-03-01T10:00:00Z,\n")
    ingest(site, configure("pay.csv"))
    assert read_landing(site)["country"].fillna("").tolist() == ["NA", ""]


@pytest.mark.parametrize("record_id", ["payment_id", None])
def test_a_line_of_another_width_lands_by_its_number_without_a_time_and_moves_no_other_row(site, record_id):
    lines = CSV.splitlines(keepends=True)
    put(site, "pay.csv", "".join([*lines[:2], "TOTAL,\0,1\n", *lines[2:]]))
    assert ingest(site, configure("pay.csv", record_id=record_id)).rows == 4
    rows = read_landing(site, DAY)
    odd = rows[rows["event_time"].isna()].iloc[0].to_dict()
    assert odd.pop("record_id") == "pay.csv, line 3 with 3 of 4 values"
    assert pd.isna(list(odd.values())).all()
    others = sorted(name for name in read_landing(site)["record_id"] if "line" not in name)
    assert others == (["p1", "p2", "p3"] if record_id else [f"pay:{row:09d}" for row in range(3)])


@pytest.mark.parametrize("rows", [3, 40_000])
def test_a_correction_of_the_same_size_and_time_is_seen_and_other_files_stay_fresh(site, rows):
    text = "payment_id,at,amount\n" + "".join(f"p{n},2026-03-01T10:00:00Z,{n % 9}.50\n" for n in range(rows))
    path = put(site, "pay.csv", text)
    stamp = path.stat().st_mtime_ns
    assert ingest(site, configure("pay.csv")).rows == rows
    assert ingest(site, configure("pay.csv")).arrivals == 0
    path.write_text(text.replace("p1,2026-03-01T10:00:00Z,1.50", "p1,2026-03-01T10:00:00Z,7.50"))
    os.utime(path, ns=(stamp, stamp))
    assert ingest(site, configure("pay.csv")).arrivals == 1
    assert read_landing(site).set_index("record_id").loc["p1", "amount"] == "7.50"
    assert ingest(site, configure("pay.csv")).arrivals == 0


@pytest.mark.parametrize("place", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_correction_anywhere_in_a_large_file_is_seen(site, place):
    rows = 60_000  # 2 MB
    lines = [f"p{n:06d},2026-03-01T10:00:00Z,{n % 9}.50\n" for n in range(rows)]
    path = put(site, "pay.csv", "payment_id,at,amount\n" + "".join(lines))
    stamp = path.stat().st_mtime_ns
    ingest(site, configure("pay.csv"))
    changed = int(place * rows)
    lines[changed] = lines[changed].replace(".50", ".75")
    path.write_text("payment_id,at,amount\n" + "".join(lines))
    os.utime(path, ns=(stamp, stamp))
    assert ingest(site, configure("pay.csv")).arrivals == 1
    assert read_landing(site)["amount"].str.endswith(".75").sum() == 1
    assert ingest(site, configure("pay.csv")).arrivals == 0


@pytest.mark.parametrize("forget", [lambda content: content.partition("@")[0], lambda content: ""])
def test_a_large_file_of_an_older_landing_stays_fresh(site, forget):
    put(site, "pay.csv", "payment_id,at,n\n" + "".join(f"p{n},2026-03-01T10:00:00Z,{n}\n" for n in range(50_000)))
    ingest(site, configure("pay.csv"))
    path = site.lake.manifest_path("landing", "toy", DAY)
    manifest = json.loads(site.lake.read(path))
    for part in manifest["parts"]:
        part["content"] = forget(part["content"])
    site.lake.replace(path, json.dumps(manifest).encode())
    assert ingest(site, configure("pay.csv")).arrivals == 0


def test_a_landing_older_than_content_hashes_stays_fresh(site):
    put(site, "pay.csv", CSV)
    ingest(site, configure("pay.csv"))
    for day in site.lake.dates("landing", "toy"):
        path = site.lake.manifest_path("landing", "toy", day)
        manifest = json.loads(site.lake.read(path))
        assert all(part.pop("content") for part in manifest["parts"])
        site.lake.replace(path, json.dumps(manifest).encode())
    assert ingest(site, configure("pay.csv")).arrivals == 0


def test_no_value_of_a_line_of_another_width_lands_and_lines_of_two_members_stay_apart(site):
    odd = CSV + "p9,2026-03-01T10:00:00Z,4111111111111111\n"
    with zipfile.ZipFile(Path(site.sources) / "pay.zip", "w") as archive:
        archive.writestr("a.csv", odd)
        archive.writestr("b.csv", odd.replace("p1", "q1").replace("p2", "q2").replace("p3", "q3"))
    ingest(site, configure("pay.zip"))
    rows = read_landing(site)
    named = rows.loc[rows["event_time"].isna(), "record_id"].tolist()
    assert named == [f"pay.zip, {member}.csv, line 5 with 3 of 4 values" for member in ("a", "b")]
    assert "4111" not in rows.to_csv()


def test_a_line_of_another_width_is_named_without_its_values(site):
    put(site, "pay.csv", CSV + "p9,2026-03-01T10:00:00Z,1,DE,4111111111111111\n" * 3)
    with pytest.raises(SourceInvalid, match="line 5 has 5 values, the header has 4") as refused:
        ingest(site, configure("pay.csv"))
    assert "4111" not in str(refused.value)


def test_a_file_without_times_is_dealt_out_in_its_own_order(site: Site, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("".join(f"{row},x{row % 2}\n" for row in range(7)))
    source = FilesSource(kind="files", path=str(tmp_path / "rows.csv"), header=("number", "kind"))
    rule = EventTime(rows_per_day=3, first_date=date(2026, 1, 30))
    window = Window(date.min, date.max, datetime(2030, 1, 1, tzinfo=UTC))
    done = ingest_arrivals(site, IngestParams(source=source, event_time=rule), window)
    assert done.dates == (date(2026, 1, 30), date(2026, 1, 31), date(2026, 2, 1))
    [part] = site.lake.get("landing", site.detector, date(2026, 1, 31)).parts
    [table] = site.lake.slices(part)
    assert table["number"].to_pylist() == ["3", "4", "5"]
    assert table["event_time"].to_pylist() == [datetime(2026, 1, 31, hour, tzinfo=UTC) for hour in (0, 8, 16)]


def deal(site: Site, folder: Path, ids: Sequence[str], record_id: str | None) -> dict[str, date]:
    """The day of each row, by its id, of a file that has just these ids."""
    (folder / "rows.csv").write_text("id,n\n" + "".join(f"{name},{n}\n" for n, name in enumerate(ids)))
    source = FilesSource(kind="files", path=str(folder / "rows.csv"))
    rule = EventTime(days=5, seed=3, first_date=date(2026, 1, 1))
    params = IngestParams(source=source, event_time=rule, record_id=record_id, first_row=None if record_id else 2)
    ingest_arrivals(site, params, Window(date.min, date.max, datetime(2030, 1, 1, tzinfo=UTC)))
    rows = read_landing(site)
    return dict(zip(rows["record_id"], rows["event_time"].dt.date, strict=True))


def test_a_table_without_times_is_dealt_at_random_and_a_row_keeps_its_day(site: Site, tmp_path: Path) -> None:
    ids = [f"r{n}" for n in range(500)]
    days = deal(site, tmp_path, ids, "id")
    sizes = Counter(days.values())
    assert sorted(sizes) == [date(2026, 1, day) for day in range(1, 6)]
    assert min(sizes.values()) > 70
    assert len({days[name] for name in ids[:20]}) > 1  # not in file order
    again = deal(site, tmp_path, ["r0a", *reversed(ids)], "id")
    assert {name: again[name] for name in ids} == days


def test_rows_without_an_id_are_named_by_the_rows_of_a_spreadsheet(site: Site, tmp_path: Path) -> None:
    days = deal(site, tmp_path, [str(n) for n in range(300)], None)
    assert sorted(days, key=lambda name: int(name.split(":")[1])) == [f"rows:{row}" for row in range(2, 302)]
    assert len(set(days.values())) == 5


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"column": "t", "rows_per_day": 5, "first_date": date(2026, 1, 1)},
        {"rows_per_day": 5},
        {"days": 5, "first_date": date(2026, 1, 1)},
        {"days": 5, "seed": 1, "rows_per_day": 5, "first_date": date(2026, 1, 1)},
        {"column": "t", "days": 5, "seed": 1, "first_date": date(2026, 1, 1)},
        {"rows_per_day": 5, "first_date": date(2026, 1, 1), "seconds_since": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_event_time_is_a_column_or_an_order_but_not_half_of_either(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="column"):
        EventTime.model_validate(given)


def test_labels_may_name_what_is_normal_instead_of_what_is_anomalous(site: Site) -> None:
    texts = pd.Series(["normal.", "smurf.", "back."])
    assert interpret_labels(LabelColumn(column="label", normal=("normal.",)), texts).tolist() == [0, 1, 1]
    both = LabelColumn(column="label", anomalous=("back.",), normal=("normal.", "smurf."))
    assert interpret_labels(both, texts).tolist() == [0, 0, 1]
    put(site, "pay.csv", "payment_id,at,label\na,2026-03-01,normal.\nb,2026-03-01,smurf.\nc,2026-03-01,\n")
    ingest(site, configure("pay.csv", labels=LabelColumn(column="label", normal=("normal.",))))
    found = site.warehouse.read_labels("toy", LATER)
    assert found[["record_id", "label"]].to_numpy().tolist() == [["a", 0], ["b", 1]]


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({}, "give anomalous, normal or both"),
        ({"anomalous": ("back.",)}, "list the normal values too"),
        ({"anomalous": ("1", "x")}, "list the normal values too"),
        ({"anomalous": ("1", "2"), "normal": ("2.0",)}, "2 cannot mean both"),
        ({"anomalous": ("0",)}, "0 cannot mean both"),
    ],
)
def test_a_label_rule_says_what_every_value_means(lists, problem):
    with pytest.raises(ValueError, match=problem):
        LabelColumn(column="label", **lists)
