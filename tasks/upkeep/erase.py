"""Erase one record from every zone of the lake, every table and the pages that show it, and report where it was.

Parts are immutable: batch by batch, a new part is written, the manifest replaced and the old file removed, while new
attempts at the batch wait. If interrupted, a second run finds the rest, since it reads every file, named or not. The
other rows of a batch are kept, but its input has changed, so its night is stale until it is scored again.
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
from tasks.errors import NightjarError, RecordMissing, ServiceUnreachable, SourceInvalid
from tasks.pages.nights import delete_nights, list_nights
from tasks.rows.escaping import escape_markdown
from tasks.rows.history import HISTORY, PLAIN
from tasks.stores.lake import Lake, Manifest, Part, Zone, read_batch_date
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import (
    annotations,
    approvals,
    attempts,
    case_events,
    case_flags,
    cases,
    deliveries,
    flagged_anomalies,
    group_scores,
    labels,
    reviews,
    samples,
    saved_filters,
    scoring_batches,
    superseded_anomalies,
    suppressions,
)
from tasks.stores.warehouse import lock_cases
from tasks.upkeep.inventory import Inventory, list_results, take_inventory
from tasks.upkeep.prune import GRACE, hold_batch

ERASED = "(erased)"
NAMED_BY = {
    flagged_anomalies: flagged_anomalies.c.record_id,
    superseded_anomalies: superseded_anomalies.c.record_id,
    labels: labels.c.record_id,
    reviews: reviews.c.record_id,
    group_scores: group_scores.c.group,
    case_flags: case_flags.c.record_id,
    cases: cases.c.record_id,
    samples: samples.c.record_id,
}
TOLD_IN = (
    attempts.c.cause,
    attempts.c.parts,
    reviews.c.note,
    case_events.c.note,
    deliveries.c.title,
    deliveries.c.body,
    suppressions.c.reason,
    approvals.c.note,
    annotations.c.note,
    saved_filters.c.query,
)
KEYS = {
    deliveries: (deliveries.c.delivery_id,),
    suppressions: (suppressions.c.detector, suppressions.c.suppression_id),
    case_events: (case_events.c.detector, case_events.c.case_id, case_events.c.number),
    approvals: (approvals.c.detector, approvals.c.approval_id),
    annotations: (annotations.c.detector, annotations.c.batch_date, annotations.c.author, annotations.c.written_at),
    saved_filters: (saved_filters.c.detector, saved_filters.c.person, saved_filters.c.name),
    attempts: (attempts.c.detector, attempts.c.batch_date, attempts.c.attempt),
    reviews: (reviews.c.detector, reviews.c.batch_date, reviews.c.record_id, reviews.c.reviewer, reviews.c.reviewed_at),
}


@dataclass(frozen=True)
class Place:
    """Where a record was: a zone or table, the batch date (in `clean` the cut-off) and the number of rows."""

    what: str
    batch_date: date | None
    rows: int


@dataclass(frozen=True)
class Fitted:
    """A version that may be trained on the record.

    holds_rows: its bundle has encoded rows, maybe this one; or the hash and the scales of its entity.
    """

    version: int
    aliases: tuple[str, ...]
    holds_rows: bool


@dataclass(frozen=True)
class Erased:
    """The result. `stale`: nights to score again; `left`: files that an attempt may still be writing."""

    record_id: str
    places: tuple[Place, ...]
    pages: tuple[str, ...]
    stale: tuple[date, ...]
    fitted: tuple[Fitted, ...]
    left: tuple[str, ...]
    summaries: int  # removed summaries of nights in Prefect


def erase_record(site: Site, record_id: str, now: datetime, summaries: int = 0) -> Erased:
    """Remove a record from everything that Nightjar stores for a detector. Raises RecordMissing if it is not found.

    summaries: number of Prefect's summaries that were removed before.
    """
    published = sorted(read_published(site))
    inputs = site.hash_inputs(published)
    in_zones, busy = erase_named(site, take_inventory(site.lake, site.detector), record_id, now)
    in_files, left = erase_unnamed(site, take_inventory(site.lake, site.detector), record_id, now)
    in_tables = erase_rows(site, record_id)
    try:
        site.warehouse.rewrite_file()
    except ServiceUnreachable as error:
        left.append(f"free pages of {site.warehouse.place} ({error.parts.get('got', '')})")
    places = merge_places([*in_zones, *in_files, *in_tables])
    pages = erase_pages(site, record_id)
    if not (any(place.rows for place in places) or pages or busy or left or summaries):
        raise RecordMissing(
            f"{site.detector} does not have this record.",
            where="every zone, table and page",
            got=f"record_id {record_id!r}",
            todo="check the id and the name of the detector; nothing was changed",
        )
    days = {place.batch_date for place in places if place.batch_date and place.what != "clean"}
    left_over = site.hash_inputs(published)
    return Erased(
        record_id=record_id,
        places=places,
        pages=pages,
        stale=tuple(day for day in published if inputs[day] != left_over[day]),
        fitted=find_fitted(site, days),
        left=tuple(sorted({*busy, *left})),
        summaries=summaries,
    )


def erase_named(site: Site, inventory: Inventory, record_id: str, now: datetime) -> tuple[list[Place], list[str]]:
    """Rewrite the partitions with the record, landing first; returns where it was and where an attempt is running."""
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
    """The record's rows in the parts of a manifest; 1 if only its flags or groups name the record."""
    rows = sum(count_record(lake, part, record_id) for part in manifest.parts)
    results = list_results(manifest, inventory.named)
    return rows or int(any(names_record(lake.read_frame(name), record_id).any() for name in results))


def count_record(lake: Lake, part: Part, record_id: str) -> int:
    """A record's rows in a Parquet file with a column of record ids or groups. Raises SourceInvalid."""
    columns = lake.columns(part)
    name = next((name for name in ("record_id", "group") if name in columns), None)
    slices = lake.slices(part, [name]) if name else ()
    return sum(pc.sum(pc.equal(table[name], record_id)).as_py() or 0 for table in slices)


def names_record(frame: pd.DataFrame, record_id: str) -> pd.Series:
    """The mask (N,) of a small table's rows with the record's id, as record or as group."""
    return frame["record_id" if "record_id" in frame else "group"] == record_id


def rewrite_partition(lake: Lake, manifest: Manifest, inventory: Inventory, record_id: str) -> None:
    """Replace parts that have the record: write the new file, then the manifest, then remove the old file."""
    zone = cast(Zone, manifest.zone)
    partition = lake.write(zone, manifest.detector, manifest.batch_date, manifest.inputs)
    old = [part for part in manifest.parts if count_record(lake, part, record_id)]
    new = {part.path: partition.rewrite(part, without(lake, part, record_id)) for part in old}
    if old:
        hashes = {part.sha256: new[part.path].sha256 for part in old}
        facts = {name: fact for name, fact in manifest.facts.items() if name not in (HISTORY, PLAIN)}
        partition.commit(facts, keep=tuple(rename(new.get(p.path, p), hashes) for p in manifest.parts))
    for name in list_results(manifest, inventory.named):
        frame = lake.read_frame(name)
        if (mask := names_record(frame, record_id)).any():
            lake.replace_frame(name, frame[~mask])
    for part in old:
        lake.remove(part.path)


def rename(part: Part, hashes: Mapping[str, str]) -> Part:
    """Update the hashes of the parts that a repair replaces."""
    return replace(part, replaces=tuple(hashes.get(sha256, sha256) for sha256 in part.replaces))


def without(lake: Lake, part: Part, record_id: str) -> Iterator[pa.Table]:
    """A part's rows except the record's, slice by slice; rows without an id are kept."""
    for table in lake.slices(part):
        yield table.filter(pc.fill_null(pc.not_equal(table["record_id"], record_id), True))


def erase_unnamed(site: Site, inventory: Inventory, record_id: str, now: datetime) -> tuple[list[Place], list[str]]:
    """Remove invisible files that have the record or cannot be read; returns those that an attempt may be writing.

    Files of an overtaken attempt have no owner, nor have scores while no night is running.
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
        is_landing = path.startswith("landing/")  # attempts in landing do not overtake each other
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
    """The record's rows in a file that no manifest names; None if unreadable, such as a half-written file."""
    try:
        return count_record(lake, Part(path, 0, ""), record_id)
    except SourceInvalid:
        return None


def _remove_with_receipts(lake: Lake, path: str, inventory: Inventory) -> None:
    """Remove the receipts of unfinished scores first: a later attempt would trust them."""
    folder = path.rpartition("/")[0]
    if "/inputs=" in path and path in inventory.unnamed:
        for name in inventory.unnamed:
            if name.startswith(f"{folder}/") and name.endswith(".json"):
                lake.remove(name)
    lake.remove(path)


def erase_rows(site: Site, record_id: str) -> list[Place]:
    """Delete the record's rows from every table, and its id from free text, in one transaction.

    A case that held nothing else goes with its history: it names the entity.
    """
    counts: Counter[tuple[str, date | None]] = Counter()
    with site.warehouse.begin() as connection:
        for table, column in NAMED_BY.items():
            if table is case_flags:
                lock_cases(connection, site.detector)  # after the flags, as publishing does
                counts.update(erase_cases(connection, site.detector, record_id))
            found = (table.c.detector == site.detector, column == record_id)
            rows = connection.execute(sa.select(table).where(*found)).mappings()
            counts.update((table.name, row.get("batch_date")) for row in rows)
            connection.execute(sa.delete(table).where(*found))
        counts["saved_filters", None] += erase_filters(connection, site.detector, record_id)
        for column in TOLD_IN:
            for batch_date in erase_mentions(connection, column, site.detector, record_id):
                counts[f"{column.table.name}.{column.name}", batch_date] += 1
    return [Place(what, day, rows) for (what, day), rows in (+counts).items()]


def erase_filters(connection: sa.Connection, detector: str, record_id: str) -> int:
    """Delete the filters that are named after the record; returns their number."""
    c, word = saved_filters.c, _as_word(record_id)
    named = sa.select(c.person, c.name).where(c.detector == detector, c.name.contains(record_id, autoescape=True))
    found = [row for row in connection.execute(named).all() if word.search(row.name)]
    for row in found:
        same = (c.detector == detector, c.person == row.person, c.name == row.name)
        connection.execute(sa.delete(saved_filters).where(*same))
    return len(found)


def erase_cases(connection: sa.Connection, detector: str, record_id: str) -> Counter[tuple[str, date | None]]:
    """Delete the cases that hold nothing but flags of this record, with their history; returns the numbers of rows.

    Others forget that they were opened for it.
    """
    held = find_cases_of(connection, detector, record_id)
    counts: Counter[tuple[str, date | None]] = Counter()
    for table in (cases, case_events):
        of_case = (table.c.detector == detector, table.c.case_id.in_(held))
        counts[table.name, None] = len(connection.execute(sa.select(table).where(*of_case)).all())
        connection.execute(sa.delete(table).where(*of_case))
    opened_for = (cases.c.detector == detector, cases.c.record_id == record_id)
    connection.execute(sa.update(cases).where(*opened_for).values(record_id=ERASED))
    return +counts


def find_cases_of(connection: sa.Connection, detector: str, record_id: str) -> set[int]:
    """The cases that are about nothing but this record, and those merged into them."""
    flags = sa.select(case_flags.c.case_id).where(case_flags.c.detector == detector)
    opened = sa.select(cases.c.case_id).where(cases.c.detector == detector, cases.c.record_id == record_id)
    found = {*connection.scalars(flags.where(case_flags.c.record_id == record_id)), *connection.scalars(opened)}
    found -= set(connection.scalars(flags.where(case_flags.c.record_id != record_id)))
    merged = sa.select(cases.c.case_id, cases.c.merged_into).where(
        cases.c.detector == detector, cases.c.merged_into.is_not(None)
    )
    into = {row.case_id: row.merged_into for row in connection.execute(merged)}
    while more := {case for case, other in into.items() if other in found} - found:
        found |= more
    return found


def erase_mentions(
    connection: sa.Connection, column: sa.Column[Any], detector: str, record_id: str
) -> list[date | None]:
    """Replace the id in a column of free text, as a whole word only; returns the rows' batch dates."""
    table: Any = column.table
    is_json = column.name in ("parts", "query")  # with escaped quotes and backslashes
    written = json.dumps(record_id, ensure_ascii=False)[1:-1] if is_json else record_id
    word = _as_word(written)
    mentioned = sa.select(*KEYS[table], column).where(
        table.c.detector == detector, column.contains(written, autoescape=True)
    )
    days = []
    for row in connection.execute(mentioned).mappings().all():
        if (text := word.sub(ERASED, row[column.name])) != row[column.name]:
            same = (key == row[key.name] for key in KEYS[table])
            connection.execute(sa.update(table).where(*same).values({column.name: text}))
            days.append(row.get("batch_date"))
    return days


def _as_word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(text)}(?![\w-])")


def merge_places(places: list[Place]) -> tuple[Place, ...]:
    """Merge equal places and sum their rows, in order."""
    rows: Counter[tuple[str, date | None]] = Counter()
    for place in places:
        rows[place.what, place.batch_date] += place.rows
    return tuple(Place(what, day, count) for (what, day), count in rows.items())


def erase_pages(site: Site, record_id: str) -> tuple[str, ...]:
    """Delete the pages of nights and batches that show the id in a table cell; returns their paths below the home."""
    shown = (f">{html.escape(record_id)}<", f'"{record_id}"', f">{record_id}<")
    pages = [*list_nights(site.reports), *site.validations.rglob("*.html"), *site.validations.rglob("*.json")]
    found = [page for page in pages if any(text in page.read_text(encoding="utf-8") for text in shown)]
    delete_nights(site.reports, found)
    for page in found:
        page.unlink(missing_ok=True)
    return tuple(str(page.relative_to(site.home)) for page in sorted(found))


def read_published(site: Site) -> set[date]:
    """The batch dates with a published night."""
    nights = sa.select(scoring_batches.c.batch_date).where(scoring_batches.c.detector == site.detector)
    with site.warehouse.begin_reading() as connection:
        return set(connection.scalars(nights))


def find_fitted(site: Site, days: set[date]) -> tuple[Fitted, ...]:
    """The registered versions whose training dates include one of the days."""
    found = []
    for version in site.registry.list_versions():
        dates = [version.tags.get(name) for name in ("first_date", "trained_through")]
        if None in dates or any(str(dates[0]) <= day.isoformat() <= str(dates[1]) for day in days):
            found.append(Fitted(version.version, version.aliases, _holds_rows(site, version)))
    return tuple(found)


def _holds_rows(site: Site, version: Version) -> bool:
    """Whether a version's bundle has encoded rows or scales of entities; True if it cannot be read."""
    with suppress(NightjarError):
        detector = Detector.load(site.registry.fetch_bundle(version))
        return detector.score_params.kind == "neighbours" or detector.encoder.scales is not None
    return True


def erase_artifacts(site: Site, record_id: str) -> int:
    """Delete Prefect's summaries of nights that show the record; returns their number."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter

    key = ArtifactFilter.model_validate({"key": {"any_": [f"night-{site.artifact_key}"]}})
    # As summaries write it now, and as they did before.
    written = {escape_markdown(record_id), record_id.replace("|", "\\|").replace("<", "&lt;")}
    removed = 0
    with get_client(sync_client=True) as client:
        offset = 0
        while artifacts := client.read_artifacts(artifact_filter=key, limit=200, offset=offset):
            showing = [one for one in artifacts if any(f"| {text} |" in str(one.data) for text in written)]
            for one in showing:
                client.delete_artifact(one.id)
            removed += len(showing)
            offset += len(artifacts) - len(showing)
    return removed
