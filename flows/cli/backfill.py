"""`nightjar backfill`."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_rows, running, stdout

EXAMPLE = "nightjar backfill payments --from 2026-11-14 --to 2026-11-20 --only stale --dry-run"


def backfill(
    name: Name,
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")],
    only: Annotated[str, typer.Option(help="missing, stale, failed or all.")] = "all",
    as_of: Annotated[
        bool, typer.Option("--as-of", help="Score each date with the version that was champion when it ended.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Score and publish a range of batch dates again, or those of them in one state."""
    from flows.status import make_plan

    if only not in ("all", "missing", "stale", "failed"):
        raise typer.BadParameter(f"{only!r} is not one of missing, stale, failed, all", param_hint="--only")
    plan = make_plan(name, first.date(), last.date(), only, as_of)
    if plan.dates and not dry_run:
        from flows.backfill import backfill as flow

        with running():
            flow(name, plan.dates, plan.versions if as_of else None)
    rows = [
        {"batch_date": night.batch_date, "state": night.state, "why": night.why, "version": night.version}
        for night in plan.nights
    ]
    if as_json:
        facts = {"detector": name, "dates": plan.dates, "dry_run": dry_run, "as_of": as_of}
        print_json(facts | {"nights": rows, "not_landed": plan.not_landed})
        return
    if dry_run and rows:
        print_rows(Table(title=f"{name}: the plan", title_justify="left"), rows, tuple(rows[0]))
    named = "" if dry_run else ": " + (", ".join(map(str, plan.dates)) or "none")
    told = f"{'would score' if dry_run else 'scored'} {len(rows)} of {plan.landed} landed dates{named}"
    stdout.print(told, highlight=False)
    if plan.not_landed:
        stdout.print(f"nothing has landed on {', '.join(map(str, plan.not_landed))}", highlight=False)
