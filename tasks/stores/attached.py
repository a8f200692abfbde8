"""DuckDB files, attached to databases in memory that stay: attaching takes 2 ms, opening a file as a database 15 ms."""

import os
from collections import deque

import duckdb
from duckdb_engine import ConnectionWrapper

# By process: a forked process does not have the threads of its parent's databases.
_idle: dict[int, deque[duckdb.DuckDBPyConnection]] = {}


class AttachedFile(ConnectionWrapper):  # type: ignore[misc] # untyped
    """SQLAlchemy's connection to a DuckDB file, which nothing in this process keeps open once it is closed.

    Each database in memory has one file at a time, so that the catalog lists no other file's tables.
    """

    closed: bool = False

    def __init__(self, path: str, read_only: bool) -> None:
        self._waiting = _idle.setdefault(os.getpid(), deque())
        try:
            self._memory = self._waiting.pop()
        except IndexError:
            self._memory = duckdb.connect(":memory:")
        cursor = self._memory.cursor()
        quoted, access = path.replace("'", "''"), ", read_only" if read_only else ""
        try:
            cursor.execute(f"attach '{quoted}' as warehouse (type duckdb{access}); use warehouse")
        except BaseException:
            self._memory.close()
            raise
        super().__init__(cursor)

    def close(self) -> None:
        """Detach the file, which moves its log into it."""
        if self.closed:
            return
        try:
            self.execute("use memory; detach warehouse")
            super().close()
        except duckdb.Error:  # such as a full disk: the log stays, and the next connection reads it
            self._memory.close()
            self.closed = True
        else:
            self._waiting.append(self._memory)
