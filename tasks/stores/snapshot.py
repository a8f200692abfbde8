"""The warehouse as a web server reads it: through pooled connections, and of a DuckDB file through a copy.

An open DuckDB file keeps every writer out, so a page must not hold it open. `Snapshot.refresh` copies the file after it
has changed, which takes milliseconds, and pages read the copy: nights and pages never wait for each other.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock

from tasks.errors import NightjarError
from tasks.stores.faults import writing
from tasks.stores.warehouse import LOCK_TIMEOUT_S, Warehouse, list_files, open_engine

CONNECTIONS = 8
REST = 4  # times as long as the last copy took, before the next copy: of a large file at most a fifth of the time


class Snapshot:
    """Where to read a warehouse; safe for threads. folder: for copies, which go when the process ends."""

    def __init__(self, warehouse: Warehouse, folder: Path) -> None:
        """Raises what Warehouse.begin_reading raises."""
        self._warehouse = warehouse
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] = ()
        self._rests_until = 0.0
        if warehouse.engine.dialect.name == "duckdb":
            self._folder, lock = _make_folder(folder)
            weakref.finalize(self, os.close, lock)
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self.refresh()
        else:
            self._current: Warehouse = _Pooled(warehouse.url, warehouse.lost_after_s)

    def latest(self) -> Warehouse:
        """The newest state that can be had at once. A night that is being published does not hold a page up."""
        if self._is_behind() and time.monotonic() >= self._rests_until and self._lock.acquire(blocking=False):
            began = time.monotonic()
            try:
                with suppress(NightjarError):  # somebody writes, or the disk is full: a later page tries again
                    self._copy(0.0)
            finally:
                self._rests_until = time.monotonic() + REST * (time.monotonic() - began)
                self._lock.release()
        return self._current

    def refresh(self, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Wait for a state that holds everything written so far."""
        with self._lock:
            if self._is_behind():
                self._copy(lock_timeout_s)

    def close(self) -> None:
        """Remove the copy. Nobody may read any more."""
        self._current.reading_engine.dispose()
        if self._warehouse.engine.dialect.name == "duckdb":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_behind(self) -> bool:
        return self._warehouse.engine.dialect.name == "duckdb" and self._seen != self._look()

    def _look(self) -> tuple[Any, ...]:
        return tuple(_stat(path) for path in list_files(Path(str(self._warehouse.engine.url.database))))

    def _copy(self, lock_timeout_s: float) -> None:
        seen = self._look()
        with writing(self._folder):
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                copy = self._warehouse.copy_files(folder, lock_timeout_s)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        url = self._warehouse.engine.url.set(database=str(copy))
        fresh = _Pooled(url.render_as_string(hide_password=False), self._warehouse.lost_after_s)
        weakref.finalize(fresh, shutil.rmtree, folder, ignore_errors=True)  # once its last page is done
        self._current, self._seen = fresh, seen  # what was written since it was looked at is seen next time


class _Pooled(Warehouse):
    """A warehouse that is only read, through connections that stay open. A page's statements see one state of it."""

    @contextmanager
    def begin_reading(
        self, lock_timeout_s: float = LOCK_TIMEOUT_S, isolation_level: str | None = "REPEATABLE READ"
    ) -> Iterator[sa.Connection]:
        with super().begin_reading(lock_timeout_s, isolation_level) as connection:
            yield connection

    @cached_property
    def reading_engine(self) -> sa.Engine:
        return open_engine(self.url, to_write=False, connections=CONNECTIONS)


def _make_folder(parent: Path) -> tuple[Path, int]:
    """A folder of this process, and the lock that keeps it; those of processes that were killed go.

    A lock and no process number: in a container each desk has the number of the one before.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(parent / ".lock", timeout=LOCK_TIMEOUT_S):  # nobody removes a folder that has no lock yet
        for left in parent.iterdir():
            with suppress(OSError):  # no folder, or another desk has it
                lock = _lock_folder(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        folder = Path(tempfile.mkdtemp(dir=parent))
        return folder, _lock_folder(folder)


def _lock_folder(folder: Path) -> int:
    """Lock a folder until this process ends. Raises OSError if another has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
