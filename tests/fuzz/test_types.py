"""Columns of any Arrow type: init and validation read them, leave them out, or raise a typed error."""

import re
import tempfile
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st
from sites import open_site

from models.columns import Column
from tasks.errors import NightjarError, SourceInvalid
from tasks.ingest import land
from tasks.onboarding.draft import Request, draft_detector
from tasks.onboarding.profile import decide_kind, profile_column
from tasks.rows.columns import to_records
from tasks.rows.contract import TYPES, Contract
from tasks.rows.params import EventTime, IngestParams
from tasks.rows.schema import Landed, find_unreadable, read_times, type_rows
from tasks.sources.arrival import Arrival
from tasks.sources.content import read_file
from tasks.sources.files import FilesSource

NUMBERS = [pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()]
TIMES = [
    pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"),
    pa.timestamp("ms", "UTC"), pa.time32("s"), pa.time64("us"), pa.duration("us"),
]  # fmt: skip
BYTES = [pa.binary(), pa.large_binary(), pa.binary(16), pa.binary(3), pa.uuid()]
OTHERS = [
    pa.bool_(), pa.null(), pa.string(), pa.large_string(), pa.decimal128(10, 2), pa.decimal256(40, 3),
    pa.list_(pa.int64()), pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int64()), pa.list_(pa.binary()),
    pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64()),
]  # fmt: skip
WHOLE = [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 20_260_301, 1_772_323_200, 1_772_323_200_000]


def fill(kind: pa.DataType, n: int, rng: np.random.Generator) -> pa.Array:
    """N values of a type, some null; bytes are random, so mostly not UTF-8."""
    wrapped = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_binary(wrapped) or pa.types.is_large_binary(wrapped) or pa.types.is_fixed_size_binary(wrapped):
        width = wrapped.byte_width if pa.types.is_fixed_size_binary(wrapped) else 5
        values: list[Any] = [rng.bytes(width) for _ in range(n)]
    elif pa.types.is_dictionary(kind):
        return fill(kind.value_type, n, rng).dictionary_encode()
    elif pa.types.is_boolean(kind):
        values = rng.integers(0, 2, n).astype(bool).tolist()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = rng.choice(["1", "2.5", "1,5", "x", "", "01.02.2026", "2026-03-01", "\0", r"\N"], n).tolist()
    elif pa.types.is_nested(kind):
        made = {"list": [1], "struct": {"a": 1}, "map": [("a", 1)]}
        one = [b"\xff"] if kind == pa.list_(pa.binary()) else made[str(kind).partition("<")[0]]
        values = [one for _ in range(n)]
    elif pa.types.is_decimal(kind):
        return pa.array([Decimal(int(value)) for value in rng.integers(-99, 99, n)], kind)
    elif pa.types.is_null(kind):
        return pa.nulls(n)
    elif kind == pa.date64():
        return fill(pa.date32(), n, rng).cast(kind)
    else:
        values = [WHOLE[place] for place in rng.integers(0, len(WHOLE), n)]
        plain = pa.array([float(value) for value in values]) if pa.types.is_floating(kind) else None
        if plain is None:
            width = 8 if not pa.types.is_primitive(kind) else kind.bit_width // 8
            plain = pa.array(
                [value % 2 ** (8 * width - 1) for value in values], pa.int64() if width == 8 else pa.int32()
            )
        return plain.cast(kind, safe=False)
    array = pa.array([None if rng.random() < 0.05 else value for value in values], wrapped)
    return pa.ExtensionArray.from_storage(kind, array) if wrapped is not kind else array


KINDS = st.sampled_from([*NUMBERS, *TIMES, *BYTES, *OTHERS])


@cases(0.5)
@given(KINDS, st.integers(1, 80), st.integers(0, 9))
def test_a_column_of_any_type_is_profiled(kind: pa.DataType, n: int, seed: int) -> None:
    column = pa.chunked_array([fill(kind, n, np.random.default_rng(seed))])
    for name in ("x", "created_at"):
        profile = profile_column(name, column, np.ones(n, dtype=bool))
        assert decide_kind(profile).rule
        assert profile.there + profile.missing + profile.unreadable == n


@cases(0.5)
@given(KINDS, st.sampled_from(["float", "int", "text", "bool", "timestamp"]), st.integers(0, 9))
def test_a_column_of_any_type_is_validated_as_any_type(kind: pa.DataType, wanted: str, seed: int) -> None:
    raw = pa.table({"x": fill(kind, 20, np.random.default_rng(seed))})
    contract = Contract.model_validate(
        {"columns": {"x": {"type": wanted, "nullable": True, "missing": ["x"]}}}, strict=False
    )
    typed = type_rows(raw, contract)
    unreadable = find_unreadable(raw, typed, contract)
    landed = Landed(contract)
    landed.add(raw, unreadable)
    told = [*landed.failures, *landed.warnings, *map(landed.describe_reading, unreadable)]
    assert typed["x"].type == TYPES[wanted]
    assert all(text.isprintable() for text in told)
    assert len(read_times(raw["x"], None, open_site(Path("unused"), time_zone="Europe/Berlin").zone)) == 20


@cases(0.5)
@given(
    st.fixed_dictionaries(dict.fromkeys(("id", "at", "amount", "label"), KINDS)),
    st.sets(st.sampled_from(["label", "record_id", "time"])),
    st.integers(0, 9),
)
def test_init_of_columns_of_any_type_ends_in_a_draft_or_a_typed_error(
    kinds: dict[str, pa.DataType], asked: set[str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = pa.table({name: fill(kind, 400, rng) for name, kind in kinds.items()} | {"size": rng.normal(size=400)})
    arrival = Arrival("rows.parquet", "1", datetime(2026, 3, 9, tzinfo=UTC), lambda: [table])
    request = Request(**{option: {"record_id": "id", "time": "at"}.get(option, option) for option in asked})
    try:
        draft_detector(FilesSource(kind="files", path="rows.parquet"), [arrival], request)
    except NightjarError as error:
        assert str(error).isprintable() or "\n" in str(error)


@cases(0.5)
@given(KINDS, KINDS, st.integers(0, 9))
def test_ids_and_values_of_any_type_land_or_are_refused(kind: pa.DataType, other: pa.DataType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = pa.array([datetime(2026, 3, 1, hour, tzinfo=UTC) for hour in range(20)])
    table = pa.table({"id": fill(kind, 20, rng), "x": fill(other, 20, rng), "at": times})
    params = IngestParams(
        source=FilesSource(kind="files", path="unread"), record_id="id", event_time=EventTime(column="at")
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            pq.write_table(table, Path(folder) / "rows.parquet")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            return  # no type of Parquet
        site = open_site(Path(folder), time_zone="Europe/Berlin", sources=folder)
        read = lambda: read_file(fsspec.filesystem("file"), f"{folder}/rows.parquet")  # noqa: E731
        arrival = Arrival("rows.parquet", "1", datetime(2026, 3, 9, tzinfo=UTC), read)
        try:
            assert land(site, arrival, params) == {date(2026, 3, 1): 20}
        except NightjarError as error:
            assert "to do" in str(error)


def land_ids(folder: Path, ids: pa.Array) -> list[str]:
    table = pa.table({"id": ids, "at": [datetime(2026, 3, 1, tzinfo=UTC)] * len(ids)})
    params = IngestParams(
        source=FilesSource(kind="files", path="unread"), record_id="id", event_time=EventTime(column="at")
    )
    site = open_site(folder, time_zone="UTC", sources=str(folder))
    land(site, Arrival("rows.parquet", "1", datetime(2026, 3, 9, tzinfo=UTC), lambda: [table]), params)
    [part] = site.lake.get("landing", "toy", date(2026, 3, 1)).parts
    return [row for piece in site.lake.slices(part, ["record_id"]) for row in piece["record_id"].to_pylist()]


def test_uuids_are_ids_in_their_usual_form(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=n) for n in range(3)]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in ids], pa.binary(16)))
    assert land_ids(tmp_path, column) == [str(one) for one in ids]


@pytest.mark.parametrize("ids", [pa.array([b"\xff\xfe"] * 3), pa.array([[1]] * 3)], ids=["bytes", "lists"])
def test_ids_without_a_text_form_are_refused_by_column_and_type(tmp_path: Path, ids: pa.Array) -> None:
    with pytest.raises(SourceInvalid, match=f"column id\\n.*type {re.escape(str(ids.type))}"):
        land_ids(tmp_path, ids)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()], ids=str)
def test_whole_numbers_beyond_2_to_the_53_are_numbers(kind: pa.DataType) -> None:
    values = pa.array([2**63 - 1, 2**53 + 1, *range(2**62, 2**62 + 98)], kind)
    profile = profile_column("account", pa.chunked_array([values]), np.ones(100, dtype=bool))
    assert decide_kind(profile).kind == "numeric"
    records, _ = to_records(pa.table({"account": values}), [Column("account", "numeric")])
    assert records.numbers[0, 0] == 2.0**63
