"""Kinds of columns as a stranger's data brings them, sampling, and what is refused."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.columns import Column
from models.encoders import choose_kinds
from models.params import EncodeParams
from models.records import make_records
from tasks.errors import SourceInvalid
from tasks.onboarding.profile import ColumnProfile, decide_kind, decide_kinds, draw_sample, profile_column
from tasks.onboarding.reading import find_reading
from tasks.rows.contract import TYPES
from tasks.rows.schema import cast_column
from tasks.sources.arrival import Arrival

N = 400
rng = np.random.default_rng(4)
HEAVY = rng.lognormal(0, 2, N)
START = dt.datetime(2026, 3, 1, 7, 30)


def arrive(*tables: pa.Table, name: str = "rows.parquet") -> Arrival:
    return Arrival(name, "1", dt.datetime(2026, 3, 9, tzinfo=dt.UTC), lambda: tables)


def look_at(values: Any, name: str = "x", kind: pa.DataType | None = None) -> ColumnProfile:
    column = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return profile_column(name, pa.chunked_array([column]), np.ones(len(column), dtype=bool))


COLUMNS: dict[str, tuple[Any, str, str | None]] = {
    "measured numbers": (rng.normal(size=N), "numeric", "float"),
    "decimals": ([Decimal(str(x)) for x in rng.integers(100, 999, N)], "numeric", "float"),
    "whole numbers that repeat": (rng.integers(0, 50, N), "numeric", "int"),
    "numbers as text": ([str(x) for x in rng.normal(size=N)], "numeric", "float"),
    "numbers as text with gaps": (["n/a", "?", ""] * 30 + [str(x) for x in rng.normal(size=N)], "numeric", "float"),
    "numbers as text, four not": (["oops"] * 4 + [str(x) for x in rng.normal(size=N)], "numeric", "float"),
    "infinite and NaN": ([np.inf, -np.inf, np.nan, *rng.normal(size=N)], "numeric", "float"),
    "infinite too often": ([np.inf] * 5 + [*rng.normal(size=N)], "left out", "float"),
    "numbers beyond int64": (
        pa.array([2**63 + 2**50 * int(x) for x in rng.integers(0, 99, N)], pa.uint64()),
        "numeric",
        "float",
    ),
    "a heavy tail": (HEAVY, "log_numeric", "float"),
    "a heavy tail with negatives": (HEAVY - 1, "numeric", "float"),
    "0 and 1": (rng.integers(0, 2, N), "categorical", "int"),
    "true and false": (rng.random(N) < 0.5, "categorical", "bool"),
    "true and false as text": (["True", "false"] * 200, "categorical", "bool"),
    "a few words": (["red", "green", "blue", "red"] * 100, "categorical", "text"),
    "words in a dictionary": (pa.array(["red", "green"] * 200).dictionary_encode(), "categorical", "text"),
    "codes with leading zeros": ([f"{x:03d}" for x in rng.integers(0, 30, N)], "categorical", "text"),
    "words and empty texts": (["", "red", "green", "red"] * 100, "categorical", "text"),
    "date-times": ([START + dt.timedelta(hours=7 * n) for n in range(N)], "date-time", "timestamp"),
    "date-times as text": ([f"2026-03-01T{n % 24:02d}:00:00Z" for n in range(N)], "date-time", "timestamp"),
    "dates": ([dt.date(1970, 1, 1) + dt.timedelta(days=int(n)) for n in range(N)], "left out", "timestamp"),
    "a constant": ([7.0] * N, "left out", "float"),
    "a constant with gaps": ([7.0, None] * 200, "left out", "float"),
    "nothing": ([None] * N, "left out", "text"),
    "nothing but empty texts": (["", " "] * 200, "categorical", "text"),
    "only infinite": ([np.inf, -np.inf, np.inf, np.inf] * 100, "left out", "float"),
    "a row counter": (range(N), "left out", "int"),
    "seconds that rise": (np.sort(rng.uniform(0, 1e5, N)), "left out", "float"),
    "names of persons": ([f"person {n}" for n in range(N)], "left out", "text"),
    "lists": ([[1, 2]] * N, "left out", None),
    "records": ([{"a": 1}] * N, "left out", None),
    "bytes": ([b"x", b"y"] * 200, "left out", None),
    "times of day": ([dt.time(1, 2), dt.time(3, 4)] * 200, "left out", None),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_each_column_gets_its_kind_its_type_and_a_reason(case: str) -> None:
    values, kind, type_ = COLUMNS[case]
    profile = look_at(values)
    decision = decide_kind(profile)
    assert (decision.kind, profile.type) == (kind, type_)
    assert decision.rule


def test_an_unordered_key_is_left_out_by_its_name_alone() -> None:
    shuffled = rng.permutation(N)
    for name in ("customer_id", "id", "Order ID", "orderId", "UUID"):
        assert decide_kind(look_at(shuffled, name)).kind == "left out"
    assert decide_kind(look_at(shuffled, "amount")).kind == "numeric"
    assert decide_kind(look_at(shuffled, "humid")).kind == "numeric"


def test_too_many_categories_are_left_out_and_many_with_few_common_ones_are_not() -> None:
    even = [f"shop {n // 2}" for n in range(1200)]
    assert "too many" in decide_kind(look_at(even)).rule
    assert decide_kind(look_at(["main"] * 4800 + even)).kind == "categorical"


@pytest.mark.parametrize("name", ["", " ", "record_id", "event_time", "_label", "_batch_date"])
def test_a_name_that_nightjar_needs_itself_or_that_is_none_is_left_out(name: str) -> None:
    assert decide_kind(look_at(rng.normal(size=N), name)).kind == "left out"


def test_names_that_differ_only_in_capitals_leave_the_first_one() -> None:
    profiles = [look_at(rng.normal(size=N), name) for name in ("Spend", "spend", 'Odd näme, with: "signs"')]
    assert [d.kind for d in decide_kinds(profiles, {})] == ["numeric", "left out", "numeric"]


def test_missing_and_unreadable_values_are_counted_and_ranges_are_of_finite_numbers() -> None:
    profile = look_at(["1", "2", "x", None, "inf"] * 1 + ["3"] * 95)
    assert (profile.missing, profile.unreadable, profile.infinite) == (1, 1, 1)
    assert (profile.low, profile.high, profile.distinct) == (1.0, 3.0, 4)


@pytest.mark.parametrize("shift", [0.0, -0.001])
@pytest.mark.parametrize("sigma", [0.3, 0.5, 2.0])
def test_log_numeric_is_decided_as_fitting_decides_it(sigma: float, shift: float) -> None:
    numbers = np.random.default_rng(1).lognormal(0, sigma, 3000) + shift - (shift < 0)
    [column] = choose_kinds([Column("x", "numeric")], make_records(numbers[:, None]), EncodeParams())
    assert decide_kind(look_at(numbers)).kind.replace("-", "_") == column.kind


def test_rows_labelled_anomalous_do_not_make_a_column_skewed() -> None:
    numbers = np.concatenate([rng.uniform(1, 2, N), [1e6] * 5])
    column = pa.chunked_array([pa.array(numbers)])
    assert decide_kind(profile_column("x", column, np.ones(len(numbers), dtype=bool))).kind == "log_numeric"
    assert decide_kind(profile_column("x", column, numbers < 1e6)).kind == "numeric"


WORDS = st.sampled_from(["1", "2.5", "true", "no", "2026-01-02", "?"])
TEXTS = st.one_of(st.none(), WORDS, st.text(max_size=6), st.floats().map(str))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=30))
def test_any_text_has_a_type_whose_cast_loses_next_to_nothing(texts: list[str | None]) -> None:
    column = pa.chunked_array([pa.array(texts, pa.string())])
    kind = find_reading("x", column).type
    assert kind is not None
    profile = look_at(texts, kind=pa.string())
    decide_kind(profile)
    if kind == "text":
        assert cast_column(column, TYPES[kind]).null_count == column.null_count
    assert profile.missing <= len(texts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(-(2**70), 2**70).map(float)), min_size=1, max_size=30))
def test_any_numbers_can_be_profiled(numbers: Sequence[float | None]) -> None:
    profile = look_at(numbers, kind=pa.float64())
    decision = decide_kind(profile)
    assert decision.kind in ("numeric", "log_numeric", "categorical", "left out")
    assert np.isfinite(profile.skewness)


def test_a_small_source_is_sampled_whole_and_in_order() -> None:
    tables = [pa.table({"x": [1, 2], "y": ["a", "b"]}), pa.table({"x": [3], "y": [None]})]
    sample = draw_sample([arrive(*tables), arrive(tables[0])], label="y")
    assert sample.table["x"].to_pylist() == [1, 2, 3, 1, 2]
    assert (sample.rows, sample.sizes) == (5, (3, 2))
    assert sample.labels == {"a": 2, "b": 2}


def test_a_large_source_is_sampled_evenly_and_counted_whole() -> None:
    tables = [
        pa.table({"x": np.arange(start, start + 1000), "y": ["1"] + ["0"] * 999}) for start in range(0, 20_000, 1000)
    ]
    sample = draw_sample([arrive(*tables)], label="y", most=2000)
    places = sample.table["x"].to_numpy()
    assert len(places) == 2000
    assert (np.diff(places) > 0).all()
    assert abs(places.mean() - 10_000) < 500
    assert (sample.rows, sample.labels) == (20_000, {"0": 19_980, "1": 20})


def test_wide_rows_are_sampled_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.onboarding.profile.SAMPLE_BYTES", 1_000_000)
    tables = [pa.table({"x": np.arange(n, n + 100), "y": ["long " * 2000] * 100}) for n in range(0, 2000, 100)]
    sample = draw_sample([arrive(*tables)], most=1500)
    assert sample.table.nbytes <= 1_050_000
    assert 90 <= sample.table.num_rows <= 100
    assert (np.diff(sample.table["x"].to_numpy()) > 0).all() and sample.rows == 2000
    monkeypatch.setattr("tasks.onboarding.profile.SAMPLE_BYTES", 1)
    assert draw_sample([arrive(*tables)]).table.num_rows == 50


def test_a_source_without_rows_with_repeated_names_or_with_other_types_is_refused() -> None:
    with pytest.raises(SourceInvalid, match="no rows"):
        draw_sample([arrive(pa.table({"x": pa.array([], pa.int64())}))])
    with pytest.raises(SourceInvalid, match="two columns with the same name"):
        draw_sample([arrive(pa.table([[1], [2]], names=["x", "x"]))])
    with pytest.raises(SourceInvalid, match="incompatible columns"):
        draw_sample([arrive(pa.table({"x": [1]})), arrive(pa.table({"x": ["a"]}), name="b.parquet")])
