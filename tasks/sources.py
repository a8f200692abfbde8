"""Where rows come from: each kind of source lists its arrivals, and an arrival hands out its rows slice by slice.

CSV values stay text, so that a bad one is judged as it arrived. Nothing here knows what the rows mean.
"""

import glob
import hashlib
import io
import itertools
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import IO, Annotated, Any, Literal
from zoneinfo import ZoneInfo

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import sqlalchemy as sa
from pydantic import Field, model_validator

from models.params import Section
from tasks import codes, payments
from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.images import make_field, to_arrow
from tasks.lake import SLICE_ROWS

UNPACKING = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what damaged archives raise


class FilesSource(Section):
    """CSV, Parquet, text lines or .npz archives of images: a file, a folder, a glob, or any fsspec URL.

    Paths are relative to NIGHTJAR_SOURCES. `header` names the columns of CSV files that have no header line.
    `line_column` is for text files: every line is one record, and its text stands in the column of this name.
    """

    kind: Literal["files"]
    path: str = Field(min_length=1)
    header: tuple[str, ...] = ()
    line_column: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "FilesSource":
        if self.header and self.line_column:
            raise ValueError("a line that is one record has no columns: give either header or line_column")
        return self


class SqlSource(Section):
    """The rows of one query; `url` is any SQLAlchemy URL; the command line fills in `${NAME}` from the environment."""

    kind: Literal["sql"]
    url: str
    query: str


Source = Annotated[FilesSource | SqlSource | payments.PaymentsSource | codes.CodesSource, Field(discriminator="kind")]


@dataclass(frozen=True)
class Arrival:
    """One file, query or feed delivery. `version` changes when its content may have.

    is_whole: what the name brought before and does not bring now is gone. A query may ask for the latest days only.
    """

    name: str
    version: str
    arrived_at: datetime
    read: Callable[[], Iterable[pa.Table]]
    is_whole: bool = True


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
            expected="a CSV, Parquet, text or .npz file, a folder or a glob",
            todo="put the file there, or set NIGHTJAR_SOURCES to the folder that holds it",
        )
    folder = path if fs.isdir(path) else re.split(r"[*?[]", path)[0].rpartition("/")[0]
    for info in infos:
        name = str(info["name"])
        stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
        arrived = stamp if isinstance(stamp, datetime) else datetime.fromtimestamp(float(stamp), UTC)
        reader = _choose_reader(source, name)
        version = f"{info.get('size')}-{info.get('ETag') or stamp}"
        yield Arrival(name.removeprefix(folder).lstrip("/"), version, arrived, lambda n=name, r=reader: r(fs, n))  # type: ignore[misc]


def _choose_reader(source: FilesSource, name: str) -> Callable[[Any, str], Iterator[pa.Table]]:
    if source.line_column:
        return partial(read_lines, column=source.line_column)
    if name.endswith(".npz"):
        return read_images
    return read_parquet if name.endswith((".parquet", ".pq")) else partial(read_csv, header=source.header)


def read_csv(fs: Any, path: str, header: tuple[str, ...] = ()) -> Iterator[pa.Table]:
    """A CSV file's rows, all columns as text, slice by slice; `.gz` and its kin are unpacked on the way."""
    try:
        with fs.open(path, "rb", compression="infer") as file:
            first = b"" if header else file.readline()
            names = list(header)
            if first.strip():
                names = pacsv.read_csv(io.BytesIO(first)).column_names
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
    except (*UNPACKING, UnicodeDecodeError, pa.ArrowInvalid) as error:
        if "Empty CSV" in str(error):
            return
        raise _damaged(path, error) from error


def read_parquet(fs: Any, path: str) -> Iterator[pa.Table]:
    """A Parquet file's rows, slice by slice."""
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(SLICE_ROWS):
                batch.validate(full=True)  # texts of a damaged file may be no UTF-8
                _check_instants(batch)
                yield _without_views(pa.Table.from_batches([batch]))
    except (EOFError, OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _check_instants(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid for instants of which microseconds cannot count the years: DuckDB reads no file with one."""
    for column in batch.columns:
        if pa.types.is_timestamp(column.type) and column.type.unit in ("s", "ms"):
            column.cast(pa.timestamp("us", column.type.tz))


def _without_views(table: pa.Table) -> pa.Table:
    """Texts and bytes laid out as views, which Arrow itself cannot filter yet, in their plain layout."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))


def read_lines(fs: Any, path: str, column: str) -> Iterator[pa.Table]:
    """A text file's lines in one column, slice by slice, without blanks at their ends; an empty line is null."""
    try:
        with fs.open(path, "rt", compression="infer", encoding="utf-8") as file:
            while lines := [line.strip() or None for line in itertools.islice(file, SLICE_ROWS)]:
                yield pa.table({column: pa.array(lines, pa.string())})
    except (*UNPACKING, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def read_images(fs: Any, path: str) -> Iterator[pa.Table]:
    """The rows of an .npz archive, slice by slice: uint8 arrays (N, rows, columns) are images, arrays (N,) are plain.

    A column is named like its array. Only the slice is in memory. Raises SourceInvalid where a shape or type does not
    fit, or the arrays differ in N.
    """
    try:
        with fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive, ExitStack() as stack:
            arrays = {name.removesuffix(".npy"): stack.enter_context(archive.open(name)) for name in archive.namelist()}
            headers = {name: _read_header(member) for name, member in arrays.items()}
            _check_arrays(path, headers)
            rows = min(shape[0] for shape, _ in headers.values())
            for start in range(0, rows, SLICE_ROWS):
                n = min(SLICE_ROWS, rows - start)
                yield _to_table({name: _read_rows(arrays[name], n, *header) for name, header in headers.items()})
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, ValueError) as error:
        raise _damaged(path, error) from error


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_by_column, dtype = read(member)
    if is_by_column and len(shape) > 1:
        raise ValueError("an array in column order, which cannot be read row by row")
    return shape, dtype


def _check_arrays(path: str, headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
    is_image = [len(shape) == 3 and dtype == np.uint8 for shape, dtype in headers.values()]
    is_plain = [len(shape) == 1 and dtype.kind in "biufU" for shape, dtype in headers.values()]
    fits = all(image or plain for image, plain in zip(is_image, is_plain, strict=True))
    if not (fits and any(is_image) and len({shape[0] for shape, _ in headers.values()}) == 1):
        raise SourceInvalid(
            "The image archive has arrays of a wrong shape or type.",
            where=path,
            got=", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in headers.items()) or "no arrays",
            expected="images as uint8 (N, rows, columns), all else as numbers or texts (N,), of the same N",
            todo="write the archive again with numpy.savez_compressed",
        )


def _read_rows(member: IO[bytes], n: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(member.read(n * dtype.itemsize * math.prod(shape[1:])), dtype).reshape(n, *shape[1:])


def _to_table(arrays: dict[str, npt.NDArray[Any]]) -> pa.Table:
    images = {name: (array.shape[1], array.shape[2]) for name, array in arrays.items() if array.ndim == 3}
    columns = {name: to_arrow(array) if name in images else pa.array(array) for name, array in arrays.items()}
    fields = [
        make_field(name, images[name]) if name in images else pa.field(name, column.type)
        for name, column in columns.items()
    ]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


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
        except (sa.exc.SQLAlchemyError, pd.errors.DatabaseError, ValueError) as error:  # also two columns of one name
            raise SourceInvalid(
                "The query cannot be read.",
                where=_hide_password(source.url),
                got=str(error).splitlines()[0],
                expected="a query whose columns keep their types from row to row",
                todo="correct ingest.source in params.yaml, or see that the database answers; nothing of it has landed",
            ) from error

    name = f"query-{hashlib.sha256(source.query.encode()).hexdigest()[:12]}"
    return Arrival(name, now.isoformat(), now, read, is_whole=False)


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


def list_codes(source: codes.CodesSource, zone: ZoneInfo, first: date, last: date) -> Iterator[Arrival]:
    """The generated codes of some dates, a file each, that arrives when its day is over."""
    version = hashlib.sha256(f"{source.model_dump_json()} {zone}".encode()).hexdigest()[:16]
    for offset in range((last - max(first, source.first_date)).days + 1):
        day = max(first, source.first_date) + timedelta(days=offset)
        over = datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC)
        yield Arrival(f"codes-{day}", version, over, lambda d=day: iter([codes.draw_day(source, zone, d)]))  # type: ignore[misc]


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _damaged(path: str, error: Exception) -> SourceInvalid:
    return SourceInvalid(
        "The file is truncated or damaged.",
        where=path,
        got=re.sub(r"(got \d+):.*", r"\1", str(error).splitlines()[0]),  # Arrow goes on with the row itself
        expected="whole rows up to the end of the file",
        todo="deliver the file again; nothing of it has landed",
    )
