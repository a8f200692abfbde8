"""`nightjar export`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar export /mnt/exports/2026-11-21; nightjar export flags.duckdb --detector payments"


def export(
    target: Annotated[
        Path, typer.Argument(help="The folder to create, or a DuckDB file to write anew.", metavar="FOLDER|FILE.duckdb")
    ],
    detector: Annotated[str | None, typer.Option(help="Only the rows of this detector.", metavar="NAME")] = None,
    as_json: Json = False,
) -> None:
    """Copy all warehouse tables for others, as of one moment: to Parquet files, or into one DuckDB file."""
    from flows.config.params import check_name, detector_names
    from flows.config.settings import load_settings
    from tasks.stores.warehouse import Warehouse
    from tasks.upkeep.backup import export_file, export_warehouse

    settings = load_settings()
    warehouse = Warehouse(settings.warehouse_url)
    warehouse.migrate()
    if detector is not None and not warehouse.has_rows(detector):  # params may no longer have one that has rows
        check_name(detector, detector_names(settings.project), settings.project / "params.yaml")
    is_file = target.suffix == ".duckdb"
    rows = (export_file if is_file else export_warehouse)(warehouse, target, detector)
    if as_json:
        print_json({"file" if is_file else "folder": str(target), "rows": rows})
        return
    for table, count in rows.items():
        place = f"{table} in {target}" if is_file else f"{target}/{table}.parquet"
        stdout.print(f"{count:>12,} rows  {place}", soft_wrap=True, highlight=False)
