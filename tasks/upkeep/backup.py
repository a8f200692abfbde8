"""Copy lake, warehouse and MLflow of all detectors into one folder, and back into empty stores.

The warehouse is copied first, in one transaction, then the lake, then MLflow, so the copy has everything that a table
refers to, even while nights run. manifest.json, with the size and SHA-256 of every file, is written last. A restore
checks all of it first and fills the warehouse last, in one transaction; if interrupted, run it again.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from pydantic import ValidationError

from models.params import Section
from tasks.errors import BackupInvalid, SourceInvalid, StoreNotEmpty
from tasks.stores import bulk
from tasks.stores.faults import FILES, explain_database, writing
from tasks.stores.lake import PRUNED, Lake, decode_manifest
from tasks.stores.tables import metadata
from tasks.stores.warehouse import SCHEMA_VERSION, Warehouse, lock_key
from tasks.upkeep import registry_copy
from tasks.upkeep.inventory import list_named

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LAKE, WAREHOUSE = "lake", "warehouse"
PIECE = 1 << 20  # bytes held in memory at once
ROWS = 100_000  # rows of a table held in memory at once

Report = Callable[[int, int], None]


class BackupFile(Section):
    """One file of a backup: its size in bytes and hexadecimal SHA-256."""

    size: int
    sha256: str


class BackupManifest(Section):
    """The content of a backup; written last, so a folder without it is not a backup."""

    format_version: int
    made_at: str
    schema_version: str
    rows: dict[str, int]  # by table
    experiments: dict[str, str] | None  # location of each experiment's files; None: without MLflow
    files: dict[str, BackupFile]

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(entry.size for entry in self.files.values())


def back_up(
    lake: Lake, warehouse: Warehouse, mlflow_uri: str | None, folder: Path, report: Report = lambda done, total: None
) -> BackupManifest:
    """Copy the stores into a new folder; without MLflow if mlflow_uri is None.

    Raises StoreNotEmpty, BackupInvalid, SourceInvalid and ServiceUnreachable.
    """
    check_new(folder, "one without manifest.json is left by an interrupted backup")
    database = registry_copy.find_database(mlflow_uri) if mlflow_uri else None
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = export_tables(warehouse, folder / WAREHOUSE)
        copy_lake(lake, folder / LAKE, report)
        experiments = registry_copy.export_registry(database, folder / registry_copy.FOLDER) if database else None
        manifest = BackupManifest(
            format_version=FORMAT_VERSION,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            schema_version=SCHEMA_VERSION,
            rows=rows,
            experiments=experiments,
            files={str(path.relative_to(folder)): describe(path) for path in list_all_files(folder)},
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def check_new(folder: Path, else_what: str) -> None:
    """Raise StoreNotEmpty if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise StoreNotEmpty(
            "The folder is not empty.",
            where=str(folder),
            got=f"{len(list(folder.iterdir()))} files or folders",
            expected=f"a new or empty folder; {else_what}",
            todo="choose another folder, or delete this one",
        )


def export_warehouse(warehouse: Warehouse, folder: Path, detector: str | None = None) -> dict[str, int]:
    """Write the tables into a new folder, as Parquet for other databases; returns the number of rows per table.

    Raises StoreNotEmpty and ServiceUnreachable.
    """
    check_new(folder, "an interrupted export has to start again")
    with writing(folder):
        return export_tables(warehouse, folder, detector)


def export_file(warehouse: Warehouse, file: Path, detector: str | None = None) -> dict[str, int]:
    """Write the tables into a DuckDB file, which replaces an older copy at once; returns the number of rows per table.

    Raises StoreNotEmpty if the file is no earlier copy, and ServiceUnreachable.
    """
    _refuse_other_file(warehouse, file)
    with writing(file), TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as name:
        folder, new = Path(name), Path(name) / file.name
        rows = export_tables(warehouse, folder, detector)
        try:
            with duckdb.connect(new) as database:
                for table in rows:
                    path = str(folder / f"{table}.parquet").replace("'", "''")
                    database.execute(f"create table {table} as from read_parquet('{path}')")
        except duckdb.Error as error:  # such as a full disk
            raise OSError(str(error)) from error
        new.replace(file)
    return rows


def _refuse_other_file(warehouse: Warehouse, file: Path) -> None:
    """Only a copy may be overwritten; it has no version table."""
    if not file.exists():
        return
    try:
        with duckdb.connect(file, read_only=True) as database:
            names = {name for (name,) in database.execute("select table_name from duckdb_tables()").fetchall()}
    except duckdb.Error as error:
        if "lock" in str(error):
            raise explain_database(sa.make_url(f"duckdb:///{file}"), str(error)) from error
        names = set()
    if names != {*metadata.tables}:
        raise StoreNotEmpty(
            "The file exists and is not an earlier copy.",
            where=str(file),
            got="the warehouse itself, or a file of something else",
            expected="a new file, or one that nightjar export has written",
            todo="choose another file",
        )


def export_tables(warehouse: Warehouse, folder: Path, detector: str | None = None) -> dict[str, int]:
    """Write every table, or a detector's rows of it, as Parquet from one snapshot; returns the rows per table."""
    warehouse.migrate()
    folder.mkdir(parents=True, exist_ok=True)
    with warehouse.begin_reading(isolation_level="REPEATABLE READ") as connection:
        if connection.dialect.name not in ("postgresql", *FILES):
            # Statements there see commits made in between, so writers must be blocked.
            lock_key(connection, "export")
        return {table.name: _export_table(connection, table, folder, detector) for table in metadata.sorted_tables}


def _export_table(connection: sa.Connection, table: sa.Table, folder: Path, detector: str | None) -> int:
    query = sa.select(table) if detector is None else sa.select(table).where(table.c.detector == detector)
    schema, rows = bulk.arrow_schema(query), 0
    with pq.ParquetWriter(_file_of(folder, table), schema) as writer:
        for piece in bulk.read_slices(connection, query, ROWS):
            writer.write_table(piece)
            rows += piece.num_rows
    return rows


def copy_lake(lake: Lake, folder: Path, report: Report) -> None:
    """Copy all manifests and the files they name; other files are not copied. Raises SourceInvalid."""
    paths, files = lake.manifests(), lake.files("")
    for done, path in enumerate(paths, start=1):
        data = lake.read(path)  # read once, since a night may replace it while its parts are copied
        manifest = decode_manifest(data)
        hashes = {part.path: part.sha256 for part in manifest.parts}
        for name in list_named(path, manifest, files):
            if name != path:
                _copy_out(lake, name, folder / name, hashes.get(name))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        report(done, len(paths))
    for name in files:
        if name.endswith(f"/{PRUNED}"):  # without it, pruned rows would land again
            _copy_out(lake, name, folder / name, None)


def _copy_out(lake: Lake, path: str, target: Path, sha256: str | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with lake.open(path) as source, target.open("wb") as file:
        got = copy_stream(source, file)
    if sha256 is not None and got != sha256:
        raise SourceInvalid(
            "A part of the lake is damaged; no backup was made.",
            where=f"{lake.root}/{path}",
            got=f"sha256 {got[:12]}",
            expected=f"sha256 {sha256[:12]}, as in its manifest",
            todo="restore the file from an earlier backup, or delete the partition's manifest and run the step again",
        )


def copy_stream(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy all bytes; returns their SHA-256."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def describe(path: Path) -> BackupFile:
    """A file's size and hash."""
    with path.open("rb") as file:
        return BackupFile(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def list_all_files(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_backup(folder: Path, report: Report = lambda done, total: None) -> BackupManifest:
    """Check every byte of a backup against the manifest. Raises BackupInvalid."""
    manifest = read_backup_manifest(folder)
    bad = []
    for done, (name, entry) in enumerate(manifest.files.items(), start=1):
        path = folder / name
        if ".." in path.parts or not path.resolve().is_relative_to(folder.resolve()):
            bad.append(f"{name} is outside the backup")
        elif not path.is_file():
            bad.append(f"{name} is missing")
        elif describe(path) != entry:
            bad.append(f"{name} was altered")
        report(done, len(manifest.files))
    if bad:
        raise BackupInvalid(
            f"{len(bad)} of {len(manifest.files)} files of the backup are missing or altered; nothing was restored.",
            where=str(folder),
            got="; ".join(bad[:5]),
            expected="the sizes and hashes of manifest.json",
            todo="use another copy of this backup, or an earlier one",
        )
    return manifest


def read_backup_manifest(folder: Path) -> BackupManifest:
    """The manifest of a backup that this version can restore. Raises BackupInvalid."""
    path = folder / MANIFEST
    try:
        manifest = BackupManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        todo = "name a folder that nightjar backup wrote; an interrupted backup cannot be restored"
        raise BackupInvalid("The backup is incomplete.", where=str(folder), got=str(error), todo=todo) from error
    except ValidationError as error:
        got = f"{error.error_count()} bad keys"
        raise BackupInvalid(f"{MANIFEST} is not the manifest of a backup.", where=str(path), got=got) from error
    supported = (FORMAT_VERSION, SCHEMA_VERSION)
    if manifest.format_version != FORMAT_VERSION or manifest.schema_version > SCHEMA_VERSION:
        raise BackupInvalid(
            "The backup was made by a newer Nightjar.",
            where=str(path),
            got=f"format {manifest.format_version}, schema {manifest.schema_version}",
            expected="format {}, schema {} or older".format(*supported),
            todo="install the newer Nightjar here",
        )
    return manifest


def restore(
    lake: Lake,
    warehouse: Warehouse,
    mlflow_uri: str,
    artifacts: str,
    folder: Path,
    report: Report = lambda done, total: None,
) -> BackupManifest:
    """Fill empty stores from a backup, the warehouse last. artifacts: folder or URL for MLflow's files.

    Raises BackupInvalid, StoreNotEmpty, ServiceUnreachable.
    """
    manifest = check_backup(folder, report)
    check_lake_empty(lake, manifest)
    check_tables_empty(warehouse)
    database = registry_copy.find_database(mlflow_uri) if manifest.experiments is not None else None
    with writing(database.parent if database else folder):
        if database and manifest.experiments is not None:
            source = folder / registry_copy.FOLDER
            registry_copy.import_registry(source, manifest.experiments, database, artifacts)
        fill_lake(lake, folder / LAKE, manifest)
    fill_tables(warehouse, folder / WAREHOUSE, manifest.schema_version)
    return manifest


def check_lake_empty(lake: Lake, manifest: BackupManifest) -> None:
    """Raise StoreNotEmpty if the lake has a partition that is not from the backup."""
    expected = {name: entry.sha256 for name, entry in manifest.files.items()}
    held = {path: hashlib.sha256(lake.read(path)).hexdigest() for path in lake.manifests()}
    foreign = [path for path, sha256 in held.items() if expected.get(f"{LAKE}/{path}") != sha256]
    if foreign:
        raise StoreNotEmpty(
            "The lake is not empty; nothing was restored.",
            where=lake.root,
            got=f"{len(foreign)} partitions that are not from this backup, such as {foreign[0]}",
            expected="a lake without partitions, or with those of an interrupted restore of this backup",
            todo="move the lake away, or set NIGHTJAR_HOME or NIGHTJAR_LAKE to another location",
        )


def check_tables_empty(warehouse: Warehouse) -> None:
    """Raise StoreNotEmpty if a table has rows."""
    tables = () if warehouse.is_new() else metadata.sorted_tables
    with warehouse.begin() as connection:
        counts = {t.name: connection.scalar(sa.select(sa.func.count()).select_from(t)) or 0 for t in tables}
    if held := {name: count for name, count in counts.items() if count}:
        raise StoreNotEmpty(
            "The warehouse is not empty; nothing was restored.",
            where=warehouse.place,
            got=", ".join(f"{name} {count:,} rows" for name, count in held.items()),
            expected="tables without rows; a restore fills them last, all at once",
            todo="nothing if an earlier restore wrote these rows, since it is then complete; otherwise set "
            "NIGHTJAR_HOME or NIGHTJAR_WAREHOUSE to an empty one",
        )


def fill_lake(lake: Lake, folder: Path, manifest: BackupManifest) -> None:
    """Copy the backup's part of the lake, manifests last; existing files are not touched."""
    names = [name.removeprefix(f"{LAKE}/") for name in manifest.files if name.startswith(f"{LAKE}/")]
    there = lake.files("")
    for name in sorted(names, key=lambda name: name.endswith(f"/{MANIFEST}")):
        entry = manifest.files[f"{LAKE}/{name}"]
        if there.get(name) == entry.size and lake.hash_file(name) == entry.sha256:
            continue
        with (folder / name).open("rb") as source, lake.create(name) as target:
            copy_stream(source, target)


def fill_tables(warehouse: Warehouse, folder: Path, schema_version: str) -> None:
    """Load every table in one transaction, in the backup's schema, then migrate to the current one."""
    if warehouse.is_new():
        warehouse.migrate(schema_version)
    elif schema_version != SCHEMA_VERSION:
        raise _older(warehouse, schema_version)
    with warehouse.begin() as connection:
        for table in metadata.sorted_tables:
            path = _file_of(folder, table)
            if path.exists():
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS):
                        bulk.load_rows(connection, table, pa.Table.from_batches([batch]).to_pandas())
    warehouse.migrate()


def _older(warehouse: Warehouse, schema_version: str) -> StoreNotEmpty:
    return StoreNotEmpty(
        "The warehouse already has the current tables, but the backup has older ones.",
        where=warehouse.place,
        got=f"schema {SCHEMA_VERSION}",
        expected=f"no tables, so that those of schema {schema_version} can be created, filled and migrated",
        todo="drop the empty tables, or set NIGHTJAR_WAREHOUSE to a new database",
    )


def _file_of(folder: Path, table: sa.Table) -> Path:
    return folder / f"{table.name}.parquet"
