"""Calibrate a fitted bundle: set its threshold on clean rows used neither for weights nor for spreads."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from prefect import task
from prefect.artifacts import create_markdown_artifact

from models.calibration import Threshold, Tuning, expect_false_alarms, measure_spread
from models.detector import Detector, calibrate_by_scores
from models.segments import Segments
from tasks.filter import LABEL, TrainingSet, read_set
from tasks.policy import PURE
from tasks.rows.columns import add_key, to_records
from tasks.rows.drift import ALMOST_SURE
from tasks.rows.escaping import escape_markdown
from tasks.rows.judge import read_segments
from tasks.rows.measures import Metrics
from tasks.rows.params import CalibrateParams
from tasks.rows.schema import batch_dates_of
from tasks.stores.faults import writing
from tasks.stores.registry import NIGHT_SPREAD, ROWS_PER_NIGHT
from tasks.stores.site import Site

SHOWN_SEGMENTS = 20


@dataclass(frozen=True)
class Calibrated:
    """A calibrated bundle and its threshold; the rows of a night, and how much days vary: see `measure_spread`."""

    bundle: Path
    threshold: Threshold
    rows_per_night: float
    spread: float

    @property
    def tags(self) -> dict[str, str]:
        """What the tags of the version say of its nights."""
        return {ROWS_PER_NIGHT: f"{self.rows_per_night:.0f}", NIGHT_SPREAD: f"{self.spread:.3g}"}

    def __str__(self) -> str:
        """In words: the rate of false alarms, and their number in a night."""
        threshold = self.threshold
        without = f" (without {threshold.trimmed:,} suspected anomalies)" if threshold.trimmed else ""
        recall = f" and {threshold.recall}" if threshold.recall else ""
        return (
            f"threshold {threshold.value:.4g} from {threshold.n:,} clean rows{without}: flags "
            f"{threshold.false_alarm_rate:.3%} of normal records "
            f"(95 % interval {threshold.interval_low:.3%} to {threshold.interval_high:.3%}){recall}; "
            f"{expect_false_alarms(threshold, round(self.rows_per_night), self.spread)}"
        )

    def doubt(self, metrics: Metrics | None) -> str:
        """A warning if chance flags that many normal test rows only 1 time in 100,000, and what to do; else ""."""
        if metrics is None or metrics.false_alarm_rate is None:
            return ""
        if self.threshold.discovery_rate is not None:
            return ""  # the more anomalies, the more false alarms
        normals = metrics.rows - metrics.anomalies
        flags = round(metrics.false_alarm_rate * normals)
        most = expect_false_alarms(self.threshold, normals, self.spread, 2 * ALMOST_SURE).high
        if flags <= most:
            return ""
        return (
            f"the calibration does not fit the test rows: {flags:,} of {normals:,} normal ones are flagged "
            f"({metrics.false_alarm_rate:.1%}), where up to {most:,} could be chance; they differ from the calibration "
            "rows, so expect as many false alarms at night, or calibrate on days more like them (filter.splits)"
        )


def calibrate_bundle(
    site: Site, rows: TrainingSet, bundle: Path, params: CalibrateParams, has_labels: bool
) -> Calibrated:
    """Save a calibrated copy of a bundle. Raises TooFewRows if there are too few rows for the quantile.

    Without labels, anomalies may hide among the calibration rows: scores beyond the tail of the others are left out.
    """
    detector = Detector.load(bundle)
    if params.by:
        detector = replace(detector, columns=add_key(detector.columns, params.by))
    clean = read_set(site.lake, site.detector, rows.cutoff, "calibration")
    scores = detector.score(to_records(clean, detector.columns)[0])
    labelled = read_set(site.lake, site.detector, rows.cutoff, "tuning")
    tuning = Tuning(detector.score(to_records(labelled, detector.columns)[0]), labelled[LABEL].to_numpy() == 1)
    by = (params.by, read_segments(clean[params.by])) if params.by else None
    calibrated = calibrate_by_scores(
        detector, scores, params.threshold, tuning, rows.rows_per_night, trims=not has_labels, by=by
    )
    folder = site.calibrated(rows.cutoff)
    with writing(folder):
        calibrated.save(folder)
    kept = scores <= np.partition(scores, calibrated.threshold.n - 1)[calibrated.threshold.n - 1]
    days = batch_dates_of(clean["event_time"], site.zone).to_numpy().astype(np.int64)
    spread = measure_spread(scores[kept] > calibrated.threshold.value, days[kept])
    return Calibrated(folder, calibrated.threshold, rows.rows_per_night, spread)


def list_segments(segments: Segments) -> str:
    """The thresholds of the segments, as Markdown; at most SHOWN_SEGMENTS, those with the most rows."""
    ordered = sorted(segments.thresholds.items(), key=lambda one: -one[1].n)
    lines = [
        f"| {escape_markdown(name)} | {found.n:,} | {found.value:.4g} | {found.false_alarm_rate:.3%} "
        f"({found.interval_low:.3%} to {found.interval_high:.3%}) |"
        for name, found in ordered[:SHOWN_SEGMENTS]
    ]
    head = f"| {escape_markdown(segments.column)} | rows | threshold | flags of normal records |\n|---|---|---|---|"
    more = len(ordered) - SHOWN_SEGMENTS
    return "\n".join(["", head, *lines, *(["", f"and {more:,} more"] if more > 0 else [])]) + "\n"


@task(task_run_name="calibrate {site.detector}", **PURE)
def calibrate(site: Site, rows: TrainingSet, bundle: Path, params: CalibrateParams, has_labels: bool) -> Calibrated:
    """Calibrate the bundle, and show the threshold with its interval."""
    calibrated = calibrate_bundle(site, rows, bundle, params, has_labels)
    segments = Detector.load(calibrated.bundle).segments if params.by else None
    create_markdown_artifact(
        f"**{site.detector}**, {params.threshold.kind} policy: {calibrated}\n"
        + (list_segments(segments) if segments else ""),
        key=f"calibration-{site.artifact_key}",
        description=f"Calibration of {site.detector}",
    )
    return calibrated
