"""A file of rows for people, in the format that its name says: Parquet, CSV or Excel."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
MOST_EXCEL_ROWS, MOST_EXCEL_TEXT = 1_048_576, 32_767  # of a sheet, with its header; characters of a cell
Write = Callable[[pa.Table], None]


def check_output(path: Path) -> None:
    """Raise ParamsInvalid if the file cannot be written, before any work is done."""
    got = expected = ""
    if path.suffix.lower() not in (*PARQUET, *CSV, *EXCEL):
        got, expected = f"the suffix {path.suffix!r}", "a name that ends in .parquet, .csv or .xlsx"
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
    """One sheet, written row by row. Its texts are texts: no formula, link or number is made of them."""
    from xlsxwriter import Workbook

    options = {"strings_to_formulas": False, "strings_to_urls": False, "nan_inf_to_errors": True}
    with Workbook(file, {"constant_memory": True, **options}) as book:
        sheet = book.add_worksheet("rows")
        sheet.write_row(0, 0, schema.names)
        written = 0

        def write(table: pa.Table) -> None:
            nonlocal written
            if written + table.num_rows >= MOST_EXCEL_ROWS:
                raise ParamsInvalid(
                    "There are more rows than an Excel sheet can hold; nothing was written.",
                    expected=f"fewer than {MOST_EXCEL_ROWS:,} rows",
                    todo="--output with a name that ends in .csv or .parquet",
                )
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                written += 1
                sheet.write_row(written, 0, [_to_cell(value) for value in row])

        yield write


def _to_cell(value: Any) -> Any:
    """A value for an Excel cell, which keeps 15 digits of a number and MOST_EXCEL_TEXT characters of a text."""
    if isinstance(value, int) and abs(value) >= 10**15:
        return str(value)
    is_plain = value is None or isinstance(value, int | float)
    return value if is_plain else str(value)[:MOST_EXCEL_TEXT]


def _to_rows(table: pa.Table) -> list[list[Any]]:
    """The rows, without formulas."""
    columns = [[guard(value) if isinstance(value, str) else value for value in c.to_pylist()] for c in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]
