"""The second stage against the first, and against a supervised model that learnt from the same verdicts.

The first stage is fitted, stopped and calibrated on a mixture with about 1 % unknown anomalies, with and without
trimming, and flags at a low threshold. Verdicts are the truth on an early stretch's flags and on a small random sample
below the threshold. Everything is measured on data later than the verdicts: precision at recall 0.5 and 0.7 of all
anomalies there, flagged or not. The stack ranks flags by the reducer's probability, the other rows after them by
score. The supervised model is the reducer's own kind of classifier on the encoded rows, fitted on flags and sample
(weighted by the inverse of their chance of being reviewed, or all alike), and ranks all later rows. Mean and standard
deviation over seeds are shown: worlds of the simulator for payments; for creditcard, whose rows are what they are,
which anomalies lie hidden, the sample and the weights.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from sklearn.metrics import precision_recall_curve

from flows.config.params import load_detector
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import choose_kinds, encode_records
from models.params import ForestReducerParams, NetworkReducerParams, QuantilePolicy, ReducerLimits, ReducerParams
from models.records import Records
from models.reducer import Verdicts, fit_classifier, fit_reducer, predict
from tasks.filter import find_outliers
from tasks.params import TrainParams
from tasks.rows.columns import describe_columns, to_records
from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]
RECALLS, HIDDEN_SHARE, TRIMMED_SHARE, SAMPLED_BELOW = (0.5, 0.7), 0.01, 0.02, 600
# The last place of each set: nights of the simulator, shares of the card payments in order of time.
NIGHTS = {"fit": 22, "stopping": 25, "calibration": 30, "verdicts": 42, "later": 60}
PLACES = {"fit": 0.30, "stopping": 0.36, "calibration": 0.46, "verdicts": 0.73, "later": 1.0}
# Low enough that the first stage alone finds more than 0.7 of the anomalies.
QUANTILE = {"payments": 0.95, "creditcard": 0.90}
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """Rows in order of time, whether each is an anomaly (N,), and its set (N,), "" where it is left out."""

    rows: pd.DataFrame
    is_anomaly: Flags
    sets: npt.NDArray[np.str_]

    def table(self, mask: Flags) -> pa.Table:
        return pa.Table.from_pandas(self.rows[mask], preserve_index=False)


def draw_payments(seed: int) -> World:
    """A world of the simulator; of the honest rows before the verdicts so many go that 1 % of the rest is fraud."""
    detector = load_detector(PROJECT, "payments").detector
    source = detector.ingest.source.model_copy(update={"seed": seed})
    zone, first, last = detector.time_zone, source.first_date, detector.run.last_date
    frames = []
    for file in payments.list_deliveries(source, zone, first, last):
        truth = set(payments.read_truth(source, zone, file.batch_date)["record_id"])
        for frame in payments.read_file(source, zone, file):
            is_fraud, night = frame["payment_id"].isin(truth), (file.batch_date - first).days
            frames.append(frame.assign(is_fraud=is_fraud, night=night))
    rows = pd.concat(frames, ignore_index=True)
    # What validation quarantines or excludes.
    rows = rows[np.isfinite(rows["amount"]) & (rows["amount"] > 0) & rows["country"].notna()]
    rows = rows[rows["event_time"].notna()].drop_duplicates("payment_id").sort_values("night", kind="stable")
    return mix(rows, rows["is_fraud"].to_numpy(), rows["night"].to_numpy() + 1, NIGHTS, seed)


def draw_creditcard(path: Path, seed: int) -> World:
    """The published rows; of the frauds before the verdicts so many go that 1 % of the rest is fraud."""
    rows = pd.read_csv(path).sort_values("Time", kind="stable")
    return mix(rows, rows["Class"].to_numpy() == 1, np.arange(1, len(rows) + 1) / len(rows), PLACES, seed)


def mix(rows: pd.DataFrame, is_anomaly: Flags, place: Floats, ends: dict[str, float], seed: int) -> World:
    """Cut time into sets, and leave out rows before the verdicts until a share of HIDDEN_SHARE is anomalous."""
    names = np.array(list(ends))
    sets = names[np.searchsorted(list(ends.values()), place)].astype("<U11")
    rng = np.random.default_rng(seed)
    for name in ("fit", "stopping", "calibration"):
        bad, good = (rng.permutation(np.flatnonzero((sets == name) & mask)) for mask in (is_anomaly, ~is_anomaly))
        odds = HIDDEN_SHARE / (1 - HIDDEN_SHARE)
        sets[bad[round(len(good) * odds) :]] = ""
        sets[good[round(len(bad) / odds) :]] = ""
    return World(rows, is_anomaly, sets)


def fit_first_stage(world: World, learn: TrainParams, q: float, trim: bool, seed: int) -> Detector:
    """Fit and calibrate without a label, as tasks/filter.py and tasks/train.py do."""
    sets = world.sets.copy()
    if trim:
        suspects = np.flatnonzero(np.isin(sets, ("fit", "stopping")))
        numbers = world.rows[list(learn.columns.numbers)].to_numpy(dtype=float)[suspects]
        sets[suspects[find_outliers(numbers, TRIMMED_SHARE)]] = ""
    fit, stopping, calibration = (world.table(sets == name) for name in ("fit", "stopping", "calibration"))
    described = describe_columns(learn.columns, fit)
    records, _ = to_records(fit, described)
    columns = choose_kinds(described, records, learn.encode)
    schedule = learn.fit.model_copy(update={"seed": seed})
    params = ModelParams(networks=learn.networks, fit=schedule, score=learn.score)
    fitted = fit_detector(columns, records, to_records(stopping, columns)[0], params, torch.device("cpu"))
    return calibrate_detector(fitted, to_records(calibration, columns)[0], QuantilePolicy(q=q))


def take_verdicts(detector: Detector, records: Records, is_anomaly: Flags, seed: int) -> tuple[Verdicts, Verdicts]:
    """The truth about all flags and a random sample below; for the reducer, and with encoded rows as features."""
    is_flag = detector.score(records) > detector.threshold.value
    inclusion = np.where(is_flag, 1.0, min(1.0, SAMPLED_BELOW / np.count_nonzero(~is_flag)))
    asked = np.random.default_rng(seed).random(len(is_flag)) < inclusion
    rows = (is_anomaly[asked], is_flag[asked], inclusion[asked], np.flatnonzero(asked))
    picked = records[torch.from_numpy(asked)]
    return Verdicts(detector.describe(picked), *rows), Verdicts(encode_records(detector.encoder, picked), *rows)


def measure_precision(is_anomaly: Flags, ranking: Floats) -> list[float]:
    """The best precision at each of RECALLS or more."""
    precision, recall, _ = precision_recall_curve(is_anomaly, ranking)
    return [float(precision[recall >= asked].max()) for asked in RECALLS]


def run_seed(
    world: World, learn: TrainParams, q: float, trim: bool, seed: int, params: ReducerParams
) -> dict[str, list[float]]:
    """One first stage, its verdicts, its reducer and the supervised model, measured on later rows."""
    detector = fit_first_stage(world, learn, q, trim, seed)
    reviewed, later = (world.sets == name for name in ("verdicts", "later"))
    records, _ = to_records(world.table(reviewed), detector.columns)
    verdicts, plain = take_verdicts(detector, records, world.is_anomaly[reviewed], seed)
    reducer = fit_reducer(verdicts, params, ReducerLimits())
    tested, _ = to_records(world.table(later), detector.columns)
    truth, scores = world.is_anomaly[later], detector.score(tested)
    is_flag = scores > detector.threshold.value
    probabilities, is_suppressed = detector.with_reducer(reducer).reduce(tested)
    encoded = encode_records(detector.encoder, tested)
    weighted = predict(fit_classifier(plain, params), encoded)
    alike = predict(fit_classifier(replace(plain, inclusion=np.ones(len(plain))), params), encoded)
    is_alert, gain = is_flag & ~is_suppressed, reducer.header.gain
    return {
        "first stage": measure_precision(truth, scores),
        "first stage + reducer": measure_precision(truth, np.where(is_flag, probabilities, scores / scores.max() - 2)),
        "supervised, weighted": measure_precision(truth, weighted),
        "supervised, verdicts alike": measure_precision(truth, alike),
        "threshold: recall, precision, rows": [is_flag[truth].mean(), truth[is_flag].mean(), is_flag.mean()],
        "cut: recall, precision, rows": [is_alert[truth].mean(), truth[is_alert].mean(), is_alert.mean()],
        "verdicts, confirmed": [gain.verdicts, gain.confirmed],
        "recall of flags kept: expected, later": [gain.recall_kept, is_alert[truth].sum() / is_flag[truth].sum()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="creditcard.csv, or a part of it; without it payments only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--kinds", nargs="+", choices=("network", "forest"), default=["network"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("payments", "creditcard") if asked.data else ("payments",):
        learn = load_detector(PROJECT, name).detector.train
        found: dict[tuple[str, bool, str], list[list[float]]] = defaultdict(list)
        started = time.perf_counter()
        for seed in asked.seeds:
            world = draw_payments(seed) if name == "payments" else draw_creditcard(asked.data, seed)
            for kind in asked.kinds:
                params = NetworkReducerParams(seed=seed) if kind == "network" else ForestReducerParams(seed=seed)
                for trim in (False, True):
                    for method, values in run_seed(world, learn, QUANTILE[name], trim, seed, params).items():
                        found[kind, trim, method].append(values)
        print(f"{name}: {len(asked.seeds)} seeds in {time.perf_counter() - started:.0f} s")
        for (kind, trim, method), values in found.items():
            cells = zip(np.mean(values, axis=0), np.std(values, axis=0), strict=True)
            told = "  ".join(f"{mean:8.3f} ± {spread:.3f}" for mean, spread in cells)
            print(f"{kind:8} {'trimmed' if trim else 'as it is':9} {method:40} {told}")


if __name__ == "__main__":
    main()
