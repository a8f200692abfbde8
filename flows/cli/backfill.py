"""`nightjar backfill`."""

from datetime import datetime
from typing import Annotated, cast, get_args

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_rows, running, stdout

EXAMPLE = "nightjar backfill payments --from 2026-11-14 --to 2026-11-20 --only stale --dry-run"


def backfill(
    name: Name,
    first: Annotated[datetime, date_option("The first batch date.", "--from")],
    last: Annotated[datetime, date_option("The last batch date.", "--to")],
    only: Annotated[
        str,
        typer.Option(
            help="Only batch dates in this state: unpublished (missing, failed or early), missing, failed, stale."
        ),
    ] = "all",
    as_of: Annotated[
        bool, typer.Option("--as-of", help="Score each date with the version that was champion when that date ended.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Score and publish a range of batch dates again: all, or only those in one state."""
    from flows.status import Only, make_plan

    if only not in get_args(Only):
        raise typer.BadParameter(f"{only!r} is not one of {', '.join(get_args(Only))}", param_hint="--only")
    plan = make_plan(name, first.date(), last.date(), cast(Only, only), as_of)
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
        print_json(facts | {"nights": rows, "not_landed": plan.not_landed, "learnt": plan.learnt})
        return
    if dry_run and rows:
        print_rows(Table(title=f"{name}: plan", title_justify="left"), rows, tuple(rows[0]))
    dates = "" if dry_run else ": " + (", ".join(map(str, plan.dates)) or "none")
    verb = "would score" if dry_run else "scored"
    stdout.print(f"{verb} {len(rows)} of {plan.landed} landed dates{dates}", highlight=False)
    if plan.learnt:
        span = f"{plan.learnt[0]} to {plan.learnt[-1]}" if len(plan.learnt) > 1 else f"{plan.learnt[0]}"
        stdout.print(f"the champion has learnt from {span}, so it does not score them", highlight=False)
    if plan.not_landed:
        stdout.print(f"no data has landed for {', '.join(map(str, plan.not_landed))}", highlight=False)
