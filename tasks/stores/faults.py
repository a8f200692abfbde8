"""What goes wrong in other libraries, as errors of ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tasks.errors import (
    NightjarError,
    ParamsInvalid,
    ServiceUnreachable,
    hide_password,
)
from tasks.stores.roles import WRITER


def list_faults() -> tuple[type[Exception], ...]:
    """What a store raises that is away or refuses: s3fs translates some of botocore's errors, MLflow none."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return (OSError,)
    return OSError, Boto3Error, BotoCoreError, ClientError


def _unreachable(root: str, path: str, error: Exception) -> ServiceUnreachable:
    return ServiceUnreachable(
        "The lake cannot be read or written.",
        where=f"{hide_password(root)} ({path})",
        got=hide_password(str(error)),
        expected="a folder or object store that this process may write to",
        todo="check NIGHTJAR_LAKE, the permissions and the free space; of an object store its keys and endpoint",
    )


FILES = ("duckdb", "sqlite")


def describe_place(url: sa.URL) -> str:
    """The URL without user, password and query: messages reach logs and tables."""
    return sa.URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def _invalid_url(got: str) -> ParamsInvalid:
    return ParamsInvalid(
        "the warehouse URL is not usable",
        got=got,
        expected="duckdb:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE (not postgres://)",
        todo="correct NIGHTJAR_WAREHOUSE; docs/warehouses.md tells what other databases can do",
    )


def _no_driver(url: sa.URL, error: Exception) -> ParamsInvalid:
    return ParamsInvalid(
        "the warehouse's driver is not usable here",
        where=describe_place(url),
        got=f"{type(error).__name__}: {error}",
        todo=f'pip install "nightjar[{url.get_backend_name()}]", which brings it',
    )


def _forbidden(url: sa.URL, cause: object) -> ParamsInvalid:
    return ParamsInvalid(
        "the login in the warehouse URL lacks a right",
        where=describe_place(url),
        got=str(cause).splitlines()[0],
        expected=f"a member of the role {WRITER} to run nights, of nightjar_reader to read, or the owner of the tables",
        todo=f"let an administrator grant it {WRITER}, or name another login in NIGHTJAR_WAREHOUSE",
    )


def _explain_failure(url: sa.URL, cause: sa.exc.DBAPIError | str) -> NightjarError:
    got = " ".join(str(cause if isinstance(cause, str) else cause.orig).split())
    if "FATAL:" in got and ("authentication failed" in got or "does not exist" in got):
        return ParamsInvalid(
            "the warehouse's server refuses the login, or has no such database",
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
    return ServiceUnreachable("the warehouse does not answer", where=describe_place(url), got=got, todo=todo)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Whatever keeps a file below a local folder from being written becomes ServiceUnreachable."""
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
