"""The Prefect server of a run for which none is configured: started by the command, ended with it.

Prefect can start one itself, but then imports its whole server into the run's process, and runs services (automations,
stored events) that a single run does not need: about a fifth of the CPU time of a night.
"""

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from flows.config.settings import load_settings

# The task run recorder, which fills the run's page, stays on.
NOT_NEEDED = (
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED",
    "PREFECT_SERVER_UI_ENABLED",
)


@contextmanager
def temporary_server() -> Iterator[None]:
    """Give the flows within a Prefect server, unless one is configured or a Dask cluster needs one it can reach.

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
        app = ["--factory", "prefect.server.api.server:create_app", "--fd", str(listening.fileno())]
        command = [sys.executable, "-m", "uvicorn", *app, "--log-level", "error"]
        environment = os.environ | dict.fromkeys(NOT_NEEDED, "false") | {"PREFECT__SERVER_EPHEMERAL": "1"}
        environment.pop("PREFECT_SERVER_API_AUTH_STRING", None)  # of another server
        server = subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])  # noqa: S603

    @atexit.register
    def end() -> None:
        server.terminate()
        server.wait()

    return f"http://127.0.0.1:{port}/api"
