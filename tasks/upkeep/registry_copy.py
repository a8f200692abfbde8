"""Copy an MLflow that is stored in an SQLite file: the database by SQLite's online backup, then its artifact files.

When it is restored to another location, the absolute locations in it (of experiments, runs, versions, logged models and
MLmodel files) are rewritten. A tracking server cannot be copied: version numbers and run ids would change.
"""

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from tasks.errors import BackupInvalid, StoreNotEmpty
from tasks.stores.faults import reaching_registry
from tasks.stores.files import Files
from tasks.stores.registry import find_file, locate_artifacts, rewrite_locations

FOLDER = "mlflow"
DATABASE = "mlflow.db"
PREFIX = "nightjar-"  # of our experiments and registered models


def find_database(uri: str) -> Path:
    """The file of an MLflow on SQLite. Raises BackupInvalid for any other URI."""
    if (path := find_file(uri)) is None:
        raise BackupInvalid(
            "This MLflow cannot be copied; nothing was written.",
            where=uri,
            got="a tracking server, whose API cannot copy version numbers and run ids",
            expected="an MLflow on an SQLite file",
            todo="copy the server's database (pg_dump) and its artifact store, and back up the other stores with "
            "nightjar backup FOLDER --without-mlflow",
        )
    return path


def export_registry(database: Path, folder: Path) -> dict[str, str]:
    """Copy the database, then the files it names, into `folder`; returns where each experiment kept its files."""
    folder.mkdir(parents=True)
    if not database.exists():
        return {}
    databases = [closing(sqlite3.connect(path)) for path in (database, folder / DATABASE)]
    with reaching_registry(str(database)), databases[0] as source, databases[1] as target:
        source.backup(target)
        experiments = read_experiments(target)
    for name, location in experiments.items():
        place = open_place(name, location)
        for path in place.files(""):
            copy = folder / name / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            with place.open(path) as remote, copy.open("wb") as file:
                shutil.copyfileobj(remote, file)
    return experiments


def read_experiments(connection: sqlite3.Connection) -> dict[str, str]:
    """The artifact location of each Nightjar experiment."""
    sql = "select name, artifact_location from experiments where substr(name, 1, ?) = ? order by name"
    return dict(connection.execute(sql, (len(PREFIX), PREFIX)).fetchall())


def open_place(name: str, location: str) -> Files:
    """Open an artifact location. Raises BackupInvalid for an unsupported system."""
    if "://" in location and not location.startswith(("file://", "s3://")):
        raise BackupInvalid(
            f"The files of {name} cannot be copied from here.",
            where=location,
            expected="a folder or an S3 URL",
            todo="copy that store with its own tools, and the others with nightjar backup FOLDER --without-mlflow",
        )
    return Files(unquote(location.removeprefix("file://")) if location.startswith("file://") else location)


def import_registry(folder: Path, experiments: Mapping[str, str], database: Path, artifacts: str) -> None:
    """Copy files and database into place, the database last; locations are rewritten. Raises StoreNotEmpty."""
    if not (folder / DATABASE).exists():
        return
    moved = {old: locate_artifacts(artifacts, name.removeprefix(PREFIX)) for name, old in experiments.items()}
    new = database.with_name(f"{database.name}.restoring")
    database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / DATABASE, new)
    rewrite_locations(new, moved)
    check_registry_empty(database, new)
    for name, old in experiments.items():
        copy_artifacts(folder / name, open_place(name, moved[old]), old, moved[old])
    new.replace(database)


def check_registry_empty(database: Path, expected: Path) -> None:
    """Raise StoreNotEmpty if there is a database with runs that differs from the one to restore."""
    if not database.exists() or database.read_bytes() == expected.read_bytes():
        return
    with reaching_registry(str(database)), closing(sqlite3.connect(database)) as connection:
        has_tables = connection.execute("select 1 from sqlite_master where name = 'runs'").fetchone()
        runs = connection.execute("select count(*) from runs").fetchone()[0] if has_tables else 0
    if runs:
        expected.unlink()
        raise StoreNotEmpty(
            "MLflow is not empty; nothing was restored.",
            where=str(database),
            got=f"{runs} runs",
            expected="no database, or one without runs",
            todo="move the file and its artifacts away, or set NIGHTJAR_HOME or NIGHTJAR_MLFLOW to another location",
        )


def copy_artifacts(source: Path, target: Files, old: str, new: str) -> None:
    """Copy an experiment's files; MLmodel files contain their own location, so they are rewritten."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = str(path.relative_to(source))
        if path.name == "MLmodel":
            target.replace(name, path.read_text(encoding="utf-8").replace(f"{old}/", f"{new}/").encode())
            continue
        with path.open("rb") as file, target.create(name) as copy:
            shutil.copyfileobj(file, copy)
