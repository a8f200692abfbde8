"""`nightjar prune`."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_rows, stdout

EXAMPLE = "nightjar prune payments --dry-run"


def prune(
    name: Annotated[str | None, typer.Argument(help="One detector (default: all).", metavar="NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove unused files older than a day, and data older than the retention in params.yaml."""
    from flows.config.params import detector_names
    from flows.config.settings import load_settings
    from flows.config.setup import prepare, prepare_reading
    from tasks.upkeep.prune import prune_detector

    rows = []
    for each in [name] if name else detector_names(load_settings().project):
        setup = (prepare_reading if dry_run else prepare)(each)
        removed = prune_detector(setup.site, setup.configured.detector.retention, datetime.now(UTC), dry_run)
        rows += [{"detector": each, **asdict(one)} for one in removed]
    if as_json:
        print_json({"dry_run": dry_run, "removed": rows})
    elif rows:
        title = "would be removed" if dry_run else "removed"
        print_rows(Table(title=title, title_justify="left"), rows, ("detector", "what", "files", "bytes", "rows"))
    else:
        stdout.print("nothing to remove")
