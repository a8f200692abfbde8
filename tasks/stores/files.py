"""The files below one root: a folder, an object store, or any other file system that fsspec supports.

The lake's zones are stored this way, and so are MLflow's files, which backup and restore copy.
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
from glob import glob
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import pandas as pd

from tasks.errors import ParamsInvalid
from tasks.stores.faults import list_store_faults, reaching_lake

T = TypeVar("T")


UNFINISHED = ".new"  # suffix of a file while it is being written


PIECE_BYTES = 8 << 20  # held in memory while a file is uploaded or downloaded


# Stores without folders: fsspec would create the bucket instead, even one with a mistyped name.
BUCKETS = {"s3", "gs", "gcs", "abfs", "az"}


@contextmanager
def appear(path: str) -> Iterator[IO[bytes]]:
    """Write a local file that gets its name once it is complete on disk; an exception leaves nothing behind."""
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
        with suppress(OSError):  # on a full disk closing fails again, which would hide the cause
            file.close()
        raise


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items while another thread reads the next one."""
    with ThreadPoolExecutor(1) as pool:
        done = object()
        pending = pool.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


@contextmanager
def passing_over_missing() -> Iterator[None]:
    """Ignore a missing file or folder, but not a missing bucket."""
    try:
        yield
    except FileNotFoundError as error:
        if type(error.__cause__).__name__ == "NoSuchBucket":
            raise


class Files:
    """The files below one root, a folder or any fsspec URL. A file appears complete or not at all."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        try:
            # Listings are not cached, so that files of other processes are seen. Parquet readers request the ranges
            # that they need; with read-ahead, reading one column fetched a part four times.
            options = {"use_listings_cache": False, "default_cache_type": "none"}
            self.fs, self.base = fsspec.core.url_to_fs(self.root, **options)
        except (ImportError, ValueError) as error:
            raise ParamsInvalid(
                "The lake cannot be opened.",
                where=self.root,
                got=str(error),
                expected="a folder, or the URL of a file system that fsspec supports and whose package is installed",
                todo="correct NIGHTJAR_LAKE, or install the package; for s3:// pip install 'nightjar[s3]'",
            ) from error
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else {*self.fs.protocol}
        self.is_local, self._has_folders = "file" in protocols, not protocols & BUCKETS
        self.faults = list_store_faults() if "s3" in protocols else (OSError,)

    def full(self, path: str) -> str:
        """The full path in the file system."""
        return f"{self.base}/{path}"

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file, creating its folders. It appears complete when closed, or not at all."""
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
        """Write a file of a store, which appears when closed; an exception leaves nothing behind."""
        file = self.fs.open(full, "wb", block_size=PIECE_BYTES)
        try:
            yield file
            file.close()
        except BaseException:
            with suppress(*self.faults):
                file.discard()
            file.forced = True  # marks it as flushed, so that closing it sends nothing more
            file.close()
            raise

    def reaching(self, path: str) -> AbstractContextManager[None]:
        """Raise ServiceUnreachable for any failure to read or write a file."""
        return reaching_lake(self.root, path, self.faults)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file for reading in pieces."""
        with self.reaching(path), self._open_ahead(path) as file:
            yield file

    def files(self, folder: str) -> dict[str, int]:
        """The size in bytes of every file below a folder, by path; empty if the folder does not exist."""
        found: dict[str, Any] = {}
        with self.reaching(folder), passing_over_missing():
            found = self.fs.find(self.full(folder), detail=True)
        return {str(name).removeprefix(f"{self.base}/"): int(info["size"]) for name, info in sorted(found.items())}

    def modified(self, path: str) -> datetime:
        """The time of a file's last change."""
        with self.reaching(path):
            moment: datetime = self.fs.modified(self.full(path))
        return moment.astimezone(UTC)

    def remove(self, path: str) -> None:
        """Delete a file if it exists, and on disk also its folder if that is now empty."""
        with self.reaching(path), passing_over_missing():
            self.fs.rm_file(self.full(path))
            folder = Path(self.full(path)).parent
            if self.is_local and not any(folder.iterdir()):
                folder.rmdir()

    def replace(self, path: str, data: bytes) -> None:
        """Replace a small file in one step."""
        with self.create(path) as file, self.reaching(path):
            file.write(data)

    def read(self, path: str) -> bytes:
        """The content of a small file."""
        with self.reaching(path):
            return bytes(self.fs.cat_file(self.full(path)))

    def hash_file(self, path: str) -> str | None:
        """The SHA-256 of a file, or None if it does not exist."""
        with self.reaching(path), passing_over_missing(), self._open_ahead(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    def _open_ahead(self, path: str) -> Any:
        return self.fs.open(self.full(path), "rb", block_size=PIECE_BYTES, cache_type="readahead")

    def replace_frame(self, path: str, frame: pd.DataFrame) -> None:
        """Replace a small table, stored as Parquet, in one step."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        self.replace(path, buffer.getvalue())

    def read_frame(self, path: str) -> pd.DataFrame:
        """The content of a small table."""
        return pd.read_parquet(io.BytesIO(self.read(path)))

    def find_file(self, path: str) -> bytes | None:
        """The content of a small file, or None if it does not exist."""
        with self.reaching(path), passing_over_missing():
            return bytes(self.fs.cat_file(self.full(path)))
        return None

    def glob(self, pattern: str) -> list[str]:
        """The files that match a pattern, in which `*` is a name or part of one.

        An object store is listed once, with everything below: one request instead of one per folder. On disk fsspec
        takes several times as long as Python, since it asks the system about each file that does not match, too.
        """
        if self.is_local:
            with self.reaching(pattern):
                # Path.glob fails where another process removes a folder meanwhile.
                return sorted(glob(pattern, root_dir=self.base))  # noqa: PTH207
        if self._has_folders:
            with self.reaching(pattern):
                return [str(path).removeprefix(f"{self.base}/") for path in self.fs.glob(self.full(pattern))]
        fits = re.compile(re.escape(pattern).replace(r"\*", "[^/]*")).fullmatch
        return [path for path in self.files(pattern.partition("*")[0].rpartition("/")[0]) if fits(path)]
