"""`nightjar metrics`: the state of every detector for Prometheus, read at each scrape.

A broken detector does not hide the others. Nothing is written (no migration, no marking of dead attempts), so the
warehouse's reader login is enough.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app, write_to_textfile
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flows.config.params import detector_names
from flows.config.settings import load_settings
from flows.config.setup import Setup, load_setup
from flows.status import read_nights
from tasks.errors import NightjarError, ParamsInvalid, SchemaMismatch
from tasks.follow_up.deliveries import count_failed
from tasks.on_demand.cases import count_open
from tasks.stores.faults import writing
from tasks.stores.warehouse import SCHEMA_VERSION, Warehouse
from tasks.upkeep.ledger import State, list_landed_dates
from tasks.upkeep.metrics import Reading, describe_detectors

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class DetectorMetrics(Collector):
    """Reads every detector of params.yaml at each scrape; `failed` lists those that could not be read last time."""

    def __init__(self, project: Path) -> None:
        self.project, self.failed = project, list[Reading]()
        self._reading = Lock()  # concurrent scrapes take turns

    def collect(self) -> Iterator[Metric]:
        """The current metrics. Raises ParamsInvalid if params.yaml cannot be read."""
        with self._reading:
            schema, readings = read_detectors(self.project)
        self.failed = [reading for reading in readings if reading.error]
        yield from describe_detectors(readings, schema, datetime.now(UTC))


def make_registry(project: Path) -> tuple[CollectorRegistry, DetectorMetrics]:
    """A registry with only this collector, without metrics of this process."""
    registry, metrics = CollectorRegistry(), DetectorMetrics(project)
    registry.register(metrics)
    return registry, metrics


def read_detectors(project: Path) -> tuple[str | None, list[Reading]]:
    """The warehouse's schema, and the state of each detector. Raises ParamsInvalid."""
    names = detector_names(project)
    schema = None
    try:
        schema = Warehouse(load_settings().warehouse_url).read_schema()
        _check_schema(schema)
    except NightjarError as error:  # one for all: waiting once per detector would exceed the scrape timeout
        return schema, [Reading(name, error=error) for name in names]
    with ThreadPoolExecutor(max_workers=8) as pool:  # in parallel, so that an unreachable MLflow costs one wait
        return schema, list(pool.map(partial(read_detector, has_tables=schema is not None), names))


def read_detector(name: str, has_tables: bool) -> Reading:
    """The state of a detector, as far as it can be read. Without tables there are no attempts yet."""
    reading = Reading(name)
    try:
        setup = load_setup(name)
        for read in (read_calendar, *((read_warehouse, read_ledger) if has_tables else ())):
            reading = read(setup, reading)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one detector, the others are read
        return replace(reading, error=error)
    return reading


def read_calendar(setup: Setup, reading: Reading) -> Reading:
    """Add the newest landed batch date and the newest one that is due."""
    site, yesterday = setup.site, setup.yesterday()
    every_night = setup.configured.detector.run.every_night
    landed = [day for day in list_landed_dates(site.lake, site.detector) if day <= yesterday]
    return replace(
        reading,
        landed=site.start_of(landed[-1]) if landed else None,
        expected=site.start_of(yesterday) if every_night else None,
    )


def read_warehouse(setup: Setup, reading: Reading) -> Reading:
    """Add the newest published night, its finding, the attempts, the open cases and the messages that failed."""
    warehouse = setup.site.warehouse
    batches = warehouse.read_nights(reading.detector)
    newest = batches[-1] if batches else None
    attempts = Counter(attempt.status for attempt in warehouse.read_attempts(reading.detector))
    cases, untold = vars(count_open(setup.site, datetime.now(UTC))), count_failed(warehouse, reading.detector)
    reading = replace(reading, newest=newest, attempts=attempts, cases=cases, untold=untold)
    if newest is None:
        return reading
    day = newest.batch_date
    findings = warehouse.read_findings(reading.detector, day)
    finding = next((one.finding for one in findings if one.batch_date == day), None)
    drift = warehouse.read_drift(reading.detector, day, day).get(day, [])
    canaries = {one.column: one.value for one in drift if one.statistic == "canary_recall"}
    return replace(reading, published=setup.site.start_of(day), finding=finding, canaries=canaries)


def read_ledger(setup: Setup, reading: Reading) -> Reading:
    """Add the champion and the number of nights in each state."""
    status = read_nights(setup)
    found = Counter(night.state for night in status.nights)
    states: tuple[State, ...] = get_args(State)
    return replace(reading, champion=status.champion, nights={state: found[state] for state in states})


def write_textfile(registry: CollectorRegistry, path: Path) -> None:
    """Write the metrics to a file atomically. Raises ServiceUnreachable."""
    with writing(path.parent):
        write_to_textfile(str(path), registry)


def serve(registry: CollectorRegistry, host: str, port: int, show: Callable[[str], None]) -> None:
    """Serve /metrics and /health until Ctrl-C or SIGTERM; `show` gets the address. Raises ParamsInvalid."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # otherwise a container's first process ignores it
    try:
        server = make_server(host, port, make_app(registry), ThreadingWSGIServer, _QuietHandler)
    except (OSError, OverflowError) as error:
        todo = "choose an address of this machine for --host and a free --port"
        raise ParamsInvalid(
            "The metrics cannot be served at this address.", where=f"{host}:{port}", got=str(error), todo=todo
        ) from error
    with server:
        show(f"http://{host}:{server.server_port}/metrics")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            show("stopped")


def make_app(registry: CollectorRegistry) -> "WSGIApplication":
    """The app: metrics at /metrics; /health answers even if the stores do not."""
    metrics = make_wsgi_app(registry)

    def answer(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        status, text = "404 Not Found", "Use /metrics or /health.\n"
        if environ["PATH_INFO"] == "/health":
            status, text = "200 OK", "ok\n"
        if environ["PATH_INFO"] == "/metrics":
            try:
                body: Iterable[bytes] = metrics(environ, start)
                return body
            except NightjarError as error:  # without params.yaml there are no detectors
                status, text = "503 Service Unavailable", f"{error}\n"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    return answer


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
        """Do not log scrapes."""


def _check_schema(schema: str | None) -> None:
    if schema not in (None, SCHEMA_VERSION):
        raise SchemaMismatch(
            "The warehouse's tables belong to another version of Nightjar.",
            got=f"schema {schema}",
            expected=f"schema {SCHEMA_VERSION}",
            todo="if they are older, run nightjar migrate as their owner; if newer, install the newer Nightjar here",
        )
