"""Images in tables: a fixed-size binary value each, a byte a pixel, row by row; the field's metadata say the shape.

N images of P = rows x columns pixels.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.records import Column
from tasks.errors import BatchRejected

SHAPE = b"shape"


def make_field(name: str, shape: tuple[int, int]) -> pa.Field:
    """The Arrow field of images of a shape."""
    return pa.field(name, pa.binary(shape[0] * shape[1]), metadata={SHAPE: b"%d,%d" % shape})


def read_shape(field: pa.Field) -> tuple[int, int] | None:
    """The shape of a field's images, in pixels; None where it does not say one."""
    if SHAPE not in (field.metadata or {}):
        return None
    rows, columns = field.metadata[SHAPE].split(b",")
    return int(rows), int(columns)


def describe_shape(shape: tuple[int, int] | None) -> str:
    """A shape in words."""
    return f"images of {shape[0]} x {shape[1]} pixels" if shape else "no images"


def to_arrow(images: npt.NDArray[np.uint8]) -> pa.Array:
    """Images (N, rows, columns) as a column."""
    size = images.shape[1] * images.shape[2]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(images), [None, pa.py_buffer(images.tobytes())])


def read_pixels(column: pa.ChunkedArray, described: Column) -> npt.NDArray[np.uint8]:
    """The pixels (N, P) of a column's images, none of them null. Raises BatchRejected where one has another size."""
    rows, columns = described.shape
    size = rows * columns
    try:
        chunks = column.cast(pa.binary(size)).chunks
    except pa.ArrowInvalid as error:
        raise BatchRejected(
            "An image has the wrong size.",
            where=f"column {described.name}",
            got=str(error),
            expected=f"{size} bytes: {rows} rows of {columns} pixels, a byte each",
            todo="send images of the size that the detector has learnt",
        ) from error
    flat = [np.frombuffer(c.buffers()[1] or b"", np.uint8)[c.offset * size :][: len(c) * size] for c in chunks]
    return np.concatenate([np.empty(0, np.uint8), *flat]).reshape(len(column), size)
