"""The rows of a spreadsheet (.xlsx, .xlsb, .xls, .ods), all values as text; python-calamine reads it into memory."""

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import IO

import pyarrow as pa

from tasks.errors import SourceInvalid
from tasks.sources.dialect import MOST_RECORDS
from tasks.sources.unpack import WORKBOOK, ZIP, find_kind_of_zip
from tasks.stores.lake import SLICE_ROWS

OLD_OFFICE = b"\xd0\xcf\x11\xe0"  # such as .xls
MOST_BYTES = 1 << 30  # unpacked
MOST_CELLS = 50_000_000  # of a sheet
CELL = re.compile(rb'\br="([A-Z]{1,3})(\d{1,7})"')  # the place of a cell in .xlsx
Cell = int | float | str | bool | time | date | datetime | timedelta


def is_workbook(stream: IO[bytes], head: bytes) -> bool:
    """Whether a file, which is left at its start, is a spreadsheet."""
    if not head.startswith(ZIP):
        return head.startswith(OLD_OFFICE)
    with zipfile.ZipFile(stream) as archive:
        kind = find_kind_of_zip(archive)
    stream.seek(0)
    return kind == WORKBOOK


def list_sheets(stream: IO[bytes], name: str) -> dict[str, list[tuple[int, list[str]]]]:
    """The visible sheets with values: for each its first rows with values, with the number of rows above each."""
    found = {}
    for sheet, rows in _open_sheets(stream, name).items():
        texts = ((number, [text or "" for text in _to_texts(row)]) for number, row in enumerate(rows))
        records = [(number, _without_end(row)) for number, row in islice(texts, MOST_RECORDS) if any(row)]
        if records:
            found[sheet] = records
    return found


def read_workbook(
    stream: IO[bytes], name: str, header: Sequence[str], skip_lines: int, sheet: str | None
) -> Iterator[pa.Table]:
    """The rows of one sheet, slice by slice; the first row with values is the header. Raises SourceInvalid."""
    sheets = list_sheets(stream, name)
    stream.seek(0)
    if (sheet and sheet not in sheets) or (not sheet and len(sheets) > 1):
        raise SourceInvalid(
            f"The spreadsheet has no sheet {sheet!r}." if sheet else "The spreadsheet has several sheets with values.",
            where=name,
            got=", ".join(sheets) or "no sheet with values",
            expected="the sheet that has the rows",
            todo="set ingest.source.sheet to one of them, or save that sheet as CSV",
        )
    if not sheets:
        raise SourceInvalid(
            "The file is empty.", where=name, got="no sheet with values", expected="a header line and rows",
            todo="deliver the file again; nothing of it has landed",
        )  # fmt: skip
    below = islice(_open_sheets(stream, name)[sheet or next(iter(sheets))], skip_lines, None)
    rows = (row for row in map(_to_texts, below) if any(row))
    names = list(header) or [text or "" for text in next(rows, [])]
    named = len(_without_end(names))
    while texts := list(islice(rows, SLICE_ROWS)):
        if any(any(row[named:]) for row in texts):
            raise SourceInvalid(
                "A column without a name has values.",
                where=name,
                got=f"values behind the column {names[named - 1]!r}",
                todo="name it in the header, or leave it out",
            )
        columns = [pa.array([row[place] if place < len(row) else None for row in texts]) for place in range(named)]
        yield pa.table([column.cast(pa.string()) for column in columns], names=names[:named])


def check_size(stream: IO[bytes], name: str) -> None:
    """Raise SourceInvalid if a spreadsheet, which is left at its start, would not fit into memory.

    All cells up to the last row and the last column are held, also the empty ones: two cells may take any space.
    """
    stream.seek(0)
    bytes_, cells = stream.seek(0, io.SEEK_END), 0
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            bytes_ = sum(member.file_size for member in members)
            if bytes_ <= MOST_BYTES:
                sheets = [one.filename for one in members if re.match(r"/?xl/worksheets/.*\.xml$", one.filename)]
                cells = max((_count_cells(archive, sheet) for sheet in sheets), default=0)
    stream.seek(0)
    if bytes_ > MOST_BYTES or cells > MOST_CELLS:
        raise SourceInvalid(
            "The spreadsheet is too large.",
            where=name,
            got=f"{bytes_ / 1e6:,.0f} MB unpacked" if bytes_ > MOST_BYTES else f"a sheet of {cells:,} cells",
            expected=f"at most {MOST_BYTES / 1e6:,.0f} MB and {MOST_CELLS:,} cells, with the empty ones between them",
            todo="delete what is far from the table, or save the sheet as CSV, which is read slice by slice",
        )


def _count_cells(archive: zipfile.ZipFile, sheet: str) -> int:
    """The cells up to the last row and the last column of a sheet."""
    last_row, last_column, rest = 0, 0, b""
    with archive.open(sheet) as file:
        while block := file.read(1 << 20):
            for letters, row in CELL.findall(rest + block):
                column = 0
                for letter in letters:
                    column = 26 * column + letter - 64
                last_row, last_column = max(last_row, int(row)), max(last_column, column)
            rest = block[-20:]
    return last_row * last_column


def _open_sheets(stream: IO[bytes], name: str) -> dict[str, Iterator[list[Cell]]]:
    from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

    check_size(stream, name)
    try:
        book = CalamineWorkbook.from_filelike(stream)
        tables = [sheet.name for sheet in book.sheets_metadata
                  if sheet.typ == SheetTypeEnum.WorkSheet and sheet.visible == SheetVisibleEnum.Visible]  # fmt: skip
        return {table: book.get_sheet_by_name(table).iter_rows() for table in tables}
    except CalamineError as error:
        raise SourceInvalid(
            "The spreadsheet cannot be read: it is damaged, protected by a password, or another Office document.",
            where=name,
            got=str(error).splitlines()[0],
            expected="an Excel or OpenDocument spreadsheet",
            todo="save it again without a password, or as CSV",
        ) from error


def _to_texts(row: list[Cell]) -> list[str | None]:
    return [_to_text(cell) for cell in row]


def _to_text(cell: Cell) -> str | None:
    """A cell as a person reads it: whole numbers without a point, days without a time."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1 << 53 else repr(cell)
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    return str(cell) or None


def _without_end(row: Sequence[str]) -> list[str]:
    """A row without the empty cells at its end."""
    width = max((place for place, text in enumerate(row, start=1) if text.strip()), default=0)
    return list(row[:width])
