"""Score kinds of the models on eleven ADBench tables, compared with an isolation forest and neighbour distances.

The usual protocol: fit on half of the normal rows, test on the other half and all anomalies. The detector uses 15 % of
its half for early stopping, and the same settings for every table. Large tables are sampled with a constant share of
anomalies (--most). Cells: AUROC / average precision in percent. Han et al. 2022, arXiv:2206.09426.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from models.columns import Column
from models.detector import ModelParams, fit_detector
from models.encoders import choose_kinds
from models.params import AutoencoderParams, EncodeParams, FitParams, NeighboursParams, ResidualParams
from models.records import make_records

TABLES = (
    "2_annthyroid", "6_cardio", "11_donors", "24_mnist", "26_optdigits", "28_pendigits", "30_satellite",
    "31_satimage-2", "32_shuttle", "34_smtp", "38_thyroid",
)  # fmt: skip
NETWORKS = (AutoencoderParams(layers=(64, 2, 64)),)
STOPPING = 0.15
Floats = npt.NDArray[np.float64]


def split_table(path: Path, seed: int, most: int) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Fit rows, test rows, and which test rows are anomalies; at most `most` normal rows in each half."""
    with np.load(path) as table:
        x, is_anomaly = table["X"].astype(np.float64), table["y"] == 1
    rng = np.random.default_rng(seed)
    normal, anomalies = rng.permutation(np.flatnonzero(~is_anomaly)), rng.permutation(np.flatnonzero(is_anomaly))
    half = len(normal) // 2
    fit, tested = normal[:half][:most], normal[half:][:most]
    anomalies = anomalies[: max(30, round(len(anomalies) * len(tested) / (len(normal) - half)))]
    return x[fit], x[np.concatenate([tested, anomalies])], np.arange(len(tested) + len(anomalies)) >= len(tested)


def score_detectors(fit: Floats, test: Floats, seed: int) -> Iterator[tuple[str, Floats]]:
    cut = int(len(fit) * (1 - STOPPING))
    rows, stopping, tested = make_records(fit[:cut]), make_records(fit[cut:]), make_records(test)
    columns = choose_kinds([Column(f"c{i}", "numeric") for i in range(fit.shape[1])], rows, EncodeParams())
    params = ModelParams(networks=NETWORKS, fit=FitParams(seed=seed), score=NeighboursParams())
    detector = fit_detector(columns, rows, stopping, params, torch.device("cpu"))
    for kind in ("mean_squared", "standardised"):
        yield kind, replace(detector, score_params=ResidualParams(kind=kind)).score(tested)
    yield "neighbours", detector.score(tested)


def score_peers(fit: Floats, test: Floats, seed: int) -> Iterator[tuple[str, Floats]]:
    yield "forest", -IsolationForest(n_estimators=200, random_state=seed).fit(X=fit).score_samples(test)
    scaler = StandardScaler().fit(fit)
    finder = NearestNeighbors(n_neighbors=5).fit(scaler.transform(fit))
    distances = finder.kneighbors(scaler.transform(test))[0]
    yield "kNN mean", distances.mean(axis=1)
    yield "kNN 5th", distances[:, -1]


def measure(is_anomaly: npt.NDArray[np.bool_], scores: Floats) -> tuple[float, float]:
    return float(roc_auc_score(is_anomaly, scores)), float(average_precision_score(is_anomaly, scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the ADBench .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of splits and fits; the mean is shown")
    parser.add_argument(
        "--most", type=int, default=20_000, help="maximum number of normal rows in each half of a table"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), []
    for number, name in enumerate(TABLES):
        runs = []
        for seed in options.seeds:
            fit, test, is_anomaly = split_table(options.data / f"{name}.npz", seed, options.most)
            scores = dict([*score_detectors(fit, test, seed), *score_peers(fit, test, seed)])
            runs.append([measure(is_anomaly, found) for found in scores.values()])
        if number == 0:
            print(f"{'':16}" + "".join(f"{method:>16}" for method in scores))
        rows.append(100 * np.mean(runs, axis=0))  # (methods, 2)
        show(name, rows[-1])
    show("mean", np.mean(rows, axis=0))
    print(f"{time.perf_counter() - started:.0f} s")


def show(name: str, measured: Floats) -> None:
    print(f"{name:16}" + "".join(f"{f'{auroc:.1f} / {ap:.1f}':>16}" for auroc, ap in measured), flush=True)


if __name__ == "__main__":
    main()
