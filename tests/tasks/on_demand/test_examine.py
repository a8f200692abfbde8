"""Drawn images in the place of test images, and how many of them are flagged, by kind."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sites import open_site

from models.columns import Column
from models.detector import ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, QuantilePolicy
from models.records import Records, make_records
from tasks.filter import LABEL, TrainingSet
from tasks.on_demand.examine import examine_bundle, plant_images
from tasks.rows.images import DRAWN
from tasks.sources.images import make_field, to_arrow

CUTOFF = date(2026, 3, 1)


def make_images(n: int, seed: int) -> np.ndarray:
    """Dark images (n, 8, 8), so that nothing that is drawn resembles them."""
    return np.random.default_rng(seed).integers(0, 20, (n, 8, 8)).astype(np.uint8)


def make_pixels(n: int, seed: int) -> Records:
    return make_records(pixels=make_images(n, seed).reshape(n, -1))


def test_drawn_images_are_measured_by_kind_and_shown(tmp_path: Path) -> None:
    params = ModelParams(networks=(AutoencoderParams(layers=(4, 2, 4)),), fit=FitParams(epochs=3))
    columns = (Column("photo", "image", shape=(8, 8)),)
    fitted = fit_detector(columns, make_pixels(64, 1), make_pixels(16, 2), params, torch.device("cpu"))
    detector = calibrate_detector(fitted, make_pixels(60, 3), QuantilePolicy(q=0.9))
    detector.save(tmp_path / "bundle")
    site = open_site(tmp_path)
    partition = site.lake.write("clean", site.detector, CUTOFF)
    schema = pa.schema([make_field("photo", (8, 8)), pa.field(LABEL, pa.int8())])
    for name, n in (("tuning", 0), ("test", 30)):
        with partition.part(name, source=name) as part:
            part.append(pa.table([to_arrow(make_images(n, 4)), pa.array([0] * n, pa.int8())], schema=schema))
    partition.commit({})
    rows = TrainingSet(CUTOFF, "hash", {"test": 30}, {}, CUTOFF, CUTOFF, "all", 1.0)
    site.home.mkdir(exist_ok=True)
    examine_bundle(site, rows, tmp_path / "bundle", None)

    metrics = json.loads((site.home / "metrics.json").read_text())
    planted = plant_images(detector, make_pixels(30, 4))
    assert tuple(metrics["planted"]) == tuple(sorted(DRAWN)) == tuple(sorted(planted))
    for kind, records in planted.items():
        scores = detector.score(records)
        assert metrics["planted"][kind]["recall"] == (scores > detector.threshold.value).mean() > 0.9
        assert metrics["planted"][kind]["mean_score"] == scores.mean()
    assert (metrics["rows"], metrics["anomalies"], metrics["recall"]) == (30, 0, None)  # they are no test rows
    by_kind = pd.read_csv(site.home / "recall_by_kind.csv")
    assert set(by_kind["kind"]) == {f"planted {kind}" for kind in DRAWN} and set(by_kind["rows"]) == {30}
    assert (site.home / "plots" / "planted.png").exists()


def test_a_detector_without_images_gets_none(tmp_path: Path) -> None:
    rows = make_records(numbers=np.random.default_rng(5).normal(size=(50, 1)))
    params = ModelParams(networks=(AutoencoderParams(layers=(2,)),), fit=FitParams(epochs=1))
    assert plant_images(fit_detector([Column("a", "numeric")], rows, rows, params, torch.device("cpu")), rows) == {}
