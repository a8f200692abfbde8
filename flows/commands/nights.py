"""Commands of the nights: run, ingest, score, backfill, status."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.commands.options import Day, Debug, Json, Name
from flows.screen import hush_great_expectations, print_json, print_rows, running, show_cell, starting_prefect, stdout

app = typer.Typer()
SHOWN_ROWS = 10  # on screen; --json has everything


@app.command(epilog="nightjar run payments --json | jq .metrics")
def run(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Ingest what is new, train the first champion if there is none, and score the nights that are not fresh."""
    with running(), starting_prefect() as wait_for_prefect:
        from flows.run import run_detector

        summary = run_detector(name, wait_for_prefect)
    if as_json:
        print_json(summary)
        return
    nights = Table(title=f"{name}: scored by {summary['model']} version {summary['version']}", title_justify="left")
    rows = [night | {"version": night["model_version"]} for night in summary["nights"]]
    counts = ("rows_in", "quarantined", "excluded", "scored", "flagged")
    print_rows(nights, rows, ("batch_date", *counts, "threshold", "version", "seconds"))
    stdout.print(f"split      {summary['split']}", soft_wrap=True)
    if summary["metrics"]:
        print_metrics(summary)
    for label, text in summary["where"].items():
        stdout.print(f"{label:<10} {text}", soft_wrap=True, highlight=False)


@app.command(epilog="NIGHTJAR_SOURCES=/data nightjar ingest creditcard")
def ingest(name: Name, until: Day = None, as_json: Json = False, debug: Debug = False) -> None:
    """Bring in what the source has delivered, up to a batch date (yesterday unless named)."""
    from flows.setup import prepare
    from tasks.ingest import ingest_arrivals
    from tasks.progress import progress_of

    setup = prepare(name)
    window = setup.window(last=until.date() if until else None)
    with running():
        done = ingest_arrivals(setup.site, setup.ingest_params, window, progress_of("ingest"))
    if as_json:
        print_json(asdict(done))
    else:
        span = f", {done.dates[0]} to {done.dates[-1]}" if done.dates else ""
        stdout.print(f"{done.arrivals} arrivals, {done.rows:,} rows, {done.labels:,} labels{span}")


@app.command(epilog="nightjar score payments --date 2026-11-21, or nightjar score payments --source loose.csv")
def score(
    name: Name,
    date: Day = None,
    source: Annotated[str | None, typer.Option(help="Score this CSV or Parquet file; nothing is published.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Show the worst rows of --source only.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write every row of --source to this Parquet file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score and publish one batch (yesterday's unless named) with the champion, or look at a loose file."""
    if source is None and (limit is not None or output):
        raise typer.BadParameter("--limit and --output need --source")
    if source is not None:
        if date:
            raise typer.BadParameter("a loose file has no batch date", param_hint="--date")
        score_loose(name, source, limit, output, as_json)
        return
    from flows.setup import prepare

    prepare(name)
    from flows.nightly import nightly

    with running():
        night = nightly(name, date.date() if date else None)
    if as_json:
        print_json(asdict(night))
    else:
        stdout.print(f"{night.batch_date}: {night.scored:,} rows scored, {night.flagged:,} flagged, published")


@app.command(epilog="nightjar backfill payments --from 2026-11-14 --to 2026-11-20 --only stale --dry-run")
def backfill(
    name: Name,
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")],
    only: Annotated[str, typer.Option(help="missing, stale, failed or all.")] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score and publish a range of batch dates again, or those of them in one state."""
    from flows.setup import prepare
    from tasks.ledger import read_ledger
    from tasks.tracking import find_version

    if only not in ("all", "missing", "stale", "failed"):
        raise typer.BadParameter(f"{only!r} is not one of missing, stale, failed, all", param_hint="--only")
    setup = prepare(name)
    landed = [d for d in setup.site.lake.dates("landing", name) if first.date() <= d <= last.date()]
    ledger = read_ledger(setup.site, landed, find_version(setup.site))
    plan = [night.batch_date for night in ledger if only in ("all", night.state)]
    if plan and not dry_run:
        from flows.backfill import backfill as flow

        with running():
            flow(name, plan)
    if as_json:
        print_json({"detector": name, "dates": plan, "dry_run": dry_run})
    else:
        stdout.print(f"{'would score' if dry_run else 'scored'} {len(plan)} of {len(landed)} landed dates: "
                     + (", ".join(map(str, plan)) or "none"))  # fmt: skip


@app.command(epilog="nightjar status payments --json")
def status(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Show every landed batch date after training: fresh, stale, failed or missing."""
    from flows.setup import prepare
    from tasks.ledger import read_ledger
    from tasks.tracking import find_version

    setup = prepare(name)
    champion = find_version(setup.site)
    through = champion.tags.get("trained_through", "") if champion else ""
    days = [day for day in setup.site.lake.dates("landing", name) if day.isoformat() > through]
    ledger = read_ledger(setup.site, days, champion)
    rows = [
        {"batch_date": n.batch_date, "state": n.state, "why": n.why, "attempt": n.batch.attempt if n.batch else None,
         "flagged": n.batch.flagged if n.batch else None, "version": n.batch.model_version if n.batch else None}
        for n in ledger
    ]  # fmt: skip
    if as_json:
        print_json({"detector": name, "champion": champion.version if champion else None, "nights": rows})
    else:
        title = f"{name}: champion is version {champion.version}" if champion else f"{name}: no champion yet"
        columns = ("batch_date", "state", "why", "attempt", "flagged", "version")
        print_rows(Table(title=title, title_justify="left"), rows, columns)


def score_loose(name: str, source: str, limit: int | None, output: Path | None, as_json: bool) -> None:
    """Score a loose file and show it: its worst rows as a table, or all of it as JSON."""
    from flows.loose import score_source

    most = limit if limit is not None else None if as_json and not output else SHOWN_ROWS
    hush_great_expectations()
    told = score_source(name, source, most, output)
    if as_json:
        print_json(told)
        return
    rows = [
        row | {"flagged": "yes" if row["is_flagged"] else "", "causes": describe_causes(row["causes"]),
               "rank": f"{row['percentile_rank']:.2f}"}
        for row in told["records"]
    ]  # fmt: skip
    title = f"{source}: scored by {told['model']} version {told['version']}, threshold {told['threshold']:.4g}"
    columns = ("record_id", "score", "rank", "p_value", "flagged", "causes")
    print_rows(Table(title=title, title_justify="left"), rows, columns)
    bad = told["rows"] - told["scored"]
    stdout.print(
        f"{told['rows']:,} rows: {told['scored']:,} scored, {told['flagged']:,} of them flagged; "
        f"{bad:,} bad ones, not scored",
        highlight=False,
    )
    for row in told["bad_rows"]:
        stdout.print(f"bad row    {row['record_id']}: {row['reason']}", soft_wrap=True, markup=False, highlight=False)
    if bad > len(told["bad_rows"]):
        stdout.print(f"           and {bad - len(told['bad_rows']):,} more: --output FILE.parquet lists every row")
    if output:
        stdout.print(f"wrote      {output}", soft_wrap=True, markup=False, highlight=False)


def print_metrics(summary: dict[str, Any]) -> None:
    """Recall by kind of anomaly, then the overall metrics."""
    for kind, recall in summary["recall_by_kind"].items():
        stdout.print(f"recall     {kind}: {recall:.1%} of {summary['rows_by_kind'][kind]}")
    shown = {key: value for key, value in summary["metrics"].items() if isinstance(value, float)}
    told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
    stdout.print(f"overall    {told}", soft_wrap=True)


def describe_causes(causes: list[dict[str, Any]]) -> str:
    """The worst causes in a few words: what was there, and what the detector expected."""
    told = [
        f"{c['column']} {show_cell(c['actual'])} (expected {show_cell(c['expected'])})" for c in causes if "actual" in c
    ]
    return ", ".join(told[:2])
