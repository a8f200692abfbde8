"""Image archives (.npz), and image columns in Arrow: one fixed-size binary value per image, pixels row by row."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.errors import SourceInvalid
from tasks.sources.arrival import damaged_file
from tasks.stores.lake import SLICE_ROWS


def read_images(file: IO[bytes], path: str) -> Iterator[pa.Table]:
    """The rows of an .npz archive, slice by slice: uint8 arrays (N, rows, columns) are images, arrays (N,) are plain.

    A column has the name of its array. Only one slice is in memory. Raises SourceInvalid for a wrong shape or type, or
    if the arrays differ in N.
    """
    try:
        with zipfile.ZipFile(file) as archive, ExitStack() as stack:
            arrays = {name.removesuffix(".npy"): stack.enter_context(archive.open(name)) for name in archive.namelist()}
            headers = {name: _read_header(member) for name, member in arrays.items()}
            _check_arrays(path, headers)
            rows = min(shape[0] for shape, _ in headers.values())
            step = _count_slice_rows(path, headers, sum(member.compress_size for member in archive.infolist()))
            for start in range(0, rows, step):
                n = min(step, rows - start)
                yield _to_table({name: _read_rows(arrays[name], n, *header) for name, header in headers.items()})
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, ValueError) as error:
        raise damaged_file(path, error) from error


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_by_column, dtype = read(member)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    if is_by_column and len(shape) > 1:
        raise ValueError("an array in column-major order, which cannot be read row by row")
    return shape, dtype


def _check_arrays(path: str, headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
    is_image = [len(shape) == 3 and dtype == np.uint8 for shape, dtype in headers.values()]
    is_plain = [len(shape) == 1 and dtype.kind in "biufU" for shape, dtype in headers.values()]
    fits = all(image or plain for image, plain in zip(is_image, is_plain, strict=True))
    if not (fits and any(is_image) and len({shape[0] for shape, _ in headers.values()}) == 1):
        raise SourceInvalid(
            "The image archive has arrays of a wrong shape or type.",
            where=path,
            got=", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in headers.items()) or "no arrays",
            expected="images as uint8 (N, rows, columns), all others as numbers or texts (N,), with the same N",
            todo="write the archive again with numpy.savez_compressed",
        )


def _count_slice_rows(path: str, headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], size: int) -> int:
    """The rows of a slice. Raises SourceInvalid if a row is too large, or an archive of `size` bytes a bomb."""
    row_bytes = sum(dtype.itemsize * math.prod(shape[1:]) for shape, dtype in headers.values())
    total = row_bytes * min(shape[0] for shape, _ in headers.values())
    if row_bytes > ROW_BYTES or (total > SAFE_BYTES and total > MAX_RATIO * size):
        raise SourceInvalid(
            "The image archive is too large when unpacked.",
            where=path,
            got=f"{row_bytes:,} bytes per row, {total:,} in all, from a file of {size:,} bytes",
            expected=f"at most {ROW_BYTES:,} bytes per row, and {MAX_RATIO} times the file's size",
            todo="deliver smaller images, or fewer per archive; texts as short as they are",
        )
    return max(1, min(SLICE_ROWS, SLICE_BYTES // max(1, row_bytes)))


def _read_rows(member: IO[bytes], n: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(member.read(n * dtype.itemsize * math.prod(shape[1:])), dtype).reshape(n, *shape[1:])


def _to_table(arrays: dict[str, npt.NDArray[Any]]) -> pa.Table:
    images = {name: (array.shape[1], array.shape[2]) for name, array in arrays.items() if array.ndim == 3}
    columns = {name: to_arrow(array) if name in images else pa.array(array) for name, array in arrays.items()}
    fields = [
        make_field(name, images[name]) if name in images else pa.field(name, column.type)
        for name, column in columns.items()
    ]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def make_field(name: str, shape: tuple[int, int]) -> pa.Field:
    """The Arrow field of images of a shape."""
    return pa.field(name, pa.binary(shape[0] * shape[1]), metadata={SHAPE: b"%d,%d" % shape})


def read_shape(field: pa.Field) -> tuple[int, int] | None:
    """The shape of a field's images, in pixels; None if it has no shape."""
    if SHAPE not in (field.metadata or {}):
        return None
    rows, columns = field.metadata[SHAPE].split(b",")
    return int(rows), int(columns)


def to_arrow(images: npt.NDArray[np.uint8]) -> pa.Array:
    """Images (N, rows, columns) as a column."""
    size = images.shape[1] * images.shape[2]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(images), [None, pa.py_buffer(images.tobytes())])


SHAPE = b"shape"
ROW_BYTES = 64 << 20  # one image of 8,192 x 8,192
SLICE_BYTES = 256 << 20  # held in memory
SAFE_BYTES, MAX_RATIO = 1 << 30, 200  # deflate packs zeros a thousandfold, images rarely tenfold
