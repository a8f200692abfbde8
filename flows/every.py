"""The night, the training and the pruning of every detector, one after another; one that fails stops no other."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TypeVar

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as current
from prefect.states import Completed, Failed

from flows.alerts import tell
from flows.config.params import detector_names
from flows.config.settings import load_settings
from flows.config.setup import load_setup, prepare
from flows.hooks import mark_crashed
from flows.nightly import nightly
from flows.status import list_in_service, read_line, read_nights
from flows.training import training
from tasks.errors import NightjarError, hide_password
from tasks.register import Registered
from tasks.stores.tables import Night
from tasks.upkeep.prune import prune_detector


@dataclass(frozen=True)
class NightOutcome:
    """The result of one detector's night: the batch it published, or the cause of the failure."""

    detector: str
    batch_date: date | None
    flagged: int | None
    cause: str


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of one detector's training: the version and its alias, or the cause of the failure."""

    detector: str
    version: int | None
    alias: str | None
    cause: str


@dataclass(frozen=True)
class PruneOutcome:
    """The result of pruning one detector: the files and warehouse rows removed, or the cause of the failure."""

    detector: str
    files: int
    rows: int
    cause: str


T = TypeVar("T", NightOutcome, TrainingOutcome, PruneOutcome)


def name_run() -> str:
    """Name the batch date and the time zone, where they are given."""
    parameters = current.get_parameters()
    zone = f" in {parameters['time_zone']}" if parameters["time_zone"] else ""
    return f"score all {parameters['batch_date'] or 'of yesterday'}{zone}"


@flow(name="every", flow_run_name=name_run, on_running=[mark_crashed])
def score_every(batch_date: date | None = None, time_zone: str | None = None) -> State[list[NightOutcome]]:
    """Score a batch of every detector, or of those in one time zone; red, with who failed and why, if any did.

    Without a date: yesterday's, and those since the newest published night that no run has scored.

    Args:
        batch_date: The night to score. Default: yesterday and the missed nights before it.
        time_zone: Only detectors of this time zone, such as Europe/Berlin. Default: all.
    """
    names = list_in_service(time_zone)
    nights = [night for name in names for night in score_due(name, batch_date)]
    tell()
    return conclude(nights, "published")


@flow(name="retrain", flow_run_name="train all", on_running=[mark_crashed])
def retrain_every() -> State[list[TrainingOutcome]]:
    """Train a challenger of every detector on what is known today; red, with who failed and why, when any did."""
    return conclude([train_one(name) for name in list_in_service()], "trained")


@flow(name="prune", flow_run_name="prune all", on_running=[mark_crashed])
def prune_every() -> State[list[PruneOutcome]]:
    """Remove what `nightjar prune` removes, of every configured detector; red, with who failed and why, if any did."""
    return conclude([prune_one(name) for name in detector_names(load_settings().project)], "pruned")


def conclude(outcomes: list[T], done: str) -> State[list[T]]:
    """The state of a run over several detectors: red with every cause when any of them failed."""
    causes = [f"{outcome.detector}: {outcome.cause}" for outcome in outcomes if outcome.cause]
    if causes:
        return Failed(message="\n".join(causes), data=outcomes)
    return Completed(message=f"{len(outcomes)} {done}", data=outcomes)


def score_due(name: str, batch_date: date | None) -> list[NightOutcome]:
    """One detector's night, and without a date also the nights that were missed."""
    if batch_date:
        return [score_one(name, batch_date)]
    try:
        newest = read_line(name).newest_night
        night = score_one(name, None)  # first: it lands what has arrived
        return [night, *(score_one(name, day) for day in list_missed(name, newest))]
    except NightjarError as error:
        return [NightOutcome(name, None, None, str(error))]


def list_missed(name: str, newest: date | None) -> list[date]:
    """The landed dates between the newest published night and yesterday that are not published, in order."""
    if newest is None:
        return []
    setup = load_setup(name)
    catch_up = setup.configured.detector.run.catch_up
    between = [night for night in read_nights(setup).nights if newest < night.batch_date < setup.yesterday()]
    landed = {*setup.site.lake.dates("landing", name)}
    missed = [night.batch_date for night in between if night.batch is None and night.batch_date in landed]
    return missed[-catch_up:] if catch_up else []


def score_one(name: str, batch_date: date | None) -> NightOutcome:
    """One detector's night, whatever becomes of it."""
    state = nightly(name, batch_date, return_state=True)
    night = state.result(raise_on_failure=False)
    if isinstance(night, Night):
        return NightOutcome(name, night.batch_date, night.flagged, "")
    return NightOutcome(name, batch_date, None, hide_password(str(night)))


def train_one(name: str) -> TrainingOutcome:
    """One detector's training, whatever becomes of it."""
    state = training(name, return_state=True)
    made = state.result(raise_on_failure=False)
    if isinstance(made, Registered):
        return TrainingOutcome(name, made.version, made.alias, "")
    return TrainingOutcome(name, None, None, hide_password(str(made)))


def prune_one(name: str) -> PruneOutcome:
    """Prune one detector, whatever becomes of it."""
    try:
        setup = prepare(name)
        removed = prune_detector(setup.site, setup.configured.detector.retention, datetime.now(UTC))
    except NightjarError as error:
        return PruneOutcome(name, 0, 0, str(error))
    files, rows = sum(one.files for one in removed), sum(one.rows for one in removed)
    get_run_logger().info("%s: %d files and %d rows removed", name, files, rows)
    return PruneOutcome(name, files, rows, "")
