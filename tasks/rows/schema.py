"""Compare landed columns with the contract's, and convert their values to the contract's types.

How a value is read does not depend on other values: Arrow's cast is used if it succeeds for a whole slice, otherwise
each value is parsed by the same grammar. A missing value becomes null. So does an unreadable one, but its row is then
quarantined, whether or not the column may have missing values: what cannot be read is not missing. N rows.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.rows.contract import TYPES, Contract, ContractColumn
from tasks.rows.images import describe_shape
from tasks.sources.formats import EPOCHS, is_time_format, rewrite, tidy_name
from tasks.sources.images import read_shape

Mask = npt.NDArray[np.bool_]
Values: TypeAlias = "pa.ChunkedArray | pa.Array"

# Words that mean a missing value.
MISSING_WORDS = (
    "", "?", "-", "--", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "<null>", "none", "nil", "missing",
    "unknown", "\\n",
)  # fmt: skip
FLOAT = r"(?i)^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)$"
INT = r"(?i)^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?$"  # 5.0 and 1e3 are whole numbers too
INT_LIMIT = 2**63
OFFSET = r"(?i)(?:Z|UTC|GMT)\s*$|(?::\d{2}|T\d{2,6})(?:[.,]\d+)?\s*[+-]\d{2}(?::?\d{2})?\s*$"  # at the end of a time
UNLIKE = {pa.float64(): "(", pa.int64(): "x"}  # marks text that Arrow parses but nobody means as a number: nan(1), 0xFF
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
FIRST, LAST = (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC))  # Python's range in any zone
SAMPLE = 200  # values kept of an unknown column, to find out whether it is a renamed one
SHOWN = 40  # characters of an example


def type_rows(raw: pa.Table, contract: Contract) -> pa.Table:
    """The contract's columns in the contract's types; an unreadable value becomes null."""
    columns = []
    for name, kind in zip(contract.schema.names, contract.schema.types, strict=True):
        column, rule = (
            raw[name] if name in raw.column_names else pa.nulls(raw.num_rows, kind),
            contract.columns.get(name),
        )
        if rule and rule.missing:
            column = _decode(column)
            column = pc.if_else(_means_missing(column, rule.missing), pa.scalar(None, column.type), column)
        columns.append(cast_column(column, kind, rule.format if rule else None))
    return pa.table(columns, schema=contract.schema)


def cast_column(column: Values, kind: pa.DataType, form: str | None = None) -> pa.ChunkedArray:
    """A column in another type; an unreadable value becomes null. `form`: how its texts are written, see formats.py."""
    column = _decode(column)
    if form:
        column = _apply_format(column, form)
    found = column if column.type == kind and not pa.types.is_timestamp(kind) else _read(column, kind)
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found], kind)


def _decode(column: Values) -> Values:
    """The column in its plain layout: no dictionary, no extension type, text as string."""
    if isinstance(column.type, pa.UuidType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if is_text(column.type) else column


def _apply_format(column: Values, form: str) -> Values:
    """Texts as every reader knows them, and numbers of an epoch or YYYYMMDD as times; other types as they are."""
    if form in EPOCHS:
        return _count_from_1970(column, EPOCHS[form])
    if _is_number(column.type) and is_time_format(form):
        column = cast_column(column, pa.int64()).cast(pa.string())  # 20260301
    return rewrite(column, form) if pa.types.is_string(column.type) else column


def _count_from_1970(column: Values, unit_us: float) -> Values:
    if not (_is_number(column.type) or pa.types.is_string(column.type)):
        return column
    numbers = pc.multiply(cast_column(column, pa.float64()), unit_us)
    numbers = pc.if_else(pc.less(pc.abs(numbers), float(INT_LIMIT)), numbers, pa.scalar(None, pa.float64()))
    return pc.round(numbers).cast(pa.int64(), safe=False).cast(pa.timestamp("us", tz="UTC"))


def _read(column: Values, kind: pa.DataType) -> Values:
    try:
        if pa.types.is_timestamp(kind):
            return _read_times(column)
        if pa.types.is_string(column.type):
            return _read_texts(column, kind)
        return _write_texts(column) if pa.types.is_string(kind) else _read_numbers(column, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # no conversion between these types
        return pa.nulls(len(column), kind)


def _read_texts(texts: Values, kind: pa.DataType) -> Values:
    try:
        if not (kind in UNLIKE and pc.any(pc.match_substring(texts, UNLIKE[kind], ignore_case=True)).as_py()):
            return texts.cast(kind)
    except pa.ArrowInvalid:
        pass  # at least one value cannot be read, so read them one by one
    texts = pc.utf8_trim_whitespace(texts)
    if pa.types.is_boolean(kind):
        words = pc.utf8_lower(texts)
        is_true, is_false = (pc.is_in(words, pa.array(pair)) for pair in (["true", "1"], ["false", "0"]))
        return pc.if_else(pc.or_(is_true, is_false), is_true, pa.scalar(None, pa.bool_()))
    grammar = FLOAT if pa.types.is_floating(kind) else INT
    is_number = pc.fill_null(pc.match_substring_regex(texts, grammar), False)
    readable = pc.if_else(is_number, texts, pa.scalar(None, pa.string())).to_pylist()
    if pa.types.is_floating(kind):
        return pa.array([None if text is None else float(text) for text in readable], kind)
    return _take_whole([None if text is None else Decimal(text) for text in readable])


def _take_whole(numbers: list[Decimal | None]) -> pa.Array:
    """Whole numbers without loss: float64 would lose digits above 2**53."""
    fits = [n is not None and -INT_LIMIT <= n < INT_LIMIT and n == n.to_integral_value() for n in numbers]
    whole = [int(n) if n is not None and fit else None for n, fit in zip(numbers, fits, strict=True)]
    return pa.array(whole, pa.int64())


def _write_texts(column: Values) -> Values:
    if not pa.types.is_binary(column.type):
        return column.cast(pa.string())
    decoded = [None if value is None else value.decode(errors="replace") for value in column.to_pylist()]
    return pa.array([None if text is None or "\ufffd" in text else text for text in decoded], pa.string())


def _read_numbers(column: Values, kind: pa.DataType) -> Values:
    """Convert between number types and bool; only whole numbers become int, only 0 and 1 become bool."""
    if not (_is_number(column.type) or pa.types.is_boolean(column.type)):
        return pa.nulls(len(column), kind)
    if pa.types.is_boolean(kind):
        as_float = column.cast(pa.float64(), safe=False)
        fits = pc.is_in(as_float, pa.array([0.0, 1.0]))
        return pc.if_else(fits, pc.equal(as_float, 1.0), pa.scalar(None, pa.bool_()))
    if pa.types.is_floating(kind):
        return column.cast(kind, safe=False)
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        if pa.types.is_decimal(column.type):
            return _take_whole(column.to_pylist())
        if pa.types.is_integer(column.type):
            fits = pc.less(column, pa.scalar(INT_LIMIT, column.type))
        else:
            fits = pc.and_(pc.equal(pc.trunc(column), column), pc.less(pc.abs(column), float(INT_LIMIT)))
        return pc.if_else(fits, column, pa.scalar(None, column.type)).cast(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text in any layout."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _read_times(column: Values) -> Values:
    """Instants in UTC, to the microsecond; text as ISO 8601, dates as midnight. Numbers are not instants."""
    kind = pa.timestamp("us", tz="UTC")
    if pa.types.is_string(column.type):
        try:
            column = column.cast(kind)
        except pa.ArrowInvalid:
            column = pc.replace_substring_regex(column, r"(\d) *(?i:UTC|GMT|Z) *$", r"\1Z")
            # Finer digits would change the unit, and so the range, of all values of the slice.
            texts = pc.replace_substring_regex(column, r"(\.\d{6})\d+", r"\1").to_pandas()
            # A fixed format, because otherwise the first row of a slice would choose it for all.
            times = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601").astype("datetime64[us, UTC]")
            column = pa.array(times, kind, from_pandas=True)
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(column.type) else "ms"))
    elif not pa.types.is_timestamp(column.type):
        return pa.nulls(len(column), kind)
    ticks = column.cast(pa.int64())
    limits = [int(limit.timestamp()) * UNITS[column.type.unit] for limit in (FIRST, LAST)]
    if column.type.unit != "ns":  # the whole range of ns is readable
        fits = pc.and_(pc.greater_equal(ticks, limits[0]), pc.less_equal(ticks, limits[1]))
        column = pc.if_else(fits, column, pa.scalar(None, column.type))
    return column.cast(kind, safe=False)  # unsafe: truncates nanoseconds


def batch_dates_of(times: Values, zone: ZoneInfo) -> Values:
    """The local day of each event time (date32); null for a null time."""
    return pc.cast(pc.local_timestamp(pc.cast(times, pa.timestamp("us", tz=str(zone)))), pa.date32())


def read_times(column: Values, form: str | None, zone: ZoneInfo | None) -> pa.ChunkedArray:
    """Instants in UTC; null if unreadable. Those without an offset are in UTC or, if given, in `zone`.

    A local time that the clocks skip is the first instant after the gap; one that occurs twice is the first of the two.
    """
    column = _apply_format(_decode(column), form) if form else _decode(column)
    times = cast_column(column, TYPES["timestamp"])
    if zone is None:
        return times
    naive = times.cast(pa.timestamp("us"))
    is_far = pc.or_(pc.less(naive, FIRST.replace(tzinfo=None)), pc.greater(naive, LAST.replace(tzinfo=None)))
    near = pc.if_else(is_far, pa.scalar(None, naive.type), naive)
    local = pc.assume_timezone(near, str(zone), ambiguous="earliest", nonexistent="latest").cast(times.type)
    found = pc.if_else(_have_offsets(column), times, local)
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def are_local(column: Values, form: str | None) -> bool:
    """Whether some readable time of a column has no offset."""
    column = _apply_format(_decode(column), form) if form else _decode(column)
    is_read = cast_column(column, TYPES["timestamp"]).is_valid()
    return bool(pc.any(pc.and_(is_read, pc.invert(_have_offsets(column)))).as_py())


def _have_offsets(column: Values) -> Values:
    if pa.types.is_string(column.type):
        return pc.match_substring_regex(column, OFFSET)
    has_zone = pa.types.is_timestamp(column.type) and column.type.tz is not None
    return pa.chunked_array([pa.repeat(has_zone, len(column))])


def find_unreadable(raw: pa.Table, typed: pa.Table, contract: Contract) -> dict[str, Mask]:
    """For each column with unreadable values, the mask (N,) of their rows. Missing values do not count."""
    found = {}
    for name, column in contract.columns.items():
        if name == "event_time" or column.shape or name not in raw.column_names:
            continue
        lost = pc.and_(raw[name].is_valid(), typed[name].is_null())
        if pc.any(lost).as_py():
            values = _decode(raw[name])
            words = column.missing if column.type == "text" else (*MISSING_WORDS, *column.missing)
            lost = pc.and_(lost, pc.invert(_means_missing(values, words)))
            if pa.types.is_floating(values.type):
                lost = pc.and_kleene(lost, pc.invert(pc.is_nan(values)))  # null where the value is missing
        if pc.any(lost).as_py():
            found[name] = lost.to_numpy()
    return found


def _means_missing(column: Values, words: Sequence[str]) -> Values:
    """Whether each value is one of these words, in capitals or not; False for columns other than text."""
    if not pa.types.is_string(column.type):
        return pa.chunked_array([pa.repeat(False, len(column))])
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    return pc.is_in(texts, pa.array([word.strip().lower() for word in words], pa.string()))


def describe_unreadable(name: str, contract: Contract) -> str:
    """The quarantine reason of a row with an unreadable value."""
    return f"{name}: not readable as {contract.columns[name].type}"


@dataclass(eq=False)
class Landed:
    """What is known about a batch's landed columns, collected slice by slice."""

    contract: Contract
    rows: int = 0
    types: dict[str, set[str]] = field(default_factory=dict)  # Arrow's type names, by column of the contract
    retyped: set[str] = field(default_factory=set)
    lacking: Counter[str] = field(default_factory=Counter)  # rows without the column
    extra: dict[str, pa.ChunkedArray] = field(default_factory=dict)  # unknown columns, with a few values of each
    misshapen: set[str] = field(default_factory=set)
    unreadable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, raw: pa.Table, unreadable: Mapping[str, Mask]) -> None:
        """Count a slice."""
        columns, names = self.contract.columns, set(raw.column_names) - {"record_id", "event_time"}
        self.rows += raw.num_rows
        self.lacking.update(dict.fromkeys(columns.keys() - names - {"event_time"}, raw.num_rows))
        for name in names - columns.keys() - {*map(tidy_name, self.contract.ignored)} - self.extra.keys():
            self.extra[name] = raw[name].slice(0, SAMPLE)
        self.misshapen |= find_misshapen(raw.schema, self.contract)
        has_types = not all(is_text(raw.schema.field(name).type) for name in names)  # CSV and text lines have no types
        for name in names & columns.keys():
            kind = raw.schema.field(name).type
            self.types.setdefault(name, set()).add("text" if is_text(kind) else str(kind))
            if has_types and not is_natural(kind, columns[name]):
                self.retyped.add(name)
        for name, mask in unreadable.items():
            self.unreadable[name] += int(mask.sum())
            if name not in self.examples and not columns[name].masked:
                self.examples[name] = shorten(to_python(raw[name].filter(pa.array(mask))[0]))

    @property
    def failures(self) -> list[str]:
        """Problems that reject a batch: required columns that are missing, or images of the wrong shape."""
        missing = sorted(name for name in self.lacking if self.contract.columns[name].required)
        absent = [f"columns missing: {', '.join(missing)}{self._describe_renames(missing)}"] if missing else []
        return absent + sorted(self.misshapen)

    @property
    def surprises(self) -> list[str]:
        """Columns that the contract does not know; its `extra_columns` decides whether they reject the batch."""
        return [f"columns not in the contract, ignored: {', '.join(sorted(self.extra))}"] if self.extra else []

    @property
    def warnings(self) -> list[str]:
        """What the contract allows but people should know: missing or retyped columns."""
        optional = sorted(name for name in self.lacking if not self.contract.columns[name].required)
        messages = [
            f"column missing, read as null in {self.lacking[name]} of {self.rows} rows: {name}"
            f"{self._describe_renames([name])}"
            for name in optional
        ]
        kinds = {name: self.contract.columns[name].type for name in sorted(self.retyped - self.unreadable.keys())}
        return messages + [
            f"{name} landed as {self._describe_types(name)}, not as {kind}; every value could be read"
            for name, kind in kinds.items()
        ]

    def describe_reading(self, name: str) -> str:
        """A column's landed type, the share of unreadable values, and an example unless the column is masked."""
        share, kind = self.unreadable[name] / self.rows, self.contract.columns[name].type
        example = f", such as {self.examples[name]}" if name in self.examples else ""
        return f"{name} landed as {self._describe_types(name)}, {share:.1%} of it not readable as {kind}{example}"

    def _describe_types(self, name: str) -> str:
        return " and ".join(sorted(self.types[name]))

    def _describe_renames(self, missing: list[str]) -> str:
        guesses = {name: guess_rename(name, self.contract.columns[name], self.extra) for name in missing}
        renames = [f"{name} looks renamed to {new}" for name, new in guesses.items() if new]
        return f" ({'; '.join(renames)})" if renames else ""


def find_misshapen(schema: pa.Schema, contract: Contract) -> set[str]:
    """Problems with landed columns that should contain images of the contract's shape."""
    shapes = {name: column.shape for name, column in contract.columns.items() if column.shape and name in schema.names}
    found = {name: read_shape(schema.field(name)) for name in shapes}
    return {
        f"{name} has {describe_shape(shape)}, expected {describe_shape(shapes[name])}"
        for name, shape in found.items()
        if shape != shapes[name]
    }


def is_natural(kind: pa.DataType, column: ContractColumn) -> bool:
    """Whether a typed source would normally deliver the contract's type as this Arrow type."""
    if pa.types.is_null(kind) or column.shape or (column.format and (is_text(kind) or _is_number(kind))):
        return True
    if pa.types.is_dictionary(kind):
        return is_natural(kind.value_type, column)
    natural = {
        "float": _is_number(kind),
        # A column of whole numbers often becomes float when a value is missing.
        "int": pa.types.is_integer(kind) or (column.nullable and pa.types.is_floating(kind)),
        "text": is_text(kind),
        "bool": pa.types.is_boolean(kind),
        "timestamp": pa.types.is_timestamp(kind) or pa.types.is_date(kind),
    }
    return bool(natural[column.type])


def guess_rename(name: str, column: ContractColumn, extra: Mapping[str, pa.ChunkedArray]) -> str | None:
    """The new column that a missing one was probably renamed to: by name, or by type if only one fits."""
    if column.shape:
        return None
    kind, form = column.to_field(name).type, column.format
    read = {new: cast_column(some, kind, form).null_count - some.null_count for new, some in extra.items()}
    fits = {new.casefold(): new for new, lost in read.items() if not lost}
    near = difflib.get_close_matches(name.casefold(), fits, n=1, cutoff=0.5)
    if not near and column.type != "text" and len(fits) == 1:
        near = list(fits)
    return fits[near[0]] if near else None


def to_python(value: pa.Scalar) -> object:
    """The value as a Python object; an instant that Python cannot represent as its number."""
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return value.value


def shorten(value: object) -> str:
    """A quoted value, unprintable characters escaped, of at most SHOWN characters."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
