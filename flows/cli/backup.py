"""`nightjar backup`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, running, stdout

EXAMPLE = "nightjar backup /mnt/backups/2026-11-21"


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")],
    without_mlflow: Annotated[
        bool, typer.Option("--without-mlflow", help="Leave MLflow out: a tracking server is copied by its own means.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy lake, warehouse and MLflow of all detectors into one folder; nights may run meanwhile."""
    from flows.config.stores import load_stores
    from tasks.policy import progress_of
    from tasks.upkeep.backup import back_up

    with running():
        made = back_up(load_stores(), folder, not without_mlflow, progress_of("copy lake"))
    if as_json:
        print_json({"folder": str(folder), "files": len(made.files), "bytes": made.size, "rows": made.rows})
    else:
        stdout.print(f"{len(made.files):,} files, {made.size / 1e6:,.1f} MB, {sum(made.rows.values()):,} table rows")
        stdout.print("not in it: sources, params.yaml and contracts, reports and Data Docs"
                     + (", MLflow" if without_mlflow else ""), soft_wrap=True)  # fmt: skip
