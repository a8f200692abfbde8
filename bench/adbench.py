"""Any table: Nightjar as `nightjar init` drafts it, beside other detectors, on ADBench and OddBench.

A folder of NAME.npz files. ADBench (Han et al. 2022) has arrays X and y: fit on half of the normal rows (at most
--fit-rows), test on the other normal rows and all anomalies. --order shuffled draws that half at random; file takes the
first half, which resembles a source that drifts, and scores lower: never compare the two. OddBench (arXiv 2602.09329)
has arrays train, test and test_labels. Nightjar uses the columns, networks and score that `init` writes, and a fifth of
its fit rows for early stopping; "before" has the 2,000 random references that `init` wrote first. neighbours and LOF
see standardised columns. PyOD is left out if it is not installed. Means and ranges are over seeds; a table counts once.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from models.detector import ModelParams, fit_detector
from models.encoders import choose_kinds
from models.params import NeighboursParams
from tasks.onboarding.draft import Request, draft_detector
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.params import TrainParams
from tasks.rows.sampling import draw_order
from tasks.rows.schema import type_rows
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource

Floats = npt.NDArray[np.float64]
Scorer = Callable[[Floats, Floats, int], Floats]  # fit rows, test rows, seed -> test scores
Change = Callable[[TrainParams, Floats], TrainParams]
NEIGHBOURS = 5


def read_table(path: Path, fit_rows: int, test_rows: int, seed: int, order: str) -> tuple[Floats, Floats, Floats]:
    """Fit rows, test rows, and which of these are anomalies (1); of too many, a uniform sample."""
    rng = np.random.default_rng(seed)
    with np.load(path, allow_pickle=False) as arrays:
        if "train" in arrays:
            fit, test, y = (arrays[name].astype(float) for name in ("train", "test", "test_labels"))
        else:
            x, labels = arrays["X"].astype(float), arrays["y"]
            normal = np.flatnonzero(labels == 0)
            normal = rng.permutation(normal) if order == "shuffled" else normal
            half = len(normal) // 2
            tested = np.concatenate([normal[half:], np.flatnonzero(labels == 1)])
            fit, test, y = x[normal[:half]], x[tested], labels[tested].astype(float)
    chosen = rng.permutation(len(test))[:test_rows]
    return fit[np.sort(rng.permutation(len(fit))[:fit_rows])], test[chosen], y[chosen]


def score_nightjar(change: Change = lambda learn, fit: learn) -> Scorer:
    """Draft the detector as init does, change it, then fit it as tasks/train.py does."""

    def score(fit: Floats, test: Floats, seed: int) -> Floats:
        names = [f"x{n}" for n in range(fit.shape[1])]
        table, tested = (pa.table(dict(zip(names, rows.T, strict=True))) for rows in (fit, test))
        arrival = Arrival("fit", "1", datetime(2026, 1, 1, tzinfo=UTC), lambda: [table])
        drafted = draft_detector(FilesSource(kind="files", path="fit"), [arrival], Request())
        learn = change(drafted.train, fit)
        learn = learn.model_copy(update={"fit": learn.fit.model_copy(update={"seed": seed + 1})})
        is_stopping = draw_order([str(n) for n in range(len(fit))], seed) < 0.2
        typed = type_rows(table, drafted.contract)
        chosen, stopping = (typed.filter(pa.array(mask)) for mask in (~is_stopping, is_stopping))
        described = describe_columns(learn.columns, chosen)
        records, stop = (to_records(rows, described)[0] for rows in (chosen, stopping))
        params = ModelParams(networks=learn.networks, fit=learn.fit, score=learn.score, threads=1)
        columns = choose_kinds(described, records, learn.encode)
        detector = fit_detector(columns, records, stop, params, torch.device("cpu"))
        return detector.score(to_records(type_rows(tested, drafted.contract), detector.columns)[0])

    return score


def compare_with(references: int, draw: Literal["random", "spread"]) -> Change:
    score = NeighboursParams(references=references, draw=draw)
    return lambda learn, fit: learn.model_copy(update={"score": score})


def score_forest(fit: Floats, test: Floats, seed: int) -> Floats:
    return -IsolationForest(random_state=seed).fit(fit).score_samples(test)


def score_neighbours(fit: Floats, test: Floats, seed: int) -> Floats:
    scaler = StandardScaler().fit(fit)
    found = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scaler.transform(fit))
    return found.kneighbors(scaler.transform(test))[0][:, -1]


def score_lof(fit: Floats, test: Floats, seed: int) -> Floats:
    scaler = StandardScaler().fit(fit)
    return -LocalOutlierFactor(novelty=True).fit(scaler.transform(fit)).score_samples(scaler.transform(test))


def score_ecod(fit: Floats, test: Floats, seed: int) -> Floats:
    """Sum over columns of the log of how rare so extreme a value is (Li et al. 2022, arXiv:2201.00382), as in PyOD."""
    ordered = np.sort(fit, axis=0)
    skewed = np.sign(((fit - fit.mean(axis=0)) ** 3).mean(axis=0))  # -1: the left tail decides
    tails = np.empty((3, *test.shape))
    for i in range(fit.shape[1]):
        left = np.searchsorted(ordered[:, i], test[:, i], side="right") + 1
        right = len(fit) - np.searchsorted(ordered[:, i], test[:, i], side="left") + 1
        tails[0, :, i], tails[1, :, i] = -np.log(left / (len(fit) + 1)), -np.log(right / (len(fit) + 1))
    tails[2] = np.where(skewed == 0, tails[0] + tails[1], np.where(skewed < 0, tails[0], tails[1]))
    return tails.max(axis=0).sum(axis=1)


def score_pyod(name: str) -> Scorer:
    def score(fit: Floats, test: Floats, seed: int) -> Floats:
        from pyod.models.auto_encoder import AutoEncoder
        from pyod.models.vae import VAE

        model = {"AutoEncoder": AutoEncoder, "VAE": VAE}[name](random_state=seed, verbose=0)
        model.fit(fit)
        return np.asarray(model.decision_function(test))

    return score


def list_methods() -> dict[str, Scorer]:
    methods: dict[str, Scorer] = {"init": score_nightjar(), "before": score_nightjar(compare_with(2000, "random"))}
    if importlib.util.find_spec("pyod"):
        methods |= {f"PyOD {name}": score_pyod(name) for name in ("AutoEncoder", "VAE")}
    peers = {"5 neighbours": score_neighbours, "LOF": score_lof, "ECOD": score_ecod, "forest": score_forest}
    return methods | peers


def list_steps() -> dict[str, Scorer]:
    """What lies between "before" and "init"."""
    changes = {
        "all rows": compare_with(20_000, "random"),
        "2,000 spread": compare_with(2000, "spread"),
        "4,000 spread": compare_with(4000, "spread"),
    }
    return {name: score_nightjar(change) for name, change in changes.items()}


def main() -> None:
    usual = list_methods()
    methods = usual | list_steps()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with one NAME.npz per table")
    parser.add_argument("--order", choices=("shuffled", "file"), default="shuffled", help="how ADBench is halved")
    parser.add_argument("--fit-rows", type=int, default=20_000, help="maximum number of fit rows, for every method")
    parser.add_argument("--test-rows", type=int, default=20_000, help="maximum number of test rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(usual))
    parser.add_argument("--tables", nargs="+", help="only the tables whose names contain one of these")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    measure({name: methods[name] for name in options.methods}, options)


def measure(methods: dict[str, Scorer], options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found: dict[str, Floats] = {}
    for path in sorted(options.folder.glob("*.npz"), key=lambda path: path.stem.split("_", 1)[-1]):
        name = path.stem.split("_", 1)[-1]
        if options.tables and not any(part in name for part in options.tables):
            continue
        figures = found[name] = np.empty((len(methods), len(options.seeds), 3))  # percent, percent, seconds
        for s, seed in enumerate(options.seeds):
            fit, test, y = read_table(path, options.fit_rows, options.test_rows, seed, options.order)
            for m, score in enumerate(methods.values()):
                started = time.perf_counter()
                scores = score(fit, test, seed)
                seconds = time.perf_counter() - started
                figures[m, s] = 100 * roc_auc_score(y, scores), 100 * average_precision_score(y, scores), seconds
        shown = ", ".join(
            f"{m} {a:.1f}/{p:.1f} {t:.1f} s" for m, (a, p, t) in zip(methods, figures.mean(1), strict=True)
        )
        print(f"{name}, {len(fit):,} fit rows: {shown}", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps({k: v.tolist() for k, v in found.items()} | {"methods": [*methods]}))
    show(list(methods), found)


def show(methods: list[str], found: dict[str, Floats]) -> None:
    """AUROC / average precision per table, their means with the range over seeds, and where each loses."""
    widths = [max(18, len(name) + 2) for name in methods]

    def lay(name: str, cells: list[str]) -> None:
        print(f"{name:26}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))

    lay("", methods)
    for name, figures in found.items():
        lay(name, [f"{a:.1f} / {p:.1f}" for a, p, _ in figures.mean(axis=1)])
    every = np.array(list(found.values()))  # (tables, methods, seeds, 3)
    by_seed = every.mean(axis=0)  # (methods, seeds, 3)
    lay("mean", [f"{a:.2f} / {p:.2f}" for a, p, _ in by_seed.mean(axis=1)])
    for k, what in enumerate(("AUROC", "average precision")):
        lay(f"{what}, seeds", [f"{of.min():.2f} to {of.max():.2f}" for of in by_seed[..., k]])
    if "5 neighbours" in methods:
        behind = every.mean(axis=2)[:, [methods.index("5 neighbours")], 0] - every.mean(axis=2)[..., 0] > 1
        lay("1 behind neighbours", [str(n) for n in behind.sum(axis=0)])
    lay("seconds, sum", [f"{t:.0f}" for t in every[..., 2].mean(axis=2).sum(axis=0)])


if __name__ == "__main__":
    main()
