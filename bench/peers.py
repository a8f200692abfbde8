"""Nightjar beside PyOD and Anomstack's way: rows per CPU second and peak memory, on the same payments.

    python -m pip install --no-deps --target peers pyod numba llvmlite    # Nightjar does not need them
    PYTHONPATH=peers python bench/peers.py

Each case runs in a separate process with one thread; imports and loading are not timed. Networks are fitted on the same
rows for the same epochs, without early stopping. "PyOD default" has its own layers and batches of 32 rows; "PyOD, our
network" has our layers, activation and batch size. PyOD gets encoded rows; our fit and score include encoding, and our
night runs from landing to published flags. A fit's rate counts a row once per epoch, for the forest once. Our fit
includes the loss of half as many stopping rows, PyOD's the scores of its fit rows.

Anomstack is not on PyPI. A night in its way is written here: read the rows from DuckDB as a pandas frame, expand the
categories, let PyOD predict probabilities, insert them into a table. It does not validate, explain or replace anything.
"""

import argparse
import importlib.util
import json
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from throughput import DAY, NAME, PROJECT, open_site, prepare, score_and_publish

from flows.config.params import load_detector
from flows.config.quiet import hush_at_exit, hush_great_expectations
from models.detector import Detector, ModelParams, fit_detector
from models.encoders import encode_records
from models.params import AutoencoderParams
from models.records import Records, make_records
from tasks.rows.columns import to_records
from tasks.rows.expectations import load_great_expectations
from tasks.stores.site import Site
from tasks.validate import check_accepted, validate_batches

OURS, DEFAULT, SAME, FOREST = "Nightjar", "PyOD default", "PyOD, our network", "PyOD IForest"
CASES = [(what, method) for what in ("fit", "score") for method in (OURS, DEFAULT, SAME, FOREST)]
CASES += [("night", OURS), ("night", SAME), ("night", FOREST)]
EPOCHS, FIT_ROWS = 10, 50_000
Result = dict[tuple[str, str], dict[str, float]]  # (what, method) -> rows_per_s, peak_mb


def land_rows(site: Site, rows: int) -> None:
    """Land the night, fit a detector, and keep the rows as the cases read them: records, encoded, and in DuckDB."""
    prepare(site, rows)
    detector, lake = Detector.load(site.home / "bundle"), site.lake
    parts = lake.get("landing", NAME, DAY).parts
    table = pa.concat_tables(piece for part in parts for piece in lake.slices(part))
    records, _ = to_records(table, detector.columns)
    np.savez(site.home / "records.npz", *(part.numpy() for part in records.parts))
    np.save(site.home / "encoded.npy", encode_records(detector.encoder, records).numpy())
    with duckdb.connect(site.home / "anomstack.duckdb") as connection:
        connection.register("landed", table)
        connection.execute("create table rows as select * from landed")


def load_records(site: Site) -> Records:
    with np.load(site.home / "records.npz") as kept:
        return make_records(*kept.values())


def build_peer(method: str, epochs: int = EPOCHS) -> Any:
    from pyod.models.auto_encoder import AutoEncoder
    from pyod.models.iforest import IForest

    if method == FOREST:
        return IForest(n_jobs=1, random_state=0)
    if method == DEFAULT:
        return AutoEncoder(epoch_num=epochs, verbose=0)
    train = load_detector(PROJECT, NAME).detector.train
    [network] = train.networks
    assert isinstance(network, AutoencoderParams)
    half = network.layers[: len(network.layers) // 2 + 1]  # PyOD mirrors them
    return AutoEncoder(
        hidden_neuron_list=list(half), hidden_activation_name=network.activation, batch_norm=False, dropout_rate=0,
        batch_size=train.fit.batch_size, lr=train.fit.learning_rate, epoch_num=epochs, verbose=0,
    )  # fmt: skip


def get_ready(site: Site, what: str, method: str) -> Callable[[], object]:
    """Load what a case needs; returns the call that is timed."""
    if method == OURS:
        return {"fit": fit_ours, "score": score_ours, "night": run_our_night}[what](site)
    if what == "night":
        return run_anomstacks_night(site, method)
    encoded = np.load(site.home / "encoded.npy", mmap_mode="r")
    if what == "fit":
        return partial(build_peer(method).fit, np.array(encoded[:FIT_ROWS]))
    return partial(pickle.loads((site.home / method).read_bytes()).decision_function, np.array(encoded))


def fit_ours(site: Site) -> Callable[[], object]:
    records, learn = load_records(site), load_detector(PROJECT, NAME).detector.train
    fit = learn.fit.model_copy(update={"epochs": EPOCHS, "patience_epochs": EPOCHS})
    params = ModelParams(networks=learn.networks, fit=fit, score=learn.score, threads=1)
    columns, stopping = Detector.load(site.home / "bundle").columns, records[FIT_ROWS : FIT_ROWS * 3 // 2]
    return partial(fit_detector, columns, records[:FIT_ROWS], stopping, params, torch.device("cpu"))


def score_ours(site: Site) -> Callable[[], object]:
    return partial(Detector.load(site.home / "bundle").score, load_records(site))


def run_our_night(site: Site) -> Callable[[], object]:
    load_great_expectations()  # imported on first use, which must not be timed

    site.warehouse.migrate()
    shutil.rmtree(Path(site.lake.root, "validated"), ignore_errors=True)  # otherwise it would not validate again
    configured = load_detector(PROJECT, NAME)

    def run() -> None:
        check_accepted(NAME, validate_batches(site, configured.contract, [DAY], configured.detector.validate_))
        score_and_publish(site, configured)

    return run


def run_anomstacks_night(site: Site, method: str) -> Callable[[], object]:
    """The model is fitted before, on the first rows, as its training job would have done."""
    path, columns = site.home / "anomstack.duckdb", load_detector(PROJECT, NAME).detector.train.columns

    def expand(frame: pd.DataFrame) -> pd.DataFrame:
        rows = pd.get_dummies(frame[[*columns.numbers, *columns.categorical]], columns=list(columns.categorical))
        return rows.astype(float)[np.isfinite(rows.astype(float)).all(axis=1)]

    def read(limit: str = "") -> pd.DataFrame:
        with duckdb.connect(path) as connection:
            return connection.query(f"select * from rows {limit}").df()

    fit = expand(read(f"limit {FIT_ROWS}"))
    peer = build_peer(method, epochs=1).fit(fit.to_numpy())

    def run() -> None:
        frame = read()
        rows = expand(frame).reindex(columns=fit.columns, fill_value=0.0)
        score = peer.predict_proba(rows.to_numpy())[:, 1].round(3)
        found = pd.DataFrame({"record_id": frame.loc[rows.index, "record_id"], "score": score})
        with duckdb.connect(path) as connection:
            connection.execute("create table if not exists scores (record_id text, score double)")
            connection.register("found", found)
            connection.execute("insert into scores select * from found")

    return run


def run_one(site: Site, what: str, method: str, rows: int) -> dict[str, float]:
    """Run a case in this process; CPU seconds, rows and peak memory."""
    call = partial(land_rows, site, rows) if what == "prepare" else get_ready(site, what, method)
    began = time.process_time()
    result = call()
    seconds = time.process_time() - began
    if what == "fit" and method != OURS:
        (site.home / method).write_bytes(pickle.dumps(result))
    counted = FIT_ROWS * (1 if method == FOREST else EPOCHS) if what == "fit" else rows
    return {"seconds": seconds, "rows": counted, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(folder: Path, rows: int, repeats: int) -> Result:
    """Rows per CPU second (median of the rounds) and peak memory (maximum) of each case."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    for what, method in (("prepare", OURS), *CASES * repeats):
        command = [sys.executable, __file__, "--folder", str(folder), "--rows", str(rows), "--case", what, method]
        done = subprocess.run(command, cwd=PROJECT, env=one_thread, check=True, stdout=subprocess.PIPE, text=True)
        runs.setdefault((what, method), []).append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{what:7} {method:18} {runs[what, method][-1]['seconds']:8.2f} CPU s", file=sys.stderr)
    return {
        case: {
            "rows_per_s": statistics.median(run["rows"] / run["seconds"] for run in runs[case]),
            "peak_mb": max(run["peak_mb"] for run in runs[case]),
        }
        for case in CASES
    }


def compare(result: Result) -> list[tuple[str, float, float]]:
    """The ratios with the least that they should be."""
    rate = {case: got["rows_per_s"] for case, got in result.items()}
    night = rate["night", OURS]
    fastest = max((case for case in CASES if case[0] == "score" and case[1] != OURS), key=lambda case: rate[case])
    found = [(f"fit / {DEFAULT}", rate["fit", OURS] / rate["fit", DEFAULT], 8.0)]
    found.append((f"score / {DEFAULT}", rate["score", OURS] / rate["score", DEFAULT], 20.0))
    found.append((f"night / score of {fastest[1]}, the fastest peer", night / rate[fastest], 1.0))
    return found + [(f"night / Anomstack's with {name}", night / rate["night", name], 1.0) for name in (SAME, FOREST)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="batch size")
    parser.add_argument("--repeats", type=int, default=2, help="rounds over all cases; the median is shown")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not importlib.util.find_spec("pyod"):
        sys.exit("PyOD is not installed; bench/peers.py --help says how to get it.")
    if options.case:  # in a process started by measure
        hush_at_exit()
        hush_great_expectations()
        print(json.dumps(run_one(open_site(options.folder, options.rows), *options.case, options.rows)))
        return
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        result = measure(Path(name), options.rows, options.repeats)
    if options.json:
        print(json.dumps([{"what": what, "method": method, **got} for (what, method), got in result.items()], indent=1))
        return
    for (what, method), got in result.items():
        label = f"{method}, Anomstack's way" if what == "night" and method != OURS else method
        print(f"{what:6} {label:36} {got['rows_per_s']:>11,.0f} rows/s, peak {got['peak_mb']:>6,.0f} MB")
    for label, value, least in compare(result):
        print(f"{label:50} {value:6.2f}  (target >= {least:g})")


if __name__ == "__main__":
    main()
