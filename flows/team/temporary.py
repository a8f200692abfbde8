"""The Prefect server of a run for which none is configured: started by the command, ended with it.

Prefect can start one itself, but then imports its whole server into the run's process, and runs services (automations,
stored events) that a single run does not need: about a fifth of the CPU time of a night. The servers of several runs
share one database in PREFECT_HOME.
"""

import asyncio
import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock

from flows.config.garbage import collect_less_often
from flows.config.settings import load_settings

# The task run recorder, which fills the run's page, stays on.
NOT_NEEDED = (
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION",  # imports Prefect's integrations, though no block is registered
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED",
    "PREFECT_SERVER_UI_ENABLED",
)


@contextmanager
def temporary_server() -> Iterator[None]:
    """Give the enclosed flows a Prefect server, unless one is configured or a Dask cluster needs one it can reach.

    It starts in the background. Its socket accepts connections at once, so the first request waits until it is ready.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value() or load_settings().task_runner != "threads":
        yield
        return
    with temporary_settings({PREFECT_API_URL: _start()}):
        yield


@cache
def _start() -> str:
    """Start the server and return its URL. It ends after all that was started later, such as the sending of logs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "flows.team.temporary", str(listening.fileno())]
        environment = os.environ | dict.fromkeys(NOT_NEEDED, "false") | {"PREFECT__SERVER_EPHEMERAL": "1"}
        environment |= {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}  # not web pages
        environment.pop("PREFECT_SERVER_API_AUTH_STRING", None)  # of another server
        server = subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])  # noqa: S603

    @atexit.register
    def end() -> None:
        server.terminate()
        server.wait()

    return f"http://127.0.0.1:{port}/api"


def serve(socket_number: int) -> None:
    """Run the server on an open socket, after bringing its database up to date and deleting runs older than 90 days.

    One process at a time: migrations of several at once undo each other.
    """
    import uvicorn

    collect_less_often()
    with FileLock(Path(os.environ["PREFECT_HOME"]) / "start.lock"):
        asyncio.run(prepare_database())
    uvicorn.run("prefect.server.api.server:create_app", factory=True, fd=socket_number, log_level="error")


async def prepare_database() -> None:
    """Create or migrate Prefect's database, and delete old runs with their logs and artifacts, or it would only grow.

    Old: PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD.
    """
    from prefect.server.database import provide_database_interface
    from prefect.server.services.db_vacuum import vacuum_old_flow_runs

    database = provide_database_interface()
    await database.create_db()
    await vacuum_old_flow_runs(db=database)
    await (await database.engine()).dispose()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
