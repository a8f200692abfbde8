from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from models.autoencoder import AutoencoderParams
from models.calibration import QuantilePolicy
from models.detector import DetectorParams, calibrate_detector, fit_detector
from models.fitting import FitParams
from models.records import Column, Records, make_records
from tasks.evaluate import trace_thresholds
from tasks.pictures import draw_all, project


def make_images(rows: int, seed: int) -> Records:
    return make_records(pixels=np.random.default_rng(seed).integers(0, 256, (rows, 16)).astype(np.uint8))


@pytest.mark.slow
def test_every_picture_that_the_rows_allow_is_drawn(tmp_path: Path) -> None:
    params = DetectorParams(networks=(AutoencoderParams(layers=(4, 1, 4)),), fit=FitParams(epochs=2))
    column = Column("images", "image", shape=(4, 4))
    fitted = fit_detector((column,), make_images(64, 1), make_images(16, 2), params, torch.device("cpu"))
    detector = calibrate_detector(fitted, make_images(40, 3), QuantilePolicy(q=0.9))
    test, is_anomaly = make_images(30, 4), np.arange(30) % 5 == 0
    scores = detector.score(test)
    draw_all(tmp_path, detector, test, scores, is_anomaly, trace_thresholds(scores, is_anomaly))
    drawn = {path.name: imread(path) for path in tmp_path.iterdir()}
    assert drawn.keys() == {"scores.png", "thresholds.png", "ranking.png", "latent.png", "images.png"}
    assert all(picture.std() > 0.01 for picture in drawn.values()), "a picture is blank"


def test_without_anomalies_there_is_nothing_to_rank(tmp_path: Path) -> None:
    params = DetectorParams(networks=(AutoencoderParams(layers=(4, 2, 4)),), fit=FitParams(epochs=2))
    rows = make_records(numbers=np.random.default_rng(5).normal(size=(50, 3)))
    columns = [Column(name, "numeric") for name in "abc"]
    fitted = fit_detector(columns, rows, rows, params, torch.device("cpu"))
    detector = calibrate_detector(fitted, rows, QuantilePolicy(q=0.9))
    draw_all(tmp_path, detector, rows, detector.score(rows), np.zeros(50, bool), pd.DataFrame())
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "latent.png"}


def test_a_latent_space_of_one_dimension_is_drawn_on_a_line() -> None:
    assert project(np.arange(5.0)[:, None])[:, 1].tolist() == [0.0] * 5
