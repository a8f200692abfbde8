"""The smallest detector that has every kind of part: made in a tenth of a second, scored in a millisecond."""

from pathlib import Path

import numpy as np
import torch

from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, NetworkReducerParams, QuantilePolicy
from models.records import Records, make_records
from models.reducer import Gain, NetworkClassifier, Reducer, ReducerHeader

COLUMNS = (Column("amount", "numeric"), Column("country", "categorical", ("DE", "FR")), Column("at", "datetime"))


def make_tiny_records(n: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    times = 1_772_323_200_000_000 + rng.integers(0, 86_400_000_000, (n, 1))
    return make_records(rng.normal(size=(n, 1)), rng.integers(0, 3, (n, 1)), times, None, None)


def make_tiny_detector(seed: int = 1) -> Detector:
    network = AutoencoderParams(kind="autoencoder", layers=(4, 2, 4))
    params = ModelParams(networks=(network,), fit=FitParams(epochs=2, batch_size=32, seed=seed))
    detector = fit_detector(COLUMNS, make_tiny_records(64), make_tiny_records(32, 1), params, torch.device("cpu"))
    policy = QuantilePolicy(kind="quantile", q=0.9)
    lineage = {"trained_through": "2026-02-28"}
    return calibrate_detector(detector, make_tiny_records(200, 2), policy).with_lineage(lineage)


def save_tiny_detector(folder: Path, seed: int = 1) -> str:
    return make_tiny_detector(seed).save(folder)


def add_reducer(detector: Detector, cut: float) -> Detector:
    """The detector with an untrained second stage: a cut above 1 suppresses every flag, a cut of 0 none."""
    width = detector.encoder.width + len(detector.encoder.units) + 2  # what it reads of a flag: describe_records
    classifier = NetworkClassifier(width, NetworkReducerParams()).eval()
    gain = Gain(
        verdicts=1, flags=1, confirmed=1, first_stage_recall=1, precision_before=1, precision_after=1, recall_kept=1,
        alerts_share=1,
    )  # fmt: skip
    return detector.with_reducer(Reducer(classifier, ReducerHeader(params=NetworkReducerParams(), cut=cut, gain=gain)))
