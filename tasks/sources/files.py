"""The files of a source as arrivals, whose rows are read slice by slice. Nothing here knows what the rows mean."""

import codecs
import errno
import ftplib
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, field_validator, model_validator

from models.params import Section
from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.sources.arrival import PASSED_OVER, UNPACKING, UNPARSED, Arrival
from tasks.sources.content import count_named, is_csv, read_file
from tasks.sources.dialect import (
    PLAIN,
    SHOWN,
    Dialect,
    count_skipped,
    decode,
    find_dialect,
    find_encoding,
    has_header,
    read_mark,
    read_records,
)
from tasks.sources.unpack import HEAD, Stream, make_seekable, unpack
from tasks.sources.workbook import is_workbook, list_sheets

END = 1 << 19  # bytes at each end of a file that tell whether it has changed
SNIFFED = 20  # files that init looks at to find out how all are written
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # the folder of rows without a value


class FilesSource(Section):
    """Tables, text lines or .npz archives of images: a file, a folder, a glob, or any fsspec URL.

    Paths are relative to NIGHTJAR_SOURCES. `header` names the columns of CSV files that have no header line.
    `line_column` is for text files: every line is one record, and its text is the value of this column.

    `sheet` is the sheet of spreadsheets to read; without one they may have only one with values.

    How CSV files are written: `separator`, `encoding` (any that Python knows), `skip_lines` above the header, and
    `escape`, the character before a quotation mark within a value, where that is not a second one.
    """

    kind: Literal["files"]
    path: str = Field(min_length=1)
    header: tuple[str, ...] = ()
    line_column: str | None = None
    # Left out of the hash at their defaults, so that params older than these keys keep their hash.
    separator: str = Field(default=",", min_length=1, max_length=1, exclude_if=lambda given: given == ",")
    encoding: str = Field(default="utf-8", exclude_if=lambda given: given == "utf-8")
    skip_lines: int = Field(default=0, ge=0, exclude_if=lambda given: given == 0)
    escape: str | None = Field(default=None, min_length=1, max_length=1, exclude_if=lambda given: given is None)
    sheet: str | None = Field(default=None, exclude_if=lambda given: given is None)

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            codecs.getincrementaldecoder(encoding)
        except LookupError as error:
            raise ValueError(f"{encoding!r} is no encoding of text that Python knows") from error
        return encoding

    @property
    def dialect(self) -> Dialect:
        """How CSV files are written."""
        return Dialect(self.separator, self.encoding, self.skip_lines, self.escape)

    @model_validator(mode="after")
    def _check(self) -> "FilesSource":
        if self.header and self.line_column:
            raise ValueError("give either header or line_column: a file of text lines has no header")
        return self


def list_files(source: FilesSource, root: str) -> Iterator[Arrival]:
    """The files that a path matches, ordered by name; markers, hidden and unfinished files of a folder are left out.

    Raises SourceInvalid if there are none.
    """
    fs, folder, infos = _locate(source, root)
    for info in infos:
        stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
        arrived = stamp if isinstance(stamp, datetime) else datetime.fromtimestamp(float(stamp), UTC)
        name = str(info["name"]).removeprefix(folder).lstrip("/")
        version = f"{info.get('size')}-{info.get('ETag') or stamp}"
        read = partial(_read, source, fs, str(info["name"]), read_partitions(name))
        is_local = isinstance(fs, LocalFileSystem)
        content = partial(hash_content, Path(str(info["name"]))) if is_local else str
        yield Arrival(name, version, arrived, read, content=content)


def hash_content(path: Path) -> str:
    """A hash of a file: of all of it or, if it is large, of its two ends, and @ with the time of its last change.

    Unlike the time stamp that people see, that time cannot be set: it reveals a change between the ends. "" if the
    file cannot be read.
    """
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            digest = hashlib.blake2b(file.read(END), digest_size=16)
            file.seek(max(END, facts.st_size - END))
            digest.update(file.read(END))
    except OSError:
        return ""  # landing it says what is wrong
    return digest.hexdigest() if facts.st_size <= 2 * END else f"{digest.hexdigest()}@{facts.st_ctime_ns}"


def find_settings(source: FilesSource, root: str, is_headed: bool | None = None) -> tuple[FilesSource, list[str]]:
    """The source with the dialect of its CSV files, and a note on each thing that is not as in plain CSV.

    A header or a sheet that the source names is kept. is_headed: whether files have a header line; None: look.
    """
    fs, _, infos = _locate(source, root)
    found, encoding = list[bytes](), "utf-8"
    for info in infos[:SNIFFED]:
        try:
            for stream, head in _open_csv(fs, str(info["name"])):
                found = found or [head]
                if encoding == "utf-8" and not read_mark(head):
                    encoding = _find_encoding(stream)
        except (*UNPACKING, pa.ArrowException, SourceInvalid):
            continue  # reading it says what is wrong
    if source.line_column:
        return source, []
    if not found:
        return _find_sheet(source, fs, str(infos[0]["name"]), is_headed)
    mark = read_mark(found[0])  # needs no setting
    text = decode(found[0], mark or encoding, "replace").removeprefix("\ufeff")
    dialect = find_dialect(text, "utf-8" if mark else encoding)
    settings, notes = _describe(text, dialect, source.header, is_headed)
    return source.model_copy(update=settings), notes


def _open_csv(fs: Any, path: str) -> Iterator[tuple[Stream, bytes]]:
    with ExitStack() as files:
        for _, stream in unpack(files.enter_context(fs.open(path, "rb")), path, files):
            if is_csv(head := stream.peek(HEAD)):
                yield stream, head


def _find_sheet(source: FilesSource, fs: Any, path: str, is_headed: bool | None) -> tuple[FilesSource, list[str]]:
    """The source with the first sheet of a spreadsheet that has values, if it is not the only one, and its header."""
    with ExitStack() as files:
        try:
            name, stream = next(unpack(files.enter_context(fs.open(path, "rb")), path, files))
            head = stream.peek(HEAD)
            if not is_workbook(stream, head):
                return source, []
            sheets = list_sheets(make_seekable(stream, files), name)
        except (*UNPACKING, SourceInvalid, StopIteration):
            return source, []  # reading it says what is wrong
    settings: dict[str, Any] = {"sheet": next(iter(sheets))} if len(sheets) > 1 and not source.sheet else {}
    notes = [f"only the sheet {settings['sheet']!r} is read, not {', '.join(list(sheets)[1:])}; --sheet names another"
             ] if settings else []  # fmt: skip
    records = sheets.get(source.sheet, []) if source.sheet else next(iter(sheets.values()), [])
    if not records:
        return source, []
    width, _ = Counter(len(record) for _, record in records).most_common(1)[0]
    found, more = _describe_header(
        records, Dialect(skip_lines=count_skipped(records, width)), records[0][1], source.header, is_headed
    )
    return source.model_copy(update=settings | found), notes + more


def _find_encoding(stream: Stream) -> str:
    """The encoding of a file by its first block with other than ASCII characters."""
    while block := stream.read(HEAD):
        if not block.isascii() or b"\0" in block:
            return find_encoding(block)
    return "utf-8"


def _describe(
    text: str, dialect: Dialect, header: tuple[str, ...], is_headed: bool | None
) -> tuple[dict[str, Any], list[str]]:
    """The settings of a dialect that differ from plain CSV, and a note on each."""
    settings = {key: value for key, value in vars(dialect).items() if value != getattr(PLAIN, key)}
    notes = []
    if "separator" in settings:
        notes.append(f"the values are separated by {SHOWN[dialect.separator]}")
    if "encoding" in settings:
        notes.append(f"the text is not UTF-8 but seems to be {dialect.encoding}; if characters look wrong, correct "
                     "ingest.source.encoding")  # fmt: skip
    if "escape" in settings:
        notes.append(f'quotation marks within values are written as {dialect.escape}"')
    found, more = _describe_header(read_records(text, dialect), dialect, text.splitlines()[:1], header, is_headed)
    return settings | found, notes + more


def _describe_header(
    records: Sequence[tuple[int, list[str]]],
    dialect: Dialect,
    above: Sequence[str],
    header: tuple[str, ...],
    is_headed: bool | None,
) -> tuple[dict[str, Any], list[str]]:
    """Settings and notes about the lines above the header, of which `above` shows one, and about the header."""
    settings: dict[str, Any] = {}
    notes = []
    if dialect.skip_lines:
        settings["skip_lines"] = dialect.skip_lines
        first = " ".join(above)[:60]
        notes.append(f"lines above the header are skipped: {dialect.skip_lines}, of which the first is {first!r}")
    rows = [record for lines, record in records if lines >= dialect.skip_lines]
    if not rows:
        return settings, notes
    width = count_named(rows[0])
    if header:
        return settings, notes
    if not (has_header([record[:width] for record in rows]) if is_headed is None else is_headed):
        settings["header"] = tuple(f"column_{number}" for number in range(1, width + 1))
        notes.append(f"the first row looks like values, so the columns are named column_1 to column_{width}: name them "
                     "in ingest.source.header and the contract, or add a header line and run init again")  # fmt: skip
    if unnamed := max(map(len, rows)) - width:
        notes.append(f"{unnamed} columns without a name at the end of the rows are left out if they are empty")
    return settings, notes


def _locate(source: FilesSource, root: str) -> tuple[Any, str, list[dict[str, Any]]]:
    """The file system, the folder from which names are given, and what is known about each file."""
    url = source.path if "://" in source.path or source.path.startswith("/") else f"{root.rstrip('/')}/{source.path}"
    try:
        fs, path = fsspec.core.url_to_fs(url)  # connects, for some kinds of store
        folder, found = _find(fs, path)
        infos = [info for info in map(partial(_look_at, fs), found) if info and info["type"] == "file"]
    except (OSError, EOFError, ftplib.Error) as error:
        raise ServiceUnreachable("The source cannot be read.", where=url, got=str(error)) from error
    except (ImportError, ValueError) as error:
        raise SourceInvalid(
            "The URL of the source cannot be opened.",
            where=url,
            got=str(error),
            expected="a protocol that fsspec knows, such as s3:// or ftp://, and the package that it needs",
            todo="correct the URL, or install the package",
        ) from error
    if not infos:
        raise SourceInvalid(
            "The source has no file.",
            where=url,
            got="no file",
            expected="a file, a folder or a glob",
            todo="put the file there, or set NIGHTJAR_SOURCES to the folder that contains it",
        )
    return fs, folder, infos


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
    """What the store knows about a file; None for a link to nowhere, or to itself."""
    try:
        info: dict[str, Any] = fs.info(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP:
            return None
        raise
    return info


def read_partitions(name: str) -> dict[str, str | None]:
    """The columns that a file's folders hold, as Spark and Hive name them: country=DE/day=1/part-0.parquet."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if re.match(r"[^=]+=.", folder)]
    return {unquote(key): None if value == NO_PARTITION else unquote(value) for key, value in pairs}


def _read(source: FilesSource, fs: Any, path: str, partitions: Mapping[str, str | None]) -> Iterator[pa.Table]:
    for table in read_file(fs, path, source.dialect, source.header, source.line_column, source.sheet):
        there = {name.casefold() for name in table.column_names}
        for key in [key for key in partitions if key.casefold() not in there and there != {UNPARSED}]:
            table = table.append_column(key, pa.repeat(pa.scalar(partitions[key], pa.string()), table.num_rows))
        yield table


def name_files(source: str, sources: str) -> FilesSource:
    """The source for a path that a user typed, relative to the current folder or otherwise to NIGHTJAR_SOURCES.

    A path in the sources folder is stored relative to it, any other path in full.
    """
    found = "://" not in source and (Path(source).exists() or glob.has_magic(source))
    if not found:
        return FilesSource(kind="files", path=source)
    path, root = Path(source).resolve(), Path(sources).resolve()
    return FilesSource(kind="files", path=str(path.relative_to(root) if path.is_relative_to(root) else path))
