"""From texts to tokens to codes: split into words, joined into runs of words, looked up in a bounded vocabulary.

N texts, T tokens found in them, at most L tokens per text, V tokens in the vocabulary. Code V is any other token of the
fit rows, the last code one that they do not have, see `Column`.
Everything is Arrow and NumPy over whole columns, and each distinct text is split once.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import PADDING, RARE, UNSEEN, Column, Tokens
from tasks.errors import TooFewRows
from tasks.rows.marks import hash_texts, read_marks, write_marks
from tasks.rows.params import SequenceParams

Ints = npt.NDArray[np.int64]


def describe_sequence(name: str, column: pa.ChunkedArray, params: SequenceParams) -> Column:
    """The column with the length and the vocabulary of the fit rows. Raises TooFewRows if they have no tokens."""
    counted = pc.value_counts(column.cast(pa.string()).drop_null())
    texts, times = counted.field("values"), counted.field("counts").to_numpy()
    _, rows = split_words(texts, params.separator)
    if not len(rows):
        raise TooFewRows(
            "The vocabulary of a sequence column is empty.",
            where=f"column {name} of the fit rows",
            got=f"{len(column)} rows without a single token",
            expected=f"texts with tokens separated by {params.separator!r}",
            todo=f"check what the source delivers as {name}, or correct train.columns.sequence.{name}.separator",
        )
    sizes = np.bincount(rows, minlength=len(texts))
    words = np.quantile(sizes, params.length_percentile / 100, weights=times, method="inverted_cdf")
    tokens = Tokens(params.separator, params.ngrams, max(1, int(words)), params.form, params.shapes)
    found = tokenise(texts, tokens)
    vocabulary = take_commonest(found.texts, times[found.rows], params.vocabulary)
    return Column(name, "sequence", vocabulary, tokens=tokens, rare=write_marks(found.texts.unique(), vocabulary))


def take_commonest(texts: pa.Array, counts: npt.NDArray[Any], most: int) -> tuple[str, ...]:
    """The `most` texts (T,) with the largest sums of counts (T,), in alphabetical order, which also breaks ties."""
    totals = pa.table({"text": texts, "n": counts}).group_by("text").aggregate([("n", "sum")])
    ranked = totals.sort_by([("n_sum", "descending"), ("text", "ascending")])
    return tuple(sorted(ranked["text"][:most].to_pylist()))


def split_words(texts: pa.Array, separator: str) -> tuple[pa.Array, Ints]:
    """All words of texts (N,), concatenated (W,), and the row of each word (W,)."""
    pieces = pc.split_pattern_regex(texts, separator)
    words, rows = pieces.flatten(), pc.list_parent_indices(pieces).to_numpy()
    is_word = pc.not_equal(words, "")  # a separator at the beginning or end leaves empty pieces
    return words.filter(is_word), rows[is_word.to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class Found:
    """Tokens found in texts, in any order: text, row and position among the row's tokens, all (T,)."""

    texts: pa.Array
    rows: Ints
    places: Ints


def tokenise(texts: pa.Array, tokens: Tokens) -> Found:
    """The tokens of texts (N,), from the first `tokens.words` words only.

    Runs of words are joined by a space; a run at an edge of the text has nothing before or after that space.
    """
    words, rows = split_words(texts, tokens.separator)
    sizes = np.bincount(rows, minlength=len(texts))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_read = places < tokens.words
    words, rows, places = words.filter(pa.array(is_read)), rows[is_read], places[is_read]
    found, first = [(words, rows, places)], tokens.words
    joined = _draw_shapes(words) if tokens.shapes else words
    for k in range(2, tokens.ngrams + 1):
        runs, owners, within = _join_runs(joined, np.minimum(sizes, tokens.words), k)
        found.append((runs, owners, first + within))
        first += max(0, tokens.words + 3 - k)
    return Found(
        pa.concat_arrays([part[0] for part in found]),
        np.concatenate([part[1] for part in found]),
        np.concatenate([part[2] for part in found]),
    )


def _draw_shapes(words: pa.Array) -> pa.Array:
    for pattern, sign in ((r"\p{Nd}", "9"), (r"\p{Lu}", "A"), (r"[\p{Ll}\p{Lt}\p{Lm}\p{Lo}]", "a")):
        words = pc.replace_substring_regex(words, pattern, sign)
    return words


def _join_runs(words: pa.Array, sizes: Ints, k: int) -> tuple[pa.Array, Ints, Ints]:
    """The runs of k words of texts with `sizes` (N,) words each, with the row and the position of each run."""
    rows = np.repeat(np.arange(len(sizes)), sizes + 2)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(sizes + 2) - sizes - 2, sizes + 2)
    is_edge = (places == 0) | (places == sizes[rows] + 1)
    edged = words.take(pa.array(np.cumsum(~is_edge) - 1, mask=is_edge)).fill_null("")  # "" at both ends of a text
    starts = np.flatnonzero(rows[: 1 - k] == rows[k - 1 :])
    runs = pc.binary_join_element_wise(*(edged.take(pa.array(starts + n)) for n in range(k)), " ")
    return runs, rows[starts], places[starts]


def encode_tokens(column: pa.ChunkedArray, described: Column) -> Ints:
    """Codes (N, L) of a column's texts, which must not be null; PADDING after a text's last token."""
    tokens = described.tokens
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    chunks = []
    for chunk in column.chunks:
        found = tokenise(chunk.dictionary.cast(pa.string()), tokens)
        table = np.full((len(chunk.dictionary), tokens.length), PADDING)
        table[found.rows, found.places] = _look_up(found.texts, described)
        chunks.append(table[chunk.indices.to_numpy()])
    return np.concatenate(chunks) if chunks else np.empty((0, tokens.length), dtype=np.int64)


def _look_up(texts: pa.Array, described: Column) -> Ints:
    """The code of each token (T,)."""
    found = texts.dictionary_encode()
    places = pc.index_in(found.dictionary, pa.array(described.vocabulary, pa.string()))
    codes: Ints = np.array(places.fill_null(described.unseen).to_numpy(), np.int64)
    if described.rare:
        others = np.flatnonzero(codes == described.unseen)
        is_rare = np.isin(hash_texts(found.dictionary.take(others).to_pylist()), read_marks(described.rare))
        codes[others[is_rare]] = len(described.vocabulary)
    indices: Ints = found.indices.to_numpy()
    return codes[indices]


def list_tokens(text: str, part: str, described: Column) -> list[str]:
    """The tokens of a text that share the slot of a part, RARE or UNSEEN; single words first."""
    found = tokenise(pa.array([text]), described.tokens).texts
    code = described.unseen if part == UNSEEN else len(described.vocabulary)
    codes = _look_up(found, described)
    return [token for token, own in zip(found.to_pylist(), codes.tolist(), strict=True) if own == code]


def find_tokens(text: str, tokens: Collection[str], described: Column) -> list[tuple[int, int]]:
    """Where a text has some of the detector's tokens: the first and the last character but one of each run of words.

    RARE and UNSEEN stand for the tokens that share their slot. Of a run that holds a shorter one of the tokens, only
    that one counts. What touches or overlaps is joined.
    """
    how = described.tokens
    ends = [0, *(place for found in re.finditer(how.separator, text) for place in found.span()), len(text)]
    words = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=True) if end > start][: how.words]
    found = tokenise(pa.array([text], pa.string()), how)
    parts = [part for part in (RARE, UNSEEN) if part in tokens]
    wanted = {*tokens, *(token for part in parts for token in list_tokens(text, part, described))}
    runs = [
        _cover(place, how) & {*range(len(words))}
        for token, place in zip(found.texts.to_pylist(), found.places.tolist(), strict=True)
        if token in wanted
    ]
    covered = set[int]().union(*(run for run in runs if not any(other and other < run for other in runs)))
    spans: list[tuple[int, int]] = []
    for word in sorted(covered):
        start, end = words[word]
        joins = word - 1 in covered and spans
        spans = [*spans[:-1], (spans[-1][0], end)] if joins else [*spans, (start, end)]
    return spans


def _cover(place: int, tokens: Tokens) -> set[int]:
    """The words that the token at a place covers, of which those at the edges of the text may not exist."""
    if place < tokens.words:
        return {place}
    first = tokens.words
    for k in range(2, tokens.ngrams + 1):
        size = max(0, tokens.words + 3 - k)
        if place < first + size:
            return {place - first - 1 + n for n in range(k)}
        first += size
    return set()
