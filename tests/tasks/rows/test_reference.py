from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.columns import Column
from tasks.rows.reference import load_reference, make_bins, make_reference, read_values

BERLIN = ZoneInfo("Europe/Berlin")
AMOUNT, SHOP, AT = Column("amount", "numeric"), Column("shop", "categorical", ("a", "b")), Column("at", "datetime")


@given(st.lists(st.one_of(st.floats(-1e9, 1e9), st.just(float("nan"))), max_size=50), st.integers(0, 3))
def test_every_value_is_in_one_bin_and_missing_ones_in_none(values, seed):
    training = np.random.default_rng(seed).lognormal(size=30)
    bins = make_bins(AMOUNT, training)
    counts = bins.count(np.array(values, dtype=float))
    assert counts.sum() == np.isfinite(np.array(values, dtype=float)).sum()
    assert len(counts) == len(bins.counts)
    assert sum(bins.counts) == 30


def test_numbers_fall_between_quantiles_so_that_bins_are_equally_full():
    bins = make_bins(AMOUNT, np.arange(10_000.0))
    assert np.allclose(np.array(bins.counts)[1:-1].sum(), 9_800, atol=5)
    assert (bins.median, bins.missing) == (4999.5, 0)
    assert bins.spread == pytest.approx(5000 / 1.349, rel=1e-3)


def test_a_column_without_values_has_bins_too():
    bins = make_bins(AMOUNT, np.full(5, np.nan))
    assert (bins.rows, bins.missing) == (0, 5)
    assert bins.count(np.array([1.0, np.nan])).sum() == 1


def test_categories_have_a_bin_of_their_own_and_unseen_ones_the_last():
    values = read_values(SHOP, pa.chunked_array([["a", "a", "b", None, "new"]]), BERLIN)
    bins = make_bins(SHOP, read_values(SHOP, pa.chunked_array([["a", "b", "b"]]), BERLIN))
    assert bins.codes == (1, 0)
    assert bins.count(values).tolist() == [1, 2, 0, 1]


def test_times_count_by_their_local_hour_so_that_a_clock_change_is_no_change():
    summer, winter = datetime(2026, 7, 1, 10, tzinfo=UTC), datetime(2026, 12, 1, 11, tzinfo=UTC)
    times = pa.chunked_array([pa.array([summer, winter, None], pa.timestamp("us", "UTC"))])
    assert read_values(AT, times, BERLIN).tolist()[:2] == [12, 12]
    assert np.isnan(read_values(AT, times, BERLIN)[2])


def test_images_count_by_their_brightness_and_texts_by_their_length():
    image = Column("image", "image", shape=(1, 2))
    pixels = pa.chunked_array([pa.array([bytes([0, 10]), None, bytes([20, 20])], pa.binary(2))])
    found = read_values(image, pixels, BERLIN)
    assert found[[0, 2]].tolist() == [5, 20] and np.isnan(found[1])
    assert read_values(Column("text", "sequence"), pa.chunked_array([["abc", ""]]), BERLIN).tolist() == [3, 0]


def test_a_reference_survives_json_and_holds_no_category():
    from dataclasses import asdict

    rows = pa.table({"amount": [1.0, 2.0, 3.0], "shop": ["a", "b", "b"]})
    made = make_reference((AMOUNT, SHOP), rows, BERLIN)
    document = {name: asdict(bins) for name, bins in made.items()}
    assert load_reference(document) == made
    assert "'b'" not in repr(document)
