"""The `nightjar` command: results on stdout, everything else on stderr, one readable message for what goes wrong.

Heavy imports happen inside the commands, so that --help answers at once.
"""

import atexit
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.errors import NightjarError

app = typer.Typer(
    epilog="First night: nightjar run payments. Your own data: nightjar init NAME --source FILE",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
stdout, stderr = Console(width=None if sys.stdout.isatty() else 100), Console(stderr=True)

Step = Literal["ingest", "validate", "filter", "train", "calibrate", "evaluate"]
SHOWN_COLUMNS, SHOWN_ROWS = 30, 10  # on screen; --json has everything

Name = Annotated[str, typer.Argument(help="The detector, as params.yaml names it.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")]


@app.callback()
def begin() -> None:
    """Learn what normal looks like and, every night, write what does not to a warehouse table."""
    from flows.settings import load_settings, prepare_environment

    prepare_environment(load_settings())  # Prefect reads its settings when it is imported


@app.command(epilog="nightjar init cards --source cards.csv --label is_fraud")
def init(
    name: Annotated[str, typer.Argument(help="A name for the new detector.", metavar="NAME")],
    source: Annotated[str, typer.Option(help="A CSV or Parquet file, a folder, a glob, a URL, or an SQL query.")],
    url: Annotated[str | None, typer.Option(help="Where an SQL query is asked, such as sqlite:///shop.db.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COL", help="Says which rows are anomalous.")] = None,
    normal: Annotated[str | None, typer.Option(metavar="VALUE", help="The label's value that means normal.")] = None,
    record_id: Annotated[str | None, typer.Option("--id", metavar="COL", help="Names the rows.")] = None,
    time: Annotated[str | None, typer.Option(metavar="COL", help="Says when a row happened.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the detector's section and contract.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at your own data and write its params section and contract; then nightjar run NAME."""
    if normal is not None and label is None:
        raise typer.BadParameter("it needs --label, whose value it is", param_hint="--normal")
    from flows.init import init_detector
    from tasks.draft import Asked

    told = init_detector(name, source, url, Asked(label, normal, record_id, time), force)
    if as_json:
        print_json(told)
        return
    table = Table(title=f"{name}: what its columns are taken for", title_justify="left")
    print_rows(table, group_columns(told["columns"]), ("column", "kind", "why"))
    print_rows(Table(title="what was decided", title_justify="left"), told["choices"], ("about", "what", "why"))
    for note in told["notes"]:
        stdout.print(f"{'note':<10} {note}", style="yellow", highlight=False, markup=False)
    for path in told["wrote"]:
        stdout.print(f"{'wrote':<10} {path}", soft_wrap=True, highlight=False, markup=False)
    stdout.print(f"{'next':<10} nightjar run {name}", highlight=False)


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


@app.command(epilog="nightjar fetch kddcup99")
def fetch(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Bring a public data set from its home to the sources folder; what is there already is left alone."""
    from flows.settings import load_settings
    from tasks.fetch import fetch_public

    sources = Path(load_settings().sources)
    fetched = fetch_public(name, sources)
    if as_json:
        print_json({"detector": name, "fetched": fetched})
        return
    for path, is_new in fetched.items():
        stdout.print(f"{sources / path}: {'fetched' if is_new else 'there already'}", highlight=False, soft_wrap=True)


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


@app.command(epilog="nightjar train payments --cutoff 2026-11-14")
def train(name: Name, cutoff: Day = None, as_json: Json = False, debug: Debug = False) -> None:
    """Train on everything before a cut-off (today unless named) and register: champion if first, else challenger."""
    from flows.setup import prepare

    setup = prepare(name)
    from flows.training import training

    day = cutoff.date() if cutoff else datetime.now(UTC).astimezone(setup.site.zone).date()
    with running():
        registered = training(name, day)
    if as_json:
        print_json({"detector": name, "cutoff": day, **asdict(registered)})
    else:
        told = f"is the {registered.alias}" if registered.is_new else "holds exactly this bundle already"
        stdout.print(f"version {registered.version} of {setup.site.model_name} {told}")


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


@app.command(epilog="nightjar promote payments 3")
def promote(
    name: Name,
    version: Annotated[int | None, typer.Argument(help="A version; the challenger unless named.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a version the champion: it scores from the next night on."""
    from flows.setup import prepare
    from tasks import register

    champion, before = register.promote(prepare(name).site, version)
    print_alias(name, champion, before, as_json)


@app.command(epilog="nightjar rollback payments")
def rollback(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Give the alias back to the champion before this one."""
    from flows.setup import prepare
    from tasks import register

    champion, before = register.rollback(prepare(name).site)
    print_alias(name, champion, before, as_json)


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


@app.command(epilog="nightjar explain payments 6f1b0c-000017")
def explain(
    name: Name,
    record_id: Annotated[str, typer.Argument()],
    date: Day = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show one record's score, rank and causes, with the model and data version that judged it."""
    from flows.setup import prepare
    from tasks.explain import explain_record

    setup = prepare(name)
    found = explain_record(setup.site, setup.configured.contract, record_id, date.date() if date else None)
    band = setup.configured.detector.score.name_band(found.percentile_rank)
    if as_json:
        print_json(asdict(found) | {"band": band})
        return
    verdict = "flagged" if found.is_flagged else "not flagged"
    stdout.print(f"{record_id}, {found.event_time}, batch {found.batch_date}", markup=False)
    stdout.print(
        f"score {found.score:.4g}, threshold {found.threshold:.4g}: {verdict}; "
        f"rank {found.percentile_rank:.2f}, band {band}, p-value {found.p_value:.2g}"
    )
    print_causes(found.causes)
    stdout.print(f"{found.model} version {found.model_version}, trained on data {found.data_hash[:12]}; "
                 f"input {found.input_hash[:12]}")  # fmt: skip


@app.command(epilog="nightjar review payments --date 2026-11-20 > asked.csv; nightjar review payments --take asked.csv")
def review(
    name: Name,
    date: Day = None,
    sample: Annotated[int | None, typer.Option(min=0, help="Rows besides the alerts; else review.sample.")] = None,
    take: Annotated[Path | None, typer.Option(help="A file written by this command, with verdicts filled in.")] = None,
    by: Annotated[str, typer.Option(help="Who gave the verdicts of --take.")] = "analyst",
    from_labels: Annotated[bool, typer.Option("--from-labels", help="Take known labels for verdicts.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what to judge of a night (the newest unless named) as CSV, or take the verdicts: anomaly or normal."""
    from flows.setup import prepare
    from tasks import review as step

    setup, now = prepare(name), datetime.now(UTC)
    site, params = setup.site, setup.configured.detector.review
    asked = params.sample if sample is None else sample
    if take:
        answers = step.read_answers(take)
    elif from_labels:
        by = "labels"
        nights = [batch.batch_date for batch in step.list_published(site, date.date() if date else None)]
        answers = step.judge_by_labels(step.ask_about_all(site, nights, asked), site, setup.ingest_params, now)
    else:
        night = step.list_published(site, date.date() if date else None)[-1].batch_date
        questions = step.ask_about(site, night, asked)
        if as_json:
            print_json({"detector": name, "questions": questions.to_dict("records")})
        else:
            questions.to_csv(sys.stdout, index=False)
        return
    added = step.keep_verdicts(site, answers, by, now)
    given = answers["verdict"].value_counts()
    counts = {verdict: int(given.get(verdict, 0)) for verdict in (step.ANOMALY, step.NORMAL)}
    if as_json:
        print_json({"detector": name, "new": added, "given": counts})
    else:
        told = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        stdout.print(f"{added:,} new verdicts of {sum(counts.values()):,}: {told}")


@app.command(epilog="nightjar reduce payments")
def reduce(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Learn the second stage from all verdicts so far, and register the champion with it as a challenger."""
    from flows.setup import prepare
    from tasks.review import register_reducer

    setup = prepare(name)
    with running():
        reduced = register_reducer(setup.site, setup.configured.detector.review)
    if as_json:
        print_json({"detector": name, **asdict(reduced)})
        return
    gain, registered = reduced.gain, reduced.registered
    stdout.print(f"learnt from {gain.verdicts:,} verdicts, {gain.flags:,} on flags, {gain.confirmed:,} confirmed")
    stdout.print(
        f"precision {gain.precision_before:.1%} -> {gain.precision_after:.1%} at {gain.recall_kept:.1%} of the flagged "
        f"anomalies kept; the threshold finds about {gain.first_stage_recall:.0%} of all",
        soft_wrap=True,
    )
    stdout.print(f"flags a night {reduced.flags_per_night:,.0f} -> alerts a night {reduced.alerts_per_night:,.0f}")
    told = f"is the {registered.alias}" if registered.is_new else "holds exactly this bundle already"
    stdout.print(f"version {registered.version} of {setup.site.model_name} {told}")


@app.command(epilog='nightjar rank codes --value "code=AB 21 XR GB132"')
def rank(
    name: Name,
    value: Annotated[list[str], typer.Option(help="A column's value; once a column.", metavar="COLUMN=TEXT")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score one record given here with the champion: its rank, severity and causes; nothing lands."""
    from flows.setup import load_setup
    from tasks.rank import rank_by_champion

    if bad := [pair for pair in value if "=" not in pair]:
        raise typer.BadParameter(f"{bad[0]!r} is not COLUMN=TEXT", param_hint="--value")
    values = dict(pair.split("=", 1) for pair in value)
    if len(values) < len(value):
        raise typer.BadParameter("a column is given twice", param_hint="--value")
    setup = load_setup(name)
    hush_great_expectations()
    found = rank_by_champion(setup.site, setup.configured.contract, values, setup.configured.detector.score)
    if as_json:
        print_json(asdict(found))
        return
    stdout.print(f"score {found.score:.4g}, rank {round(found.percentile_rank, 2):g}, band {found.band}", markup=False)
    verdict = "flagged" if found.is_flagged else "not flagged"
    stdout.print(f"threshold {found.threshold:.4g}: {verdict}; p-value {found.p_value:.2g}")
    print_causes(found.causes)
    stdout.print(f"{found.model} version {found.model_version}")


@app.command(epilog="nightjar doctor payments")
def doctor(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Check params, contract, source, lake, warehouse, MLflow, champion and device, one line each."""
    from flows.doctor import examine

    findings = examine(name)
    if as_json:
        print_json({"detector": name, "checks": [asdict(finding) for finding in findings]})
    else:
        rows = [{"check": f.check, "result": "ok" if f.ok else "FAILED", "detail": f.detail} for f in findings]
        print_rows(Table(title=f"doctor {name}", title_justify="left"), rows, ("check", "result", "detail"))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="dvc repro evaluate@payments")
def stage(
    step: Annotated[
        Step, typer.Argument(help="ingest, validate, filter, train, calibrate or evaluate.", metavar="STEP")
    ],
    name: Name,
    debug: Debug = False,
) -> None:
    """Run one stage of dvc.yaml by hand, in experiments/NAME; `dvc repro` runs those that are due."""
    from flows.experiment import STAGES

    with running():
        STAGES[step](name)


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, default=_plain, indent=2, allow_nan=False) + "\n")


def print_rows(table: Table, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """A table of dicts, numbers to the right."""
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for column in columns:
        numeric = any(isinstance(row[column], int | float) for row in rows)
        table.add_column(
            column.replace("_", " "), justify="right" if numeric else "left", no_wrap=numeric or "date" in column
        )
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    stdout.print(table, markup=False)


def print_causes(causes: list[dict[str, Any]]) -> None:
    """The causes of one record, with their parts where there are any."""
    rows = [{"part": "", "actual": "", "expected": ""} | cause for cause in causes]
    parts = ("part",) if any(row["part"] for row in rows) else ()
    columns = ("column", *parts, "share", "actual", "expected")
    print_rows(Table(title="causes: shares of the score", title_justify="left"), rows, columns)


def print_metrics(summary: dict[str, Any]) -> None:
    """Recall by kind of anomaly, then the overall metrics."""
    for kind, recall in summary["recall_by_kind"].items():
        stdout.print(f"recall     {kind}: {recall:.1%} of {summary['rows_by_kind'][kind]}")
    shown = {key: value for key, value in summary["metrics"].items() if isinstance(value, float)}
    told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
    stdout.print(f"overall    {told}", soft_wrap=True)


def group_columns(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a column; of a wide table one row for all columns of the same kind and reason."""
    if len(columns) <= SHOWN_COLUMNS:
        return [c | {"why": ": ".join(filter(None, (c["rule"], c["detail"])))} for c in columns]
    groups: dict[tuple[str, str], list[str]] = {}
    for c in columns:
        groups.setdefault((c["kind"], c["rule"]), []).append(c["column"])
    told = {
        key: ", ".join(names[:4]) + f" and {len(names) - 4} more" * (len(names) > 4) for key, names in groups.items()
    }
    return [{"column": names, "kind": kind, "why": rule} for (kind, rule), names in told.items()]


def describe_causes(causes: list[dict[str, Any]]) -> str:
    """The worst causes in a few words: what was there, and what the detector expected."""
    told = [f"{c['column']} {_cell(c['actual'])} (expected {_cell(c['expected'])})" for c in causes if "actual" in c]
    return ", ".join(told[:2])


def print_alias(name: str, champion: int, before: int | None, as_json: bool) -> None:
    """What promote and rollback did."""
    if as_json:
        print_json({"detector": name, "champion": champion, "before": before})
    else:
        stdout.print(
            f"version {champion} of {name} is the champion" + (f", before it version {before}" if before else "")
        )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


class _Bars(logging.Handler):
    """Shows the records of tasks/progress.py as bars on a terminal, as one line a finished step elsewhere."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=stderr, disable=not stderr.is_terminal)
        self.steps: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        step, done, total = (record.__dict__[key] for key in ("step", "done", "total"))
        if not stderr.is_terminal:
            if done == total and self.steps.setdefault(step, done) == done:
                self.steps[step] = -1  # said once
                stderr.print(f"{step}: {total:,} done", highlight=False)
            return
        if step not in self.steps:
            self.steps[step] = self.bars.add_task(step)
        self.bars.update(self.steps[step], completed=done, total=total)


def hush_great_expectations() -> None:
    """Keep its note about a temporary folder off stderr. A filter, not a level: it sets its own when imported."""
    logging.getLogger("great_expectations.data_context.types.base").addFilter(
        lambda record: record.levelno > logging.INFO
    )


@contextmanager
def running() -> Iterator[None]:
    """Run flows in this process: progress on stderr; no heartbeat, whose thread delays each flow's end by a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    hush_great_expectations()
    logger, handler = logging.getLogger("nightjar.progress"), _Bars()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with handler.bars, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def starting_prefect() -> Iterator[Callable[[], None]]:
    """On the first run of a home folder, start the temporary Prefect server beside the work that does not need it yet.

    Where a server is set, or there have been runs before, nothing happens. Yields what waits until flows can run.
    """
    from flows.settings import load_settings

    if os.environ.get("PREFECT_API_URL") or (load_settings().home_path / "lake").exists():
        yield lambda: None
        return
    from prefect.client.orchestration import get_client

    with ThreadPoolExecutor(1) as pool:
        pool.submit(get_client, sync_client=True)
        yield lambda: pool.shutdown()


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 1 with one readable message on stderr, or 2 for wrong usage."""
    try:
        app(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:  # noqa: BLE001 - the edge: nobody gets a traceback who did not ask
        if "--debug" in arguments:
            traceback.print_exc()
            return 1
        unexpected = f"unexpected {type(error).__name__}: {error}\n  to do: run again with --debug and report it"
        told = str(error) if isinstance(error, NightjarError) else unexpected
        stderr.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def hush_at_exit() -> None:
    """Keep the interpreter's last moments off stderr.

    DuckDB's bindings call what Great Expectations and torch keep alive until then a leak, in dozens of lines.
    """

    @atexit.register  # the first one registered runs last
    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def main() -> None:
    """Run the command line."""
    hush_at_exit()
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
