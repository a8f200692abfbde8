"""The mnist detector on images that are not digits: noise, drawn shapes and altered digits.

Two networks are fitted on MNIST digits: that of params.yaml, and one with a single hidden layer as wide as its
bottleneck. The last 10,000 digits of the archive are held out: half set the threshold (99th percentile), half are
tested and altered, 1,000 of each kind. Columns, encoder and score are those of a nightly run.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from flows.config.params import load_detector
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.fitting import EpochLog
from models.params import AutoencoderParams, FitParams, QuantilePolicy
from models.records import Records
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.images import draw_images
from tasks.rows.params import ColumnsParams, TrainParams
from tasks.sources.images import make_field, to_arrow

PROJECT = Path(__file__).resolve().parents[1]
STOPPING, CALIBRATION, TESTED = 2_000, 5_000, 5_000  # the last digits; all earlier ones are fit rows
EACH, SIDE = 1_000, 28
Images = npt.NDArray[np.uint8]


def to_table(images: Images) -> pa.Table:
    return pa.table([to_arrow(images)], schema=pa.schema([make_field("images", (SIDE, SIDE))]))


def alter(rng: np.random.Generator, digits: Images) -> dict[str, Images]:
    """Digits altered in four ways."""
    order = rng.permutation(SIDE * SIDE)
    occluded = digits.copy()
    for image, (top, left) in zip(occluded, rng.integers(6, 13, (EACH, 2)), strict=True):
        image[top : top + 10, left : left + 10] = 128
    return {
        "digits shifted by 6 pixels": np.stack([np.roll(d, s, k) for d, s, k in zip(
            digits, rng.choice([-6, 6], EACH), rng.integers(0, 2, EACH), strict=True)]),
        "digits inverted": 255 - digits,
        "digits behind a grey square of 10 x 10": occluded,
        "digits, pixels shuffled": digits.reshape(EACH, -1)[:, order].reshape(digits.shape),
    }  # fmt: skip


def fit(parts: dict[str, Records], learn: TrainParams, network: AutoencoderParams, fit_params: FitParams) -> Detector:
    """Fit and calibrate a detector, and print one line about the training."""
    params = ModelParams(networks=(network,), fit=fit_params, score=learn.score, threads=torch.get_num_threads())
    logs: list[EpochLog] = []
    columns = describe_columns(ColumnsParams(image=("images",)), to_table(np.zeros((1, SIDE, SIDE), np.uint8)))
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fitted = fit_detector(columns, parts["fit"], parts["stopping"], params, device, lambda _, log: logs.append(log))
    took, best = time.perf_counter() - started, max(log.epoch for log in logs if log.is_best)
    print(f"{'-'.join(map(str, network.layers))}: best of {len(logs)} epochs {best}, {took:.0f} s on {device.type}")
    return calibrate_detector(fitted, parts["calibration"], QuantilePolicy(q=0.99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="mnist_train.npz, with array images (N, 28, 28)")
    parser.add_argument("--epochs", type=int, help="number of epochs (default: as in params.yaml)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learn = load_detector(PROJECT, "mnist").detector.train
    fit_params = learn.fit.model_copy(update={"epochs": options.epochs} if options.epochs else {})
    with np.load(options.archive, allow_pickle=False) as archive:
        images = archive["images"]
    columns = describe_columns(ColumnsParams(image=("images",)), to_table(images[:1]))
    bounds = np.cumsum([len(images) - STOPPING - CALIBRATION - TESTED, STOPPING, CALIBRATION])
    pieces = dict(zip(("fit", "stopping", "calibration", "test"), np.split(images, bounds), strict=True))
    rng = np.random.default_rng(0)
    tested = {"held-out digits": pieces.pop("test")}
    drawn = {"uniform noise": "noise", "circles": "circles", "crosses": "crosses", "lines": "lines"}
    tested |= {name: draw_images(kind, EACH, (SIDE, SIDE), rng) for name, kind in drawn.items()}
    tested |= alter(rng, tested["held-out digits"][:EACH])
    parts = {name: to_records(to_table(piece), columns)[0] for name, piece in pieces.items()}

    [own] = learn.networks
    single = own.model_copy(update={"layers": (min(own.layers),)})
    networks = own, single
    detectors = [fit(parts, learn, network, fit_params) for network in networks]
    print(f"\n{'':40}" + "".join(f"{'-'.join(map(str, network.layers)):>26}" for network in networks))
    print(f"{'':40}" + f"{'mean abs. error  flagged':>26}" * len(detectors))
    for name, found in tested.items():
        records, _ = to_records(to_table(found), columns)
        cells = ""
        for detector in detectors:
            scores = detector.score(records)
            cells += f"{scores.mean():>16.4f} {(scores > detector.threshold.value).mean():>9.1%}"
        print(f"{name:40}{cells}")


if __name__ == "__main__":
    main()
