"""The lake: Parquet zones under one root, a folder or any fsspec URL.

A partition is `zone/detector/batch_date=D/`: immutable parts under `attempt=K/` and one small `manifest.json` written
last. Readers see a partition only through its manifest, so a dead attempt leaves nothing visible, and replacing the
manifest replaces the partition whole.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BatchMissing, ServiceUnreachable, SourceInvalid

T = TypeVar("T")
Zone = Literal["landing", "validated", "quarantine", "clean", "scores"]
MANIFEST, PRUNED = "manifest.json", "pruned.json"
SLICE_ROWS = 131_072  # rows held in memory at once; a Parquet row group


@dataclass(frozen=True)
class Part:
    """One immutable Parquet file. `path` is relative to the lake root; the other texts say where the rows came from."""

    path: str
    rows: int
    sha256: str
    source: str = ""
    version: str = ""
    arrived_at: str = ""
    dates: int = 1  # on how many batch dates the arrival landed


@dataclass(frozen=True)
class Manifest:
    """What a partition holds: the parts of the attempt that committed it, and what that attempt had to say."""

    zone: str
    detector: str
    batch_date: date
    attempt: int
    parts: tuple[Part, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The partition's rows."""
        return sum(part.rows for part in self.parts)

    @property
    def hash(self) -> str:
        """The content hash of the parts, whatever their order."""
        return hashlib.sha256("\n".join(sorted(part.sha256 for part in self.parts)).encode()).hexdigest()


class PartWriter:
    """Writes slices into one Parquet file and hashes the bytes on their way out. Without rows there is no file.

    To PyArrow it looks like a file: write, tell, flush, close.
    """

    closed = False

    def __init__(self, lake: "Lake", path: str) -> None:
        self._lake, self._path, self._files = lake, path, ExitStack()
        self._digest, self._position = hashlib.sha256(), 0
        self._parquet: pq.ParquetWriter | None = None
        self._file: IO[bytes]
        self.rows = 0

    def append(self, table: pa.Table) -> None:
        """Append rows; the first call makes the file and fixes its schema."""
        if not table.num_rows:
            return
        self.start(table.schema).write_table(table, row_group_size=SLICE_ROWS)
        self.rows += table.num_rows

    def start(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Make the file, unless it is there; without it a part that gets no rows has no file."""
        if self._parquet is not None:
            return self._parquet
        self._file = self._files.enter_context(self._lake.create(self._path))
        # A dictionary of numbers costs more time than its bytes are worth: half as much again.
        texts = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
        self._parquet = pq.ParquetWriter(pa.PythonFile(self, mode="w"), schema, use_dictionary=texts or False)
        return self._parquet

    def finish(self, **origin: str) -> Part:
        """Write the Parquet footer, close the file and describe it."""
        with self._files:
            if self._parquet is not None:
                self._parquet.close()
        return Part(self._path, self.rows, self._digest.hexdigest(), **origin)  # type: ignore[arg-type]

    def write(self, data: bytes) -> int:
        """PyArrow's way out: hash and pass on."""
        self._digest.update(data)
        self._position += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """The bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """PyArrow is done; `finish` closes the file."""


class PartitionWriter:
    """One attempt at a partition: parts first, the manifest last. Without `commit` nothing becomes visible."""

    def __init__(self, lake: "Lake", zone: Zone, detector: str, batch_date: date) -> None:
        self._lake, self._key = lake, (zone, detector, batch_date)
        folder = lake.partition(zone, detector, batch_date)
        self.attempt = 1 + max(lake.attempts(folder), default=0)
        self._folder = f"{folder}/attempt={self.attempt}"
        # Two processes may have taken the same number.
        self._token = "0" if lake.sole_writer else secrets.token_hex(4)
        self.parts: list[Part] = []

    @contextmanager
    def part(self, name: str, **origin: str) -> Iterator[PartWriter]:
        """Open `name`.parquet; on a clean exit it is listed among the parts, unless it got no rows."""
        writer = PartWriter(self._lake, f"{self._folder}/{name}-{self._token}.parquet")
        yield writer
        described = writer.finish(**origin)
        if writer.rows:
            self.parts.append(described)

    def path(self, name: str) -> str:
        """Where this attempt keeps a file that is not one of the parts."""
        return f"{self._folder}/{self._token}-{name}"

    def rewrite(self, part: Part, slices: Iterable[pa.Table]) -> Part:
        """Write a part's rows anew, those of `slices`; it keeps its origin, and its file even without rows."""
        name = f"{self._folder}/{Path(part.path).stem.rsplit('-', 1)[0]}-{secrets.token_hex(4)}.parquet"
        writer = PartWriter(self._lake, name)
        writer.start(self._lake.schema(part))
        for table in slices:
            writer.append(table)
        written = writer.finish()
        return replace(part, path=name, rows=written.rows, sha256=written.sha256)

    def commit(self, facts: Mapping[str, Any], keep: tuple[Part, ...] = ()) -> Manifest:
        """Make the partition visible: `keep` (parts of earlier attempts) and the parts written here."""
        manifest = Manifest(*self._key, self.attempt, (*keep, *self.parts), facts)
        self._lake.replace(f"{self._lake.partition(*self._key)}/manifest.json", _encode(manifest))
        return manifest


class Lake:
    """All zones under one root. Small and picklable: it holds the root and opens files when asked.

    sole_writer: nobody else ever writes here, so names of files need no random part, and repeat.
    """

    def __init__(self, root: str, sole_writer: bool = False) -> None:
        self.root, self.sole_writer = root.rstrip("/"), sole_writer
        self._fs, self._base = fsspec.core.url_to_fs(self.root)
        self.is_local = "file" in self._fs.protocol

    def __reduce__(self) -> tuple[type["Lake"], tuple[str, bool]]:
        """Travel as what it was made of: an open DuckDB cannot."""
        return Lake, (self.root, self.sole_writer)

    def partition(self, zone: Zone, detector: str, batch_date: date) -> str:
        """The partition's folder, relative to the root."""
        return f"{zone}/{detector}/batch_date={batch_date.isoformat()}"

    def full(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self._base}/{path}"

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """Open a new file for writing, its folders made first."""
        full = self.full(path)
        try:
            self._fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
            with self._fs.open(full, "wb") as file:
                yield file
        except OSError as error:
            raise _unreachable(self.root, path, error) from error

    @contextmanager
    def replacing(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file that takes the old one's place in one step: a rename on disk, a single put on an object store."""
        if not self.is_local:
            with self.create(path) as file:
                yield file
            return
        new = f"{path}.{secrets.token_hex(4)}"
        with self.create(new) as file:
            yield file
        Path(self.full(new)).replace(self.full(path))

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place of the old one in one step."""
        with self.replacing(path) as file:
            file.write(data)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """A file's bytes, to be read in pieces."""
        try:
            with self._fs.open(self.full(path), "rb") as file:
                yield file
        except OSError as error:
            raise _unreachable(self.root, path, error) from error

    def files(self, folder: str) -> dict[str, int]:
        """The bytes of every file below a folder, by path; none where there is no such folder."""
        self._fs.invalidate_cache()
        found = self._fs.find(self.full(folder), detail=True)
        return {str(name).removeprefix(f"{self._base}/"): int(info["size"]) for name, info in sorted(found.items())}

    def modified(self, path: str) -> datetime:
        """When a file was last written."""
        moment: datetime = self._fs.modified(self.full(path))
        return moment.astimezone(UTC)

    def remove(self, path: str) -> None:
        """Delete a file, if it is still there, and on disk its folder, if that leaves it empty."""
        try:
            self._fs.rm_file(self.full(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreachable(self.root, path, error) from error
        folder = Path(self.full(path)).parent
        if self.is_local and not any(folder.iterdir()):
            folder.rmdir()

    def read(self, path: str) -> bytes:
        """A small file, whole."""
        try:
            return bytes(self._fs.cat_file(self.full(path)))
        except OSError as error:
            raise _unreachable(self.root, path, error) from error

    def replace_frame(self, path: str, frame: pd.DataFrame) -> None:
        """Put a small table, as Parquet, in place of the old one in one step."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        self.replace(path, buffer.getvalue())

    def read_frame(self, path: str) -> pd.DataFrame:
        """A small table, whole."""
        return pd.read_parquet(io.BytesIO(self.read(path)))

    def attempts(self, folder: str) -> list[int]:
        """The attempts that left files in a partition's folder, finished or not."""
        self._fs.invalidate_cache()
        full = self.full(folder)
        names = (
            [str(name).rsplit("/", 1)[-1] for name in self._fs.ls(full, detail=False)] if self._fs.exists(full) else []
        )
        return [int(name.removeprefix("attempt=")) for name in names if name.startswith("attempt=")]

    def find(self, zone: Zone, detector: str, batch_date: date) -> Manifest | None:
        """The partition's manifest, or None where no attempt was committed."""
        full = self.full(f"{self.partition(zone, detector, batch_date)}/manifest.json")
        try:
            return _decode(self._fs.cat_file(full))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreachable(self.root, full, error) from error

    def manifests(self, zone: str = "*", detector: str = "*") -> list[str]:
        """The paths of all manifests, those of scores below their inputs among them."""
        self._fs.invalidate_cache()
        folder = self.full(f"{zone}/{detector}/batch_date=*")
        found = [str(path) for below in ("", "/inputs=*") for path in self._fs.glob(f"{folder}{below}/manifest.json")]
        return sorted(path.removeprefix(f"{self._base}/") for path in found)

    def read_manifest(self, path: str) -> Manifest:
        """The manifest at a path."""
        return _decode(self.read(path))

    def get(self, zone: Zone, detector: str, batch_date: date) -> Manifest:
        """The partition's manifest; BatchMissing where there is none."""
        if (manifest := self.find(zone, detector, batch_date)) is None:
            raise BatchMissing(
                f"{detector} has no {zone} rows for {batch_date}.",
                where=f"{self.root}/{self.partition(zone, detector, batch_date)}",
                got="no manifest",
                expected="a batch that was ingested and validated",
                todo=f"nightjar ingest {detector}, then nightjar status {detector} to see which dates have rows",
            )
        return manifest

    def dates(self, zone: Zone, detector: str) -> list[date]:
        """The batch dates with a committed partition, in order."""
        self._fs.invalidate_cache()
        found = self._fs.glob(self.full(f"{zone}/{detector}/batch_date=*/manifest.json"))
        return sorted(date.fromisoformat(str(path).rsplit("/", 2)[-2].removeprefix("batch_date=")) for path in found)

    def pruned(self, detector: str) -> dict[date, tuple[Part, ...]]:
        """What had landed and was pruned, by batch date: known, so that it does not land again, but not there."""
        self._fs.invalidate_cache()
        found = self._fs.glob(self.full(f"landing/{detector}/batch_date=*/{PRUNED}"))
        manifests = [_decode(self._fs.cat_file(path)) for path in found]
        return {manifest.batch_date: manifest.parts for manifest in manifests}

    def remember_landing(self, path: str) -> None:
        """Before a landing partition goes, note beside its manifest, at `path`, what had landed."""
        going = self.read_manifest(path)
        before = self.pruned(going.detector).get(going.batch_date, ())
        parts = tuple(dict.fromkeys((*before, *going.parts)))
        self.replace(f"{path.removesuffix(MANIFEST)}{PRUNED}", _encode(replace(going, parts=parts)))

    def write(self, zone: Zone, detector: str, batch_date: date) -> PartitionWriter:
        """Begin a new attempt at a partition."""
        return PartitionWriter(self, zone, detector, batch_date)

    def slices(
        self, part: Part, columns: list[str] | None = None, categories: tuple[str, ...] = ()
    ) -> Iterator[pa.Table]:
        """A part's rows, SLICE_ROWS at a time; text columns named in `categories` come dictionary-encoded."""
        full = self.full(part.path)
        with self._reading(part):
            source = full if self.is_local else self._fs.open(full)
            with pq.ParquetFile(source, read_dictionary=list(categories)) as file:
                for batch in file.iter_batches(SLICE_ROWS, columns=columns, use_threads=True):
                    yield pa.Table.from_batches([batch])

    def schema(self, part: Part) -> pa.Schema:
        """A part's columns and their types, read from its footer."""
        full = self.full(part.path)
        with self._reading(part):
            return pq.read_schema(full if self.is_local else self._fs.open(full))

    def columns(self, part: Part) -> list[str]:
        """A part's column names."""
        return list(self.schema(part).names)

    def query(self, sql: str, parts: tuple[Part, ...]) -> pa.Table:
        """Run DuckDB over parts; `sql` reads them as the table `parts`."""
        prefix = "" if self.is_local else f"{self.root.split('://', 1)[0]}://"
        paths = [prefix + self.full(part.path) for part in parts]
        with self._reading(*parts), self._duckdb.cursor() as cursor:
            cursor.read_parquet(paths, union_by_name=True, hive_partitioning=False).create_view("parts", replace=True)
            return cursor.sql(sql).to_arrow_table()

    @contextmanager
    def _reading(self, *parts: Part) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, duckdb.IOException, duckdb.InvalidInputException) as error:
            paths = [part.path for part in parts]
            raise SourceInvalid(
                "A part of the lake is missing or damaged.",
                where=f"{self.root}/{paths[0] if len(paths) == 1 else f'{paths[0]} to {paths[-1]}'}",
                got=(str(error) or type(error).__name__).splitlines()[0],
                expected=", ".join(f"{part.rows} rows with sha256 {part.sha256[:12]}" for part in parts[:3]),
                todo="restore the file, or delete the partition's manifest and run the step again",
            ) from error

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        # Nothing here asks for an order; giving it up halves the time of grouping millions of ids.
        connection = duckdb.connect(config={"preserve_insertion_order": False})
        if not self.is_local:
            connection.register_filesystem(self._fs)
        return connection


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items while the next one is already being read on another thread."""
    with ThreadPoolExecutor(1) as pool:
        done = object()
        pending = pool.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _encode(manifest: Manifest) -> bytes:
    document = asdict(manifest) | {"batch_date": manifest.batch_date.isoformat(), "hash": manifest.hash}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _decode(data: bytes) -> Manifest:
    document = json.loads(data)
    document.pop("hash")
    parts = tuple(Part(**part) for part in document.pop("parts"))
    return Manifest(**document | {"batch_date": date.fromisoformat(document["batch_date"]), "parts": parts})


def _unreachable(root: str, path: str, error: OSError) -> ServiceUnreachable:
    return ServiceUnreachable(
        "The lake cannot be read or written.",
        where=f"{root} ({path})",
        got=str(error),
        expected="a folder or object store that this process may write to",
        todo="check NIGHTJAR_LAKE, the permissions and the free space",
    )
