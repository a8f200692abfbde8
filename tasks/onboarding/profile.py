"""Profile a source: its columns, their values, and the kind of column that a detector should use for each.

In: the slices of all arrivals, read once. Out: counts over all rows and, from a uniform sample (n rows), one
ColumnProfile per column. Types are found with the cast that validation uses, so both read the same values.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.calibration import Floats
from models.encoders import measure_skewness
from models.params import EncodeParams
from tasks.errors import SourceInvalid
from tasks.ingest import check_names
from tasks.onboarding.reading import Reading, Type, find_reading
from tasks.rows.contract import RESERVED, Contract, ContractColumn
from tasks.rows.params import ColumnsParams
from tasks.rows.schema import are_local, cast_column, find_unreadable, shorten, to_python, type_rows
from tasks.sources.arrival import UNPARSED, Arrival

SAMPLE_ROWS, SAMPLE_BYTES = 100_000, 1 << 28
ENOUGH_ROWS = 50  # with fewer, repeated values mean nothing
EXTREME = 0.001  # share of numbers at either end that neither the skewness nor the range may depend on
# Infinite values would dominate the fit, and 1 % of them would set the threshold. Rows with one are quarantined, and a
# larger share of them than this could reject a day.
MAX_INFINITE = 0.01
MAX_CATEGORIES = ColumnsParams.model_fields["max_categories"].default
FEW_VALUES = 2  # a whole-number column with at most this many values is categorical
MIN_COVERED = 0.8  # smallest share of rows whose category is in the vocabulary
ID_NAME = re.compile(r"(^|[^A-Za-z])(?i:id|uuid|guid|index|key)\s*$|[a-z](Id|ID)\s*$")
Kind = Literal["numeric", "log_numeric", "categorical", "date-time", "left out"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """One decision about the detector as a whole, and the reason."""

    about: str
    what: str
    why: str


@dataclass(frozen=True)
class Sample:
    """Rows sampled evenly from all arrivals, in their order, and counts over all rows."""

    table: pa.Table
    sizes: tuple[int, ...]  # rows of each arrival
    labels: Counter[str]  # non-missing values of the label column
    unparsed: int = 0  # rows of another width than the header, which are in no sample
    headers: tuple[frozenset[str], ...] = ()  # the columns of each arrival with rows

    def count_lacking(self, column: str) -> int:
        """The number of arrivals without a column."""
        return sum(column not in names for names in self.headers)

    @property
    def rows(self) -> int:
        """The number of rows of all arrivals."""
        return sum(self.sizes)


@dataclass(frozen=True)
class ColumnProfile:
    """A column of n sampled rows: `low` to `high` of the finite numbers but for those `far` outside.

    `skewness` is that of the rows to fit on without the EXTREME numbers, `raw_skewness` with them.
    """

    name: str
    source_type: str
    type: Type | None  # the contract's name for it; None: a type that Nightjar does not read
    rows: int
    missing: int  # null, NaN or a word for it
    unreadable: int
    infinite: int
    distinct: int
    covered: float  # share of rows with one of the MAX_CATEGORIES commonest values
    is_sorted: bool  # never decreases from one row to the next
    is_whole: bool
    has_clock: bool  # some time of day other than midnight
    low: float | None = None
    high: float | None = None
    far: tuple[float, ...] = ()  # numbers further outside than `low` and `high` lie apart, ascending
    skewness: float = 0.0
    raw_skewness: float = 0.0
    format: str | None = None
    words: tuple[str, ...] = ()  # that mean missing in this column, in addition to MISSING_WORDS
    odd: str = ""  # an unreadable value, quoted
    doubt: str = ""  # what else the values could mean, if nothing in the data decides it
    is_local: bool = False  # some time has no offset
    has_negative: bool = False  # among the rows to fit on

    @property
    def missing_fraction(self) -> float:
        """Share of rows without a value, 0 to 1."""
        return self.missing / self.rows

    @property
    def there(self) -> int:
        """Rows with a readable value."""
        return self.rows - self.missing - self.unreadable


@dataclass(frozen=True)
class Decision:
    """How a detector uses a column: `rule` is a reason shared by many columns, `detail` is specific to this one."""

    column: str
    kind: Kind
    rule: str
    detail: str = ""


def draw_sample(arrivals: Iterable[Arrival], label: str | None = None, most: int = SAMPLE_ROWS) -> Sample:
    """Read every arrival once and keep a uniform, seeded sample of its rows; memory holds one slice and the sample.

    The sample has at most SAMPLE_BYTES, so fewer rows if they are wide.
    Raises SourceInvalid if there are no rows, column names repeat, or arrivals differ in a column's type.
    """
    rng = np.random.default_rng(0)
    kept: pa.Table | None = None
    draws = np.empty(0)
    sizes: list[int] = []
    labels: Counter[str] = Counter()
    unparsed = 0
    names: list[frozenset[str]] = []
    for arrival in arrivals:
        sizes.append(0)
        names.append(frozenset())
        for table in arrival.read():
            if table.column_names == [UNPARSED]:
                unparsed += table.num_rows
                continue
            check_names(table, arrival.name)
            sizes[-1] += table.num_rows
            names[-1] |= {*table.column_names}
            if label in table.column_names:
                counts = pc.value_counts(cast_column(table[label], pa.string()).drop_null()).to_pylist()
                labels.update({item["values"]: item["counts"] for item in counts})
            draws = np.concatenate([draws, rng.random(table.num_rows)])
            kept = table if kept is None else _append(kept, table, arrival.name)
            most = min(most, max(ENOUGH_ROWS, len(draws) * SAMPLE_BYTES // max(1, kept.nbytes)))
            if len(draws) > most:
                chosen = draws < np.partition(draws, most)[most]
                kept, draws = kept.filter(pa.array(chosen)), draws[chosen]
    if kept is None or not kept.num_rows:
        raise SourceInvalid(
            "The source has no rows.", got="0 rows", expected="a header line and rows", todo="check --source"
        )
    return Sample(kept, tuple(sizes), labels, unparsed, tuple(found for found in names if found))


def _append(kept: pa.Table, table: pa.Table, name: str) -> pa.Table:
    try:
        return pa.concat_tables([kept, table], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceInvalid(
            "The files have incompatible columns.",
            where=name,
            got=str(error).splitlines()[0],
            expected="the same type of column in each file",
            todo="give fewer files with --source, or write them again with the same types",
        ) from error


def check_column(sample: Sample, column: str, option: str) -> None:
    """Raise SourceInvalid if the column given by an option does not exist."""
    if column not in sample.table.column_names:
        raise SourceInvalid(
            f"The column given by {option} does not exist.",
            got=column,
            expected=", ".join(sample.table.column_names),
            todo="use one of these names",
        )


def profile_column(name: str, column: pa.ChunkedArray, is_clean: Mask) -> ColumnProfile:
    """Measure one column of a sample; `is_clean` (n,) marks the rows that may be fitted on."""
    reading, rows = find_reading(name, column), len(column)
    typed, lost = _read_as_validation(column, reading)
    if reading.type == "float":
        typed = pc.if_else(pc.is_nan(typed), pa.scalar(None, pa.float64()), typed)
    there = typed.drop_null()
    counts = np.sort(there.value_counts().field("counts").to_numpy())[::-1] if len(there) else np.empty(0)
    numbers = typed.cast(pa.float64(), safe=False).to_numpy() if reading.type in ("float", "int") else np.empty(0)
    finite, clean = numbers[np.isfinite(numbers)], numbers[is_clean] if len(numbers) else numbers
    clean = clean[np.isfinite(clean)]
    core = _without_extremes(clean)
    low, high, far = _measure_range(finite)
    return ColumnProfile(
        name=name,
        source_type=str(column.type),
        type=reading.type,
        rows=rows,
        missing=typed.null_count - int(lost.sum()),
        unreadable=int(lost.sum()),
        infinite=int(np.isinf(numbers).sum()),
        distinct=len(counts),
        covered=float(counts[:MAX_CATEGORIES].sum()) / rows,
        is_sorted=_never_falls(there),
        is_whole=bool((finite == np.round(finite)).all()),
        has_clock=reading.type == "timestamp" and _has_clock(there),
        low=low,
        high=high,
        far=far,
        skewness=_measure_skewness(core if len(np.unique(core)) > 1 else clean),
        raw_skewness=_measure_skewness(clean),
        has_negative=bool((clean < 0).any()),
        format=reading.format,
        words=reading.missing,
        odd=shorten(to_python(column.filter(pa.array(lost))[0])) if lost.any() else "",
        doubt=reading.doubt,
        is_local=reading.type == "timestamp" and are_local(column, reading.format),
    )


def _read_as_validation(column: pa.ChunkedArray, reading: Reading) -> tuple[pa.ChunkedArray, Mask]:
    """The column as its contract will have it read, and the mask (n,) of unreadable values."""
    if reading.type is None:
        return pa.chunked_array([pa.nulls(len(column))]), np.zeros(len(column), dtype=bool)
    rule = ContractColumn(type=reading.type, nullable=True, format=reading.format, missing=reading.missing)
    raw, contract = pa.table({"x": column}), Contract(columns={"x": rule})
    typed = type_rows(raw, contract)
    return typed["x"], find_unreadable(raw, typed, contract).get("x", np.zeros(len(column), dtype=bool))


def _without_extremes(numbers: Floats) -> Floats:
    """Finite numbers without the share EXTREME at either end, but for at least one; few numbers stay as they are."""
    if len(numbers) < ENOUGH_ROWS:
        return numbers
    cut = math.ceil(EXTREME * len(numbers))
    return np.sort(numbers)[cut:-cut]


def _measure_range(numbers: Floats) -> tuple[float | None, float | None, tuple[float, ...]]:
    """The lowest and highest of finite numbers, and those that lie further outside the others than these lie apart."""
    if not len(numbers):
        return None, None, ()
    core = _without_extremes(numbers)
    with np.errstate(over="ignore"):
        span = core.max() - core.min()
        is_far = (numbers < core.min() - span) | (numbers > core.max() + span) if span else np.zeros(len(numbers), bool)
    near = numbers[~is_far]
    return float(near.min()), float(near.max()), tuple(np.sort(numbers[is_far]).tolist())


def _measure_skewness(numbers: Floats) -> float:
    return float(measure_skewness(torch.from_numpy(numbers)[:, None])) if len(numbers) else 0.0


def _never_falls(values: pa.ChunkedArray) -> bool:
    flat = values.combine_chunks()
    return len(flat) < 2 or bool(pc.all(pc.less_equal(flat[:-1], flat[1:])).as_py())


def _has_clock(times: pa.ChunkedArray) -> bool:
    midnight = pc.floor_temporal(times, unit="day")
    return bool(pc.any(pc.not_equal(times, midnight)).as_py())


def decide_kinds(profiles: Sequence[ColumnProfile], reserved: dict[str, str]) -> list[Decision]:
    """The kind of each column and the reason; `reserved` gives the reason for columns with another use."""
    decisions = []
    seen: dict[str, str] = {}
    for profile in profiles:
        if profile.name in reserved:
            decisions.append(Decision(profile.name, "left out", reserved[profile.name]))
        elif (folded := profile.name.casefold()) in seen:
            rule = f"its name differs from {seen[folded]!r} only in case, which DuckDB ignores"
            decisions.append(Decision(profile.name, "left out", rule))
        else:
            seen[folded] = profile.name
            decisions.append(decide_kind(profile))
    return decisions


def decide_kind(profile: ColumnProfile) -> Decision:
    """A column's kind and the reason."""

    def decide(kind: Kind, rule: str, detail: str = "") -> Decision:
        return Decision(profile.name, kind, rule, detail)

    there = profile.there
    if not profile.name.strip():
        return decide("left out", "it has no name")
    if profile.name in (*RESERVED, "event_time"):
        return decide("left out", "Nightjar adds a column of that name itself; rename it in the source to use it")
    if profile.type is None:
        return decide("left out", "Nightjar does not read columns of this type", profile.source_type)
    if not there:
        return decide("left out", "no row has a value")
    if profile.distinct == 1:
        return decide("left out", "constant")
    if profile.type == "timestamp":
        if profile.has_clock:
            return decide("date-time", "hour and weekday", _missing_text(profile))
        return decide("left out", "dates without a time of day; provide an age or a number of days instead")
    if profile.type in ("float", "int"):
        return _decide_number(profile)
    if there >= ENOUGH_ROWS and profile.distinct > there / 2:
        return decide("left out", "text that identifies single rows", f"{profile.distinct:,} in {there:,} rows")
    if profile.covered < MIN_COVERED * there / profile.rows:
        return decide("left out", "too many categories to learn", f"{profile.distinct:,} different")
    detail = f"{profile.distinct:,} categories" + _missing_text(profile, ", ")
    return decide("categorical", "text" if profile.type == "text" else "true or false", detail)


def _decide_number(profile: ColumnProfile) -> Decision:
    def decide(kind: Kind, rule: str, detail: str = "") -> Decision:
        return Decision(profile.name, kind, rule, detail)

    there = profile.there
    is_key = there >= ENOUGH_ROWS and profile.distinct == there and profile.is_whole
    if is_key and ID_NAME.search(profile.name):
        return decide("left out", "an identifier: whole numbers, no repeats, and named like one")
    if there >= ENOUGH_ROWS and profile.is_whole and ID_NAME.search(profile.name) and profile.distinct > FEW_VALUES:
        if profile.distinct <= MAX_CATEGORIES:
            return decide("categorical", "whole numbers named like an identifier", f"{profile.distinct:,} categories")
        return decide("left out", "an identifier of whom or what, not a measurement", f"{profile.distinct:,} different")
    if there >= ENOUGH_ROWS and profile.distinct > there / 2 and profile.is_sorted:
        return decide("left out", "a counter or a clock: it rises with the rows; set it with --time if it is the time")
    if profile.low is None or profile.high is None or profile.infinite > MAX_INFINITE * profile.rows:
        return decide("left out", "infinite in too many rows", f"{profile.infinite:,} of {profile.rows:,}")
    detail = f"{profile.low:.4g} to {profile.high:.4g}" + _far_text(profile) + _missing_text(profile, ", ")
    detail += f", {profile.infinite:,} infinite to be quarantined" if profile.infinite else ""
    if profile.is_whole and profile.distinct <= FEW_VALUES:
        return decide("categorical", "two whole numbers", detail)
    limit = EncodeParams().log_skewness
    if limit is not None and profile.skewness > limit and not profile.has_negative:
        rule = f"numbers, none negative, skewness above {limit:g}"
        return decide("log_numeric", rule, f"skewness {profile.skewness:.3g}, {detail}")
    return decide("numeric", "numbers", detail)


def _far_text(profile: ColumnProfile) -> str:
    if not profile.far:
        return ""
    ends = dict.fromkeys((profile.far[0], profile.far[-1]))
    return f", {len(profile.far):,} far outside: {' to '.join(f'{end:.4g}' for end in ends)}"


def _missing_text(profile: ColumnProfile, before: str = "") -> str:
    parts = [f"written {profile.format}"] if profile.format else []
    is_rare = profile.missing_fraction < 0.001
    parts += [f"{profile.missing:,} missing" if is_rare else f"{profile.missing_fraction:.1%} missing"] * bool(
        profile.missing
    )
    parts += [f"{profile.unreadable:,} unreadable"] if profile.unreadable else []
    return before * bool(parts) + ", ".join(parts)


def profile_columns(sample: Sample, is_clean: Mask) -> list[ColumnProfile]:
    """The profiles of all columns of a sample."""
    return [profile_column(name, sample.table[name], is_clean) for name in sample.table.column_names]
