"""The backfill flow: the nightly flow for each of some dates; one failing does not stop the others."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.nightly import nightly
from tasks.errors import RunFailed


@flow(name="backfill", flow_run_name="backfill {name} {dates}")
def backfill(name: str, dates: list[date]) -> None:
    """Score and publish batches in order; red when any of them failed."""
    states = [nightly(name, day, return_state=True) for day in dates]
    raise_failures(name, dates, states)


def raise_failures(name: str, dates: Sequence[date], states: Sequence[State[Any]]) -> None:
    """Raise RunFailed that lists every failed date with its cause."""
    causes: dict[str, list[str]] = {}
    for day, state in zip(dates, states, strict=True):
        if not state.is_completed():
            causes.setdefault(str(state.result(raise_on_failure=False)), []).append(day.isoformat())
    if causes:
        raise RunFailed(
            f"{sum(map(len, causes.values()))} of {len(dates)} nights of {name} failed; the others are published.",
            got="\n".join(f"{', '.join(days)}: {cause}" for cause, days in causes.items()),
            todo=f"put the causes right, then nightjar run {name} or nightjar score {name} --date DATE",
        )
