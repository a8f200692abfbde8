"""What other libraries raise when a store is away, full or refuses, turned into errors of ours.

The lake, the warehouse and MLflow each have one entry here. Errors of anything else (a source, Dask, Prefect) are built
where they are met.
"""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tasks.errors import NightjarError, ParamsInvalid, ServiceUnreachable, hide_password
from tasks.stores.roles import WRITER

FILES = ("duckdb", "sqlite")  # warehouses in a file
NO_RIGHT = "42501"  # SQLSTATE insufficient_privilege
SHOWN = 500  # characters of an error of MLflow, which may list every file


def list_store_faults() -> tuple[type[Exception], ...]:
    """What an object store raises when it is away or refuses: s3fs translates some errors of botocore, MLflow none."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return (OSError,)
    return OSError, Boto3Error, BotoCoreError, ClientError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn whatever keeps a file below a local folder from being written into ServiceUnreachable."""
    try:
        yield
    except OSError as error:
        raise ServiceUnreachable(
            "A local folder cannot be written.",
            where=str(folder),
            got=str(error),
            expected="a folder that this process may write to, with free space",
            todo="check the settings (NIGHTJAR_HOME), the permissions and the free space, then run it again",
        ) from error


@contextmanager
def reaching_lake(root: str, path: str, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn whatever keeps a file of the lake from being read or written into ServiceUnreachable."""
    try:
        yield
    except faults as error:
        raise ServiceUnreachable(
            "The lake cannot be read or written.",
            where=f"{hide_password(root)} ({path})",
            got=hide_password(str(error)),
            expected="a folder or object store that this process may write to",
            todo="check NIGHTJAR_LAKE, the permissions and the free space; for an object store its keys and endpoint",
        ) from error


@contextmanager
def reaching_registry(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way to MLflow, its database or its files into ServiceUnreachable."""
    try:
        yield
    except _list_registry_faults() as error:
        raise ServiceUnreachable(
            "MLflow does not answer as it should.",
            where=hide_password(uri),
            got=hide_password(" ".join(str(error).split())[:SHOWN]),
            expected="a tracking server, or an SQLite file that this process may write to and nobody keeps locked",
            todo="check NIGHTJAR_MLFLOW, that the server runs and the free space; an object store's keys",
        ) from error


def _list_registry_faults() -> tuple[type[Exception], ...]:
    faults = (*list_store_faults(), sqlite3.Error, sa.exc.SQLAlchemyError)
    if "mlflow" not in sys.modules:  # what was not imported cannot have raised
        return faults
    from mlflow.exceptions import MlflowException

    return (*faults, MlflowException)


@contextmanager
def reaching_warehouse(url: sa.URL) -> Iterator[None]:
    """Turn what a database refuses into ServiceUnreachable, or ParamsInvalid for a login that lacks a right."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        # Operational: a server that went away, a lock refused, a full disk. Anything else is a fault of ours.
        if error.connection_invalidated or isinstance(error, sa.exc.OperationalError):
            raise explain_database(url, error) from error
        if getattr(error.orig, "sqlstate", None) == NO_RIGHT:
            raise lacks_right(url, error.orig) from error
        raise


def explain_database(url: sa.URL, cause: sa.exc.DBAPIError | str) -> NightjarError:
    """The error for a database that cannot be used, from what its driver or the operating system said."""
    got = " ".join(str(cause if isinstance(cause, str) else cause.orig).split())
    if "FATAL:" in got and ("authentication failed" in got or "does not exist" in got):
        return ParamsInvalid(
            "The warehouse's server refuses the login, or has no such database.",
            where=describe_place(url),
            got=got,
            todo="correct user, password and database in NIGHTJAR_WAREHOUSE (special characters as %40 for @)",
        )
    if url.drivername in FILES and ("lock" in got or "kept it for" in got):
        todo = "end the process or thread that has the file open (readers too), or use PostgreSQL for many users"
    elif url.drivername in FILES:
        todo = "check the file's folder, its permissions and the free space; nightjar restore brings a backup back"
    else:
        todo = "check that its server runs, that the warehouse URL in the settings is right and who holds its locks"
    return ServiceUnreachable("The warehouse does not answer.", where=describe_place(url), got=got, todo=todo)


def lacks_right(url: sa.URL, cause: object) -> ParamsInvalid:
    """The error for a login that may not do this."""
    return ParamsInvalid(
        "The login in the warehouse URL lacks a right.",
        where=describe_place(url),
        got=str(cause).splitlines()[0],
        expected=f"a member of the role {WRITER} to run nights, of nightjar_reader to read, or the owner of the tables",
        todo=f"let an administrator grant it {WRITER}, or name another login in NIGHTJAR_WAREHOUSE",
    )


def lacks_driver(url: sa.URL, error: Exception) -> ParamsInvalid:
    """The error for a database whose driver is not installed."""
    return ParamsInvalid(
        "The warehouse's driver is not usable here.",
        where=describe_place(url),
        got=f"{type(error).__name__}: {error}",
        todo=f'pip install "nightjar[{url.get_backend_name()}]", which brings it',
    )


def invalid_url(got: str) -> ParamsInvalid:
    """The error for a URL that cannot be a warehouse's; `got` does not quote it, since it may hold a password."""
    return ParamsInvalid(
        "The warehouse URL is not usable.",
        got=got,
        expected="duckdb:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE (not postgres://)",
        todo="correct NIGHTJAR_WAREHOUSE; docs/warehouses.md says what other databases can do",
    )


def describe_place(url: sa.URL) -> str:
    """The URL without user, password and query: messages reach logs and tables."""
    return sa.URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
