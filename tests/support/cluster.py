"""A real Dask cluster on loopback: a scheduler and workers, each a process that can be killed."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from network import find_free_port

SECRETS = ("NIGHTJAR_", "PREFECT_", "MLFLOW_", "AWS_")


class Cluster:
    """`workers` are running processes; the address is the scheduler's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"tcp://127.0.0.1:{find_free_port()}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--host", self.address, "--no-dashboard")

    def add_workers(self, count: int) -> None:
        preload = str(Path(__file__).with_name("slow_worker.py"))
        options = ("--no-nanny", "--no-dashboard", "--nthreads", "1", "--preload", preload)
        scratch = ("--local-directory", str(self.folder))
        self.workers += [self._start("worker", self.address, *options, *scratch) for _ in range(count)]

    def wait_for_workers(self, count: int, timeout_s: float = 120) -> None:
        from distributed import Client

        with Client(self.address, timeout=timeout_s, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=timeout_s)

    def let(self, parts: int) -> None:
        """Let this many parts begin; see slow_worker."""
        for _ in range(parts):
            (self.folder / f"let-part-{secrets.token_hex(8)}").touch()

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Without anything in the environment that says where the stores are."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
        environment |= {"PREFECT_HOME": str(self.folder / "prefect"), "TMPDIR": str(self.folder), "DO_NOT_TRACK": "1"}
        with (self.folder / "cluster.log").open("ab") as log:
            command = [sys.executable, "-m", "dask", *arguments]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@contextmanager
def start_cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(folder)
    try:
        cluster.add_workers(workers)
        cluster.wait_for_workers(workers)
        yield cluster
    finally:
        cluster.stop()


def wait_until(happened: object, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
