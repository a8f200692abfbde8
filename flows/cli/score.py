"""`nightjar score`."""

from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, date_option
from flows.cli.screen import SHOWN_ROWS, print_json, print_note, print_rows, print_scored, running, stdout
from flows.config.quiet import hush_great_expectations

if TYPE_CHECKING:
    from tasks.stores.tables import Night

EXAMPLE = (
    "nightjar score payments --date 2026-11-21; nightjar score --all; nightjar score payments --source f.csv; "
    "nightjar score codes --source f.csv --groups"
)


def score(
    name: Annotated[str | None, typer.Argument(help="The detector; or use --all.", metavar="NAME")] = None,
    date: Annotated[datetime | None, date_option("The batch date (default: yesterday).")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Score every detector with run.every_night and a registered version.")
    ] = False,
    source: Annotated[str | None, typer.Option(help="Score a file like the source's; publish nothing.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Show only this many of the worst rows of --source.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all rows to a .parquet, .csv or .xlsx file.")] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Also score the groups of --source, by score.groups in params.yaml.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score and publish one batch with the champion, or score a file without publishing."""
    if source is None and (limit is not None or output or groups):
        raise typer.BadParameter("--limit, --output and --groups need --source")
    if every:
        if name or source:
            raise typer.BadParameter("it takes no NAME and no --source", param_hint="--all")
        score_all(date.date() if date else None, as_json)
        return
    if name is None:
        raise typer.BadParameter("give a detector, or --all", param_hint="NAME")
    if source is not None:
        if date:
            raise typer.BadParameter("a file has no batch date", param_hint="--date")
        score_loose(name, source, limit, output, groups, as_json)
        return
    from flows.config.setup import prepare

    prepare(name)
    with running():
        from flows.nightly import nightly

        night = nightly(name, date.date() if date else None)
    if as_json:
        print_json(asdict(night))
    else:
        for note in find_notes(name, night):
            print_note(note)
        stdout.print(f"{night.batch_date}: {night.scored:,} rows scored, {night.flagged:,} flagged, published")


def find_notes(name: str, night: "Night") -> list[str]:
    """What people should know about a night: changed params, far too many flags, and what monitor found."""
    from flows.config.setup import load_setup
    from tasks.on_demand.findings import describe_finding
    from tasks.stores.tables import NOTHING
    from tasks.upkeep.ledger import read_ledger

    setup = load_setup(name)
    version = setup.site.registry.get_version(night.model_version)
    [state] = read_ledger(setup.site, [night.batch_date], version)
    found = [one for one in setup.site.warehouse.read_findings(name, night.batch_date) if one.finding != NOTHING]
    finding = describe_finding(found, night.batch_date)
    groups = setup.site.warehouse.read_groups(name, night.batch_date)
    flagged = groups[groups["flagged"]].sort_values("score", ascending=False)
    worst = [f"{one.group} (by {one.grouping})" for one in flagged.head(3).itertuples()]
    more = f" and {len(flagged) - 3:,} more" if len(flagged) > 3 else ""
    group_note = f"groups above their threshold: {', '.join(worst)}{more}" if worst else ""
    return [note for note in (setup.changes_since(version), state.why, finding, group_note) if note]


def score_all(day: date | None, as_json: bool) -> None:
    """Score and publish the batch of every detector, and show each result. Exit code 1 if one failed."""
    with running():
        from flows.every import NightOutcome, score_every

        state: Any = score_every(day, return_state=True)
    outcomes: list[NightOutcome] | Exception = state.result(raise_on_failure=False)
    if isinstance(outcomes, Exception):  # raised before the first detector
        raise outcomes
    failed = [outcome for outcome in outcomes if outcome.cause]
    if as_json:
        print_json({"nights": [asdict(outcome) for outcome in outcomes]})
    else:
        rows = [asdict(one) | {"result": "FAILED" if one.cause else "published"} for one in outcomes]
        columns = ("detector", "batch_date", "result", "flagged")
        print_rows(Table(title="all detectors", title_justify="left"), rows, columns)
        for outcome in failed:
            stdout.print(f"{outcome.detector}: {outcome.cause}", style="red", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def score_loose(name: str, source: str, limit: int | None, output: Path | None, groups: bool, as_json: bool) -> None:
    """Score a file and show its worst rows as a table, or all rows as JSON."""
    from flows.config.setup import load_setup
    from tasks.on_demand.loose import score_file

    most = limit if limit is not None else None if as_json and not output else SHOWN_ROWS
    hush_great_expectations()
    setup = load_setup(name)
    found = score_file(setup.site, setup.configured.contract, setup.configured.detector, source, most, output, groups)
    if as_json:
        print_json(found)
        return
    title = (
        f"{found['source']}: scored by {found['model']} version {found['version']}, threshold {found['threshold']:.4g}"
    )
    title += f", by {found['thresholds_by']} where that has its own" if "thresholds_by" in found else ""
    print_scored(found, title, ("record_id", "score", "rank", "p_value", "flag", "causes"), output, setup.site.zone)
    for grouping in dict.fromkeys(row["grouping"] for row in found.get("groups", ())):
        of_grouping = [row for row in found["groups"] if row["grouping"] == grouping]
        own = [row | {"flag": "flagged" if row["flagged"] else ""} for row in of_grouping]
        worst = sorted(own, key=lambda row: -row["score"])[:SHOWN_ROWS]
        flagged = sum(row["flagged"] for row in own)
        title = f"by {grouping}: {len(own):,} groups, {flagged:,} flagged; worst first"
        shown = ("group", "records", "score", "rank", "threshold", "flag")
        print_rows(Table(title=title, title_justify="left"), worst, shown)
