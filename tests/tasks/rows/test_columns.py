from datetime import UTC, datetime
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.columns import MISSING_TIME, Column, Tokens
from models.entities import NO_ENTITY
from models.records import make_records
from tasks.errors import BatchRejected, BundleInvalid, ParamsInvalid
from tasks.rows.categories import encode_text, translate
from tasks.rows.columns import check_entities, describe_columns, hash_entities, mark_entity, to_records
from tasks.rows.kinds import KINDS
from tasks.rows.params import ColumnsParams, PerEntityParams, SequenceParams

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_every_kind_is_known_to_bundles_and_has_a_key_in_params():
    assert KINDS.keys() == {*get_args(get_type_hints(Column)["kind"])}
    assert KINDS.keys() - {"key"} <= ColumnsParams.model_fields.keys()


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.lists(st.one_of(st.none(), st.sampled_from("abcd"), st.text(max_size=2)), max_size=6), max_size=4
    ),
    vocabulary=st.lists(st.sampled_from(["a", "b", "c", "", "é"]), unique=True, min_size=1),
)
@pytest.mark.slow
def test_codes_agree_with_a_look_up_row_by_row_in_plain_and_encoded_text(chunks, vocabulary):
    plain = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())
    encoded = pa.chunked_array(
        [pa.array(chunk, pa.string()).dictionary_encode() for chunk in chunks],
        pa.dictionary(pa.int32(), pa.string()),
    )
    expected = [vocabulary.index(t) if t in vocabulary else len(vocabulary) for chunk in chunks for t in chunk]
    described = Column("c", "categorical", tuple(vocabulary))
    assert encode_text(plain, described).tolist() == expected
    assert encode_text(encoded, described).tolist() == expected
    assert encode_text(plain, described).dtype == np.int64


def test_null_and_unseen_share_a_slot_and_mark_the_row():
    table = pa.table({"country": ["DE", None, "XX", "FR"]})
    records, unseen = to_records(table, [Column("country", "categorical", ("DE", "FR"))])
    assert records.codes.ravel().tolist() == [0, 2, 2, 1]
    assert unseen.tolist() == [False, True, True, False]


def test_a_null_inside_a_dictionary_is_unseen_too():
    odd = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["DE", None]))
    assert encode_text(pa.chunked_array([odd]), Column("c", "categorical", ("DE", "None"))).tolist() == [0, 2, 2]


def test_a_value_never_seen_is_apart_from_missing_ones_of_the_fit_rows():
    [column] = describe_columns(ColumnsParams(categorical=("c",)), pa.table({"c": ["a", None, "b"]}))
    records, unseen = to_records(pa.table({"c": ["b", None, "new"]}), [column])
    assert records.codes.ravel().tolist() == [1, 2, 3]
    assert unseen.tolist() == [False, False, True]


@given(
    fit=st.lists(st.one_of(st.none(), st.sampled_from("abcdef"), st.text(max_size=3)), min_size=1, max_size=20),
    most=st.integers(1, 4),
    later=st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh"), st.text(max_size=3)), max_size=20),
)
@pytest.mark.slow
def test_seen_rare_and_never_seen_values_agree_with_sets(fit, most, later):
    table = pa.table({"c": pa.array(fit, pa.string())})
    [column] = describe_columns(ColumnsParams(categorical=("c",), max_categories=most), table)
    beyond = set(fit) - set(column.vocabulary)
    size = len(column.vocabulary)
    expected = [
        column.vocabulary.index(text) if text in column.vocabulary else size + (bool(beyond) and text not in beyond)
        for text in later
    ]
    for values in (pa.array(later, pa.string()), pa.array(later, pa.string()).dictionary_encode()):
        records, unseen = to_records(pa.table({"c": values}), [column])
        assert records.codes.ravel().tolist() == expected
        assert unseen.tolist() == [text not in fit for text in later]


def test_a_bundle_holds_no_text_of_rare_values_and_the_same_marks_whatever_the_order_of_rows():
    params = ColumnsParams(categorical=("c",), max_categories=1)
    texts = ["a", "a", "Rosa Kim", "b", None]
    found = {describe_columns(params, pa.table({"c": order})) for order in (texts, texts[::-1])}
    [[column]] = found
    assert column.vocabulary == ("a",) and "Rosa" not in column.rare
    # As stored in bundles: another hash would make every rare value look new.
    assert column.rare == "AAAAAAAAAADDp+gyRNlsCd8e0Tb3ChWw"


def test_each_kind_is_in_its_place_whatever_the_order_of_the_columns():
    table = pa.table(
        {
            "visits": pa.array([1, None, 3], pa.int64()),
            "at": pa.array([NOON, None, NOON], pa.timestamp("us", tz="UTC")),
            "amount": pa.array([0.5, np.nan, np.inf]),
            "is_new": pa.array([True, False, None]),
            "unused": ["x", "y", "z"],
        }
    )
    columns = [
        Column("visits", "numeric"),
        Column("is_new", "categorical", ("false", "true")),
        Column("amount", "log_numeric"),
        Column("at", "datetime"),
    ]
    records, unseen = to_records(table, columns)
    np.testing.assert_array_equal(records.numbers, [[1, 0.5], [np.nan, np.nan], [3, np.inf]])
    assert records.codes.ravel().tolist() == [1, 0, 2]
    micros = int(NOON.timestamp()) * 1_000_000
    assert records.times.ravel().tolist() == [micros, MISSING_TIME, micros]
    assert unseen.tolist() == [False, False, True]


def test_texts_become_tokens_and_a_word_without_a_slot_marks_the_row():
    table = pa.table({"code": ["AB 21", "AB 99 21", "21 AB 77"], "n": [1, 2, 3]})
    columns = [Column("code", "sequence", ("21", "AB"), tokens=Tokens(words=2)), Column("n", "numeric")]
    records, unseen = to_records(table, columns)
    assert records.tokens.tolist() == [[1, 0], [1, 2], [0, 1]]
    assert unseen.tolist() == [False, True, False]  # what is cut off is not read


def test_a_missing_text_is_refused_by_its_column():
    table = pa.table({"code": ["AB", None]})
    with pytest.raises(BatchRejected, match=r"column code(.|\n)*1 of 2 rows"):
        to_records(table, [Column("code", "sequence", ("AB",), tokens=Tokens(words=1))])


def test_several_sequences_stand_side_by_side():
    table = pa.table({"a": ["x"], "b": ["y x"]})
    params = ColumnsParams(sequence={"a": SequenceParams(), "b": SequenceParams(form="counts")})
    columns = describe_columns(params, table)
    assert [(c.name, c.vocabulary, c.tokens.words, c.tokens.form) for c in columns] == [
        ("a", ("x",), 1, "multi_hot"),
        ("b", ("x", "y"), 2, "counts"),
    ]
    assert to_records(table, columns)[0].tokens.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_is_microseconds_in_utc_whatever_its_unit(unit):
    table = pa.table({"at": pa.array([NOON, None], pa.timestamp(unit, tz="Europe/Berlin"))})
    records, _ = to_records(table, [Column("at", "datetime")])
    assert records.times.ravel().tolist() == [int(NOON.timestamp()) * 1_000_000, MISSING_TIME]


def test_a_table_without_rows_gives_no_records():
    table = pa.table({"n": pa.array([], pa.float64()), "c": pa.array([], pa.string())})
    records, unseen = to_records(table, [Column("n", "numeric"), Column("c", "categorical", ("a",))])
    assert (len(records), len(unseen)) == (0, 0)


def test_the_vocabulary_is_the_commonest_categories_in_alphabetical_order():
    fit = pa.table({"c": [*"bbbaaccd", None, None, None], "n": range(11)})
    params = ColumnsParams(numeric=("n",), categorical=("c",), max_categories=3)
    number, column = describe_columns(params, fit)
    assert number == Column("n", "numeric") and column.vocabulary == ("a", "b", "c")
    assert (len(column.vocabulary), column.unseen) == (3, 4)  # d and null are rare


def test_a_column_whose_fit_rows_all_have_a_slot_has_no_slot_for_rare_values():
    fit = pa.table({"c": [*"bbbaac"]})
    params = ColumnsParams(categorical=("c",), max_categories=3)
    assert describe_columns(params, fit) == (Column("c", "categorical", ("a", "b", "c")),)


def test_ties_for_the_last_place_go_by_the_alphabet_not_by_the_order_of_rows():
    params = ColumnsParams(categorical=("c",), max_categories=2)
    found = {describe_columns(params, pa.table({"c": list(text)})) for text in ("abc", "cba", "bca")}
    assert {column.vocabulary for [column] in found} == {("a", "b")} and len(found) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "at least one column"),
        ({"numeric": ("a",), "datetime": ("a",)}, "two kinds"),
        ({"image": ("a",), "sequence": {"a": SequenceParams()}}, "two kinds"),
        ({"numbers": ("a",)}, "extra"),
    ],
)
def test_columns_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        ColumnsParams(**fields)


def test_rows_without_a_column_of_the_version_are_refused_by_name():
    columns = (Column("amount", "numeric"), Column("shop", "categorical", ("north",)))
    with pytest.raises(BundleInvalid, match=r"does not fit the contract(.|\n)*column shop(.|\n)*nightjar train"):
        to_records(pa.table({"amount": [1.0]}), columns)


PER_ENTITY = PerEntityParams(scale=("amount",), minimum=7)


def test_an_entity_that_is_not_learnt_from_becomes_a_key_after_all_columns():
    columns = (Column("amount", "numeric"), Column("country", "categorical", ("DE",)))
    assert mark_entity(columns, "card", PER_ENTITY) == (
        Column("amount", "numeric", per_entity=7), columns[1], Column("card", "key", is_entity=True)
    )  # fmt: skip
    marked = mark_entity(columns, "country", PER_ENTITY)
    assert [(c.name, c.kind, c.is_entity) for c in marked] == [
        ("amount", "numeric", False), ("country", "categorical", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "cards",
    [
        pa.array(["5", "17", None, "5"]),
        pa.array(["5", "17", " ", "5"]).dictionary_encode(),
        pa.array([5, 17, None, 5]),
        pa.array([5.0, 17.0, float("nan"), 5.0]),
    ],
    ids=["text", "encoded text", "int", "float"],
)
def test_an_entity_has_one_hash_however_its_column_is_typed_and_none_if_it_is_missing(cards):
    columns = mark_entity((Column("amount", "numeric"),), "card", PER_ENTITY)
    records, unseen = to_records(pa.table({"amount": [1.0, 2.0, 3.0, 4.0], "card": cards}), columns)
    five, seventeen = hash_entities(pa.chunked_array([["5", "17"]])).tolist()
    assert records.entities[:, 0].tolist() == [five, seventeen, NO_ENTITY, five] and five != seventeen
    assert not unseen.any() and records.codes.shape == (4, 0)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([True, None, False, True]),
        pa.array([7, -3, None, 7]),
        pa.array([0.0, -0.0, None, float("nan"), 1e20]),
        pa.array([NOON, None, NOON], pa.timestamp("us", "UTC")),
        pa.nulls(2),
    ],
    ids=["bool", "int", "float", "instant", "null"],
)
def test_a_value_is_looked_up_by_its_text(values):
    found = translate(pa.chunked_array([values, values]), lambda texts: np.array(texts, dtype=object))
    assert found.tolist() == 2 * values.cast(pa.string()).to_pylist()


def test_a_million_entities_have_a_million_hashes():
    hashes = hash_entities(pa.chunked_array([pa.array(range(1_000_000))]))
    assert len(np.unique(hashes)) == 1_000_000 and NO_ENTITY not in hashes


@pytest.mark.parametrize("missing", [50, 51])
def test_scales_are_refused_if_most_fit_rows_have_no_entity(missing):
    entities = np.where(np.arange(100) < missing, NO_ENTITY, 1)[:, None]
    records = make_records(np.zeros((100, 1)), entities=entities)
    if missing == 50:
        return check_entities(records, "card", "orders")
    with pytest.raises(ParamsInvalid) as caught:
        check_entities(records, "card", "orders")
    assert all(words in str(caught.value) for words in ("most fit rows have none", "column card", "51 of 100 fit rows"))
