"""`nightjar run`."""

import os
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import SHOWN_ROWS, print_json, print_note, print_rows, print_scored, showing_progress, stdout

if TYPE_CHECKING:
    from flows.config.setup import Setup
    from tasks.errors import SourceInvalid
    from tasks.stores.registry import Version

EXAMPLE = "nightjar run payments --json | jq .metrics"
NAMES = ("precision", "recall")


def run(
    name: Name,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train and promote a new version although there is a champion.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="A table without times: score every row by a model fitted on others; publish nothing."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="Show only this many of the worst rows of --all.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all rows to a .parquet, .csv or .xlsx file.")] = None,
    as_json: Json = False,
) -> None:
    """Ingest new data, train if there is no champion yet, and score every night that is not fresh."""
    if not every and (limit is not None or output):
        raise typer.BadParameter("--limit and --output need --all")
    if every:
        if retrain:
            raise typer.BadParameter("--all trains models of its own, which it does not keep", param_hint="--retrain")
        run_all(name, limit, output, as_json)
        return
    with showing_progress():
        summary, bad_files = run_detector(name, retrain)
    show_summary(name, summary, as_json)
    if bad_files:
        raise bad_files


def run_all(name: str, limit: int | None, output: Path | None, as_json: bool) -> None:
    """Score every row of a table without times, and show the worst as a table, or all as JSON."""
    from flows.config.setup import load_setup

    most = limit if limit is not None else None if as_json and not output else SHOWN_ROWS
    with showing_progress():
        from flows.crossfit import score_every_row

        found = score_every_row(name, most, output)
    if as_json:
        print_json(found)
        return
    title = f"{name}: each row scored by one of {found['folds']} models, fitted on the rows of the others"
    title += f", thresholds by {found['thresholds_by']}" if "thresholds_by" in found else ""
    print_scored(
        found,
        title,
        ("record_id", "times_threshold", "rank", "p_value", "flag", "causes"),
        output,
        load_setup(name).site.zone,
    )
    rate = found["false_alarm_rate"]
    stdout.print(
        f"of normal rows, up to {rate:.1%} are flagged, here about {rate * found['scored']:,.0f}", highlight=False
    )


def show_summary(name: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the nights, the metrics and where to find more."""
    if as_json:
        print_json(summary)
        return
    for note in summary["notes"]:
        print_note(note)
    nights = Table(title=f"{name}: scored by {summary['model']} version {summary['version']}", title_justify="left")
    rows = [night | {"version": night["model_version"]} for night in summary["nights"]]
    counts = ("rows_in", "quarantined", "excluded", "scored", "flagged")
    print_rows(nights, rows, ("batch_date", *counts, "threshold", "version", "seconds"))
    stdout.print(f"split      {summary['split']}", soft_wrap=True)
    if summary["metrics"]:
        print_metrics(summary)
    if summary["searched"]:
        stdout.print(f"threshold  {compare_thresholds(summary['searched'])}", soft_wrap=True, highlight=False)
    for label, text in summary["where"].items():
        stdout.print(f"{label:<10} {text}", soft_wrap=True, highlight=False)


def compare_thresholds(searched: dict[str, Any]) -> str:
    """Precision and recall on the test rows of the champion's threshold, and of the one with the best F1."""
    now, best = (
        ", ".join(
            f"{name} {'none' if value is None else f'{value:.1%}'}" for name, value in zip(NAMES, pair, strict=True)
        )
        for pair in (searched["now"], (searched["precision"], searched["recall"]))
    )
    return (
        f"{now} on the test rows; {best} with {searched['threshold']:.4g}, the best F1 of the tuning rows "
        "(calibrate.threshold: {kind: best_f_beta})"
    )


def print_metrics(summary: dict[str, Any]) -> None:
    """Print recall by kind of anomaly, then the overall metrics."""
    for kind, recall in summary["recall_by_kind"].items():
        stdout.print(f"recall     {kind}: {recall:.1%} of {summary['rows_by_kind'][kind]}")
    shown = {key: value for key, value in summary["metrics"].items() if isinstance(value, float)}
    overall = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
    stdout.print(f"overall    {overall}", soft_wrap=True)


def run_detector(name: str, retrain: bool = False) -> tuple[dict[str, Any], "SourceInvalid | None"]:
    """Do what is due and summarise the nights. A rerun finds nothing to do.

    Also returns the error about bad files, which do not stop the nights of the others.
    """
    from flows.config.setup import prepare
    from flows.team.temporary import temporary_server
    from tasks.errors import SourceInvalid
    from tasks.ingest import ingest_arrivals
    from tasks.policy import progress_of

    setup = prepare(name)
    window = setup.window(last=setup.configured.detector.run.last_date)
    bad_files = None
    is_first = not setup.site.lake.dates("landing", name)  # a rerun may not need the server
    with temporary_server() if is_first else nullcontext():
        try:
            ingest_arrivals(setup.site, setup.ingest_params, window, progress_of("ingest"))
        except SourceInvalid as error:
            if not setup.site.lake.dates("landing", name):
                raise
            bad_files = error
        nights = setup.nights()
        notes = []
        if retrain or setup.site.registry.find_version() is None:
            with temporary_server():
                notes = train_and_promote(setup, nights[0])
        champion = setup.site.registry.get_champion()
        if todo := list_todo(setup, champion):
            with temporary_server():
                from flows.backfill import backfill

                backfill(name, todo)
    summary = summarise_run(setup, champion)
    return summary | {"notes": [*notes, *summary["notes"]]}, bad_files


def train_and_promote(setup: "Setup", cutoff: date) -> list[str]:
    """Train a version, learn the champion's second stage again if it has one, and promote; returns what to know.

    If the verdicts do not suffice, the version is promoted without a second stage, and a tag says so. If the gate of
    params refuses it, it stays the challenger.
    """
    from flows.training import training
    from tasks.on_demand.compare import check_gate
    from tasks.register import promote
    from tasks.stores.registry import CHALLENGER

    site = setup.site
    trained = training(site.detector, cutoff)
    version, notes = trained.version, list(trained.notes)
    params = setup.configured.detector
    judged = version, params.ingest.has_labels, datetime.now(UTC)
    if refusals := check_gate(site, setup.record_rule, params.promote.gate, *judged):
        notes.append(
            f"version {version} is registered and not promoted: {'; '.join(refusals)}; nightjar promote "
            f"{site.detector} {version} tries again, and with --force promotes it all the same"
        )
        return notes
    promote(site, version, force=True)
    waiting = site.registry.find_version(CHALLENGER)
    if waiting and CHALLENGER in trained.alias:  # it is the version as it was before its second stage was learnt
        site.registry.clear_alias(CHALLENGER)
    return notes


def list_todo(setup: "Setup", champion: "Version") -> list[date]:
    """The nights that are not fresh, without those that the champion was trained on."""
    from tasks.upkeep.ledger import read_ledger

    unlearnt = [day for day in setup.nights() if day > champion.trained_through]
    return [night.batch_date for night in read_ledger(setup.site, unlearnt, champion) if night.state != "fresh"]


def find_pages(mlflow_uri: str) -> dict[str, str]:
    """The pages of Prefect and MLflow: the configured servers, or those that `make ui` starts."""
    from tasks.errors import hide_password

    prefect_url = hide_password(os.environ.get("PREFECT_API_URL", "")).rstrip("/").removesuffix("/api")
    mlflow_uri = hide_password(mlflow_uri)
    return {
        "Prefect": prefect_url or "make ui, then http://127.0.0.1:4200",
        "MLflow": mlflow_uri if mlflow_uri.startswith("http") else "make ui, then http://127.0.0.1:5000",
    }


def summarise_run(setup: "Setup", champion: "Version") -> dict[str, Any]:
    """The published nights, their metrics where labels exist, and where to find the results."""
    from tasks.evaluate import evaluate_nights
    from tasks.upkeep.ledger import read_ledger

    site, nights = setup.site, setup.nights()
    ledger = read_ledger(site, nights, champion)
    batches = [night.batch for night in ledger if night.batch]
    notes = [setup.changes_since(champion), *(f"{night.batch_date}: {night.why}" for night in ledger if night.why)]
    if not site.has_times:
        notes.append(f"its rows have no times: dates are invented; nightjar run {site.detector} --all scores every row")
    published = [batch.batch_date for batch in batches]
    evaluation = evaluate_nights(site, setup.ingest_params, published, setup.window().now) if published else None
    return {
        "detector": site.detector,
        "model": champion.name,
        "version": champion.version,
        "notes": list(filter(None, notes)),
        "split": champion.tags.get("split", ""),
        "nights": [asdict(batch) for batch in batches],
        "searched": champion.searched,
        "metrics": asdict(evaluation.metrics) if evaluation else {},
        "recall_by_kind": evaluation.recall_by_kind if evaluation else {},
        "rows_by_kind": evaluation.rows_by_kind if evaluation else {},
        "where": {
            "report": str(site.reports / f"{nights[-1]}.html"),
            "validation": str(site.validations / f"{nights[-1]}.html"),
            "table": f"flagged_anomalies in {site.warehouse.place}",
            **find_pages(site.registry.uri),
        },
    }
