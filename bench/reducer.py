"""The reducer compared with the first stage alone, and with a supervised model fitted on the same verdicts.

The first stage is fitted, stopped and calibrated on rows with about 1 % unknown anomalies, with and without trimming,
and flags at a low threshold. Verdicts are the truth for the flags of an early period and for a small random sample
below the threshold. All results are for later data: precision at recall 0.5 and 0.7 of all anomalies, flagged or not.
The two stages together rank flags by the reducer's probability, then the other rows by score. The supervised model is
the same kind of classifier as the reducer, on the encoded rows. It is fitted on flags and sample (weighted by the
inverse probability of review, or equally) and ranks all later rows. Shown are mean and standard deviation over seeds.
For payments, a seed is a simulation; for creditcard, it draws the hidden anomalies, the sample and the weights.
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
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.params import TrainParams
from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]
RECALLS, HIDDEN_SHARE, TRIMMED_SHARE, SAMPLED_BELOW = (0.5, 0.7), 0.01, 0.02, 600
# The end of each set: simulated nights, or shares of the card payments in time order.
NIGHTS = {"fit": 22, "stopping": 25, "calibration": 30, "verdicts": 42, "later": 60}
PLACES = {"fit": 0.30, "stopping": 0.36, "calibration": 0.46, "verdicts": 0.73, "later": 1.0}
# Low enough that the first stage alone finds more than 70 % of the anomalies.
QUANTILE = {"payments": 0.95, "creditcard": 0.90}
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """Rows in time order, whether each is an anomaly (N,), and its set (N,); "" if left out."""

    rows: pd.DataFrame
    is_anomaly: Flags
    sets: npt.NDArray[np.str_]

    def table(self, mask: Flags) -> pa.Table:
        return pa.Table.from_pandas(self.rows[mask], preserve_index=False)


def draw_payments(seed: int) -> World:
    """One simulation; honest rows before the verdicts are dropped until 1 % are frauds."""
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
    # Drop what validation quarantines or excludes.
    rows = rows[np.isfinite(rows["amount"]) & (rows["amount"] > 0) & rows["country"].notna()]
    rows = rows[rows["event_time"].notna()].drop_duplicates("payment_id").sort_values("night", kind="stable")
    return mix(rows, rows["is_fraud"].to_numpy(), rows["night"].to_numpy() + 1, NIGHTS, seed)


def draw_creditcard(path: Path, seed: int) -> World:
    """The published rows; frauds before the verdicts are dropped until 1 % are frauds."""
    rows = pd.read_csv(path).sort_values("Time", kind="stable")
    return mix(rows, rows["Class"].to_numpy() == 1, np.arange(1, len(rows) + 1) / len(rows), PLACES, seed)


def mix(rows: pd.DataFrame, is_anomaly: Flags, place: Floats, ends: dict[str, float], seed: int) -> World:
    """Split the rows into sets by time, and drop rows before the verdicts until HIDDEN_SHARE are anomalies."""
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
    """Fit and calibrate without labels, as tasks/filter.py and tasks/train.py do."""
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
    """Verdicts on all flags and a random sample below: for the reducer, and with encoded rows as features."""
    is_flag = detector.score(records) > detector.threshold.value
    inclusion = np.where(is_flag, 1.0, min(1.0, SAMPLED_BELOW / np.count_nonzero(~is_flag)))
    is_reviewed = np.random.default_rng(seed).random(len(is_flag)) < inclusion
    rows = (is_anomaly[is_reviewed], is_flag[is_reviewed], inclusion[is_reviewed], np.flatnonzero(is_reviewed))
    picked = records[torch.from_numpy(is_reviewed)]
    return Verdicts(detector.describe(picked), *rows), Verdicts(encode_records(detector.encoder, picked), *rows)


def measure_precision(is_anomaly: Flags, ranking: Floats) -> list[float]:
    """The best precision at a recall of at least each of RECALLS."""
    precision, recall, _ = precision_recall_curve(is_anomaly, ranking)
    return [float(precision[recall >= least].max()) for least in RECALLS]


def run_seed(
    world: World, learn: TrainParams, q: float, trim: bool, seed: int, params: ReducerParams
) -> dict[str, list[float]]:
    """Measure one first stage, its reducer and the supervised model on later rows."""
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
    unweighted = predict(fit_classifier(replace(plain, inclusion=np.ones(len(plain))), params), encoded)
    is_alert, gain = is_flag & ~is_suppressed, reducer.header.gain
    return {
        "first stage": measure_precision(truth, scores),
        "first stage + reducer": measure_precision(truth, np.where(is_flag, probabilities, scores / scores.max() - 2)),
        "supervised, weighted": measure_precision(truth, weighted),
        "supervised, unweighted": measure_precision(truth, unweighted),
        "threshold: recall, precision, rows": [is_flag[truth].mean(), truth[is_flag].mean(), is_flag.mean()],
        "cut: recall, precision, rows": [is_alert[truth].mean(), truth[is_alert].mean(), is_alert.mean()],
        "verdicts, confirmed": [gain.verdicts, gain.confirmed],
        "recall of flags kept: expected, later": [gain.recall_kept, is_alert[truth].sum() / is_flag[truth].sum()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="creditcard.csv or an extract (default: payments only)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--kinds", nargs="+", choices=("network", "forest"), default=["network"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("payments", "creditcard") if options.data else ("payments",):
        learn = load_detector(PROJECT, name).detector.train
        found: dict[tuple[str, bool, str], list[list[float]]] = defaultdict(list)
        started = time.perf_counter()
        for seed in options.seeds:
            world = draw_payments(seed) if name == "payments" else draw_creditcard(options.data, seed)
            for kind in options.kinds:
                params = NetworkReducerParams(seed=seed) if kind == "network" else ForestReducerParams(seed=seed)
                for trim in (False, True):
                    for method, values in run_seed(world, learn, QUANTILE[name], trim, seed, params).items():
                        found[kind, trim, method].append(values)
        print(f"{name}: {len(options.seeds)} seeds in {time.perf_counter() - started:.0f} s")
        for (kind, trim, method), values in found.items():
            cells = zip(np.mean(values, axis=0), np.std(values, axis=0), strict=True)
            figures = "  ".join(f"{mean:8.3f} ± {spread:.3f}" for mean, spread in cells)
            print(f"{kind:8} {'trimmed' if trim else 'untrimmed':9} {method:40} {figures}")


if __name__ == "__main__":
    main()
