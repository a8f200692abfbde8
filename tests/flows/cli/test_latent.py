"""`nightjar latent`: the champion's latent vectors of a night and of a file, against the bundle's own weights."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy import DAYS, FIRST, ROWS, Project, make_rows

from flows.cli.main import execute
from flows.config.setup import load_setup
from models.detector import Detector

LAST = FIRST + timedelta(days=DAYS - 1)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def encode_by_hand(day_rows: pd.DataFrame) -> np.ndarray:
    """The two layers up to the bottleneck, as products of matrices."""
    site = load_setup("orders").site
    detector = Detector.load(site.registry.fetch_bundle(site.registry.get_champion()))
    weights = {name: value.double().numpy() for name, value in detector.networks[0].state_dict().items()}
    encoder = detector.encoder
    numbers = (day_rows[["items", "spend"]].to_numpy() - encoder.mean.numpy()) / encoder.scale.numpy()
    shops = np.stack([day_rows["shop"] == name for name in detector.columns[2].vocabulary] + [0 * day_rows["items"]], 1)
    x = np.hstack([numbers, shops.astype(float)])
    for layer in ("stack.0", "stack.2"):
        x = np.tanh(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    return x


def test_the_vectors_of_a_night_are_those_of_the_bottleneck(
    trained: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "points.parquet"
    found = answer(capsys, "latent", "orders", "--output", str(output))
    assert (found["batch_date"], found["networks"], found["rows"], found["encoded"]) == (str(LAST), [2], ROWS, ROWS)
    points = pd.read_parquet(output).set_index("record_id")
    assert list(points.columns) == ["latent_0", "latent_1"]
    rows = make_rows(LAST).set_index("order_id").loc[points.index]
    assert points.to_numpy() == pytest.approx(encode_by_hand(rows), abs=1e-5)
    assert [one["latent_0"] for one in found["records"]] == points["latent_0"].head(10).tolist()
    assert execute(["latent", "orders", "--date", str(LAST)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{LAST}: nightjar-orders version 1, latent space 2 wide" in shown
    assert f"{ROWS} rows: {ROWS} encoded; 0 bad" in shown


def test_a_file_gives_the_vectors_of_its_good_rows_and_counts_the_bad_ones(
    trained: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = make_rows(LAST + timedelta(days=1)).drop(columns="fraud")
    rows.loc[3, "spend"] = -1.0
    rows.to_csv(tmp_path / "loose.csv", index=False)
    found = answer(capsys, "latent", "orders", "--source", str(tmp_path / "loose.csv"))
    assert (found["rows"], found["encoded"], found["batch_date"]) == (ROWS, ROWS - 1, None)
    assert sum(found["reasons"].values()) == 1
    good = rows.drop(index=3)
    assert [one["record_id"] for one in found["records"]] == good["order_id"].tolist()
    points = [[one["latent_0"], one["latent_1"]] for one in found["records"]]
    assert np.array(points) == pytest.approx(encode_by_hand(good), abs=1e-5)


def test_a_date_without_rows_and_a_date_of_a_file_are_refused(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["latent", "orders", "--date", "2020-01-01"]) == 1
    assert "has no validated rows for 2020-01-01" in capsys.readouterr().err
    assert execute(["latent", "orders", "--date", "2020-01-01", "--source", "x.csv"]) == 2


def test_explain_names_the_nearest_normal_records_of_a_flag_on_request(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    fraud = f"{LAST:%m%d}-{ROWS - 1:04d}"
    assert "nearest" not in answer(capsys, "explain", "orders", fraud)
    near = answer(capsys, "explain", "orders", fraud, "--nearest")["nearest"]
    frauds = {f"{day:%m%d}-{ROWS - k:04d}" for day in (LAST, LAST - timedelta(days=1)) for k in (1, 2, 3)}
    found = [one["record_id"] for one in near["near"]]
    assert near["flag"]["record_id"] == fraud and len(found) == 5 and not frauds & set(found)
    distances = [one["distance"] for one in near["near"]]
    assert distances == sorted(distances) and distances[0] > 0
    assert execute(["explain", "orders", fraud, "--nearest"]) == 0
    shown = capsys.readouterr().out
    assert f"nearest of {near['rows']:,} records" in shown and found[0] in shown and "spend 100 %" in shown
