"""The pixels of an image column, stored in Arrow as tasks/sources/images.py describes, and images that are drawn.

N images of P pixels.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.columns import Column
from tasks.errors import BatchRejected

DRAWN = ("noise", "circles", "crosses", "lines", "rectangles")  # what no detector of images has learnt
USUAL_SIDE = 28  # pixels, for which the sizes of shapes are given


def draw_images(kind: str, n: int, shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw images (n, *shape) of one kind of DRAWN: uniform noise, or white outlines of random size and position."""
    if kind == "noise":
        return rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    unit = min(shape) / USUAL_SIDE
    down, across = np.mgrid[: shape[0], : shape[1]][:, None]
    place = rng.uniform(10, 18, (2, n, 1, 1))
    down, across = down - place[0] * shape[0] / USUAL_SIDE, across - place[1] * shape[1] / USUAL_SIDE
    angle = rng.uniform(0, np.pi, (n, 1, 1))
    along, aside = down * np.cos(angle) + across * np.sin(angle), across * np.cos(angle) - down * np.sin(angle)
    size, thickness = unit * rng.uniform(6, 10, (n, 1, 1)), unit * rng.uniform(1, 1.5, (n, 1, 1))
    bar, crossbar = np.maximum(np.abs(aside), np.abs(along) - size), np.maximum(np.abs(along), np.abs(aside) - size)
    distances = {
        "circles": np.abs(np.hypot(down, across) - size),
        "crosses": np.minimum(bar, crossbar),
        "lines": bar,
        "rectangles": np.abs(np.maximum(np.abs(along), 2 * np.abs(aside)) - size),
    }
    white: npt.NDArray[np.uint8] = (255 * (distances[kind] < thickness)).astype(np.uint8)
    return white


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
