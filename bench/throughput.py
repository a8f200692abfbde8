"""Rows per second and peak memory of a night, compared with the model alone.

Cases, each in a separate process: `read` (read validated Parquet), `bare` (read, encode and score; write nothing),
`night` (validated Parquet to published flags), `full` (landing to published flags, with validation), `model` (score
records in memory). Two more do only what a night cannot do without: `night floor` (as `bare`, and write ids and scores)
and `full floor` (write the landed rows again first). Imports and loading the bundle are not timed. The rows are from
the payments simulator: at most a million, which larger batches repeat with new record_ids.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from flows.config.params import Configured, load_detector
from flows.config.quiet import hush_at_exit
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import choose_kinds
from models.params import ThresholdParams
from models.records import Records
from tasks.ingest import add_identity
from tasks.publish import Begun, publish_scored
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.expectations import load_great_expectations
from tasks.rows.params import TrainParams
from tasks.score import score_night
from tasks.sources import payments
from tasks.stores.files import read_ahead
from tasks.stores.lake import SLICE_ROWS, Lake
from tasks.stores.registry import Registry, Version
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse
from tasks.validate import check_accepted, find_validation, validate_batches

PROJECT = Path(__file__).resolve().parents[1]
NAME, FIRST, DAY, SEED, DRAWN_ROWS = "payments", date(2026, 9, 22), date(2026, 11, 10), 7, 1_000_000
# full is first: it writes what the others read
CASES = ("full", "read", "bare", "night floor", "full floor", "night", "model")
RATIOS = {
    "night / bare": "target >= 0.85",
    "night floor / bare": "the most that night / bare could be",
    "full / bare": "target >= 0.50; 0.55 at 10 million",
    "full floor / bare": "the most that full / bare could be",
    "night / night floor": "",
    "full / full floor": "",
}
MEMORY_TARGET = 1.15
Result = dict[int, dict[str, dict[str, float]]]  # rows -> case -> rows_per_s, peak_mb


def open_site(folder: Path, rows: int) -> Site:
    return Site(
        detector=NAME, time_zone="Europe/Berlin", label_delay=timedelta(days=10), sources=str(folder),
        lake=Lake(str(folder / f"lake-{rows}")), warehouse=Warehouse(f"duckdb:///{folder}/warehouse.duckdb"),
        registry=Registry("", NAME, folder / "bundles" / NAME), home=folder, device="cpu", threads=1, commit="bench",
    )  # fmt: skip


def prepare(site: Site, rows: int) -> tuple[float, int]:
    """Land the batch; if there is no detector yet, fit and calibrate one on its honest rows."""
    configured, drawn = load_detector(PROJECT, NAME).detector, min(rows, DRAWN_ROWS)
    source = payments.PaymentsSource(kind="payments", seed=SEED, rows_per_day=drawn, first_date=FIRST)
    [file] = payments.list_deliveries(source, site.time_zone, DAY, DAY)
    frames = (pa.Table.from_pandas(f, preserve_index=False) for f in payments.read_file(source, site.time_zone, file))
    table = pa.concat_tables(add_identity(frame, configured.ingest, "", 0, site.zone) for frame in frames)
    partition = site.lake.write("landing", NAME, DAY)
    for copy in range(-(-rows // drawn)):
        with partition.part(f"part-{copy}", source=f"copy {copy}") as writer:
            for start in range(0, table.num_rows, SLICE_ROWS):
                piece = table.slice(start, SLICE_ROWS)
                fresh = pc.binary_join_element_wise(f"{copy}", piece["record_id"], "-")
                writer.append(piece.set_column(0, "record_id", fresh))
    partition.commit({})
    if not (site.home / "bundle").exists():
        frauds = payments.read_truth(source, site.time_zone, DAY)["record_id"]
        honest = ~table["record_id"].to_pandas().isin(frauds).to_numpy() & (table["amount"].to_numpy() > 0)
        clean = table.filter(pa.array(honest & np.isfinite(table["amount"].to_numpy())))
        fit_briefly(configured.train, clean, configured.calibrate.threshold).save(site.home / "bundle")
    return 0.0, rows


def fit_briefly(learn: TrainParams, clean: pa.Table, threshold: ThresholdParams) -> Detector:
    """Fit for three epochs: the cost of a night does not depend on how well its detector learnt."""
    described = describe_columns(learn.columns, clean)
    picked = np.random.default_rng(SEED).permutation(clean.num_rows)[:120_000]
    records, _ = to_records(clean.take(picked), described)
    fit, stopping, calibration = records[:50_000], records[50_000:75_000], records[75_000:]
    brief = learn.fit.model_copy(update={"epochs": 3})
    params = ModelParams(networks=learn.networks, fit=brief, score=learn.score, threads=1)
    detector = fit_detector(choose_kinds(described, fit, learn.encode), fit, stopping, params, torch.device("cpu"))
    return calibrate_detector(detector, calibration, threshold).with_lineage({"trained_through": str(FIRST)})


def read_slices(lake: Lake, detector: Detector, *others: str) -> Iterator[pa.Table]:
    """Slices of the validated rows with the detector's columns and some others; another thread reads ahead."""
    names = [*others, *(column.name for column in detector.columns)]
    texts = tuple(column.name for column in detector.columns if column.kind == "categorical")
    for part in lake.get("validated", NAME, DAY).parts:
        yield from read_ahead(lake.slices(part, names, texts))


def copy_landed(site: Site, scratch: Lake) -> None:
    """Write the landed rows to `scratch` as validated rows are written, without looking at them."""
    validated = scratch.write("validated", NAME, DAY)
    for number, part in enumerate(site.lake.get("landing", NAME, DAY).parts):
        with validated.part(f"part-{number}") as writer:
            for table in read_ahead(site.lake.slices(part)):
                writer.append(table)
    validated.commit({})


def write_scores(source: Lake, scratch: Lake, detector: Detector) -> int:
    """Score the validated rows of `source` and write each record_id and score to `scratch`; returns the rows."""
    scores = scratch.write("scores", NAME, DAY)
    with scores.part("part-0") as writer:
        for table in read_slices(source, detector, "record_id"):
            scored = detector.score(to_records(table, detector.columns)[0])
            writer.append(pa.table({"record_id": table["record_id"], "score": scored}))
    scores.commit({})
    return sum(part.rows for part in scores.parts)


def score_and_publish(site: Site, configured: Configured) -> int:
    """Score and publish as a night does, after deleting the scores of earlier rounds."""
    shutil.rmtree(Path(site.lake.root, "scores"), ignore_errors=True)
    now, learnt = datetime.now(UTC), configured.detector
    begun = Begun(site.warehouse.begin_attempt(NAME, DAY, "begin", now), now)
    validation = find_validation(site, configured.contract, DAY, learnt.validate_)
    assert validation is not None
    version = Version("m", 1, (), {})
    scored = score_night(site, configured.contract, validation, version, site.home / "bundle", learnt.score, now)
    publish_scored(site, begun, scored)
    return validation.rows_in


def run_case(site: Site, case: str) -> tuple[float, int]:
    """Run a case once; returns its seconds and its number of rows."""
    if case == "full":
        load_great_expectations()  # imported on first use, which must not be timed
    detector, configured = Detector.load(site.home / "bundle"), load_detector(PROJECT, NAME)
    site.warehouse.migrate()
    slices, scratch = read_slices(site.lake, detector), Lake(str(site.home / "floor"))
    shutil.rmtree(scratch.root, ignore_errors=True)
    if case == "full":
        shutil.rmtree(f"{site.lake.root}/validated", ignore_errors=True)  # otherwise it would not validate again
    batches: Iterable[Records] = (to_records(table, detector.columns)[0] for table in slices)
    if case == "model":
        batches = list(islice(batches, DRAWN_ROWS // SLICE_ROWS))
    started, rows = time.perf_counter(), 0
    if case == "full":
        check_accepted(NAME, validate_batches(site, configured.contract, [DAY], configured.detector.validate_))
    if case in ("full", "night"):
        rows = score_and_publish(site, configured)
    elif case == "night floor":
        rows = write_scores(site.lake, scratch, detector)
    elif case == "full floor":
        copy_landed(site, scratch)
        rows = write_scores(scratch, scratch, detector)
    elif case == "read":
        rows = sum(table.num_rows for table in slices)
    else:
        rows = sum(len(detector.score(records)) for records in batches)
    return time.perf_counter() - started, rows


def measure(folder: Path, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Rows per second (median of the rounds) and peak memory (maximum) of each case at one size."""
    runs: dict[str, list[dict[str, float]]] = {}
    for case in ("prepare", *CASES * repeats):
        command = [sys.executable, __file__, "--folder", str(folder), "--rows", str(rows), "--case", case]
        done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
        runs.setdefault(case, []).append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows:>11,} rows, {case:11} {runs[case][-1]['seconds']:8.2f} s", file=sys.stderr)
    shutil.rmtree(folder / f"lake-{rows}")
    rates = {case: statistics.median(run["rows"] / run["seconds"] for run in runs[case]) for case in CASES}
    return {case: {"rows_per_s": rates[case], "peak_mb": max(run["peak_mb"] for run in runs[case])} for case in CASES}


def compare(result: Result) -> list[tuple[str, float, str]]:
    """The ratios, each with its target or what it means."""
    found = []
    for rows, cases in result.items():
        for pair, note in RATIOS.items():
            over, under = (cases[case]["rows_per_s"] for case in pair.split(" / "))
            found.append((f"{pair} at {rows:,} rows", over / under, note))
    small, large = min(result), max(result)
    for case in CASES if large > small else ():
        ratio = result[large][case]["peak_mb"] / result[small][case]["peak_mb"]
        found.append((f"peak memory of {case}, {large:,} / {small:,}", ratio, f"target <= {MEMORY_TARGET}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=2, help="rounds over all cases; the median is shown")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:  # in a process started by measure
        hush_at_exit()
        site = open_site(options.folder, options.rows[0])
        seconds, rows = prepare(site, options.rows[0]) if options.case == "prepare" else run_case(site, options.case)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "rows": rows, "peak_mb": peak_mb}))
        return
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        result = {rows: measure(Path(name), rows, options.repeats) for rows in options.rows}
    ratios = compare(result)
    if options.json:
        print(json.dumps({"cases": result, "ratios": {name: value for name, value, _ in ratios}}, indent=1))
        return
    for size, case, got in ((size, case, got) for size, cases in result.items() for case, got in cases.items()):
        print(f"{size:>11,} rows {case:11} {got['rows_per_s']:>11,.0f} rows/s, peak {got['peak_mb']:>6,.0f} MB")
    for name, value, note in ratios:
        print(f"{name:45} {value:6.2f}  {note}".rstrip())


if __name__ == "__main__":
    main()
