"""The contract: what a batch must look like, read from contracts/NAME.yaml and reviewed like code.

`columns` lists the columns to keep and their types; `ignored` lists known columns to drop. `expectations` are those of
Great Expectations, each with a level: `row` (a row that breaks a critical one is quarantined) or `batch` (evaluated on
one summary row per batch; breaking a critical one stops the batch). The column of a batch expectation is `rows`,
`quarantined_fraction`, `duplicated_fraction` or `COLUMN.STATISTIC`, with a statistic from STATISTICS.
"""

import hashlib
import sys
from collections import Counter
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from models.params import Section
from tasks.sources.formats import EXPECTED, is_number_format, is_time_format
from tasks.sources.images import make_field

TYPES = {
    "float": pa.float64(),
    "int": pa.int64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
# Statistic -> DuckDB aggregate over one column.
STATISTICS = {
    "mean": "avg({})",
    "stddev": "stddev_samp({})",
    "min": "min({})",
    "max": "max({})",
    "median": "approx_quantile({}, 0.5)",
    "distinct": "approx_count_distinct({})",
    "missing_fraction": "avg(({} is null)::int)",
}
ANY_TYPE = ("distinct", "missing_fraction")  # the others apply to numbers only
OF_MANY_ROWS = tuple(f"expect_column_values_to_be_{what}" for what in ("unique", "increasing", "decreasing"))
BATCH_FACTS = ("rows", "quarantined_fraction", "duplicated_fraction")
RESERVED = ("record_id", "_batch_date", "_label", "quarantine_reason")  # columns that Nightjar adds
FLOAT_LIMIT = sys.float_info.max  # values between -limit and +limit are finite


class ContractColumn(Section):
    """One column that Nightjar keeps. Missing and infinite values are quarantined unless allowed here."""

    type: Literal["float", "int", "text", "bool", "timestamp", "image"]
    shape: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None  # of images: rows, columns
    nullable: bool = False
    # Excluded from the hash at its default, so that contracts older than this key keep their hash.
    required: bool = Field(default=True, exclude_if=lambda required: required)  # a batch without the column is rejected
    infinite: bool = False
    masked: bool = False  # a personal value: never in logs, reports, examples or causes
    # How the source writes numbers or times: tasks/sources/formats.py; None: as 1234.56, and in ISO 8601.
    format: str | None = Field(default=None, exclude_if=lambda form: form is None)
    # Words that mean a missing value here, in addition to those known everywhere.
    missing: tuple[str, ...] = Field(default=(), exclude_if=lambda words: not words)

    @model_validator(mode="after")
    def _check(self) -> "ContractColumn":
        if (self.type == "image") != (self.shape is not None):
            raise ValueError("an image column needs a shape, [rows, columns] of pixels; no other column may have one")
        if self.format is not None:
            is_known = {"float": is_number_format, "int": is_number_format, "timestamp": is_time_format}.get(self.type)
            if is_known is None:
                raise ValueError(f"format: {self.format!r} needs type float, int or timestamp, not {self.type}")
            if not is_known(self.format):
                raise ValueError(f"{self.format!r} is not a format for {self.type}; give {EXPECTED}")
        if self.missing and not self.nullable:
            raise ValueError("missing needs nullable: true, because its words are read as null")
        if not self.required and not self.nullable:
            raise ValueError("required: false needs nullable: true, because a missing column is read as null")
        return self

    def to_field(self, name: str) -> pa.Field:
        """The column as a field of an Arrow schema."""
        return make_field(name, self.shape) if self.shape else pa.field(name, TYPES[self.type])


class ContractExpectation(Section):
    """One expectation of Great Expectations, by its registered name, with Nightjar's level."""

    level: Literal["row", "batch"]
    severity: Literal["critical", "warning"] = "critical"
    type: str = Field(pattern=r"^expect_[a-z_]+$")
    kwargs: dict[str, Any]

    def __hash__(self) -> int:
        """Hash the text, because kwargs is a dict."""
        return hash(self.text)

    @property
    def columns(self) -> list[str]:
        """The columns that the expectation names."""
        return [str(value) for key, value in self.kwargs.items() if key.startswith("column")]

    @property
    def text(self) -> str:
        """The expectation in one line, for quarantine reasons and tables."""
        values = ", ".join(f"{key}={value}" for key, value in self.kwargs.items() if key != "column")
        return f"{self.kwargs.get('column', '')} {self.type.removeprefix('expect_').replace('_', ' ')} {values}".strip()


class Contract(Section):
    """Everything a batch is checked against."""

    columns: dict[str, ContractColumn]
    ignored: tuple[str, ...] = ()  # known columns, dropped without a warning
    extra_columns: Literal["warn", "stop"] = "warn"
    expectations: tuple[ContractExpectation, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Contract":
        if unnamed := [name for name in self.columns if not name.isprintable() or not name.strip()]:
            raise ValueError(f"columns may not contain {unnamed[0]!r}: a name consists of printable characters")
        alike = Counter(name.casefold() for name in self.columns)
        if twice := [name for name in self.columns if alike[name.casefold()] > 1]:
            raise ValueError(f"{' and '.join(twice)} differ only in case, which DuckDB treats as one column")
        if taken := [name for name in self.columns if name in RESERVED]:
            raise ValueError(f"columns may not contain {taken[0]!r}: Nightjar adds a column of that name itself")
        for expectation in self.expectations:
            column = str(expectation.kwargs.get("column", ""))
            if expectation.level == "row":
                if not expectation.type.startswith(("expect_column_values_", "expect_column_pair_values_")):
                    raise ValueError(f"{expectation.type} does not check single rows; set level: batch")
                if expectation.type in OF_MANY_ROWS or "mostly" in expectation.kwargs:
                    what = expectation.type if expectation.type in OF_MANY_ROWS else "mostly"
                    raise ValueError(f"{what} depends on other rows, so on the slices of a batch; check each row alone")
                is_presence = expectation.type.endswith("_be_null")
                if (
                    any(name in self.columns and self.columns[name].shape for name in expectation.columns)
                    and not is_presence
                ):
                    raise ValueError(f"{expectation.type} cannot judge an image, only whether it is missing")
                if unknown := [name for name in expectation.columns if name not in self.columns]:
                    raise ValueError(f"{expectation.type} names {unknown[0]!r}, which is not one of the columns")
            elif column not in BATCH_FACTS:
                name, _, statistic = column.rpartition(".")
                if name not in self.columns or statistic not in STATISTICS:
                    known = ", ".join([*BATCH_FACTS, *(f"COLUMN.{key}" for key in STATISTICS)])
                    raise ValueError(f"a batch expectation cannot use column {column!r}; it may use {known}")
                if statistic not in ANY_TYPE and self.columns[name].type not in ("float", "int"):
                    raise ValueError(f"{column} cannot be computed for a column of type {self.columns[name].type}")
        return self

    @property
    def types(self) -> dict[str, str]:
        """The type of each column."""
        return {name: column.type for name, column in self.columns.items()}

    @property
    def masked(self) -> set[str]:
        """The columns whose values never leave the lake."""
        return {name for name, column in self.columns.items() if column.masked}

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of validated rows: record_id, event_time, then the columns."""
        fields = [pa.field("record_id", pa.string()), pa.field("event_time", TYPES["timestamp"])]
        return pa.schema(fields + [c.to_field(name) for name, c in self.columns.items() if name != "event_time"])

    @property
    def row_expectations(self) -> tuple[ContractExpectation, ...]:
        """The row-level expectations; those implied by the column types come first."""
        implied = [_present("record_id"), _present("event_time")]
        bounded = {str(e.kwargs.get("column")) for e in self.expectations if _bounds_both_ends(e)}
        for name, column in self.columns.items():
            if not column.nullable and name != "event_time":
                implied.append(_present(name))
            if column.type == "float" and not column.infinite and name not in bounded:
                implied.append(_finite(name))
        return (*implied, *(e for e in self.expectations if e.level == "row"))

    @property
    def batch_expectations(self) -> tuple[ContractExpectation, ...]:
        """The batch-level expectations."""
        return tuple(e for e in self.expectations if e.level == "batch")

    @property
    def hash(self) -> str:
        """The content hash: equal for equal contracts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _bounds_both_ends(expectation: ContractExpectation) -> bool:
    """Whether the value must lie between two limits, so that it cannot be infinite."""
    limits = [expectation.kwargs.get(key) for key in ("min_value", "max_value")]
    is_judge = (expectation.level, expectation.severity) == ("row", "critical")
    return is_judge and expectation.type == "expect_column_values_to_be_between" and None not in limits


def _present(column: str) -> ContractExpectation:
    return ContractExpectation(level="row", type="expect_column_values_to_not_be_null", kwargs={"column": column})


def _finite(column: str) -> ContractExpectation:
    limits = {"column": column, "min_value": -FLOAT_LIMIT, "max_value": FLOAT_LIMIT}
    return ContractExpectation(level="row", type="expect_column_values_to_be_between", kwargs=limits)
