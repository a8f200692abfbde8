"""Copy an MLflow that lives in an SQLite file: the database by SQLite's own online backup, then its artifact files.

Where it is put elsewhere, the absolute locations in it (of experiments, runs, versions, logged models and MLmodel
files) are rewritten. A tracking server is not copied: its numbers and run ids would change on the way.
"""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

import sqlalchemy as sa

from tasks.errors import BackupInvalid, ServiceUnreachable, StoreNotEmpty, hide_password

FOLDER = "mlflow"
DATABASE = "mlflow.db"
LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
PREFIX = "nightjar-"  # of our experiments and registered models


def find_database(uri: str) -> Path:
    """The file of an MLflow on SQLite. Raises BackupInvalid for any other."""
    if not uri.startswith("sqlite:") or not (path := sa.make_url(uri).database):
        raise BackupInvalid(
            "This MLflow cannot be copied; nothing was written.",
            where=hide_password(uri),
            got="a tracking server, whose version numbers and runs no copy over its API keeps",
            expected="an MLflow on an SQLite file",
            todo="copy the server's own database (pg_dump) and its artifact store, and these stores with "
            "nightjar backup FOLDER --without-mlflow",
        )
    return Path(path)


def export_registry(database: Path, folder: Path) -> dict[str, str]:
    """Copy the database, then the files it names, into `folder`; returns where each experiment kept its files."""
    folder.mkdir(parents=True)
    if not database.exists():
        return {}
    databases = [closing(sqlite3.connect(path)) for path in (database, folder / DATABASE)]
    with _answering(database), databases[0] as source, databases[1] as target:
        source.backup(target)
        experiments = read_experiments(target)
    for name, location in experiments.items():
        if (files := read_local(name, location)).is_dir():
            shutil.copytree(files, folder / name)
    return experiments


def read_experiments(connection: sqlite3.Connection) -> dict[str, str]:
    """Where each of our experiments keeps its files."""
    sql = "select name, artifact_location from experiments where substr(name, 1, ?) = ? order by name"
    return dict(connection.execute(sql, (len(PREFIX), PREFIX)).fetchall())


def read_local(name: str, location: str) -> Path:
    """An artifact location as a folder. Raises BackupInvalid where it is none."""
    if location.startswith("file://"):
        return Path(unquote(location.removeprefix("file://")))
    if "://" in location:
        raise BackupInvalid(
            f"The files of {name} are not on this machine.",
            where=hide_password(location),
            expected="a folder",
            todo="copy that store by its own means, and the others with nightjar backup FOLDER --without-mlflow",
        )
    return Path(location)


def import_registry(folder: Path, experiments: Mapping[str, str], database: Path, artifacts: Path) -> None:
    """Put files and database in place, the database last; locations are rewritten. Raises StoreNotEmpty."""
    if not (folder / DATABASE).exists():
        return
    moved = {old: artifacts.joinpath(name.removeprefix(PREFIX)).as_uri() for name, old in experiments.items()}
    new = database.with_name(f"{database.name}.restoring")
    database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / DATABASE, new)
    rewrite_locations(new, moved)
    check_registry_empty(database, new)
    for name, old in experiments.items():
        copy_artifacts(folder / name, artifacts / name.removeprefix(PREFIX), old, moved[old])
    new.replace(database)


def check_registry_empty(database: Path, expected: Path) -> None:
    """Raise StoreNotEmpty where a database with runs is there that is not the one about to be put in place."""
    if not database.exists() or database.read_bytes() == expected.read_bytes():
        return
    with _answering(database), closing(sqlite3.connect(database)) as connection:
        has_tables = connection.execute("select 1 from sqlite_master where name = 'runs'").fetchone()
        runs = connection.execute("select count(*) from runs").fetchone()[0] if has_tables else 0
    if runs:
        expected.unlink()
        raise StoreNotEmpty(
            "MLflow is not empty; nothing was restored.",
            where=str(database),
            got=f"{runs} runs",
            expected="no database, or one without runs",
            todo="move the file and its artifacts away, or point NIGHTJAR_HOME or NIGHTJAR_MLFLOW to another place",
        )


def rewrite_locations(database: Path, moved: Mapping[str, str]) -> None:
    """In a database, put new locations in place of the old ones that texts are, or begin with."""
    with _answering(database), closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in LOCATIONS.items():
            for column in columns:
                # The names are our own. With its slash, so that the place of "cards" is not the beginning of "cards2".
                sql = f"update {table} set {column} = ? || substr({column}, ?) where substr({column} || '/', 1, ?) = ?"  # noqa: S608
                for old, new in moved.items():
                    connection.execute(sql, (new, len(old) + 1, len(old) + 1, f"{old}/"))


def copy_artifacts(source: Path, target: Path, old: str, new: str) -> None:
    """Copy an experiment's files; MLmodel files, which name their own place, are rewritten."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "MLmodel":
            copy.write_text(path.read_text(encoding="utf-8").replace(f"{old}/", f"{new}/"), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)


@contextmanager
def _answering(database: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ServiceUnreachable(
            "MLflow's database cannot be read or written.",
            where=str(database),
            got=str(error),
            expected="an SQLite file that nobody keeps locked",
            todo="check the file, the free space and who has it open, then run it again",
        ) from error
