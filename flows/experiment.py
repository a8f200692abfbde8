"""The stages of dvc.yaml: the flows' functions on all rows of a source, in experiments/NAME/ instead of the lake.

`nightjar stage STEP NAME` runs one stage; DVC decides which are due. The same data, params and seed give the same
bundle hash as `nightjar train NAME --cutoff D`, with D the day after the last batch. Outputs that DVC hashes depend on
data, code and params only, not on machine, time or commit. Each stage is a process, and imports only its own step.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from flows.config.settings import load_settings
from flows.config.setup import Setup, load_setup
from tasks.errors import BatchMissing
from tasks.policy import progress_of

if TYPE_CHECKING:
    from models.fitting import EpochLog
    from tasks.filter import TrainingSet

LABELS = "labels.parquet"
UNDATED = datetime(1970, 1, 1, tzinfo=UTC)


def load_experiment(name: str, warehouse_folder: str | None = None) -> Setup:
    """Load a detector with its lake in experiments/NAME and its source files in sources/, as in dvc.yaml."""
    settings = load_settings()
    home = settings.project.resolve() / "experiments" / name
    stores = {"home": home, "lake": str(home), "warehouse": f"duckdb:///{warehouse_folder or home}/labels.duckdb"}
    settings = settings.model_copy(update=stores | {"sources": str(settings.project / "sources")})
    return load_setup(name, settings, sole_writer=True)


@contextmanager
def open_experiment(name: str) -> Iterator[Setup]:
    """Load a detector with an empty, temporary warehouse.

    Labels pass between stages as Parquet: two DuckDB files with the same rows differ.
    """
    with TemporaryDirectory() as folder:
        setup = load_experiment(name, folder)
        setup.site.warehouse.migrate()
        yield setup


def ingest(name: str) -> None:
    """Land all rows of the source and their labels."""
    from tasks.ingest import land_arrivals
    from tasks.sources.kinds import list_arrivals

    with open_experiment(name) as setup:
        site, params = setup.site, setup.ingest_params
        shutil.rmtree(site.home / "landing", ignore_errors=True)
        window = setup.window(last=setup.configured.detector.run.last_date)
        found = list_arrivals(params.source, site.sources, site.zone, window)
        # The time a file was copied or a query was run differs between machines.
        arrivals = [replace(arrival, version="", arrived_at=UNDATED, content=str) for arrival in found]
        land_arrivals(site, params, window, arrivals, progress_of("ingest"))
        site.warehouse.list_labels(name).to_parquet(site.home / LABELS, index=False)


def validate(name: str) -> None:
    """Check every landed batch against the contract, and add history columns if params ask for them."""
    from tasks.enrich import enrich_batches
    from tasks.validate import check_accepted, validate_batches

    with open_experiment(name) as setup:
        site, contract, params = setup.site, setup.configured.contract, setup.configured.detector
        shutil.rmtree(site.validations, ignore_errors=True)
        dates = setup.landed_before(date.max)
        check_accepted(name, validate_batches(site, contract, dates, params.validate_, progress_of("validate")))
        if params.enrich:
            site.warehouse.add_labels(name, pd.read_parquet(site.home / LABELS))
            enrich_batches(site, contract, dates, params.validate_, params.enrich, progress_of("enrich"))


def filter_rows(name: str) -> None:
    """Split all validated rows into the five sets; the cut-off is the day after the last batch."""
    from tasks.filter import prepare_rows

    with open_experiment(name) as setup:
        params, dates = setup.configured.detector, setup.site.lake.dates("validated", name)
        if not dates:
            raise _nothing_to_do(setup, "validated rows", "validate")
        setup.site.warehouse.add_labels(name, pd.read_parquet(setup.site.home / LABELS))
        prepare_rows(setup.site, dates[-1] + timedelta(days=1), params.filter, params.train.columns.numbers)


def train(name: str) -> None:
    """Fit the network and log its epochs."""
    from tasks.train import fit_bundle, write_epochs

    setup = load_experiment(name)
    epochs: list[tuple[int, EpochLog]] = []
    log = lambda network, epoch: epochs.append((network, epoch))  # noqa: E731
    fit_bundle(setup.site, _read_rows(setup), setup.configured.detector.train, setup.hashes, log)
    write_epochs(setup.site.home / "training.csv", epochs)


def calibrate(name: str) -> None:
    """Set the threshold."""
    from tasks.calibrate import calibrate_bundle

    setup = load_experiment(name)
    rows = _read_rows(setup)
    params = setup.configured.detector
    calibrate_bundle(setup.site, rows, setup.site.fitted(rows.cutoff), params.calibrate, params.ingest.has_labels)


def evaluate(name: str) -> None:
    """Evaluate the bundle on the test rows: metrics.json, curves and plots."""
    from tasks.on_demand.examine import examine_bundle

    setup = load_experiment(name)
    rows = _read_rows(setup)
    examine_bundle(setup.site, rows, setup.site.calibrated(rows.cutoff), setup.configured.detector.ingest.labels)


def _read_rows(setup: Setup) -> "TrainingSet":
    from tasks.filter import read_training_set

    cutoffs = setup.site.lake.dates("clean", setup.site.detector)
    if not cutoffs:
        raise _nothing_to_do(setup, "clean rows", "filter")
    return read_training_set(setup.site.lake, setup.site.detector, cutoffs[-1])


def _nothing_to_do(setup: Setup, what: str, step: str) -> BatchMissing:
    return BatchMissing(
        f"The experiment has no {what} yet.",
        where=str(setup.site.home),
        todo=f"run dvc repro {step}@{setup.site.detector}, which runs earlier stages too",
    )


STAGES = {
    "ingest": ingest,
    "validate": validate,
    "filter": filter_rows,
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
}
