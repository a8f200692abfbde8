"""`nightjar latent`."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import SHOWN_ROWS, print_json, print_rows, showing_progress, stdout

EXAMPLE = (
    "nightjar latent payments --output points.parquet; nightjar latent payments --date 2026-11-21 --output points.csv; "
    "nightjar latent payments --source f.csv --json"
)
SHOWN_COLUMNS = 6  # of the vectors; --output and --json have all


def latent(
    name: Name,
    date: Annotated[datetime | None, date_option("The batch date (default: the newest published).")] = None,
    source: Annotated[str | None, typer.Option(help="Encode a file like the source's instead of a batch.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all vectors to a .parquet, .csv or .xlsx file.")] = None,
    as_json: Json = False,
) -> None:
    """Write where rows lie in the champion's latent space, for a search, a map or a model of your own."""
    if source and date:
        raise typer.BadParameter("a file has no batch date", param_hint="--date")
    from flows.config.setup import prepare_reading
    from tasks.on_demand.latent import encode_latent

    setup = prepare_reading(name)
    day, params = date.date() if date else None, setup.configured.detector
    most = None if as_json and not output else SHOWN_ROWS
    with showing_progress():
        found = encode_latent(setup.site, setup.configured.contract, params, day, source, most, output)
    if as_json:
        print_json(asdict(found))
        return
    shown = ("record_id", *(f"latent_{i}" for i in range(min(sum(found.networks), SHOWN_COLUMNS))))
    widths = " + ".join(map(str, found.networks))
    title = f"{source or found.batch_date}: {found.model} version {found.version}, latent space {widths} wide"
    print_rows(Table(title=title, title_justify="left"), found.records, shown)
    stdout.print(f"{found.rows:,} rows: {found.encoded:,} encoded; {found.rows - found.encoded:,} bad", highlight=False)
    for reason, count in found.reasons.items():
        stdout.print(f"bad rows   {count:,}: {reason}", soft_wrap=True, markup=False, highlight=False)
    if output:
        stdout.print(f"wrote      {output}", soft_wrap=True, markup=False, highlight=False)
