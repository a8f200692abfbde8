"""`nightjar restore`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json
from flows.cli.screen import print_json, running, stdout

EXAMPLE = "NIGHTJAR_HOME=/srv/nightjar nightjar restore /mnt/backups/2026-11-21"


def restore(
    folder: Annotated[Path, typer.Argument(help="What nightjar backup wrote.", metavar="FOLDER")],
    as_json: Json = False,
) -> None:
    """Fill empty stores from a backup, after every byte of it was checked; cut short, run it again."""
    from flows.config.stores import load_stores
    from tasks.policy import progress_of
    from tasks.upkeep.backup import restore as fill

    with running():
        held = fill(load_stores(), folder, progress_of("check backup"))
    if as_json:
        print_json({"folder": str(folder), "made_at": held.made_at, "files": len(held.files), "rows": held.rows})
    else:
        stdout.print(f"restored the backup of {held.made_at}: {len(held.files):,} files, "
                     f"{sum(held.rows.values()):,} table rows", highlight=False)  # fmt: skip
        stdout.print("next: nightjar status NAME; reports and Data Docs are made with the next nights", soft_wrap=True)
