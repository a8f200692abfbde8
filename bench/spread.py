"""Costs and gains of scoring the parts of a batch as separate tasks; docs/scale.md uses the results.

Each way runs under Prefect from validated parts to flags ready to publish: `one task` (all parts in sequence, in the
task that combines them), `1 thread` and `2 threads` (one task per part), `2 processes` (the same on a Dask cluster with
two workers). Also prints the bytes per row in each zone. The rows are those of bench/throughput.py.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOGGING_LEVEL, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from throughput import DAY, NAME, PROJECT, open_site, prepare

from flows.config.params import load_detector
from models.bundle import read_bundle_manifest
from tasks.rows.validation import Validation
from tasks.score import score
from tasks.spread import Workers, spread_parts
from tasks.stores.registry import HASH_TAG, Version
from tasks.stores.site import Site
from tasks.upkeep.inventory import ZONES
from tasks.validate import validate_batches

MILLION = 1_000_000


def place_bundle(site: Site) -> tuple[Version, Path]:
    """Copy the detector to where a worker looks for a version's bundle."""
    content_hash = read_bundle_manifest(site.home / "bundle").content_hash
    folder = site.registry.bundles / f"version-1-{content_hash[:12]}"
    shutil.copytree(site.home / "bundle", folder, dirs_exist_ok=True)
    return Version("bench", 1, (), {HASH_TAG: content_hash}), folder


def time_scoring(site: Site, validation: Validation, workers: Workers | None) -> float:
    """Seconds to score one batch; without workers, in one task."""
    shutil.rmtree(Path(site.lake.root, "scores"), ignore_errors=True)
    configured, (version, bundle) = load_detector(PROJECT, NAME), place_bundle(site)
    arguments = (site, configured.contract, validation, version, bundle, configured.detector.score)

    @flow(name="bench")
    def run() -> float:
        started = time.perf_counter()
        if workers:
            spread_parts(*arguments, workers)
        score(*arguments, datetime.now(UTC))
        return time.perf_counter() - started

    return run()


def measure(rows: int, repeats: int, ways: dict[str, Workers | None]) -> None:
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        site, configured = open_site(Path(name), rows), load_detector(PROJECT, NAME)
        prepare(site, rows)
        [validation] = validate_batches(site, configured.contract, [DAY], configured.detector.validate_)
        runs: dict[str, list[float]] = {}
        for way, workers in [*ways.items()] * (repeats + 1):
            runs.setdefault(way, []).append(time_scoring(site, validation, workers))
        seconds = {way: statistics.median(found[1:]) for way, found in runs.items()}  # the first warms up
        for way, median in seconds.items():
            all_of = ", ".join(f"{one:.2f}" for one in runs[way][1:])
            print(f"{rows:>11,} rows  {way:12} {median:6.2f} s  x {seconds['one task'] / median:.2f}  ({all_of})")
        for zone in ZONES:
            size = sum(site.lake.files(zone).values())
            print(f"{rows:>11,} rows  {zone:12} {size / rows:6.1f} bytes per row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[MILLION, 4 * MILLION], help="batch sizes; a part has a million rows"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all ways; the median is shown")
    options = parser.parse_args()
    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_LEVEL: "ERROR"}
    from distributed import LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, temporary_settings(quiet), prefect_test_harness(server_startup_timeout=90):
        ways = {"one task": None, "1 thread": Workers(), "2 threads": Workers(threads=2)}
        for rows in options.rows:
            measure(rows, options.repeats, ways | {"2 processes": Workers(cluster.scheduler_address)})


if __name__ == "__main__":
    sys.exit(main())
