"""Fixtures of the torture tests: a Prefect server, and a project just before a night, on either warehouse."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from network import find_free_port
from objects import ObjectStore, forget_stores
from scene import Scene, make_scene

TRIED = pytest.StashKey[Counter[tuple[str, str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIED] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of faults."""
    rows = [(*what, str(count)) for what, count in sorted(config.stash[TRIED].items())]
    if rows:
        table = [("fault", "where", "result", "count"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="module")
def prefect_url(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server that outlives killed runs; this process and its children use it."""
    home, port = tmp_path_factory.mktemp("server"), find_free_port()
    shutil.copy(prefect_database, home)
    url = f"http://127.0.0.1:{port}/api"
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # a run's output is read from its file
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "TQDM_DISABLE": "1",
    }
    with pytest.MonkeyPatch.context() as monkeypatch, (home / "log").open("wb") as log:
        for name, value in ours.items():
            monkeypatch.setenv(name, value)
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until_healthy(f"{url}/health")
        yield url
        server.terminate()
        server.wait()


def wait_until_healthy(url: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200
                return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module", params=["duckdb", "postgresql"])
def scene(request: pytest.FixtureRequest, prefect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A project just before its night, for each engine."""
    postgres = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    return make_scene(tmp_path_factory.mktemp(request.param) / "project", postgres, {"PREFECT_API_URL": prefect_url})


@pytest.fixture(scope="module")
def remote_scene(
    prefect_url: str, object_server: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """The same, with the lake in a bucket."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in object_server.environment.items():
            monkeypatch.setenv(name, value)
        forget_stores()
        variables = object_server.environment | {"PREFECT_API_URL": prefect_url}
        yield make_scene(tmp_path_factory.mktemp("s3") / "project", None, variables, object_server)


@pytest.fixture
def note(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Record a fault and its result for the table at the end."""
    return lambda fault, place, found: pytestconfig.stash[TRIED].update([(fault, place, found)])
