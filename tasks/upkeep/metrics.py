"""The state of all detectors as Prometheus metrics: readings in, metric families out.

Metrics are instants, not ages: `time()` minus an instant is right however old the reading is. Labels are names of
detectors, outcomes, states, findings, canaries and errors, never values of records.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tasks.stores.tables import FINDINGS, PublishedNight
from tasks.upkeep.ledger import State


@dataclass(frozen=True)
class Reading:
    """The state of a detector; what could not be read is None, and `error` is the reason.

    Instants are the beginnings of batch dates: the newest published one, the newest landed one that is over, and the
    newest one that should be published by now, None for data that has ended (run.every_night).
    """

    detector: str
    newest: PublishedNight | None = None
    published: datetime | None = None
    landed: datetime | None = None
    expected: datetime | None = None
    attempts: Mapping[str, int] | None = None  # by status
    nights: Mapping[State, int] | None = None
    champion: int | None = None
    finding: str | None = None  # of the newest published night
    canaries: Mapping[str, float] = field(default_factory=dict)  # their recall on it
    cases: Mapping[str, int] | None = None  # open, critical (of the open), overdue (of the open)
    untold: int | None = None  # messages that a channel did not take, and that are tried again
    error: Exception | None = None


Value = Callable[[Reading], float | None]
GAUGES: Mapping[str, tuple[str, Value]] = {
    "nightjar_detector_up": (
        "1 if the detector's whole state could be read, otherwise 0.",
        lambda reading: float(reading.error is None),
    ),
    "nightjar_night_batch_date_timestamp_seconds": (
        "Start of the newest published batch date in the detector's time zone; time() minus it is the freshness.",
        lambda reading: _instant(reading.published),
    ),
    "nightjar_expected_batch_date_timestamp_seconds": (
        "Start of the newest batch date that is over; absent if run.every_night is false.",
        lambda reading: _instant(reading.expected),
    ),
    "nightjar_landed_batch_date_timestamp_seconds": (
        "Start of the newest landed batch date that is over.",
        lambda reading: _instant(reading.landed),
    ),
    "nightjar_attempts_running": (
        "Attempts that have not ended.",
        lambda reading: None if reading.attempts is None else reading.attempts.get("running", 0),
    ),
    "nightjar_champion_version": (
        "The model version that scores tonight; absent without a champion.",
        lambda reading: reading.champion,
    ),
    "nightjar_cases_open": (
        "Open cases, with the snoozed ones whose time has come.",
        lambda reading: None if reading.cases is None else reading.cases["open"],
    ),
    "nightjar_cases_critical": (
        "Open cases of the highest severity.",
        lambda reading: None if reading.cases is None else reading.cases["critical"],
    ),
    "nightjar_cases_overdue": (
        "Open cases past their due date.",
        lambda reading: None if reading.cases is None else reading.cases["overdue"],
    ),
    "nightjar_messages_failed": (
        "Messages of alerts.yaml that a channel did not take, and that are tried again.",
        lambda reading: reading.untold,
    ),
}
NIGHT: Mapping[str, tuple[str, Callable[[PublishedNight], float]]] = {
    "nightjar_night_flagged_rows": ("Rows above the threshold.", lambda night: night.flagged),
    "nightjar_night_published_rows": (
        "Flags written to the warehouse; score.max_alerts may limit them.",
        lambda night: night.published,
    ),
    "nightjar_night_unseen_rows": ("Scored rows with an unseen category.", lambda night: night.unseen),
    "nightjar_night_duration_seconds": ("From the start of the attempt to publishing.", lambda night: night.seconds),
    "nightjar_night_scored_timestamp_seconds": ("Time of scoring.", lambda night: night.scored_at.timestamp()),
    "nightjar_night_threshold": ("The threshold above which records are flagged.", lambda night: night.threshold),
    "nightjar_night_model_version": ("The model version that scored it.", lambda night: night.model_version),
}
OUTCOMES = ("scored", "quarantined", "excluded")
ENDED = ("published", "failed")


def describe_detectors(readings: Sequence[Reading], schema: str | None, now: datetime) -> Iterator[Metric]:
    """The metric families of all detectors; `schema` is the warehouse's, None if missing or unreachable."""
    yield _gauge("nightjar_read_timestamp_seconds", "Time at which the metrics were read.", (), [((), now.timestamp())])
    yield _gauge(
        "nightjar_warehouse_schema_version",
        "The version of the warehouse's tables; absent if it is unreachable or has no tables yet.",
        (),
        [((), None if schema is None else float(schema))],
    )
    for name, (text, value) in GAUGES.items():
        yield _gauge(name, text, ("detector",), (((r.detector,), value(r)) for r in readings))
    errors = (((r.detector, type(r.error).__name__), 1.0) for r in readings if r.error)
    yield _gauge(
        "nightjar_detector_error", "The error if it is not up, as in the runbook.", ("detector", "error"), errors
    )
    newest = [r.newest for r in readings if r.newest]
    for name, (text, count) in NIGHT.items():
        text = f"Of the newest published night: {text[0].lower()}{text[1:]}"
        yield _gauge(name, text, ("detector",), (((night.detector,), count(night)) for night in newest))
    yield _gauge(
        "nightjar_night_rows",
        "Of the newest published night: rows by outcome; they add up to the rows in the batch.",
        ("detector", "outcome"),
        (((night.detector, outcome), getattr(night, outcome)) for night in newest for outcome in OUTCOMES),
    )
    found = [r for r in readings if r.finding]
    yield _gauge(
        "nightjar_night_finding",
        "Of the newest published night: 1 for what monitor found, 0 for the other findings.",
        ("detector", "finding"),
        (((r.detector, finding), float(finding == r.finding)) for r in found for finding in FINDINGS),
    )
    yield _gauge(
        "nightjar_night_canary_recall",
        "Of the newest published night: the share of a canary's rows that would be alerts.",
        ("detector", "canary"),
        (((r.detector, canary), recall) for r in readings for canary, recall in r.canaries.items()),
    )
    states = (((r.detector, state), count) for r in readings for state, count in (r.nights or {}).items())
    yield _gauge("nightjar_nights", "Due batch dates by state.", ("detector", "state"), states)
    yield count_attempts(readings)


def count_attempts(readings: Sequence[Reading]) -> CounterMetricFamily:
    """The attempts that have ended, by outcome. Pruning old attempts looks like a counter reset."""
    family = CounterMetricFamily(
        "nightjar_attempts", "Attempts at a batch that have ended, by outcome.", labels=("detector", "outcome")
    )
    for reading in readings:
        for outcome in ENDED if reading.attempts is not None else ():
            family.add_metric((reading.detector, outcome), (reading.attempts or {}).get(outcome, 0))
    return family


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float | None]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        if value is not None:
            family.add_metric(key, value)
    return family


def _instant(begins: datetime | None) -> float | None:
    return None if begins is None else begins.timestamp()
