"""Translate what other libraries raise when a store is unreachable, full or refuses access into Nightjar's errors.

The lake, the warehouse and MLflow have one context manager each. Errors of anything else (a source, Dask, Prefect) are
built where they occur.
"""

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tasks.errors import NightjarError, ParamsInvalid, ServiceUnreachable, hide_password
from tasks.stores.owner import describe_process
from tasks.stores.roles import WRITER

LOST = ("08", "53", "57P")  # SQLSTATEs: a lost connection, no room, a server that is shut down
FILES = ("duckdb", "sqlite")  # warehouses that are a single file
NO_RIGHT = "42501"  # SQLSTATE insufficient_privilege
READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction: a standby server
HOLDER = re.compile(r"[Cc]onflicting lock is held in .*?\(PID (?P<pid>\d+)\)")  # DuckDB's words
SHOWN = 500  # characters shown of an MLflow error, which may list every file


def list_store_faults() -> tuple[type[Exception], ...]:
    """What an object store raises when it fails: s3fs translates some of botocore's errors, MLflow none."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return (OSError,)
    return OSError, Boto3Error, BotoCoreError, ClientError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise ServiceUnreachable for any failure to write below a local folder."""
    try:
        yield
    except OSError as error:
        raise ServiceUnreachable(
            "A local folder cannot be written.",
            where=str(folder),
            got=str(error),
            expected="a folder that this process may write to, with free space",
            todo="check the settings (NIGHTJAR_HOME), the permissions and the free space, then run again",
        ) from error


@contextmanager
def reaching_lake(root: str, path: str, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise ServiceUnreachable for any failure to read or write a file of the lake."""
    try:
        yield
    except faults as error:
        raise ServiceUnreachable(
            "The lake cannot be read or written.",
            where=f"{root} ({path})",
            got=str(error),
            expected="a folder or object store that this process may write to",
            todo="check NIGHTJAR_LAKE, the permissions and the free space; for object stores: keys and endpoint",
        ) from error


@contextmanager
def reaching_registry(uri: str) -> Iterator[None]:
    """Raise ServiceUnreachable for any failure of MLflow, its database or its files."""
    try:
        yield
    except _list_registry_faults() as error:
        if _is_refusal(error):
            raise ServiceUnreachable(
                "The MLflow server refuses this command, which gave no password or a wrong one, or lacks a right.",
                where=uri,
                got=hide_password(" ".join(str(error).split()))[:SHOWN],
                todo="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as for the server (nightjar up writes "
                "them into stack/env of the home folder)",
            ) from error
        raise ServiceUnreachable(
            "MLflow does not answer correctly.",
            where=uri,
            got=hide_password(" ".join(str(error).split()))[:SHOWN],  # a cut URL may hide its @
            expected="a tracking server, or an SQLite file that this process may write to and no other process locks",
            todo="check NIGHTJAR_MLFLOW, that the server is running, the free space, and an object store's keys",
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether an MLflow server wants another login."""
    codes = (getattr(error, "error_code", None), getattr(getattr(error, "response", None), "status_code", None))
    return bool({"UNAUTHENTICATED", "PERMISSION_DENIED", 401, 403}.intersection(codes))


def _list_registry_faults() -> tuple[type[Exception], ...]:
    faults = (*list_store_faults(), sqlite3.Error, sa.exc.SQLAlchemyError)
    if "mlflow" not in sys.modules:  # a module that was not imported cannot have raised
        return faults
    from mlflow.exceptions import MlflowException

    return (*faults, MlflowException)


@contextmanager
def reaching_warehouse(url: sa.URL) -> Iterator[None]:
    """Raise ServiceUnreachable for a database failure, or ParamsInvalid for a login without the necessary right."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        # Operational: a lost server, a refused lock, a full disk. Anything else is a bug of ours.
        state = getattr(error.orig, "sqlstate", None)
        if error.connection_invalidated or isinstance(error, sa.exc.OperationalError) or state == READ_ONLY:
            raise explain_database(url, error) from error
        if state == NO_RIGHT:
            raise lacks_right(url, error.orig) from error
        raise


def is_lost(error: BaseException) -> bool:
    """Whether a database server does not answer, ended the connection, or has no room; not if it refused the login."""
    cause = error if isinstance(error, sa.exc.DBAPIError) else error.__cause__
    if not isinstance(cause, sa.exc.OperationalError) or type(cause.orig).__module__.lstrip("_").startswith(FILES):
        return False
    state = getattr(cause.orig, "sqlstate", None)  # none: there was no connection
    return not _is_login(str(cause.orig)) and (state is None or state.startswith(LOST))


def _is_login(got: str) -> bool:
    refusals = ("authentication failed", "does not exist", "no pg_hba.conf entry")
    return "FATAL:" in got and any(refusal in got for refusal in refusals)


def explain_database(url: sa.URL, cause: sa.exc.DBAPIError | str) -> NightjarError:
    """The error for an unusable database, from the message of its driver or the operating system."""
    got = " ".join(str(cause if isinstance(cause, str) else cause.orig).split())
    if _is_login(got):
        return ParamsInvalid(
            "The warehouse's server refuses the login, or the database does not exist.",
            where=describe_place(url),
            got=got,
            todo="correct the user, password and database in NIGHTJAR_WAREHOUSE (escape special characters: %40 for @)",
        )
    if holder := HOLDER.search(got):
        is_reader = "in read-only mode" in got
        got = f"{describe_process(int(holder['pid']))} has the file open to {'read' if is_reader else 'write'}"
        todo = (
            "close its connection or end it (in a notebook, restart the kernel), then run again; to query while nights "
            "run, make a copy (nightjar export COPY.duckdb), or use PostgreSQL"
        )
        todo += "" if is_reader else "; a connection with read_only=True lets status and explain work"
    elif url.drivername in FILES and ("lock" in got or "held it for" in got):
        todo = "stop the process or thread that has the file open, or use PostgreSQL for many users"
    elif url.drivername in FILES:
        todo = "check the file's folder, its permissions and the free space; nightjar restore restores a backup"
    else:
        todo = "check that its server is running, that the warehouse URL in the settings is right, and who holds locks"
    return ServiceUnreachable("The warehouse does not answer.", where=describe_place(url), got=got, todo=todo)


def lacks_right(url: sa.URL, cause: object) -> ParamsInvalid:
    """The error for a login without the necessary right."""
    return ParamsInvalid(
        "The login in the warehouse URL lacks a right.",
        where=describe_place(url),
        got=str(cause).splitlines()[0],
        expected=f"a member of the role {WRITER} to run nights and judge, nightjar_reader to read, or the owner",
        todo=f"ask an administrator to grant it {WRITER}, or set another login in NIGHTJAR_WAREHOUSE",
    )


def lacks_driver(url: sa.URL, error: Exception) -> ParamsInvalid:
    """The error for a database whose driver is not installed."""
    return ParamsInvalid(
        "The warehouse's driver cannot be loaded.",
        where=describe_place(url),
        got=f"{type(error).__name__}: {error}",
        todo=f'pip install "nightjar[{url.get_backend_name()}]"',
    )


def invalid_url(got: str) -> ParamsInvalid:
    """The error for an invalid warehouse URL; `got` must not quote it, since it may contain a password."""
    return ParamsInvalid(
        "The warehouse URL is invalid.",
        got=got,
        expected="duckdb:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE",
        todo="correct NIGHTJAR_WAREHOUSE; docs/warehouses.md lists the other supported databases",
    )


def describe_place(url: sa.URL) -> str:
    """The URL without user, password and query, because messages end up in logs and tables."""
    return sa.URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
