"""The rows of one SQL query, slice by slice, from any database that SQLAlchemy supports."""

import hashlib
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from models.params import Section
from tasks.errors import ServiceUnreachable, SourceInvalid
from tasks.sources.arrival import Arrival
from tasks.stores.faults import FILES, is_lost
from tasks.stores.lake import SLICE_ROWS

SINCE = re.compile(r"(?<![:\w\\]):since\b(?!:)")  # as SQLAlchemy finds the parameters of a text
# Of other databases, most undo at the end what a query has changed: nothing is committed.
READ_ONLY = {"sqlite": "pragma query_only = on", "postgresql": "set transaction read only"}
EARLIEST = date(1900, 1, 2)  # each database has dates from then on


class SqlSource(Section):
    """The rows of one query; `url` is any SQLAlchemy URL, in which `${NAME}` is replaced from the environment.

    `:since` in the query stands for a date: rows of earlier days need not be returned.
    """

    kind: Literal["sql"]
    url: str
    query: str


def read_query(source: SqlSource, now: datetime, first: date = date.min) -> Arrival:
    """A query's rows, slice by slice. The version is the time of reading, since a query has no other.

    first: the first batch date that is needed. `:since` is the day before it, so that all of its rows come whatever the
    time zone of the database.

    Reading raises ServiceUnreachable if the server does not answer, and SourceInvalid for any other failure.
    """

    needs_since = SINCE.search(source.query) is not None
    since = sa.bindparam("since", max(first, EARLIEST) - timedelta(days=1), sa.Date())
    given = [since] if needs_since else []

    def read() -> Iterator[pa.Table]:
        schema = None
        try:
            with open_source(source.url).connect() as connection:
                if guard := READ_ONLY.get(connection.dialect.name):
                    connection.exec_driver_sql(guard)
                connection = connection.execution_options(stream_results=True)
                text = sa.text(source.query).bindparams(*given)
                for frame in pd.read_sql_query(text, connection, chunksize=SLICE_ROWS, dtype_backend="pyarrow"):
                    table = pa.Table.from_pandas(frame, preserve_index=False)
                    schema = schema or _settle(table.schema)
                    yield table.cast(schema)
        except (sa.exc.SQLAlchemyError, pd.errors.DatabaseError, ValueError) as error:  # or duplicate columns
            if is_lost(error):
                raise ServiceUnreachable(
                    "The source's database does not answer.",
                    where=source.url,
                    got=str(error).splitlines()[0],
                    todo="check that its server is running and can be reached; nothing has landed",
                ) from error
            is_binary = isinstance(error, UnicodeDecodeError)
            raise SourceInvalid(
                "The query cannot be read.",
                where=source.url,
                got="a column of binary values" if is_binary else str(error).splitlines()[0],
                expected="a query whose columns have the same type in every row, none of them binary",
                todo="correct ingest.source in params.yaml; nothing has landed",
            ) from error

    name = f"query-{hashlib.sha256(source.query.encode()).hexdigest()[:12]}"
    return Arrival(name, now.isoformat(), now, read, is_whole=False, first=first if needs_since else date.min)


def open_source(url: str) -> sa.Engine:
    """The engine of a source's database; PostgreSQL is read with psycopg. Raises SourceInvalid.

    The messages quote no invalid URL: any piece of it may be of a password.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() in ("postgres", "postgresql") and "+" not in parsed.drivername:
            parsed = parsed.set(drivername="postgresql+psycopg")  # SQLAlchemy's default is another driver
        if "@" in f"{parsed.host}{parsed.database}":
            raise ValueError
    except (sa.exc.ArgumentError, ValueError):
        raise SourceInvalid(
            "The URL of the source's database is invalid.",
            expected="an SQLAlchemy URL; in a user or password, @ is written as %40",
            todo="correct ingest.source.url in params.yaml, or the variable that it names",
        ) from None
    file = parsed.database if parsed.get_backend_name() in FILES else None
    if file and file != ":memory:" and not file.startswith("file:") and not Path(file).is_file():
        raise SourceInvalid(  # the driver would create an empty database
            "The source's database does not exist.",
            where=url,
            got=f"no file {Path(file).resolve()}",
            todo="correct ingest.source.url in params.yaml; a relative path starts in the current folder",
        )
    try:
        return sa.create_engine(parsed, poolclass=sa.NullPool)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        raise SourceInvalid(
            "The driver of the source's database is not installed.",
            where=url,
            got=f"{type(error).__name__}: {error}",
            todo="install it with pip, or name another driver in the URL, such as postgresql+psycopg://",
        ) from error


def _settle(schema: pa.Schema) -> pa.Schema:
    """The schema to which all slices are cast, given the first: a column that is empty there may get values later."""
    settled = {pa.types.is_null: pa.string(), pa.types.is_decimal: pa.float64()}
    kinds = [next((to for is_kind, to in settled.items() if is_kind(kind)), kind) for kind in schema.types]
    return pa.schema(list(zip(schema.names, kinds, strict=True)))
