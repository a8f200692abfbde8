"""The lake: Parquet zones under one root, a folder or any fsspec URL.

A partition is `zone/detector/batch_date=D/`: immutable parts under `attempt=K/` and one small `manifest.json`, written
last. Readers see a partition only through its manifest, so a dead attempt leaves nothing visible, and replacing the
manifest replaces the whole partition. Scores are under `inputs=KEY/` instead, with their own manifest: KEY is a hash of
everything they depend on, so all writers write the same bytes, and a later attempt reuses what is finished.
"""

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import (
    BatchMissing,
    MemoryExhausted,
    SourceInvalid,
)
from tasks.stores.files import Files, passing_over_missing

S = TypeVar("S", pa.Table, pa.Schema)
T = TypeVar("T")
Zone = Literal["landing", "validated", "quarantine", "clean", "scores"]
FILE, PART, LINE = "nightjar_file", "nightjar_part", "nightjar_line"  # in queries, beside the columns of rows
MANIFEST, PRUNED = "manifest.json", "pruned.json"
BATCH_DATE = re.compile(r"batch_date=(\d{4}-\d{2}-\d{2})")
# Query errors that do not mean a damaged part: incompatible columns, or too little memory.
NOT_OF_A_PART = (duckdb.BinderException, duckdb.ParserException, duckdb.ConversionException, MemoryError)
SLICE_ROWS = 131_072  # rows held in memory at once, fewer of wide rows: a Parquet row group
SLICE_BYTES = 128 << 20  # of a slice: rows of less than a kilobyte are cut by SLICE_ROWS
SLICE_MARK = b"slice_rows"  # in the footer of a part with wide rows and several slices: the rows of one
FETCHED_SLICES = 4  # slices of a part in an object store that are fetched together, to save requests
HISTORY_MEMORY = "2GB"  # for the records of weeks; DuckDB spills the rest to the temporary folder
HISTORY_THREADS = 4  # grouping takes about 100 MB per thread


@dataclass(frozen=True)
class Part:
    """One immutable Parquet file. `path` is relative to the lake root; the other texts give the origin of the rows.

    `replaces`: SHA-256 of parts in which this part replaces the rows with the same record_id.
    """

    path: str
    rows: int
    sha256: str
    source: str = ""
    version: str = ""
    arrived_at: str = ""
    dates: int = 1  # number of batch dates on which the arrival landed
    rule: str = ""  # hash of the params that assigned dates, ids and labels; "" in landings older than this field
    replaces: tuple[str, ...] = ()
    content: str = ""  # of the arrival, where that is cheap to read; "" in landings older than this field


@dataclass(frozen=True)
class Manifest:
    """The content of a partition: the parts of the attempt that committed it, and the facts it recorded."""

    zone: str
    detector: str
    batch_date: date
    attempt: int
    parts: tuple[Part, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    inputs: str | None = None  # the key of scores

    @property
    def rows(self) -> int:
        """The partition's rows."""
        return sum(part.rows for part in self.parts)

    @property
    def input_hash(self) -> str:
        """Of a validated partition: the hash of all landing that its rows and their history were made from."""
        return str(self.facts.get("input_hash") or self.facts["validation"]["input_hash"])

    @property
    def hash(self) -> str:
        """The content hash of the parts, independent of their order."""
        return hash_parts(self.parts)


def hash_parts(parts: Iterable[Part]) -> str:
    """The content hash of parts, independent of their order."""
    return hashlib.sha256("\n".join(sorted(part.sha256 for part in parts)).encode()).hexdigest()


class PartWriter:
    """Writes slices into one Parquet file and hashes the bytes as they are written. Without rows there is no file.

    For PyArrow it is a file object: write, tell, flush, close.
    """

    closed = False

    def __init__(self, lake: "Lake", path: str, files: ExitStack) -> None:
        self._lake, self._path, self._files = lake, path, files
        self._digest, self._position = hashlib.sha256(), 0
        self._parquet: pq.ParquetWriter | None = None
        self._file: IO[bytes]
        self._slice_rows, self._bytes = SLICE_ROWS, 0
        self.rows = 0

    def append(self, table: pa.Table) -> None:
        """Append rows; the first call creates the file and fixes its schema."""
        if not table.num_rows:
            return
        rows = count_slice_rows(table)
        self.start(table.schema).write_table(table, row_group_size=rows)
        self._slice_rows, self._bytes = min(self._slice_rows, rows), self._bytes + table.nbytes
        self.rows += table.num_rows

    def start(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Create the file if it does not exist; unless this is called, a part without rows has no file."""
        if self._parquet is not None:
            return self._parquet
        self._file = self._files.enter_context(self._lake.create(self._path))
        # A dictionary of numbers, or of ids that differ, takes time and saves little. LZ4 is read in two thirds of the
        # time of Snappy, for 3 % more bytes.
        texts = [f.name for f in schema if f.type in (pa.string(), pa.large_string()) and f.name != "record_id"]
        options = {"use_dictionary": texts or False, "compression": "lz4", "write_page_checksum": True}
        self._parquet = pq.ParquetWriter(pa.PythonFile(self, mode="w"), schema, **options)
        # Python cannot collect the circle through PyArrow, which would keep this lake and DuckDB's threads for ever.
        self._files.callback(setattr, self, "_parquet", None)
        return self._parquet

    def finish(self, **origin: str) -> Part:
        """Write the Parquet footer and describe the file."""
        if self._parquet is not None:
            if self._bytes > SLICE_BYTES and self._slice_rows < SLICE_ROWS:
                self._parquet.add_key_value_metadata({SLICE_MARK: str(self._slice_rows)})
            self._parquet.close()
        return Part(self._path, self.rows, self._digest.hexdigest(), **origin)  # type: ignore[arg-type]

    def write(self, data: bytes) -> int:
        """Hash the bytes and pass them on."""
        self._digest.update(data)
        self._position += len(data)
        with self._lake.reaching(self._path):
            return self._file.write(data)

    def tell(self) -> int:
        """The bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Do nothing: the partition closes the file."""


class PartitionWriter:
    """One attempt at a partition: parts first, the manifest last. Nothing is visible before `commit`."""

    def __init__(self, lake: "Lake", zone: Zone, detector: str, batch_date: date, inputs: str | None) -> None:
        self._lake, self._key, self._inputs = lake, (zone, detector, batch_date), inputs
        partition = lake.partition(zone, detector, batch_date)
        self.attempt = 0 if inputs else 1 + max(lake.attempts(partition), default=0)
        self._folder = f"{partition}/{f'inputs={inputs}' if inputs else f'attempt={self.attempt}'}"
        # Two processes may have chosen the same attempt number.
        self._token = "" if inputs else "-0" if lake.sole_writer else f"-{secrets.token_hex(4)}"
        self.parts: list[Part] = []
        self._opened: list[str] = []

    @contextmanager
    def part(self, name: str, **origin: str) -> Iterator[PartWriter]:
        """Open `name`.parquet; on a clean exit it exists and is one of the parts, unless it got no rows.

        Parts are ordered by when they were opened, not closed.
        """
        path = self.path(f"{name}.parquet")
        self._opened.append(path)
        with ExitStack() as files:
            writer = PartWriter(self._lake, path, files)
            yield writer
            described = writer.finish(**origin)
        if writer.rows:
            self.parts.append(described)
            self.parts.sort(key=lambda part: self._opened.index(part.path))

    def path(self, name: str) -> str:
        """The path of a file of this attempt."""
        stem, dot, suffix = name.rpartition(".")
        return f"{self._folder}/{stem}{self._token}{dot}{suffix}"

    def rewrite(self, part: Part, slices: Iterable[pa.Table]) -> Part:
        """Rewrite a part with the rows of `slices`. It keeps its origin, and a file even without rows."""
        name = f"{self._folder}/{Path(part.path).stem.rsplit('-', 1)[0]}-{secrets.token_hex(4)}.parquet"
        with ExitStack() as files:
            writer = PartWriter(self._lake, name, files)
            writer.start(self._lake.schema(part))
            for table in slices:
                writer.append(table)
            written = writer.finish()
        return replace(part, path=name, rows=written.rows, sha256=written.sha256)

    def commit(self, facts: Mapping[str, Any], keep: tuple[Part, ...] = ()) -> Manifest:
        """Make the partition visible: `keep` (parts of earlier attempts) and the parts written here."""
        manifest = Manifest(*self._key, self.attempt, (*keep, *self.parts), facts, self._inputs)
        self._lake.replace(self._lake.manifest_path(*self._key, self._inputs), _encode(manifest))
        return manifest


def read_batch_date(path: str) -> date | None:
    """The batch date in a path of the lake."""
    found = BATCH_DATE.search(path)
    return date.fromisoformat(found[1]) if found else None


class Lake(Files):
    """All zones under one root. Files and DuckDB are opened when first used; pickling keeps only the root.

    sole_writer: no other process writes here, so file names need no random part and are reproducible.
    """

    def __init__(self, root: str, sole_writer: bool = False) -> None:
        super().__init__(root)
        self.sole_writer = sole_writer
        self._read: dict[str, Any] | None = None  # see `reading_once`

    def __reduce__(self) -> tuple[type["Lake"], tuple[str, bool]]:
        """Pickle the arguments only: an open DuckDB connection cannot be pickled."""
        return Lake, (self.root, self.sole_writer)

    def reading_once(self) -> "Lake":
        """The same lake, which reads each small file and listing once, until it writes that file itself."""
        lake = Lake(self.root, self.sole_writer)
        lake._read = {}
        return lake

    def find_file(self, path: str) -> bytes | None:
        """The content of a small file, or None if it does not exist."""
        return self._once(path, super().find_file)

    def glob(self, pattern: str) -> list[str]:
        """The files that match a pattern, see `Files.glob`."""
        return list(self._once(pattern, super().glob))

    def _once(self, path: str, read: Callable[[str], T]) -> T:
        if self._read is None:
            return read(path)
        if path not in self._read:
            self._read[path] = read(path)
        found: T = self._read[path]
        return found

    def replace(self, path: str, data: bytes) -> None:
        """Replace a small file in one step."""
        super().replace(path, data)
        if self._read is not None:
            self._read[path] = data

    def partition(self, zone: Zone, detector: str, batch_date: date) -> str:
        """The partition's folder, relative to the root."""
        return f"{zone}/{detector}/batch_date={batch_date.isoformat()}"

    def manifest_path(self, zone: Zone, detector: str, batch_date: date, inputs: str | None = None) -> str:
        """The manifest's path, relative to the root."""
        folder = self.partition(zone, detector, batch_date)
        return f"{folder}/inputs={inputs}/manifest.json" if inputs else f"{folder}/manifest.json"

    def attempts(self, folder: str) -> list[int]:
        """The numbers of the attempts with files in a partition's folder, finished or not."""
        found: list[Any] = []
        with self.reaching(folder), passing_over_missing():
            found = self.fs.ls(self.full(folder), detail=False)
        names = [str(name).rstrip("/").rsplit("/", 1)[-1] for name in found]
        return [int(name.removeprefix("attempt=")) for name in names if name.startswith("attempt=")]

    def find(self, zone: Zone, detector: str, batch_date: date, inputs: str | None = None) -> Manifest | None:
        """The partition's manifest, or None if no attempt was committed."""
        data = self.find_file(self.manifest_path(zone, detector, batch_date, inputs))
        return None if data is None else decode_manifest(data)

    def manifests(self, zone: str = "*", detector: str = "*") -> list[str]:
        """The paths of all manifests, including those of scores under `inputs=KEY/`."""
        folder = f"{zone}/{detector}/batch_date=*"
        return sorted(path for below in ("", "/inputs=*") for path in self.glob(f"{folder}{below}/{MANIFEST}"))

    def scored_by(self, detector: str, bundle: str, after: date) -> list[Manifest]:
        """The scores that a bundle, named by its hash, has given to batches after a date as they are now, by date."""
        found = []
        for path in self.manifests("scores", detector):
            day = read_batch_date(path)
            scores = self.read_manifest(path) if day and day > after else None
            if scores and scores.facts.get("bundle") == bundle:
                validated = self.find("validated", detector, scores.batch_date)
                found += [scores] if validated and validated.hash == scores.facts["validated"] else []
        return sorted(found, key=lambda scores: scores.batch_date)

    def read_manifest(self, path: str) -> Manifest:
        """The manifest at a path."""
        return decode_manifest(self.read(path))

    def get(self, zone: Zone, detector: str, batch_date: date, inputs: str | None = None) -> Manifest:
        """The partition's manifest. Raises BatchMissing if it does not exist."""
        if (manifest := self.find(zone, detector, batch_date, inputs)) is None:
            raise BatchMissing(
                f"{detector} has no {zone} rows for {batch_date}.",
                where=f"{self.root}/{self.partition(zone, detector, batch_date)}",
                got="no manifest",
                expected="a batch that was ingested and validated",
                todo=f"run nightjar ingest {detector}, then nightjar status {detector} to see which dates have rows",
            )
        return manifest

    def dates(self, zone: Zone, detector: str) -> list[date]:
        """The batch dates with a committed partition, in order."""
        return self._list_dates(zone, detector, MANIFEST)

    def pruned_dates(self, detector: str) -> list[date]:
        """The batch dates of which landed parts were pruned, in order."""
        return self._list_dates("landing", detector, PRUNED)

    def _list_dates(self, zone: Zone, detector: str, name: str) -> list[date]:
        found = self.glob(f"{zone}/{detector}/batch_date=*/{name}")
        return sorted(day for path in found if (day := read_batch_date(path)))

    def pruned(self, detector: str, days: Collection[date] | None = None) -> dict[date, tuple[Part, ...]]:
        """Landed parts that were pruned, by batch date, of some or all: remembered so that they do not land again."""
        dates = [day for day in self.pruned_dates(detector) if days is None or day in days]
        paths = [f"{self.partition('landing', detector, day)}/{PRUNED}" for day in dates]
        manifests = [decode_manifest(data) for path in paths if (data := self.find_file(path))]
        return {manifest.batch_date: manifest.parts for manifest in manifests}

    def remember_landing(self, path: str) -> None:
        """Before a landing partition is pruned, record its parts next to the manifest at `path`."""
        going = self.read_manifest(path)
        before = self.pruned(going.detector, [going.batch_date]).get(going.batch_date, ())
        parts = tuple(dict.fromkeys((*before, *going.parts)))
        self.replace(f"{path.removesuffix(MANIFEST)}{PRUNED}", _encode(replace(going, parts=parts)))

    def write(self, zone: Zone, detector: str, batch_date: date, inputs: str | None = None) -> PartitionWriter:
        """Begin a new attempt at a partition; for scores, continue what has these inputs."""
        return PartitionWriter(self, zone, detector, batch_date, inputs)

    def slices(
        self, part: Part, columns: list[str] | None = None, categories: tuple[str, ...] = ()
    ) -> Iterator[pa.Table]:
        """A part's rows, a slice at a time; text columns named in `categories` are dictionary-encoded."""
        full = self.full(part.path)
        with self._reading(part):
            source = full if self.is_local else self.fs.open(full)
            options = {"read_dictionary": list(categories), "page_checksum_verification": True}
            with pq.ParquetFile(source, pre_buffer=not self.is_local, **options) as file:
                rows = min(SLICE_ROWS, int((file.metadata.metadata or {}).get(SLICE_MARK, SLICE_ROWS)))
                for groups in [None] if self.is_local else _list_runs(file.metadata, rows):
                    for batch in file.iter_batches(rows, groups, columns, use_threads=True):
                        yield _without_mark(pa.Table.from_batches([batch]))

    def schema(self, part: Part) -> pa.Schema:
        """A part's columns and their types, read from its footer."""
        full = self.full(part.path)
        with self._reading(part):
            return _without_mark(pq.read_schema(full if self.is_local else self.fs.open(full)))

    def columns(self, part: Part) -> list[str]:
        """A part's column names."""
        return list(self.schema(part).names)

    def lowest(self, part: Part) -> dict[str, Any]:
        """The lowest value of each column of a part, from its footer; a column that has none there is left out."""
        full = self.full(part.path)
        with self._reading(part):
            footer = pq.read_metadata(full if self.is_local else self.fs.open(full))
            groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
            columns = [[group.column(place).statistics for group in groups] for place in range(footer.num_columns)]
        names = [footer.schema.column(place).path for place in range(footer.num_columns)]
        return {
            name: min(one.min for one in found)
            for name, found in zip(names, columns, strict=True)
            if found and all(one is not None and one.has_min_max for one in found)
        }

    def query(self, sql: str, parts: tuple[Part, ...], **tables: pa.Table) -> pa.Table:
        """Run DuckDB over parts; `sql` reads them as the table `parts`, and `tables` by their names."""
        with self._reading(*parts), self._duckdb.cursor() as cursor:
            # Temporary: visible to this cursor only; other cursors of this lake read other parts.
            cursor.execute(f"create temporary view parts as select * from {self._source(parts)}")  # noqa: S608 - quoted
            for name, table in tables.items():
                cursor.register(name, table)
            return cursor.sql(sql).to_arrow_table()

    def have_same_rows(self, some: tuple[Part, ...], others: tuple[Part, ...]) -> bool:
        """Whether two sets of parts hold the same rows, each as often, whatever the order of rows and columns."""
        kinds = [{field.name: field.type for part in parts for field in self.schema(part)} for parts in (some, others)]
        if kinds[0] != kinds[1] or sum(part.rows for part in some) != sum(part.rows for part in others):
            return False
        names = ", ".join(map(quote, kinds[0]))
        first, second = (f"select {names} from {self._source(parts)}" for parts in (some, others))  # noqa: S608 - quoted
        with self._reading(*some, *others), self._duckdb.cursor() as cursor:
            return not cursor.sql(f"({first}) except all ({second}) limit 1").fetchall()

    def stream(
        self, sql: str, select: str, targets: tuple[Part, ...] | pa.Table, earlier: tuple[Part, ...], **tables: pa.Table
    ) -> Iterator[pa.Table]:
        """Run DuckDB over two sets of rows, `targets` and `earlier`, and give the result slice by slice.

        select: what to take of each, as SQL. Rows of `targets` also have `part` and `line`, both from 0: where they lie
        in the parts, or in the table. It uses at most HISTORY_MEMORY and spills the rest to disk.
        """
        parts = targets if isinstance(targets, tuple) else ()
        with self._reading(*parts, *earlier), self._history_duckdb.cursor() as cursor:
            if isinstance(targets, pa.Table):
                lines = pa.array(range(targets.num_rows), pa.int64())
                cursor.register("rows_given", targets.append_column(LINE, lines))
                source = f"(select *, 0 as {PART} from rows_given)"  # noqa: S608
            else:
                places = pa.array(range(len(parts)), pa.int64())
                cursor.register("places", pa.table({FILE: self._paths(parts), PART: places}))
                read = self._source(parts, f"filename = '{FILE}'", "file_row_number = true")
                source = f"(select *, file_row_number as {LINE} from {read} join places using ({FILE}))"  # noqa: S608
            chosen = f"select {PART} as part, {LINE} as line, {select} from {source}"  # noqa: S608 - quoted
            cursor.execute(f"create temporary view targets as {chosen}")
            source = self._source(earlier) if earlier else f"{source} where false"
            cursor.execute(f"create temporary view earlier as select {select} from {source}")  # noqa: S608 - quoted
            for name, table in tables.items():
                cursor.register(name, table)
            with cursor.sql(sql).to_arrow_reader(SLICE_ROWS) as reader:
                yield reader.schema.empty_table()  # so that a result without rows has columns
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def _paths(self, parts: tuple[Part, ...]) -> list[str]:
        prefix = "" if self.is_local else f"{self.root.split('://', 1)[0]}://"
        return [prefix + self.full(part.path) for part in parts]

    def _source(self, parts: tuple[Part, ...], *options: str) -> str:
        """Parts as a table of DuckDB."""
        files = ", ".join("'" + path.replace("'", "''") + "'" for path in self._paths(parts))
        return f"read_parquet([{files}], {', '.join(['union_by_name = true', 'hive_partitioning = false', *options])})"

    @contextmanager
    def _reading(self, *parts: Part) -> Iterator[None]:
        try:
            yield
        except (*self.faults, pa.ArrowException, duckdb.Error) as error:
            if isinstance(error, NOT_OF_A_PART):
                raise
            if isinstance(error, duckdb.OutOfMemoryException) or str(self._spill) in str(error):
                raise MemoryExhausted(
                    "There is too little memory, or space for temporary files, to read a batch; nothing was changed.",
                    where=f"{self.root}/{parts[0].path}" if parts else self.root,
                    got=str(error).splitlines()[0],
                    expected=f"memory for the widest columns, and for a large batch free space in {self._spill.parent}",
                    todo="give the process more memory, or set TMPDIR to another folder, and run the step again",
                ) from error
            paths = [part.path for part in parts]
            if not self.is_local:  # DuckDB and PyArrow hide the store's error: read again to get it
                with self.reaching(paths[0]), passing_over_missing():
                    self.fs.info(self.full(paths[0]))
            raise SourceInvalid(
                "A part of the lake is missing or damaged.",
                where=f"{self.root}/{paths[0] if len(paths) == 1 else f'{paths[0]} to {paths[-1]}'}",
                got=(str(error) or type(error).__name__).splitlines()[0],
                expected=", ".join(f"{part.rows} rows with sha256 {part.sha256[:12]}" for part in parts[:3]),
                todo="restore the file from a backup; outside landing you can also delete the manifest and run again",
            ) from error

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        return self._connect()

    @cached_property
    def _history_duckdb(self) -> duckdb.DuckDBPyConnection:
        return self._connect(memory_limit=HISTORY_MEMORY, threads=min(HISTORY_THREADS, os.cpu_count() or 1))

    @cached_property
    def _spill(self) -> Path:
        """Where DuckDB spills what does not fit in memory; it creates and deletes the folder itself."""
        try:
            folder = tempfile.gettempdir()
        except FileNotFoundError:  # no writable folder: queries that fit in memory work without one
            folder = os.curdir
        return Path(folder, f"nightjar-{secrets.token_hex(8)}")

    def _connect(self, **limits: Any) -> duckdb.DuckDBPyConnection:
        # No query here needs the insertion order; without it, grouping millions of ids takes half the time.
        config: dict[str, Any] = {"preserve_insertion_order": False, "temp_directory": str(self._spill)} | limits
        connection = duckdb.connect(config=config)
        if not self.is_local:
            connection.register_filesystem(self.fs)
        return connection


def count_slice_rows(table: pa.Table) -> int:
    """The rows of a table that are held in memory at once: at most SLICE_ROWS, and on average SLICE_BYTES."""
    fitting: int = SLICE_BYTES * table.num_rows // max(1, table.nbytes)
    return max(1, min(SLICE_ROWS, fitting))


def _without_mark(found: S) -> S:
    """A table or schema as it was written: PyArrow adds what the footer says to the schema."""
    known = found.schema.metadata if isinstance(found, pa.Table) else found.metadata
    if not known or SLICE_MARK not in known:
        return found
    left = {key: value for key, value in known.items() if key != SLICE_MARK}
    if isinstance(found, pa.Table):
        return found.replace_schema_metadata(left or None)
    return found.with_metadata(left) if left else found.remove_metadata()


def _list_runs(metadata: pq.FileMetaData, slice_rows: int) -> list[list[int]]:
    """Row groups in runs of FETCHED_SLICES slices, which are fetched and held in memory together."""
    runs: list[list[int]] = []
    rows = fetched = FETCHED_SLICES * slice_rows if slice_rows == SLICE_ROWS else slice_rows
    for group in range(metadata.num_row_groups):
        if rows >= fetched:
            runs.append([])
            rows = 0
        runs[-1].append(group)
        rows += metadata.row_group(group).num_rows
    return runs


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _encode(manifest: Manifest) -> bytes:
    document = asdict(manifest) | {"batch_date": manifest.batch_date.isoformat(), "hash": manifest.hash}
    document["parts"] = [{key: value for key, value in part.items() if key != "content" or value}
                         for part in document["parts"]]  # fmt: skip
    return json.dumps(document, indent=1, sort_keys=True).encode()


def decode_manifest(data: bytes) -> Manifest:
    """Parse a manifest file."""
    document = json.loads(data)
    document.pop("hash")
    parts = tuple(Part(**part | {"replaces": tuple(part.get("replaces", ()))}) for part in document.pop("parts"))
    return Manifest(**document | {"batch_date": date.fromisoformat(document["batch_date"]), "parts": parts})
