"""The payments detector compared with the best single column and an isolation forest, by kind of fraud.

Each seed is a separate simulation (cards, terminals, frauds) that was not used in tuning; the median is shown. Detector
and forest learn from the same honest rows, split by date as in params.yaml; the forest gets the detector's encoded
rows. All are tested on the last 7 days, with a threshold that flags 1 % of the honest rows; recall is the share of
frauds above it. The single column is an oracle: column and direction are chosen on the test days, for each kind of
fraud. Liu et al. 2008 (isolation forest, with samples of 256 rows).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from flows.config.params import Configured, load_detector
from models.detector import Detector, ModelParams, fit_detector
from models.encoders import choose_kinds, encode_records
from tasks.filter import split_by_date
from tasks.rows.columns import describe_columns, to_records
from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]
TEST_DAYS, FALSE_ALARM_RATE, TREES, SAMPLES = 7, 0.01, 200, (256, 4096)
GROUPS = ("overall", *payments.KINDS)
Floats = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]
Found = dict[str, dict[str, float]]  # group -> recall, auroc


def simulate(configured: Configured, seed: int) -> tuple[dict[str, pa.Table], Names]:
    """Fit, stopping and test rows of one seed, and the kind of each test row ("" = honest)."""
    detector = configured.detector
    source = detector.ingest.source.model_copy(update={"seed": seed})
    first, last, zone = source.first_date, detector.run.last_date, detector.time_zone
    dates = payments.list_dates(source, first, last)
    known = [day for day in dates[:-TEST_DAYS] if day < dates[-TEST_DAYS] - timedelta(days=detector.label_delay_days)]
    # The split's test days are before the label delay; ours are the newest days.
    sets = {day: name for day, name in split_by_date(known, detector.filter.splits).items() if name != "test"}
    sets |= dict.fromkeys(dates[-TEST_DAYS:], "test")
    frames: dict[str, list[pd.DataFrame]] = {"fit": [], "stopping": [], "test": []}
    for file in payments.list_deliveries(source, zone, first, last):
        name = sets.get(file.batch_date, "")
        if name not in frames:  # the tuning and calibration days are not needed to rank records
            continue
        truth = payments.read_truth(source, zone, file.batch_date).set_index("record_id")["kind"]
        for frame in payments.read_file(source, zone, file):
            frames[name].append(frame.assign(kind=frame["payment_id"].map(truth).fillna("").astype(str)))
    tables, kinds = {}, {}
    for name, found in frames.items():
        rows = pd.concat(found, ignore_index=True)
        # Drop what validation quarantines or excludes.
        rows = rows[np.isfinite(rows["amount"]) & (rows["amount"] > 0) & rows["country"].notna()]
        rows = rows[rows["event_time"].notna()].drop_duplicates("payment_id")
        rows = rows if name == "test" else rows[rows["kind"] == ""]
        kinds[name] = rows.pop("kind").to_numpy(dtype=str)
        tables[name] = pa.Table.from_pandas(rows, preserve_index=False)
    return tables, kinds["test"]


def fit(configured: Configured, tables: dict[str, pa.Table]) -> Detector:
    """Train as tasks/train.py does, on one thread."""
    learn = configured.detector.train
    described = describe_columns(learn.columns, tables["fit"])
    records, stopping = (to_records(tables[name], described)[0] for name in ("fit", "stopping"))
    params = ModelParams(networks=learn.networks, fit=learn.fit, score=learn.score, threads=1)
    columns = choose_kinds(described, records, learn.encode)
    return fit_detector(columns, records, stopping, params, torch.device("cpu"))


def score_forests(detector: Detector, tables: dict[str, pa.Table]) -> Iterator[tuple[str, Floats]]:
    """Scores of the test rows by forests of both sizes, on the detector's encoded rows."""
    rows = {name: to_records(tables[name], detector.columns)[0] for name in ("fit", "test")}
    encoded = {name: encode_records(detector.encoder, records).numpy() for name, records in rows.items()}
    for samples in SAMPLES:
        forest = IsolationForest(n_estimators=TREES, max_samples=samples, random_state=0).fit(encoded["fit"])
        yield f"isolation forest, {samples} rows per tree", -forest.score_samples(encoded["test"])


def score_columns(detector: Detector, tables: dict[str, pa.Table]) -> Iterator[Floats]:
    """Each column as a score, in both directions; categories and hours score by their rarity in the fit rows."""
    for column in detector.columns:
        fitted, tested = (tables[name][column.name].to_pandas() for name in ("fit", "test"))
        if column.kind == "datetime":
            fitted, tested = fitted.dt.hour, tested.dt.hour
        if column.kind in ("categorical", "datetime"):
            tested = -tested.map(fitted.value_counts(normalize=True)).fillna(0.0)
        values = tested.to_numpy(dtype=float)
        yield values
        yield -values


def measure(scores: Floats, kinds: Names) -> Found:
    """Recall at the false-alarm rate and AUROC, for all frauds and for each kind."""
    honest = scores[kinds == ""]
    threshold = np.quantile(honest, 1 - FALSE_ALARM_RATE, method="higher")
    found = {}
    for group in GROUPS:
        frauds = scores[kinds != ""] if group == "overall" else scores[kinds == group]
        truth = np.repeat([0, 1], [len(honest), len(frauds)])
        auroc = float(roc_auc_score(truth, np.concatenate([honest, frauds])))
        found[group] = {"recall": float((frauds > threshold).mean()), "auroc": auroc}
    return found


def pick_best(candidates: list[Found]) -> Found:
    """For each group, the best recall and the best AUROC of any candidate."""
    best = {
        measure_: {g: max(found[g][measure_] for found in candidates) for g in GROUPS}
        for measure_ in ("recall", "auroc")
    }
    return {group: {name: values[group] for name, values in best.items()} for group in GROUPS}


def run_seed(configured: Configured, seed: int) -> tuple[dict[str, Found], dict[str, float]]:
    """Results of all methods in one simulation, and the detector's training time and rows."""
    tables, kinds = simulate(configured, seed)
    started = time.perf_counter()
    detector = fit(configured, tables)
    trained = {"seconds": time.perf_counter() - started, "rows": tables["fit"].num_rows}
    found = {"detector": measure(detector.score(to_records(tables["test"], detector.columns)[0]), kinds)}
    found["best single column (oracle)"] = pick_best([measure(s, kinds) for s in score_columns(detector, tables)])
    found |= {name: measure(scores, kinds) for name, scores in score_forests(detector, tables)}
    return found, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[101, 102, 103], help="simulations; the median is shown"
    )
    parser.add_argument("--json", action="store_true", help="print the result of each simulation as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    configured = load_detector(PROJECT, "payments")
    simulations, training = {}, {}
    for seed in options.seeds:
        simulations[seed], training[seed] = run_seed(configured, seed)
        took = training[seed]
        print(f"seed {seed}: trained on {took['rows']:,} rows in {took['seconds']:.1f} s", file=sys.stderr)
    if options.json:
        print(json.dumps({"worlds": simulations, "training": training}, indent=1))
        return
    print(f"recall at {FALSE_ALARM_RATE:.0%} false alarms / AUROC, median of {len(simulations)} simulations")
    print(f"{'':35}" + "".join(f"{group:>22}" for group in GROUPS))
    for method in next(iter(simulations.values())):
        cells = []
        for group in GROUPS:
            recall, auroc = (
                np.median([w[method][group][m] for w in simulations.values()]) for m in ("recall", "auroc")
            )
            cells.append(f"{recall:.3f} / {auroc:.3f}")
        print(f"{method:35}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
