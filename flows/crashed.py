"""Flow runs whose process died without a word: Prefect would show them as running for ever, with a server or without.

A run says which process it is when it begins; the next one to begin on this host marks those of dead processes.
"""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed

from tasks.owner import is_dead, name_process

OWNER = "nightjar.process"
RUNNING = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})


def mark_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Sign this run with its process, and mark every running one whose process is dead as crashed."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {OWNER: name_process()})
        if flow_run.parent_task_run_id:
            return
        for other in client.read_flow_runs(flow_run_filter=RUNNING):
            owner = other.labels.get(OWNER)
            if is_dead(str(owner)):
                client.set_flow_run_state(other.id, Crashed(message=f"its process died: {owner}"), force=True)
