"""`make ui`: the real Prefect and MLflow servers over the runs made here, until Ctrl-C."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.config.settings import Settings, load_settings, prepare_environment
from flows.team.waiting import answers, wait_until
from tasks.errors import ServiceUnreachable

HOST = "127.0.0.1"
START_TIMEOUT_S = 90


def start_servers(settings: Settings) -> dict[str, subprocess.Popen[bytes]]:
    """Start both servers on their usual ports; their output goes to log files in the home folder."""
    tools = Path(sys.executable).parent
    prefect = [str(tools / "prefect"), "server", "start", "--host", HOST, "--port", "4200"]
    mlflow = [str(tools / "mlflow"), "server", "--backend-store-uri", settings.mlflow_uri, "--host", HOST]
    mlflow += ["--port", "5000", "--workers", "1", "--default-artifact-root", str(settings.artifact_root)]
    return {
        f"http://{HOST}:4200": _start(prefect, settings.home_path / "prefect-server.log"),
        f"http://{HOST}:5000": _start(mlflow, settings.home_path / "mlflow-server.log"),
    }


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    # Prefect would answer the scripts of any web page.
    environment = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:4200"} | os.environ
    with log.open("wb") as file:
        # Separate process groups: Ctrl-C reaches this process first, which then ends them in order.
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)  # noqa: S603


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the page answers. Raises ServiceUnreachable when its server ends or takes too long."""
    if wait_until(lambda: answers(url), START_TIMEOUT_S, lambda: server.poll() is not None):
        return
    raise ServiceUnreachable(
        f"The server for {url} did not start.",
        got=f"exit code {server.poll()}" if server.poll() is not None else f"no answer in {START_TIMEOUT_S} s",
        todo="read the -server.log files in .nightjar; another program may be using the port",
    )


def main() -> None:
    """Show both pages until Ctrl-C."""
    settings = load_settings()
    prepare_environment(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    servers = start_servers(settings)
    try:
        for url, server in servers.items():
            wait_for(url, server)
            sys.stdout.write(f"{url}\n")
        sys.stdout.write("Ctrl-C ends both\n")
        sys.stdout.flush()
        signal.pause()
    except KeyboardInterrupt:
        sys.stdout.write("ending\n")
    finally:
        for server in servers.values():
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in servers.values():
            server.wait(timeout=30)


if __name__ == "__main__":
    main()
