"""Land a source's rows in one shape for all sources: record_id, event_time (UTC), then the source's own columns.

CSV values stay text until validation, so a bad value is quarantined as it arrived. Landing is append-only: each arrival
adds a part with its arrival time; a changed file that arrives again replaces its older parts on all their dates. An
arrival is identified by name and version, so a second ingest does nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from prefect import get_run_logger, task
from prefect.client.schemas.objects import State

from tasks.errors import SourceInvalid
from tasks.policy import IO, progress_of
from tasks.rows.contract import TYPES
from tasks.rows.labels import interpret_labels
from tasks.rows.params import EventTime, IngestParams, LabelColumn
from tasks.rows.sampling import draw_order
from tasks.rows.schema import batch_dates_of, cast_column, read_times
from tasks.sources import payments
from tasks.sources.arrival import UNPARSED, Arrival
from tasks.sources.kinds import Window, list_arrivals
from tasks.stores.lake import Lake, Part, PartitionWriter, PartWriter, hash_parts
from tasks.stores.site import Site
from tasks.stores.tables import MOST_KEY_BYTES

SUFFIXES = re.compile(r"(\.(csv|parquet|pq|gz|bz2|xz|zst|zip))+$")
SHOWN_BAD = 20  # files named in one error
STRAY_SHARE, STRAY_DISTANCE = 0.01, timedelta(days=31)
EPOCH_YEAR = 1970  # counting from another start, the dates are not those of a calendar
OPEN_FILES = 500  # of one arrival while it lands: systems allow a process about a thousand
HELD_BYTES = 1 << 28
DAY_US = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Ingested:
    """The result of one ingest: changed batch dates, added rows and labels, and what was odd about the arrivals."""

    dates: tuple[date, ...]
    arrivals: int
    rows: int
    labels: int
    notes: tuple[str, ...] = ()


def check_names(table: pa.Table, arrival: str) -> None:
    """Raise SourceInvalid if two columns have the same name, ignoring case as DuckDB does."""
    if len({name.casefold() for name in table.column_names}) < table.num_columns:
        raise SourceInvalid(
            "The source has two columns with the same name.",
            where=arrival,
            got=f"columns {', '.join(table.column_names)}",
            expected="column names that differ in more than case",
            todo="rename one of them",
        )


def add_identity(table: pa.Table, params: IngestParams, name: str, first_row: int, zone: ZoneInfo) -> pa.Table:
    """Add record_id and event_time. A row without a readable event time gets null and is quarantined later.

    `zone` is the detector's. Raises SourceInvalid if a column is missing, or the ids are of a type without a text form.
    """
    if params.file_column:
        table = table.append_column(params.file_column, pa.array([name] * table.num_rows, pa.string()))
    check_names(table, name)
    needed = [name for name in (params.event_time.column, params.record_id) if name]
    if missing := [column for column in needed if column not in table.column_names]:
        raise SourceInvalid(
            f"The source lacks {', '.join(missing)}.",
            where=name,
            got=f"columns {', '.join(table.column_names)}",
            expected=f"columns {', '.join(needed)}",
            todo="correct the file, or the ingest section of params.yaml",
        )
    if params.record_id:
        ids = cast_column(table[params.record_id], pa.string())
        check_ids(table[params.record_id], ids, f"{name}, column {params.record_id}")
        # PostgreSQL cannot store NUL; a row without an id is quarantined.
        ids = pc.if_else(pc.match_substring(ids, "\0"), pa.scalar(None, pa.string()), ids)
        table = table.drop_columns([params.record_id])
    else:
        stem = SUFFIXES.sub("", name)
        start, form = (first_row, "09d") if params.first_row is None else (first_row + params.first_row, "d")
        ids = pa.array([f"{stem}:{row:{form}}" for row in range(start, start + table.num_rows)])
    if params.event_time.days:
        times = deal_times(ids.to_pylist(), params.event_time, first_row)
    else:
        times = read_event_times(table, params.event_time, first_row, zone)
    replaced = {"record_id", "event_time", None if params.event_time.seconds_since else params.event_time.column}
    keep = [field for field in table.schema if field.name not in replaced]  # keeps metadata such as image shapes
    fields = [pa.field("record_id", pa.string()), pa.field("event_time", times.type), *keep]
    return pa.table([ids, times, *(table[field.name] for field in keep)], schema=pa.schema(fields))


def identify_unparsed(texts: pa.ChunkedArray, name: str, schema: pa.Schema) -> pa.Table:
    """Rows that could not be split into values: file and line are the id, all else is null: they are quarantined."""
    ids = pc.binary_join_element_wise(name, texts, ", ")
    others = [pa.nulls(len(ids), field.type) for field in schema if field.name != "record_id"]
    return pa.table([ids, *others], schema=schema)


def check_ids(given: pa.ChunkedArray, ids: pa.ChunkedArray, where: str) -> None:
    """Raise SourceInvalid if no id has a text form, as lists and most bytes have none."""
    if ids.null_count == len(ids) > given.null_count:
        raise SourceInvalid(
            "The ids have no text form.",
            where=where,
            got=f"type {given.type}",
            expected="texts, whole numbers or UUIDs",
            todo="write the ids as text in the source, or set another ingest.record_id",
        )


def deal_times(ids: Sequence[str | None], rule: EventTime, first_row: int) -> pa.Array:
    """An invented time (N,) in UTC for each row of a table without times: a day drawn by its id, in file order there.

    The draw depends on nothing else, so that a row keeps its day if others are added or the file is sorted.
    """
    if not (rule.days and rule.first_date and rule.seed is not None):
        raise ValueError("the rule has no days")
    day = np.floor(draw_order([str(name) for name in ids], rule.seed) * rule.days).astype(np.int64)
    midnight = int(pd.Timestamp(rule.first_date, tz="UTC").timestamp()) * 1_000_000
    place = np.arange(first_row, first_row + len(ids))
    return pa.array(midnight + day * DAY_US + place, pa.timestamp("us", tz="UTC"))


def read_event_times(table: pa.Table, rule: EventTime, first_row: int, zone: ZoneInfo) -> pa.Array:
    """The event time of each row (N,) in UTC; null if unreadable. `first_row` counts from 0 in the arrival.

    `zone` is the detector's: that of times without an offset, if the rule says that they are local.
    """
    if rule.rows_per_day and rule.first_date:
        place = np.arange(first_row, first_row + table.num_rows)
        day, row = np.divmod(place, rule.rows_per_day)
        midnight = int(pd.Timestamp(rule.first_date, tz="UTC").timestamp()) * 1_000_000
        return pa.array(midnight + day * DAY_US + row * DAY_US // rule.rows_per_day, pa.timestamp("us", tz="UTC"))
    column = table[rule.column]
    if rule.seconds_since:
        seconds = cast_column(column, pa.float64()).to_pandas()
        start = pd.Timestamp(rule.seconds_since).tz_convert("UTC")
        times = (start + pd.to_timedelta(seconds, unit="s", errors="coerce")).astype("datetime64[us, UTC]")
        column = pa.chunked_array([pa.array(times, TYPES["timestamp"])])
    return read_times(column, rule.format, zone if rule.local else None).combine_chunks()


def land(
    site: Site,
    arrival: Arrival,
    params: IngestParams,
    elsewhere: Iterable[date] = (),
    before_commit: Callable[[list[Part]], None] = lambda parts: None,
) -> dict[date, int]:
    """Write one arrival into the landing partitions of its dates; returns the landed rows per date.

    A damaged file leaves nothing visible: manifests are committed after its last row, and after `before_commit` has
    received its parts. Each part records on how many dates its arrival landed, so that an arrival that a crash left
    incomplete is recognised and lands again. `elsewhere`: other dates with older versions of it.
    """
    partitions = write_parts(site, arrival, params)
    if not partitions:
        return {}
    before_commit([part for partition in partitions.values() for part in partition.parts])
    commit_parts(site, arrival.name, partitions, elsewhere, keep_unchanged=not arrival.is_whole)
    return {day: sum(part.rows for part in partition.parts) for day, partition in partitions.items()}


def write_parts(site: Site, arrival: Arrival, params: IngestParams) -> dict[date, PartitionWriter]:
    """Write an arrival's rows by batch date; nothing is visible yet. Raises SourceInvalid if there are no rows.

    Only an arrival of the latest days (`first`) may have none.

    Rows without a readable event time, or with one far from the others, are added to the date that has the most rows,
    where validation quarantines them. At most OPEN_FILES dates are written at once; rows of others wait in memory, and
    each HELD_BYTES of them become parts.
    """
    partitions: dict[date, PartitionWriter] = {}
    writers: dict[date, PartWriter] = {}
    files: dict[date, ExitStack] = {}
    held: dict[date, list[pa.Table]] = {}
    counts: Counter[date] = Counter()
    rows, undated, identified, flushed = 0, [], pa.table({}), 0
    origin = {"source": arrival.name, "version": arrival.version, "arrived_at": arrival.arrived_at.isoformat()}
    origin["content"] = arrival.content()
    origin["rule"] = params.hash_landing(site.time_zone)
    with ExitStack() as stack:

        def append(day: date, table: pa.Table) -> None:
            counts[day] += table.num_rows
            if day not in partitions:
                partitions[day] = site.lake.write("landing", site.detector, day)
            if day not in writers and len(writers) < OPEN_FILES:
                files[day] = stack.enter_context(ExitStack())
                writers[day] = files[day].enter_context(partitions[day].part("part-0", **origin))
            if day in writers:
                writers[day].append(table)
            else:
                held.setdefault(day, []).append(table)

        def flush() -> None:
            for day, tables in held.items():
                with partitions[day].part(f"part-{flushed}", **origin) as writer:
                    for table in tables:
                        writer.append(table)
            held.clear()

        for table in arrival.read():
            if table.column_names == [UNPARSED]:  # after at least one other
                undated.append(identify_unparsed(table[UNPARSED], arrival.name, identified.schema))
                rows += table.num_rows
                continue
            identified = add_identity(table, params, arrival.name, rows, site.zone)
            rows += table.num_rows
            dates = batch_dates_of(identified["event_time"], site.zone)
            if arrival.first > date.min:
                is_asked = pc.fill_null(pc.greater_equal(dates, arrival.first), True)
                identified, dates = identified.filter(is_asked), dates.filter(is_asked)
            for day in pc.unique(dates).to_pylist():
                chosen = identified.filter(pc.is_null(dates) if day is None else pc.equal(dates, day))
                undated.append(chosen) if day is None else append(day, chosen)
            if sum(piece.nbytes for pieces in held.values() for piece in pieces) > HELD_BYTES:
                flush()
                flushed += 1
        if arrival.first > date.min and not (undated or writers):
            return {}  # a query that was asked for the latest days, on which there was nothing
        if not rows or (undated and not writers):
            got = "no rows" if not rows else f"{rows} rows, none with a readable {params.event_time.column}"
            raise SourceInvalid(
                "The source has nothing to land.",
                where=arrival.name,
                got=got,
                expected="at least one row with an event time such as 2026-03-01T12:00:00Z",
                todo="deliver the file again, or correct ingest.event_time in params.yaml",
            )
        strays = find_strays(counts, params.event_time)
        home = max(sorted(counts.keys() - strays), key=counts.__getitem__)
        for table in undated:
            append(home, table)
        for day in strays:
            if day in files:
                files[day].close()
            for part in partitions[day].parts:
                for table in site.lake.slices(part):
                    append(home, table)
                site.lake.remove(part.path)
            for table in held.pop(day, []):
                append(home, table)
            del partitions[day]
        flush()
    for partition in partitions.values():
        partition.parts = [replace(part, dates=len(partitions)) for part in partition.parts]
    return partitions


def find_strays(rows: Mapping[date, int], rule: EventTime) -> list[date]:
    """The dates that cannot be right: after tomorrow, or far from nearly all rows of the arrival (rows per date).

    Far means further away than the span of the rows between the outermost hundredths, and than a month. Placeholders
    such as 1900-01-01 and 2099-12-31 are far. If all dates are after tomorrow, none is a stray. Dates that the rule
    invents are right.
    """
    if rule.column is None:
        return []
    is_invented = rule.seconds_since is not None and rule.seconds_since.year != EPOCH_YEAR
    latest = date.max if is_invented else datetime.now(UTC).date() + timedelta(days=1)
    days = sorted(rows)
    known = [day for day in days if day <= latest]
    if not known:
        return []
    total = sum(rows[day] for day in known)
    outer = max(STRAY_SHARE * total, 1)  # rows at each end that may be strays
    below = np.cumsum([rows[day] for day in known])
    first = known[int(np.searchsorted(below, min(outer, (total - 1) / 2), side="right"))]
    last = known[int(np.searchsorted(below, max(total - outer, total / 2)))]
    far = max(last - first, STRAY_DISTANCE)
    return [day for day in days if day > latest or day < first - far or day > last + far]


def commit_parts(
    site: Site,
    source: str,
    partitions: Mapping[date, PartitionWriter],
    elsewhere: Iterable[date] = (),
    keep_unchanged: bool = False,
) -> None:
    """Make the parts of a source visible and remove its older ones, also from the dates `elsewhere`.

    keep_unchanged: a date whose rows have already landed keeps its parts, and their new copies go.

    A date without remaining rows stays as an empty batch, so that its published night shows as stale. Manifests are
    read and replaced under one lock in the warehouse, so that two processes cannot undo each other's landing.
    """
    lake = site.lake
    left = {day: lake.write("landing", site.detector, day) for day in sorted(set(elsewhere) - partitions.keys())}
    with site.warehouse.lock(site.detector, "landing"):
        for day, partition in {**partitions, **left}.items():  # new parts first: a rerun repairs a crash in between
            old = lake.find("landing", site.detector, day)
            if old is None and day in left:
                continue  # pruned in the meantime
            there = old.parts if old else ()
            kept = tuple(part for part in there if part.source != source)
            older = tuple(part for part in there if part.source == source)
            if keep_unchanged and is_unchanged(lake, older, tuple(partition.parts)):
                for part in partition.parts:
                    lake.remove(part.path)
                continue
            partition.commit({}, keep=drop_orphans(kept, partition.parts))


def is_unchanged(lake: Lake, old: tuple[Part, ...], new: tuple[Part, ...]) -> bool:
    """Whether a date's old parts hold the rows of the new ones, by the same rule; a database may change their order."""
    if {part.rule for part in old} != {part.rule for part in new}:
        return False
    return hash_parts(old) == hash_parts(new) or lake.have_same_rows(old, new)


def drop_orphans(kept: Sequence[Part], new: Sequence[Part]) -> tuple[Part, ...]:
    """The kept parts without repairs of rows that no longer exist, because a corrected file replaced them."""
    present = {part.sha256 for part in (*kept, *new) if not part.replaces}
    for part in kept:  # in landing order, since a repair may itself have been repaired
        if present.intersection(part.replaces):
            present.add(part.sha256)
    return tuple(part for part in kept if part.sha256 in present)


def list_landed(lake: Lake, detector: str) -> dict[str, dict[date, Part]]:
    """What has landed: the newest parts by source and batch date, including pruned ones.

    If a source was delivered again, the pruned parts of its older version are left out.
    """
    pruned = [(day, part) for day, parts in lake.pruned(detector).items() for part in parts]
    days = lake.dates("landing", detector)
    there = [(day, part) for day in days for part in lake.get("landing", detector, day).parts]
    newest = {part.source: part for part in sorted((p for _, p in pruned), key=lambda part: part.arrived_at)}
    newest |= {part.source: part for _, part in there}
    landed: dict[str, dict[date, Part]] = {}
    for day, part in [(day, part) for day, part in pruned if part.version == newest[part.source].version] + there:
        landed.setdefault(part.source, {})[day] = part
    return landed


def has_landed(arrival: Arrival, parts: Collection[Part], rule: str) -> bool:
    """Whether these parts of its source, one per date, are the complete arrival, this version of it, by this rule."""
    found = {(part.version, part.dates, part.rule or rule) for part in parts}
    return found == {(arrival.version, len(parts), rule)} and not has_changed(arrival, parts)


def has_changed(arrival: Arrival, parts: Iterable[Part]) -> bool:
    """Whether the parts hold something else than the arrival, though its version may be theirs."""
    found = arrival.content()
    known = {"", found, found.partition("@")[0]}  # older landings know nothing, or no time
    return any(part.content not in known for part in parts)


def extract_labels(lake: Lake, parts: Iterable[Part], rule: LabelColumn, delay: timedelta) -> Iterator[pd.DataFrame]:
    """Labels delivered with the rows: record_id, label (1 = anomalous), known_at = event time + label delay."""
    for part in parts:
        if rule.column not in lake.columns(part):
            continue  # tonight's rows may come before anybody has judged them
        for table in lake.slices(part, ["record_id", "event_time", rule.column]):
            # A longer id is quarantined.
            table = table.filter(pc.less_equal(pc.binary_length(table["record_id"]), MOST_KEY_BYTES))
            # Cast to text first, because pandas would turn 1 into 1.0 in a column with missing labels.
            texts = table.set_column(2, "label", cast_column(table[rule.column], pa.string()))
            frame = texts.to_pandas()
            frame = frame.assign(label=interpret_labels(rule, frame["label"])).dropna()
            known = frame["event_time"] + delay
            yield pd.DataFrame(
                {"record_id": frame["record_id"], "label": frame["label"].astype(int), "known_at": known}
            )


def date_corrections(labels: pd.DataFrame, known: pd.DataFrame, arrived_at: datetime) -> pd.DataFrame:
    """The new labels of a corrected arrival, dated so that they do not change past trainings.

    labels, known: record_id, label, known_at; known has the latest label per record. A correction is known from its
    arrival or from its label's own date, whichever is later, and after the label that it corrects.
    """
    latest = known.set_index("record_id").reindex(labels["record_id"]).set_index(labels.index)  # one row per label
    is_other = latest["label"] != labels["label"]
    # With all rows of a record, so that contradictions within the arrival are still detected.
    chosen = labels[labels["record_id"].isin(labels.loc[is_other, "record_id"])]
    known_at, after = chosen["known_at"], latest.loc[chosen.index, "known_at"] + timedelta(microseconds=1)
    known_at = known_at.where(known_at > arrived_at, arrived_at)
    return chosen.assign(known_at=known_at.where(~(after > known_at), after))


def ingest_arrivals(
    site: Site, params: IngestParams, window: Window, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Ingested:
    """Land everything new that has arrived, and add the labels known so far."""
    arrivals = list_arrivals(params.source, site.sources, site.zone, window)
    return land_arrivals(site, params, window, arrivals, on_progress)


def land_arrivals(
    site: Site,
    params: IngestParams,
    window: Window,
    arrivals: Sequence[Arrival],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ingested:
    """Land those arrivals that have not landed yet, and add the labels known so far.

    Labels delivered with rows are stored before the rows land, so that a failure in between repeats both. `on_progress`
    gets the numbers of finished and of all arrivals. Bad arrivals stop no other: raises SourceInvalid with all of them
    at the end.
    """
    landed = list_landed(site.lake, site.detector)
    rule = params.hash_landing(site.time_zone)
    fresh = [arrival for arrival in arrivals if not has_landed(arrival, landed.get(arrival.name, {}).values(), rule)]
    notes = [f"{a.name} is dated {a.arrived_at:%Y-%m-%d %H:%M} UTC, in the future: it counts as arrived now"
             for a in fresh if a.arrived_at > window.now]  # fmt: skip
    fresh = [replace(arrival, arrived_at=min(arrival.arrived_at, window.now)) for arrival in fresh]
    touched: Counter[date] = Counter()
    added: list[int] = []
    unlabelled: list[str] = []
    bad: dict[str, SourceInvalid] = {}
    for done, arrival in enumerate(fresh, start=1):
        older = landed.get(arrival.name, {})
        is_correction = any((p.version, p.rule or rule) != (arrival.version, rule) for p in older.values())
        is_correction = is_correction or has_changed(arrival, older.values())

        def keep(parts: list[Part], arrival: Arrival = arrival, is_correction: bool = is_correction) -> None:
            if params.labels:
                labels = extract_labels(site.lake, parts, params.labels, site.label_delay)
                added.append(keep_labels(site, labels, arrival.arrived_at if is_correction else None))
                unlabelled.extend([arrival.name] * (params.labels.column not in site.lake.columns(parts[0])))

        try:
            touched.update(land(site, arrival, params, older if arrival.is_whole else (), keep))
        except SourceInvalid as error:
            bad[arrival.name] = error
        on_progress(done, len(fresh))
    if isinstance(params.source, payments.PaymentsSource):
        first = max(window.first - site.label_delay, params.source.first_date)  # labels may arrive this late
        feed = payments.read_reports(params.source, site.time_zone, first, window.last)
        added.append(keep_labels(site, (frame[frame["known_at"] <= window.now] for frame in feed)))
    if unlabelled and params.labels:
        column, example = params.labels.column, unlabelled[0]
        notes.append(f"{len(unlabelled):,} files, such as {example}, lack the label column {column}: no labels")
    if bad:
        raise list_bad(bad, len(arrivals))
    return Ingested(tuple(sorted(touched)), len(fresh), touched.total(), sum(added), tuple(notes))


def list_bad(bad: Mapping[str, SourceInvalid], arrivals: int) -> SourceInvalid:
    """One error for the arrivals that did not land: the only one's own, otherwise a list of their causes."""
    if len(bad) == 1:
        return next(iter(bad.values()))
    names, more = list(bad)[:SHOWN_BAD], f" and {len(bad) - SHOWN_BAD:,} more" if len(bad) > SHOWN_BAD else ""
    return SourceInvalid(
        f"{len(bad)} of {arrivals:,} files did not land: {', '.join(names)}{more}.",
        got="; ".join(f"{name}: {bad[name].parts['what']} {bad[name].parts.get('got', '')}".strip() for name in names),
        expected="files that can be read to the end; all others have landed",
        todo="deliver these files again, or move them out of the source",
    )


def keep_labels(site: Site, frames: Iterable[pd.DataFrame], corrected_at: datetime | None = None) -> int:
    """Store labels; those of an arrival that replaces an older one count from `corrected_at` on."""
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return 0
    engine, labels = site.warehouse, pd.concat(filled, ignore_index=True)
    if corrected_at:
        known = engine.read_labels(site.detector, None, labels["record_id"])
        labels = date_corrections(labels, known, corrected_at)
    return engine.add_labels(site.detector, labels)


def check_landed(site: Site, dates: Iterable[date], state: State[Any]) -> SourceInvalid | None:
    """The error about bad files of an ingest that failed, if rows of one of these dates have landed from others.

    Raises any other error of the ingest.
    """
    error = state.result(raise_on_failure=False)
    found = (site.lake.find("landing", site.detector, day) for day in dates)
    if not (isinstance(error, SourceInvalid) and any(landing and landing.rows for landing in found)):
        state.result()
        return None
    get_run_logger().error("Only what has landed is used. %s", error)
    return error


@task(task_run_name="ingest {site.detector}", **IO)
def ingest(site: Site, params: IngestParams, window: Window) -> Ingested:
    """Land everything that has arrived."""
    done = ingest_arrivals(site, params, window, progress_of("ingest"))
    get_run_logger().info("landed %d arrivals, %d rows, %d labels", done.arrivals, done.rows, done.labels)
    for note in done.notes:
        get_run_logger().warning(note)
    return done
