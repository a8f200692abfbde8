"""Categories never seen in fitting, in tables with 20 to 100,000 categories: how they score beside normal rows.

A made table: four related numbers, a column with five categories, and one with K, as frequent as a power law of
exponent 1 says; every one of the K occurs in the fit rows. The rows to find are normal but for the value of this
column, which occurs nowhere else. Rare: a value in the fit rows that has no slot of its own. The threshold is the
99th percentile of calibration rows. Networks are those of `nightjar init`, with fewer epochs.
"""

import argparse
import zlib
from collections import Counter

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import roc_auc_score

from models.detector import ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, NeighboursParams, QuantilePolicy, ResidualParams, ScoringParams
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.params import ColumnsParams

SIZES = (20, 250, 2_000, 20_000, 100_000)
COLUMNS = ColumnsParams(numeric=("a", "b", "c", "d"), categorical=("shop", "channel"))
SCORES: tuple[ScoringParams, ...] = (
    NeighboursParams(),
    ResidualParams(),
    ResidualParams(kind="mean_squared"),
    ResidualParams(kind="mean_absolute"),
)
NORMAL, UNSEEN = 20_000, 1_000


def make_rows(rng: np.random.Generator, shops: np.ndarray) -> pa.Table:
    """Normal rows with these values of the wide column (N,)."""
    hidden = rng.normal(size=(len(shops), 2))
    mixed = hidden @ np.array([[1.0, 0.5, -1.0, 2.0], [0.3, -1.0, 0.8, 0.2]]) + rng.normal(0, 0.3, (len(shops), 4))
    channel = np.digitize(hidden[:, 0], [-1, -0.3, 0.3, 1])
    names = pa.array([f"s{n}" for n in shops])
    return pa.table(dict(zip("abcd", mixed.T, strict=True)) | {"shop": names, "channel": channel.astype(str)})


def add_second(table: pa.Table, second: str, counts: Counter[str]) -> pa.Table:
    """Add what a second slot could say of the wide column: how rare its value is, or one of 64 buckets of its hash."""
    shops = table["shop"].to_pylist()
    if second == "frequency":
        return table.append_column(
            "second", pa.array([-np.log((counts[shop] + 0.5) / counts.total()) for shop in shops])
        )
    if second == "hashing":
        return table.append_column("second", pa.array([str(zlib.crc32(shop.encode()) % 64) for shop in shops]))
    return table


def measure(k: int, seed: int, epochs: int, second: str) -> None:
    """Print one line for each kind of score."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, k + 1)
    rows = max(20_000, 2 * k)
    drawn = np.concatenate([np.arange(k), rng.choice(k, rows - k, p=share / share.sum())])
    fit = make_rows(rng, drawn)
    stopping, calibration, normal = (make_rows(rng, rng.choice(k, NORMAL, p=share / share.sum())) for _ in range(3))
    unseen = make_rows(rng, np.arange(k, k + UNSEEN))
    counts = Counter(fit["shop"].to_pylist())
    fit, stopping, calibration, normal, unseen = (
        add_second(table, second, counts) for table in (fit, stopping, calibration, normal, unseen)
    )
    kinds = {"frequency": {"numeric": (*"abcd", "second")}, "hashing": {"categorical": ("shop", "channel", "second")}}
    columns = describe_columns(COLUMNS.model_copy(update=kinds.get(second, {})), fit)
    known = next(column.vocabulary for column in columns if column.name == "shop")
    is_rare = ~np.isin(normal["shop"].to_numpy(), known)
    records = {
        name: to_records(table, columns)[0]
        for name, table in {"fit": fit, "stop": stopping, "cal": calibration, "ok": normal, "new": unseen}.items()
    }
    for score in SCORES:
        params = ModelParams(
            networks=(AutoencoderParams(layers=(64, 2, 64)),),
            fit=FitParams(epochs=epochs, batch_size=256 if rows < 50_000 else 1024, seed=1 + seed),
            score=score,
        )
        detector = fit_detector(columns, records["fit"], records["stop"], params, torch.device("cpu"))
        detector = calibrate_detector(detector, records["cal"], QuantilePolicy(q=0.99))
        ok, new, limit = detector.score(records["ok"]), detector.score(records["new"]), detector.threshold.value
        auroc = roc_auc_score(np.repeat([0, 1], [len(ok), len(new)]), np.concatenate([ok, new]))
        line = f"{k:>7,} {score.kind:17} AUROC {auroc:.3f} flagged {(new > limit).mean():6.1%}"
        line += f" of normal {(ok > limit).mean():5.1%} median {np.median(new):.4g}"
        if is_rare.any():
            rare = ok[is_rare]
            line += f" rare: {(rare > limit).mean():6.1%} median {np.median(rare):.4g}"
            line += f" AUROC over rare {roc_auc_score(np.repeat([0, 1], [len(rare), len(new)]), [*rare, *new]):.3f}"
        print(line, flush=True)


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--second", choices=("none", "frequency", "hashing"), default="none", help="a second slot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for k in options.sizes:
        measure(k, options.seed, options.epochs, options.second)


if __name__ == "__main__":
    main()
