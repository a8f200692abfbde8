"""Repair quarantined rows: list those of a batch, and land the repaired ones in their place.

In: a CSV file as `list_quarantined` gave it, with values put right. Out: one more part of the batch's landing that says
which parts it repairs; validation then excludes the rows it replaces. Columns that the file does not hold, such as the
masked ones, are those of the original rows. A corrected delivery of the source takes the place of its repairs too.
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
from tasks.ingest import batch_dates_of, commit_parts, extract_labels, keep_labels, read_event_times
from tasks.params import EventTime, IngestParams, ValidateParams
from tasks.rows.contract import Contract
from tasks.sources.files import read_csv
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site
from tasks.upkeep.ledger import read_ledger
from tasks.validate import validate_batches

REASON = "quarantine_reason"
NAMED_IDS = 5  # in messages


@dataclass(frozen=True)
class Taken:
    """What a file of repairs did: its rows, and whether they have landed now or had before."""

    rows: int
    is_new: bool


def find_quarantine(site: Site, contract: Contract, params: ValidateParams, day: date) -> Manifest:
    """The quarantine of a batch as it has landed; validated again where landing has changed. Raises BatchMissing."""
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
    """The quarantined rows of a batch as texts, without masked columns. Raises BatchMissing."""
    return list_quarantined(read_partition(site.lake, find_quarantine(site, contract, params, day)), contract)


def find_reason_not_to_score(site: Site, day: date) -> str:
    """Why a night need not be scored again: the champion has learnt from it, or it is fresh; empty where it must."""
    champion = site.registry.find_version()
    if champion and day.isoformat() <= champion.tags["trained_through"]:
        return f"version {champion.version} has learnt from {day}"
    [night] = read_ledger(site, [day], champion)
    return f"{day} is fresh" if night.state == "fresh" else ""


def list_quarantined(rows: pa.Table, contract: Contract) -> pa.Table:
    """Quarantined rows as texts to repair: record_id, event_time, the contract's columns, the reason.

    Without masked columns, and without images and other values that have no text.
    """
    names = dict.fromkeys(["record_id", "event_time", *contract.columns, REASON])
    if not rows.num_rows:
        rows = pa.schema([*contract.schema, pa.field(REASON, pa.string())]).empty_table()
    shown = [name for name in names if name in rows.column_names and name not in contract.masked]
    texts = {name: rows[name].cast(pa.string()) for name in shown if _has_text(rows.schema.field(name).type)}
    return pa.table(texts)


def _has_text(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind))


def take_repairs(
    site: Site,
    contract: Contract,
    ingest: IngestParams,
    validate: ValidateParams,
    day: date,
    path: Path,
    now: datetime,
) -> Taken:
    """Land a file of repaired rows in their date. A file that has landed before changes nothing.

    Raises SourceInvalid where a row has no id, none of the batch's quarantine, or an event time of another batch date.
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
        part.append(rows.replace_schema_metadata({"replay": source}))  # so that no other part has these very bytes
    partition.parts = [replace(part, replaces=replaced) for part in partition.parts]
    if ingest.labels and ingest.labels.column in rows.column_names:
        keep_labels(site, extract_labels(site.lake, partition.parts, ingest.labels, site.label_delay), now)
    commit_parts(site, source, {day: partition})
    return Taken(rows.num_rows, is_new=True)


def read_repairs(path: Path) -> tuple[pa.Table, str]:
    """The rows of a CSV file, all text, and the name they land under, made from the file's content."""
    if not path.is_file():
        raise _invalid_repair(
            "There is no such file.", str(path), "nothing there", "the file that nightjar replay wrote"
        )
    slices = list(read_csv(LocalFileSystem(), str(path)))
    table = pa.concat_tables([pa.table({}), *slices], promote_options="default")
    table = table.drop_columns([name for name in table.column_names if name == REASON])
    if not table.num_rows or "record_id" not in table.column_names:
        got = f"{table.num_rows} rows with columns {', '.join(table.column_names)}"
        raise _invalid_repair("The file holds no repaired rows.", path.name, got, "rows with a record_id")
    return table, f"replay-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def check_ids(repairs: pa.Table, originals: pa.Table, file: str, day: date) -> None:
    """Raise SourceInvalid where a row has no id, or one that is not in the batch's quarantine."""
    if nameless := repairs["record_id"].null_count:
        got = f"{nameless} rows without a record_id"
        raise _invalid_repair(
            "Some repaired rows have no id.", file, got, "the record_id of the row that each one repairs"
        )
    known = originals["record_id"] if originals.num_rows else pa.array([], pa.string())
    unknown = repairs["record_id"].filter(pc.invert(pc.is_in(repairs["record_id"], known.combine_chunks())))
    if len(unknown):
        got, expected = _name(unknown.to_pylist()), f"ids in the quarantine of {day}"
        raise _invalid_repair("Some repaired rows are of records that are not in quarantine.", file, got, expected)


def fill_columns(repairs: pa.Table, originals: pa.Table, contract: Contract, file: str) -> pa.Table:
    """The repaired rows with every column of the original ones: the file's where it has it, else the original's.

    Raises SourceInvalid where the file has a column that nobody knows, or a value that it lacks is not the same in all
    original rows of a record.
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
        column = read_event_times(repairs, EventTime(column=name), 0) if is_time else repairs[name]
        rows = rows.set_column(known.index(name), name, column) if name in known else rows.append_column(name, column)
    return rows


def check_agreement(originals: pa.Table, ids: pd.Series, lacking: Sequence[str], file: str) -> None:
    """Raise SourceInvalid where the original rows of a record differ in a column that the file lacks."""
    frame = originals.select(["record_id", *lacking]).to_pandas()
    frame = frame[frame["record_id"].isin(ids)].astype(str)
    versions = frame.groupby("record_id")[list(lacking)].nunique() if lacking else frame.iloc[:0]
    differing = [str(name) for name in versions.columns if (versions[name] > 1).any()]
    if differing:
        several = versions.index[(versions > 1).any(axis=1)]
        raise SourceInvalid(
            "Nobody could say which of several original rows a repaired one stands for.",
            where=f"{file}, {_name(several.tolist())}",
            got=f"original rows that differ in {', '.join(differing)}",
            expected="a file that holds these columns too, or one original row a record",
            todo=f"add {', '.join(differing)} to the file, or have the source deliver the rows again",
        )


def check_dates(rows: pa.Table, site: Site, file: str, day: date) -> None:
    """Raise SourceInvalid where an event time lies in another batch; an unreadable one goes to quarantine again."""
    dates = pa.chunked_array([batch_dates_of(chunk, site.zone) for chunk in rows["event_time"].chunks])
    elsewhere = rows["record_id"].filter(pc.fill_null(pc.not_equal(dates, pa.scalar(day, pa.date32())), False))
    if len(elsewhere):
        got, expected = _name(elsewhere.to_pylist()), f"event times on {day} in {site.time_zone}"
        raise _invalid_repair("Some repaired rows have moved to another batch date.", file, got, expected)


def find_parts(lake: Lake, landing: Manifest, ids: pa.ChunkedArray) -> tuple[str, ...]:
    """The hashes of the landing parts that hold rows of these records."""
    asked = ids.combine_chunks()
    return tuple(
        part.sha256
        for part in landing.parts
        if any(pc.any(pc.is_in(piece["record_id"], asked)).as_py() for piece in lake.slices(part, ["record_id"]))
    )


def _name(ids: Collection[str]) -> str:
    return ", ".join(list(ids)[:NAMED_IDS]) + (f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else "")


def _invalid_repair(what: str, where: str, got: str, expected: str) -> SourceInvalid:
    todo = "correct the file, which nightjar replay NAME --date D writes anew; nothing of it has landed"
    return SourceInvalid(what, where=where, got=got, expected=expected, todo=todo)
