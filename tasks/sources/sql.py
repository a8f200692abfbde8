"""The rows of one SQL query, slice by slice, from any database that SQLAlchemy supports."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from models.params import Section
from tasks.errors import SourceInvalid
from tasks.sources.arrival import Arrival
from tasks.stores.lake import SLICE_ROWS


class SqlSource(Section):
    """The rows of one query; `url` is any SQLAlchemy URL; the command line replaces `${NAME}` from the environment."""

    kind: Literal["sql"]
    url: str
    query: str


def read_query(source: SqlSource, now: datetime) -> Arrival:
    """A query's rows, slice by slice. The version is the time of reading, since a query has no other."""

    def read() -> Iterator[pa.Table]:
        schema = None
        try:
            engine = sa.create_engine(source.url, poolclass=sa.NullPool)
            with engine.connect().execution_options(stream_results=True) as connection:
                text = sa.text(source.query)
                for frame in pd.read_sql_query(text, connection, chunksize=SLICE_ROWS, dtype_backend="pyarrow"):
                    table = pa.Table.from_pandas(frame, preserve_index=False)
                    schema = schema or _settle(table.schema)
                    yield table.cast(schema)
        except (sa.exc.SQLAlchemyError, pd.errors.DatabaseError, ValueError) as error:  # or duplicate columns
            raise SourceInvalid(
                "The query cannot be read.",
                where=_hide_password(source.url),
                got=str(error).splitlines()[0],
                expected="a query whose columns have the same type in every row",
                todo="correct ingest.source in params.yaml, or check that the database answers; nothing has landed",
            ) from error

    name = f"query-{hashlib.sha256(source.query.encode()).hexdigest()[:12]}"
    return Arrival(name, now.isoformat(), now, read, is_whole=False)


def _settle(schema: pa.Schema) -> pa.Schema:
    """The schema to which all slices are cast, given the first: a column that is empty there may get values later."""
    settled = {pa.types.is_null: pa.string(), pa.types.is_decimal: pa.float64()}
    kinds = [next((to for is_kind, to in settled.items() if is_kind(kind)), kind) for kind in schema.types]
    return pa.schema(list(zip(schema.names, kinds, strict=True)))


def _hide_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "a URL that SQLAlchemy cannot parse"  # the text may contain a password
