"""A file of rows for people, in the format that its name says: Parquet, CSV or Excel."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import ParamsInvalid
from tasks.rows.escaping import guard
from tasks.stores.faults import writing
from tasks.stores.files import appear

PARQUET, CSV, EXCEL = (".parquet", ".pq"), (".csv",), (".xlsx",)
Write = Callable[[pa.Table], None]


def check_output(path: Path) -> None:
    """Raise ParamsInvalid if the file cannot be written, before any work is done."""
    got = expected = ""
    if path.suffix.lower() not in (*PARQUET, *CSV, *EXCEL):
        got, expected = f"the suffix {path.suffix!r}", "a name that ends in .parquet, .csv or .xlsx"
    elif path.suffix.lower() in EXCEL and find_spec("openpyxl") is None:
        got, expected = "no package openpyxl", "pip install openpyxl for .xlsx; or .csv or .parquet"
    elif not path.absolute().parent.is_dir():
        got, expected = f"no folder {path.absolute().parent}", "an existing folder"
    elif path.is_dir():
        got, expected = "a folder", "a file"
    if got:
        raise ParamsInvalid(
            "The output file cannot be written; nothing was done.", where=str(path), got=got, expected=expected
        )


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame's columns to the file. Raises ServiceUnreachable."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with open_output(path, table.schema) as write:
        write(table)


@contextmanager
def open_output(path: Path, schema: pa.Schema) -> Iterator[Write]:
    """A function that appends tables to the file, which appears once it is complete. Raises ServiceUnreachable."""
    kind = path.suffix.lower()
    with writing(path), appear(str(path)) as file:
        if kind in PARQUET:
            with pq.ParquetWriter(file, schema) as writer:
                yield writer.write_table
        elif kind in CSV:
            yield _open_csv(file, schema)
        else:
            yield from _open_excel(file, schema)


def _open_csv(file: IO[bytes], schema: pa.Schema) -> Write:
    def write(rows: list[list[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        file.write(text.getvalue().encode("utf-8", "surrogatepass"))

    write([schema.names])
    return lambda table: write(_to_rows(table))


def _open_excel(file: IO[bytes], schema: pa.Schema) -> Iterator[Write]:
    from openpyxl import Workbook  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE as ILLEGAL  # type: ignore[import-untyped, unused-ignore]

    book = Workbook(write_only=True)
    sheet = book.create_sheet("rows")
    sheet.append(schema.names)

    def write(table: pa.Table) -> None:
        for row in _to_rows(table):
            sheet.append([ILLEGAL.sub("", value) if isinstance(value, str) else value for value in row])

    yield write
    book.save(file)


def _to_rows(table: pa.Table) -> list[list[Any]]:
    """The rows, without formulas."""
    columns = [[guard(value) if isinstance(value, str) else value for value in c.to_pylist()] for c in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]
