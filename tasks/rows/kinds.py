"""The kinds of columns: what the steps must know of each.

A new kind is one more line here, its records in
tasks/rows/columns.py, its slots in models/encoders.py, and its key in tasks/rows/params.py.
"""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from models.columns import Column
from tasks.rows.contract import TYPES
from tasks.rows.schema import cast_column


@dataclass(frozen=True)
class Kind:
    """How values of a kind are read from JSON, shown to people, and replaced in a synthetic example.

    read_json: one value that is not missing; raises TypeError, ValueError or OverflowError. arrow: the type of what it
    returns; finish: these values (N,) as a night has them. show: an expected value, in the record's own units.
    """

    read_json: Callable[[Column, Any], object]
    accepts: Callable[[Column], str]
    arrow: Callable[[Column], pa.DataType]
    example: object | Callable[[Column], object]
    show: Callable[[Column, float], Any]
    finish: Callable[[pa.Array], pa.Array | pa.ChunkedArray] = lambda values: values
    is_text: bool = False  # worth reading dictionary-encoded
    is_needed: bool = False  # a missing value cannot be filled in

    def make_example(self, column: Column) -> object:
        """A synthetic value of the right type."""
        return self.example(column) if callable(self.example) else self.example


def plain(value: Any) -> Any:
    """A value as JSON can hold it and people read it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()  # as in the vocabulary of a boolean column
    return value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else value


def round_value(value: float) -> float:
    """A number as it is shown, to six digits."""
    return float(f"{value:.6g}")


def _read_number(_: Column, value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _read_category(_: Column, value: object) -> str:
    """Write the value as Arrow casts typed columns to text: 5, 5.5, true."""
    if isinstance(value, float):
        return str(pa.scalar(value).cast(pa.string()))
    return str(value).lower() if isinstance(value, bool | int) else _read_text(_, value)


def _read_text(_: Column, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # raises for lone surrogates
    return value


def _read_image(column: Column, value: object) -> bytes:
    pixels = base64.b64decode(_read_text(column, value), validate=True)
    if len(pixels) != math.prod(column.shape):
        raise ValueError
    return pixels


def _accept_image(column: Column) -> str:
    rows, columns = column.shape
    return f"{rows * columns} bytes as base64: {rows} rows of {columns} pixels, 1 byte each"


def _show_category(column: Column, code: float) -> str:
    if 0 <= int(code) < len(column.vocabulary):
        return column.vocabulary[int(code)]
    return "unseen" if int(code) == column.unseen else "rare"


def _show_number(_: Column, value: float) -> Any:
    return plain(round_value(value))


NUMBER = Kind(_read_number, lambda _: "a 64-bit number", lambda _: pa.float64(), 1.0, _show_number)
KINDS: dict[str, Kind] = {
    "numeric": NUMBER,
    "log_numeric": NUMBER,
    "categorical": Kind(
        _read_category, lambda _: "a text, a number or a boolean", lambda _: pa.string(), "other", _show_category,
        is_text=True,
    ),
    "datetime": Kind(
        _read_text, lambda _: "a date and time in ISO 8601", lambda _: pa.string(), datetime(2026, 1, 1, 12),
        lambda _, hour: f"around {int(hour) % 24:02d}:00 UTC",
        finish=lambda texts: cast_column(texts, TYPES["timestamp"]),
    ),
    "image": Kind(
        _read_image, _accept_image, lambda column: pa.binary(math.prod(column.shape)),
        lambda column: bytes(math.prod(column.shape)), _show_number, is_needed=True,
    ),
    "sequence": Kind(
        _read_text, lambda _: "a text", lambda _: pa.string(), "other", _show_number, is_text=True, is_needed=True,
    ),
    "key": Kind(
        _read_category, lambda _: "a text, a number or a boolean", lambda _: pa.string(), "other", _show_number,
        is_text=True,
    ),
}  # fmt: skip
