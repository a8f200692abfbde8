"""Duplicate records of a batch, and rows that a replay has replaced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tasks.stores.lake import Lake, Manifest, Part, quote

# Hashes first: grouping takes eight bytes per id, and only ids that may be duplicates are read a second time.
FIND_REPEATED = """
    select record_id from parts
    where hash(record_id) in (select hash(record_id) from parts group by 1 having count(*) > 1)
    group by record_id having record_id is not null and count(*) > 1
"""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """The duplicate record_ids of a batch, by whether their rows are identical: arrays of string."""

    identical: pa.Array
    different: pa.Array


def find_replaced(lake: Lake, manifest: Manifest) -> dict[str, frozenset[str]]:
    """The record ids that a later replay has replaced, by the SHA-256 of the part with the replaced rows."""
    replaced: dict[str, frozenset[str]] = {}
    for replay in (part for part in manifest.parts if part.replaces):
        ids = frozenset(record for s in lake.slices(replay, ["record_id"]) for record in s["record_id"].to_pylist())
        replaced |= {sha256: replaced.get(sha256, frozenset()) | ids for sha256 in replay.replaces}
    return replaced


def find_duplicates(
    lake: Lake, manifest: Manifest, columns: Sequence[str], replaced: Mapping[str, frozenset[str]]
) -> Duplicates:
    """The duplicate record ids, split by whether their rows are identical in all columns.

    replaced: by part, the ids whose rows there do not count.
    """
    if not manifest.parts:
        return Duplicates(pa.array([], pa.string()), pa.array([], pa.string()))
    repeated = lake.query(FIND_REPEATED, manifest.parts, frugal=True)["record_id"]
    replayed = frozenset[str]().union(*replaced.values())
    repeated = repeated.filter(pc.invert(pc.is_in(repeated, pa.array(replayed, pa.string()))))
    found = [read_versions(lake, manifest.parts, columns, repeated)]
    # Replayed ids part by part: which of their rows count depends on the part.
    for part in manifest.parts:
        live = pa.array(replayed - replaced.get(part.sha256, frozenset()), pa.string())
        found.append(read_versions(lake, (part,), columns, live))
    versions = pa.concat_tables(found).group_by("record_id").aggregate([("version", "count_distinct"), ("rows", "sum")])
    twice = versions.filter(pc.greater(versions["rows_sum"], 1))
    differ = pc.greater(twice["version_count_distinct"], 1)
    ids = twice["record_id"].combine_chunks()
    return Duplicates(ids.filter(pc.invert(differ)), ids.filter(differ))


def read_versions(
    lake: Lake, parts: tuple[Part, ...], columns: Sequence[str], ids: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """The distinct rows of the given records: record_id, version, rows.

    version: hash of the columns (uint64). rows: number of such rows (int64).
    """
    requested = pa.table({"record_id": ids})
    if not len(ids):
        empty = requested.append_column("version", pa.array([], pa.uint64()))
        return empty.append_column("rows", pa.array([], pa.int64()))
    known = {name for part in parts for name in lake.columns(part)}
    hashed = f"hash({', '.join(quote(name) for name in columns if name in known)})"
    clause = "from parts where record_id in (from requested)"
    try:
        return lake.query(
            f"select record_id, {hashed} as version, count(*) as rows {clause} group by all",
            parts,
            requested=requested,
        )
    # The types of a column are incompatible between parts, or an instant is beyond DuckDB's range: rows that cannot be
    # compared count as different.
    except duckdb.ConversionException:
        return lake.query(
            f"select record_id, hash(uuid()) as version, 1::bigint as rows {clause}",
            parts,
            requested=requested,
        )
