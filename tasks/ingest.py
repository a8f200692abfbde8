"""Bring a source's rows into landing, one shape for all: record_id, event_time (UTC), then the source's own columns.

CSV values stay text until validation, so a bad value is quarantined as it arrived. Landing is append-only: each arrival
adds a part with its arrival time; a file that arrives again, changed, takes the place of its older part. What has
landed is known by the file's name and version, so a second ingest does nothing.
"""

import glob
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import sqlalchemy as sa
from prefect import get_run_logger, task
from pydantic import AwareDatetime, Field

from models.params import Section
from tasks import payments, warehouse
from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.lake import SLICE_ROWS, Lake, Part, PartWriter
from tasks.policy import IO
from tasks.progress import progress_of
from tasks.site import Site


class FilesSource(Section):
    """CSV, gzipped CSV or Parquet: a file, a folder, a glob, or any fsspec URL; relative to NIGHTJAR_SOURCES."""

    kind: Literal["files"]
    path: str = Field(min_length=1)


class SqlSource(Section):
    """The rows of one query; `url` is any SQLAlchemy URL; the command line fills in `${NAME}` from the environment."""

    kind: Literal["sql"]
    url: str
    query: str


class EventTime(Section):
    """The column with the event time: a timestamp, or seconds since `seconds_since`."""

    column: str
    seconds_since: AwareDatetime | None = None


class LabelColumn(Section):
    """Labels that come with the rows: which column, and which of its values mean anomalous."""

    column: str
    anomalous: tuple[str, ...] = Field(min_length=1)


class IngestParams(Section):
    """Where rows come from and what names them. Without `record_id` a row is named by its file and row number."""

    source: Annotated[FilesSource | SqlSource | payments.PaymentsSource, Field(discriminator="kind")]
    record_id: str | None = None
    event_time: EventTime
    labels: LabelColumn | None = None


SUFFIXES = re.compile(r"(\.(csv|parquet|pq|gz|bz2|xz|zst|zip))+$")
READABLE_TIMES = (pd.Timestamp("0001-01-02", tz="UTC"), pd.Timestamp("9999-12-30", tz="UTC"))  # of Python's dates


@dataclass(frozen=True)
class Arrival:
    """One file, query or feed delivery. `version` changes when its content may have."""

    name: str
    version: str
    arrived_at: datetime
    read: Callable[[], Iterable[pa.Table]]


@dataclass(frozen=True)
class Ingested:
    """What one ingest did: the batch dates it touched, and rows and labels added."""

    dates: tuple[date, ...]
    arrivals: int
    rows: int
    labels: int


def list_files(source: FilesSource, root: str) -> Iterator[Arrival]:
    """The files behind a path, in name order. Raises SourceInvalid where there is none."""
    url = source.path if "://" in source.path or source.path.startswith("/") else f"{root.rstrip('/')}/{source.path}"
    fs, path = fsspec.core.url_to_fs(url)
    try:
        found = sorted(fs.find(path)) if fs.isdir(path) else sorted(fs.glob(path)) if glob.has_magic(path) else [path]
        infos = [info for info in map(fs.info, found) if info["type"] == "file"]
    except FileNotFoundError:
        infos = []
    except OSError as error:
        raise ServiceUnreachable("The source cannot be read.", where=url, got=str(error)) from error
    if not infos:
        raise SourceInvalid(
            "The source has no file.",
            where=url,
            got="nothing there",
            expected="a CSV, gzipped CSV or Parquet file, a folder or a glob",
            todo="put the file there, or set NIGHTJAR_SOURCES to the folder that holds it",
        )
    folder = path if fs.isdir(path) else re.split(r"[*?[]", path)[0].rpartition("/")[0]
    for info in infos:
        name = str(info["name"])
        stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
        arrived = stamp if isinstance(stamp, datetime) else datetime.fromtimestamp(float(stamp), UTC)
        reader = read_parquet if name.endswith((".parquet", ".pq")) else read_csv
        version = f"{info.get('size')}-{info.get('ETag') or stamp}"
        yield Arrival(name.removeprefix(folder).lstrip("/"), version, arrived, lambda n=name, r=reader: r(fs, n))  # type: ignore[misc]


def read_csv(fs: Any, path: str) -> Iterator[pa.Table]:
    """A CSV file's rows, all columns as text, slice by slice; `.gz` and its kin are unpacked on the way."""
    try:
        with fs.open(path, "rb", compression="infer") as file:
            first = file.readline()
            names = pacsv.read_csv(io.BytesIO(first)).column_names if first.strip() else []
            if not names:
                raise SourceInvalid(
                    "The file is empty.",
                    where=path,
                    got="no header line",
                    expected="a header line and rows",
                    todo="deliver the file again; nothing of it has landed",
                )
            texts = pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
            )
            options = pacsv.ReadOptions(column_names=names, block_size=1 << 24)
            for batch in pacsv.open_csv(file, read_options=options, convert_options=texts):
                yield pa.Table.from_batches([batch])
    except (EOFError, OSError, zlib.error, pa.ArrowInvalid) as error:
        if "Empty CSV" in str(error):
            return
        raise _damaged(path, error) from error


def read_parquet(fs: Any, path: str) -> Iterator[pa.Table]:
    """A Parquet file's rows, slice by slice."""
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(SLICE_ROWS):
                yield pa.Table.from_batches([batch])
    except (EOFError, OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def read_query(source: SqlSource, now: datetime) -> Arrival:
    """A query's rows, slice by slice. Its version is the instant of the reading: a query has no other."""

    def read() -> Iterator[pa.Table]:
        schema = None
        try:
            engine = sa.create_engine(source.url, poolclass=sa.NullPool)
            with engine.connect().execution_options(stream_results=True) as connection:
                text = sa.text(source.query)
                for frame in pd.read_sql_query(text, connection, chunksize=SLICE_ROWS, dtype_backend="pyarrow"):
                    table = pa.Table.from_pandas(frame, preserve_index=False)
                    schema = schema or _settle(table.schema)
                    yield table.cast(schema)
        except (sa.exc.SQLAlchemyError, pd.errors.DatabaseError, pa.ArrowInvalid) as error:
            raise SourceInvalid(
                "The query cannot be read.",
                where=_hide_password(source.url),
                got=str(error).splitlines()[0],
                expected="a query whose columns keep their types from row to row",
                todo="correct ingest.source in params.yaml, or see that the database answers; nothing of it has landed",
            ) from error

    name = f"query-{hashlib.sha256(source.query.encode()).hexdigest()[:12]}"
    return Arrival(name, now.isoformat(), now, read)


def _settle(schema: pa.Schema) -> pa.Schema:
    """What all slices are cast to, given the first: a column without a value there may yet bring some."""
    settled = {pa.types.is_null: pa.string(), pa.types.is_decimal: pa.float64()}
    kinds = [next((to for is_kind, to in settled.items() if is_kind(kind)), kind) for kind in schema.types]
    return pa.schema(list(zip(schema.names, kinds, strict=True)))


def _hide_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "a text that is no SQLAlchemy URL"  # it may hold a password


def list_payments(source: payments.PaymentsSource, zone: str, first: date, last: date) -> Iterator[Arrival]:
    """The simulator's files of some dates."""
    version = hashlib.sha256(f"{source.model_dump_json()} {zone}".encode()).hexdigest()[:16]
    for file in payments.list_files(source, zone, first, last):
        read = lambda f=file: map(_to_arrow, payments.read_file(source, zone, f))  # noqa: E731
        yield Arrival(file.name, version, file.arrives_at, read)


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def add_identity(table: pa.Table, params: IngestParams, name: str, first_row: int) -> pa.Table:
    """Give rows record_id and event_time. A row without a readable event time gets null, and is quarantined later."""
    if len(set(table.column_names)) < table.num_columns:
        raise SourceInvalid(
            "The source has two columns of one name.",
            where=name,
            got=f"columns {', '.join(table.column_names)}",
            expected="a name of its own for each column",
            todo="rename one of them",
        )
    needed = [params.event_time.column, *([params.record_id] if params.record_id else [])]
    needed += [params.labels.column] if params.labels else []
    if missing := [column for column in needed if column not in table.column_names]:
        raise SourceInvalid(
            f"The source lacks {', '.join(missing)}.",
            where=name,
            got=f"columns {', '.join(table.column_names)}",
            expected=f"columns {', '.join(needed)}",
            todo="correct the file, or the ingest section of params.yaml",
        )
    if params.record_id:
        ids = table[params.record_id].cast(pa.string())
        table = table.drop_columns([params.record_id])
    else:
        stem = SUFFIXES.sub("", name)
        ids = pa.array([f"{stem}:{row:09d}" for row in range(first_row, first_row + table.num_rows)])
    times = _event_times(table[params.event_time.column], params.event_time)
    keep = [c for c in table.column_names if c not in ("record_id", "event_time", params.event_time.column)]
    columns = [ids, times, *(table[c] for c in keep)]
    if params.event_time.seconds_since:
        keep, columns = [params.event_time.column, *keep], [ids, times, table[params.event_time.column], *columns[2:]]
    return pa.table(columns, names=["record_id", "event_time", *keep])


def _event_times(column: pa.ChunkedArray, rule: EventTime) -> pa.Array:
    if rule.seconds_since:
        seconds = pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce")
        start = pd.Timestamp(rule.seconds_since).tz_convert("UTC")
        times = start + pd.to_timedelta(seconds, unit="s", errors="coerce")
    else:
        # By a stated format: otherwise the first row of a slice would choose it for all.
        times = pd.to_datetime(column.to_pandas(), errors="coerce", utc=True, format="ISO8601")
    times = times.astype("datetime64[us, UTC]")
    return pa.array(times.where(times.between(*READABLE_TIMES)), pa.timestamp("us", tz="UTC"))


def batch_dates_of(times: pa.Array, zone: ZoneInfo) -> pa.Array:
    """The local day of each event time (date32); null where the time is null."""
    return pc.cast(pc.local_timestamp(pc.cast(times, pa.timestamp("us", tz=str(zone)))), pa.date32())


def land(
    lake: Lake,
    detector: str,
    arrival: Arrival,
    params: IngestParams,
    zone: ZoneInfo,
    before_commit: Callable[[list[Part]], None] = lambda parts: None,
) -> dict[date, int]:
    """Write one arrival into the landing partitions of its dates; returns the rows landed a date.

    Nothing of a file that turns out to be damaged becomes visible: manifests are committed after its last row, and
    after `before_commit` has had its parts. A part says on how many dates its arrival landed, so that an arrival of
    which a crash left only some is known as such and lands again.
    Rows without a readable event time join the file's first readable date, where validation quarantines them.
    """
    partitions = {}
    rows, undated = 0, []
    with ExitStack() as stack:
        writers: dict[date, PartWriter] = {}

        def append(day: date, table: pa.Table) -> None:
            if day not in writers:
                partitions[day] = lake.write("landing", detector, day)
                origin = {
                    "source": arrival.name,
                    "version": arrival.version,
                    "arrived_at": arrival.arrived_at.isoformat(),
                }
                writers[day] = stack.enter_context(partitions[day].part("part-0", **origin))
            writers[day].append(table)

        for table in arrival.read():
            identified = add_identity(table, params, arrival.name, rows)
            rows += table.num_rows
            dates = batch_dates_of(identified["event_time"], zone)
            for day in pc.unique(dates).to_pylist():
                chosen = identified.filter(pc.is_null(dates) if day is None else pc.equal(dates, day))
                undated.append(chosen) if day is None else append(day, chosen)
        if not rows or (undated and not writers):
            got = "no rows" if not rows else f"{rows} rows, none with a readable {params.event_time.column}"
            raise SourceInvalid(
                "The source has nothing to land.",
                where=arrival.name,
                got=got,
                expected="at least one row with an event time such as 2026-03-01T12:00:00Z",
                todo="deliver the file again, or correct ingest.event_time in params.yaml",
            )
        for table in undated:
            append(min(writers), table)
    before_commit([part for partition in partitions.values() for part in partition.parts])
    for day, partition in partitions.items():
        partition.parts = [replace(part, dates=len(partitions)) for part in partition.parts]
        old = lake.find("landing", detector, day)
        partition.commit({}, keep=tuple(part for part in old.parts if part.source != arrival.name) if old else ())
    return {day: writer.rows for day, writer in writers.items()}


def read_labels(lake: Lake, parts: Iterable[Part], rule: LabelColumn, delay: timedelta) -> Iterator[pd.DataFrame]:
    """Labels that came with the rows: record_id, label (1 = anomalous), known_at = event time + the label delay."""
    for part in parts:
        for table in lake.slices(part, ["record_id", "event_time", rule.column]):
            # As text before pandas, which would make 1.0 of a 1 that stands beside a missing label.
            texts = table.set_column(2, rule.column, table[rule.column].cast(pa.string()))
            frame = texts.to_pandas().dropna()
            label = frame[rule.column].isin(rule.anomalous).astype(int)
            known = frame["event_time"] + delay
            yield pd.DataFrame({"record_id": frame["record_id"], "label": label, "known_at": known})


@dataclass(frozen=True)
class Window:
    """The batch dates to ask a feed for, and the instant as of which it is asked. Files ignore the dates."""

    first: date
    last: date
    now: datetime


def list_arrivals(site: Site, params: IngestParams, window: Window) -> list[Arrival]:
    """Everything the source has delivered by `window.now`."""
    source = params.source
    if isinstance(source, FilesSource):
        found: Iterable[Arrival] = list_files(source, site.sources)
    elif isinstance(source, SqlSource):
        found = [read_query(source, window.now)]
    else:
        found = list_payments(source, site.time_zone, window.first, window.last)
    return [arrival for arrival in found if arrival.arrived_at <= window.now]


def ingest_arrivals(
    site: Site, params: IngestParams, window: Window, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Ingested:
    """Land what has arrived and is not in landing yet, and bring in the labels known so far.

    Labels that come with rows are kept before the rows land: a failure in between repeats both. `on_progress` is told
    how many arrivals of how many are done.
    """
    lake = site.lake
    days = lake.dates("landing", site.detector)
    parts = [part for day in days for part in lake.get("landing", site.detector, day).parts]
    held = Counter((part.source, part.version, part.dates) for part in parts)
    landed = {(source, version) for (source, version, dates), count in held.items() if count == dates}
    fresh = [a for a in list_arrivals(site, params, window) if (a.name, a.version) not in landed]
    touched: Counter[date] = Counter()
    added: list[int] = []

    def keep_labels(parts: list[Part]) -> None:
        if params.labels:
            added.append(_add_labels(site, read_labels(lake, parts, params.labels, site.label_delay)))

    for done, arrival in enumerate(fresh, start=1):
        touched.update(land(lake, site.detector, arrival, params, site.zone, keep_labels))
        on_progress(done, len(fresh))
    if isinstance(params.source, payments.PaymentsSource):
        first = max(window.first - site.label_delay, params.source.first_date)  # a label may arrive this late
        feed = payments.read_labels(params.source, site.time_zone, first, window.last)
        added.append(_add_labels(site, (frame[frame["known_at"] <= window.now] for frame in feed)))
    return Ingested(tuple(sorted(touched)), len(fresh), touched.total(), sum(added))


def _add_labels(site: Site, frames: Iterable[pd.DataFrame]) -> int:
    known = [frame for frame in frames if len(frame)]
    if not known:
        return 0
    engine = warehouse.open_engine(site.warehouse_url)
    return warehouse.add_labels(engine, site.detector, pd.concat(known, ignore_index=True))


def _damaged(path: str, error: Exception) -> SourceInvalid:
    return SourceInvalid(
        "The file is truncated or damaged.",
        where=path,
        got=re.sub(r"(got \d+):.*", r"\1", str(error).splitlines()[0]),  # Arrow goes on with the row itself
        expected="whole rows up to the end of the file",
        todo="deliver the file again; nothing of it has landed",
    )


@task(task_run_name="ingest {site.detector}", **IO)
def ingest(site: Site, params: IngestParams, window: Window) -> Ingested:
    """Land everything that has arrived."""
    done = ingest_arrivals(site, params, window, progress_of("ingest"))
    get_run_logger().info("landed %d arrivals, %d rows, %d labels", done.arrivals, done.rows, done.labels)
    return done
