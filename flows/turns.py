"""One scoring run and one training of a detector at a time, where many run at once: who comes second waits.

Prefect's global limits keep the order, and free the place of a run that died within a minute; `nightjar deploy` makes
them. They only spare work: that a batch is published once and whole is kept by the warehouse's fencing.
"""

from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from flows.settings import load_settings
from tasks.errors import ParamsInvalid

P = ParamSpec("P")
R = TypeVar("R")
Work = Literal["score", "train"]
LEASE_S = 60  # the shortest that Prefect takes


def name_limit(work: Work, detector: str) -> str:
    """The limit that runs of one kind queue behind."""
    return f"nightjar-{work}-{detector}"


def taking_turns(work: Work) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a flow, whose first parameter is the detector's name, wait for its turn where NIGHTJAR_LIMITS says so."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wait_and_run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not load_settings().limits:
                return function(*args, **kwargs)
            name = name_limit(work, str(kwargs.get("name") or args[0]))
            try:
                # A lease that is lost must not stop a night that is under way.
                with concurrency(name, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False):
                    return function(*args, **kwargs)
            except ConcurrencySlotAcquisitionError as error:
                raise _missing(name) from error

        return wait_and_run

    return decorate


def _missing(name: str) -> ParamsInvalid:
    return ParamsInvalid(
        "Prefect has no limit to queue behind; nothing was run.",
        where=f"global concurrency limit {name}",
        expected="a limit for every detector of params.yaml",
        todo="make deploy, which makes them; or unset NIGHTJAR_LIMITS",
    )
