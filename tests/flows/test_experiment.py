"""DVC runs the stages on the small project, with real Git and DVC, and gives the training flow's bundle."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from toy import DAYS, FIRST, PARAMS, Project

from flows.cli.main import execute
from flows.config.params import detector_names, load_detector
from flows.experiment import load_experiment
from models.bundle import read_bundle_manifest

ROOT = Path(__file__).parents[2]
CUTOFF = FIRST + timedelta(days=DAYS)
CALIBRATE = {"threshold": {"kind": "quantile", "q": 0.99}}
STAGES = ("ingest", "validate", "filter", "train", "calibrate", "evaluate")


def command(folder: Path, *words: str, succeeds: bool = True) -> str:
    """Run a command in the project, with `nightjar` and `dvc` on the path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTJAR_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done.stdout + done.stderr


def commit(folder: Path, message: str) -> None:
    command(folder, "git", "add", "-A")
    command(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """A small project under Git and DVC after its first `dvc repro`; tests use copies of it."""
    from toy import make_project

    folder = tmp_path_factory.mktemp("dvc") / "project"
    make_project(folder)
    params = {"detectors": {"orders": PARAMS | {"validate": {}, "calibrate": CALIBRATE}, "elsewhere": PARAMS}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(folder / "contracts" / "orders.yaml", folder / "contracts" / "elsewhere.yaml")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    pipeline["vars"] = [
        {"detectors_from": {"orders": {"source": "sources/orders"}, "elsewhere": {"source": "sources/not-there"}}}
    ]
    for stage in pipeline["stages"].values():  # the code is elsewhere
        stage["do"]["deps"] = [d for d in stage["do"]["deps"] if not d.startswith(("flows/", "models", "tasks/"))]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (folder / ".gitignore").write_text("experiments/\nsources/\n.nightjar/\n")
    command(folder, "git", "init", "-q")
    command(folder, "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    commit(folder, "first")
    command(folder, "dvc", "repro", "evaluate@orders")
    return folder


def test_repro_runs_every_stage_once_and_a_rerun_does_nothing(reproduced: Path) -> None:
    metrics = json.loads((reproduced / "experiments/orders/metrics.json").read_text())
    assert metrics["recall"] == 1.0
    assert metrics["anomalies"] == 3
    assert "up to date" in command(reproduced, "dvc", "repro", "evaluate@orders")
    assert "recall" in command(reproduced, "dvc", "metrics", "show")
    pictures = {path.name for path in (reproduced / "experiments/orders/plots").iterdir()}
    assert pictures == {"scores.png", "thresholds.png", "ranking.png", "confusion.png", "latent.png"}


def test_outputs_are_only_in_the_experiments_folder(reproduced: Path) -> None:
    status = command(reproduced, "git", "status", "--short", "--untracked-files=all")
    assert status.split() in (["??", "dvc.lock"], [])


def test_a_missing_source_stops_only_its_own_detector(reproduced: Path) -> None:
    assert "sources/not-there" in command(reproduced, "dvc", "repro", "evaluate@elsewhere", succeeds=False)
    assert "up to date" in command(reproduced, "dvc", "repro", "evaluate@orders")


def test_a_source_moved_after_ingest_is_named(reproduced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(reproduced, folder, symlinks=True)
    (folder / "sources" / "orders").rename(folder / "sources" / "moved")
    assert "sources/orders" in command(folder, "dvc", "repro", "evaluate@orders", succeeds=False)


def test_the_flow_and_dvc_give_the_same_bundle(
    reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_PROJECT", str(reproduced))
    monkeypatch.setenv("NIGHTJAR_SOURCES", str(reproduced / "sources"))
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "home"))
    assert execute(["train", "orders", "--cutoff", str(CUTOFF), "--json"]) == 0
    from flows.config.setup import load_setup

    flow, dvc = load_setup("orders").site, load_experiment("orders").site
    for name in ("fitted", "calibrated"):
        hashes = [read_bundle_manifest(getattr(site, name)(CUTOFF)).content_hash for site in (flow, dvc)]
        assert hashes[0] == hashes[1]


def test_an_experiment_with_another_param_can_be_compared(reproduced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(reproduced, folder, symlinks=True)
    commit(folder, "reproduced")
    run = ("dvc", "exp", "run", "--temp", "--copy-paths", "sources", "-n", "short", "evaluate@orders")
    command(folder, *run, "-S", "detectors.orders.calibrate.threshold.q=0.9")
    difference = json.loads(command(folder, "dvc", "metrics", "diff", "HEAD", "short", "--json").splitlines()[0])
    change = difference["experiments/orders/metrics.json"]["threshold"]
    assert change["new"] != change["old"]
    assert json.loads((folder / "experiments/orders/metrics.json").read_text())["threshold"] == change["old"]


def test_a_fresh_clone_pulls_outputs_from_the_default_remote(reproduced: Path, tmp_path: Path) -> None:
    folder, clone = tmp_path / "project", tmp_path / "clone"
    shutil.copytree(reproduced, folder, symlinks=True)
    commit(folder, "reproduced")
    command(folder, "dvc", "push", "evaluate@orders")
    command(folder, "git", "clone", "-q", ".", str(clone))
    command(clone, "dvc", "pull", "evaluate@orders")
    assert json.loads((clone / "experiments/orders/metrics.json").read_text())["anomalies"] == 3
    assert {path.name for path in tmp_path.iterdir()} >= {"project", "clone", "nightjar-dvc"}


def test_a_fresh_clone_reproduces_the_same_bytes(reproduced: Path, tmp_path: Path) -> None:
    # In another folder, at another commit, with a newly copied source and an empty cache.
    folder, clone = tmp_path / "project", tmp_path / "clone"
    shutil.copytree(reproduced, folder, symlinks=True)
    commit(folder, "reproduced")
    command(folder, "git", "clone", "-q", ".", str(clone))
    shutil.copytree(folder / "sources", clone / "sources", copy_function=shutil.copyfile)
    command(clone, "dvc", "repro", "evaluate@orders")
    assert command(clone, "git", "diff") == ""
    assert command(clone, "git", "status", "--short") == ""


def test_a_stage_run_too_early_says_what_to_run(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for step, earlier in (("filter", "validate"), ("train", "filter")):
        assert execute(["stage", step, "orders"]) == 1
        assert f"dvc repro {earlier}@orders" in capsys.readouterr().err


def test_every_stage_names_params_that_each_detector_sets_and_dvc_can_read() -> None:
    from dvc.utils.serialize import load_yaml

    pipeline, params = load_yaml(str(ROOT / "dvc.yaml")), load_yaml(str(ROOT / "params.yaml"))
    assert tuple(pipeline["stages"]) == STAGES
    for name in pipeline["vars"][0]["detectors_from"]:
        for stage in pipeline["stages"].values():
            for key in stage["do"]["params"]:
                found = params
                for part in key.replace("${key}", name).split("."):
                    found = found[part]
    assert "datetime.date" not in repr(params), "DVC cannot read dates: put them in quotes"


def test_params_mean_the_same_after_dvc_has_rewritten_them(tmp_path: Path) -> None:
    # `dvc exp run -S` rewrites the whole file as YAML 1.2, which drops the quotes of a "no".
    from dvc.utils.hydra import apply_overrides

    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["detectors.payments.run.nights=7"])  # the value it already has
    assert (tmp_path / "params.yaml").read_text() != (ROOT / "params.yaml").read_text()
    shutil.copytree(ROOT / "contracts", tmp_path / "contracts")
    for name in detector_names(ROOT):
        assert load_detector(tmp_path, name) == load_detector(ROOT, name)
    # It writes this learning rate as 5e-05, which is text in YAML 1.1.
    apply_overrides(tmp_path / "params.yaml", ["detectors.payments.train.fit.learning_rate=0.00005"])
    assert load_detector(tmp_path, "payments").detector.train.fit.learning_rate == 0.00005
