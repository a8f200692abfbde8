"""Runs of the command line as processes of their own, made to be killed from outside.

A fork server has imported everything beforehand, so a run begins at once; otherwise it is a process like any other:
a session of its own, its own exit code, its words in a file.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Also what is otherwise imported in the middle of a run: half of a short run's time.
PRELOADED = [
    "flows.nightly",
    "flows.training",
    "flows.backfill",
    "alembic.command",
    "duckdb_engine",
    "git",
    "great_expectations",
    "mlflow.pyfunc.scoring_server",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "prefect.flow_engine",
    "pyarrow.dataset",
    "s3fs",
    "sklearn.ensemble",
    "torch._dynamo",
    "victims",
]
POLL_S = 0.01


class Victim:
    """A command under way; `text` is what it has written so far."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self._process, self._log = process, log

    @property
    def text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, words: str, times: int = 1, timeout_s: float = 120) -> bool:
        """Wait until the words have been written that many times; False if it ended before."""
        deadline = time.monotonic() + timeout_s
        while self.text.count(words) < times:
            if not self.is_running or time.monotonic() > deadline:
                return self.text.count(words) >= times
            time.sleep(POLL_S)
        return True

    def wait_until_paused(self, timeout_s: float = 120) -> bool:
        """Wait until it has paused itself; False if it ended before."""
        deadline = time.monotonic() + timeout_s
        state = Path(f"/proc/{self._process.pid}/stat")
        while self.is_running and time.monotonic() < deadline:
            if state.read_text().rpartition(")")[2].split()[0] == "T":
                return True
            time.sleep(POLL_S)
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its whole process group."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, unless it has ended, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self._process.join()

    def end(self, timeout_s: float = 180) -> int:
        """Wait for its end and return its exit code."""
        self._process.join(timeout_s)
        if self.is_running:
            self.kill()
            raise TimeoutError(self.text)
        code = self._process.exitcode
        assert code is not None
        return code


def start(arguments: list[str], environment: Mapping[str, str], log: Path, pause_at: str | None = None) -> Victim:
    """Start `nightjar ARGUMENTS` in a separate session, with these variables, writing to a file.

    With `pause_at` it stops itself (SIGSTOP) at the log message that has these words, so always at the same point.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(arguments, dict(environment), str(log), pause_at))
    process.start()
    return Victim(process, log)


def _run(arguments: list[str], environment: dict[str, str], log: str, pause_at: str | None) -> None:
    os.setsid()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if pause_at:
        _pause_at(pause_at)
    from flows.cli.main import execute

    sys.exit(execute(arguments))


def _pause_at(words: str) -> None:
    make = logging.getLogRecordFactory()

    def make_or_pause(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if words in record.getMessage():
            logging.setLogRecordFactory(make)
            os.killpg(0, signal.SIGSTOP)
        return record

    logging.setLogRecordFactory(make_or_pause)
