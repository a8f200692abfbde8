"""`nightjar delete`."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_rows, stdout

EXAMPLE = "nightjar delete cards --dry-run; nightjar delete cards --yes"


def delete(
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really remove it. There is no way back but a backup.")] = False,
    keep_versions: Annotated[bool, typer.Option("--keep-versions", help="Keep the versions in MLflow.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a detector's rows, files and versions. Its section of params.yaml and its contract stay."""
    if dry_run == yes:
        raise typer.BadParameter("give either --dry-run, to see what would be removed, or --yes, to remove it")
    from flows.config.setup import prepare, prepare_reading
    from tasks.upkeep.delete import delete_detector

    site = (prepare_reading if dry_run else prepare)(name).site
    done = [asdict(one) for one in delete_detector(site, keep_versions, dry_run)]
    if as_json:
        print_json({"detector": name, "dry_run": dry_run, "removed": done})
        return
    title = f"{name}: {'would be removed' if dry_run else 'removed'}"
    print_rows(Table(title=title, title_justify="left"), done, ("what", "count"))
    if not done:
        stdout.print("nothing to remove")
    if not dry_run:
        stdout.print(f"kept       detectors.{name} in params.yaml, contracts/{name}.yaml, and what Prefect recorded")
        stdout.print("           mlflow gc removes the files that a tracking server keeps", highlight=False)
