"""A full or read-only disk at every step that writes: a typed error, nothing partial, and a rerun succeeds."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
from sites import at_home, open_registry
from steps import TONIGHT, NightSteps, TrainingSteps, read_result

from flows.config.setup import Setup
from tasks.errors import ServiceUnreachable
from tasks.stores.lake import Lake
from tasks.stores.site import Site
from tasks.stores.warehouse import (
    Warehouse,
)

FULL = r"No space left|disk is full"
NOW = datetime(2026, 4, 3, tzinfo=UTC)


def refuse(step: Callable[[], Any], match: str = FULL) -> None:
    with pytest.raises(ServiceUnreachable, match=match):
        step()


@pytest.fixture
def on_disk(setup: Setup, disk: Any) -> Setup:
    """The trained project with its lake on the small disk."""
    import shutil

    shutil.copytree(setup.site.lake.root, disk.folder / "lake")
    return replace(setup, site=replace(setup.site, lake=Lake(str(disk.folder / "lake"))))


def test_a_night_on_a_full_lake_leaves_no_trace_and_can_be_run_again(
    on_disk: Setup, disk: Any, undisturbed: tuple[list[Any], str]
) -> None:
    steps = NightSteps(on_disk)
    for name in steps.steps:
        if name in ("ingest", "validate", "score"):
            before = on_disk.site.lake.files("")
            disk.fill()
            refuse(lambda: steps.run(name, on_disk.site))  # noqa: B023 - run at once
            assert on_disk.site.lake.files("") == before
            disk.empty()
        steps.run(name, on_disk.site)
    assert read_result(on_disk.site) == undisturbed


def test_a_bundle_page_or_download_that_does_not_fit_is_written_once_there_is_space(setup: Setup, disk: Any) -> None:
    away = at_home(setup.site, disk.folder / "home")
    training, night = TrainingSteps(setup), NightSteps(setup)
    for name in ("ingest", "validate", "filter"):
        training.run(name, setup.site)
    for name in ("begin", "ingest"):
        night.run(name, setup.site)
    disk.fill()
    for steps, name in ((training, "train"), (night, "validate"), (night, "resolve")):
        refuse(lambda: steps.run(name, away))  # noqa: B023 - run at once
    disk.empty()
    for steps, name in ((training, "train"), (night, "validate"), (night, "resolve")):
        steps.run(name, away)


def test_a_warehouse_on_a_full_disk_is_unchanged(disk: Any) -> None:
    engine = Warehouse(f"duckdb:///{disk.folder}/warehouse.duckdb")
    engine.migrate()
    assert engine.begin_attempt("orders", TONIGHT, "score", NOW) == 1
    disk.fill()
    many = pd.DataFrame({"record_id": [f"r{row:09d}" for row in range(200_000)], "label": 1, "known_at": NOW})
    refuse(lambda: engine.add_labels("orders", many))
    refuse(lambda: [engine.begin_attempt("orders", TONIGHT, "score", NOW) for _ in range(100)])
    refuse(lambda: Warehouse(f"duckdb:///{disk.folder}/new.duckdb").migrate())
    disk.empty()
    assert engine.read_labels("orders", NOW).empty
    known = len(engine.read_attempts("orders"))
    assert engine.begin_attempt("orders", TONIGHT, "score", NOW) == known + 1
    assert engine.add_labels("orders", many.head(10)) == 10


def test_a_registry_on_a_full_disk_keeps_its_versions_and_accepts_the_next_one(setup: Setup, disk: Any) -> None:
    site: Site = replace(setup.site, registry=open_registry(disk.folder, setup.site.home, "orders", disk.folder / "a"))
    from tasks.register import register_bundle

    assert site.registry.list_versions() == []
    bundle = setup.site.calibrated(next(iter(setup.site.lake.dates("clean", "orders"))))
    disk.fill(leave=0)
    refuse(lambda: register_bundle(site, bundle, None))
    disk.empty()
    assert register_bundle(site, bundle, None).alias == "champion"
    disk.fill(leave=0)
    refuse(lambda: site.registry.set_alias("challenger", 1))
    disk.empty()
    assert [version.aliases for version in site.registry.list_versions()] == [("champion",)]


def test_stores_on_a_read_only_disk_are_named(setup: Setup, disk: Any) -> None:
    engine = Warehouse(f"duckdb:///{disk.folder}/warehouse.duckdb")
    engine.migrate()
    disk.remount("ro")
    site = replace(
        setup.site, home=disk.folder / "home", lake=Lake(str(disk.folder / "lake")),
        registry=replace(setup.site.registry, uri=f"sqlite:///{disk.folder}/new.db"),
    )  # fmt: skip
    refuse(lambda: engine.begin_attempt("orders", TONIGHT, "score", NOW), "Read-only")
    refuse(lambda: site.registry.list_versions(), "unable to open database file")
    refuse(lambda: NightSteps(setup).run("ingest", site), "Read-only")
    refuse(lambda: NightSteps(setup).run("resolve", at_home(setup.site, disk.folder / "home")), "Read-only")
    disk.remount("rw")
    engine.begin_attempt("orders", TONIGHT, "score", NOW)
