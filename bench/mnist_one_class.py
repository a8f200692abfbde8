"""One-class detectors of digits: each is fitted on one digit, with the other nine as anomalies.

    python bench/mnist_one_class.py --data mnist_train.npz

The 60,000 training digits are split in file order: of the normal digit, the first 70 % to fit, 10 % to stop and 20 % to
test; of the others, the last 20 % to test. The published split tests on the 10,000 test digits. Published mean AUROC of
Deep SVDD over the ten digits: 0.948 (Ruff et al. 2018).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from models.columns import Column
from models.detector import ModelParams, fit_detector
from models.params import AutoencoderParams, FitParams, NeighboursParams, ResidualParams
from models.records import make_records

COLUMN = Column("image", "image", shape=(28, 28))
NETWORK = AutoencoderParams(layers=(128, 32, 128), activation="silu", output="sigmoid")
FIT = FitParams(epochs=30, batch_size=128, learning_rate=2e-3, patience_epochs=5)
SCORES = {"mean squared": ResidualParams(kind="mean_squared"), "neighbours": NeighboursParams(references=4000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="npz archive with arrays images (N, 28, 28) and labels"
    )
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)))
    options = parser.parse_args()
    with np.load(options.data) as archive:
        pixels, labels = archive["images"].reshape(-1, 784), archive["labels"]
    places = {digit: np.flatnonzero(labels == digit) for digit in range(10)}
    bounds = {digit: np.round(np.array([0.7, 0.8]) * len(rows)).astype(int) for digit, rows in places.items()}
    found = []
    for digit in options.digits:
        fit, stopping, own = np.split(places[digit], bounds[digit])
        others = np.concatenate([rows[bounds[d][1] :] for d, rows in places.items() if d != digit])
        records = {name: make_records(pixels=pixels[rows]) for name, rows in
                   (("fit", fit), ("stopping", stopping), ("test", np.concatenate([own, others])))}  # fmt: skip
        truth = np.arange(len(own) + len(others)) >= len(own)
        row = []
        for score in SCORES.values():
            params = ModelParams(networks=(NETWORK,), fit=FIT, score=score)
            detector = fit_detector((COLUMN,), records["fit"], records["stopping"], params, torch.device("cpu"))
            row.append(roc_auc_score(truth, detector.score(records["test"])))
        found.append(row)
        results = ", ".join(f"{name} {value:.4f}" for name, value in zip(SCORES, row, strict=True))
        print(
            f"digit {digit}: {len(fit)} fit, {len(own)} normal and {len(others)} other test digits: {results}",
            flush=True,
        )
    for name, column in zip(SCORES, np.array(found).T, strict=True):
        print(f"{name}: mean AUROC {column.mean():.4f}, {column.min():.4f} to {column.max():.4f}")


if __name__ == "__main__":
    main()
