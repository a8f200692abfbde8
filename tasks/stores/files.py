"""Files of a folder or an object store."""

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


UNFINISHED = ".new"  # the end of a file's name while it is being written


PIECE_BYTES = 8 << 20  # of a file on its way to or from an object store, held in memory


# Stores that have no folders; fsspec would make the bucket instead, also one whose name is mistyped.
BUCKETS = {"s3", "gs", "gcs", "abfs", "az"}


@contextmanager
def _appear(path: str) -> Iterator[IO[bytes]]:
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
def _passing_over_missing() -> Iterator[None]:
    """Go on where there is no such file or folder; a bucket that is not there is another matter."""
    try:
        yield
    except FileNotFoundError as error:
        if type(error.__cause__).__name__ == "NoSuchBucket":
            raise
