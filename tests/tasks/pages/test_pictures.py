from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from models.columns import Column
from models.detector import ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, QuantilePolicy
from models.records import Records, make_records
from tasks.on_demand.examine import plant_images
from tasks.pages.pictures import draw_all, draw_images, draw_losses, draw_planted, project
from tasks.rows.measures import trace_thresholds


def make_images(rows: int, seed: int) -> Records:
    return make_records(pixels=np.random.default_rng(seed).integers(0, 256, (rows, 16)).astype(np.uint8))


@pytest.mark.slow
def test_every_picture_that_the_rows_allow_is_drawn(tmp_path: Path) -> None:
    params = ModelParams(networks=(AutoencoderParams(layers=(4, 1, 4)),), fit=FitParams(epochs=2))
    column = Column("images", "image", shape=(4, 4))
    fitted = fit_detector((column,), make_images(64, 1), make_images(16, 2), params, torch.device("cpu"))
    detector = calibrate_detector(fitted, make_images(40, 3), QuantilePolicy(q=0.9))
    test, is_anomaly = make_images(30, 4), np.arange(30) % 5 == 0
    scores = detector.score(test)
    draw_all(
        tmp_path, detector, test, scores, is_anomaly, trace_thresholds(scores, is_anomaly, detector.threshold.value)
    )
    draw_images(tmp_path / "images.png", detector, test, scores)
    planted = plant_images(detector, test)
    draw_planted(tmp_path / "planted.png", detector, planted)
    drawn = {path.name: imread(path) for path in tmp_path.iterdir()}
    assert drawn.keys() == {
        "scores.png",
        "thresholds.png",
        "ranking.png",
        "confusion.png",
        "latent.png",
        "images.png",
        "planted.png",
    }
    assert all(picture.std() > 0.01 for picture in drawn.values()), "a picture is blank"


def test_without_anomalies_there_is_nothing_to_rank(tmp_path: Path) -> None:
    params = ModelParams(networks=(AutoencoderParams(layers=(4, 2, 4)),), fit=FitParams(epochs=2))
    rows = make_records(numbers=np.random.default_rng(5).normal(size=(50, 3)))
    columns = [Column(name, "numeric") for name in "abc"]
    fitted = fit_detector(columns, rows, rows, params, torch.device("cpu"))
    detector = calibrate_detector(fitted, rows, QuantilePolicy(q=0.9))
    draw_all(tmp_path, detector, rows, detector.score(rows), np.zeros(50, bool), pd.DataFrame())
    draw_images(tmp_path / "images.png", detector, rows, detector.score(rows))
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "latent.png"}


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)])
def test_a_latent_space_of_one_dimension_or_row_is_drawn_on_a_line(shape: tuple[int, int]) -> None:
    assert project(np.arange(float(np.prod(shape))).reshape(shape))[:, 1].tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("networks", [1, 3])
def test_the_losses_of_each_network_have_a_panel(tmp_path: Path, networks: int) -> None:
    epochs = [
        {"network": network, "epoch": epoch, "fit_loss": 1 / epoch, "stopping_loss": 2 / epoch, "is_best": epoch < 4}
        for network in range(networks)
        for epoch in range(1, 6)
    ]
    draw_losses(tmp_path / "losses.png", pd.DataFrame(epochs))
    assert imread(tmp_path / "losses.png").shape[1] == 560 * networks
    draw_losses(tmp_path / "none.png", pd.DataFrame(epochs).head(0))
    assert not (tmp_path / "none.png").exists()
