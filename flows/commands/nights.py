"""Commands of the nights: run, ingest, score, status, metrics."""

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.commands.options import Day, Debug, Json, MaybeName, Name
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


@app.command(
    epilog="nightjar score payments --date 2026-11-21; nightjar score --all; nightjar score payments --source f.csv"
)
def score(
    name: MaybeName = None,
    date: Day = None,
    every: Annotated[bool, typer.Option("--all", help="Every detector that has a version to score with.")] = False,
    source: Annotated[str | None, typer.Option(help="Score this CSV or Parquet file; nothing is published.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Show the worst rows of --source only.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write every row of --source to this Parquet file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score and publish one batch (yesterday's unless named) with the champion, or look at a loose file."""
    if source is None and (limit is not None or output):
        raise typer.BadParameter("--limit and --output need --source")
    if every:
        if name or source:
            raise typer.BadParameter("it takes no NAME and no --source", param_hint="--all")
        score_all(date.date() if date else None, as_json)
        return
    if name is None:
        raise typer.BadParameter("name a detector, or --all", param_hint="NAME")
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


@app.command(epilog="nightjar status; nightjar status payments --json")
def status(name: MaybeName = None, as_json: Json = False, debug: Debug = False) -> None:
    """Show every batch date after training: fresh, stale, failed or missing; without NAME one line a detector."""
    if name is None:
        show_all(as_json)
        return
    from flows.status import read_status

    found = read_status(name)
    rows = [
        {"batch_date": n.batch_date, "state": n.state, "why": n.why, "attempt": n.batch.attempt if n.batch else None,
         "flagged": n.batch.flagged if n.batch else None, "version": n.batch.model_version if n.batch else None}
        for n in found.nights
    ]  # fmt: skip
    if as_json:
        print_json(asdict(found) | {"nights": rows})
        return
    title = f"{name}: champion is version {found.champion}" if found.champion else f"{name}: no champion yet"
    columns = ("batch_date", "state", "why", "attempt", "flagged", "version")
    print_rows(Table(title=title, title_justify="left"), rows, columns)
    if found.days_behind:
        stdout.print(
            f"the newest complete batch that landed is {found.days_behind:,} days behind yesterday", highlight=False
        )


def show_all(as_json: bool) -> None:
    """One line a detector; exits with 1 where one of them is broken."""
    from flows.settings import load_settings
    from flows.status import read_lines

    lines = read_lines(load_settings().project)
    rows = [asdict(line) | line.counts for line in lines]
    if as_json:
        print_json({"detectors": [{key: value for key, value in row.items() if key != "counts"} for row in rows]})
    else:
        rows = [row | {"error": (line.error or "").split("\n")[0]} for row, line in zip(rows, lines, strict=True)]
        columns = ["detector", "champion", "newest_night", "days_behind", *lines[0].counts] if lines else []
        columns += ["error"] if any(line.error for line in lines) else []
        print_rows(Table(title="all detectors", title_justify="left"), rows, tuple(columns))
    if any(line.error for line in lines):
        raise typer.Exit(1)


@app.command(epilog="nightjar metrics --textfile /var/lib/node_exporter/nightjar.prom; nightjar metrics --port 9808")
def metrics(
    textfile: Annotated[
        Path | None, typer.Option(metavar="FILE.prom", help="Write this file, whole, for node_exporter to pick up.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Serve /metrics and /health; 0: any port.")] = None,
    host: Annotated[str, typer.Option(help="The address that --port listens on.")] = "127.0.0.1",
    debug: Debug = False,
) -> None:
    """Tell the state of every detector in Prometheus' format; exit code 1 where one of them cannot be read."""
    if textfile and port is not None:
        raise typer.BadParameter("--textfile and --port exclude each other")
    from prometheus_client import generate_latest

    from flows.metrics import make_registry, serve, write_textfile
    from flows.screen import stderr
    from flows.settings import load_settings

    registry, found = make_registry(load_settings().project)
    if port is not None:
        serve(registry, host, port, lambda told: typer.echo(told))
        return
    if textfile:
        write_textfile(registry, textfile)
    else:
        typer.echo(generate_latest(registry), nl=False)
    for reading in found.failed:
        stderr.print(f"{reading.detector}: {reading.error}", style="red", markup=False, highlight=False)
    if found.failed:
        raise typer.Exit(1)


def score_all(day: date | None, as_json: bool) -> None:
    """Score and publish the batch of every detector, and show what became of each; exit code 1 when any failed."""
    from flows.every import Outcome, score_every

    with running():
        state: Any = score_every(day, return_state=True)
    outcomes: list[Outcome] | Exception = state.result(raise_on_failure=False)
    if isinstance(outcomes, Exception):  # before it came to any detector
        raise outcomes
    failed = [outcome for outcome in outcomes if outcome.cause]
    if as_json:
        print_json({"nights": [asdict(outcome) for outcome in outcomes]})
    else:
        rows = [asdict(one) | {"result": "FAILED" if one.cause else "published"} for one in outcomes]
        columns = ("detector", "batch_date", "result", "flagged")
        print_rows(Table(title="every detector", title_justify="left"), rows, columns)
        for outcome in failed:
            stdout.print(f"{outcome.detector}: {outcome.cause}", style="red", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


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
