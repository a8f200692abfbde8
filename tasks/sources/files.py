"""The files of a source as arrivals, whose rows are read slice by slice.

CSV values stay text, so that a bad one is quarantined as it arrived. Nothing here knows what the rows mean.
"""

import glob
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

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

# Names within a folder that are not data: hidden ones, markers such as _SUCCESS, checksums, unfinished and lock files.
PASSED_OVER = re.compile(
    r"(^|/)([_.~]|(README|LICENSE|desktop\.ini|Thumbs\.db)($|[./]))|~$"
    r"|\.(crc|tmp|temp|part|partial|filepart|crdownload|swp|lock|md5|sha1|sha256|md)$",
    re.IGNORECASE,
)
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # the folder of rows without a value


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
    """The files that a path matches, ordered by name; markers, hidden and unfinished files of a folder are left out.

    Raises SourceInvalid if there are none.
    """
    url = source.path if "://" in source.path or source.path.startswith("/") else f"{root.rstrip('/')}/{source.path}"
    fs, path = fsspec.core.url_to_fs(url)
    try:
        folder, found = _find(fs, path)
        infos = [info for info in map(partial(_look_at, fs), found) if info and info["type"] == "file"]
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
    for info in infos:
        stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
        arrived = stamp if isinstance(stamp, datetime) else datetime.fromtimestamp(float(stamp), UTC)
        name = str(info["name"]).removeprefix(folder).lstrip("/")
        version = f"{info.get('size')}-{info.get('ETag') or stamp}"
        read = partial(_read, source, fs, str(info["name"]), read_partitions(name))
        yield Arrival(name, version, arrived, read)


def _find(fs: Any, path: str) -> tuple[str, list[str]]:
    """The folder from which names are given, and the paths of the files."""
    if fs.isdir(path):
        found = [name for name in sorted(fs.find(path)) if not PASSED_OVER.search(name.removeprefix(path))]
        return path, found
    if not glob.has_magic(path) or fs.exists(path):  # a name may contain brackets
        return path.rpartition("/")[0], [path]
    folder = re.split(r"[*?[]", path)[0].rpartition("/")[0]
    is_asked = path.rpartition("/")[2].startswith(("_", "."))
    found = [name for name in sorted(fs.glob(path)) if is_asked or not PASSED_OVER.search(name.removeprefix(folder))]
    return folder, found


def _look_at(fs: Any, path: str) -> dict[str, Any] | None:
    """What the store knows about a file; None for a link to nowhere."""
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return info


def read_partitions(name: str) -> dict[str, str | None]:
    """The columns that a file's folders hold, as Spark and Hive name them: country=DE/day=1/part-0.parquet."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if re.match(r"[^=]+=.", folder)]
    return {unquote(key): None if value == NO_PARTITION else unquote(value) for key, value in pairs}


def _read(source: FilesSource, fs: Any, path: str, partitions: Mapping[str, str | None]) -> Iterator[pa.Table]:
    for table in _choose_reader(source, path)(fs, path):
        there = {name.casefold() for name in table.column_names}
        for key in [key for key in partitions if key.casefold() not in there]:
            table = table.append_column(key, pa.repeat(pa.scalar(partitions[key], pa.string()), table.num_rows))
        yield table


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
