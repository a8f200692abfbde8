"""Eleven ADBench tables: Nightjar with the defaults of init, PyOD's networks, an isolation forest and neighbours.

The same seeded protocol for all: fit on half of the normal rows (at most --fit-rows), test on the other normal rows and
all anomalies. Nightjar uses the columns, kinds, layers and fit settings that `nightjar init` writes for the table, and
a fifth of its fit rows for early stopping. The others use their own defaults; neighbours is the distance to the fifth
nearest fit row, with standardised columns. PyOD is left out if it is not installed. Han et al. 2022 (ADBench).
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from models.detector import ModelParams, fit_detector
from models.encoders import choose_kinds
from tasks.onboarding.draft import Request, draft_detector
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.sampling import draw_order
from tasks.rows.schema import type_rows
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource

Floats = npt.NDArray[np.float64]
Scorer = Callable[[Floats, Floats, int], Floats]  # fit rows, test rows, seed -> test scores
TEST_ROWS, NEIGHBOURS = 100_000, 5


def split(y: npt.NDArray[np.int64], fit_rows: int, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the fit rows and the test rows; a large table's test rows are a uniform sample."""
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(y == 0))
    half = len(normal) // 2
    test = rng.permutation(np.concatenate([normal[half:], np.flatnonzero(y == 1)]))[:TEST_ROWS]
    return normal[:half][:fit_rows], test


def score_nightjar(fit: Floats, test: Floats, seed: int) -> Floats:
    """Draft the detector as init does, then fit it as tasks/train.py does."""
    names = [f"x{n}" for n in range(fit.shape[1])]
    table, tested = (pa.table(dict(zip(names, rows.T, strict=True))) for rows in (fit, test))
    arrival = Arrival("fit", "1", datetime(2026, 1, 1, tzinfo=UTC), lambda: [table])
    drafted = draft_detector(FilesSource(kind="files", path="fit"), [arrival], Request())
    learn = drafted.train
    is_stopping = draw_order([str(n) for n in range(len(fit))], seed) < 0.2
    typed = type_rows(table, drafted.contract)
    chosen, stopping = (typed.filter(pa.array(mask)) for mask in (~is_stopping, is_stopping))
    described = describe_columns(learn.columns, chosen)
    records, stop = (to_records(rows, described)[0] for rows in (chosen, stopping))
    params = ModelParams(networks=learn.networks, fit=learn.fit, score=learn.score, threads=1)
    detector = fit_detector(choose_kinds(described, records, learn.encode), records, stop, params, torch.device("cpu"))
    return detector.score(to_records(type_rows(tested, drafted.contract), detector.columns)[0])


def score_forest(fit: Floats, test: Floats, seed: int) -> Floats:
    return -IsolationForest(random_state=seed).fit(fit).score_samples(test)


def score_neighbours(fit: Floats, test: Floats, seed: int) -> Floats:
    scaler = StandardScaler().fit(fit)
    found = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scaler.transform(fit))
    return found.kneighbors(scaler.transform(test))[0][:, -1]


def score_pyod(name: str) -> Scorer:
    def score(fit: Floats, test: Floats, seed: int) -> Floats:
        from pyod.models.auto_encoder import AutoEncoder
        from pyod.models.vae import VAE

        model = {"AutoEncoder": AutoEncoder, "VAE": VAE}[name](random_state=seed, verbose=0)
        model.fit(fit)
        return np.asarray(model.decision_function(test))

    return score


def list_methods() -> dict[str, Scorer]:
    methods: dict[str, Scorer] = {"nightjar init": score_nightjar}
    if importlib.util.find_spec("pyod"):
        methods |= {f"PyOD {name}": score_pyod(name) for name in ("AutoEncoder", "VAE")}
    return methods | {"isolation forest": score_forest, f"neighbours, k={NEIGHBOURS}": score_neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with one NAME.npz per table, with arrays X and y")
    parser.add_argument("--fit-rows", type=int, default=20_000, help="maximum number of fit rows, for every method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = list_methods()
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for path in sorted(options.folder.glob("*.npz"), key=lambda path: path.stem.split("_", 1)[-1]):
        with np.load(path) as arrays:
            x, y = arrays["X"].astype(float), arrays["y"]
        fit, test = split(y, options.fit_rows, options.seed)
        figures = found[path.stem.split("_", 1)[-1]] = {}
        for name, score in methods.items():
            started = time.perf_counter()
            scores = score(x[fit], x[test], options.seed)
            figures[name] = (
                float(roc_auc_score(y[test], scores)),
                float(average_precision_score(y[test], scores)),
                time.perf_counter() - started,
            )
        results = ", ".join(f"{name} {v[0]:.3f}/{v[1]:.3f} {v[2]:.0f} s" for name, v in figures.items())
        print(f"{path.stem}: {len(fit):,} fit rows, {len(test):,} test rows: {results}", file=sys.stderr)
    if options.json:
        print(json.dumps({"auroc, average precision, seconds": found}, indent=1))
        return
    print(
        f"AUROC / average precision, seed {options.seed}, at most {options.fit_rows:,} fit and {TEST_ROWS:,} test rows"
    )
    print(f"{'':14}" + "".join(f"{name:>20}" for name in methods))
    for table, figures in found.items():
        print(f"{table:14}" + "".join(f"{f'{figures[m][0]:.3f} / {figures[m][1]:.3f}':>20}" for m in methods))
    means = {m: np.mean([figures[m] for figures in found.values()], axis=0) for m in methods}
    print(f"{'mean':14}" + "".join(f"{f'{means[m][0]:.3f} / {means[m][1]:.3f}':>20}" for m in methods))
    print(f"{'seconds, sum':14}" + "".join(f"{means[m][2] * len(found):>20.0f}" for m in methods))


if __name__ == "__main__":
    main()
