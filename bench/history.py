"""History columns: how long a night's take, and what they find.

`scale` writes random records of cards and measures, each in a process of its own, how long one day's history columns
take with the days before it, and the peak of memory. `payments` compares three detectors on the simulator's payments:
with its own aggregates, without any, and with history columns in their place; several seeds of the network.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

from flows.config.params import Configured, combine, parse_detector
from flows.config.settings import Settings
from flows.config.setup import load_setup
from models.detector import Detector
from tasks.calibrate import calibrate_bundle
from tasks.enrich import enrich_batches
from tasks.filter import LABEL, prepare_rows, read_set
from tasks.ingest import ingest_arrivals
from tasks.rows.columns import to_records
from tasks.rows.derive import derive_history
from tasks.rows.history import EnrichParams
from tasks.stores.lake import Lake, Part
from tasks.train import fit_bundle
from tasks.validate import validate_batches

PROJECT = Path(__file__).resolve().parents[1]
LAST = date(2026, 11, 20)
SCALED: dict[str, Any] = {
    "entity": "card_id",
    "windows": ["1h", "24h", "28d"],
    "columns": {
        "payments_{window}": {"count": "*"},
        "spend_{window}": {"sum": "amount"},
        "amount_to_mean": {"ratio": "amount"},
        "since_last_s": {"seconds_since": "previous"},
    },
}
DISTINCT = {"terminals": {"distinct": "terminal_id"}}
OWN = ("payments_1h", "spend_1h", "payments_24h", "spend_24h", "amount_to_mean", "terminal_reports_28d")
HISTORY: dict[str, Any] = {
    "entity": "card_id",
    "windows": ["1h", "24h", "28d"],
    "columns": {
        "payments_before_1h": {"count": "*", "window": "1h"},
        "spend_before_1h": {"sum": "amount", "window": "1h"},
        "payments_before_24h": {"count": "*", "window": "24h"},
        "spend_before_24h": {"sum": "amount", "window": "24h"},
        "amount_to_mean_before": {"ratio": "amount"},
        "reports_before_28d": {"count": "reports", "by": "terminal_id"},
    },
}


def write_days(lake: Lake, rows: int, cards: int, days: int) -> None:
    """Days of `rows` random records each, as parts of a million."""
    connection = duckdb.connect(config={"threads": 2})
    for day in range(days):
        for part in range(-(-rows // 1_000_000)):
            path = Path(lake.root, f"day={day}", f"part-{part}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            start, count = day * rows + part * 1_000_000, min(1_000_000, rows - part * 1_000_000)
            connection.execute(f"select setseed({(start % 997) / 997})")
            chosen = [
                f"'R' || ({start} + range) as record_id",
                f"make_timestamptz(({day} * 86400 + floor(random() * 86400)::bigint) * 1000000) as event_time",
                f"'C' || floor(random() * {cards})::bigint as card_id",
                f"'T' || floor(random() * {cards // 10})::bigint as terminal_id",
                "round(exp(random() * 5), 2) as amount",
            ]
            query = f"select {', '.join(chosen)} from range({count})"
            connection.execute(f"copy ({query}) to '{path}' (format parquet, row_group_size 131072)")


def derive_day(folder: str, days: int, has_distinct: bool) -> None:
    """Derive the last day's columns, and print rows, seconds and the peak of memory in MB."""
    lake = Lake(folder)
    found = [sorted(Path(folder, f"day={day}").glob("*.parquet")) for day in range(days)]
    parts = [tuple(Part(str(path.relative_to(folder)), 0, "") for path in paths) for paths in found]
    columns = SCALED["columns"] | (DISTINCT if has_distinct else {})
    params = EnrichParams.model_validate(SCALED | {"columns": columns}, strict=False)
    earlier = tuple(part for day in parts[:-1] for part in day)
    begun = time.perf_counter()
    rows = sum(table.num_rows for table in derive_history(lake, params, parts[-1], earlier))
    seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {
                "rows": rows,
                "s": round(seconds, 1),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def measure_scale(rows: int, cards: int, days: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_days(Lake(folder), rows, cards, days)
        for has_distinct in (False, True):
            command = [sys.executable, __file__, "derive", folder, str(days), str(int(has_distinct))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print("with distinct" if has_distinct else "counts, sums, ratio, time", done.stdout.strip(), flush=True)


def configure(variant: str, seed: int) -> Configured:
    """The project's detector, or the same with other columns in place of the simulator's aggregates."""
    path = PROJECT / "params.yaml"
    document = yaml.safe_load(path.read_text())
    section = document["detectors"]["payments"]
    columns = section["train"]["columns"]
    section["train"]["fit"]["seed"] = seed
    if variant != "simulator's own":
        columns["numeric"] = [name for name in columns["numeric"] if name not in OWN]
        columns["log_numeric"] = [name for name in columns["log_numeric"] if name not in OWN]
    if variant == "history":
        section["enrich"] = HISTORY
        columns["numeric"] += ["payments_before_1h", "payments_before_24h"]
        columns["log_numeric"] += ["spend_before_1h", "spend_before_24h", "amount_to_mean_before", "reports_before_28d"]
    contract = load_setup("payments", Settings(project=PROJECT)).configured.contract
    return combine("payments", parse_detector(document, path, "payments"), path, contract)


def measure_payments(seeds: int) -> None:
    print(f"{'columns':<18} {'seed':>4} {'AUROC':>7} {'avg prec':>9} {'recall':>7} {'precision':>9}")
    for variant in ("simulator's own", "none", "history"):
        found = [measure_variant(variant, seed) for seed in range(1, seeds + 1)]
        for seed, row in enumerate(found, start=1):
            print(f"{variant:<18} {seed:>4} " + " ".join(f"{value:>8.4f}" for value in row), flush=True)
        median = np.median(np.array(found), axis=0)
        print(f"{variant:<18}  med " + " ".join(f"{value:>8.4f}" for value in median), flush=True)


def measure_variant(variant: str, seed: int) -> tuple[float, float, float, float]:
    """AUROC, average precision, and recall and precision at the threshold, on the test days."""
    configured = configure(variant, seed)
    params, contract = configured.detector, configured.contract
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(project=PROJECT, home=Path(folder), lake=folder, warehouse=f"duckdb:///{folder}/w.duckdb")
        setup = load_setup("payments", settings)
        site, cutoff = setup.site, LAST + timedelta(days=1)
        if params.enrich:
            site = replace(site, reach=params.enrich.reach, counts_reports=params.enrich.counts_reports)
        site.warehouse.migrate()
        ingest_arrivals(site, params.ingest, setup.window(last=LAST))
        days = site.lake.dates("landing", "payments")
        validate_batches(site, contract, days, params.validate_)
        if params.enrich:
            enrich_batches(site, contract, days, params.validate_, params.enrich)
        rows = prepare_rows(site, cutoff, params.filter, params.train.columns.numbers)
        fitted = fit_bundle(site, rows, params.train, {})
        bundle = calibrate_bundle(site, rows, fitted, params.calibrate, params.ingest.has_labels).bundle
        detector = Detector.load(bundle)
        test = read_set(site.lake, "payments", cutoff, "test")
        scores = detector.score(to_records(test, detector.columns)[0])
    is_fraud, flagged = test[LABEL].to_numpy() == 1, scores > detector.threshold.value
    hits = int((flagged & is_fraud).sum())
    auroc, average = roc_auc_score(is_fraud, scores), average_precision_score(is_fraud, scores)
    return auroc, average, hits / int(is_fraud.sum()), hits / max(1, int(flagged.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scale = commands.add_parser("scale")
    scale.add_argument("--rows", type=int, default=1_000_000, help="per day")
    scale.add_argument("--cards", type=int, default=300_000)
    scale.add_argument("--days", type=int, default=29)
    derive = commands.add_parser("derive", help="used by scale")
    derive.add_argument("folder")
    derive.add_argument("days", type=int)
    derive.add_argument("distinct", type=int)
    commands.add_parser("payments").add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.command == "scale":
        measure_scale(given.rows, given.cards, given.days)
    elif given.command == "derive":
        derive_day(given.folder, given.days, bool(given.distinct))
    else:
        measure_payments(given.seeds)


if __name__ == "__main__":
    main()
