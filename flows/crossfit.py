"""Score every row of a table without times by a detector that has not learnt from it; nothing is kept or published.

The rows are dealt at random over FOLDS days of a temporary lake. For each of these days a detector is fitted and
calibrated on the rows of the others, so that scores and thresholds are those of rows never seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from flows.config.settings import load_settings
from flows.config.setup import Setup, load_setup
from models.calibration import rows_for_quantile
from models.detector import Detector
from models.params import QuantilePolicy, Section
from tasks.calibrate import calibrate_bundle
from tasks.errors import ParamsInvalid, TooFewRows
from tasks.filter import prepare_rows
from tasks.ingest import land_arrivals
from tasks.on_demand.loose import FOLD_SCHEMA, collect_scores, score_folds
from tasks.on_demand.output import check_output
from tasks.onboarding.days import QUANTILES
from tasks.policy import progress_of
from tasks.rows.judge import load_detector
from tasks.rows.params import EventTime
from tasks.sources.kinds import list_arrivals
from tasks.train import fit_bundle
from tasks.validate import check_accepted, validate_batches

FOLDS = 5
Policy = TypeVar("Policy", bound=Section)
RULE = EventTime(days=FOLDS, seed=2, first_date=date(2026, 1, 1))


def score_every_row(name: str, most: int | None, output: Path | None) -> dict[str, Any]:
    """Counts, and the `most` worst and first bad rows, by score / threshold; `output` gets all rows.

    Raises ParamsInvalid if the table has times.
    """
    if output:
        check_output(output)
    with open_scratch(name) as setup:
        site, contract, params = setup.site, setup.configured.contract, setup.ingest_params
        window = setup.window(last=date.max)
        arrivals = [*list_arrivals(params.source, site.sources, site.zone, window)]
        land_arrivals(site, params, window, arrivals, progress_of("ingest"))
        dates = site.lake.dates("landing", name)
        limits = setup.configured.detector.validate_
        check_accepted(name, validate_batches(site, contract, dates, limits, progress_of("validate")))
        report = progress_of("train")
        detectors = {}
        for done, day in enumerate(dates, start=1):
            detectors[day] = fit_without(setup, day, dates[-1])
            report(done, len(dates))
        scored = score_folds(detectors, contract, params, arrivals, setup.configured.detector.score.causes, site.zone)
        counts = asdict(collect_scores(scored, most, output, FOLD_SCHEMA, "times_threshold"))
    segments = [detector.segments for detector in detectors.values() if detector.segments]
    thresholds = [detector.threshold for detector in detectors.values()]
    thresholds += [threshold for found in segments for threshold in found.thresholds.values()]
    alarms = max(threshold.false_alarm_rate for threshold in thresholds)
    facts = {"detector": name, "folds": len(dates), "false_alarm_rate": alarms}
    return facts | ({"thresholds_by": segments[0].column} if segments else {}) | counts


@contextmanager
def open_scratch(name: str) -> Iterator[Setup]:
    """A detector with an empty lake and warehouse, its rows dealt over FOLDS days, without expectations on batches."""
    with TemporaryDirectory() as folder:
        stores = {"home": Path(folder), "lake": folder, "warehouse": f"duckdb:///{folder}/scratch.duckdb"}
        setup = load_setup(name, load_settings().model_copy(update=stores))
        if setup.site.has_times:
            raise ParamsInvalid(
                "Only the rows of a table without times can all be scored.",
                where=f"detectors.{name}.ingest.event_time",
                got=f"the column {setup.configured.detector.ingest.event_time.column}",
                expected="no column: rows with times are scored night by night, by what was known before",
                todo=f"leave out --all; nightjar backfill {name} scores earlier nights",
            )
        if (threshold := setup.configured.detector.calibrate.threshold).kind == "false_discovery_rate":
            raise ParamsInvalid(
                "A false-discovery rate needs whole nights, and --all scores the rows in parts.",
                where=f"detectors.{name}.calibrate.threshold",
                got=f"kind {threshold.kind}",
                expected="another policy, such as {kind: quantile, q: 0.99}",
                todo="leave out --all, or change calibrate.threshold",
            )
        setup.site.warehouse.migrate()
        configured = setup.configured
        ingest = configured.detector.ingest.model_copy(update={"event_time": RULE})
        detector = configured.detector.model_copy(update={"ingest": ingest})
        rows = tuple(e for e in configured.contract.expectations if e.level == "row")
        contract = configured.contract.model_copy(update={"expectations": rows})
        yield replace(setup, configured=configured.model_copy(update={"detector": detector, "contract": contract}))


def fit_without(setup: Setup, day: date, last: date) -> Detector:
    """A detector that is fitted and calibrated on the rows of all days but one."""
    site, params = setup.site, setup.configured.detector
    cutoff = last + site.label_delay + timedelta(days=2)  # all labels are known
    filtered = params.filter.model_copy(update={"exclude_dates": (day,)})
    rows = prepare_rows(site, cutoff, filtered, params.train.columns.numbers)
    fitted = fit_bundle(site, rows, params.train, setup.hashes)
    policy = fit_policy(params.calibrate.threshold, rows.rows["calibration"])
    calibrate = params.calibrate.model_copy(update={"threshold": policy})
    try:
        folder = calibrate_bundle(site, rows, fitted, calibrate, params.ingest.has_labels).bundle
    except TooFewRows:
        if calibrate.by is None:
            raise
        pooled = calibrate.model_copy(update={"by": None})  # in this fold no segment is large enough
        folder = calibrate_bundle(site, rows, fitted, pooled, params.ingest.has_labels).bundle
    return load_detector(setup.site.lake, setup.site.detector, folder)


def fit_policy(policy: Policy, rows: int) -> Policy:
    """The policy, with a lower quantile if its own needs more calibration rows: a fold has fewer than a night."""
    if not isinstance(policy, QuantilePolicy):
        return policy
    q = next((q for q in (policy.q, *QUANTILES) if q <= policy.q and rows_for_quantile(q) <= rows), policy.q)
    return policy.model_copy(update={"q": q})
