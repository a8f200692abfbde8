"""The training flow: from landing to a registered version, with every batch before the cut-off."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as current
from prefect.states import Cancelled
from pydantic import JsonValue

from flows.config.settings import load_settings
from flows.config.setup import Setup, prepare
from flows.hooks import mark_crashed, taking_turns
from tasks.calibrate import calibrate
from tasks.enrich import enrich
from tasks.errors import BatchMissing, NightjarError, ParamsInvalid, RunFailed
from tasks.evaluate import evaluate
from tasks.filter import TrainingSet, filter_rows, read_training_set
from tasks.ingest import check_landed, ingest
from tasks.on_demand.compare import Comparison, choose_versions, compare_versions, summarise_comparison
from tasks.on_demand.examine import draw_pictures
from tasks.on_demand.standing import keep_comparison
from tasks.policy import progress_of
from tasks.register import Registered, Trained, describe_lost_reducer, register
from tasks.train import send_bundle, take_bundle, train
from tasks.upkeep.reduce import register_reducer
from tasks.validate import validate


@dataclass(frozen=True)
class Compared(Registered):
    """A trained version, what it would change on later nights (None without any), and what to know of it.

    threshold: its calibration in words.
    """

    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    threshold: str = ""


def name_run() -> str:
    """Name the run after the cut-off, even if the schedule leaves it to the flow."""
    parameters = current.get_parameters()
    return f"train {parameters['name']} before {parameters['cutoff'] or 'today'}"


@flow(name="training", flow_run_name=name_run, on_running=[mark_crashed])
@taking_turns("train")
def training(name: str, cutoff: date | None = None) -> Compared:
    """Fit, calibrate, evaluate and register a detector on what was known at `cutoff`; compare it with the champion.

    A bad file of the source, whose ingest task is red, does not stop it: it learns from what has landed, and says so.

    Args:
        name: The detector, as in params.yaml.
        cutoff: Only batches before this date are learnt. Default: all up to yesterday.
    """
    setup = prepare(name)
    site, params = setup.site, setup.configured.detector
    cutoff = cutoff or setup.newest_cutoff()
    landed = ingest(site, setup.ingest_params, setup.window(last=cutoff), return_state=True)
    bad_files = check_landed(site, site.lake.dates("landing", name), landed)
    dates = setup.landed_before(cutoff)
    validate(site, setup.configured.contract, dates, params.validate_)
    if params.enrich:
        enrich(site, setup.configured.contract, dates, params.validate_, params.enrich)
    rows = filter_rows(site, cutoff, params.filter, params.train.columns.numbers)
    begun = datetime.now(UTC)
    fitted = train_here_or_there(setup, rows)
    calibrated = calibrate(site, rows, fitted, params.calibrate, params.ingest.has_labels)
    evaluation = evaluate(site, rows, calibrated.bundle)
    with TemporaryDirectory() as folder:
        draw_pictures(site, rows, calibrated.bundle, Path(folder))
        trained = Trained(cutoff, begun, params.train.fit, Path(folder))
        tags = setup.tags | calibrated.tags | evaluation.tags
        registered = register(site, calibrated.bundle, evaluation.metrics, tags, trained)
    found, doubt = challenge(setup, registered), calibrated.doubt(evaluation.metrics)
    lost = f"it has not learnt from what did not land: {bad_files.what} {bad_files.where}".strip() if bad_files else ""
    return replace(found, threshold=str(calibrated), notes=(*filter(None, [lost, doubt]), *found.notes))


def challenge(setup: Setup, registered: Registered) -> Compared:
    """Learn the champion's second stage again for a new version, and compare it with the champion."""
    site = setup.site
    champion = site.registry.find_version()
    if champion is None or champion.version == registered.version:
        return Compared(**vars(registered))
    latest, notes = learn_second_stage(setup, registered)
    found, note = compare_with_champion(setup, dict.fromkeys((latest.version, registered.version)))
    if found:
        text, key = summarise_comparison(found), f"comparison-{site.artifact_key}"
        create_markdown_artifact(text, key=key, description=f"version {found.second.version}")
    notes += [note] if note else []
    for note in notes:
        get_run_logger().warning(note)
    return Compared(**vars(latest), comparison=found, notes=tuple(notes))


def compare_with_champion(setup: Setup, versions: Iterable[int]) -> tuple[Comparison | None, str]:
    """The comparison of the first of these versions for which there are new nights, or why there is none.

    Whatever is wrong with the champion or with old nights, the new version stays registered.
    """
    site, params, now = setup.site, setup.configured.detector, datetime.now(UTC)
    for number in versions:
        pair, judged = choose_versions(site, number), (params.ingest.has_labels, now)
        progress, canaries = progress_of("compare"), params.monitor.canaries
        try:
            found = compare_versions(site, setup.record_rule, pair, *judged, on_progress=progress, canaries=canaries)
            keep_comparison(site, pair, found, now)
        except BatchMissing:
            continue  # the verdicts of a second stage may be of the newest nights
        except NightjarError as error:
            return None, f"version {number} could not be compared with the champion: {error.line}"
        return found, ""
    return None, f"no published night is new to the version and the champion; later: nightjar compare {site.detector}"


def learn_second_stage(setup: Setup, registered: Registered) -> tuple[Registered, list[str]]:
    """The version with the second stage that the champion has, if it lacks one; and what came of it, in words.

    If the verdicts do not suffice, it stays as it is.
    """
    site, version = setup.site, registered.version
    champion = site.registry.get_champion()
    if not describe_lost_reducer(champion, site.registry.get_version(version)):
        return registered, []
    try:
        reduced = register_reducer(site, setup.configured.detector.review, version)
    except NightjarError as error:  # too few verdicts, or whatever else: the version is registered
        return registered, [
            f"version {version} has no second stage, which version {champion.version} has: {error.what} After more "
            f"verdicts (nightjar review {site.detector}): nightjar reduce {site.detector} --version {version}"
        ]
    latest = reduced.registered
    learnt, through = (
        site.registry.get_version(version).trained_through,
        site.registry.get_version(latest.version).trained_through,
    )
    kept = f"; nights through {through}, which have verdicts, stay as they are" if through > learnt else ""
    verdicts = f"{reduced.gain.verdicts:,} verdicts"
    return latest, [f"the second stage of version {latest.version} was learnt again from {verdicts}{kept}"]


START_TIMEOUT_S = 900  # for a worker to take the run: a GPU machine may have to start first
POLL_S = 2


@flow(name="train", flow_run_name="fit {name} before {cutoff}", on_running=[mark_crashed])
def train_there(name: str, cutoff: date, hashes: dict[str, JsonValue]) -> None:
    """Fit on the clean rows that the training flow has prepared, and send it the bundle.

    Raises ParamsInvalid if the hashes differ here.

    Args:
        name: The detector, as in params.yaml.
        cutoff: The date before which the training flow has prepared batches.
        hashes: Of the caller's params and contract.
    """
    setup = prepare(name)
    if setup.hashes != hashes:
        raise ParamsInvalid(
            "The worker that trains and its caller have different params or contracts.",
            where=str(load_settings().project),
            got=str(setup.hashes),
            expected=str(hashes),
            todo="check out the same commit in the project's folder on both",
        )
    rows = read_training_set(setup.site.lake, name, cutoff)
    train(setup.site, rows, setup.configured.detector.train, setup.hashes)
    send_bundle(setup.site, cutoff, str(current.id))


def train_here_or_there(setup: Setup, rows: TrainingSet) -> Path:
    """Fit in this process or in NIGHTJAR_TRAIN_DEPLOYMENT; returns the bundle's folder on this machine."""
    deployment = load_settings().train_deployment
    if not deployment:
        return train(setup.site, rows, setup.configured.detector.train, setup.hashes)
    run = wait_for(call_deployment(deployment, setup, rows.cutoff))
    if not (run.state and run.state.is_completed()):
        raise _failed(run, deployment)
    return take_bundle(setup.site, rows.cutoff, str(run.id))


def call_deployment(deployment: str, setup: Setup, cutoff: date) -> FlowRun:
    """Start a run of the deployment. Raises ParamsInvalid if it or its work pool does not exist."""
    check_deployment(deployment)
    parameters = {"name": setup.site.detector, "cutoff": cutoff.isoformat(), "hashes": setup.hashes}
    run = cast(FlowRun, run_deployment(deployment, parameters=parameters, timeout=0))
    get_run_logger().info("handed to %s as flow run %s", deployment, run.name)
    return run


def check_deployment(deployment: str) -> None:
    """Raise ParamsInvalid if a run of the deployment would wait for ever."""
    try:
        with get_client(sync_client=True) as client:
            pool = client.read_deployment_by_name(deployment).work_pool_name
    except (ObjectNotFound, ValueError):
        pool = None
    if pool is None:
        raise ParamsInvalid(
            "The deployment that trains, or its work pool, does not exist.",
            where="NIGHTJAR_TRAIN_DEPLOYMENT",
            got=repr(deployment),
            todo="run nightjar deploy, which creates both, or unset the variable to train in this process",
        )


def wait_for(run: FlowRun, start_timeout_s: float = START_TIMEOUT_S) -> FlowRun:
    """Wait until a flow run ends; cancel it if no worker takes it in time."""
    deadline = time.monotonic() + start_timeout_s
    with get_client(sync_client=True) as client:
        while run.state is None or not run.state.is_final():
            if time.monotonic() > deadline and run.start_time is None:
                client.set_flow_run_state(run.id, Cancelled(message="no worker took it in time"), force=True)
                return client.read_flow_run(run.id)
            time.sleep(POLL_S)
            run = client.read_flow_run(run.id)
    return run


def _failed(run: FlowRun, deployment: str) -> RunFailed:
    was_taken = run.start_time is not None
    return RunFailed(
        f"The training run {'failed' if was_taken else 'was never started'}; nothing was registered.",
        where=f"deployment {deployment}, work pool {run.work_pool_name}, flow run {run.name}",
        got=f"{run.state.name}: {run.state.message}" if run.state else "no state",
        todo="read that run's log on Prefect's page, fix the cause, and train again"
        if was_taken
        else "start a worker for that pool (prefect worker start --pool NAME), and train again",
    )
