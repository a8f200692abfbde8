"""Rows a second of a night, beside those of the bare model, and the memory each takes.

Cases, each in a process of its own: `read` (validated Parquet, nothing done), `bare` (read, encode, network, score;
nothing written), `night` (validated Parquet to published flags), `full` (landing to published flags, validation
included), `model` (score alone, records in memory). Rates leave out imports and loading the bundle.
Rows are the payments simulator's: at most a million are drawn, larger batches repeat them under fresh record_ids.
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
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CASES = ("full", "read", "bare", "night", "model")  # full is first: it makes what the others read
DRAWN_ROWS, MODEL_ROWS, SEED = 1_000_000, 1_000_000, 7
TARGETS = {"night / bare": 0.40, "full / bare": 0.25}
MEMORY_TARGET = 1.3


class Night:
    """One batch in a lake of its own under `folder`, with what it takes to run its steps."""

    def __init__(self, folder: Path, rows: int) -> None:
        from datetime import date, timedelta

        from flows.params import load_detector
        from tasks.site import Site

        self.folder, self.rows, self.day = folder, rows, date(2026, 11, 10)  # no late file, no dirt of a new kind
        self.configured = load_detector(PROJECT, "payments")
        self.site = Site(
            detector="payments", time_zone="Europe/Berlin", label_delay=timedelta(days=10), sources=str(folder),
            lake_root=str(folder / f"lake-{rows}"), warehouse_url=f"duckdb:///{folder}/warehouse.duckdb",
            mlflow_uri="", artifacts=None, home=folder, device="cpu", threads=1, commit="bench",
        )  # fmt: skip
        self.bundle = folder / "bundle"

    def prepare(self) -> None:
        """Land the batch; fit and calibrate a detector on its honest rows where there is none yet."""
        import numpy as np
        import pyarrow as pa

        from tasks import payments
        from tasks.ingest import add_identity

        drawn = min(self.rows, DRAWN_ROWS)
        params = self.configured.detector.ingest
        made = {"seed": SEED, "rows_per_day": drawn}
        source = payments.PaymentsSource.model_validate(params.source.model_dump() | made)
        files = payments.list_files(source, self.site.time_zone, self.day, self.day)
        frames = [f for file in files for f in payments.read_file(source, self.site.time_zone, file)]
        tables = [add_identity(pa.Table.from_pandas(f, preserve_index=False), params, "drawn", 0) for f in frames]
        table = pa.concat_tables(tables, promote_options="permissive")
        partition = self.site.lake.write("landing", "payments", self.day)
        for copy in range(-(-self.rows // drawn)):
            with partition.part(f"part-{copy}", source=f"copy {copy}") as writer:
                for start in range(0, table.num_rows, 131_072):
                    piece = table.slice(start, 131_072)
                    fresh = [f"{copy}-{record}" for record in piece["record_id"].to_pylist()]
                    writer.append(piece.set_column(0, "record_id", pa.array(fresh)))
        partition.commit({})
        if not self.bundle.exists():
            frauds = pa.array(payments.read_truth(source, self.site.time_zone, self.day)["record_id"])
            honest = ~np.isin(table["record_id"].to_numpy(), frauds.to_numpy(zero_copy_only=False))
            amounts = table["amount"].to_numpy()
            self._fit(table.filter(pa.array(honest & np.isfinite(amounts) & (amounts > 0))))

    def _fit(self, clean: "pa.Table") -> None:  # noqa: F821 - imported when needed
        import torch

        from models.detector import DetectorParams, calibrate_detector, fit_detector
        from models.encoders import choose_kinds
        from tasks.columns import describe_columns, to_records

        learn = self.configured.detector.train
        described = describe_columns(learn.columns, clean)
        records, _ = to_records(clean.take(_draw(clean.num_rows, 120_000)), described)
        fit, stopping, calibration = records[:50_000], records[50_000:75_000], records[75_000:]
        brief = learn.fit.model_copy(update={"epochs": 3})
        params = DetectorParams(network=learn.network, fit=brief, score=learn.score, threads=1)
        detector = fit_detector(choose_kinds(described, fit, learn.encode), fit, stopping, params, torch.device("cpu"))
        policy = self.configured.detector.calibrate.threshold
        calibrate_detector(detector, calibration, policy).save(self.bundle)

    def run(self, case: str) -> tuple[float, int]:
        """Run a case once: its seconds and the rows it went through."""
        from models.detector import Detector
        from tasks.warehouse import migrate, open_engine

        self.detector = Detector.load(self.bundle)
        migrate(open_engine(self.site.warehouse_url))
        if case == "full":
            shutil.rmtree(self.folder / f"lake-{self.rows}" / "validated", ignore_errors=True)
            started = time.perf_counter()
            self._validate()
            return time.perf_counter() - started + self._score_and_publish(), self.rows
        if case == "night":
            return self._score_and_publish(), self.rows
        return {"read": self._read, "bare": self._bare, "model": self._model}[case]()

    def _validate(self) -> None:
        from tasks.validate import check_accepted, validate_batches

        limits = self.configured.detector.validate_
        check_accepted("payments", validate_batches(self.site, self.configured.contract, [self.day], limits))

    def _score_and_publish(self) -> float:
        from datetime import UTC, datetime

        from tasks.publish import publish_night
        from tasks.score import read_flags, score_batch
        from tasks.tables import Night as NightRow
        from tasks.validate import find_validation
        from tasks.warehouse import begin_attempt, open_engine

        started, now, lake = time.perf_counter(), datetime.now(UTC), self.site.lake
        engine, contract = open_engine(self.site.warehouse_url), self.configured.contract
        attempt = begin_attempt(engine, "payments", self.day, "begin", now)
        validated = lake.get("validated", "payments", self.day)
        validation = find_validation(lake, contract, "payments", self.day)
        path, scored, flagged, unseen = score_batch(
            self.site, self.detector, contract, validated, self.configured.detector.score
        )
        night = NightRow(
            detector="payments", batch_date=self.day, attempt=attempt, input_hash=validation.input_hash,
            rows_in=validation.rows_in, quarantined=validation.quarantined, excluded=validation.excluded,
            scored=scored, flagged=flagged, unseen=unseen, threshold=self.detector.threshold.value,
            model_name="bench", model_version=1, scored_at=now, seconds=0.0,
        )  # fmt: skip
        landing = lambda: lake.get("landing", "payments", self.day).hash  # noqa: E731
        publish_night(engine, night, read_flags(lake, path), now, landing)
        return time.perf_counter() - started

    def _slices(self):  # noqa: ANN202
        from tasks.score import read_ahead

        names = [column.name for column in self.detector.columns]
        texts = tuple(column.name for column in self.detector.columns if column.kind == "categorical")
        for part in self.site.lake.get("validated", "payments", self.day).parts:
            yield from read_ahead(self.site.lake.slices(part, names, texts))

    def _read(self) -> tuple[float, int]:
        started = time.perf_counter()
        rows = sum(table.num_rows for table in self._slices())
        return time.perf_counter() - started, rows

    def _bare(self) -> tuple[float, int]:
        from tasks.columns import to_records

        started = time.perf_counter()
        rows = sum(len(self.detector.score(to_records(t, self.detector.columns)[0])) for t in self._slices())
        return time.perf_counter() - started, rows

    def _model(self) -> tuple[float, int]:
        from itertools import islice

        from tasks.columns import to_records

        pieces = [to_records(t, self.detector.columns)[0] for t in islice(self._slices(), MODEL_ROWS // 131_072)]
        started = time.perf_counter()
        rows = sum(len(self.detector.score(piece)) for piece in pieces)
        return time.perf_counter() - started, rows


def _draw(rows: int, wanted: int) -> "np.ndarray":  # noqa: F821 - imported when needed
    import numpy as np

    return np.random.default_rng(SEED).permutation(rows)[:wanted]


def run_case(folder: Path, rows: int, case: str) -> dict[str, float]:
    """Run one case in a process of its own: seconds, rows and the process's peak memory."""
    command = [sys.executable, __file__, "--folder", str(folder), "--rows", str(rows), "--case", case]
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def be_case(folder: Path, rows: int, case: str) -> None:
    """What such a process does."""
    sys.path.insert(0, str(PROJECT))
    night = Night(folder, rows)
    seconds, passed = (0.0, rows) if case == "prepare" else night.run(case)
    if case == "prepare":
        night.prepare()
    # The parent stays small and imports nothing: Linux passes a parent's peak on to the child.
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "rows": passed, "peak_mb": peak_mb}))


def measure(sizes: list[int], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Rows a second (median of the rounds) and peak memory (largest) by size and case."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        for rows in sizes:
            run_case(Path(name), rows, "prepare")
            found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
            for round_ in range(1, repeats + 1):
                for case in CASES:
                    found[case].append(run_case(Path(name), rows, case))
                    took = found[case][-1]
                    print(f"{rows:>11,} {round_}/{repeats} {case:6} {took['seconds']:8.2f} s", file=sys.stderr)
            result[str(rows)] = {
                case: {
                    "rows_per_s": statistics.median(run["rows"] / run["seconds"] for run in runs),
                    "peak_mb": max(run["peak_mb"] for run in runs),
                }
                for case, runs in found.items()
            }
            shutil.rmtree(Path(name) / f"lake-{rows}")
    return result


def compare(result: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """The ratios that have targets."""
    ratios = {}
    for rows, cases in result.items():
        for pair in TARGETS:
            over, under = pair.split(" / ")
            ratios[f"{pair} at {int(rows):,}"] = cases[over]["rows_per_s"] / cases[under]["rows_per_s"]
    first, last = list(result)[0], list(result)[-1]
    if first != last:
        for case in CASES:
            ratios[f"peak memory of {case}, {int(last):,} / {int(first):,}"] = (
                result[last][case]["peak_mb"] / result[first][case]["peak_mb"]
            )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=2, help="rounds over all cases; the median is shown")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        be_case(asked.folder, asked.rows[0], asked.case)
        return
    result = measure(asked.rows, asked.repeats)
    ratios = compare(result)
    if asked.json:
        print(json.dumps({"cases": result, "ratios": ratios}, indent=1))
        return
    print(f"{'rows':>11} {'case':6} {'rows/s':>11} {'peak MB':>8}")
    for rows, cases in result.items():
        for case, got in cases.items():
            print(f"{int(rows):>11,} {case:6} {got['rows_per_s']:>11,.0f} {got['peak_mb']:>8,.0f}")
    for name, value in ratios.items():
        pair = name.split(" at ")[0]
        target = f">= {TARGETS[pair]:.2f}" if pair in TARGETS else f"<= {MEMORY_TARGET}"
        print(f"{name:45} {value:6.2f}  target {target}")


if __name__ == "__main__":
    main()
