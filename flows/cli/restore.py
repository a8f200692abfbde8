"""`nightjar restore`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, showing_progress, stdout

EXAMPLE = "NIGHTJAR_HOME=/srv/nightjar nightjar restore /mnt/backups/2026-11-21"


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup made by nightjar backup.", metavar="FOLDER")],
    as_json: Json = False,
) -> None:
    """Restore a backup into empty stores, after checking every byte. If interrupted, run it again."""
    from flows.config.settings import load_settings
    from tasks.policy import progress_of
    from tasks.stores.lake import Lake
    from tasks.stores.warehouse import Warehouse
    from tasks.upkeep.backup import restore as fill

    settings = load_settings()
    stores = (Lake(settings.lake_root), Warehouse(settings.warehouse_url), settings.mlflow_uri)
    artifacts = settings.artifact_root or str(settings.home_path / "mlflow-artifacts")
    with showing_progress():
        held = fill(*stores, artifacts, folder, progress_of("check backup"))
    if as_json:
        print_json({"folder": str(folder), "made_at": held.made_at, "files": len(held.files), "rows": held.rows})
    else:
        stdout.print(f"restored the backup of {held.made_at}: {len(held.files):,} files, "
                     f"{sum(held.rows.values()):,} table rows", highlight=False)  # fmt: skip
        stdout.print("next: nightjar status NAME; the next nights write new reports and pages", soft_wrap=True)
