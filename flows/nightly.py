"""The nightly flow: one batch from landing to published flags and a report."""

from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as current

from flows.alerts import tell
from flows.config.setup import load_setup, prepare
from flows.hooks import follow_steps, is_part_of_run, mark_crashed, taking_turns
from tasks.enrich import enrich
from tasks.errors import Failure, NightjarError, describe_failure, hide_password
from tasks.ingest import check_landed, ingest
from tasks.monitor import monitor
from tasks.publish import begin_night, fail_night, publish
from tasks.register import resolve_champion
from tasks.report import report
from tasks.score import score, shadow
from tasks.spread import Workers, spread_parts
from tasks.stores.tables import Night
from tasks.validate import validate

LOOK_BACK = timedelta(days=3)  # also land late files of these days; their nights then become stale


def record_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mark the attempt as failed in the warehouse, so that `nightjar status` shows it without Prefect, and tell."""
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    crashed = Failure("ProcessLost", {"what": hide_password(str(state.message))})
    failure = describe_failure(error) if isinstance(error, BaseException) else crashed
    fail_night(prepare(flow_run.parameters["name"]).site, str(flow_run.id), failure)
    tell([flow_run.parameters["name"]], flow_run.parent_task_run_id is None)


def name_run() -> str:
    """Name the run after the batch date, even if the schedule leaves it to the flow."""
    parameters = current.get_parameters()
    name, day = parameters["name"], parameters["batch_date"]
    with suppress(NightjarError):  # the flow itself reports what is wrong
        day = day or load_setup(name).window().last
    return f"score {name} {day or 'of yesterday'}"


@flow(
    name="nightly",
    flow_run_name=name_run,
    on_running=[mark_crashed],
    on_failure=[record_failure],
    on_crashed=[record_failure],
)
@taking_turns("score")
def nightly(name: str, batch_date: date | None = None, version: int | None = None) -> Night:
    """Score and publish one batch (default: yesterday's) with the champion or a given version.

    A bad file of the source, whose ingest task is red, does not stop a night whose rows have landed from other files;
    nor does a challenger that cannot score it, whose shadow task is red.

    Args:
        name: The detector, as in params.yaml.
        batch_date: The night to score, in the detector's time zone. Default: yesterday.
        version: The model version to score with. Default: the champion.
    """
    setup = prepare(name)
    site, params, contract = setup.site, setup.configured.detector, setup.configured.contract
    rule, day = setup.record_rule, batch_date or setup.window().last
    begun = begin_night(site, day)
    with follow_steps(site, day, begun) as at:
        landed = at(ingest)(site, setup.ingest_params, setup.window(day - LOOK_BACK, day), return_state=True)
        check_landed(site, [day], landed)
        scorer, bundle = at(resolve_champion)(site, version)
        types = contract.types | params.history
        scorer.check_types(types)
        [validation] = at(validate)(site, contract, [day], params.validate_)
        if params.enrich:
            [validation] = at(enrich)(site, contract, [day], params.validate_, params.enrich)
        workers = Workers(setup.scheduler, setup.workers)
        at(spread_parts)(site, contract, validation, scorer, bundle, params.score, workers)
        scored = score(site, contract, validation, scorer, bundle, params.score, begun.started_at)
        night = at(publish)(site, begun, scored, rule, params.cases)
        shadow(site, contract, types, validation, params.score, begun.started_at, return_state=True)
        watched = contract, night, scorer, bundle, rule, params.monitor
        known = params.filter.exclude_dates, params.ingest.has_labels
        found = monitor(site, *watched, *known, return_state=True)
        report(site, contract, validation, scorer, bundle, params.score)
        found.result()
    tell([name], not is_part_of_run())
    return night
