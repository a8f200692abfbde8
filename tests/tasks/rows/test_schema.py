"""Landed columns against the contract's: values read one by one, and changes of the schema said in words."""

import math
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.rows.contract import TYPES, Contract
from tasks.rows.schema import Landed, cast_column, find_unreadable, guess_rename, read_times, type_rows

BIG = 2**63


def read(kind: str, *values: object) -> list[object]:
    return cast_column(pa.chunked_array([pa.array(values)]), TYPES[kind]).to_pylist()


def make_contract(extra_columns: str = "warn", **columns: dict) -> Contract:
    return Contract.model_validate({"columns": columns, "extra_columns": extra_columns})


def land(contract: Contract, *slices: dict) -> Landed:
    landed = Landed(contract)
    for columns in slices:
        raw = pa.table(columns)
        landed.add(raw, find_unreadable(raw, type_rows(raw, contract), contract))
    return landed


# --- values ---


@settings(max_examples=300, deadline=None)
@given(
    numbers=st.lists(st.integers(-(2**80), 2**80), max_size=5), form=st.sampled_from(["{}", "{:+}", " {}\t", "{}.0"])
)
@example(numbers=[2**53 + 1, 2**63 - 1, -(2**63), 2**63], form="{}")
@example(numbers=[2**53 + 1], form="{}.000")
def test_whole_numbers_in_text_keep_all_their_digits_next_to_a_bad_value(numbers: list[int], form: str) -> None:
    texts = [form.format(number) for number in numbers]
    expected = [number if -BIG <= number < BIG else None for number in numbers]
    assert read("int", *texts, "many")[:-1] == expected
    if texts and all(text.lstrip("-").isdigit() for text in texts):
        assert [int(text) if -BIG <= int(text) < BIG else None for text in texts] == read("int", *texts)


ODD = [
    "1", "+1", "-1", " 1 ", "1.", ".5", "-.5", "1e5", "1E-3", "1e400", "1e99999", "0x1F", "0XFF", "1_000", "1,5", "nan",
    "NaN", "nan(1)", "inf", "-Infinity", "infinit", "", " ", "true", "FALSE", "yes", "0", "00012", "\u0661", "é", "-",
    "1 2", "9223372036854775807", "9223372036854775808", "2026", "2026-03-01", "2026-03-01T12", "2026-03-01 12:00:00Z",
    "2026-03-01T12:00:00.123456789Z", "2500-01-01T00:00:00Z", "0000-01-01T00:00Z", "9999-12-31T23:59:59Z",
    "2026-03-01T12:00:00+14:00", "20260301", "2026-02-30", "1\x00", "\u202e1", "1\n", "'; drop table labels; --",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["float", "int", "bool", "timestamp"])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.sampled_from(ODD) | st.text(max_size=4), min_size=1, max_size=4))
def test_a_text_is_read_the_same_whatever_its_neighbours(kind: str, texts: list[str]) -> None:
    alone = [read(kind, text)[0] for text in texts]
    assert repr(read(kind, *texts)) == repr(alone)
    assert repr(read(kind, *texts, "no value of any type")[:-1]) == repr(alone)


@settings(max_examples=100, deadline=None)
@given(st.floats())
def test_a_float_in_text_is_the_nearest_one_as_python_reads_it(number: float) -> None:
    [found, _] = read("float", repr(number), "x")
    assert struct.pack("d", found) == struct.pack("d", float(repr(number)))


DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("int", pa.array([1.0, 2.5, math.nan, math.inf, 1e19, None, -(2.0**62)]), [1] + [None] * 5 + [-(2**62)]),
        ("int", pa.array([1, 2**64 - 1], pa.uint64()), [1, None]),
        ("int", pa.array([Decimal("3.0"), Decimal("3.5")]), [3, None]),
        ("int", pa.array([True, None]), [1, None]),
        ("int", pa.array([DAY]), [None]),
        ("float", pa.array([2**53 + 1, 7]), [2.0**53, 7.0]),
        ("float", pa.array([Decimal("0.1")]), [0.1]),
        ("float", pa.array([[1.0]]), [None]),
        ("float", pa.array([{"a": 1}]), [None]),
        ("float", pa.array([b"1"]), [None]),
        ("text", pa.array([b"ok", b"\xff", None]), ["ok", None, None]),
        ("text", pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        ("text", pa.array([["a"]]), [None]),
        ("text", pa.array([date(2026, 3, 1)]), ["2026-03-01"]),
        ("bool", pa.array([0, 1, 2]), [False, True, None]),
        ("bool", pa.array([1.0, 0.5, math.nan]), [True, None, None]),
        ("timestamp", pa.array([1_772_323_200]), [None]),
        ("timestamp", pa.array([date(2026, 3, 1)]), [DAY]),
        ("timestamp", pa.array([0, 2**62], pa.timestamp("s")), [datetime(1970, 1, 1, tzinfo=UTC), None]),
        ("timestamp", pa.array([2**62], pa.timestamp("us", tz="UTC")), [None]),
        ("timestamp", pa.array([1_001], pa.timestamp("ns")), [datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)]),
        ("timestamp", pa.array([2**62], pa.date64()), [None]),
        ("timestamp", pa.array([2**31 - 1], pa.date32()), [None]),
        ("float", pa.nulls(2), [None, None]),
    ],
    ids=str,
)
def test_values_of_other_types_are_read_where_that_loses_nothing(kind, column, expected) -> None:
    assert cast_column(pa.chunked_array([column]), TYPES[kind]).to_pylist() == expected


def test_missing_words_nan_and_null_are_missing_not_unreadable() -> None:
    contract = make_contract(a={"type": "float"}, b={"type": "text"}, c={"type": "int"}, d={"type": "int"})
    raw = pa.table(
        {"a": ["nan", "N/A", "x"], "b": ["x", None, ""], "c": [1.0, math.nan, 2.5], "d": [1.5, None, math.nan]}
    )
    found = find_unreadable(raw, type_rows(raw, contract), contract)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "a": [False, False, True],
        "c": [False] * 2 + [True],
        "d": [True, False, False],
    }
    assert all(mask.dtype == bool for mask in found.values())


@pytest.mark.parametrize("kind", ["float", "int", "bool", "timestamp"])
@pytest.mark.parametrize("nullable", [False, True])
def test_what_is_there_and_cannot_be_read_is_unreadable_whether_or_not_values_may_be_missing(kind, nullable) -> None:
    contract = make_contract(a={"type": kind, "nullable": nullable})
    missing = ["", " ", "?", "-", "NA", "n/a", "NaN", "NULL", "None", r"\N", "<NA>", "#N/A", "NaT", None]
    raw = pa.table({"a": [*missing, "4,946.37", "x", "#REF!"]})
    typed = type_rows(raw, contract)
    assert find_unreadable(raw, typed, contract)["a"].tolist() == [False] * len(missing) + [True] * 3


@pytest.mark.parametrize("kind", [pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("s"), pa.date64()], ids=str)
def test_an_instant_that_python_does_not_have_is_shown_as_its_number(kind: pa.DataType) -> None:
    ticks = pa.array([-62_135_683_200_000], pa.int64())  # in ms the last day before the year 1
    landed = land(make_contract(a={"type": "float"}), {"a": ticks.cast(kind)})
    assert landed.examples == {"a": "-62135683200000"}


# --- changes of the schema ---


def test_a_missing_column_names_the_new_one_that_it_looks_renamed_to() -> None:
    contract = make_contract(visits={"type": "int"}, spend={"type": "float"})
    landed = land(contract, {"visit_count": ["1"], "spend": ["2"], "mood": ["good"]})
    assert landed.failures == ["columns missing: visits (visits looks renamed to visit_count)"]
    assert landed.surprises == ["columns not in the contract, ignored: mood, visit_count"]


@pytest.mark.parametrize(
    ("kind", "extra", "guess"),
    [
        ("float", {"total": ["1", "2"], "mood": ["good", "bad"]}, "total"),  # the only one that holds numbers
        ("float", {"total": ["1"], "sum": ["2"]}, None),
        ("float", {"spent": ["little"], "total": ["1"]}, "total"),  # near by name, but no number
        ("text", {"total": ["1"]}, None),
        ("text", {"Spend": ["a"]}, "Spend"),
        ("timestamp", {"total": [1]}, None),
    ],
)
def test_a_rename_is_guessed_by_name_and_type(kind, extra, guess) -> None:
    columns = {name: pa.chunked_array([values]) for name, values in extra.items()}
    assert guess_rename("spend", make_contract(spend={"type": kind}).columns["spend"], columns) == guess


def test_an_optional_column_that_is_gone_is_null_and_counted() -> None:
    contract = make_contract(a={"type": "int"}, b={"type": "float", "nullable": True, "required": False})
    landed = land(contract, {"a": ["1"] * 3, "b": ["1"] * 3}, {"a": ["1"] * 2})
    assert (landed.failures, landed.warnings) == ([], ["column missing, read as null in 2 of 5 rows: b"])


def test_a_column_of_another_type_whose_values_all_read_is_a_warning() -> None:
    contract = make_contract(
        a={"type": "float"}, b={"type": "text"}, c={"type": "int"}, d={"type": "int", "nullable": True}
    )
    landed = land(
        contract, {"a": ["1.5"], "b": [12], "c": [1.0], "d": [1.0]}, {"a": [1], "b": ["x"], "c": [1], "d": [2]}
    )
    assert landed.failures == []
    assert landed.warnings == [
        "a landed as int64 and text, not as float; every value could be read",
        "b landed as int64 and text, not as text; every value could be read",
        "c landed as double and int64, not as int; every value could be read",
    ]


def test_a_source_without_types_is_all_text_which_is_not_a_change() -> None:
    contract = make_contract(a={"type": "float"}, b={"type": "timestamp"})
    assert land(contract, {"a": ["1.5"], "b": ["2026-03-01"]}).warnings == []


def test_values_that_cannot_be_read_are_described_by_type_share_and_one_example() -> None:
    contract = make_contract(
        a={"type": "float", "nullable": True}, b={"type": "int"}, c={"type": "int", "masked": True}
    )
    landed = land(contract, {"a": ["1", "1,5"], "b": [DAY, DAY], "c": ["secret", "1"]})
    assert landed.warnings == []
    assert landed.describe_reading("a") == "a landed as text, 50.0% of it not readable as float, such as '1,5'"
    assert landed.describe_reading("b").startswith(
        "b landed as timestamp[us, tz=UTC], 100.0% of it not readable as int"
    )
    assert landed.describe_reading("c") == "c landed as text, 50.0% of it not readable as int"


def test_an_example_is_short_and_holds_nothing_that_a_terminal_would_obey() -> None:
    landed = land(make_contract(a={"type": "float"}), {"a": ["\x1b[2J\u202e\n" + "x" * 5000]})
    described = landed.describe_reading("a")
    assert described.isprintable()
    assert len(described) < 120


def test_a_hundred_thousand_values_next_to_a_bad_one_are_read_quickly() -> None:
    texts = [*map(str, np.arange(100_000) + 2**53), "x"]
    found = cast_column(pa.chunked_array([texts]), pa.int64())
    assert found.null_count == 1
    assert found[:-1].to_pylist() == list(range(2**53, 2**53 + 100_000))
    assert pd.Series(found.to_pandas()).notna().sum() == 100_000


# --- local times ---

BERLIN = ZoneInfo("Europe/Berlin")


def read_local(*texts: object, form: str | None = None) -> list[object]:
    return read_times(pa.chunked_array([pa.array(texts)]), form, BERLIN).to_pylist()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-01 23:30", "2026-03-01T22:30"), ("2026-07-01T00:10:00", "2026-06-30T22:10"),
        ("2026-07-01T00:10:00Z", "2026-07-01T00:10"), ("2026-07-01 00:10:00 UTC", "2026-07-01T00:10"),
        ("2026-07-01T00:10:00-05:00", "2026-07-01T05:10"), ("2026-07-01", "2026-06-30T22:00"),
        (date(2026, 3, 1), "2026-02-28T23:00"), (datetime(2026, 3, 1, 12), "2026-03-01T11:00"),
        (DAY, "2026-03-01T00:00"),
        ("2026-03-29 02:30", "2026-03-29T01:00"),  # skipped by the clocks: the first instant after the gap
        ("2026-10-25 02:30", "2026-10-25T00:30"),  # occurs twice: the first of the two
        ("soon", None), ("0001-01-01", None), ("9999-12-31T23:59", None),
    ],
)  # fmt: skip
def test_a_time_without_an_offset_is_local_and_one_with_an_offset_is_not(value: object, expected: str | None) -> None:
    wanted = datetime.fromisoformat(expected).replace(tzinfo=UTC) if expected else None
    assert read_local(value) == [wanted]
    if isinstance(value, str):
        assert read_local("2026-07-01T00:10:00Z", value, "x")[1] == wanted


def test_local_times_may_have_a_format() -> None:
    assert read_local("01.07.2026 00:10", "01.07.2026 00:10 UTC", form="DD.MM.YYYY") == [
        datetime(2026, 6, 30, 22, 10, tzinfo=UTC),
        datetime(2026, 7, 1, 0, 10, tzinfo=UTC),
    ]


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2037, 12, 1)))  # Arrow ends summer times with 2037
def test_any_local_time_is_the_first_instant_that_shows_it_or_the_first_after_a_gap(at: datetime) -> None:
    [found] = read_local(at.isoformat())
    shown = found.astimezone(BERLIN)
    if shown.replace(tzinfo=None) == at:
        assert shown.fold == 0
    else:  # skipped
        assert shown.replace(tzinfo=None) - at <= timedelta(hours=1)
        assert (found - timedelta(microseconds=1)).astimezone(BERLIN).replace(tzinfo=None) < at
