"""Rows per second of fitting and scoring, on the CPU and, if there is one, on a GPU.

Measures a network as small as the bundled detectors' and a wide one, in float32 and bfloat16, compiled, and on all GPUs
together. The first epoch and the first pass, which compile and warm up, are not counted. Prints a table for
docs/performance.md.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from models.columns import Column
from models.detector import Detector, ModelParams, fit_detector
from models.fitting import EpochLog
from models.params import AutoencoderParams, FitParams, NeighboursParams, ResidualParams, ScoringParams
from models.records import Records, make_records

CPU = torch.device("cpu")
VALUES = 8  # of each categorical column, which has 9 slots
NETWORKS = {
    "narrow (32, 7, 32)": AutoencoderParams(layers=(32, 7, 32)),
    "wide (1024, 64, 1024)": AutoencoderParams(layers=(1024, 64, 1024)),
}
SCORES: dict[str, ScoringParams] = {
    "residual": ResidualParams(),
    "2,000 neighbours": NeighboursParams(),
    "2,000 neighbours, spread": NeighboursParams(draw="spread"),
    "4,000 neighbours": NeighboursParams(references=4000),
    "4,000 neighbours, spread": NeighboursParams(references=4000, draw="spread"),
}
FITS = {
    "float32": FitParams(),
    "bfloat16": FitParams(precision="bfloat16"),
    "float32, compiled": FitParams(compile=True),
    "bfloat16, compiled": FitParams(precision="bfloat16", compile=True),
}


def draw_records(rows: int, numeric: int, categorical: int, seed: int) -> Records:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 4)).astype(np.float32)
    numbers = hidden @ rng.normal(size=(4, numeric)) + 0.1 * rng.normal(size=(rows, numeric))
    return make_records(numbers, rng.integers(0, VALUES, (rows, categorical)))


def fit(
    network: AutoencoderParams, learn: FitParams, rows: Records, device: torch.device, devices: int = 1,
    score: ScoringParams = SCORES["residual"],
) -> tuple[Detector, float]:  # fmt: skip
    """A fitted detector, and its fit rows per second."""
    epochs: list[EpochLog] = []
    params = ModelParams(networks=(network,), fit=learn, score=score)
    log = lambda number, epoch: epochs.append(epoch)  # noqa: E731
    columns = [Column(f"x{i}", "numeric") for i in range(rows.numbers.shape[1])]
    columns += [Column(f"c{i}", "categorical", tuple(map(str, range(VALUES)))) for i in range(rows.codes.shape[1])]
    detector = fit_detector(columns, rows, rows[:4096], params, device, log, devices)
    return detector, len(rows) / statistics.median(epoch.seconds for epoch in epochs[1:])


def time_scoring(detector: Detector, rows: Records) -> float:
    # CPU seconds, where other processes may share the processor.
    clock = time.process_time if detector.spreads.device == CPU else time.perf_counter
    detector.score(rows[: 2 * detector.block])
    started = clock()
    detector.score(rows)
    return len(rows) / (clock() - started)


def name_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, 1 thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of fit rows, and of rows to score")
    parser.add_argument("--batch", type=int, default=8192, help="rows per mini-batch")
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs; the first is not counted")
    parser.add_argument(
        "--cpu-share", type=float, default=0.02, help="share of the rows that the CPU uses for the wide network"
    )
    parser.add_argument(
        "--columns", type=int, nargs=2, default=(20, 4), metavar=("NUMERIC", "CATEGORICAL"),
        help="number of numeric columns, a slot each, and of categorical ones, 9 slots each",
    )  # fmt: skip
    parser.add_argument("--only-score", action="store_true", help="do not time fits")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    devices = [CPU, *([torch.device("cuda")] if gpus else [])]
    print(f"{options.rows:,} rows, batches of {options.batch:,}, torch {torch.__version__}\n")
    if not gpus:
        print("torch finds no GPU.\n")
    print("| device | network | what | rows/s |\n|---|---|---|---|")
    records = draw_records(options.rows, *options.columns, seed=1)
    for name, network in NETWORKS.items():
        for device in devices:
            few = name.startswith("wide") and device is CPU
            rows = records[: int(options.rows * options.cpu_share)] if few else records
            row = f"| {name_device(device)} | {name} |"
            brief = {"epochs": options.epochs, "batch_size": options.batch, "patience_epochs": options.epochs}
            for what, learn in {} if options.only_score else FITS.items():
                _, rate = fit(network, learn.model_copy(update=brief), rows, device)
                print(f"{row} fit, {what} | {rate:,.0f} |", flush=True)
            if device.type == "cuda" and gpus > 1 and not options.only_score:
                _, rate = fit(network, FITS["float32"].model_copy(update=brief), rows, device, gpus)
                print(f"{row} fit, float32, {gpus} together | {rate:,.0f} |", flush=True)
            for what, score in SCORES.items():
                detector, _ = fit(network, FitParams(epochs=2, batch_size=1024), rows[:20_000], CPU, score=score)
                moved = detector.to(device)
                difference = np.abs(moved.score(rows[:100_000]) / detector.score(rows[:100_000]) - 1).max()
                rate = time_scoring(moved, rows if what == "residual" else rows[:100_000])
                agreement = f", differs from the CPU's by {difference:.1e}" if device.type == "cuda" else ""
                print(f"{row} score, {what}{agreement} | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
