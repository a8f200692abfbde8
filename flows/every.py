"""What is done for every detector, one after the other; one failing never stops another: the night, and retraining."""

from dataclasses import dataclass
from datetime import date

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as current
from prefect.states import Completed, Failed

from flows.hooks import mark_crashed
from flows.nightly import nightly
from flows.status import list_in_service
from flows.training import training
from tasks.register import Registered
from tasks.stores.tables import Night


@dataclass(frozen=True)
class NightOutcome:
    """What became of one detector's night: the batch that was published, or the cause that it was not."""

    detector: str
    batch_date: date | None
    flagged: int | None
    cause: str


@dataclass(frozen=True)
class Retrained:
    """What became of one detector's training: the version and its alias, or the cause that there is none."""

    detector: str
    version: int | None
    alias: str | None
    cause: str


def name_run() -> str:
    """Name the batch date, where one is given."""
    return f"score all {current.get_parameters()['batch_date'] or 'of yesterday'}"


@flow(name="every", flow_run_name=name_run, on_running=[mark_crashed])
def score_every(batch_date: date | None = None) -> State[list[NightOutcome]]:
    """Score a batch (yesterday's, unless named) of every detector; red, with who failed and why, when any did."""
    outcomes = [score_one(name, batch_date) for name in list_in_service()]
    causes = [f"{outcome.detector}: {outcome.cause}" for outcome in outcomes if outcome.cause]
    if causes:
        return Failed(message="\n".join(causes), data=outcomes)
    return Completed(message=f"{len(outcomes)} published", data=outcomes)


@flow(name="retrain", flow_run_name="train all", on_running=[mark_crashed])
def retrain_every() -> State[list[Retrained]]:
    """Train a challenger of every detector on what is known today; red, with who failed and why, when any did."""
    outcomes = [train_one(name) for name in list_in_service()]
    causes = [f"{outcome.detector}: {outcome.cause}" for outcome in outcomes if outcome.cause]
    if causes:
        return Failed(message="\n".join(causes), data=outcomes)
    return Completed(message=f"{len(outcomes)} trained", data=outcomes)


def score_one(name: str, batch_date: date | None) -> NightOutcome:
    """One detector's night, whatever becomes of it."""
    state = nightly(name, batch_date, return_state=True)
    night = state.result(raise_on_failure=False)
    if isinstance(night, Night):
        return NightOutcome(name, night.batch_date, night.flagged, "")
    return NightOutcome(name, batch_date, None, str(night))


def train_one(name: str) -> Retrained:
    """One detector's training, whatever becomes of it."""
    state = training(name, return_state=True)
    made = state.result(raise_on_failure=False)
    if isinstance(made, Registered):
        return Retrained(name, made.version, made.alias, "")
    return Retrained(name, None, None, str(made))
