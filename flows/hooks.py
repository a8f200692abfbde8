"""Shared by the flows: mark dead runs as crashed, let runs of one detector take turns, record an attempt's progress.

A run records its process when it starts. The next run on this host marks runs of dead processes as crashed; Prefect
would show them as running for ever. Prefect's global limits, which `nightjar deploy` creates, queue the runs and free
the slot of a dead run within a minute. They only avoid duplicate work: the warehouse's fencing ensures that a batch is
published once and whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import wraps
from threading import Event, Thread
from typing import Any, Literal, ParamSpec, TypeVar

from prefect import Flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.states import Crashed

from flows.config.settings import load_settings
from tasks.errors import ParamsInvalid, describe_failure
from tasks.publish import Begun
from tasks.stores.owner import is_dead, name_process
from tasks.stores.site import Site
from tasks.stores.warehouse import LOCK_TIMEOUT_S

P = ParamSpec("P")
R = TypeVar("R")
Step = TypeVar("Step", bound=Callable[..., Any])
Work = Literal["score", "train"]
LEASE_S = 60  # the shortest that Prefect accepts
HEARTBEAT_S = 30.0
STEP_OF = {"resolve_champion": "register", "spread_parts": "score"}  # tasks that are not named like their step
OWNER = "nightjar.process"
RUNNING = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})


def mark_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Label this run with its process, tag it with its detector, and mark running runs of dead processes as crashed."""
    with get_client(sync_client=True) as client:
        if detector := flow_run.parameters.get("name"):
            client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, detector}))
        client.update_flow_run_labels(flow_run.id, {OWNER: name_process()})
        if flow_run.parent_task_run_id:
            return
        for other in client.read_flow_runs(flow_run_filter=RUNNING):
            owner = other.labels.get(OWNER)
            if is_dead(str(owner)):
                client.set_flow_run_state(other.id, Crashed(message=f"its process died: {owner}"), force=True)


def is_part_of_run() -> bool:
    """Whether the current flow run is a part of a larger one. Asks no server."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.parent_task_run_id)


def name_limit(work: Work, detector: str) -> str:
    """The name of the limit behind which a detector's runs of one kind queue."""
    return f"nightjar-{work}-{detector}"


def taking_turns(work: Work) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a flow wait for its turn if NIGHTJAR_LIMITS is set. Its first parameter must be the detector's name."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wait_and_run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not load_settings().limits:
                return function(*args, **kwargs)
            name = name_limit(work, str(kwargs.get("name") or args[0]))
            try:
                # A lost lease must not stop a running night.
                with concurrency(name, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False):
                    return function(*args, **kwargs)
            except ConcurrencySlotAcquisitionError as error:
                raise _missing(name) from error

        return wait_and_run

    return decorate


def _missing(name: str) -> ParamsInvalid:
    return ParamsInvalid(
        "The Prefect limit for this run does not exist; nothing was run.",
        where=f"global concurrency limit {name}",
        expected="one limit for every detector of params.yaml",
        todo="run make deploy, which creates them, or unset NIGHTJAR_LIMITS",
    )


@contextmanager
def follow_steps(site: Site, batch_date: date, begun: Begun) -> Iterator[Callable[[Step], Step]]:
    """Send the attempt's heartbeats, and give a function that records the step reached and returns its task to call."""

    def at(step: Step) -> Step:
        name = str(getattr(step, "__name__", step))
        site.warehouse.reach_step(site.detector, batch_date, begun.attempt, STEP_OF.get(name, name))
        return step

    with sending_heartbeats(site, batch_date, begun):
        yield at


@contextmanager
def sending_heartbeats(site: Site, batch_date: date, begun: Begun) -> Iterator[None]:
    """Record regularly that the attempt's process is alive. A heartbeat that cannot be recorded is logged."""
    ended, logger = Event(), get_run_logger()

    def record() -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                site.warehouse.record_heartbeat(site.detector, batch_date, begun.attempt)
            except Exception as error:  # noqa: BLE001 - the night is more important than its heartbeats
                logger.warning("no heartbeat: %s", describe_failure(error).line)

    thread = Thread(target=record, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOCK_TIMEOUT_S)  # it may be waiting for a lock
