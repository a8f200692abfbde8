"""A store that is away at any step: one typed error that names it, nothing half done, and the next try heals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from steps import NightSteps, Steps, TrainingSteps, load, read_result

from flows.setup import Setup
from tasks import tracking
from tasks.errors import ServiceUnreachable
from tasks.policy import is_unreachable
from tasks.site import Site
from tasks.warehouse import open_engine, read_batches

IN_A_FILE = "in-a-file"
AWAY: dict[str, Callable[[Path], dict[str, Any]]] = {
    "postgresql": lambda file: {"warehouse_url": "postgresql+psycopg://u:s3cret@127.0.0.1:9/x"},
    "duckdb": lambda file: {"warehouse_url": f"duckdb:///{file}/w.duckdb"},
    "mlflow server": lambda file: {"mlflow_uri": "http://u:s3cret@127.0.0.1:9"},
    "mlflow file": lambda file: {"mlflow_uri": f"sqlite:///{file}/m.db"},
    "lake": lambda file: {"lake_root": f"{file}/lake"},
    "home": lambda file: {"home": file / "home"},
}
NAMED = {"postgresql": "127.0.0.1:9", "mlflow server": "127.0.0.1:9"}  # the others by the file that is in the way
NIGHT = {
    "postgresql": ("begin", "ingest", "publish", "report"),
    "duckdb": ("begin", "ingest", "publish", "report"),
    "mlflow server": ("resolve",),
    "mlflow file": ("resolve",),
    "lake": ("ingest", "validate", "score", "publish", "report"),
    "home": ("resolve", "validate", "report"),
}
TRAINING = {
    "postgresql": ("ingest", "filter"),
    "mlflow server": ("register",),
    "lake": ("ingest", "validate"),
    "home": ("validate", "train", "calibrate"),
}


def disturb(steps: Steps, needs: dict[str, tuple[str, ...]], folder: Path) -> None:
    """Run all steps, each first with one after the other of its stores away: it must fail in one readable way."""
    (folder / IN_A_FILE).write_text("in the way")
    for name in steps.steps:
        for store in [store for store, at in needs.items() if name in at]:
            site: Site = replace(steps.setup.site, **AWAY[store](folder / IN_A_FILE))
            with pytest.raises(ServiceUnreachable) as refused:
                steps.run(name, site)
            assert NAMED.get(store, IN_A_FILE) in str(refused.value), (name, store)
            assert "s3cret" not in str(refused.value)
            assert "to do: " in str(refused.value)
        if name == "publish":
            assert read_batches(open_engine(steps.setup.site.warehouse_url), "orders") == []
        steps.run(name, steps.setup.site)


def test_a_night_fails_readably_at_every_step_and_then_gives_the_same_result(
    setup: Setup, undisturbed: tuple[list[Any], str], tmp_path: Path
) -> None:
    disturb(NightSteps(setup), NIGHT, tmp_path)
    assert read_result(setup.site) == undisturbed


def test_a_training_fails_readably_at_every_step_and_then_registers_the_same_bundle(
    untrained: Setup, trained_project: Path, tmp_path: Path
) -> None:
    disturb(TrainingSteps(untrained), TRAINING, tmp_path)
    hashes = [tracking.get_champion(one.site).tags["bundle_hash"] for one in (untrained, load(trained_project))]
    assert hashes[0] == hashes[1]


def test_only_an_unreachable_service_is_worth_another_try() -> None:
    class Ended:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self, raise_on_failure: bool) -> Exception:
            return self.error

    assert is_unreachable(None, None, Ended(ServiceUnreachable("away")))
    assert not is_unreachable(None, None, Ended(OSError("a fault of ours")))
