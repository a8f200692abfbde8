"""CSV and Parquet, odd and spoilt: a typed error that leaves no manifest, or all rows landed and read as they are."""

import csv
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import TEXTS, cases, spoilt_bytes
from hypothesis import example, given
from hypothesis import strategies as st
from sites import open_site

from tasks.errors import NightjarError
from tasks.ingest import extract_labels, land
from tasks.rows.contract import Contract
from tasks.rows.duplicates import find_duplicates
from tasks.rows.params import EventTime, IngestParams, LabelColumn
from tasks.rows.schema import Landed, find_unreadable, type_rows
from tasks.sources.arrival import Arrival
from tasks.sources.content import read_file
from tasks.sources.files import FilesSource, find_settings, list_files
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site

FILES = fsspec.filesystem("file")
CONTRACT = Contract.model_validate(
    {
        "columns": {
            "amount": {"type": "float"},
            "visits": {"type": "int", "nullable": True, "required": False},
            "shop": {"type": "text"},
            "open": {"type": "bool"},
            "since": {"type": "timestamp", "masked": True},
        }
    }
)
PARAMS = IngestParams(
    source=FilesSource(kind="files", path="unread"),
    record_id="id",
    event_time=EventTime(column="at"),
    labels=LabelColumn(column="fraud", normal=("0",)),  # any other value means anomalous
)
IN_SECONDS = PARAMS.model_copy(
    update={"event_time": EventTime(column="at", seconds_since=datetime(2026, 3, 1, tzinfo=UTC))}
)
NO_IDS = PARAMS.model_copy(update={"record_id": None, "labels": None})
SETTINGS = st.sampled_from([PARAMS, IN_SECONDS, NO_IDS])
NAMES = ["id", "at", "amount", "visits", "shop", "open", "since", "fraud"]


def make_site(folder: str) -> Site:
    return open_site(Path(folder), time_zone="Europe/Berlin", sources=folder)


def take(name: str, content: bytes, params: IngestParams, read: Callable[..., Any]) -> tuple[int, list[dict]] | None:
    """Land a file as ingest does and look at it as validate does; None where it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        path, site = Path(folder) / name, make_site(folder)
        path.write_bytes(content)
        arrival = Arrival(name, "1", datetime(2026, 3, 9, tzinfo=UTC), lambda: read(FILES, str(path)))
        try:
            landed = land(site, arrival, params)
        except NightjarError as error:
            assert "to do" in str(error)
            assert not list(Path(folder).rglob("manifest.json"))
            return None
        rows = [row for day in landed for row in look(site.lake, site.lake.get("landing", "toy", day), params)]
        return sum(landed.values()), rows


def look(lake: Lake, manifest: Manifest, params: IngestParams) -> list[dict]:
    found, rows = Landed(CONTRACT), []
    names = [name for name in lake.columns(manifest.parts[0]) if name in CONTRACT.columns]
    duplicates = find_duplicates(lake, manifest, [*names, "event_time"], {})
    assert not set(duplicates.identical.to_pylist()) & set(duplicates.different.to_pylist())
    for part in manifest.parts:
        for raw in lake.slices(part):
            typed = type_rows(raw, CONTRACT)
            unreadable = find_unreadable(raw, typed, CONTRACT)
            found.add(raw, unreadable)
            assert typed.num_rows == raw.num_rows
            assert all(typed[name].is_null().to_numpy()[mask].all() for name, mask in unreadable.items())
            rows += typed.to_pylist()
    told = [*found.failures, *found.warnings, *found.surprises, *map(found.describe_reading, found.unreadable)]
    assert all(isinstance(text, str) for text in told)
    if params.labels:
        assert sum(
            len(frame) for frame in extract_labels(lake, list(manifest.parts), params.labels, timedelta())
        ) <= len(rows)
    return rows


NUMBERS = st.integers(-(2**70), 2**70).map(str) | st.floats().map(repr) | TEXTS
VALUES = {
    "id": TEXTS,
    "at": st.sampled_from(
        ["2026-03-01T12:00:00Z", "2026-03-02", "1e18", "-1e300", "nan", "5", "0001-01-01", "then", ""]
    ),
    "amount": NUMBERS,
    "visits": NUMBERS,
    "shop": TEXTS,
    "open": st.sampled_from(["true", "False", "0", "1", "2", "yes", ""]),
    "since": st.sampled_from(["2026-03-01", "9999-12-31T23:59:59Z", "0000-00-00", "12", ""]),
    "fraud": st.sampled_from(["0", "1", "", "2"]),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    names = draw(st.permutations(NAMES)) if draw(st.booleans()) else NAMES
    names = [*names[: draw(st.integers(6, 8))], *draw(st.lists(TEXTS, max_size=2))]
    rows = draw(st.lists(st.tuples(*(VALUES.get(name, TEXTS) for name in names)).map(list), max_size=5))
    return names, rows


def write_csv(names: list[str], rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    return buffer.getvalue().encode()


def read_as_python(text: str) -> float | None:
    """A text as a float, read by other means than the code does."""
    text = text.strip()
    if any(character in text for character in "_") or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


@cases(1.5)
@given(tables(), SETTINGS)
@example((["id", "at", "amount"], [["a", "2026-03-01", "9007199254740993"]]), PARAMS)
def test_csv(table: tuple[list[str], list[list[str]]], params: IngestParams) -> None:
    names, rows = table
    taken = take("rows.csv", write_csv(names, rows), params, read_file)
    if taken is None:
        return
    landed, typed = taken
    assert landed == len(typed) == len(rows)
    if "amount" in names and not any("\n" in value or "\r" in value for row in rows for value in row):
        expected = [repr(read_as_python(row[names.index("amount")])) for row in rows]
        assert sorted(repr(row["amount"]) for row in typed) == sorted(expected)


PLAIN = write_csv(NAMES, [["a", "2026-03-01T12:00:00Z", "1.5", "2", "north", "true", "2026-03-01", "0"]] * 3)


@cases(1.5)
@given(spoilt_bytes(PLAIN), SETTINGS)
@example(b"", PARAMS)
@example(b"\n", PARAMS)
@example(b"id,at,fraud\n", PARAMS)
@example(b"\x80,at,fraud\na,2026-03-01,0\n", PARAMS)  # was a UnicodeDecodeError
@example(b'id,at,fraud\n"a', PARAMS)
@example(b"id,at,fraud\na\x00,2026-03-01T00:00Z,1\n", PARAMS)
def test_bytes_of_csv(content: bytes, params: IngestParams) -> None:
    taken = take("rows.csv", content, params, read_file)
    assert taken is None or taken[0] == len(taken[1])


@cases(0.5)
@given(st.binary(max_size=60) | spoilt_bytes(PLAIN), st.sampled_from(["rows.csv.gz", "rows.csv.bz2", "rows.csv.xz"]))
def test_what_says_that_it_is_compressed_and_is_not(content: bytes, name: str) -> None:
    taken = take(name, content, PARAMS, read_file)
    assert taken is None or taken[0] == len(taken[1])


@cases(0.5)
@given(
    st.sampled_from([b"PAR1", b"PK\3\4", b"\x28\xb5\x2f\xfd", b"BZh", b"\xff\xfe", b"{", b"\xd0\xcf\x11\xe0"]),
    st.binary(),
)
def test_what_begins_like_another_format(magic: bytes, rest: bytes) -> None:
    assert take("rows.csv", magic + rest, PARAMS, read_file) is None


INSTANTS = st.integers(-(2**62), 2**62)
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXTS | NUMBERS),
    (pa.large_string(), TEXTS),
    (pa.string_view(), TEXTS),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.floats(width=16)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(20, 3), st.integers(-(10**15), 10**15).map(lambda n: Decimal(n) / 1000)),
    (pa.decimal256(70, 0), st.integers(-(10**60), 10**60).map(Decimal)),
    (pa.date32(), st.dates()),
    (pa.timestamp("s"), st.integers(-(2**52), 2**52)),
    (pa.timestamp("ms", tz="Europe/Berlin"), INSTANTS),
    (pa.timestamp("us", tz="UTC"), INSTANTS),
    (pa.timestamp("ns"), INSTANTS),
    (pa.time64("us"), st.integers(0, 10**6)),
    (pa.duration("us"), INSTANTS),
    (pa.binary(), st.binary(max_size=4)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    (pa.null(), st.none()),
    (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=2)),
    (pa.struct({"a": pa.int64()}), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(TEXTS, st.integers(0, 9)), max_size=1)),
]
NATURAL = {"id": pa.string(), "at": pa.string(), "fraud": pa.int64()}


@st.composite
def arrow_tables(draw: st.DrawFn) -> pa.Table:
    rows, columns = draw(st.integers(0, 4)), {}
    for name in [*NAMES, *draw(st.lists(TEXTS, max_size=2))]:
        natural = draw(st.integers(0, 3)) > 0 and name in VALUES
        kind, values = (pa.string(), VALUES[name]) if natural else draw(st.sampled_from(TYPES))
        drawn = draw(st.lists(values | st.none(), min_size=rows, max_size=rows))
        columns[name] = pa.array(drawn, kind)
    chosen = draw(st.permutations(list(columns))) if draw(st.booleans()) else list(columns)
    return pa.table({name: columns[name] for name in chosen[: draw(st.integers(5, len(chosen)))]})


def write_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


FAR = pa.table(
    {
        "id": ["a", "a"],
        "at": ["2026-03-01", "2026-03-01"],
        "fraud": ["0", "0"],
        "since": pa.array([9_223_372_036_854_776, 9_223_372_036_854_776], pa.timestamp("ms")),
    }
)
VIEW = pa.table({"at": ["2026-03-01"], "shop": pa.array(["north"], pa.string_view())})


@cases(1.5)
@given(arrow_tables(), SETTINGS)
@example(VIEW, NO_IDS)  # Arrow cannot filter them
@example(FAR, PARAMS)  # DuckDB cannot compare them
def test_parquet(table: pa.Table, params: IngestParams) -> None:
    taken = take("rows.parquet", write_parquet(table), params, read_file)
    if taken is None:
        return
    landed, typed = taken
    assert landed == len(typed) == table.num_rows
    if "amount" in table.column_names and table.schema.field("amount").type == pa.float64():
        assert sorted(repr(row["amount"]) for row in typed) == sorted(map(repr, table["amount"].to_pylist()))


GOOD = write_parquet(
    pa.table(
        {
            "id": ["a", "b", "c"],
            "at": ["2026-03-01T12:00:00Z"] * 3,
            "fraud": [0, 1, 0],
            "amount": [1.5, 2.5, None],
            "shop": pa.array(["north", "south", "north"]).dictionary_encode(),
            "since": pa.array([date(2026, 3, 1)] * 3),
        }
    )
)


@cases(2)
@given(spoilt_bytes(GOOD), SETTINGS)
@example(GOOD.replace(b"shop", b"\xe1hop"), PARAMS)  # was a UnicodeDecodeError
def test_bytes_of_parquet(content: bytes, params: IngestParams) -> None:
    taken = take("rows.parquet", content, params, read_file)
    assert taken is None or taken[0] == len(taken[1])


@cases(1)
@given(st.binary(max_size=80) | spoilt_bytes(PLAIN) | spoilt_bytes(PLAIN.decode().encode("utf-16-le")))
@example(b"\xff\xfea")
@example(b"a,b\n\x81,\x8d\n")
def test_how_any_bytes_are_written_is_found_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.csv").write_bytes(content)
        with suppress(NightjarError):
            source, notes = find_settings(FilesSource(kind="files", path="rows.csv"), folder)
            assert all(notes)
            [arrival] = list_files(source, folder)
            list(arrival.read())
