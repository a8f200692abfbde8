"""Categories as codes: each distinct text is looked up once, not once per row. N rows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import Column
from tasks.rows.marks import MISSING, hash_texts, read_marks, write_marks
from tasks.rows.tokens import take_commonest

T = TypeVar("T", bound=np.generic)


def describe_categories(name: str, column: pa.ChunkedArray, most: int) -> Column:
    """The column with its `most` commonest categories in alphabetical order, and marks of the other ones."""
    found = pc.value_counts(column.cast(pa.string()).drop_null())
    texts = found.field("values")
    vocabulary = take_commonest(texts, found.field("counts").to_numpy(), most)
    return Column(name, "categorical", vocabulary, rare=write_marks(texts, vocabulary, column.null_count > 0))


def encode_text(column: pa.ChunkedArray, described: Column) -> npt.NDArray[np.int64]:
    """Codes (N,): the index in the vocabulary of V texts, V for what else the fit rows have, or `Column.unseen`.

    Null is a value like any other: the fit rows have it or not.
    """
    known: dict[str | None, int] = {value: code for code, value in enumerate(described.vocabulary)}
    rare, unseen = len(described.vocabulary), described.unseen
    marks = read_marks(described.rare)
    known[None] = rare if MISSING in marks[:1] else unseen

    def find_codes(texts: Sequence[str | None]) -> npt.NDArray[np.int64]:
        codes = np.array([known.get(text, unseen) for text in texts], dtype=np.int64)
        if len(marks):
            others = {place: text for place, text in enumerate(texts) if text is not None and text not in known}
            is_rare = np.isin(hash_texts(list(others.values())), marks)
            codes[list(others)] = np.where(is_rare, rare, unseen)
        return codes

    return translate(column, find_codes)


def translate(column: pa.ChunkedArray, find: Callable[[Sequence[str | None]], npt.NDArray[T]]) -> npt.NDArray[T]:
    """What `find` gives for each value's text (N,); it gets the distinct texts of a chunk, the last of them None."""
    if pa.types.is_floating(column.type):
        column = column.cast(pa.string())  # 0.0 and -0.0 are one value, but two texts
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string()))
    chunks = []
    for chunk in column.chunks:
        texts = [value if value is None else str(value) for value in chunk.dictionary.to_pylist()]
        indices = chunk.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        chunks.append(find([*texts, None])[indices])
    return np.concatenate(chunks or [find([None])[:0]])
