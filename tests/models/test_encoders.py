from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.columns import MISSING_TIME, PADDING, Column, Tokens
from models.encoders import MAX_DEVIATION, UNSEEN, Encoder, Unit, choose_kinds, encode_records
from models.errors import NightjarError, TooFewRows
from models.params import EncodeParams
from models.records import Records, make_records

MIXED = (
    Column("amount", "log_numeric"),
    Column("country", "categorical", ("DE", "FR")),
    Column("age", "numeric"),
    Column("at", "datetime"),
    Column("channel", "categorical", ("web", "shop", "phone")),
)
WORDS = Column("text", "sequence", ("AB", "XR"), tokens=Tokens(r"\s+", 1, 4, "multi_hot"))
COUNTS = Column("log", "sequence", ("5",), tokens=Tokens(r"\s+", 1, 3, "counts"))
IMAGE = Column("photo", "image", shape=(3, 2))
NEW_KINDS = (WORDS, MIXED[2], IMAGE, COUNTS)
FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)
CODES = st.integers(-(2**63), 2**63 - 1)


def encode(encoder: Encoder, records: Records) -> np.ndarray:
    return encode_records(encoder, records).numpy()


def micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def make_mixed(n: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    numbers = np.stack([rng.lognormal(size=n), rng.normal(40, 9, size=n)], axis=1)
    codes = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n)], axis=1)
    return make_records(numbers, codes, rng.integers(0, 2**51, (n, 1)))


def test_a_row_has_the_slots_of_its_kinds_and_each_slot_knows_its_column() -> None:
    encoder = Encoder(MIXED)
    assert encoder.width == 1 + 1 + 3 + 4 + 4
    assert encoder.slots.tolist() == [2, 0, 1, 1, 1, 4, 4, 4, 4, 3, 3, 3, 3]


def test_numbers_are_standardised_after_the_logarithm_if_requested() -> None:
    records = make_mixed(50)
    logs, ages = np.log1p(records.numbers[:, 0].numpy()), records.numbers[:, 1].numpy()
    encoded = encode(Encoder(MIXED).fit(records), records)
    assert np.allclose(encoded[:, 0], (ages - ages.mean()) / ages.std(), atol=1e-6)
    assert np.allclose(encoded[:, 1], (logs - logs.mean()) / logs.std(), atol=1e-6)


def test_a_category_takes_one_slot_and_an_unseen_one_the_last() -> None:
    encoder = Encoder(MIXED[1:2])
    codes = np.array([[0], [1], [2], [7], [-1]])
    assert encode(encoder, make_records(codes=codes)).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 1],
    ]


def test_a_time_takes_its_place_on_the_clocks_of_the_day_and_of_the_week() -> None:
    moment = datetime(2026, 11, 19, 6, tzinfo=UTC)  # a Thursday, as the epoch was: a quarter of a day into its week
    encoded = encode(Encoder(MIXED[3:4]), make_records(times=np.array([[micros(moment)]])))
    week = 2 * np.pi * 6 / (7 * 24)
    assert np.allclose(encoded, [[1, 0, np.sin(week), np.cos(week)]], atol=1e-6)


def test_a_missing_time_sits_at_the_centre_of_the_clocks() -> None:
    encoded = encode(Encoder(MIXED[3:4]), make_records(times=np.array([[MISSING_TIME]])))
    assert encoded.tolist() == [[0, 0, 0, 0]]


def test_a_pixel_is_its_share_of_white() -> None:
    encoded = encode(Encoder([IMAGE]), make_records(pixels=np.array([[0, 255, 51, 102, 1, 254]], dtype=np.uint8)))
    assert np.allclose(encoded, [[0, 1, 0.2, 0.4, 1 / 255, 254 / 255]], atol=1e-7)


def test_rare_and_unseen_categories_have_a_slot_each() -> None:
    encoder = Encoder([Column("c", "categorical", ("a", "b"), rare="x"), MIXED[1]])
    codes = np.array([[0, 0], [2, 2], [3, 1], [-1, 0], [9, 9]])
    assert encode(encoder, make_records(codes=codes)).tolist() == [
        [1, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0, 1],
    ]  # fmt: skip


def test_a_token_fills_its_slot_and_all_unseen_ones_share_the_last() -> None:
    rows = [[0, 0, 1, PADDING], [2, 9, -5, 0], [PADDING] * 4]
    assert encode(Encoder([WORDS]), make_records(tokens=np.array(rows))).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]


def test_counted_tokens_take_the_logarithm_of_one_more_than_their_number() -> None:
    rows = np.array([[0, 0, 0], [0, 1, 1], [PADDING] * 3])
    expected = np.log1p([[3, 0], [1, 2], [0, 0]])
    assert np.allclose(encode(Encoder([COUNTS]), make_records(tokens=rows)), expected)


def test_units_are_columns_patches_and_tokens_in_the_order_of_the_columns() -> None:
    columns = (WORDS, MIXED[1], Column("photo", "image", shape=(14, 20)))
    encoder = Encoder(columns)
    patches = [f"rows {a}, columns {b}" for a in ("0-6", "7-13") for b in ("0-5", "6-12", "13-19")]
    assert encoder.units == (
        *(Unit(0, token) for token in ("AB", "XR", UNSEEN)), Unit(1), *(Unit(2, name) for name in patches)
    )  # fmt: skip
    assert encoder.slot_units[:3].tolist() == [3] * 3 and encoder.slot_units[-3:].tolist() == [0, 1, 2]
    units = encoder.slot_units[3:-3].reshape(14, 20)
    assert units[0, 0] == 4 and units[6, 5] == 4 and units[7, 6] == 8 and units[13, 19] == 9


@given(
    arrays(np.float64, (4, 1), elements=FLOATS),
    arrays(np.uint8, (4, 6)),
    arrays(np.int64, (4, 7), elements=st.one_of(CODES, st.integers(-1, 3))),
)
@example(np.array([[0.0], [np.inf], [3.8e302], [3.8e302]]), np.zeros((4, 6), np.uint8), np.zeros((4, 7), np.int64))
@settings(max_examples=60, deadline=None)
def test_whatever_pixels_and_tokens_come_in_each_lands_in_its_columns_slots(
    numbers: np.ndarray, pixels: np.ndarray, tokens: np.ndarray
) -> None:
    records = make_records(numbers, pixels=pixels, tokens=tokens)
    encoder = Encoder(NEW_KINDS).fit(records)
    encoded = encode(encoder, records)
    assert encoder.slots.tolist() == [1, *[2] * 6, *[0] * 3, *[3] * 2]
    assert np.allclose(encoded[:, 1:7] * 255, pixels, atol=1e-4)
    for row, (words, events) in enumerate(zip(tokens[:, :4].tolist(), tokens[:, 4:].tolist(), strict=True)):
        assert encoded[row, 7:10].tolist() == [0 in words, 1 in words, any(t not in (PADDING, 0, 1) for t in words)]
        counts = [events.count(0), sum(t not in (PADDING, 0) for t in events)]
        assert np.allclose(encoded[row, 10:], np.log1p(counts))
    values = encoder.decode(torch.from_numpy(encoded)).numpy()
    assert values.shape == (4, len(encoder.units)) and np.isfinite(values).all()
    assert np.allclose(values[:, 4], pixels.mean(axis=1), atol=1e-3)


def test_decoding_gives_back_the_mean_of_a_patch_and_the_number_of_a_token() -> None:
    pixels = np.arange(6, dtype=np.uint8)[None] * 10
    records = make_records(np.ones((1, 1)), pixels=pixels, tokens=np.array([[0, 0, 7, PADDING, 0, 0, 3]]))
    encoder = Encoder(NEW_KINDS).fit(records)
    values = encoder.decode(encode_records(encoder, records))[0].tolist()
    assert values == pytest.approx([1, 0, 1, 1, 25, 2, 1])


def test_a_missing_number_reads_as_the_mean_and_does_not_move_it() -> None:
    numbers = np.array([[1.0], [3.0], [np.nan], [np.inf]])
    encoder = Encoder([Column("x", "numeric")]).fit(make_records(numbers))
    assert encoder.mean.item() == 2 and encoder.scale.item() == 1
    assert encode(encoder, make_records(numbers)).flatten().tolist() == [-1, 1, 0, MAX_DEVIATION]


@pytest.mark.parametrize("value", [0.0, 0.1, -1.7e308, 1e-320])
def test_a_constant_column_gets_scale_1_and_encodes_to_0(value: float) -> None:
    records = make_records(np.full((7, 1), value))
    encoder = Encoder([Column("x", "numeric")]).fit(records)
    assert encoder.scale.item() == 1
    assert not encode(encoder, records).any()


def test_an_empty_column_encodes_to_0() -> None:
    records = make_records(np.full((3, 1), np.nan))
    assert not encode(Encoder([Column("x", "numeric")]).fit(records), records).any()


@given(arrays(np.float64, (4, 2), elements=FLOATS), arrays(np.int64, (4, 2), elements=CODES), st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_comes_in_encodes_and_decodes_to_finite(
    numbers: np.ndarray, codes: np.ndarray, data: st.DataObject
) -> None:
    records = make_records(numbers, codes, data.draw(arrays(np.int64, (4, 1), elements=CODES)))
    for encoder in (Encoder(MIXED).fit(records), Encoder(MIXED).fit(make_mixed(20))):
        encoded = encoder(records)
        assert encoded.isfinite().all() and encoded.dtype == torch.float32
        assert encoded.abs().max() <= MAX_DEVIATION
        assert encoded[:, 2:9].sum(dim=1).tolist() == [2] * 4  # one slot of each category
    assert encoder.decode(encoded).shape == (4, 5)


@given(arrays(np.float64, (6, 1), elements=st.floats(-1e9, 1e9)))
@settings(max_examples=50, deadline=None)
def test_mean_and_scale_agree_with_numpy(numbers: np.ndarray) -> None:
    encoder = Encoder([Column("x", "numeric")]).fit(make_records(numbers))
    assert np.isclose(encoder.mean.item(), numbers.mean(), rtol=1e-9, atol=1e-9 * np.abs(numbers).max())
    if np.ptp(numbers) > 1e-6 * np.abs(numbers).max() and numbers.std() > 0:  # the smallest numbers have none
        assert np.isclose(encoder.scale.item(), numbers.std(), rtol=1e-6)


def test_decoding_gives_back_values_codes_and_hours() -> None:
    records = make_mixed(30)
    encoder = Encoder(MIXED).fit(records)
    values = encoder.decode(encode_records(encoder, records)).numpy()
    hours = (records.times[:, 0].numpy() % 86_400_000_000) / 3_600_000_000
    assert np.allclose(values[:, 0], records.numbers[:, 0], rtol=1e-4)
    assert np.allclose(values[:, 2], records.numbers[:, 1], rtol=1e-4)
    assert np.array_equal(values[:, [1, 4]], records.codes.numpy())
    assert np.allclose(values[:, 3], hours, atol=1e-3)


def test_encoding_does_not_change_the_records() -> None:
    records = make_mixed(10)
    before = records.numbers.clone()
    encode_records(Encoder(MIXED).fit(records), records)
    assert torch.equal(records.numbers, before)


def test_heavy_tails_without_negative_values_take_the_logarithm() -> None:
    rng = np.random.default_rng(1)
    tail = rng.lognormal(sigma=3, size=500)
    numbers = np.stack([tail, tail - 1, rng.normal(size=500), tail], axis=1)
    numbers[0] = np.nan
    columns = [Column("c", "categorical", ("x",)), *(Column(name, "numeric") for name in "abn")]
    columns += [Column("declared", "log_numeric")]
    records = make_records(numbers, np.zeros((500, 1), dtype=np.int64))
    kinds = [column.kind for column in choose_kinds(columns, records, EncodeParams())]
    assert kinds == ["categorical", "log_numeric", "numeric", "numeric", "log_numeric"]
    kinds = [column.kind for column in choose_kinds(columns, records, EncodeParams(log_skewness=None))]
    assert kinds == ["categorical", "numeric", "numeric", "numeric", "log_numeric"]


def test_records_of_other_columns_are_refused() -> None:
    with pytest.raises(NightjarError, match="do not have the detector's columns"):
        encode_records(Encoder(MIXED), make_records(np.ones((2, 3))))


def test_fitting_on_no_rows_is_refused() -> None:
    with pytest.raises(TooFewRows):
        Encoder(MIXED).fit(make_mixed(0))


def test_a_detector_without_columns_is_refused() -> None:
    with pytest.raises(NightjarError, match="at least one column"):
        Encoder([])
