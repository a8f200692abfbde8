"""Scales by entity, against pandas; what an encoder and a detector make of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import MAX_DEVIATION, Encoder, encode_records
from models.entities import NO_ENTITY, SPREAD_FLOOR, EntityScales
from models.params import AutoencoderParams, FitParams, NeighboursParams, QuantilePolicy, ResidualParams
from models.records import Records, make_records

MINIMUM = 10
COLUMNS = (
    Column("amount", "log_numeric", per_entity=MINIMUM),
    Column("age", "numeric"),
    Column("visits", "numeric", per_entity=MINIMUM),
    Column("card", "key", is_entity=True),
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)


def fit_scales(numbers: np.ndarray, entities: np.ndarray, minimum: int = MINIMUM) -> EntityScales:
    scales = EntityScales(len(numbers))
    scales.fit(torch.tensor(numbers), torch.tensor(entities), torch.full((len(numbers),), minimum))
    return scales


def make_cards(n: int, seed: int, cards: int = 40) -> Records:
    """Rows of cards that spend from 3 to 3,000 at a time; card 1 is the lightest."""
    rng = np.random.default_rng(seed)
    card = rng.integers(1, cards + 1, n)
    amount = 3 * 1000 ** ((card - 1) / (cards - 1)) * rng.lognormal(0, 0.2, n)
    numbers = np.stack([amount, rng.normal(40, 9, n), card + rng.normal(0, 0.5, n)], axis=1)
    return make_records(numbers, entities=card[:, None])


def measure_by_hand(values: pd.Series) -> tuple[float, float]:
    """The lower median, and the median absolute deviation from it, or the mean one."""
    if values.empty:
        return 0.0, 0.0
    median = values.quantile(0.5, interpolation="lower")
    far = (values - median).abs()
    return median, 1.4826 * far.quantile(0.5, interpolation="lower") or np.sqrt(np.pi / 2) * far.mean()


def compare_by_hand(n: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The variance that two halves have in common, and the rows that show as much of an entity as is its own."""
    found = np.cov(np.stack([first, second]), aweights=n, ddof=0)
    own, whole = found[0, 1], np.trace(found) / 2
    return max(own, 0.0), n.mean() / 2 * max(whole - own, 0.0) / own if own > 0 else np.inf


def weigh_by_hand(values: pd.Series, entities: np.ndarray, spread: float) -> tuple[float, float, float, float]:
    """The variances within entities and between them, k, and c, from those of at least ten rows."""
    groups = [own.dropna() for entity, own in values.groupby(entities) if entity != NO_ENTITY]
    long = [own for own in groups if len(own) >= 10]
    n = np.array([len(own) for own in long])
    spreads = np.concatenate([np.repeat(measure_by_hand(own)[1], len(own)) for own in long])
    within = float(np.quantile(spreads, 0.5, method="inverted_cdf")) ** 2
    cut = [(own.iloc[: -(-len(own) // 2)], own.iloc[-(-len(own) // 2) :]) for own in long]
    first, second = (np.array([measure_by_hand(pair[half]) for pair in cut]) for half in (0, 1))
    between, k = compare_by_hand(n, first[:, 0], second[:, 0])
    logs = (np.log(np.maximum(half[:, 1] / spread, 1e-3)) for half in (first, second))
    return within, between, k, max(MINIMUM, compare_by_hand(n, *logs)[1])


def test_location_and_spread_of_each_entity_are_those_of_pandas_drawn_towards_those_of_all_rows() -> None:
    rng = np.random.default_rng(1)
    entities = rng.integers(-3, 12, 400) * 2**59
    numbers = np.stack([rng.normal(entities / 2**59, 1.0), rng.integers(0, 3, 400).astype(float)])
    numbers[0, ::7] = np.nan
    scales = fit_scales(numbers, entities)
    places = scales.find(torch.tensor(entities))
    for column, values in enumerate(numbers):
        location, spread = measure_by_hand(pd.Series(values).dropna())
        assert np.isclose(float(scales.location[column]), location) and np.isclose(float(scales.spread[column]), spread)
        within, between, k, c = weigh_by_hand(pd.Series(values), entities, spread)
        for entity, own in pd.Series(values).groupby(entities):
            place = int(places[np.flatnonzero(entities == entity)[0]])
            n = own.count() if entity != NO_ENTITY else 0
            z, y = n / (n + k), n / (n + c)
            own_location, own_spread = measure_by_hand(own.dropna())
            expected = z * own_location + (1 - z) * location
            assert np.isclose(location + spread * float(scales.shifts[place, column]), expected, atol=1e-6)
            expected = np.sqrt(y * own_spread**2 + (1 - y) * within + (1 - z) * between)
            assert np.isclose(spread * float(scales.ratios[place, column]), expected)


def test_an_unknown_entity_and_a_missing_one_have_the_scale_of_all_rows() -> None:
    numbers, entities = np.array([[1.0, 2.0, 3.0, 40.0]]), np.array([5, 5, 7, NO_ENTITY])
    scales = fit_scales(numbers, entities)
    expected = (10.0 - 2.0) / (1.4826 * 1.0)  # lower medians
    found = scales.scale(torch.full((1, 4), 10.0, dtype=torch.float64), torch.tensor([NO_ENTITY, 6, -9, 8]))
    assert found[0].tolist() == pytest.approx([expected] * 4)
    assert float(scales.scale(torch.full((1, 1), 10.0).double(), torch.tensor([5]))) != expected


def test_a_long_history_counts_for_itself_and_a_short_one_hardly() -> None:
    rng = np.random.default_rng(2)
    alike = rng.normal(0, 1, 6003)  # of entities that do not differ: their locations say nothing
    numbers = np.stack([alike, alike + np.repeat([0, 50, 100], [3000, 3, 3000])])
    numbers[:, 3000:3003] = [[3.0, 3.01, 3.02], [50.0, 50.01, 50.02]]
    scales = fit_scales(numbers, np.repeat([1, 2, 3], [3000, 3, 3000]), 30)
    location = scales.location + scales.spread * scales.shifts.double()
    assert location[:, 0].tolist() == pytest.approx([0] * 4, abs=0.2)
    assert location[:3, 1].tolist() == pytest.approx([0, 50, 100], abs=0.5)
    spread = scales.spread * scales.ratios.double()
    assert spread[[0, 2]].flatten().tolist() == pytest.approx([1, 1, 1, 1], abs=0.1)
    assert 0.8 < float(spread[1, 0]) < 1.1 and 0.8 < float(spread[1, 1]) < 2


def test_entities_that_are_alike_have_one_scale() -> None:
    rng = np.random.default_rng(5)
    entities = rng.integers(1, 3000, 60_000)
    prices = np.array([1.0, 3.0, 6.0])[rng.integers(0, 3, 60_000)]  # whatever the shape of the values
    scales = fit_scales((prices + rng.normal(0, 0.3, 60_000))[None], entities, 30)
    ratios = scales.ratios[:-1, 0] / scales.ratios[:-1, 0].median()
    assert float(scales.shifts.abs().max()) < 0.1 and 0.9 < float(ratios.min()) < float(ratios.max()) < 1.1


def test_an_entity_whose_values_are_all_equal_has_a_tenth_of_the_usual_spread() -> None:
    rng = np.random.default_rng(3)
    entities = np.repeat([1, 2, 3], [20_000, 20_000, 10_000])
    numbers = np.concatenate([rng.normal(0, 1, 20_000), rng.normal(90, 1, 20_000), np.full(10_000, 45.0)])
    scales = fit_scales(numbers[None], entities, 1)
    assert float(scales.spread * scales.ratios[2, 0]) == pytest.approx(SPREAD_FLOOR, rel=0.05)


def test_a_heavy_column_is_scaled_on_its_logarithm_and_others_as_they_are() -> None:
    records = make_cards(2000, 1)
    encoded = encode_records(Encoder(COLUMNS).fit(records), records).numpy()  # age, visits, amount
    numbers, cards = records.numbers.numpy(), records.entities.numpy()[:, 0]
    logs = np.log1p(numbers[:, 0])
    scales = fit_scales(np.stack([numbers[:, 2], logs]), cards)
    own = scales.scale(torch.tensor(np.stack([numbers[:, 2], logs])), torch.tensor(cards)).numpy()
    expected = np.stack([numbers[:, 1], *own], axis=1)
    assert np.allclose(encoded, (expected - expected.mean(axis=0)) / expected.std(axis=0), atol=1e-5)
    light, heavy = (encoded[cards == card, 2].mean() for card in (1, 40))
    assert abs(light - heavy) < 0.5 < 3 < np.ptp(logs) / logs.std()


@given(arrays(np.float64, (6, 3), elements=FLOATS), arrays(np.int64, (6, 1), elements=st.integers(-2, 2)))
@settings(max_examples=60, deadline=None)
def test_whatever_numbers_and_entities_come_in_slots_are_finite_and_of_their_own_row(
    numbers: np.ndarray, entities: np.ndarray
) -> None:
    records = make_records(numbers, entities=entities)
    encoder = Encoder(COLUMNS).fit(records)
    with torch.no_grad():
        encoded = encoder(records)
        assert encoded.shape == (6, 3) and bool((encoded.abs() <= MAX_DEVIATION).all())
        for row in range(6):
            assert torch.equal(encoder(records[row : row + 1])[0], encoded[row])


@given(arrays(np.float64, (5, 3), elements=st.floats(-1e4, 1e4)), arrays(np.int64, (5, 1), elements=st.integers(0, 45)))
@settings(max_examples=60, deadline=None)
def test_decoding_gives_the_values_back_in_their_own_units(numbers: np.ndarray, entities: np.ndarray) -> None:
    encoder = Encoder(COLUMNS).fit(make_cards(2000, 1))
    records = make_records(numbers, entities=entities)
    values = encoder.decode(encode_records(encoder, records), records.entities).numpy()
    assert np.allclose(values, numbers, rtol=1e-3, atol=1e-2)


def test_a_key_has_no_slot_and_no_unit_and_must_be_given() -> None:
    encoder = Encoder(COLUMNS)
    assert encoder.width == len(encoder.units) == 3 and {unit.column for unit in encoder.units} == {0, 1, 2}
    with pytest.raises(Exception, match="do not have the detector's columns"):
        encode_records(encoder, make_records(np.zeros((2, 3))))


@pytest.mark.parametrize("score", [ResidualParams(), NeighboursParams(references=300)], ids=["residual", "neighbours"])
def test_a_bundle_keeps_the_scales_and_a_cause_expects_what_is_usual_for_the_entity(
    tmp_path: Path, score: ResidualParams | NeighboursParams
) -> None:
    networks = (AutoencoderParams(layers=(8, 2, 8)),)
    params = ModelParams(networks=networks, fit=FitParams(epochs=20, batch_size=64), score=score)
    fitted = fit_detector(COLUMNS, make_cards(3000, 1), make_cards(500, 2), params, torch.device("cpu"))
    detector = calibrate_detector(fitted, make_cards(1000, 3), QuantilePolicy())
    content = detector.save(tmp_path / "a")
    loaded = Detector.load(tmp_path / "a")
    tested = make_cards(500, 4)
    assert loaded.save(tmp_path / "b") == content
    assert np.array_equal(loaded.score(tested), detector.score(tested))
    assert detector.spreads.shape == (3,)
    # Ten times the usual amount is odd for a light card and for a heavy one; a heavy card's amount only for the light.
    odd = make_records(
        np.array([[30, 40, 1], [30_000, 40, 40], [3000, 40, 1], [3000, 40, 40]]),
        entities=np.array([[1], [40], [1], [40]]),
    )
    assert (loaded.score(odd) > loaded.threshold.value).tolist() == [True, True, True, False]
    explained = loaded.explain(odd)
    assert np.allclose(explained.actual, odd.numbers, rtol=1e-3)
    expected = explained.expected[:, 0]
    assert 1 < expected[0] < 20 and 1000 < expected[1] < 20_000 and 1000 < expected[3] < 9000


def test_a_detector_without_scales_has_no_trace_of_them(tmp_path: Path) -> None:
    columns = (Column("amount", "log_numeric"), Column("age", "numeric"))
    rows = make_records(make_cards(300, 1).numbers[:, :2].numpy())
    params = ModelParams(networks=(AutoencoderParams(layers=(3,)),), fit=FitParams(epochs=1))
    fit_detector(columns, rows, rows, params, torch.device("cpu")).save(tmp_path)
    header = (tmp_path / "detector.json").read_text()
    assert "entity" not in header and b"scales" not in (tmp_path / "weights.safetensors").read_bytes()
