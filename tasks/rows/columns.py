"""Convert a table's columns to a detector's records: text becomes codes here, just outside the torch module.

N rows. Dictionary-encoded text is looked up once per distinct value, not once per row.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import MISSING_TIME, Column
from models.entities import NO_ENTITY
from models.records import Records, make_records
from tasks.errors import BatchRejected, BundleInvalid, ParamsInvalid
from tasks.rows.entities import lack_entity
from tasks.rows.images import read_pixels
from tasks.rows.kinds import KINDS
from tasks.rows.marks import MISSING, hash_texts, read_marks, write_marks
from tasks.rows.params import ColumnsParams, PerEntityParams
from tasks.rows.tokens import describe_sequence, encode_tokens, take_commonest
from tasks.sources.images import read_shape

T = TypeVar("T", bound=np.generic)


def describe_columns(params: ColumnsParams, fit: pa.Table) -> tuple[Column, ...]:
    """The columns with the vocabularies of the fit rows: the commonest categories or tokens, in alphabetical order.

    Raises TooFewRows if a sequence column has no tokens, ParamsInvalid if an image column has no images.
    """
    numeric = [Column(name, "numeric") for name in params.numeric]
    categorical = [_describe_categories(name, fit[name], params.max_categories) for name in params.categorical]
    numeric += [Column(name, "log_numeric") for name in params.log_numeric]
    datetime = [Column(name, "datetime") for name in params.datetime]
    images = [_describe_image(fit.schema.field(name)) for name in params.image]
    sequences = [describe_sequence(name, fit[name], how) for name, how in params.sequence.items()]
    return (*numeric, *categorical, *datetime, *images, *sequences)


def mark_entity(columns: Sequence[Column], name: str, params: PerEntityParams) -> tuple[Column, ...]:
    """The columns with the one that names the entity, a key if it is not learnt from, and those scaled by it marked."""
    marked = [replace(c, per_entity=params.minimum) if c.name in params.scale else c for c in columns]
    return tuple(replace(c, is_entity=c.name == name) for c in add_key(marked, name))


def add_key(columns: Sequence[Column], name: str) -> tuple[Column, ...]:
    """The columns, with a key of this name unless they have the column already."""
    return (*columns, *([Column(name, "key")] if name not in {column.name for column in columns} else []))


def check_entities(fit: Records, name: str, detector: str) -> None:
    """Refuse scales for each entity where over half of the fit rows (N,) have none. Raises ParamsInvalid."""
    missing = int((fit.entities == NO_ENTITY).sum())
    if 2 * missing > len(fit):
        raise ParamsInvalid(
            "Numbers cannot be scaled for each entity: most fit rows have none.",
            where=f"detectors.{detector}.entity, column {name}",
            got=f"no value in {missing:,} of {len(fit):,} fit rows",
            expected="a value in at least half of them",
            todo="name another column in entity, or remove train.per_entity",
        )


def _describe_categories(name: str, column: pa.ChunkedArray, most: int) -> Column:
    found = pc.value_counts(column.cast(pa.string()).drop_null())
    texts = found.field("values")
    vocabulary = take_commonest(texts, found.field("counts").to_numpy(), most)
    return Column(name, "categorical", vocabulary, rare=write_marks(texts, vocabulary, column.null_count > 0))


def _describe_image(field: pa.Field) -> Column:
    shape = read_shape(field)
    if shape is None:
        raise ParamsInvalid(
            "A column configured as an image does not contain images.",
            where=f"train.columns.image, column {field.name}",
            got=f"type {field.type}",
            expected="a column of type image, with a shape, in the contract",
            todo="correct train.columns, or the contract",
        )
    return Column(field.name, "image", shape=shape)


def to_records(table: pa.Table, columns: Sequence[Column]) -> tuple[Records, npt.NDArray[np.bool_]]:
    """A table's rows as records, and the mask (N,) of rows with an unseen category or token.

    Raises BatchRejected if an image or a text is missing, or an image has the wrong size; BundleInvalid if the table
    lacks a column.
    """
    _refuse_other_columns(table, columns)
    _refuse_missing(table, [column.name for column in columns if KINDS[column.kind].is_needed])
    n = table.num_rows
    kinds = ("numeric", "categorical", "datetime", "image", "sequence")
    of_kind = {kind: [c for c in columns if kind in c.kind] for kind in kinds}
    # Each column is contiguous, as the encoder reads them.
    numbers = np.empty((len(of_kind["numeric"]), n))
    codes = np.empty((len(of_kind["categorical"]), n), dtype=np.int64)
    times = np.empty((len(of_kind["datetime"]), n), dtype=np.int64)
    for column, values in zip(of_kind["numeric"], numbers, strict=True):
        values[:] = table[column.name].cast(pa.float64(), safe=False).to_numpy()
    for column, values in zip(of_kind["categorical"], codes, strict=True):
        values[:] = encode_text(table[column.name], column)
    for column, values in zip(of_kind["datetime"], times, strict=True):
        stamps = table[column.name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        values[:] = pc.fill_null(stamps, MISSING_TIME).to_numpy()
    unseen = np.zeros(n, dtype=bool)
    for column, values in zip(of_kind["categorical"], codes, strict=True):
        unseen |= values == column.unseen
    pixels = [read_pixels(table[column.name], column) for column in of_kind["image"]]
    tokens = []
    for column in of_kind["sequence"]:
        found = encode_tokens(table[column.name], column)
        unseen |= (found[:, : column.tokens.words] == column.unseen).any(axis=1)
        tokens.append(found)
    joined = [np.hstack(parts) if parts else None for parts in (pixels, tokens)]
    entities = [hash_entities(table[column.name])[:, None] for column in columns if column.is_entity]
    return make_records(numbers.T, codes.T, times.T, *joined, *entities), unseen


def _refuse_other_columns(table: pa.Table, columns: Sequence[Column]) -> None:
    """The contract may have changed since training."""
    lacking = [column.name for column in columns if column.name not in table.column_names]
    if lacking:
        raise BundleInvalid(
            "This version of the model does not fit the contract.",
            where=", ".join(f"column {name}" for name in lacking),
            got=f"rows with the columns {', '.join(table.column_names)}",
            expected="every column that the version was trained with",
            todo="put the columns back into the contract; or nightjar train NAME, then nightjar promote NAME VERSION; "
            "history columns of a stale night: score it again",
        )


def _refuse_missing(table: pa.Table, names: Sequence[str]) -> None:
    missing = {name: table[name].null_count for name in names if table[name].null_count}
    if missing:
        raise BatchRejected(
            "Images or texts are missing.",
            where=", ".join(f"column {name}" for name in missing),
            got=", ".join(f"{count} of {table.num_rows} rows without one" for count in missing.values()),
            expected="one in every row: a missing one cannot be filled in",
            todo="remove nullable from the column in the contract, so that such rows are quarantined",
        )


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


def hash_entities(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The hash of each value's text (N,), 64 bits; NO_ENTITY for a value that names none, see `lack_entity`."""
    hashes = translate(column, lambda texts: hash_texts([text or "" for text in texts]).view(np.int64))
    return np.where(lack_entity(column).to_numpy(), NO_ENTITY, hashes)


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


def fits(schema: pa.Schema, columns: tuple[Column, ...]) -> bool:
    """Whether rows have the columns. The contract may have changed since they were validated."""
    return all(
        column.name in schema.names
        and (KINDS[column.kind].is_text or not pa.types.is_string(schema.field(column.name).type))
        for column in columns
    )
