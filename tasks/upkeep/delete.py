"""Remove a detector: its rows in the warehouse, its files, and its registered versions. Its params and contract stay.

The order lets a run that was interrupted be repeated: what others read is removed first, the files it names last.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from tasks.errors import PublishConflict
from tasks.stores.site import Site
from tasks.stores.tables import attempts, metadata
from tasks.upkeep.inventory import ZONES


@dataclass(frozen=True)
class Deleted:
    """What was removed, or would be: rows of a table, files of a folder, or registered versions."""

    what: str
    count: int


def delete_detector(site: Site, keep_versions: bool, dry_run: bool) -> list[Deleted]:
    """Remove, or only count, everything of a detector, or all but its registered versions.

    Raises PublishConflict if an attempt is running, ServiceUnreachable.
    """
    done = delete_rows(site, dry_run)
    if not keep_versions:
        versions = site.registry.list_versions()
        done.append(Deleted(f"versions of {site.registry.model_name}", len(versions)))
        if versions and not dry_run:
            site.registry.delete_model()
    done += delete_files(site, keep_versions, dry_run)
    return [one for one in done if one.count]


def delete_rows(site: Site, dry_run: bool) -> list[Deleted]:
    """Remove the detector's rows of all tables in one transaction."""
    done = []
    with site.warehouse.begin_reading() if dry_run else site.warehouse.begin() as connection:
        running = sa.select(attempts.c.batch_date).where(
            attempts.c.detector == site.detector, attempts.c.status == "running"
        )
        if not dry_run and (days := connection.scalars(running).all()):
            raise PublishConflict(
                f"{site.detector} is being scored; nothing was removed.",
                where=f"attempts of {', '.join(map(str, days))}",
                todo="wait until the run has ended, then delete again",
            )
        for table in metadata.sorted_tables:
            if "detector" not in table.c:
                continue
            chosen = table.c.detector == site.detector
            rows = connection.scalar(sa.select(sa.func.count()).select_from(table).where(chosen)) or 0
            done.append(Deleted(f"rows of {table.name}", rows))
            if rows and not dry_run:
                connection.execute(sa.delete(table).where(chosen))
    return done


def delete_files(site: Site, keep_versions: bool, dry_run: bool) -> list[Deleted]:
    """Remove the detector's files in the lake, its pages, and its bundles on this machine."""
    done = []
    for zone in (*ZONES, "references", "comparisons"):
        files = sorted(site.lake.files(f"{zone}/{site.detector}"), key=lambda path: not path.endswith(".json"))
        done.append(Deleted(f"files of {zone}", len(files)))
        for path in [] if dry_run else files:
            site.lake.remove(path)
    folders = {"reports": site.reports, "validation": site.validations}
    if not keep_versions:
        folders["bundles"] = site.registry.bundles
        artifacts = site.registry.artifacts
        if artifacts and "://" not in artifacts:
            folders["registered models"] = Path(artifacts) / site.detector
    for what, folder in folders.items():
        done.append(Deleted(f"files of {what}", sum(path.is_file() for path in folder.rglob("*"))))
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True)
    return done
