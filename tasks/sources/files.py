"""The files of a source as arrivals, whose rows are read slice by slice.

CSV values stay text, so that a bad one is quarantined as it arrived. Nothing here knows what the rows mean.
"""

import glob
import io
import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from models.params import Section
from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.sources.arrival import UNPACKING, Arrival, damaged_file
from tasks.sources.images import read_images
from tasks.stores.lake import SLICE_ROWS


class FilesSource(Section):
    """CSV, Parquet, text lines or .npz archives of images: a file, a folder, a glob, or any fsspec URL.

    Paths are relative to NIGHTJAR_SOURCES. `header` names the columns of CSV files that have no header line.
    `line_column` is for text files: every line is one record, and its text is the value of this column.
    """

    kind: Literal["files"]
    path: str = Field(min_length=1)
    header: tuple[str, ...] = ()
    line_column: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "FilesSource":
        if self.header and self.line_column:
            raise ValueError("give either header or line_column: a file of text lines has no header")
        return self


def list_files(source: FilesSource, root: str) -> Iterator[Arrival]:
    """The files that a path matches, ordered by name. Raises SourceInvalid if there are none."""
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
            got="no file",
            expected="a CSV, Parquet, text or .npz file, a folder or a glob",
            todo="put the file there, or set NIGHTJAR_SOURCES to the folder that contains it",
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
    """A CSV file's rows, all columns as text, slice by slice; `.gz` and similar files are decompressed."""
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
        raise damaged_file(path, error) from error


def read_parquet(fs: Any, path: str) -> Iterator[pa.Table]:
    """A Parquet file's rows, slice by slice."""
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(SLICE_ROWS):
                batch.validate(full=True)  # text of a damaged file may not be UTF-8
                _check_instants(batch)
                yield _without_views(pa.Table.from_batches([batch]))
    except (EOFError, OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise damaged_file(path, error) from error


def _check_instants(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid for instants beyond the range of microseconds: DuckDB cannot read a file with one."""
    for column in batch.columns:
        if pa.types.is_timestamp(column.type) and column.type.unit in ("s", "ms"):
            column.cast(pa.timestamp("us", column.type.tz))


def _without_views(table: pa.Table) -> pa.Table:
    """Convert view columns of text and bytes, which Arrow cannot filter yet, to the plain layout."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))


def read_lines(fs: Any, path: str, column: str) -> Iterator[pa.Table]:
    """A text file's lines in one column, slice by slice, stripped of whitespace; an empty line is null."""
    try:
        with fs.open(path, "rt", compression="infer", encoding="utf-8") as file:
            while lines := [line.strip() or None for line in itertools.islice(file, SLICE_ROWS)]:
                yield pa.table({column: pa.array(lines, pa.string())})
    except (*UNPACKING, UnicodeDecodeError) as error:
        raise damaged_file(path, error) from error


def name_files(source: str, sources: str) -> FilesSource:
    """The source for a path that a user typed, relative to the current folder or otherwise to NIGHTJAR_SOURCES.

    A path in the sources folder is stored relative to it, any other path in full.
    """
    found = "://" not in source and (Path(source).exists() or glob.has_magic(source))
    if not found:
        return FilesSource(kind="files", path=source)
    path, root = Path(source).resolve(), Path(sources).resolve()
    return FilesSource(kind="files", path=str(path.relative_to(root) if path.is_relative_to(root) else path))
