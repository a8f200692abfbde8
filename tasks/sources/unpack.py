"""The byte streams in a file: what is packed is unpacked, and known by its first bytes, never by its name.

gzip, bzip2, xz, Zstandard, LZ4 and zip files, also within each other; a zip gives all its members.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pyarrow as pa

from tasks.errors import SourceInvalid
from tasks.sources.arrival import PASSED_OVER

MOST_LAYERS = 5  # a file can be packed so that it unpacks to itself
HEAD = 1 << 20  # bytes that are looked at to find out what a file is
ZIP = b"PK\3\4"
PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),  # else it takes that of a gzip file, a number
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
    b"\x04\x22\x4d\x18": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "lz4"),
}
# Zip files that are no archives of data files, by a member that only they have.
NPZ, WORKBOOK = "npz", "workbook"
PARTS = {"xl/workbook.xml": WORKBOOK, "xl/workbook.bin": WORKBOOK, "content.xml": WORKBOOK}


class Stream(io.BufferedReader):
    """A buffered file that remembers the last bytes it gave, and counts quotation marks."""

    last = b""
    quotes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; all that are left if it is negative."""
        found = super().read(size)
        self.last = (self.last + found[-4:])[-4:]
        self.quotes += found.count(b'"')
        return found


def unpack(raw: Any, name: str, files: ExitStack, layers: int = 0) -> Iterator[tuple[str, Stream]]:
    """The name and content of a file or, if it is packed, of each file in it. Raises SourceInvalid."""
    if layers > MOST_LAYERS:
        raise SourceInvalid(
            "The file is packed in too many layers.",
            where=name,
            expected=f"at most {MOST_LAYERS} layers",
            todo="deliver it unpacked",
        )
    stream = files.enter_context(Stream(raw, HEAD))
    head = stream.peek(HEAD)
    for magic, unpacked in PACKED.items():
        if head.startswith(magic):
            yield from unpack(files.enter_context(unpacked(stream)), name, files, layers + 1)
            return
    if not head.startswith(ZIP):
        yield name, stream
        return
    stream = make_seekable(stream, files)
    archive = files.enter_context(zipfile.ZipFile(stream))
    if find_kind_of_zip(archive):
        stream.seek(0)
        yield name, stream
        return
    members = [member for member in archive.infolist() if is_data(member)]
    if locked := [member.filename for member in members if member.flag_bits & 1]:
        raise SourceInvalid(
            "The zip file is encrypted.", where=f"{name}, {locked[0]}", todo="deliver it without a password"
        )
    if not members:
        raise SourceInvalid(
            "The zip file holds no data.",
            where=name,
            got=", ".join(archive.namelist()[:10]) or "no members",
            expected="CSV, Parquet, JSON or text files",
        )
    for member in [member for member in members if member.file_size] or members:  # an empty one takes nothing away
        inner = files.enter_context(archive.open(member))
        yield from unpack(inner, f"{name}/{member.filename}", files, layers + 1)


def is_data(member: zipfile.ZipInfo) -> bool:
    """Whether a member of a zip file is data: no folder, hidden file or marker."""
    return not member.is_dir() and not PASSED_OVER.search(member.filename)


def find_kind_of_zip(archive: zipfile.ZipFile) -> str | None:
    """NPZ, WORKBOOK, or None for an archive of files."""
    names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return NPZ
    return next((PARTS[name] for name in names if name in PARTS), None)


def make_seekable(stream: Stream, files: ExitStack) -> Stream:
    """The stream itself, or its content in a temporary file if it cannot be read from any place."""
    if stream.seekable():
        return stream
    copy = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return files.enter_context(Stream(cast(io.RawIOBase, copy), HEAD))
