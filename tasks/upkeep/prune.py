"""Remove what is no longer needed: orphaned files, interrupted downloads, and data past its retention.

A plan is made first and then carried out batch by batch, under the lock that a new attempt needs; a batch with a
running attempt is skipped. A manifest is removed before its files, so a kill leaves orphans for the next run. Never
removed: landing that is not yet scored or trained on, the clean rows and bundles of champion and challenger, published
flags, labels, reviews and registered versions.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from tasks.pages.nights import link_nights, list_nights
from tasks.rows.params import RetentionParams
from tasks.stores import registry
from tasks.stores.files import UNFINISHED
from tasks.stores.lake import MANIFEST, PRUNED, Lake, Manifest, read_batch_date
from tasks.stores.site import Site
from tasks.stores.tables import attempts, deliveries, scoring_batches, superseded_anomalies
from tasks.stores.warehouse import lock_key
from tasks.upkeep.inventory import Inventory, list_named, take_inventory

GRACE = timedelta(hours=24)  # a younger file may belong to a running attempt
ORPHANS = "orphans"
SUPERSEDED = "superseded scores"
ALIASES = (registry.CHAMPION, registry.CHALLENGER)


@dataclass(frozen=True)
class Removal:
    """Files of one kind to remove together, in order. `batch_date`: no attempt at it may be running."""

    what: str
    batch_date: date | None
    files: tuple[tuple[str, int], ...]  # path and bytes
    rows: int = 0
    inputs: str | None = None  # of scores: skip if a night was published from them in the meantime
    landed: str | None = None  # the hash of landing: skip if more has landed in the meantime


@dataclass(frozen=True)
class Removed:
    """What was removed, or would be, of one kind."""

    what: str
    files: int
    bytes: int
    rows: int


@dataclass(frozen=True)
class Kept:
    """What must be kept: published batches with the inputs of their scores, and cut-offs and versions in use."""

    scores: Mapping[date, str | None]  # of published batches
    landed: Mapping[date, str]  # of published batches: the hash of the landing that they have used
    trained_through: date | None
    cutoffs: frozenset[date]
    versions: frozenset[int]
    challenger: str | None = None  # the hash of its bundle

    def needs_landing(self, landing: Manifest) -> bool:
        """Whether a night or a training has not used this landing yet."""
        is_learnt = self.trained_through is not None and landing.batch_date <= self.trained_through
        return not is_learnt and self.landed.get(landing.batch_date) != landing.hash


def prune_detector(site: Site, retention: RetentionParams, now: datetime, dry_run: bool = False) -> list[Removed]:
    """Remove, or only count, what is no longer needed. Raises ServiceUnreachable."""
    lake, today = site.lake, now.astimezone(site.zone).date()
    kept = read_kept(site)
    inventory = take_inventory(lake, site.detector)
    in_lake = [
        *plan_orphans(lake, inventory, now),
        *plan_superseded(lake, inventory, now, kept),
        *plan_partitions(inventory, retention, today, kept),
    ]
    on_disk = [*plan_bundles(site, retention, now, kept), *plan_pages(site, retention, today)]
    once = {removal.files[0]: removal for removal in in_lake}  # scores may be both superseded and past retention
    done = [removal for removal in once.values() if dry_run or _remove_from_lake(site, removal, now)]
    for removal in on_disk if not dry_run else ():
        _remove_from_disk(removal)
    link_nights(site.reports, [Path(path) for removal in on_disk for path, _ in removal.files])
    rows = prune_tables(site, retention, now, dry_run)
    return count_removed([*done, *on_disk]) + [Removed(name, 0, 0, count) for name, count in rows.items() if count]


def read_kept(site: Site) -> Kept:
    """What must be kept, from the warehouse and the registry."""
    nights = sa.select(scoring_batches.c.batch_date, scoring_batches.c.scores, scoring_batches.c.input_hash)
    with site.warehouse.begin_reading() as connection:
        rows = connection.execute(nights.where(scoring_batches.c.detector == site.detector)).all()
    used = [v for v in site.registry.list_versions() if v.aliases]
    champion, challenger = (next((v for v in used if name in v.aliases), None) for name in ALIASES)
    return Kept(
        scores={row.batch_date: row.scores for row in rows},
        landed=find_used(site, {row.batch_date: row.input_hash for row in rows}),
        trained_through=champion.trained_through if champion else None,
        cutoffs=frozenset(v.read_date("cutoff") for v in used),
        versions=frozenset(v.version for v in used),
        challenger=challenger.tags.get(registry.HASH_TAG) if challenger else None,
    )


def find_used(site: Site, published: Mapping[date, str]) -> Mapping[date, str]:
    """By date, the hash of the landing that a published night has used, given its input hash."""
    if not site.reach:
        return published
    inputs, used = site.hash_inputs(published), {}
    for day, input_hash in published.items():
        landing = site.lake.find("landing", site.detector, day)
        if landing and inputs[day] in (input_hash, None):  # None: earlier landing was pruned, this night is over
            used[day] = landing.hash
    return used


def plan_orphans(lake: Lake, inventory: Inventory, now: datetime) -> Iterator[Removal]:
    """Files that no manifest names and that are older than any running attempt.

    Unfinished scores are removed together, receipts first, because a later attempt would trust a receipt.
    """
    groups: dict[str, list[str]] = {}
    for path in inventory.unnamed:
        folder = path.rpartition("/")[0]
        belongs = "/inputs=" in folder and not path.endswith(UNFINISHED)
        groups.setdefault(folder if belongs else path, []).append(path)
    for paths in groups.values():
        if not paths[0].endswith(f"/{PRUNED}") and all(lake.modified(path) < now - GRACE for path in paths):
            paths.sort(key=lambda path: not path.endswith(".json"))
            files = tuple((path, inventory.unnamed[path]) for path in paths)
            yield Removal(f"{ORPHANS} in {paths[0].split('/')[0]}", read_batch_date(paths[0]), files)


def plan_superseded(lake: Lake, inventory: Inventory, now: datetime, kept: Kept) -> Iterator[Removal]:
    """Scores of no published night and not of the challenger, older than any running attempt."""
    for path, manifest in inventory.manifests.items():
        is_published = kept.scores.get(manifest.batch_date) == manifest.inputs
        is_shadow = kept.challenger is not None and manifest.facts.get("bundle") == kept.challenger
        if manifest.zone == "scores" and not (is_published or is_shadow) and lake.modified(path) < now - GRACE:
            yield Removal(SUPERSEDED, manifest.batch_date, order_files(path, inventory), manifest.rows, manifest.inputs)


def order_files(path: str, inventory: Inventory) -> tuple[tuple[str, int], ...]:
    """The files of a manifest with their sizes in bytes: the manifest, files that only JSON names, the rest."""
    names = set(list_named(path, inventory.manifests[path], inventory.named)) & inventory.named.keys()
    ordered = sorted(names, key=lambda name: (name != path, not name.endswith(".json"), name))
    return tuple((name, inventory.named[name]) for name in ordered)


def plan_partitions(inventory: Inventory, retention: RetentionParams, today: date, kept: Kept) -> Iterator[Removal]:
    """Partitions past their zone's retention, the manifest of each first."""
    for path, manifest in inventory.manifests.items():
        zone, day = manifest.zone, manifest.batch_date
        is_needed = (zone == "landing" and kept.needs_landing(manifest)) or (zone == "clean" and day in kept.cutoffs)
        if is_needed or zone not in retention.find_past(day, today):
            continue
        landed = manifest.hash if zone == "landing" else None
        yield Removal(zone, day, order_files(path, inventory), manifest.rows, landed=landed)


def plan_bundles(site: Site, retention: RetentionParams, now: datetime, kept: Kept) -> Iterator[Removal]:
    """Interrupted downloads, and old local bundles of versions without an alias."""
    folders = [path for pattern in ("downloading-*", "version-*") for path in site.registry.bundles.glob(pattern)]
    folders += [path for name in ("fitted", "calibrated") for path in site.registry.bundles.glob(f"{name}/*")]
    for folder in sorted(folders):
        is_used = folder.name.startswith("version-") and int(folder.name.split("-")[1]) in kept.versions
        is_cut_short = folder.name.startswith("downloading-")
        limit = GRACE if is_cut_short else _days(retention.bundles_days)
        if not is_used and limit is not None and _modified(folder) < now - limit:
            yield Removal("bundles", None, ((str(folder), _size(folder)),))


def plan_pages(site: Site, retention: RetentionParams, today: date) -> Iterator[Removal]:
    """Reports and validation pages of batch dates past retention, and the Data Docs of earlier versions."""
    limit = _days(retention.reports_days)
    if limit is None:
        return
    pages = [page for folder in (site.reports, site.validations) for page in list_nights(folder)]
    found = {page: date.fromisoformat(page.stem) for page in pages}
    if (data_docs := site.validations / "gx").exists():
        found[data_docs] = _modified(data_docs).date()
    for path, day in found.items():
        if day < today - limit:
            yield Removal("pages", None, ((str(path), _size(path)),))


def _days(days: int | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove_from_lake(site: Site, removal: Removal, now: datetime) -> bool:
    """Remove the files, unless an attempt at their batch is running; returns whether they were removed."""
    lake = site.lake
    with hold_batch(site, removal.batch_date, now) as held:
        if not held.is_idle or (removal.inputs and removal.inputs == held.scores):
            return False
        path, _ = removal.files[0]
        if _is_wanted_now(lake, removal, path):
            return False
        if removal.landed:
            lake.remember_landing(path)
        for path, _ in removal.files:
            lake.remove(path)
    return True


def _is_wanted_now(lake: Lake, removal: Removal, path: str) -> bool:
    """Whether more has landed, or the scores have been finished, since the plan was made."""
    if removal.landed:
        return lake.read_manifest(path).hash != removal.landed
    folder, _, name = path.rpartition("/")
    is_orphan = removal.what.startswith(ORPHANS) and "/inputs=" in folder and not name.endswith(UNFINISHED)
    return is_orphan and lake.find_file(f"{folder}/{MANIFEST}") is not None


@dataclass(frozen=True)
class Held:
    """A locked batch: whether no attempt at it is running, and the inputs of its published scores."""

    is_idle: bool
    scores: str | None


@contextmanager
def hold_batch(site: Site, batch_date: date | None, now: datetime) -> Iterator[Held]:
    """Block new attempts at a batch. An attempt that has been running for more than a day is dead."""
    if batch_date is None:
        yield Held(True, None)
        return
    live = (attempts.c.status == "running", attempts.c.started_at > now - GRACE)
    with site.warehouse.begin() as connection:
        lock_key(connection, site.detector, batch_date.isoformat())
        lock_key(connection, site.detector, "landing")  # an ingest replaces the same manifests
        running, scores = (
            sa.select(column).where(table.c.detector == site.detector, table.c.batch_date == batch_date)
            for column, table in ((attempts.c.attempt, attempts), (scoring_batches.c.scores, scoring_batches))
        )
        is_idle = connection.scalar(running.where(*live).limit(1)) is None
        yield Held(is_idle, connection.scalar(scores))


def _remove_from_disk(removal: Removal) -> None:
    for path, _ in removal.files:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)


def prune_tables(site: Site, retention: RetentionParams, now: datetime, dry_run: bool) -> dict[str, int]:
    """Delete, or only count, old rows of superseded_anomalies, attempts and deliveries; returns the number by table.

    A batch's published attempt is kept, and its newest one, from which the next attempt number follows; of deliveries,
    those that are still to be sent.
    """
    old: dict[sa.Table, list[sa.ColumnElement[bool]]] = {}
    if (limit := _days(retention.superseded_days)) is not None:
        old[superseded_anomalies] = [superseded_anomalies.c.superseded_at < now - limit]
    if (limit := _days(retention.attempts_days)) is not None:
        later, published = attempts.alias(), scoring_batches.c
        same = (later.c.detector == attempts.c.detector, later.c.batch_date == attempts.c.batch_date)
        newer = sa.select(later.c.attempt).where(*same, later.c.attempt > attempts.c.attempt).exists()
        is_published = sa.select(published.attempt).where(
            published.detector == attempts.c.detector,
            published.batch_date == attempts.c.batch_date,
            published.attempt == attempts.c.attempt,
        )
        old[attempts] = [attempts.c.started_at < now - limit, newer, ~is_published.exists()]
        old[deliveries] = [deliveries.c.raised_at < now - limit, deliveries.c.due_at.is_(None)]
    counts = {}
    with site.warehouse.begin_reading() if dry_run else site.warehouse.begin() as connection:
        for table, conditions in old.items():
            rows = (table.c.detector == site.detector, *conditions)
            counts[table.name] = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*rows)) or 0
            if not dry_run:
                connection.execute(sa.delete(table).where(*rows))
    return counts


def count_removed(removals: Iterable[Removal]) -> list[Removed]:
    """Sum removals by kind, in order of first appearance."""
    found: dict[str, Removed] = {}
    for removal in removals:
        sofar = found.get(removal.what, Removed(removal.what, 0, 0, 0))
        found[removal.what] = Removed(
            removal.what,
            sofar.files + len(removal.files),
            sofar.bytes + sum(size for _, size in removal.files),
            sofar.rows + removal.rows,
        )
    return list(found.values())
