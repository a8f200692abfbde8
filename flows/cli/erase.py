"""`nightjar erase`."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_rows, running, stdout

if TYPE_CHECKING:
    from tasks.upkeep.erase import Erased

EXAMPLE = "nightjar erase payments P20261120-0-923714926"


def erase(
    name: Name,
    record_id: Annotated[str, typer.Argument(help="The record's ID in the tables.")],
    as_json: Json = False,
) -> None:
    """Remove one record from every zone, table and page, and list where it was. Its night must then be scored again."""
    from flows.config.setup import prepare
    from tasks.upkeep.erase import erase_artifacts, erase_record

    site = prepare(name).site
    with running():
        summaries = erase_artifacts(site, record_id)  # first: a second run could no longer find them
        erased = erase_record(site, record_id, datetime.now(UTC), summaries)
    if as_json:
        print_json(asdict(erased))
    else:
        print_erased(name, erased)
    if erased.left:
        raise typer.Exit(1)


def print_erased(name: str, erased: "Erased") -> None:
    """Show where the record was, which nights and versions are affected, and what Nightjar cannot reach."""
    rows = [asdict(place) for place in erased.places]
    print_rows(Table(title="erased from", title_justify="left"), rows, ("what", "batch_date", "rows"))
    lines = [f"deleted    {page}" for page in erased.pages]
    lines += [f"deleted    {erased.summaries} night summaries in Prefect"] if erased.summaries else []
    lines += [f"stale      nightjar backfill {name} --from {day} --to {day}" for day in erased.stale]
    for fitted in erased.fitted:
        aliases = ", ".join(fitted.aliases) or "no alias"
        holds = "; its bundle stores encoded rows, perhaps this one, or scales of entities: train again"
        holds = holds if fitted.holds_rows else ""
        lines.append(f"learnt     version {fitted.version} ({aliases}) may have learnt from it{holds}")
    lines += [f"left       {path}: an attempt may still be using it; run this again later" for path in erased.left]
    lines.append("elsewhere  the source, earlier backups, logs and copies of the tables may still hold it;")
    lines.append("           PostgreSQL's files do until its next vacuum (vacuum full), and its archived logs")
    lines.append("           a desk that runs keeps its copy of a DuckDB file until its next page")
    lines.append("           if a training was running, run this again when it has ended")
    for line in lines:
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)
