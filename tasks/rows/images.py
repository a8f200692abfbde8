"""The pixels of an image column, stored in Arrow as tasks/sources/images.py describes. N images of P pixels."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.columns import Column
from tasks.errors import BatchRejected


def describe_shape(shape: tuple[int, int] | None) -> str:
    """A shape as text."""
    return f"images of {shape[0]} x {shape[1]} pixels" if shape else "no images"


def read_pixels(column: pa.ChunkedArray, described: Column) -> npt.NDArray[np.uint8]:
    """The pixels (N, P) of a column's images, which must not be null. Raises BatchRejected for a wrong size."""
    rows, columns = described.shape
    size = rows * columns
    try:
        chunks = column.cast(pa.binary(size)).chunks
    except pa.ArrowInvalid as error:
        raise BatchRejected(
            "An image has the wrong size.",
            where=f"column {described.name}",
            got=str(error),
            expected=f"{size} bytes: {rows} rows of {columns} pixels, one byte each",
            todo="send images of the size that the detector was trained on",
        ) from error
    flat = [np.frombuffer(c.buffers()[1] or b"", np.uint8)[c.offset * size :][: len(c) * size] for c in chunks]
    return np.concatenate([np.empty(0, np.uint8), *flat]).reshape(len(column), size)
