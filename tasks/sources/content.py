"""The rows of a file, slice by slice. Its first bytes say what it is; its name says nothing.

CSV, JSON lines and spreadsheets give texts, so that a bad value is quarantined as it arrived.
"""

import codecs
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tasks.errors import SourceInvalid
from tasks.sources.arrival import UNPACKING, UNPARSED, damaged_file
from tasks.sources.dialect import PLAIN, SHOWN, Dialect, decode, find_dialect, find_encoding, read_mark
from tasks.sources.formats import tidy_name
from tasks.sources.images import read_images
from tasks.sources.json_lines import read_json_lines
from tasks.sources.unpack import HEAD, ZIP, Stream, make_seekable, unpack
from tasks.sources.workbook import OLD_OFFICE, is_workbook, read_workbook
from tasks.stores.lake import SLICE_BYTES, SLICE_ROWS

BLOCK = 1 << 24  # bytes of CSV parsed at once; a row must fit into one
FEW_BAD = 5  # rows of another width that any file may have
MAX_BAD = 0.01  # share of a larger file's rows that may have another width than its header
MOST_BAD = 1_000  # held in memory
LINE_END = re.compile(r"\r\n|\r|\n")
BLANK = re.compile(r"[ \t]*+(?:\r\n|\r|\n)")
JSON = re.compile(rb"\s*[\[{]\s*[\"{}\]]")
LINE_CHARACTERS = 1 << 24
TAR_MARK = slice(257, 262)  # the name of the first member comes before it
FOREIGN = {  # formats that are not read, by their first bytes
    b"ORC": "an ORC file",
    b"Obj\1": "an Avro file",
    b"ARROW1": "an Arrow file",
    b"PARE": "an encrypted Parquet file",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x9d": "a compressed file (.Z)",
    b"<?xml": "XML",
    b"<!DOC": "a web page",
    b"<html": "a web page",
    b"\x7fELF": "a program",
}


def read_file(
    fs: Any,
    path: str,
    dialect: Dialect = PLAIN,
    header: Sequence[str] = (),
    line_column: str | None = None,
    sheet: str | None = None,
) -> Iterator[pa.Table]:
    """The rows of a file and of all members of an archive. Raises SourceInvalid if it cannot be read to its end."""
    names: list[str] | None = None
    try:
        with ExitStack() as files:
            for name, stream in unpack(files.enter_context(fs.open(path, "rb")), path, files):
                if line_column:
                    yield from read_lines(stream, name, line_column, dialect.encoding)
                    continue
                for table in read_stream(stream, name, dialect, header, sheet, files):
                    if table.column_names != [UNPARSED]:
                        table = table.rename_columns([tidy_name(column) for column in table.column_names])
                        names = names or table.column_names
                        table = _align(table, names, name)
                    elif name != path:  # several members may have bad rows on one line
                        member = name.removeprefix(path).lstrip("/")
                        table = pa.table({UNPARSED: [f"{member}, {text}" for text in table[UNPARSED].to_pylist()]})
                    yield table
    except (*UNPACKING, ValueError, pa.ArrowException) as error:  # UnicodeDecodeError is a ValueError
        raise damaged_file(path, error) from error


def _align(table: pa.Table, names: list[str], where: str) -> pa.Table:
    if table.column_names == names:
        return table
    if sorted(table.column_names) != sorted(names):
        raise SourceInvalid(
            "The files of an archive have different columns.",
            where=where,
            got=f"columns {', '.join(table.column_names)}",
            expected=f"columns {', '.join(names)}, as in the file before",
            todo="deliver the members as files of their own",
        )
    return table.select(names)


def is_csv(head: bytes) -> bool:
    """Whether a file that begins with these bytes is read as CSV."""
    return not (head.startswith((b"PAR1", ZIP, OLD_OFFICE)) or find_foreign(head) or is_json(head))


def is_json(head: bytes) -> bool:
    """Whether a file that begins with these bytes is JSON, of whatever encoding."""
    return JSON.match(head[:1000].lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"")) is not None


def find_foreign(head: bytes) -> str | None:
    """The format of a file that is not read, by its first bytes."""
    if head[TAR_MARK] == b"ustar":
        return "a tar archive"
    return next((what for magic, what in FOREIGN.items() if head.startswith(magic)), None)


def read_stream(
    stream: Stream, name: str, dialect: Dialect, header: Sequence[str], sheet: str | None, files: ExitStack
) -> Iterator[pa.Table]:
    """The rows of one unpacked file."""
    head = stream.peek(HEAD)
    if head.startswith(b"PAR1"):
        yield from read_parquet(make_seekable(stream, files))
    elif is_workbook(stream, head):
        yield from read_workbook(stream, name, header, dialect.skip_lines, sheet)
    elif head.startswith(ZIP):  # unpack gives no others
        yield from read_images(stream, name)
    elif found := find_foreign(head):
        raise SourceInvalid(
            f"The file is {found}, which Nightjar does not read.",
            where=name,
            got=repr(head[:8]),
            expected="CSV, Parquet, Excel, JSON lines, text or .npz",
            todo="write it in one of these formats",
        )
    elif is_json(head) and not header:
        yield from read_json_lines(make_seekable(stream, files), name, read_mark(head) or dialect.encoding)
    else:
        yield from read_csv(stream, name, dialect, header)


def read_csv(stream: Stream, name: str, dialect: Dialect, header: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a CSV file, all columns as text; at the end those of another width, as UNPARSED."""
    head = stream.peek(HEAD)
    dialect = replace(dialect, encoding=read_mark(head) or dialect.encoding)
    try:
        text = decode(head, dialect.encoding)
    except UnicodeDecodeError as error:
        raise not_text(name, dialect.encoding, head, str(error)) from error
    above, first, second = split_head(text, dialect)
    parsing = pacsv.ParseOptions(
        delimiter=dialect.separator, escape_char=dialect.escape or False, newlines_in_values=True
    )
    names = list(header) or _read_names(first, parsing)
    if not names:
        raise SourceInvalid(
            "The file is empty.",
            where=name,
            got="no header line",
            expected="a header line and rows",
            todo="deliver the file again; nothing of it has landed",
        )
    _check_separator(names, name, text, dialect)
    if not header and not second and len(head) < HEAD:
        return
    example = _read_names(first if header else second, parsing)
    width = max(len(names), len(example)) if not any(example[len(names) :]) else len(names)
    named = count_named(names)
    columns = [*names, *[""] * (width - len(names))]
    source: Any = stream
    if codecs.lookup(dialect.encoding).name != "utf-8":
        source = pa.transcoding_input_stream(pa.PythonFile(stream, "r"), dialect.encoding, "utf-8")
    passed = above if header else above + first
    source.read(len(passed.encode()))
    odd = _Odd(len(names), len(LINE_END.findall(passed)))
    parsing.invalid_row_handler = odd.add
    options = pacsv.ReadOptions(
        column_names=columns,
        block_size=BLOCK,
        use_threads=False,  # otherwise rows of another width have no number
    )
    texts = pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    rows, last = 0, list[str]()
    try:
        for batch in pacsv.open_csv(source, read_options=options, parse_options=parsing, convert_options=texts):
            rows += batch.num_rows
            odd.check(name, rows)
            table = pa.Table.from_batches([batch])
            if any(table.column(place).null_count < table.num_rows for place in range(named, width)):
                raise SourceInvalid(
                    "A column without a name has values.",
                    where=name,
                    got=f"{width - named} columns without a name behind {columns[named - 1]!r}",
                    todo="name it in the header, or leave it out",
                )
            last = [value for [value] in table.slice(rows and table.num_rows - 1).to_pydict().values() if value]
            yield table.select(range(named)) if named < width else table
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        if "Empty CSV" not in str(error):
            raise _explain(name, dialect.encoding, head, error) from error
    if any("\n" in value for value in last) and stream.quotes % 2 and not dialect.escape:
        raise never_closed(name, f"line breaks in the last row, and {stream.quotes:,} quotation marks")
    odd.finish(name, rows, is_cut=stream.last.strip(b"\0")[-1:] not in (b"\r", b"\n"))
    if odd.texts:
        yield pa.table({UNPARSED: odd.texts})


class _Odd:
    """The rows of a CSV file that have another number of values than its header has names."""

    def __init__(self, width: int, above: int) -> None:
        self.width = width
        self.above = above  # lines before the first row
        self.texts: list[str] = []
        self.lines = 0
        self.last = ""
        self.first = ""
        self.is_narrow = False
        self.number = 0

    def add(self, row: pacsv.InvalidRow) -> str:
        """Keep where a row is, and not what it says: no contract knows which of its values are personal."""
        self.lines += 1 + len(LINE_END.findall(row.text))
        self.number, self.is_narrow = row.number, row.actual_columns < self.width
        line = row.number + self.above
        self.first = self.first or f"line {line:,} has {row.actual_columns} values"
        if len(self.texts) <= MOST_BAD:
            self.texts.append(f"line {line} with {row.actual_columns} of {self.width} values")
        return "skip"

    def check(self, name: str, rows: int) -> None:
        """Raise SourceInvalid if no file has as many bad rows as have been read."""
        if self.lines > MOST_BAD:
            self._refuse(name, rows)

    def finish(self, name: str, rows: int, is_cut: bool) -> None:
        """Raise SourceInvalid if too many rows are bad, or if the file ends within one."""
        if self.texts and is_cut and self.is_narrow and self.number >= rows + len(self.texts):
            raise damaged_file(name, ValueError(f"the last line ends within a row: {self.first}, not {self.width}"))
        if self.lines > max(FEW_BAD, MAX_BAD * rows) or (self.lines and self.lines >= rows):
            self._refuse(name, rows)

    def _refuse(self, name: str, rows: int) -> None:
        bad = len(self.texts)
        raise SourceInvalid(
            "Rows of the file have another number of values than its header.",
            where=name,
            got=f"{bad:,} of {rows + bad:,} rows read; {self.first}, the header has {self.width}",
            expected=f"at most {MAX_BAD:.0%} such rows, which are quarantined",
            todo="correct the header, or put values that contain the separator or a line break in quotation marks",
        )


def count_named(names: Sequence[str]) -> int:
    """The number of columns without those at the end that have no name, but at least one."""
    return max((place for place, name in enumerate(names, start=1) if name.strip()), default=1)


def split_head(text: str, dialect: Dialect) -> tuple[str, str, str]:
    """The beginning of a text: what is above the first record, the first record, and the second."""
    mark = re.escape(dialect.separator)
    value = r"\\.|" if dialect.escape else ""
    field = rf'(?:"(?:{value}""|[^"])*+"[^{mark}\r\n]*+|[^{mark}\r\n]*+)'
    record = re.compile(rf"{field}(?:{mark}{field})*+(?:\r\n|\r|\n|\Z)", re.DOTALL)
    position = 0
    for _ in range(dialect.skip_lines):
        position = (
            found.end() if (found := re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)").match(text, position)) else position
        )
    lines = dialect.skip_lines
    while blank := re.compile(r"[ \t]*(?:\r\n|\r|\n)").match(text, position):
        lines, position = lines + 1, blank.end()
    first = record.match(text, position)
    second = record.match(text, first.end()) if first else None
    return text[:position], first[0] if first else "", second[0] if second else ""


def _read_names(record: str, parsing: pacsv.ParseOptions) -> list[str]:
    if not record.strip():
        return []
    line = io.BytesIO(record.rstrip("\r\n").encode() + b"\n")
    found: list[str] = pacsv.read_csv(line, parse_options=parsing).column_names
    return found


def _check_separator(names: Sequence[str], where: str, text: str, dialect: Dialect) -> None:
    """Raise SourceInvalid if the header is one name that contains another separator."""
    if len(names) > 1 or not any(mark in names[0] for mark in SHOWN):
        return
    found = find_dialect(text).separator
    if found != dialect.separator and found in names[0]:
        raise SourceInvalid(
            f"The file's values are not separated by {SHOWN.get(dialect.separator, repr(dialect.separator))}.",
            where=where,
            got=f"one column, {names[0][:80]!r}",
            expected=f"columns separated by {SHOWN.get(dialect.separator, repr(dialect.separator))}",
            todo=f"if all files are separated by {SHOWN[found]}, set ingest.source.separator to {found!r}",
        )


def _explain(where: str, encoding: str, head: bytes, error: Exception) -> SourceInvalid:
    """The error for CSV that cannot be parsed to its end."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in text:
        return not_text(where, encoding, head, text)
    if "straddling" in text:
        return never_closed(where, f"a row of more than {BLOCK >> 20} MB")
    return damaged_file(where, error)


def never_closed(where: str, got: str) -> SourceInvalid:
    """The error for a quoted value that swallows the rows below it."""
    return SourceInvalid(
        "A quotation mark of the file is never closed.",
        where=where,
        got=got,
        expected="a second quotation mark behind each value that begins with one",
        todo="correct the file; nothing of it has landed",
    )


def not_text(where: str, encoding: str, head: bytes, got: str) -> SourceInvalid:
    """The error for a file that is not text in the expected encoding: another encoding, or damage."""
    likely = find_encoding(head)
    hint = f", such as {likely}, which it looks like" if likely not in ("utf-8", encoding) else ""
    return SourceInvalid(
        f"The file is not {encoding.upper()} text: it has another encoding, or is damaged.",
        where=where,
        got=got.splitlines()[0],
        expected=f"text in {encoding.upper()}",
        todo=f"deliver it in {encoding.upper()}, or set ingest.source.encoding{hint}",
    )


def read_lines(stream: Stream, name: str, column: str, encoding: str = "utf-8") -> Iterator[pa.Table]:
    """A text file's lines in one column, slice by slice, stripped of whitespace; an empty line is null.

    Raises SourceInvalid for a line of LINE_CHARACTERS or more: a small packed file may unpack to one line of any size.
    """
    head = stream.peek(HEAD)
    encoding = read_mark(head) or encoding
    try:
        with io.TextIOWrapper(stream, encoding) as file:
            read = iter(lambda: file.readline(LINE_CHARACTERS), "")
            while lines := list(itertools.islice(read, SLICE_ROWS)):
                if longest := next((line for line in lines if len(line) == LINE_CHARACTERS), None):
                    raise SourceInvalid(
                        "A line of the file is too long.",
                        where=name,
                        got=f"a line that begins with {longest[:40]!r}",
                        expected=f"lines of fewer than {LINE_CHARACTERS:,} characters",
                        todo="deliver one record per line",
                    )
                yield pa.table({column: pa.array([line.strip() or None for line in lines], pa.string())})
    except UnicodeDecodeError as error:
        raise not_text(name, encoding, head, str(error)) from error


def read_parquet(file: Any) -> Iterator[pa.Table]:
    """A Parquet file's rows, slice by slice."""
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(place) for place in range(parquet.metadata.num_row_groups)]
        row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        for batch in parquet.iter_batches(max(1, min(SLICE_ROWS, SLICE_BYTES // max(1, row_bytes)))):
            batch.validate(full=True)  # text of a damaged file may not be UTF-8
            _check_instants(batch)
            yield _without_views(pa.Table.from_batches([batch]))


def _check_instants(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid for instants beyond the range of microseconds: DuckDB cannot read a file with one."""
    for column in batch.columns:
        if pa.types.is_timestamp(column.type) and column.type.unit in ("s", "ms"):
            column.cast(pa.timestamp("us", column.type.tz))


def _without_views(table: pa.Table) -> pa.Table:
    """Convert view columns of text and bytes, which Arrow cannot filter yet, to the plain layout."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))
