"""The night of every detector that is in service, one after the other; one failing never stops another's."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import date

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as current
from prefect.states import Completed, Failed

from flows.crashed import mark_crashed
from flows.nightly import nightly
from flows.params import detector_names
from flows.settings import load_settings
from flows.setup import load_setup
from tasks.errors import NightjarError
from tasks.tables import Night
from tasks.tracking import list_versions


@dataclass(frozen=True)
class Outcome:
    """What became of one detector's night: the batch that was published, or the cause that it was not."""

    detector: str
    batch_date: date | None
    flagged: int | None
    cause: str


def name_run() -> str:
    """Name the batch date, where one is given."""
    return f"score all {current.get_parameters()['batch_date'] or 'of yesterday'}"


@flow(name="every", flow_run_name=name_run, on_running=[mark_crashed])
def score_every(batch_date: date | None = None) -> State[list[Outcome]]:
    """Score a batch (yesterday's, unless named) of every detector; red, with who failed and why, when any did."""
    outcomes = [score_one(name, batch_date) for name in detector_names(load_settings().project) if is_in_service(name)]
    causes = [f"{outcome.detector}: {outcome.cause}" for outcome in outcomes if outcome.cause]
    if causes:
        return Failed(message="\n".join(causes), data=outcomes)
    return Completed(message=f"{len(outcomes)} published", data=outcomes)


def is_in_service(name: str) -> bool:
    """Whether a detector has anything to score with; one that cannot be looked at counts: its night will say why."""
    with suppress(NightjarError):
        return bool(list_versions(load_setup(name).site))
    return True


def score_one(name: str, batch_date: date | None) -> Outcome:
    """One detector's night, whatever becomes of it."""
    state = nightly(name, batch_date, return_state=True)
    night = state.result(raise_on_failure=False)
    if isinstance(night, Night):
        return Outcome(name, night.batch_date, night.flagged, "")
    return Outcome(name, batch_date, None, str(night))
