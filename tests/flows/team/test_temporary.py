"""The temporary Prefect server of a command, in a process of its own as a user starts it."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

RUN = """
from flows.config.settings import load_settings, prepare_environment
prepare_environment(load_settings())
from flows.team.temporary import temporary_server
with temporary_server():
    from prefect import flow, get_run_logger, task

    @task
    def step():
        get_run_logger().warning("a line of the log")

    @flow
    def outer():
        step()

    outer()
    import httpx
    from prefect.settings import PREFECT_API_URL
    page = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{PREFECT_API_URL.value()}/flows/filter", headers=page)
import sys
print(any(name.startswith("prefect.server") for name in sys.modules), answer.headers.get("access-control-allow-origin"))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"NIGHTJAR_HOME": str(tmp_path), "MARK": str(tmp_path)}


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True)


def list_processes(mark: str) -> list[psutil.Process]:
    """The processes of a test, found by an environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_runs_at_once_are_recorded_whole_their_servers_end_with_them_and_old_runs_are_deleted(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, [environment] * 2))  # each would create the database
    # The server is not imported into the run's process, and answers no web page.
    assert [one.stdout for one in done] == ["False None\n"] * 2, [one.stderr for one in done]
    database = tmp_path / "prefect/prefect.db"
    assert read_recorded(database) == (2, 2, 2)
    assert list_processes(environment["MARK"]) == []
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update flow_run set end_time = '2020-01-01 00:00:00.000000'")
    assert run(environment).returncode == 0
    assert read_recorded(database) == (1, 1, 1)


def read_recorded(path: Path) -> tuple[int, ...]:
    """The numbers of completed flow runs and task runs, and of lines of their logs."""
    counted = ("flow_run where state_type = 'COMPLETED'", "task_run where state_type = 'COMPLETED'",
               "log where message = 'a line of the log'")  # fmt: skip
    with closing(sqlite3.connect(path)) as database:
        return tuple(database.execute(f"select count(*) from {what}").fetchone()[0] for what in counted)


def test_a_server_that_cannot_start_is_one_message(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/prefect.db").write_text("not a database")
    command = [sys.executable, "-m", "flows.cli.main", "score", "--all"]
    project = {"NIGHTJAR_PROJECT": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment | project, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: ServiceUnreachable: The temporary Prefect server did not start.\n" in done.stderr
    assert f"where: {tmp_path / 'prefect'}" in done.stderr
    assert list_processes(environment["MARK"]) == []
