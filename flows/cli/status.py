"""`nightjar status`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.cases import count
from flows.cli.options import Json
from flows.cli.screen import print_json, print_note, print_rows, stdout

if TYPE_CHECKING:
    from flows.status import Status, Waiting
    from tasks.on_demand.cases import OpenCases

EXAMPLE = "nightjar status; nightjar status payments --json"


def status(
    name: Annotated[str | None, typer.Argument(help="The detector (default: all).", metavar="NAME")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a night has failed.")] = False,
    as_json: Json = False,
) -> None:
    """Show every batch date since training: fresh, stale, failed, missing or early (before the first cut-off).

    Without NAME, one line per detector.
    """
    if name is None:
        show_all(as_json, check)
        return
    from flows.alerts import list_problems
    from flows.status import read_status

    found, untold = read_status(name), list_problems()
    rows = [
        {"batch_date": n.batch_date, "state": n.state, "why": n.why, "attempt": n.batch.attempt if n.batch else None,
         "flagged": n.batch.flagged if n.batch else None, "version": n.batch.model_version if n.batch else None}
        for n in found.nights
    ]  # fmt: skip
    if as_json:
        print_json(asdict(found) | {"nights": rows, "alerts": untold})
    else:
        for problem in untold:
            print_note(problem)
        show_one(name, found, rows)
    if check and any(night.state == "failed" for night in found.nights):
        raise typer.Exit(1)


def show_one(name: str, found: "Status", rows: list[dict[str, Any]]) -> None:
    """Show one line per batch date, and what has changed since the training."""
    if found.outdated:
        print_note(found.outdated)
    title = f"{name}: champion is version {found.champion}" if found.champion else f"{name}: no champion yet"
    columns = ("batch_date", "state", "why", "attempt", "flagged", "version")
    print_rows(Table(title=title, title_justify="left"), rows, columns)
    if found.finding:
        stdout.print(f"monitor, {found.finding}", soft_wrap=True, highlight=False)
    if found.cases and found.cases.open:
        stdout.print(f"cases: {describe_cases(found.cases)}: nightjar cases {name}", soft_wrap=True, highlight=False)
    if waiting := found.challenger:
        stdout.print(f"challenger: {describe_challenger(waiting)}", soft_wrap=True, highlight=False)
    if found.days_behind:
        stdout.print(f"the newest landed batch is {found.days_behind:,} days older than yesterday", highlight=False)


def describe_cases(found: "OpenCases") -> str:
    """The open cases in words, such as "12 open, 2 critical, 1 overdue"."""
    parts = {"open": found.open, "critical": found.critical, "overdue": found.overdue}
    return ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)


def describe_challenger(waiting: "Waiting") -> str:
    """The challenger's nights in shadow, its flags beside the champion's, and what was decided of it."""
    scored = f"version {waiting.version}, {count(len(waiting.nights), 'night')} scored in shadow"
    if waiting.flags_per_night is not None:
        scored += (
            f", {waiting.flags_per_night:,.1f} flags per night (champion {waiting.champions_flags_per_night:,.1f})"
        )
    return f"{scored}; {waiting.decision}" if waiting.decision else scored


def show_all(as_json: bool, check: bool) -> None:
    """Show one line per detector. Exit code 1 if one cannot be read or, with check, has a failed night."""
    from flows.alerts import list_problems
    from flows.config.settings import load_settings
    from flows.status import read_lines

    lines, untold = read_lines(load_settings().project), list_problems()
    rows = [line.facts for line in lines]
    if as_json:
        print_json({"detectors": rows, "alerts": untold})
    else:
        for problem in untold:
            print_note(problem)
        rows = [row | {"error": row["error"] or ""} for row in rows]
        columns = ["detector", "champion", "newest_night", "days_behind", *lines[0].counts] if lines else []
        columns += ["error"] if any(line.error for line in lines) else []
        print_rows(Table(title="all detectors", title_justify="left"), rows, tuple(columns))
    if any(line.error or (check and line.counts["failed"]) for line in lines):
        raise typer.Exit(1)
