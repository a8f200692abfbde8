"""The training flow: from landing to a registered version, with every batch before the cut-off."""

from datetime import date

from prefect import flow

from flows.crashed import mark_crashed
from flows.setup import prepare
from tasks.calibrate import calibrate
from tasks.evaluate import evaluate
from tasks.filter import filter_rows
from tasks.ingest import ingest
from tasks.register import Registered, register
from tasks.train import train
from tasks.validate import validate


@flow(name="training", flow_run_name="train {name} before {cutoff}", on_running=[mark_crashed])
def training(name: str, cutoff: date) -> Registered:
    """Fit, calibrate, measure and register a detector on what was known when `cutoff` began."""
    setup = prepare(name)
    site, params = setup.site, setup.configured.detector
    ingest(site, setup.ingest_params, setup.window(last=cutoff))
    validate(site, setup.configured.contract, setup.landed_before(cutoff), params.validate_)
    rows = filter_rows(site, cutoff, params.filter, params.train.columns.numbers)
    fitted = train(site, rows, params.train, setup.hashes)
    calibrated = calibrate(site, rows, fitted, params.calibrate)
    metrics = evaluate(site, rows, calibrated)
    return register(site, calibrated, metrics)
