"""One rule of what names an entity, wherever it is asked."""

import math
import sys
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from models.entities import NO_ENTITY
from tasks.rows.columns import hash_entities
from tasks.rows.entities import lack_entity, write_entity
from tasks.rows.record import RecordRule

SPACES = [character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()]
TEXTS = (
    st.text() | st.text(st.sampled_from([*SPACES, "a"]), max_size=3) | st.sampled_from(["nan", "NaN", " nan", "None"])
)
COLUMNS = (
    st.lists(st.none() | TEXTS).map(lambda values: pa.chunked_array([pa.array(values, pa.string())]))
    | st.lists(st.none() | TEXTS).map(
        lambda values: pa.chunked_array([pa.array(values, pa.string()).dictionary_encode()])
    )
    | st.lists(st.none() | st.floats()).map(lambda values: pa.chunked_array([pa.array(values, pa.float64())]))
    | st.lists(st.none() | st.integers(-9, 9)).map(lambda values: pa.chunked_array([pa.array(values, pa.int64())]))
)


def names_nobody(value: Any) -> bool:
    return value is None or (math.isnan(value) if isinstance(value, float) else not str(value).strip())


def name_by_sql(column: pa.ChunkedArray) -> list[str | None]:
    with duckdb.cursor() as cursor:
        cursor.register("rows", pa.table({"line": np.arange(len(column)), "who": column}))
        return [name for (name,) in cursor.sql(f"select {write_entity('who')} from rows order by line").fetchall()]


@cases(0.6)
@given(COLUMNS)
def test_history_scales_counts_and_flags_agree_on_who_has_no_entity(column: pa.ChunkedArray) -> None:
    expected = [names_nobody(value) for value in column.to_pylist()]
    assert lack_entity(column).to_pylist() == expected
    assert (hash_entities(column) == NO_ENTITY).tolist() == expected
    assert [name is None for name in name_by_sql(column)] == expected
    described = RecordRule("who").describe(pa.table({"who": column}))["entity"]
    assert [name is None for name in described] == expected


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_every_space_is_blank_and_no_other_character(space: str) -> None:
    column = pa.chunked_array([["", space, space * 2, f"{space}\u200b", "nan"]])
    assert lack_entity(column).to_pylist() == [True, True, True, False, False]
    names = [name and name.strip() for name in name_by_sql(column)]  # DuckDB leaves out the spaces around a name
    assert names == [None, None, None, "\u200b", "nan"]
