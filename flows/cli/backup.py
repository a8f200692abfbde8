"""`nightjar backup`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, showing_progress, stdout

EXAMPLE = "nightjar backup /mnt/backups/2026-11-21"


def backup(
    folder: Annotated[Path, typer.Argument(help="The folder to create.", metavar="FOLDER")],
    without_mlflow: Annotated[
        bool, typer.Option("--without-mlflow", help="Leave MLflow out; back up a tracking server with its own tools.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Back up the lake, the warehouse and MLflow into one folder. Nights may run at the same time."""
    from flows.config.settings import load_settings
    from tasks.policy import progress_of
    from tasks.stores.lake import Lake
    from tasks.stores.warehouse import Warehouse
    from tasks.upkeep.backup import back_up

    settings = load_settings()
    stores = (Lake(settings.lake_root), Warehouse(settings.warehouse_url))
    with showing_progress():
        made = back_up(*stores, None if without_mlflow else settings.mlflow_uri, folder, progress_of("copy lake"))
    if as_json:
        print_json({"folder": str(folder), "files": len(made.files), "bytes": made.size, "rows": made.rows})
    else:
        stdout.print(f"{len(made.files):,} files, {made.size / 1e6:,.1f} MB, {sum(made.rows.values()):,} table rows")
        stdout.print("not included: sources, params.yaml, contracts, reports, validation pages"
                     + (", MLflow" if without_mlflow else ""), soft_wrap=True)  # fmt: skip
