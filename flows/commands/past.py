"""Commands that examine past nights and put them right: backfill, replay, verify."""

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.options import Day, Debug, Json, Name
from flows.screen import hush_great_expectations, print_json, print_rows, running, stdout

app = typer.Typer()


@app.command(epilog="nightjar backfill payments --from 2026-11-14 --to 2026-11-20 --only stale --dry-run")
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
    debug: Debug = False,
) -> None:
    """Score and publish a range of batch dates again, or those of them in one state."""
    from flows.plan import make_plan

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


@app.command(epilog="nightjar replay payments --date 2026-11-20 > bad.csv; then with --take bad.csv")
def replay(
    name: Name,
    date: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="The batch date.")],
    take: Annotated[Path | None, typer.Option(help="A file written by this command, with its rows put right.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List a batch's quarantined rows as CSV, or land the repaired ones in their place and score the night again."""
    from flows.replay import list_bad_rows, replay_batch

    hush_great_expectations()
    if take is None:
        bad = list_bad_rows(name, date.date())
        if as_json:
            print_json({"detector": name, "batch_date": date.date(), "rows": bad.to_pylist()})
        else:
            bad.to_pandas().to_csv(sys.stdout, index=False)
        return
    with running():
        done = replay_batch(name, date.date(), take)
    if as_json:
        print_json({"detector": name, "batch_date": date.date(), **asdict(done)})
        return
    stdout.print(f"{done.taken.rows:,} repaired rows {'landed' if done.taken.is_new else 'had landed before'}")
    if (night := done.night) is None:
        stdout.print(f"{date.date()}: not scored, {done.why_not_scored}", highlight=False)
        return
    counts = f"{night.scored:,} rows scored, {night.flagged:,} flagged, {night.quarantined:,} still quarantined"
    stdout.print(f"{date.date()}: {counts}", highlight=False)


@app.command(epilog="nightjar verify payments --date 2026-11-20")
def verify(
    name: Name,
    date: Day = None,
    sample: Annotated[int, typer.Option(min=0, help="Scores a night to compute again from landing.")] = 1000,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold published nights (all, unless one is named) against landing, the lake's parts, the table and the model."""
    from flows.verify import verify_nights

    checks = verify_nights(name, date.date() if date else None, sample)
    rows = [asdict(check) for check in checks]
    if as_json:
        print_json({"detector": name, "checks": rows})
    else:
        shown = [row | {"result": "FAILED" if row["result"] == "failed" else row["result"]} for row in rows]
        print_rows(Table(title=f"verify {name}", title_justify="left"), shown, tuple(rows[0]))
    if any(check.result == "failed" for check in checks):
        raise typer.Exit(1)
