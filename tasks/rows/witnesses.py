"""Witnesses: the few rows on which the verdicts of expectations about single values depend.

Such an expectation gives equal values the same verdict. So Great Expectations has to see each value of a column only
once, and values that clearly meet it (one that is there, a number strictly between two limits) not at all: a few
rows in place of all those of a slice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.rows.contract import ContractExpectation

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
PRESENT = "expect_column_values_to_not_be_null"
BETWEEN = "expect_column_values_to_be_between"
# Those whose verdict on a value depends on nothing but the value, with these arguments.
OF_ONE_VALUE = frozenset(
    {PRESENT, BETWEEN}
    | {f"expect_column_values_to_{what}" for what in ("be_null", "be_in_set", "not_be_in_set")}
    | {f"expect_column_values_to_{what}" for what in ("match_regex", "match_regex_list", "match_strftime_format")}
    | {f"expect_column_values_to_{what}" for what in ("not_match_regex", "not_match_regex_list")}
)
ARGUMENTS = frozenset(
    {"column", "min_value", "max_value", "strict_min", "strict_max", "value_set"}
    | {"regex", "regex_list", "match_on", "strftime_format"}
)
NUMBERS = {int, float, type(None)}  # types of limits; not bool


@dataclass(frozen=True, eq=False)
class Witnesses:
    """The witnesses of one column of a frame of N rows, for K distinct values.

    rows: (R,) the rows in doubt; codes: (R,) for each its value, 0 to K-1; shown: (K,) a row with each value.
    """

    count: int  # N
    rows: Rows
    codes: Rows
    shown: Rows

    def expand(self, is_broken: Mask) -> Mask:
        """From a mask over the values, with K or more entries, to one over all rows (N,)."""
        mask = np.zeros(self.count, bool)
        mask[self.rows] = is_broken[self.codes]
        return mask


def is_of_one_value(expectation: ContractExpectation) -> bool:
    """Whether the verdict on a row depends only on its value in one column."""
    return expectation.type in OF_ONE_VALUE and expectation.kwargs.keys() <= ARGUMENTS


def find_witnesses(
    frame: pd.DataFrame, expectations: Iterable[ContractExpectation]
) -> tuple[list[ContractExpectation], dict[str, Witnesses]]:
    """The expectations of one value that some row may break, and the witnesses of their columns."""
    doubtful, masks = [], dict[str, Mask]()
    for expectation in expectations:
        name = str(expectation.kwargs["column"])
        if (mask := doubt(frame[name], expectation)).any():
            doubtful.append(expectation)
            masks[name] = masks[name] | mask if name in masks else mask
    return doubtful, {name: _find_values(frame[name], mask) for name, mask in masks.items()}


def doubt(values: pd.Series, expectation: ContractExpectation) -> Mask:
    """The mask (N,) of the rows that do not clearly meet an expectation of one value."""
    if expectation.type == PRESENT:
        is_null: Mask = values.isna().to_numpy()
        return is_null
    low, high = (expectation.kwargs.get(name) for name in ("min_value", "max_value"))
    if expectation.type != BETWEEN or values.dtype.kind not in "if" or not {type(low), type(high)} <= NUMBERS:
        return np.ones(len(values), bool)
    numbers = values.to_numpy()
    is_inside: Mask = ~np.isnan(numbers)
    if low is not None:
        is_inside &= numbers > low
    if high is not None:
        is_inside &= numbers < high
    return ~is_inside


def _find_values(values: pd.Series, is_doubtful: Mask) -> Witnesses:
    rows = np.flatnonzero(is_doubtful)
    doubted = values.iloc[rows]
    is_float = doubted.dtype == np.float64  # compared by their bits: 0.0 equals -0.0, but its text does not
    codes, distinct = pd.factorize(doubted.to_numpy().view(np.int64) if is_float else doubted, use_na_sentinel=False)
    shown = np.zeros(len(distinct), np.int64)
    shown[codes] = rows
    return Witnesses(len(values), rows, codes, shown)


def show(frame: pd.DataFrame, witnesses: Mapping[str, Witnesses]) -> pd.DataFrame:
    """A frame of each column's witnesses: value k in row k. Columns with fewer repeat their first."""
    count = max(len(one.shown) for one in witnesses.values())
    columns = {}
    for name, one in witnesses.items():
        rows = np.concatenate([one.shown, np.full(count - len(one.shown), one.shown[0])])
        columns[name] = frame[name].take(rows).reset_index(drop=True)
    return pd.DataFrame(columns)
