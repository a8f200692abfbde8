"""Erase one record: from every zone of the lake, every table, and the pages that show it; and say where it was.

Parts are immutable: a new part is written, the manifest replaced, the old file removed, batch by batch, while new
attempts at the batch wait. Cut short, a second run finds what is left, since it looks into every file, named or not.
The rest of a batch keeps its rows, but its input is another one now: its night is stale until it is scored again.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from models.detector import Detector
from tasks.errors import NightjarError, RecordMissing, SourceInvalid
from tasks.stores.lake import Lake, Manifest, Part, Zone
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import (
    attempts,
    flagged_anomalies,
    group_scores,
    labels,
    reviews,
    scoring_batches,
    superseded_anomalies,
)
from tasks.upkeep.inventory import Inventory, list_results, take_inventory
from tasks.upkeep.prune import GRACE, hold_batch, read_batch_date

ERASED = "(erased)"
NAMED_BY = {
    flagged_anomalies: flagged_anomalies.c.record_id,
    superseded_anomalies: superseded_anomalies.c.record_id,
    labels: labels.c.record_id,
    reviews: reviews.c.record_id,
    group_scores: group_scores.c.group,
}
TOLD_IN = (attempts.c.cause, attempts.c.parts, reviews.c.note)
KEYS = {
    attempts: (attempts.c.detector, attempts.c.batch_date, attempts.c.attempt),
    reviews: (reviews.c.detector, reviews.c.batch_date, reviews.c.record_id, reviews.c.reviewer, reviews.c.reviewed_at),
}


@dataclass(frozen=True)
class Place:
    """Where a record was: a zone or table, its batch date (a cut-off in `clean`) and the rows."""

    what: str
    batch_date: date | None
    rows: int


@dataclass(frozen=True)
class Fitted:
    """A version that may have learnt from the record; `holds_rows`: its bundle keeps encoded rows, maybe this one."""

    version: int
    aliases: tuple[str, ...]
    holds_rows: bool


@dataclass(frozen=True)
class Erased:
    """What was done. `stale`: nights to score again; `left`: files that an attempt may still be writing."""

    record_id: str
    places: tuple[Place, ...]
    pages: tuple[str, ...]
    stale: tuple[date, ...]
    fitted: tuple[Fitted, ...]
    left: tuple[str, ...]
    summaries: int  # of nights, in Prefect


def erase_record(site: Site, record_id: str, now: datetime, summaries: int = 0) -> Erased:
    """Remove a record from everything that Nightjar keeps of a detector. Raises RecordMissing where it is nowhere.

    summaries: how many of Prefect's were removed beforehand.
    """
    before = take_inventory(site.lake, site.detector)
    in_zones, busy = erase_named(site, before, record_id, now)
    in_files, left = erase_unnamed(site, take_inventory(site.lake, site.detector), record_id, now)
    in_tables = erase_rows(site, record_id)
    places = merge_places([*in_zones, *in_files, *in_tables])
    pages = erase_pages(site, record_id)
    if not (any(place.rows for place in places) or pages or busy or left or summaries):
        raise RecordMissing(
            f"{site.detector} holds no such record.",
            where="every zone, table and page",
            got=f"record_id {record_id!r}",
            todo="check the id, and the detector's name; nothing was changed",
        )
    days = {place.batch_date for place in places if place.batch_date and place.what != "clean"}
    landed = {place.batch_date for place in places if place.what == "landing"}
    return Erased(
        record_id=record_id,
        places=places,
        pages=pages,
        stale=tuple(sorted(read_published(site) & landed)),
        fitted=find_fitted(site, days),
        left=tuple(sorted({*busy, *left})),
        summaries=summaries,
    )


def erase_named(site: Site, inventory: Inventory, record_id: str, now: datetime) -> tuple[list[Place], list[str]]:
    """Rewrite the partitions that hold the record, landing first; returns where it was and where an attempt is busy."""
    places, busy = [], []
    order: tuple[Zone, ...] = ("landing", "validated", "quarantine", "clean", "scores")
    for path, seen in sorted(inventory.manifests.items(), key=lambda item: (order.index(item[1].zone), item[0])):
        if not count_in_manifest(site.lake, seen, inventory, record_id):
            continue
        with hold_batch(site, seen.batch_date, now) as held:
            if not held.is_idle:
                busy.append(path)
                continue
            manifest = site.lake.read_manifest(path)
            rows = count_in_manifest(site.lake, manifest, inventory, record_id)
            rewrite_partition(site.lake, manifest, inventory, record_id)
            places.append(Place(manifest.zone, manifest.batch_date, rows))
    return places, busy


def count_in_manifest(lake: Lake, manifest: Manifest, inventory: Inventory, record_id: str) -> int:
    """The record's rows in the parts of a manifest; 1 where only flags or groups beside them name it."""
    rows = sum(count_record(lake, part, record_id) for part in manifest.parts)
    results = list_results(manifest, inventory.named)
    return rows or int(any(names_record(lake.read_frame(name), record_id).any() for name in results))


def count_record(lake: Lake, part: Part, record_id: str) -> int:
    """The rows of a record in a Parquet file that has a column of record ids, or of groups. Raises SourceInvalid."""
    columns = lake.columns(part)
    name = next((name for name in ("record_id", "group") if name in columns), None)
    slices = lake.slices(part, [name]) if name else ()
    return sum(pc.sum(pc.equal(table[name], record_id)).as_py() or 0 for table in slices)


def names_record(frame: pd.DataFrame, record_id: str) -> pd.Series:
    """The mask of a small table's rows (N,) that are the record's, or those of a group named like it."""
    return frame["record_id" if "record_id" in frame else "group"] == record_id


def rewrite_partition(lake: Lake, manifest: Manifest, inventory: Inventory, record_id: str) -> None:
    """Put parts without the record in the place of those with it: the new file, the manifest, the old file goes."""
    zone = cast(Zone, manifest.zone)
    partition = lake.write(zone, manifest.detector, manifest.batch_date, manifest.inputs)
    old = [part for part in manifest.parts if count_record(lake, part, record_id)]
    new = {part.path: partition.rewrite(part, without(lake, part, record_id)) for part in old}
    if old:
        hashes = {part.sha256: new[part.path].sha256 for part in old}
        partition.commit(manifest.facts, keep=tuple(rename(new.get(p.path, p), hashes) for p in manifest.parts))
    for name in list_results(manifest, inventory.named):
        frame = lake.read_frame(name)
        if (mask := names_record(frame, record_id)).any():
            lake.replace_frame(name, frame[~mask])
    for part in old:
        lake.remove(part.path)


def rename(part: Part, hashes: Mapping[str, str]) -> Part:
    """A part that repairs rows of others names these by the hashes that they have now."""
    return replace(part, replaces=tuple(hashes.get(sha256, sha256) for sha256 in part.replaces))


def without(lake: Lake, part: Part, record_id: str) -> Iterator[pa.Table]:
    """A part's rows, slice by slice, but those of the record; rows without an id stay."""
    for table in lake.slices(part):
        yield table.filter(pc.fill_null(pc.not_equal(table["record_id"], record_id), True))


def erase_unnamed(site: Site, inventory: Inventory, record_id: str, now: datetime) -> tuple[list[Place], list[str]]:
    """Remove files that no reader sees and that hold the record, or cannot be read; returns those left to an attempt.

    What an attempt left that a later one has overtaken is nobody's, and so are scores while no night is at work.
    """
    lake = site.lake
    parts = {part.path for manifest in inventory.manifests.values() for part in manifest.parts}
    results = {name for m in inventory.manifests.values() for name in list_results(m, inventory.named)}
    newest = {path.rpartition("/")[0]: m.attempt for path, m in inventory.manifests.items()}
    places: list[Place] = []
    left: list[str] = []
    loose = (inventory.named.keys() | inventory.unnamed.keys()) - parts - results
    for path in sorted(name for name in loose if not name.endswith(".json")):
        rows = count_in_leftover(lake, path, record_id)
        if rows == 0:
            continue
        folder, _, attempt = path.rpartition("/")[0].rpartition("/attempt=")
        is_landing = path.startswith("landing/")  # where attempts add up: none overtakes another
        is_overtaken = not is_landing and attempt.isdigit() and int(attempt) < newest.get(folder, 0)
        is_old = lake.modified(path) < now - GRACE
        with hold_batch(site, read_batch_date(path), now) as held:
            if held.is_idle and (is_overtaken or is_old or "/inputs=" in path):
                _remove_with_receipts(lake, path, inventory)
                places.append(Place(f"unused files in {path.split('/')[0]}", read_batch_date(path), rows or 0))
            else:
                left.append(path)
    return places, left


def count_in_leftover(lake: Lake, path: str, record_id: str) -> int | None:
    """The record's rows in a file that no manifest names; None where it cannot be read, as half-written ones cannot."""
    try:
        return count_record(lake, Part(path, 0, ""), record_id)
    except SourceInvalid:
        return None


def _remove_with_receipts(lake: Lake, path: str, inventory: Inventory) -> None:
    """Of unfinished scores the receipts go first: a later attempt would believe them."""
    folder = path.rpartition("/")[0]
    if "/inputs=" in path and path in inventory.unnamed:
        for name in inventory.unnamed:
            if name.startswith(f"{folder}/") and name.endswith(".json"):
                lake.remove(name)
    lake.remove(path)


def erase_rows(site: Site, record_id: str) -> list[Place]:
    """Delete the record's rows from every table, and its id from texts that mention it, in one transaction."""
    counts: Counter[tuple[str, date | None]] = Counter()
    with site.warehouse.begin() as connection:
        for table, column in NAMED_BY.items():
            found = (table.c.detector == site.detector, column == record_id)
            rows = connection.execute(sa.select(table).where(*found)).mappings()
            counts.update((table.name, row.get("batch_date")) for row in rows)
            connection.execute(sa.delete(table).where(*found))
        for column in TOLD_IN:
            for batch_date in erase_mentions(connection, column, site.detector, record_id):
                counts[f"{column.table.name}.{column.name}", batch_date] += 1
    return [Place(what, day, rows) for (what, day), rows in counts.items()]


def erase_mentions(connection: sa.Connection, column: sa.Column[Any], detector: str, record_id: str) -> list[date]:
    """Replace the id, where it is a word of its own, in a column of free text; returns the rows' batch dates."""
    table: Any = column.table
    is_json = column is attempts.c.parts  # where quotes and backslashes are escaped
    written = json.dumps(record_id, ensure_ascii=False)[1:-1] if is_json else record_id
    word = re.compile(rf"(?<![\w-]){re.escape(written)}(?![\w-])")
    mentioned = sa.select(*KEYS[table], column).where(
        table.c.detector == detector, column.contains(written, autoescape=True)
    )
    days = []
    for row in connection.execute(mentioned).mappings().all():
        if (text := word.sub(ERASED, row[column.name])) != row[column.name]:
            same = (key == row[key.name] for key in KEYS[table])
            connection.execute(sa.update(table).where(*same).values({column.name: text}))
            days.append(row["batch_date"])
    return days


def merge_places(places: list[Place]) -> tuple[Place, ...]:
    """Places with their rows added up, in order."""
    rows: Counter[tuple[str, date | None]] = Counter()
    for place in places:
        rows[place.what, place.batch_date] += place.rows
    return tuple(Place(what, day, count) for (what, day), count in rows.items())


def erase_pages(site: Site, record_id: str) -> tuple[str, ...]:
    """Delete the reports and Data Docs that show the id in a cell of its own; returns their paths below the home."""
    shown = (f">{html.escape(record_id)}<", f'"{record_id}"', f">{record_id}<")
    pages = [*site.reports.glob("*.html"), *site.docs.rglob("*.html"), *site.docs.rglob("*.json")]
    found = [page for page in pages if any(text in page.read_text(encoding="utf-8") for text in shown)]
    for page in found:
        page.unlink()
    return tuple(str(page.relative_to(site.home)) for page in sorted(found))


def read_published(site: Site) -> set[date]:
    """The batch dates with a published night."""
    nights = sa.select(scoring_batches.c.batch_date).where(scoring_batches.c.detector == site.detector)
    with site.warehouse.begin() as connection:
        return set(connection.scalars(nights))


def find_fitted(site: Site, days: set[date]) -> tuple[Fitted, ...]:
    """The registered versions whose training dates cover one of the days."""
    found = []
    for version in site.registry.list_versions():
        dates = [version.tags.get(name) for name in ("first_date", "trained_through")]
        if None in dates or any(str(dates[0]) <= day.isoformat() <= str(dates[1]) for day in days):
            found.append(Fitted(version.version, version.aliases, _holds_rows(site, version)))
    return tuple(found)


def _holds_rows(site: Site, version: Version) -> bool:
    """Whether a version's bundle keeps encoded rows; one that cannot be looked at may."""
    with suppress(NightjarError):
        return Detector.load(site.registry.fetch_bundle(version)).score_params.kind == "neighbours"
    return True


def erase_artifacts(site: Site, record_id: str) -> int:
    """Delete Prefect's summaries of nights that show the record; returns how many."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter

    key = ArtifactFilter.model_validate({"key": {"any_": [f"night-{site.artifact_key}"]}})
    removed = 0
    with get_client(sync_client=True) as client:
        offset = 0
        while artifacts := client.read_artifacts(artifact_filter=key, limit=200, offset=offset):
            showing = [one for one in artifacts if f"| {record_id} |" in str(one.data)]
            for one in showing:
                client.delete_artifact(one.id)
            removed += len(showing)
            offset += len(artifacts) - len(showing)
    return removed
