from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from models.columns import Column
from tasks.rows.canaries import choose_canaries, make_canary, name_canary
from tasks.rows.params import CategoryCanary, ShiftCanary, SwapCanary
from tasks.rows.reference import make_reference

COLUMNS = (
    Column("items", "numeric"),
    Column("spend", "log_numeric"),
    Column("shop", "categorical", ("north", "south", "west")),
)
TRAINING = pa.table(
    {
        "items": pa.array(range(1, 101)),
        "spend": np.exp(np.linspace(0, 4, 100)),
        "shop": ["north"] * 60 + ["south"] * 35 + ["west"] * 5,
    }
)
REFERENCE = make_reference(COLUMNS, TRAINING, ZoneInfo("UTC"))
ROWS = TRAINING.slice(0, 70)


def make(canary):
    return make_canary(ROWS, canary, COLUMNS, REFERENCE, np.random.default_rng(0))


def test_a_number_is_shifted_by_its_spreads_and_keeps_its_type():
    made = make(ShiftCanary(kind="shift", column="items", spreads=2))
    moved = np.array(made["items"]) - np.array(ROWS["items"])
    assert np.allclose(moved, 2 * REFERENCE["items"].spread, atol=0.5)
    assert made.schema == ROWS.schema
    assert made["spend"] == ROWS["spend"]


def test_a_log_numeric_column_is_shifted_on_its_logarithm():
    made = make(ShiftCanary(kind="shift", column="spend", spreads=3))
    moved = np.log1p(np.array(made["spend"])) - np.log1p(np.array(ROWS["spend"]))
    assert np.allclose(moved, 3 * REFERENCE["spend"].spread)


def test_two_columns_are_swapped():
    made = make(SwapCanary(kind="swap", columns=("items", "spend")))
    assert np.allclose(made["spend"], ROWS["items"])
    assert np.allclose(made["items"], np.floor(ROWS["spend"]))


def test_a_category_is_the_rarest_or_comes_from_another_segment():
    assert set(make(CategoryCanary(kind="category", column="shop"))["shop"].to_pylist()) == {"west"}
    made = make(CategoryCanary(kind="category", column="shop", segment="shop"))["shop"].to_pylist()
    assert all(one != other for one, other in zip(made, ROWS["shop"].to_pylist(), strict=True))


def test_without_params_canaries_follow_the_kinds_of_columns():
    names = [name_canary(canary) for canary in choose_canaries(COLUMNS)]
    assert names == ["shift items", "shift spend", "swap items and spend", "category shop"]
    assert choose_canaries((Column("picture", "image", shape=(2, 2)),)) == ()


@pytest.mark.parametrize("column", ["items", "spend"])
def test_a_column_of_equal_values_is_shifted_too(column):
    table = TRAINING.set_column(TRAINING.schema.get_field_index(column), column, pa.array([5.0] * 100))
    reference = make_reference(COLUMNS, table, ZoneInfo("UTC"))
    canary = ShiftCanary(kind="shift", column=column, spreads=4)
    made = make_canary(table, canary, COLUMNS, reference, np.random.default_rng(0))
    assert set(made[column].to_pylist()) != {5}
