"""Nights with a false-discovery rate: each has its own threshold, and everything that judges a night uses it."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy import CUTOFF, DAYS, FIRST, Project, make_project, make_rows, point_to

from flows.cli.main import execute
from flows.config.settings import load_settings
from flows.config.setup import load_setup
from models.calibration import Floats
from models.detector import Detector
from tasks.stores.tables import PublishedNight

LAST = FIRST + timedelta(days=DAYS - 1)
RATE = 0.25
POLICY = {"threshold": {"kind": "false_discovery_rate", "at_most": RATE}}


@pytest.fixture(scope="module")
def folder(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose nights are scored with a false-discovery rate; the last one has three times the frauds."""
    project = make_project(tmp_path_factory.mktemp("discoveries"))
    many = make_rows(LAST)
    many.loc[many.index[-9:], "spend"] = many["items"][-9:] * 200.0
    project.write_day(LAST, many)
    project.change("params.yaml", "detectors", "orders", "calibrate", value=POLICY)
    project.change("params.yaml", "detectors", "orders", "filter", "splits", "calibration_days", value=5)
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_to(monkeypatch, project.folder)
        assert execute(["run", "orders"]) == 0
    return project.folder


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    point_to(monkeypatch, folder)
    return Project(folder)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def read_nights() -> list[PublishedNight]:
    return load_setup("orders", load_settings()).site.warehouse.read_nights("orders")


def discover(p_values: "pd.Series[float]") -> "pd.Series[bool]":
    """Benjamini and Hochberg's procedure, from its definition."""
    ordered = np.sort(p_values)
    passed = np.flatnonzero(ordered <= np.arange(1, len(ordered) + 1) * RATE / len(ordered) * (1 + 1e-12))
    return p_values <= (ordered[passed[-1]] if len(passed) else 0)


def test_each_night_flags_what_benjamini_and_hochberg_discover(project: Project) -> None:
    setup = load_setup("orders", load_settings())
    site, version = setup.site, setup.site.registry.get_champion()
    calibration = read_calibration(site.registry.fetch_bundle(version))
    thresholds = set()
    for night in site.warehouse.read_nights("orders"):
        parts = site.lake.get("scores", "orders", night.batch_date, night.scores).parts
        scores = pd.concat([table.to_pandas() for part in parts for table in site.lake.slices(part)])
        at_least = (scores["score"].to_numpy()[:, None] <= calibration).sum(axis=1)
        p_values = pd.Series((1 + at_least) / (len(calibration) + 1), scores["record_id"])
        flags = site.warehouse.read_flags("orders", night.batch_date).set_index("record_id")
        assert set(flags.index) == set(p_values.index[discover(p_values)])
        assert night.flagged == len(flags) >= 3
        assert set(flags["threshold"]) == {night.threshold}
        assert flags["p_value"].to_dict() == p_values[flags.index].to_dict()
        thresholds.add(night.threshold)
    assert len(thresholds) == 2  # the last night has more anomalies, and so a lower threshold


def read_calibration(bundle: Path) -> Floats:
    detector = Detector.load(bundle)
    assert detector.calibration is not None
    return detector.calibration.scores


def test_the_report_says_what_the_threshold_means(project: Project) -> None:
    page = (project.folder / ".nightjar" / "reports" / "orders" / f"{LAST}.html").read_text()
    assert "on average at most 25 % of its flags are false alarms" in page


def test_verify_computes_the_thresholds_of_nights_again(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    checks = answer(capsys, "verify", "orders")["checks"]
    assert {check["result"] for check in checks} == {"ok"}


def test_a_file_is_judged_like_a_night(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "score", "orders", "--source", str(project.orders / f"orders-{LAST}.csv"))
    [*_, night] = read_nights()
    assert found["threshold"] == night.threshold
    assert found["flagged"] == night.flagged


def test_explain_uses_the_threshold_of_the_night(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    [*_, night] = read_nights()
    found = answer(capsys, "explain", "orders", f"{LAST:%m%d}-0299", "--date", str(LAST))
    assert found["threshold"] == night.threshold


def test_two_versions_are_compared_by_their_own_thresholds_of_each_night(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    assert execute(["train", "orders", "--cutoff", str(CUTOFF)]) == 0
    found = answer(capsys, "compare", "orders")
    flagged = [night.flagged for night in read_nights() if str(night.batch_date) in found["nights"]]
    assert found["first"]["flags"] == sum(flagged)


def test_a_night_with_as_many_discoveries_as_anomalies_is_not_called_excessive(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    many = make_rows(LAST + timedelta(days=1))
    many.loc[many.index[-20:], "spend"] = many["items"][-20:] * 200.0
    project.write_day(LAST + timedelta(days=1), many)
    capsys.readouterr()
    assert execute(["score", "orders", "--date", str(LAST + timedelta(days=1))]) == 0
    assert execute(["status", "orders"]) == 0
    assert "where normal rows are at most" not in capsys.readouterr().out
    [*_, night] = read_nights()
    assert night.flagged >= 20
