"""An unreachable store at any step: one typed error that names it, nothing partial, and a rerun succeeds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sites import at_home
from steps import NightSteps, Steps, TrainingSteps, load, read_result

from flows.config.setup import Setup
from tasks.errors import ServiceUnreachable
from tasks.policy import is_unreachable
from tasks.stores.lake import Lake
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

IN_A_FILE = "in-a-file"
AWAY: dict[str, Callable[[Site, Path], Site]] = {
    "postgresql": lambda site, file: replace(site, warehouse=Warehouse("postgresql+psycopg://u:s3cret@127.0.0.1:9/x")),
    "duckdb": lambda site, file: replace(site, warehouse=Warehouse(f"duckdb:///{file}/w.duckdb")),
    "mlflow server": lambda site, file: with_mlflow(site, "http://u:s3cret@127.0.0.1:9"),
    "mlflow file": lambda site, file: with_mlflow(site, f"sqlite:///{file}/m.db"),
    "lake": lambda site, file: replace(site, lake=Lake(f"{file}/lake")),
    "home": lambda site, file: at_home(site, file / "home"),
}
NAMED = {
    "postgresql": "127.0.0.1:9",
    "mlflow server": "127.0.0.1:9",
}  # errors for the others name the file that is in the way
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


def with_mlflow(site: Site, uri: str) -> Site:
    return replace(site, registry=replace(site.registry, uri=uri))


def disturb(steps: Steps, needs: dict[str, tuple[str, ...]], folder: Path) -> None:
    """Run all steps, first with each needed store unreachable in turn: that must give one clear error."""
    (folder / IN_A_FILE).write_text("in the way")
    for name in steps.steps:
        for store in [store for store, at in needs.items() if name in at]:
            site = AWAY[store](steps.setup.site, folder / IN_A_FILE)
            with pytest.raises(ServiceUnreachable) as refused:
                steps.run(name, site)
            assert NAMED.get(store, IN_A_FILE) in str(refused.value), (name, store)
            assert "s3cret" not in str(refused.value)
            assert "to do: " in str(refused.value)
        if name == "publish":
            assert steps.setup.site.warehouse.read_nights("orders") == []
        steps.run(name, steps.setup.site)


def test_a_night_fails_with_a_clear_error_at_every_step_and_then_gives_the_same_result(
    setup: Setup, undisturbed: tuple[list[Any], str], tmp_path: Path
) -> None:
    disturb(NightSteps(setup), NIGHT, tmp_path)
    assert read_result(setup.site) == undisturbed


def test_a_training_fails_with_a_clear_error_at_every_step_and_then_registers_the_same_bundle(
    untrained: Setup, trained_project: Path, tmp_path: Path
) -> None:
    disturb(TrainingSteps(untrained), TRAINING, tmp_path)
    hashes = [one.site.registry.get_champion().tags["bundle_hash"] for one in (untrained, load(trained_project))]
    assert hashes[0] == hashes[1]


def test_only_an_unreachable_service_is_retried() -> None:
    class Ended:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self, raise_on_failure: bool) -> Exception:
            return self.error

    assert is_unreachable(None, None, Ended(ServiceUnreachable("away")))
    assert not is_unreachable(None, None, Ended(OSError("a fault of ours")))
