"""`nightjar flags`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import describe_suppressed, print_csv, print_json, stdout

EXAMPLE = "nightjar flags payments; nightjar flags payments --entity CARD; nightjar flags payments --output flags.xlsx"
SHOWN_FLAGS = 20  # on screen; --csv, --output and --json have all


def flags(
    name: Name,
    date: Annotated[datetime | None, date_option("The batch date (default: the newest published).")] = None,
    first: Annotated[datetime | None, date_option("The first batch date.", "--from")] = None,
    last: Annotated[datetime | None, date_option("The last batch date.", "--to")] = None,
    entity: Annotated[str | None, typer.Option(help="Only the flags of this entity, of all nights.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all as CSV.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write all to a .csv, .xlsx or .parquet file.")] = None,
    as_json: Json = False,
) -> None:
    """List published flags with their values, causes and verdicts."""
    from flows.config.setup import prepare_reading
    from tasks.on_demand.flags import flatten, list_flags
    from tasks.on_demand.output import check_output, write_frame

    if date and (first or last):
        raise typer.BadParameter("give --date, or --from and --to")
    if sum((as_csv, output is not None, as_json)) > 1:
        raise typer.BadParameter("give one of --csv, --output and --json")
    if output:
        check_output(output)
    setup = prepare_reading(name)
    begin, end = (day.date() if day else None for day in (date or first, date or last))
    found = list_flags(setup.site, setup.configured.detector.score, setup.record_rule, begin, end, entity)
    if as_json:
        print_json({"detector": name, "flags": found})
    elif as_csv:
        print_csv(flatten(found, setup.site.zone))
    elif output:
        write_frame(output, flatten(found, setup.site.zone))
        stdout.print(f"{len(found):,} flags written to {output}", soft_wrap=True)
    else:
        show_flags(name, found, setup.site.zone)


def show_flags(name: str, found: list[dict[str, Any]], zone: ZoneInfo) -> None:
    """Print the worst flags: what they are, the records' values, and the causes."""
    days = [flag["batch_date"] for flag in found]
    of = f" of {min(days)}" + (f" to {max(days)}" if max(days) > min(days) else "") if days else ""
    stdout.print(f"{name}: {len(found):,} flags{of}", style="bold")
    print_flags(found, zone)


def print_flags(found: list[dict[str, Any]], zone: ZoneInfo) -> None:
    """Print the first flags, each in up to three lines."""
    from tasks.rows.describe import describe_values

    for flag in found[:SHOWN_FLAGS]:
        facts = [
            flag["event_time"] and flag["event_time"][:19].replace("T", " "),
            flag["record_id"],
            flag["entity"] and f"entity {flag['entity']}",
            f"score {flag['score']:.4g}",
            flag["band"],
            flag["verdict"] or (flag["suppressed"] and describe_suppressed(flag["suppressed_by"])),
        ]
        stdout.print()
        stdout.print("  ".join(" ".join(fact.split()) for fact in facts if fact), soft_wrap=True)
        for line in (describe_values(flag["record"], zone), "; ".join(flag["causes"])):
            if line:
                stdout.print(f"  {' '.join(line.split())}", soft_wrap=True, style="dim")
    if len(found) > SHOWN_FLAGS:
        stdout.print(f"\n{len(found) - SHOWN_FLAGS:,} more: --csv, --output FILE or --json")
