"""The rows of JSON lines: one object per line, all values as text, written as in the file; nested ones as JSON."""

import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from tasks.errors import SourceInvalid

ROWS = 1 << 14  # per slice


def read_json_lines(stream: IO[bytes], name: str, encoding: str) -> Iterator[pa.Table]:
    """The objects of a file, read twice: first all keys, which are the columns, then the rows."""
    with io.TextIOWrapper(stream, encoding) as file:
        columns = list(dict.fromkeys(key for row in _parse(file, name) for key in row))
        file.seek(0)
        rows = _parse(file, name)
        while found := list(islice(rows, ROWS)):
            yield pa.table({key: pa.array([_to_text(row.get(key)) for row in found], pa.string()) for key in columns})


def _parse(file: io.TextIOWrapper, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = json.loads(line.lstrip("\ufeff"), parse_float=str, parse_int=str, parse_constant=str)
            except (json.JSONDecodeError, RecursionError) as error:
                raise _refuse(name, number, getattr(error, "msg", "too many nested brackets"), line) from error
            if not isinstance(row, dict):
                raise _refuse(name, number, f"JSON that begins with {line.lstrip()[0]!r}", line)
            yield row


def _to_text(value: object) -> str | None:
    if isinstance(value, str) or value is None:
        return value or None
    return json.dumps(value, ensure_ascii=False)


def _refuse(name: str, number: int, got: str, line: str) -> SourceInvalid:
    is_cut = number > 1 and not line.endswith("\n")
    return SourceInvalid(
        "The file is truncated or damaged." if is_cut else "The file is not JSON lines.",
        where=f"{name}, line {number:,}",
        got=got,
        expected='one object per line, such as {"id": "a", "amount": 1.5}',
        todo="deliver the file again" if is_cut else "write each record as one line, without a list around them",
    )
