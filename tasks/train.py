"""Fit a detector on the fit rows of a cut-off, with early stopping on the stopping rows.

In: the clean partition of a cut-off. Out: a bundle folder, fitted but not calibrated, with its lineage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from prefect import get_run_logger, task
from pydantic import JsonValue

from models.bundle import FILES, MANIFEST, read_bundle, write_bundle
from models.detector import Detector, ModelParams, fit_detector
from models.encoders import choose_kinds
from models.fitting import EpochLog, resolve_device, watch_memory
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.policy import PURE, progress_of
from tasks.rows.columns import check_entities, describe_columns, mark_entity, to_records
from tasks.rows.params import TrainParams
from tasks.stores.faults import writing
from tasks.stores.site import Site

EPOCHS = "epochs.csv"  # where a bundle is sent: next to its files
NO_EPOCHS = b"network,epoch,fit_loss,stopping_loss,is_best\n"  # of a worker with an older version


def fit_bundle(
    site: Site,
    rows: TrainingSet,
    params: TrainParams,
    hashes: Mapping[str, JsonValue],
    on_epoch: Callable[[int, EpochLog], None] | None = None,
) -> Path:
    """Fit on a training set and save the bundle; `hashes` (of params, of the contract) become part of its lineage."""
    detector = _fit(site, rows, params, on_epoch)
    lineage: dict[str, JsonValue] = {
        "detector": site.detector,
        "cutoff": rows.cutoff.isoformat(),
        "first_date": rows.first_date.isoformat(),
        "trained_through": rows.trained_through.isoformat(),
        "split": rows.split,
        "rows": dict(rows.rows),
        "excluded": dict(rows.excluded),
        "data_hash": rows.data_hash,
        **hashes,
    }
    folder = site.fitted(rows.cutoff)
    with writing(folder):
        detector.with_lineage(lineage).save(folder)
    return folder


def _fit(
    site: Site, rows: TrainingSet, params: TrainParams, on_epoch: Callable[[int, EpochLog], None] | None
) -> Detector:
    with watch_memory(rows.rows["fit"]):
        fit_rows = read_set(site.lake, site.detector, rows.cutoff, "fit")
        stopping_rows = read_set(site.lake, site.detector, rows.cutoff, "stopping")
        described = describe_columns(params.columns, fit_rows)
        tuning_rows = read_set(site.lake, site.detector, rows.cutoff, "tuning")
        if params.per_entity and site.entity:
            described = mark_entity(described, site.entity, params.per_entity)
        fit, _ = to_records(fit_rows, described)
        if params.per_entity and site.entity:
            check_entities(fit, site.entity, site.detector)
        stopping, _ = to_records(stopping_rows, described)
        columns = choose_kinds(described, fit, params.encode)
        learnt = ModelParams(networks=params.networks, fit=params.fit, score=params.score, threads=site.threads)
        device = resolve_device(site.device, site.devices)
        tuning, is_anomaly = None, tuning_rows[LABEL].to_numpy() == 1
        if is_anomaly.any():
            tuning = to_records(tuning_rows, columns)[0], is_anomaly
        return fit_detector(columns, fit, stopping, learnt, device, on_epoch, site.devices, tuning)


def write_epochs(path: Path, epochs: Sequence[tuple[int, EpochLog]]) -> None:
    """Write each network's epochs as CSV: losses, and precision and recall of tuning rows if these have anomalies.

    Without times, so that equal fits write equal bytes.
    """
    frame = pd.DataFrame([{"network": network, **asdict(epoch)} for network, epoch in epochs]).drop(columns="seconds")
    frame.dropna(axis="columns", how="all").to_csv(path, index=False)


def describe_tuning(epoch: EpochLog) -> str:
    """The precision and recall of the tuning rows after an epoch, to be added to its losses; "" without them."""
    if epoch.tuning_recall is None:
        return ""
    return f"; tuning precision {epoch.tuning_precision:.3f}, recall {epoch.tuning_recall:.3f}"


@task(task_run_name="train {site.detector}", **PURE)
def train(site: Site, rows: TrainingSet, params: TrainParams, hashes: dict[str, JsonValue]) -> Path:
    """Fit the networks; each epoch is logged, and kept beside the bundle for MLflow."""
    logger, report = get_run_logger(), progress_of("train")
    networks, epochs = len(params.networks), params.fit.epochs
    done: list[tuple[int, EpochLog]] = []

    def log(network: int, epoch: EpochLog) -> None:
        done.append((network, epoch))
        report(network * epochs + epoch.epoch, networks * epochs)
        name = f"network {network + 1} of {networks}, " if networks > 1 else ""
        losses = f"fit {epoch.fit_loss:.5f}, stopping {epoch.stopping_loss:.5f}"
        logger.info("%sepoch %d: %s%s", name, epoch.epoch, losses, describe_tuning(epoch))

    folder = fit_bundle(site, rows, params, hashes, log)
    with writing(folder):
        write_epochs(site.epochs(rows.cutoff), done)
    report(networks * epochs, networks * epochs)  # early stopping leaves the progress bar incomplete
    return folder


def send_bundle(site: Site, cutoff: date, run_id: str) -> None:
    """Upload the bundle that this machine has just fitted, and its epochs, to the lake."""
    folder = site.fitted(cutoff)
    read_bundle(folder)
    for name, path in {**{name: folder / name for name in (*FILES, MANIFEST)}, EPOCHS: site.epochs(cutoff)}.items():
        site.lake.replace(_path(site, cutoff, run_id, name), path.read_bytes())


def take_bundle(site: Site, cutoff: date, run_id: str) -> Path:
    """Download the bundle that a run has uploaded, as if fitted here. Raises BundleInvalid, ServiceUnreachable."""
    folder = site.fitted(cutoff)
    with writing(folder), TemporaryDirectory() as arriving:
        for name in (*FILES, MANIFEST):
            (Path(arriving) / name).write_bytes(site.lake.read(_path(site, cutoff, run_id, name)))
        write_bundle(folder, read_bundle(Path(arriving)))
        site.epochs(cutoff).write_bytes(site.lake.find_file(_path(site, cutoff, run_id, EPOCHS)) or NO_EPOCHS)
    for name in (*FILES, MANIFEST, EPOCHS):
        site.lake.remove(_path(site, cutoff, run_id, name))
    return folder


def _path(site: Site, cutoff: date, run_id: str, name: str) -> str:
    return f"{site.lake.partition('clean', site.detector, cutoff)}/fitted-{run_id}/{name}"
