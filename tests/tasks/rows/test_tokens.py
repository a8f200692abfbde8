import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.columns import PADDING, Column, Tokens
from tasks.errors import TooFewRows
from tasks.rows.params import SequenceParams
from tasks.rows.tokens import describe_sequence, encode_tokens, find_tokens, list_tokens, tokenise

TEXTS = st.lists(st.one_of(st.text("ab \t", max_size=9), st.sampled_from(["AB 21 xR GB132", "ÄB ß#5"])), max_size=6)


def draw(word: str) -> str:
    return "".join("9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in word)


def runs_of(text: str, tokens: Tokens) -> list[str]:
    """The tokens of one text, the slow way."""
    words = text.split()[: tokens.words]
    shapes = [
        "".join("9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in w) for w in words
    ]
    edged = ["", *(shapes if tokens.shapes else words), ""]
    runs = [edged[i : i + k] for k in range(2, tokens.ngrams + 1) for i in range(len(edged) - k + 1)]
    return words + [" ".join(run) for run in runs]


def column_of(*texts: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.string())])


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_tokens_agree_with_a_loop_over_each_text(texts, ngrams, words, shapes):
    tokens = Tokens(ngrams=ngrams, words=words, shapes=shapes)
    found = tokenise(pa.array(texts, pa.string()), tokens)
    by_text = [[] for _ in texts]
    for text, row in zip(found.texts.to_pylist(), found.rows, strict=True):
        by_text[row].append(text)
    assert by_text == [runs_of(text, tokens) for text in texts]
    assert all(place < tokens.length for place in found.places)
    assert len(set(zip(found.rows, found.places, strict=True))) == len(found.rows)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(1, 2))
def test_codes_agree_with_a_look_up_token_by_token_in_plain_and_encoded_text(texts, ngrams):
    column = Column("t", "sequence", ("AB", "AB 21", "a"), tokens=Tokens(ngrams=ngrams, words=3))
    plain = pa.chunked_array([pa.array(texts[:2], pa.string()), pa.array(texts[2:], pa.string())])
    codes = encode_tokens(plain, column)
    assert codes.shape == (len(texts), column.tokens.length) and codes.dtype == np.int64
    assert np.array_equal(codes, encode_tokens(plain.dictionary_encode(), column))
    for text, row in zip(texts, codes.tolist(), strict=True):
        known = {token: code for code, token in enumerate(column.vocabulary)}
        expected = [known.get(token, 3) for token in runs_of(text, column.tokens)]
        assert sorted(code for code in row if code != PADDING) == sorted(expected)


def test_a_text_is_padded_to_the_length_and_cut_off_behind_it():
    column = Column("t", "sequence", ("5", "22"), tokens=Tokens(words=3))
    assert encode_tokens(column_of("22", "5 5 22 5", "9 5"), column).tolist() == [[1, -1, -1], [0, 0, 1], [2, 0, -1]]


def test_the_length_covers_the_requested_share_of_the_rows():
    column = column_of(*["a b"] * 97, *["a b c"] * 2, " ".join("x" * 50))
    how = [SequenceParams(length_percentile=percentile) for percentile in (97, 99, 100)]
    assert [describe_sequence("t", column, params).tokens.words for params in how] == [2, 3, 50]


def test_the_vocabulary_is_the_commonest_tokens_of_what_is_read_in_alphabetical_order():
    column = column_of(*["b a"] * 3, *["c a"] * 2, "d a")
    described = describe_sequence("t", column, SequenceParams(vocabulary=2))
    assert (described.vocabulary, described.tokens) == (("a", "b"), Tokens(words=2))
    pairs = describe_sequence("t", column, SequenceParams(vocabulary=3, ngrams=2))
    assert pairs.vocabulary == (" b", "a", "a ")  # b, " b" and "b a" are equally common: the alphabet decides


def test_a_separator_may_be_any_regular_expression():
    described = describe_sequence("t", column_of("a;b, c"), SequenceParams(separator=r"[;,]\s*"))
    assert described.vocabulary == ("a", "b", "c")


@pytest.mark.parametrize("texts", [["", "  "], [None], []])
def test_an_empty_vocabulary_is_refused(texts):
    with pytest.raises(TooFewRows, match=r"empty(.|\n)*column log"):
        describe_sequence("log", pa.chunked_array([pa.array(texts, pa.string())]), SequenceParams())


def test_the_unseen_tokens_of_a_text_are_listed_words_first():
    column = Column("t", "sequence", ("AB", "AB 21"), tokens=Tokens(ngrams=2, words=2))
    assert list_tokens("AB 77 21", "<unseen>", column) == ["77", " AB", "AB 77", "77 "]


def test_rare_and_never_seen_tokens_of_a_text_are_told_apart():
    column = describe_sequence("t", column_of("AB AB", "21", "AB xR"), SequenceParams(vocabulary=1))
    assert column.vocabulary == ("AB",)
    assert list_tokens("21 77 AB", "<rare>", column) == ["21"]
    assert list_tokens("21 77 AB", "<unseen>", column) == ["77"]
    assert find_tokens("21 77 AB", {"<rare>"}, column) == [(0, 2)]
    assert find_tokens("21 77 AB", {"<unseen>"}, column) == [(3, 5)]


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 2), st.integers(1, 4))
def test_known_rare_and_never_seen_tokens_agree_with_sets(fit, later, ngrams, most):
    try:
        column = describe_sequence("t", column_of(*fit), SequenceParams(ngrams=ngrams, vocabulary=most))
    except TooFewRows:
        assert not any(text.split() for text in fit)
        return
    seen = {token for text in fit for token in runs_of(text, column.tokens)}
    beyond, size = seen - set(column.vocabulary), len(column.vocabulary)
    for text, row in zip(later, encode_tokens(column_of(*later), column).tolist(), strict=True):
        expected = [
            column.vocabulary.index(token)
            if token in column.vocabulary
            else size + (bool(beyond) and token not in beyond)
            for token in runs_of(text, column.tokens)
        ]
        assert sorted(code for code in row if code != PADDING) == sorted(expected)


def find(text: str, tokens: set[str], **how: object) -> list[str]:
    column = Column("t", "sequence", ("AB", "21", " AB", "21 "), tokens=Tokens(words=6, **how))
    return [text[start:end] for start, end in find_tokens(text, tokens, column)]


def test_tokens_are_found_where_they_are_in_a_text():
    assert find("  AB 21\tAB xR", {"AB"}) == ["AB", "AB"]
    assert find("AB 21 xR", {"AB 21"}, ngrams=2) == ["AB 21"]
    assert find("AB 21 xR", {"AB", "21 xR"}, ngrams=2) == ["AB 21 xR"]  # they touch
    assert find("AB 21 xR", {" AB", "xR "}, ngrams=2) == ["AB", "xR"]  # with an edge of the text
    assert find("AB 21 xR", {"AA 99"}, ngrams=2, shapes=True) == ["AB 21"]
    assert find("AB 21 xR 21 7", {"21 xR 21"}, ngrams=3) == ["21 xR 21"]
    assert find("AB 21 xR", {"<unseen>"}) == ["xR"]
    assert find("AB xR 21", {"<unseen>"}, ngrams=2) == ["xR"]  # and not the runs that hold it
    assert find("21 AB 21", {"<unseen>"}, ngrams=2) == ["21 AB 21"]  # known words in runs that are not
    assert find("AB;21,xR", {"21"}, separator="[;,]") == ["21"]
    assert find("", {"AB"}) == []
    assert find("1 2 3 4 5 6 AB", {"AB"}) == []  # beyond what is read


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 30))
def test_every_token_is_found_where_a_loop_finds_it(texts, ngrams, words, shapes, choice):
    tokens = Tokens(ngrams=ngrams, words=words, shapes=shapes)
    for text in texts:
        runs = runs_of(text, tokens)
        if not runs:
            continue
        wanted, read = runs[choice % len(runs)], text.split()[:words]
        drawn = ["", *(draw(word) if shapes else word for word in read), ""]
        covered = {n for n, word in enumerate(read) if word == wanted}
        for k in range(2, ngrams + 1):
            for first in range(len(drawn) - k + 1):
                if " ".join(drawn[first : first + k]) == wanted:
                    covered |= {first + n - 1 for n in range(k)}
        spans = find_tokens(text, {wanted}, Column("t", "sequence", (), tokens=tokens))
        marked = [word for start, end in spans for word in text[start:end].split()]
        assert marked == [word for n, word in enumerate(read) if n in covered]


@pytest.mark.parametrize(
    "fields",
    [
        {"separator": "("},
        {"separator": r"\s*"},
        {"separator": ""},
        {"vocabulary": 0},
        {"form": "tf"},
        {"ngrams": 0},
        {"shapes": True},
    ],
)
def test_a_tokeniser_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        SequenceParams(**fields)
