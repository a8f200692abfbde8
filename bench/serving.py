"""Latency and requests per second of `mlflow models serve` with a payments detector, on loopback.

Latency is measured with one client and 1, 100 and 1,000 rows per request; the rate with 1, 4 and 16 concurrent clients
and one row per request. Clients keep their connections and run on the same machine, so they compete for the CPU.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from throughput import DAY, NAME, open_site, prepare

from flows.config.quiet import hush_at_exit
from models.detector import Detector
from tasks.register import register_bundle
from tasks.stores.registry import Registry
from tasks.stores.site import Site

SIZES, CLIENTS, PATH = (1, 100, 1000), (1, 4, 16), "/invocations"


@contextmanager
def serve(site: Site) -> Iterator[int]:
    """Serve the champion; yields the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{site.registry.model_name}@champion",
        "--env-manager",
        "local",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the server starts uvicorn by name
    environment = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": site.registry.uri}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (site.home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)):
                    break
            except OSError:
                assert server.poll() is None, (site.home / "server.log").read_text()
                time.sleep(0.1)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def read_rows(site: Site, detector: Detector) -> list[dict[str, Any]]:
    """Landed rows without missing or infinite values, as a client sends them."""
    [part] = site.lake.get("landing", NAME, DAY).parts
    names = [column.name for column in detector.columns]
    frame = next(site.lake.slices(part)).select(names).to_pandas().replace([np.inf, -np.inf], np.nan).dropna()
    frame["event_time"] = [instant.isoformat() for instant in frame["event_time"]]
    rows: list[dict[str, Any]] = json.loads(frame.head(max(SIZES)).to_json(orient="records"))
    return rows


def time_request(connection: http.client.HTTPConnection, body: bytes) -> float:
    """Send one request and return its seconds."""
    started = time.perf_counter()
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    return time.perf_counter() - started


def measure_latency(port: int, body: bytes, requests: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(20):
        time_request(connection, body)
    found = np.array([time_request(connection, body) for _ in range(requests)]) * 1000
    return " | ".join(f"{np.percentile(found, share):.1f}" for share in (50, 95, 99))


def measure_rate(port: int, body: bytes, clients: int, seconds: float) -> tuple[float, str]:
    """Requests per second of concurrent clients, and their latency."""
    found: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def work(own: list[float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < end:
            own.append(time_request(connection, body))

    threads = [threading.Thread(target=work, args=(own,)) for own in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = np.concatenate(found) * 1000
    shares = " | ".join(f"{np.percentile(everything, share):.1f}" for share in (50, 95, 99))
    return len(everything) / seconds, shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="requests per latency measurement")
    parser.add_argument("--seconds", type=float, default=10, help="duration for each number of clients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        folder = Path(name)
        site = replace(
            open_site(folder, 150_000),
            registry=Registry(
                f"sqlite:///{folder}/mlflow.db", "payments", folder / "bundles", str(folder / "artifacts")
            ),
        )
        prepare(site, 150_000)
        detector = Detector.load(folder / "bundle").with_lineage({"cutoff": str(DAY)})
        detector.save(folder / "bundle")
        register_bundle(site, folder / "bundle", None)
        rows = read_rows(site, detector)
        bodies = {size: json.dumps({"dataframe_records": rows[:size]}).encode() for size in SIZES}
        with serve(site) as port:
            print("| rows per request | median ms | p95 ms | p99 ms |\n|---|---|---|---|")
            for size, body in bodies.items():
                print(f"| {size:,} | {measure_latency(port, body, options.requests)} |", flush=True)
            print("\n| clients, 1 row each | requests/s | median ms | p95 ms | p99 ms |\n|---|---|---|---|---|")
            for clients in CLIENTS:
                rate, shares = measure_rate(port, bodies[1], clients, options.seconds)
                print(f"| {clients} | {rate:,.0f} | {shares} |", flush=True)


if __name__ == "__main__":
    hush_at_exit()
    main()
