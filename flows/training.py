"""The training flow: from landing to a registered version, with every batch before the cut-off."""

from datetime import date

from prefect import flow
from prefect.runtime import flow_run as current

from flows.crashed import mark_crashed
from flows.setup import prepare
from flows.train import train_here_or_there
from flows.turns import taking_turns
from tasks.calibrate import calibrate
from tasks.evaluate import evaluate
from tasks.filter import filter_rows
from tasks.ingest import ingest
from tasks.register import Registered, register
from tasks.validate import validate


def name_run() -> str:
    """Name the cut-off, also where a schedule leaves it to the flow."""
    parameters = current.get_parameters()
    return f"train {parameters['name']} before {parameters['cutoff'] or 'today'}"


@flow(name="training", flow_run_name=name_run, on_running=[mark_crashed])
@taking_turns("train")
def training(name: str, cutoff: date | None = None) -> Registered:
    """Fit, calibrate, measure and register a detector on what was known when `cutoff` (today, unless named) began."""
    setup = prepare(name)
    site, params = setup.site, setup.configured.detector
    cutoff = cutoff or setup.newest_cutoff()
    ingest(site, setup.ingest_params, setup.window(last=cutoff))
    validate(site, setup.configured.contract, setup.landed_before(cutoff), params.validate_)
    rows = filter_rows(site, cutoff, params.filter, params.train.columns.numbers)
    fitted = train_here_or_there(setup, rows)
    calibrated = calibrate(site, rows, fitted, params.calibrate)
    metrics = evaluate(site, rows, calibrated)
    return register(site, calibrated, metrics)
