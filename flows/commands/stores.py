"""Commands that keep the stores in order: migrate, export, backup, restore, prune, erase."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.commands.options import Debug, Json, Name
from flows.screen import print_json, print_rows, running, stdout

if TYPE_CHECKING:
    from tasks.erase import Erased

app = typer.Typer()


@app.command(epilog="NIGHTJAR_WAREHOUSE=postgresql+psycopg://OWNER:PASSWORD@HOST/DATABASE nightjar migrate")
def migrate(as_json: Json = False, debug: Debug = False) -> None:
    """Bring the warehouse to the newest schema; on PostgreSQL also grant its roles their rights again."""
    from flows.setup import load_stores
    from tasks import warehouse

    engine = warehouse.open_engine(load_stores().warehouse_url)
    before = warehouse.migrate(engine)
    roles, place = warehouse.renew_roles(engine), warehouse.describe_place(engine.url)
    if as_json:
        print_json({"warehouse": place, "before": before, "schema": warehouse.SCHEMA_VERSION, "roles": roles})
        return
    told = "is" if before == warehouse.SCHEMA_VERSION else f"was {before or 'empty'}, is now"
    stdout.print(f"schema     {told} {warehouse.SCHEMA_VERSION} in {place}", soft_wrap=True, highlight=False)
    if engine.dialect.name == "postgresql":
        none = "left as they are: this login does not own the tables, or may not make roles (docs/warehouses.md)"
        stdout.print(f"roles      {', '.join(roles) or none}", soft_wrap=True, highlight=False)


@app.command(epilog="nightjar export /mnt/exports/2026-11-21")
def export(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the warehouse's tables as Parquet, all as of one moment, for databases that cannot be the warehouse."""
    from flows.setup import load_stores
    from tasks.backup import export_warehouse

    rows = export_warehouse(load_stores().warehouse_url, folder)
    if as_json:
        print_json({"folder": str(folder), "rows": rows})
        return
    for table, count in rows.items():
        stdout.print(f"{count:>12,} rows  {folder}/{table}.parquet", soft_wrap=True, highlight=False)


@app.command(epilog="nightjar backup /mnt/backups/2026-11-21")
def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")],
    without_mlflow: Annotated[
        bool, typer.Option("--without-mlflow", help="Leave MLflow out: a tracking server is copied by its own means.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy lake, warehouse and MLflow of all detectors into one folder; nights may run meanwhile."""
    from flows.setup import load_stores
    from tasks.backup import back_up
    from tasks.progress import progress_of

    with running():
        made = back_up(load_stores(), folder, not without_mlflow, progress_of("copy lake"))
    if as_json:
        print_json({"folder": str(folder), "files": len(made.files), "bytes": made.size, "rows": made.rows})
    else:
        stdout.print(f"{len(made.files):,} files, {made.size / 1e6:,.1f} MB, {sum(made.rows.values()):,} table rows")
        stdout.print("not in it: sources, params.yaml and contracts, reports and Data Docs"
                     + (", MLflow" if without_mlflow else ""), soft_wrap=True)  # fmt: skip


@app.command(epilog="NIGHTJAR_HOME=/srv/nightjar nightjar restore /mnt/backups/2026-11-21")
def restore(
    folder: Annotated[Path, typer.Argument(help="What nightjar backup wrote.", metavar="FOLDER")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fill empty stores from a backup, after every byte of it was checked; cut short, run it again."""
    from flows.setup import load_stores
    from tasks.backup import restore as fill
    from tasks.progress import progress_of

    with running():
        held = fill(load_stores(), folder, progress_of("check backup"))
    if as_json:
        print_json({"folder": str(folder), "made_at": held.made_at, "files": len(held.files), "rows": held.rows})
    else:
        stdout.print(f"restored the backup of {held.made_at}: {len(held.files):,} files, "
                     f"{sum(held.rows.values()):,} table rows", highlight=False)  # fmt: skip
        stdout.print("next: nightjar status NAME; reports and Data Docs are made with the next nights", soft_wrap=True)


@app.command(epilog="nightjar prune payments --dry-run")
def prune(
    name: Annotated[str | None, typer.Argument(help="One detector; all of them unless named.", metavar="NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go and stop.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove files that nothing names, a day old or older, and what is past the retention that params.yaml sets."""
    from flows.params import detector_names
    from flows.settings import load_settings
    from flows.setup import prepare
    from tasks.prune import prune_detector

    rows = []
    for each in [name] if name else detector_names(load_settings().project):
        setup = prepare(each)
        removed = prune_detector(setup.site, setup.configured.detector.retention, datetime.now(UTC), dry_run)
        rows += [{"detector": each, **asdict(one)} for one in removed]
    if as_json:
        print_json({"dry_run": dry_run, "removed": rows})
    elif rows:
        title = "would be removed" if dry_run else "removed"
        print_rows(Table(title=title, title_justify="left"), rows, ("detector", "what", "files", "bytes", "rows"))
    else:
        stdout.print("nothing to remove")


@app.command(epilog="nightjar erase payments P20261120-0-923714926")
def erase(
    name: Name,
    record_id: Annotated[str, typer.Argument(help="The record, as the tables name it.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove one record from every zone, table and page, and say where it was; its night is then to be scored again."""
    from flows.setup import prepare
    from tasks.erase import erase_artifacts, erase_record

    site = prepare(name).site
    with running():
        summaries = erase_artifacts(site, record_id)  # first: what a second try looks at does not find them
        erased = erase_record(site, record_id, datetime.now(UTC), summaries)
    if as_json:
        print_json(asdict(erased))
    else:
        print_erased(name, erased)
    if erased.left:
        raise typer.Exit(1)


def print_erased(name: str, erased: "Erased") -> None:
    """Where a record was, what that means for nights and versions, and where Nightjar cannot reach."""
    rows = [asdict(place) for place in erased.places]
    print_rows(Table(title="erased from", title_justify="left"), rows, ("what", "batch_date", "rows"))
    lines = [f"deleted    {page}" for page in erased.pages]
    lines += [f"deleted    {erased.summaries} summaries of nights in Prefect"] if erased.summaries else []
    lines += [f"stale      nightjar backfill {name} --from {day} --to {day}" for day in erased.stale]
    for fitted in erased.fitted:
        told = ", ".join(fitted.aliases) or "no alias"
        holds = "; its bundle keeps encoded rows, maybe this one's: train anew" if fitted.holds_rows else ""
        lines.append(f"learnt     version {fitted.version} ({told}) may have learnt from it{holds}")
    lines += [f"left       {path}: an attempt may be at work; run this again when it has ended" for path in erased.left]
    lines.append("elsewhere  the source, earlier backups, logs and copies of the tables may still hold it")
    lines.append("           after a training that ran meanwhile, run this again")
    for line in lines:
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)
