"""Convert a table's columns to a detector's records, just outside the torch module. N rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.columns import Column
from models.entities import NO_ENTITY
from models.records import Records, make_records
from tasks.errors import BatchRejected, BundleInvalid, ParamsInvalid
from tasks.rows.categories import translate
from tasks.rows.entities import lack_entity
from tasks.rows.kinds import KINDS, PARTS
from tasks.rows.marks import hash_texts
from tasks.rows.params import ColumnsParams, PerEntityParams


def describe_columns(params: ColumnsParams, fit: pa.Table) -> tuple[Column, ...]:
    """The columns with the vocabularies of the fit rows: the commonest categories or tokens, in alphabetical order.

    Raises TooFewRows if a sequence column has no tokens, ParamsInvalid if an image column has no images.
    """
    named = [(kind, name) for kind in KINDS for name in getattr(params, kind, ())]  # its key in params is its name
    return tuple(KINDS[kind].describe(name, fit, params) for kind, name in named)


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


def to_records(table: pa.Table, columns: Sequence[Column]) -> tuple[Records, npt.NDArray[np.bool_]]:
    """A table's rows as records, and the mask (N,) of rows with an unseen category or token.

    Raises BatchRejected if an image or a text is missing, or an image has the wrong size; BundleInvalid if the table
    lacks a column.
    """
    _refuse_other_columns(table, columns)
    _refuse_missing(table, [column.name for column in columns if KINDS[column.kind].is_needed])
    own = {part: [column for column in columns if KINDS[column.kind].part == part] for part in PARTS}
    unseen = np.zeros(table.num_rows, dtype=bool)

    def encode(column: Column) -> npt.NDArray[Any]:
        kind = KINDS[column.kind]
        values = kind.encode(table[column.name], column)
        if kind.find_unseen:
            unseen[kind.find_unseen(values, column)] = True
        return values

    thin = []
    for part, dtype in (("numbers", np.float64), ("codes", np.int64), ("times", np.int64)):
        # Each column is contiguous, as the encoder reads them.
        values = np.empty((len(own[part]), table.num_rows), dtype)
        for row, column in zip(values, own[part], strict=True):
            row[:] = encode(column)
        thin.append(values.T)
    wide = [np.hstack([encode(c) for c in own[part]]) if own[part] else None for part in ("pixels", "tokens")]
    entities = [hash_entities(table[column.name])[:, None] for column in columns if column.is_entity]
    return make_records(*thin, *wide, *entities), unseen


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


def hash_entities(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The hash of each value's text (N,), 64 bits; NO_ENTITY for a value that names none, see `lack_entity`."""
    hashes = translate(column, lambda texts: hash_texts([text or "" for text in texts]).view(np.int64))
    return np.where(lack_entity(column).to_numpy(), NO_ENTITY, hashes)


def fits(schema: pa.Schema, columns: tuple[Column, ...]) -> bool:
    """Whether rows have the columns. The contract may have changed since they were validated."""
    return all(
        column.name in schema.names
        and (KINDS[column.kind].is_text or not pa.types.is_string(schema.field(column.name).type))
        for column in columns
    )
