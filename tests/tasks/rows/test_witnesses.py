"""Great Expectations sees a few rows of each slice; its verdicts are those that it gives when it sees all."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import ParamsInvalid
from tasks.rows.contract import ContractExpectation
from tasks.rows.expectations import Suite
from tasks.rows.witnesses import find_witnesses, is_of_one_value, show

VALUES = {
    "amount": (pa.float64(), [0.0, -0.0, 1.0, 1.5, 5.0, 1e308, float("inf"), float("-inf"), float("nan"), None]),
    "count": (pa.int64(), [0, 1, 5, -1, 2**53, 2**53 + 1, 2**63 - 1]),
    "age": (pa.int64(), [0, 1, 5, 2**53, 2**53 + 1, None]),
    "town": (pa.string(), ["", "Bonn", "bonn", "Ulm", "1", "2024-01-01", "nan", None]),
    "is_new": (pa.bool_(), [True, False, None]),
    "seen": (pa.timestamp("us", tz="UTC"), [pd.Timestamp(0, tz="UTC"), pd.Timestamp("2024-01-01", tz="UTC"), None]),
}
LIMITS = {
    "amount": [(0, 5), (None, 1.5), (0.0, float("inf"))],
    "count": [(1, 2**53)],
    "age": [(-1, 2**53 + 1), (True, 5)],
}
SETS = {"amount": [0, 1.5], "count": [5, 2**53 + 1], "age": [0, 1.0], "town": ["Bonn", "1"], "is_new": [True]}
PAIR = {"column_A": "amount", "column_B": "count"}


def expect(what: str, **kwargs: object) -> ContractExpectation:
    return ContractExpectation(level="row", type=f"expect_column_{what}", kwargs=kwargs)


EXPECTATIONS = [
    *(expect("values_to_not_be_null", column=name) for name in VALUES),
    expect("values_to_be_null", column="town"),
    *(
        expect("values_to_be_between", column=name, min_value=low, max_value=high, strict_min=name != "age")
        for name, limits in LIMITS.items()
        for low, high in limits
    ),
    *(expect("values_to_be_in_set", column=name, value_set=values) for name, values in SETS.items()),
    *(expect("values_to_not_be_in_set", column=name, value_set=values) for name, values in SETS.items()),
    *(expect(f"values_to_{what}", column="town", regex="^B|^[0-9.]+$") for what in ("match_regex", "not_match_regex")),
    expect("values_to_match_regex", column="amount", regex="^[0-9.]+$"),  # 0.0 matches, -0.0 does not
    expect("values_to_match_strftime_format", column="town", strftime_format="%Y-%m-%d"),
    expect("pair_values_a_to_be_greater_than_b", **PAIR),
]
SUITE = Suite(EXPECTATIONS)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """A frame as validation makes it, of 1 to 60 rows."""
    rows = draw(st.integers(1, 60))
    columns = {
        name: pa.array(draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows)), kind)
        for name, (kind, values) in VALUES.items()
    }
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame


@given(frames())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_verdicts_are_those_on_all_rows(frame: pd.DataFrame) -> None:
    expected = SUITE._judge(frame, EXPECTATIONS)
    found = SUITE.judge(frame)
    assert list(found) == list(expected)
    for expectation, mask in expected.items():
        np.testing.assert_array_equal(found[expectation], mask, err_msg=expectation.text)


def test_values_that_are_there_and_inside_the_limits_are_not_shown() -> None:
    expectations = [
        expect("values_to_not_be_null", column="amount"),
        expect("values_to_be_between", column="amount", min_value=0, max_value=100),
        expect("values_to_not_be_null", column="town"),
        expect("values_to_be_in_set", column="town", value_set=["Bonn", "Ulm"]),
    ]
    frame = pd.DataFrame({"amount": [5.0, 0.0, 7.0, -3.0, np.nan, 0.0], "town": ["Ulm", "Ulm", "Bonn"] * 2})
    doubtful, witnesses = find_witnesses(frame, expectations)
    assert doubtful == [expectations[0], expectations[1], expectations[3]]
    shown = show(frame, witnesses)
    assert shown["amount"].tolist() == [0.0, -3.0, pytest.approx(np.nan, nan_ok=True)]
    assert shown["town"].tolist() == ["Ulm", "Bonn", "Ulm"]
    assert witnesses["amount"].expand(np.array([False, True, True])).tolist() == [False] * 3 + [True, True, False]


def test_what_looks_at_more_than_one_value_is_shown_all_rows() -> None:
    assert is_of_one_value(expect("values_to_be_in_set", column="town", value_set=["Ulm"]))
    assert not is_of_one_value(expect("values_to_be_in_set", column="town", value_set=["Ulm"], mostly=0.9))
    assert not is_of_one_value(expect("values_to_be_unique", column="town"))
    assert not is_of_one_value(expect("values_to_be_of_type", column="town", type_="str"))
    assert not is_of_one_value(expect("pair_values_a_to_be_greater_than_b", **PAIR))
    assert not is_of_one_value(
        expect("values_to_be_in_set", column="town", value_set=["Ulm"], row_condition="amount > 1")
    )


def test_arguments_are_checked_even_if_nothing_is_in_doubt() -> None:
    suite = Suite([expect("values_to_be_between", column="amount")])
    with pytest.raises(ParamsInvalid, match="expect_column_values_to_be_between"):
        suite.judge(pd.DataFrame({"amount": [1.0]}))
