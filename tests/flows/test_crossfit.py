"""Every row of a table without times is scored by models that have not learnt from it; nothing is kept."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from toy import Project, point_to

from flows.cli.main import execute

ODD = {12: ("mass", 9900), 202: ("bill", 5), 301: ("flipper", 400)}  # by row of the spreadsheet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a table of three kinds, sorted by kind; three rows are odd, one is unreadable."""
    point_to(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [150, 70, 80])
    frame = pd.DataFrame({"species": np.array(["a", "b", "c"])[kind]})
    for name, means, spread in (("bill", (38, 48, 47), 2), ("flipper", (190, 196, 217), 6), ("mass", (37, 37, 50), 3)):
        frame[name] = rng.normal(np.array(means)[kind], spread).round(1).astype(object)
    for row, (name, value) in ODD.items():
        frame.loc[row - 2, name] = value
    frame.loc[100, "bill"] = "n/x"
    frame.to_csv("birds.csv", index=False)
    assert execute(["init", "birds", "--source", "birds.csv"]) == 0
    return tmp_path


def test_every_row_of_a_sorted_table_is_scored_out_of_sample_and_nothing_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert execute(["run", "birds", "--all", "--output", "all.csv", "--json", "--limit", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["scored"], len(found["records"])) == (300, 299, 20)
    assert found["bad_rows"] == [{"record_id": "birds:102", "reason": "bill: not readable as float"}]
    assert {row["record_id"] for row in found["records"][:3]} == {f"birds:{row}" for row in ODD}
    assert all(row["is_flagged"] for row in found["records"][:3])
    assert found["flagged"] < 20
    times = [row["times_threshold"] for row in found["records"]]
    assert times == sorted(times, reverse=True)
    written = pd.read_csv(folder / "all.csv")
    assert written["record_id"].tolist() == [f"birds:{row}" for row in range(2, 302)]
    good = written.dropna(subset="score")
    assert good["threshold"].nunique() == found["folds"] == 5
    np.testing.assert_allclose(good["times_threshold"], good["score"] / good["threshold"])
    assert (good["is_flagged"] == (good["score"] > good["threshold"])).all()
    after = {path for path in folder.rglob("*") if path.is_file()}
    assert not [path for path in after - before if path.suffix in (".parquet", ".duckdb", ".safetensors")]


def test_thresholds_go_by_segment_where_a_fold_has_enough_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["detectors"]["birds"].setdefault("calibrate", {})["by"] = "species"
    written = []
    for q in (0.8, 0.99):
        params["detectors"]["birds"]["calibrate"]["threshold"] = {"kind": "quantile", "q": q}
        path.write_text(yaml.safe_dump(params))
        capsys.readouterr()
        assert execute(["run", "birds", "--all", "--output", "all.csv", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        rows = pd.read_csv(folder / "all.csv").dropna(subset="score")
        assert (rows["is_flagged"] == (rows["score"] > rows["threshold"])).all()
        written.append((found.get("thresholds_by"), rows["threshold"].nunique()))
    (by, many), (none, folds) = written
    assert (by, none, folds) == ("species", None, 5)
    assert many > 5


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--output", "x.doc"), "cannot be written"),
        (("--retrain",), "--retrain"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], what: str
) -> None:
    assert execute(["run", "birds", "--all", *arguments]) != 0
    assert what in capsys.readouterr().err
    assert execute(["run", "birds", "--limit", "3"]) == 2


def test_a_table_with_times_is_refused(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "orders", "--all"]) == 1
    assert "nightjar backfill orders" in capsys.readouterr().err


def test_a_rate_of_false_discoveries_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = {"threshold": {"kind": "false_discovery_rate", "at_most": 0.2}}
    Project(folder).change("params.yaml", "detectors", "birds", "calibrate", value=policy)
    assert execute(["run", "birds", "--all"]) == 1
    assert "A false-discovery rate needs whole nights, and --all scores the rows in parts." in capsys.readouterr().err
