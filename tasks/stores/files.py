"""The files below one root: a folder, an object store, or whatever else fsspec reaches.

The lake's zones lie in one such place; so do the files of MLflow, which backup and restore copy.
"""

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import pandas as pd

from tasks.errors import ParamsInvalid, hide_password
from tasks.stores.faults import list_store_faults, reaching_lake

T = TypeVar("T")


UNFINISHED = ".new"  # the end of a file's name while it is being written


PIECE_BYTES = 8 << 20  # of a file on its way to or from an object store, held in memory


# Stores that have no folders; fsspec would make the bucket instead, also one whose name is mistyped.
BUCKETS = {"s3", "gs", "gcs", "abfs", "az"}


@contextmanager
def appear(path: str) -> Iterator[IO[bytes]]:
    """A local file that gets its name when all of it is on the disk; an exception leaves nothing."""
    new = Path(f"{path}.{secrets.token_hex(4)}{UNFINISHED}")
    file = new.open("xb")
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        with suppress(OSError):  # on a full disk closing fails once more, and would hide why
            file.close()
        raise


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items while the next one is already being read on another thread."""
    with ThreadPoolExecutor(1) as pool:
        done = object()
        pending = pool.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


@contextmanager
def passing_over_missing() -> Iterator[None]:
    """Go on where there is no such file or folder; a bucket that is not there is another matter."""
    try:
        yield
    except FileNotFoundError as error:
        if type(error.__cause__).__name__ == "NoSuchBucket":
            raise


class Files:
    """The files below one root, a folder or any fsspec URL. A file appears whole, or not at all."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        try:
            # What another process has written since must be seen: listings are not kept. Whoever reads Parquet asks for
            # the ranges it needs; reading ahead of those fetched a part four times for one of its columns.
            options = {"use_listings_cache": False, "default_cache_type": "none"}
            self.fs, self.base = fsspec.core.url_to_fs(self.root, **options)
        except (ImportError, ValueError) as error:
            raise ParamsInvalid(
                "The lake cannot be opened.",
                where=hide_password(self.root),
                got=str(error),
                expected="a folder, or a URL of a file system that fsspec knows and whose package is installed",
                todo="correct NIGHTJAR_LAKE, or install the package; for s3:// pip install 'nightjar[s3]'",
            ) from error
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else {*self.fs.protocol}
        self.is_local, self._has_folders = "file" in protocols, not protocols & BUCKETS
        self.faults = list_store_faults() if "s3" in protocols else (OSError,)

    def full(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self.base}/{path}"

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file, its folders made first. It appears at the path whole, at the end, or not at all."""
        full = self.full(path)
        with ExitStack() as closing:
            with self.reaching(path):
                if self._has_folders:
                    self.fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
                file = closing.enter_context(appear(full) if self.is_local else self._upload(full))
            yield file
            with self.reaching(path):
                closing.close()

    @contextmanager
    def _upload(self, full: str) -> Iterator[IO[bytes]]:
        """A file of a store that is there when it is closed; an exception leaves nothing."""
        file = self.fs.open(full, "wb", block_size=PIECE_BYTES)
        try:
            yield file
            file.close()
        except BaseException:
            with suppress(*self.faults):
                file.discard()
            file.forced = True  # for fsspec it is flushed: closing it, as its end does, sends nothing more
            file.close()
            raise

    def reaching(self, path: str) -> AbstractContextManager[None]:
        """Turn whatever keeps a file from being read or written into ServiceUnreachable."""
        return reaching_lake(self.root, path, self.faults)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """A file's bytes, to be read in pieces."""
        with self.reaching(path), self._open_ahead(path) as file:
            yield file

    def files(self, folder: str) -> dict[str, int]:
        """The bytes of every file below a folder, by path; none where there is no such folder."""
        found: dict[str, Any] = {}
        with self.reaching(folder), passing_over_missing():
            found = self.fs.find(self.full(folder), detail=True)
        return {str(name).removeprefix(f"{self.base}/"): int(info["size"]) for name, info in sorted(found.items())}

    def modified(self, path: str) -> datetime:
        """When a file was last written."""
        with self.reaching(path):
            moment: datetime = self.fs.modified(self.full(path))
        return moment.astimezone(UTC)

    def remove(self, path: str) -> None:
        """Delete a file, if it is still there, and on disk its folder, if that leaves it empty."""
        with self.reaching(path), passing_over_missing():
            self.fs.rm_file(self.full(path))
            folder = Path(self.full(path)).parent
            if self.is_local and not any(folder.iterdir()):
                folder.rmdir()

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place of the old one, in one step."""
        with self.create(path) as file, self.reaching(path):
            file.write(data)

    def read(self, path: str) -> bytes:
        """A small file, whole."""
        with self.reaching(path):
            return bytes(self.fs.cat_file(self.full(path)))

    def hash_file(self, path: str) -> str | None:
        """The sha256 of a file's bytes, or None where there is none."""
        with self.reaching(path), passing_over_missing(), self._open_ahead(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    def _open_ahead(self, path: str) -> Any:
        return self.fs.open(self.full(path), "rb", block_size=PIECE_BYTES, cache_type="readahead")

    def replace_frame(self, path: str, frame: pd.DataFrame) -> None:
        """Put a small table, as Parquet, in place of the old one in one step."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        self.replace(path, buffer.getvalue())

    def read_frame(self, path: str) -> pd.DataFrame:
        """A small table, whole."""
        return pd.read_parquet(io.BytesIO(self.read(path)))

    def find_file(self, path: str) -> bytes | None:
        """A small file, whole, or None where there is none."""
        with self.reaching(path), passing_over_missing():
            return bytes(self.fs.cat_file(self.full(path)))
        return None

    def glob(self, pattern: str) -> list[str]:
        """The files that a pattern fits, `*` being a name or a piece of one.

        An object store is asked once for everything below: to look into folder after folder is a request each.
        """
        if self._has_folders:
            with self.reaching(pattern):
                return [str(path).removeprefix(f"{self.base}/") for path in self.fs.glob(self.full(pattern))]
        fits = re.compile(re.escape(pattern).replace(r"\*", "[^/]*")).fullmatch
        return [path for path in self.files(pattern.partition("*")[0].rpartition("/")[0]) if fits(path)]
