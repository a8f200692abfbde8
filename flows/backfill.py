"""The backfill flow: the nightly flow for each of several dates; a failed night does not stop the others."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.alerts import tell
from flows.config.setup import prepare
from flows.hooks import mark_crashed
from flows.nightly import nightly
from flows.status import Only, make_plan
from tasks.enrich import enrich
from tasks.errors import RunFailed
from tasks.validate import validate


def name_run() -> str:
    """Name the run after the range of dates."""
    parameters = flow_run.get_parameters()
    return f"backfill {parameters['name']} {parameters['dates'][0]} to {parameters['dates'][-1]}"


@flow(name="backfill", flow_run_name=name_run, on_running=[mark_crashed])
def backfill(name: str, dates: list[date], versions: list[int] | None = None) -> None:
    """Score and publish batches in order, and fail if any of them failed.

    Args:
        name: The detector, as in params.yaml.
        dates: The nights to score, in order.
        versions: The model version for each date. Default: the champion.
    """
    setup = prepare(name)
    # One pass over all dates costs far less than one pass per night. Each night reports its own rejected batch.
    site, contract, params = setup.site, setup.configured.contract, setup.configured.detector
    validate(site, contract, dates, params.validate_, return_state=True)
    if params.enrich:
        enrich(site, contract, dates, params.validate_, params.enrich, return_state=True)
    scorers: Sequence[int | None] = versions or [None] * len(dates)
    states = [nightly(name, day, number, return_state=True) for day, number in zip(dates, scorers, strict=True)]
    tell([name])
    raise_failed_nights(name, dates, states)


@flow(name="backfill-range", flow_run_name="backfill {name}, {only} of {first} to {last}", on_running=[mark_crashed])
def backfill_range(name: str, first: date, last: date, only: Only = "unpublished", as_of: bool = False) -> None:
    """Score and publish a range of batch dates, by default those that are not published. Like `nightjar backfill`.

    Args:
        name: The detector, as in params.yaml.
        first: The first batch date.
        last: The last batch date.
        only: The nights to score: all, or those in one state; unpublished are the missing and the failed ones.
        as_of: Score each date with the version that was champion when it ended, not with today's champion.
    """
    plan = make_plan(name, first, last, only, as_of)
    if plan.dates:
        backfill(name, plan.dates, plan.versions if as_of else None)


def raise_failed_nights(name: str, dates: Sequence[date], states: Sequence[State[Any]]) -> None:
    """Raise RunFailed if a night failed; it lists every failed date with its cause."""
    causes: dict[str, list[str]] = {}
    for day, state in zip(dates, states, strict=True):
        if not state.is_completed():
            causes.setdefault(str(state.result(raise_on_failure=False)), []).append(day.isoformat())
    if causes:
        raise RunFailed(
            f"{sum(map(len, causes.values()))} of {len(dates)} nights of {name} failed; the others are published.",
            got="\n".join(f"{', '.join(days)}: {cause}" for cause, days in causes.items()),
            todo=f"fix the causes, then nightjar run {name} or nightjar score {name} --date DATE",
        )
