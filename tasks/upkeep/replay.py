"""Repair quarantined rows: list those of a batch, and land the repaired rows instead of them.

In: a CSV file as returned by `list_quarantined`, with corrected values. Out: one more landing part of the batch, which
records the parts that it repairs; validation then excludes the rows it replaces. Columns missing from the file, such as
masked ones, are taken from the original rows. A corrected delivery of the source also replaces its repairs.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import SourceInvalid
from tasks.ingest import commit_parts, extract_labels, keep_labels
from tasks.rows.contract import Contract
from tasks.rows.escaping import unguard
from tasks.rows.params import IngestParams, ValidateParams
from tasks.rows.schema import batch_dates_of, cast_column, read_times
from tasks.sources.arrival import UNPARSED
from tasks.sources.content import read_file
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site
from tasks.upkeep.ledger import read_ledger
from tasks.validate import validate_batches

REASON = "quarantine_reason"
NAMED_IDS = 5  # in messages


@dataclass(frozen=True)
class Taken:
    """The result of a file of repairs: its rows, and whether they landed now or before."""

    rows: int
    is_new: bool


def find_quarantine(site: Site, contract: Contract, params: ValidateParams, day: date) -> Manifest:
    """The current quarantine of a batch; validates it again if landing has changed. Raises BatchMissing."""
    landing, found = site.lake.get("landing", site.detector, day), site.lake.find("quarantine", site.detector, day)
    if found is None or found.facts["validation"]["input_hash"] != landing.hash:
        validate_batches(site, contract, [day], params)
    return site.lake.get("quarantine", site.detector, day)


def read_partition(lake: Lake, manifest: Manifest) -> pa.Table:
    """All rows of a partition; a column whose type differs from part to part becomes text."""
    slices = [piece for part in manifest.parts for piece in lake.slices(part)]
    kinds: dict[str, pa.Field] = {}
    for field in (field for piece in slices for field in piece.schema):
        known = kinds.setdefault(field.name, field)
        kinds[field.name] = known if known.type == field.type else pa.field(field.name, pa.string())
    schema = pa.schema(list(kinds.values()))
    return pa.concat_tables([_conform(piece, schema) for piece in slices]) if slices else schema.empty_table()


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def list_bad_rows(site: Site, contract: Contract, params: ValidateParams, day: date) -> pa.Table:
    """The quarantined rows of a batch as text, without masked columns. Raises BatchMissing."""
    return list_quarantined(read_partition(site.lake, find_quarantine(site, contract, params, day)), contract)


def find_reason_not_to_score(site: Site, day: date) -> str:
    """Why a night need not be scored again: the champion was trained on it, or it is fresh; empty if it must be."""
    champion = site.registry.find_version()
    if champion and day <= champion.trained_through:
        return f"version {champion.version} was trained on {day}"
    [night] = read_ledger(site, [day], champion)
    return f"{day} is fresh" if night.state == "fresh" else ""


def list_quarantined(rows: pa.Table, contract: Contract) -> pa.Table:
    """Quarantined rows as text to repair: record_id, event_time, the contract's columns, the reason.

    Masked columns, images and other values without a text form are left out.
    """
    names = dict.fromkeys(["record_id", "event_time", *contract.columns, REASON])
    if not rows.num_rows:
        rows = pa.schema([*contract.schema, pa.field(REASON, pa.string())]).empty_table()
    shown = [name for name in names if name in rows.column_names and name not in contract.masked]
    texts = {name: cast_column(rows[name], pa.string()) for name in shown if _has_text(rows.schema.field(name).type)}
    return pa.table(texts)


def _has_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.UuidType):
        return True
    return not (
        isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_nested(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary(kind)
    )


def take_repairs(
    site: Site,
    contract: Contract,
    ingest: IngestParams,
    validate: ValidateParams,
    day: date,
    path: Path,
    now: datetime,
) -> Taken:
    """Land a file of repaired rows on their batch date. A file that has landed before changes nothing.

    Raises SourceInvalid if a row has no id, an id not in quarantine, or an event time on another batch date.
    """
    repairs, source = read_repairs(path)
    landing = site.lake.get("landing", site.detector, day)
    if any(part.source == source for part in landing.parts):
        return Taken(repairs.num_rows, is_new=False)
    originals = read_partition(site.lake, find_quarantine(site, contract, validate, day))
    check_ids(repairs, originals, path.name, day)
    rows = fill_columns(repairs, originals, contract, path.name)
    check_dates(rows, site, path.name, day)
    replaced = find_parts(site.lake, site.lake.get("landing", site.detector, day), rows["record_id"])
    partition = site.lake.write("landing", site.detector, day)
    with partition.part("part-0", source=source, version=source, arrived_at=now.isoformat()) as part:
        part.append(rows.replace_schema_metadata({"replay": source}))  # makes the part's bytes unique
    partition.parts = [replace(part, replaces=replaced) for part in partition.parts]
    if ingest.labels and ingest.labels.column in rows.column_names:
        keep_labels(site, extract_labels(site.lake, partition.parts, ingest.labels, site.label_delay), now)
    commit_parts(site, source, {day: partition})
    return Taken(rows.num_rows, is_new=True)


def read_repairs(path: Path) -> tuple[pa.Table, str]:
    """The rows of a CSV file, all as text, and the name they land under, a hash of the file's content."""
    if not path.is_file():
        raise _invalid_repair("The file does not exist.", str(path), "no file", "the file that nightjar replay wrote")
    slices = list(read_file(LocalFileSystem(), str(path)))
    if odd := [text for table in slices if table.column_names == [UNPARSED] for text in table[UNPARSED].to_pylist()]:
        got = odd[0].partition(":")[0]
        raise _invalid_repair("A row has another number of values than the header.", path.name, got, "a value for each")
    table = pa.concat_tables([pa.table({}), *slices], promote_options="default")
    texts = {unguard(name): table[name].to_pylist() for name in table.column_names}
    table = pa.table(
        {name: pa.array([text and unguard(text) for text in column], pa.string()) for name, column in texts.items()}
    )
    table = table.drop_columns([name for name in table.column_names if name == REASON])
    if not table.num_rows or "record_id" not in table.column_names:
        got = f"{table.num_rows} rows with columns {', '.join(table.column_names)}"
        raise _invalid_repair("The file has no repaired rows.", path.name, got, "rows with a record_id")
    return table, f"replay-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def check_ids(repairs: pa.Table, originals: pa.Table, file: str, day: date) -> None:
    """Raise SourceInvalid if a row has no id, or an id that is not in the batch's quarantine."""
    if nameless := repairs["record_id"].null_count:
        got = f"{nameless} rows without a record_id"
        raise _invalid_repair(
            "Some repaired rows have no id.", file, got, "for each, the record_id of the row that it repairs"
        )
    known = originals["record_id"] if originals.num_rows else pa.array([], pa.string())
    unknown = repairs["record_id"].filter(pc.invert(pc.is_in(repairs["record_id"], known.combine_chunks())))
    if len(unknown):
        got, expected = _name(unknown.to_pylist()), f"ids in the quarantine of {day}"
        raise _invalid_repair("Some repaired rows belong to records that are not in quarantine.", file, got, expected)


def fill_columns(repairs: pa.Table, originals: pa.Table, contract: Contract, file: str) -> pa.Table:
    """The repaired rows with all columns of the original ones, which supply the columns missing from the file.

    Raises SourceInvalid if the file has an unknown column, or if the original rows of a record differ in a missing one.
    """
    known = [name for name in originals.column_names if name != REASON]
    if unknown := set(repairs.column_names) - {*known, *contract.columns}:
        raise _invalid_repair("The file has unknown columns.", file, ", ".join(sorted(unknown)), ", ".join(known))
    ids, lacking = repairs["record_id"].to_pandas(), [name for name in known if name not in repairs.column_names]
    check_agreement(originals, ids, lacking, file)
    first = pd.Series(np.arange(originals.num_rows), originals["record_id"].to_pandas())
    rows = originals.select(known).take(pa.array(first[~first.index.duplicated()][ids]))
    for name in repairs.column_names:
        is_time = name == "event_time"
        column = read_times(repairs[name], None, None) if is_time else repairs[name]
        rows = rows.set_column(known.index(name), name, column) if name in known else rows.append_column(name, column)
    return rows


def check_agreement(originals: pa.Table, ids: pd.Series, lacking: Sequence[str], file: str) -> None:
    """Raise SourceInvalid if the original rows of a record differ in a column missing from the file."""
    frame = originals.select(["record_id", *lacking]).to_pandas()
    frame = frame[frame["record_id"].isin(ids)].astype(str)
    versions = frame.groupby("record_id")[list(lacking)].nunique() if lacking else frame.iloc[:0]
    differing = [str(name) for name in versions.columns if (versions[name] > 1).any()]
    if differing:
        several = versions.index[(versions > 1).any(axis=1)]
        raise SourceInvalid(
            "A repaired row matches several different original rows.",
            where=f"{file}, {_name(several.tolist())}",
            got=f"original rows that differ in {', '.join(differing)}",
            expected="a file with these columns too, or one original row per record",
            todo=f"add {', '.join(differing)} to the file, or deliver the rows again from the source",
        )


def check_dates(rows: pa.Table, site: Site, file: str, day: date) -> None:
    """Raise SourceInvalid if an event time is in another batch; an unreadable one is quarantined again."""
    dates = pa.chunked_array([batch_dates_of(chunk, site.zone) for chunk in rows["event_time"].chunks])
    elsewhere = rows["record_id"].filter(pc.fill_null(pc.not_equal(dates, pa.scalar(day, pa.date32())), False))
    if len(elsewhere):
        got, expected = _name(elsewhere.to_pylist()), f"event times on {day} in {site.time_zone}"
        raise _invalid_repair("Some repaired rows have an event time on another batch date.", file, got, expected)


def find_parts(lake: Lake, landing: Manifest, ids: pa.ChunkedArray) -> tuple[str, ...]:
    """The hashes of the landing parts with rows of these records."""
    wanted = ids.combine_chunks()
    return tuple(
        part.sha256
        for part in landing.parts
        if any(pc.any(pc.is_in(piece["record_id"], wanted)).as_py() for piece in lake.slices(part, ["record_id"]))
    )


def _name(ids: Collection[str]) -> str:
    return ", ".join(list(ids)[:NAMED_IDS]) + (f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else "")


def _invalid_repair(what: str, where: str, got: str, expected: str) -> SourceInvalid:
    todo = "correct the file, or write it again with nightjar replay NAME --date D; nothing of it has landed"
    return SourceInvalid(what, where=where, got=got, expected=expected, todo=todo)
