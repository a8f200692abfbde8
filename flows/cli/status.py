"""`nightjar status`."""

from dataclasses import asdict

import typer
from rich.table import Table

from flows.cli.options import Json, MaybeName
from flows.cli.screen import print_json, print_rows, stdout

EXAMPLE = "nightjar status; nightjar status payments --json"


def status(name: MaybeName = None, as_json: Json = False) -> None:
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
    from flows.config.settings import load_settings
    from flows.status import read_lines

    lines = read_lines(load_settings().project)
    rows = [asdict(line) | line.counts for line in lines]
    if as_json:
        print_json({"detectors": [{key: value for key, value in row.items() if key != "counts"} for row in rows]})
    else:
        rows = [row | {"error": row["error"] or ""} for row in rows]
        columns = ["detector", "champion", "newest_night", "days_behind", *lines[0].counts] if lines else []
        columns += ["error"] if any(line.error for line in lines) else []
        print_rows(Table(title="all detectors", title_justify="left"), rows, tuple(columns))
    if any(line.error for line in lines):
        raise typer.Exit(1)
