"""`nightjar verify`."""

import secrets
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_rows

EXAMPLE = "nightjar verify payments --date 2026-11-20"


def verify(
    name: Name,
    date: Annotated[datetime | None, date_option("One batch date (default: all published nights).")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Scores per night to recompute from landing.")] = 1000,
    as_json: Json = False,
) -> None:
    """Check published nights against landing, the lake's parts, the warehouse table and the model."""
    from flows.config.setup import prepare_reading
    from tasks.upkeep.verify import verify_nights

    setup, day = prepare_reading(name), date.date() if date else None
    seed = secrets.randbelow(2**31)  # another sample each time
    retention = setup.configured.detector.retention
    enrich, now = setup.configured.detector.enrich, datetime.now(UTC)
    checks = verify_nights(setup.site, setup.configured.contract, retention, day, sample, seed, now, enrich)
    rows = [asdict(check) for check in checks]
    if as_json:
        print_json({"detector": name, "checks": rows})
    else:
        shown = [row | {"result": "FAILED" if row["result"] == "failed" else row["result"]} for row in rows]
        print_rows(Table(title=f"verify {name}", title_justify="left"), shown, tuple(rows[0]))
    if any(check.result == "failed" for check in checks):
        raise typer.Exit(1)
