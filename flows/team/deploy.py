"""`nightjar deploy`: create or update everything Nightjar needs on a Prefect server, without prompts.

In this order, so that nothing is used before it exists: work pools, one limit per detector and kind of work, the
deployments of infra/prefect.yaml, the automations that mark a run as crashed if its worker died, and those that tell
the channels of alerts.yaml.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args
from uuid import UUID

import yaml
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

from flows.config.alerts import get_url, load_alerts
from flows.config.documents import read_yaml
from flows.config.params import detector_names, load_detector
from flows.config.settings import Settings, prefect_is_away
from flows.hooks import Work, name_limit
from tasks.errors import ParamsInvalid, RunFailed
from tasks.follow_up.channels import check_url

FILE = "infra/prefect.yaml"
NIGHTLY = "nightly"  # the deployment whose schedule each time zone gets
TRAINING = ("flows.training:train_there", "gpu")  # may be called for a detector that is newer than the deployments
POOLS = ("cpu", "gpu")
HEARTBEAT, BEGINNINGS = "prefect.flow-run.heartbeat", {"prefect.flow-run.Pending", "prefect.flow-run.Running"}
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
# The flows whose failed and crashed runs are reported: not freshness, which reports late nights itself, and not train,
# because the training that called it fails too.
TOLD = ["every", "nightly", "backfill-range", "retrain", "training", "prune"]
NOTICE = "nightjar: a run that failed or crashed is told to "
STILLBORN_AFTER = timedelta(minutes=5)  # for a run that a worker has taken but that never sent a heartbeat


def deploy(settings: Settings) -> list[dict[str, str]]:
    """Create or update pools, limits, deployments and automations; returns the deployments and their schedules.

    Raises ParamsInvalid, ServiceUnreachable, RunFailed.
    """
    server = find_server()
    make_pools()
    make_limits(settings.project)
    make_deployments(settings.project, server)
    make_automations(timedelta(seconds=settings.silent_after_s))
    make_notices(settings)
    return list_deployments()


def find_server() -> str:
    """The Prefect server's address. Raises ParamsInvalid if not set, ServiceUnreachable if it does not answer."""
    url: str | None = PREFECT_API_URL.value()
    if not url:
        raise ParamsInvalid(
            "Deployments need a Prefect server.",
            where="PREFECT_API_URL",
            got="nothing",
            expected="its address, such as http://127.0.0.1:4200/api",
            todo="run make up, which starts one and deploys, or set the variable",
        )
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise prefect_is_away(str(problem))
    return url


def make_pools() -> None:
    """Create the work pools; an existing one is not changed."""
    with get_client(sync_client=True) as client:
        for name in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            except ObjectAlreadyExists:
                continue


def make_limits(project: Path) -> None:
    """Create one limit per detector for scoring and one for training, each with one slot."""
    with get_client(sync_client=True) as client:
        for detector in detector_names(project):
            for work in get_args(Work):
                client.upsert_global_concurrency_limit_by_name(name_limit(work, detector), 1)


def make_deployments(project: Path, server: str) -> None:
    """Deploy infra/prefect.yaml with Prefect's command, the nights on a schedule per time zone."""
    folder = str(project.resolve())
    document = schedule_by_zone(read_yaml(project / FILE), list_zones(project))
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "prefect.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        env = os.environ | {"NIGHTJAR_PROJECT": folder, "PREFECT_API_URL": server}
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if done.returncode:
        raise RunFailed(
            "Prefect did not accept the deployments.",
            where=FILE,
            got=(done.stderr or done.stdout).strip(),
            todo="correct the file; existing deployments are kept",
        )
    remove_schedules(document)
    offer_detectors(document, detector_names(project))


def remove_schedules(document: Any) -> None:
    """Delete the named schedules of the document's deployments that it no longer has: Prefect only adds and updates."""
    wanted = {
        (each["entrypoint"], each["name"]): {schedule["slug"] for schedule in each.get("schedules", ())}
        for each in document["deployments"]
    }
    with get_client(sync_client=True) as client:
        for one in client.read_deployments():
            for schedule in one.schedules:
                if schedule.slug and schedule.slug not in wanted.get((one.entrypoint, one.name), {schedule.slug}):
                    client.delete_deployment_schedule(one.id, schedule.id)


def offer_detectors(document: Any, names: Sequence[str]) -> None:
    """Make the detector a choice in the forms of the document's deployments, but where a flow calls the deployment."""
    offered = {(each["entrypoint"], each["name"]) for each in document["deployments"]} - {TRAINING}
    with get_client(sync_client=True) as client:
        for one in client.read_deployments():
            schema = one.parameter_openapi_schema or {}
            if (one.entrypoint, one.name) in offered and names and "name" in schema.get("properties", {}):
                schema["properties"]["name"]["enum"] = list(names)
                client.update_deployment(one.id, DeploymentUpdate(parameter_openapi_schema=schema))


def list_zones(project: Path) -> list[str]:
    """The time zones of the detectors that run every night, in order; those that cannot be loaded have none."""
    zones = set()
    for name in detector_names(project):
        with suppress(ParamsInvalid):
            detector = load_detector(project, name).detector
            zones |= {detector.time_zone} if detector.run.every_night else set()
    return sorted(zones)


def schedule_by_zone(document: Any, zones: Sequence[str]) -> Any:
    """The document of infra/prefect.yaml with the nightly schedule once per time zone; as it is if there are none."""
    for deployment in document["deployments"]:
        if deployment["name"] == NIGHTLY and zones:
            [schedule] = deployment["schedules"]
            deployment["schedules"] = [
                schedule | {"timezone": zone, "slug": slugify(zone), "parameters": {"time_zone": zone}}
                for zone in zones
            ]
    return document


def slugify(zone: str) -> str:
    """The name of a time zone's schedule, as Prefect allows it."""
    return re.sub("[^a-z0-9]+", "-", zone.lower().replace("+", "-plus-")).strip("-")


def make_automations(silent_after: timedelta) -> None:
    """Create automations that mark a run as crashed if its process or worker died, on any host."""
    silent = EventTrigger(
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDS},
        posture=Posture.Proactive,
        threshold=1,
        within=silent_after,
    )
    from_a_pool = {"prefect.resource.role": ["work-pool"]}
    expected = {"prefect.flow-run.Running", HEARTBEAT, *ENDS}
    begun = {"match_related": from_a_pool, "after": BEGINNINGS, "expect": expected, "within": STILLBORN_AFTER}
    stillborn = silent.model_copy(update=begun)
    make_automation(mark_crashed("nightjar: a run without heartbeats has crashed", silent))
    make_automation(mark_crashed("nightjar: a run that never had a heartbeat has crashed", stillborn))


def mark_crashed(name: str, trigger: EventTrigger) -> AutomationCore:
    """The automation of this name, which marks runs as crashed."""
    reason = f"no heartbeat for {trigger.within.total_seconds():.0f} s: its worker died"
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=reason, force=False)
    return AutomationCore(name=name, description=reason, enabled=True, trigger=trigger, actions=[action])


def make_notices(settings: Settings) -> None:
    """Let Prefect notify the channels of the rules on failed nights about each deployed run that fails or crashes.

    It does so where a night cannot: its worker died, or the warehouse is away. Raises ParamsInvalid.
    """
    alerts = load_alerts(settings)
    rules = alerts.rules.values() if alerts else ()
    channels = sorted({channel for rule in rules if rule.on == "night_failed" for channel in rule.channels})
    for channel in channels:
        url = get_url(channel)
        check_url(channel, url)
        block = SlackWebhook(url=SecretStr(url))  # the block that passes any URL on to Apprise
        block_id = block.save(f"nightjar-{channel.replace('_', '-')}", overwrite=True)
        make_automation(tell_channel(channel, UUID(str(block_id))))
    wanted = {NOTICE + channel for channel in channels}
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name.startswith(NOTICE) and automation.name not in wanted:
                client.delete_automation(automation.id)


def tell_channel(channel: str, block_id: UUID) -> AutomationCore:
    """The automation that sends a message to a channel when a deployed run fails or crashes."""
    trigger = EventTrigger(
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        match_related=[
            {"prefect.resource.role": "work-pool"},
            {"prefect.resource.role": "flow", "prefect.resource.name": TOLD},
        ],
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(),
    )
    action = SendNotification(
        block_document_id=block_id,
        subject="nightjar: the run {{ flow_run.name }} has {{ flow_run.state.name | lower }}",
        body="{{ flow_run.state.message }}\n{{ flow_run | ui_url }}",
    )
    what = "sends a message when a deployed run fails or crashes"
    return AutomationCore(name=NOTICE + channel, description=what, enabled=True, trigger=trigger, actions=[action])


def make_automation(wanted: AutomationCore) -> None:
    """Create or update the automation of this name."""
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(wanted.name)
        if not known:
            client.create_automation(wanted)
        for automation in known[:1]:
            # Prefect forgets what it was timing when an automation is updated, even if nothing changed.
            if AutomationCore.model_validate(automation.model_dump(include=set(AutomationCore.model_fields))) != wanted:
                client.update_automation(automation.id, wanted)
        for automation in known[1:]:  # two deploys at once
            client.delete_automation(automation.id)


def list_deployments() -> list[dict[str, str]]:
    """The server's deployments: FLOW/NAME, pool and schedule."""
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        found = [
            {
                "deployment": f"{flows[one.flow_id]}/{one.name}",
                "pool": str(one.work_pool_name),
                "schedule": describe_schedules(one.schedules),
            }
            for one in client.read_deployments()
        ]
    return sorted(found, key=lambda row: row["deployment"])


def describe_schedules(schedules: Sequence[Any]) -> str:
    """A deployment's active cron schedules, each with its time zone."""
    crons = [one.schedule for one in schedules if one.active and hasattr(one.schedule, "cron")]
    return ", ".join(f"{cron.cron} {cron.timezone}" for cron in crons)
