"""`nightjar monitor`."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_note, print_rows, stdout

EXAMPLE = "nightjar monitor payments; nightjar monitor payments --date 2026-11-20 --all"


def monitor(
    name: Name,
    date: Annotated[datetime | None, date_option("The batch date (default: the newest published).")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Also statistics within their bounds.")] = False,
    as_json: Json = False,
) -> None:
    """Show what was found on a night: broken data, a changed world, an attack, or nothing; and the statistics."""
    from flows.config.setup import prepare_reading
    from tasks.on_demand.findings import read_watched

    night = read_watched(prepare_reading(name).site, date.date() if date else None)
    finding = night.finding
    rows = [asdict(one) | {"is_beyond": one.is_beyond} for one in night.statistics]
    if as_json:
        print_json({"detector": name, **asdict(night), "statistics": rows})
        return
    title = finding.finding.replace("_", " ") if finding else "no finding"
    stdout.print(f"{name}, {night.batch_date}: {title}", style="bold", soft_wrap=True)
    for sentence in finding.evidence if finding else ():
        stdout.print(f"  {sentence}", soft_wrap=True, highlight=False)
    if finding and finding.todo:
        stdout.print(f"to do      {finding.todo}", soft_wrap=True, highlight=False)
    for fact, text in night.facts.items():
        stdout.print(f"{fact:<10} {text}", soft_wrap=True, highlight=False)
    if night.note:
        print_note(night.note)
    show_statistics(rows if show_all else [row for row in rows if row["is_beyond"]], len(rows))


def show_statistics(rows: list[dict[str, Any]], total: int) -> None:
    """Print statistics with their bounds, those beyond them marked."""
    shown = [row | {"column": row["column"] or "(the night)", "": "beyond" if row["is_beyond"] else ""} for row in rows]
    if shown:
        title = f"{len(shown):,} of {total:,} statistics"
        print_rows(Table(title=title, title_justify="left"), shown, ("column", "statistic", "value", "bound", ""))
    elif total:
        stdout.print(f"{total:,} statistics, all within their bounds: --all shows them", highlight=False)
