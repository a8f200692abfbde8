"""`nightjar export`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar export /mnt/exports/2026-11-21"


def export(
    folder: Annotated[Path, typer.Argument(help="The folder to create.", metavar="FOLDER")],
    as_json: Json = False,
) -> None:
    """Export all warehouse tables to Parquet, as of one moment."""
    from flows.config.settings import load_settings
    from tasks.stores.warehouse import Warehouse
    from tasks.upkeep.backup import export_warehouse

    rows = export_warehouse(Warehouse(load_settings().warehouse_url), folder)
    if as_json:
        print_json({"folder": str(folder), "rows": rows})
        return
    for table, count in rows.items():
        stdout.print(f"{count:>12,} rows  {folder}/{table}.parquet", soft_wrap=True, highlight=False)
