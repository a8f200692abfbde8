"""Bulk loading and reading of warehouse rows, using each engine's own method."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pandas as pd
import sqlalchemy as sa

from tasks.stores.faults import explain_database, lacks_right
from tasks.stores.tables import Instant

COPY_ROWS = 10_000
NO_NUL = "\ufffd"
CHUNK = 5000  # values in one statement
T = TypeVar("T")


def load_rows(connection: sa.Connection, table: sa.Table, frame: pd.DataFrame) -> None:
    """Append the frame's rows to the table with the engine's bulk loader. NaN and None become NULL, and NUL U+FFFD.

    The frame has the table's columns, in any order. Text columns hold only text; datetimes have a time zone.
    """
    rows = _to_arrow(table, frame)
    if connection.dialect.name == "duckdb":
        source = sa.table("loaded_rows", *(sa.column(name) for name in rows.column_names))
        _driver(connection).register(source.name, rows)
        connection.execute(sa.insert(table).from_select(rows.column_names, sa.select(source)))
        _driver(connection).unregister(source.name)
    elif connection.dialect.name == "postgresql":
        _copy_rows(connection, table, rows)
    else:
        for part in rows.to_batches(COPY_ROWS):
            if part.num_rows:
                connection.execute(sa.insert(table), part.to_pylist())


def _copy_rows(connection: sa.Connection, table: sa.Table, rows: Any) -> None:
    import psycopg
    from psycopg import sql

    columns = sql.SQL(", ").join(sql.Identifier(name) for name in rows.column_names)
    target = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(table.name), columns)
    try:
        with _driver(connection).cursor() as cursor, cursor.copy(target) as copy:
            for part in rows.to_batches(COPY_ROWS):
                copy.write(_encode_copy_text(part))
    except psycopg.OperationalError as error:  # SQLAlchemy does not see this call
        raise explain_database(connection.engine.url, str(error)) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise lacks_right(connection.engine.url, error) from error


def _encode_copy_text(rows: Any) -> str:
    r"""PostgreSQL's text format: tabs between values, \N for NULL, and backslash, tab and line ends escaped.

    Encodes whole columns at once: three times as fast as psycopg's write_row. CSV is not an option: before version 18
    a CSV copy ends at a line that contains only "\.", even inside quotes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for column in rows.columns:
        text = pc.cast(column, pa.string())
        if pa.types.is_string(column.type):
            for character, escaped in (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r")):
                text = pc.replace_substring(text, character, escaped)
        columns.append(text)
    lines = pc.binary_join_element_wise(*columns, "\t", null_handling="replace", null_replacement=r"\N")
    return "\n".join(lines.to_pylist()) + "\n"


def _to_arrow(table: sa.Table, frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    columns = {name: _to_arrow_array(frame[name], table.c[name]) for name in frame.columns}
    return pa.table(columns)


def _to_arrow_array(values: pd.Series, column: sa.Column[Any]) -> Any:
    import pyarrow as pa

    kind = _arrow_type(column)
    if isinstance(column.type, sa.Text):  # PostgreSQL cannot store NUL
        import pyarrow.compute as pc

        return pc.replace_substring(pa.array(values, kind, from_pandas=True), "\0", NO_NUL)
    if not isinstance(column.type, Instant):
        return pa.array(values, kind, from_pandas=True)
    if len(values) and getattr(values.dtype, "tz", None) is None:
        raise ValueError(f"column {column.name} has no time zone; the warehouse keeps UTC")
    naive_utc = pd.to_datetime(values, utc=True).dt.tz_convert(None).to_numpy()
    return pa.array(naive_utc, pa.timestamp("us"), from_pandas=True, safe=False).cast(kind)  # drops nanoseconds


def read_slices(connection: sa.Connection, query: sa.Select[Any], rows: int) -> Iterator[Any]:
    """Yield a query's result as Arrow tables of at most `rows` rows; yields nothing for an empty result."""
    import pyarrow as pa

    schema = arrow_schema(query)
    if connection.dialect.name == "duckdb":
        with _unwarned():
            batches = connection.execute(query).cursor.to_arrow_reader(rows)
        for batch in batches:
            yield pa.Table.from_batches([batch]).cast(schema)
        return
    for part in connection.execute(query, execution_options={"yield_per": rows}).partitions():
        yield _to_table(list(part), schema)


@contextmanager
def _unwarned() -> Iterator[None]:
    with warnings.catch_warnings():  # DuckDB warns about a copy; fetching row by row takes ten times as long
        warnings.filterwarnings("ignore", "Arrow output on a DB-API result")
        yield


def arrow_schema(query: sa.Select[Any]) -> Any:
    """The Arrow schema of a query's result."""
    import pyarrow as pa

    return pa.schema([(column.name, _arrow_type(column)) for column in query.selected_columns])


def _to_table(rows: Sequence[Any], schema: Any) -> Any:
    import pyarrow as pa

    values = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(list(v), kind) for v, kind in zip(values, schema.types, strict=True)], schema=schema)


def read_frame(connection: sa.Connection, query: sa.Select[Any]) -> pd.DataFrame:
    """A query's whole result as a frame."""
    schema = arrow_schema(query)
    result = connection.execute(query)
    if connection.dialect.name == "duckdb":
        with _unwarned():
            table = result.cursor.to_arrow_table().cast(schema)
    else:
        table = _to_table(result.all(), schema)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _arrow_type(column: sa.ColumnElement[Any]) -> Any:
    import pyarrow as pa

    kinds: Mapping[type, Any] = {
        sa.Text: pa.string(),
        sa.Date: pa.date32(),
        Instant: pa.timestamp("us", "UTC"),
        sa.Double: pa.float64(),
        sa.Integer: pa.int64(),
        sa.BigInteger: pa.int64(),
        sa.Boolean: pa.bool_(),
    }
    return kinds[type(column.type)]


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values in pieces that one statement can name: PostgreSQL's driver sends at most 65,535."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
