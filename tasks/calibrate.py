"""Calibrate a fitted bundle: set its threshold on clean rows used neither for weights nor for spreads."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from models.calibration import Threshold
from models.detector import Detector, calibrate_detector
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.policy import PURE
from tasks.rows.columns import to_records
from tasks.rows.params import CalibrateParams
from tasks.stores.faults import writing
from tasks.stores.site import Site


def calibrate_bundle(
    site: Site, rows: TrainingSet, bundle: Path, params: CalibrateParams, has_labels: bool
) -> tuple[Path, Threshold]:
    """Save a calibrated copy of a bundle. Raises TooFewRows if there are too few rows for the quantile.

    Without labels, anomalies may hide among the calibration rows: scores beyond the tail of the others are left out.
    """
    detector = Detector.load(bundle)
    clean, _ = to_records(read_set(site.lake, site.detector, rows.cutoff, "calibration"), detector.columns)
    labelled = read_set(site.lake, site.detector, rows.cutoff, "tuning")
    tuning, _ = to_records(labelled, detector.columns)
    is_anomaly = labelled[LABEL].to_numpy() == 1
    calibrated = calibrate_detector(
        detector, clean, params.threshold, (tuning, is_anomaly), rows.rows_per_night, trims=not has_labels
    )
    folder = site.calibrated(rows.cutoff)
    with writing(folder):
        calibrated.save(folder)
    return folder, calibrated.threshold


def describe_threshold(threshold: Threshold) -> str:
    """The calibration in a sentence."""
    without = f" (without {threshold.trimmed:,} suspected anomalies)" if threshold.trimmed else ""
    return (
        f"threshold {threshold.value:.4g} from {threshold.n:,} clean rows{without}: flags "
        f"{threshold.false_alarm_rate:.3%} of normal records "
        f"(95 % interval {threshold.interval_low:.3%} to {threshold.interval_high:.3%})"
    )


@task(task_run_name="calibrate {site.detector}", **PURE)
def calibrate(site: Site, rows: TrainingSet, bundle: Path, params: CalibrateParams, has_labels: bool) -> Path:
    """Calibrate the bundle, and show the threshold with its interval."""
    folder, threshold = calibrate_bundle(site, rows, bundle, params, has_labels)
    create_markdown_artifact(
        f"**{site.detector}**, {params.threshold.kind} policy: {describe_threshold(threshold)}\n",
        key=f"calibration-{site.artifact_key}",
        description=f"Calibration of {site.detector}",
    )
    return folder
