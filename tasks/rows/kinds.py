"""The kinds of columns: all that the steps must know of each.

A new kind is one more entry here and its slots in models/encoders.py; it is named in models/columns.py and has a key of
that name in `ColumnsParams`, so that misspelt kinds are refused.
"""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import MISSING_TIME, Column
from tasks.errors import ParamsInvalid
from tasks.rows.categories import describe_categories, encode_text
from tasks.rows.contract import TYPES
from tasks.rows.images import read_pixels
from tasks.rows.params import ColumnsParams
from tasks.rows.schema import cast_column
from tasks.rows.tokens import describe_sequence, encode_tokens
from tasks.sources.images import read_shape

PARTS = ("numbers", "codes", "times", "pixels", "tokens")  # of records, see `Records`


@dataclass(frozen=True)
class Kind:
    """How a column of a kind is learnt from, and how its values are read from JSON and shown to people.

    describe: the column of this name, from the fit rows. part: the part of the records that it belongs to; a key has
    none. encode: values (N,) as this part has them, (N,) or (N, W). find_unseen: of these, the mask (N,) of rows with
    something that the fit rows do not have.

    read_json: one value that is not missing; raises TypeError, ValueError or OverflowError. arrow: the type of what it
    returns; finish: these values (N,) as a night has them. example: a value of the right type, which is synthetic.
    show: an expected value, in the record's own units.
    """

    describe: Callable[[str, pa.Table, ColumnsParams], Column]
    part: str
    encode: Callable[[pa.ChunkedArray, Column], npt.NDArray[Any]]
    read_json: Callable[[Column, Any], object]
    accepts: Callable[[Column], str]
    arrow: Callable[[Column], pa.DataType]
    example: object | Callable[[Column], object]
    show: Callable[[Column, float], Any]
    finish: Callable[[pa.Array], pa.Array | pa.ChunkedArray] = lambda values: values
    find_unseen: Callable[[npt.NDArray[Any], Column], npt.NDArray[np.bool_]] | None = None
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


def _encode_number(values: pa.ChunkedArray, _: Column) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy()
    return numbers


def _encode_time(values: pa.ChunkedArray, _: Column) -> npt.NDArray[np.int64]:
    stamps = values.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    times: npt.NDArray[np.int64] = pc.fill_null(stamps, MISSING_TIME).to_numpy()
    return times


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


def _describe_image(name: str, fit: pa.Table, _: ColumnsParams) -> Column:
    shape = read_shape(fit.schema.field(name))
    if shape is None:
        raise ParamsInvalid(
            "A column configured as an image does not contain images.",
            where=f"train.columns.image, column {name}",
            got=f"type {fit.schema.field(name).type}",
            expected="a column of type image, with a shape, in the contract",
            todo="correct train.columns, or the contract",
        )
    return Column(name, "image", shape=shape)


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


NUMBER = Kind(
    describe=lambda name, *_: Column(name, "numeric"),
    part="numbers",
    encode=_encode_number,
    read_json=_read_number,
    accepts=lambda _: "a 64-bit number",
    arrow=lambda _: pa.float64(),
    example=1.0,
    show=_show_number,
)
CATEGORY = Kind(
    describe=lambda name, fit, params: describe_categories(name, fit[name], params.max_categories),
    part="codes",
    encode=encode_text,
    find_unseen=lambda codes, column: codes == column.unseen,
    read_json=_read_category,
    accepts=lambda _: "a text, a number or a boolean",
    arrow=lambda _: pa.string(),
    example="other",
    show=_show_category,
    is_text=True,
)
KINDS: dict[str, Kind] = {
    "numeric": NUMBER,
    "log_numeric": replace(NUMBER, describe=lambda name, *_: Column(name, "log_numeric")),
    "categorical": CATEGORY,
    "datetime": Kind(
        describe=lambda name, *_: Column(name, "datetime"),
        part="times",
        encode=_encode_time,
        read_json=_read_text,
        accepts=lambda _: "a date and time in ISO 8601",
        arrow=lambda _: pa.string(),
        finish=lambda texts: cast_column(texts, TYPES["timestamp"]),
        example=datetime(2026, 1, 1, 12),
        show=lambda _, hour: f"around {int(hour) % 24:02d}:00 UTC",
    ),
    "image": Kind(
        describe=_describe_image,
        part="pixels",
        encode=read_pixels,
        read_json=_read_image,
        accepts=_accept_image,
        arrow=lambda column: pa.binary(math.prod(column.shape)),
        example=lambda column: bytes(math.prod(column.shape)),
        show=_show_number,
        is_needed=True,
    ),
    "sequence": Kind(
        describe=lambda name, fit, params: describe_sequence(name, fit[name], params.sequence[name]),
        part="tokens",
        encode=encode_tokens,
        find_unseen=lambda codes, column: (codes[:, : column.tokens.words] == column.unseen).any(axis=1),
        read_json=_read_text,
        accepts=lambda _: "a text",
        arrow=lambda _: pa.string(),
        example="other",
        show=_show_number,
        is_text=True,
        is_needed=True,
    ),
    "key": replace(CATEGORY, describe=lambda name, *_: Column(name, "key"), part="", show=_show_number),
}
