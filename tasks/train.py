"""Fit a detector on the fit rows of a cut-off, stopping early on the stopping rows.

In: the clean partition of a cut-off. Out: a bundle folder, fitted but not calibrated, with its lineage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from prefect import get_run_logger, task
from pydantic import JsonValue

from models.detector import Detector, DetectorParams, fit_detector
from models.encoders import EncodeParams, choose_kinds
from models.fitting import EpochLog, FitParams, Networks, resolve_device, watch_memory
from models.params import Section
from models.scoring import ResidualParams, ScoreParams
from tasks.columns import ColumnsParams, describe_columns, to_records
from tasks.filter import TrainingSet, read_set
from tasks.policy import PURE
from tasks.progress import progress_of
from tasks.site import Site, writing


class TrainParams(Section):
    """What a detector reads and how it learns."""

    columns: ColumnsParams
    encode: EncodeParams = EncodeParams()
    networks: Networks
    fit: FitParams = FitParams()
    score: ScoreParams = ResidualParams()


def fit_bundle(
    site: Site,
    rows: TrainingSet,
    params: TrainParams,
    hashes: Mapping[str, JsonValue],
    on_epoch: Callable[[int, EpochLog], None] | None = None,
) -> Path:
    """Fit on a training set and save the bundle; `hashes` (of params and contract, say) become part of its lineage."""
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
        "commit": site.commit,
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
        fit, _ = to_records(fit_rows, described)
        stopping, _ = to_records(stopping_rows, described)
        columns = choose_kinds(described, fit, params.encode)
        learnt = DetectorParams(networks=params.networks, fit=params.fit, score=params.score, threads=site.threads)
        device = resolve_device(site.device, site.devices)
        return fit_detector(columns, fit, stopping, learnt, device, on_epoch, site.devices)


def write_epochs(path: Path, epochs: Sequence[tuple[int, EpochLog]]) -> None:
    """Write the losses of each network's epochs as CSV, without seconds: the same fit writes the same bytes."""
    frame = pd.DataFrame([{"network": network, **asdict(epoch)} for network, epoch in epochs]).drop(columns="seconds")
    frame.to_csv(path, index=False)


@task(task_run_name="train {site.detector}", **PURE)
def train(site: Site, rows: TrainingSet, params: TrainParams, hashes: dict[str, JsonValue]) -> Path:
    """Fit the networks; each epoch is logged."""
    logger, tell = get_run_logger(), progress_of("train")
    networks, epochs = len(params.networks), params.fit.epochs

    def log(network: int, epoch: EpochLog) -> None:
        tell(network * epochs + epoch.epoch, networks * epochs)
        name = f"network {network + 1} of {networks}, " if networks > 1 else ""
        logger.info("%sepoch %d: fit %.5f, stopping %.5f", name, epoch.epoch, epoch.fit_loss, epoch.stopping_loss)

    folder = fit_bundle(site, rows, params, hashes, log)
    tell(networks * epochs, networks * epochs)  # early stopping leaves the bar short of its end
    return folder
