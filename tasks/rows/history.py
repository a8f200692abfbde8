"""The section `enrich` of params.yaml: history columns, what an entity did before each record.

tasks/rows/derive.py computes them.
"""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from models.params import Section

# Facts of a validated partition with history columns: the key of everything they depend on, what each one is, and the
# content hash without them.
HISTORY, COLUMNS, PLAIN = "history", "history_columns", "plain"
WINDOW_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_WINDOW_DAYS = 400


def read_window(text: str) -> timedelta:
    """The length of a window such as 90s, 15m, 1h or 28d. Raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    seconds = int(found[1]) * WINDOW_UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_WINDOW_DAYS * WINDOW_UNITS["d"]:
        raise ValueError(f"{text!r} is not a window such as 15m, 1h or 28d, of at most {LONGEST_WINDOW_DAYS} days")
    return timedelta(seconds=seconds)


def _check_window(text: str) -> str:
    read_window(text)
    return text


WindowLength = Annotated[str, AfterValidator(_check_window)]


class _HistoryColumn(Section):
    """`by` is the column that names the entity (default: enrich.entity); `window` how far back (default: longest)."""

    by: str | None = Field(default=None, exclude_if=lambda by: by is None)
    window: WindowLength | None = Field(default=None, exclude_if=lambda window: window is None)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns whose earlier values it reads."""
        return ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """Those of `reads` that must be numbers."""
        return self.reads

    @property
    def is_reports(self) -> bool:
        """Whether reported anomalies are counted."""
        return False


class CountColumn(_HistoryColumn):
    """How many earlier records; or how many of them had by then been reported as anomalies (labels)."""

    count: Literal["*", "reports"]

    @property
    def is_reports(self) -> bool:
        """Whether it is."""
        return self.count == "reports"


class SumColumn(_HistoryColumn):
    """The sum of a number over earlier records; missing values and infinity are left out."""

    sum: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The number."""
        return (self.sum,)


class DistinctColumn(_HistoryColumn):
    """How many different values of a column earlier records have."""

    distinct: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The column that is counted."""
        return (self.distinct,)

    @property
    def numbers(self) -> tuple[str, ...]:
        """None: any type can be counted."""
        return ()


class RatioColumn(_HistoryColumn):
    """A number divided by the mean or maximum of earlier ones; missing without any, or if either is no number."""

    ratio: str
    to: Literal["mean", "max"] = "mean"

    @property
    def reads(self) -> tuple[str, ...]:
        """The number."""
        return (self.ratio,)


class DistanceColumn(_HistoryColumn):
    """Kilometres from the place of the previous record: columns with latitude and longitude in degrees."""

    distance: tuple[str, str]

    @property
    def reads(self) -> tuple[str, ...]:
        """Latitude and longitude."""
        return self.distance


class SinceColumn(_HistoryColumn):
    """Seconds since the previous record; missing without one."""

    seconds_since: Literal["previous"]


class FirstSeenColumn(_HistoryColumn):
    """Whether no earlier record has this value of a column."""

    first_seen: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The column."""
        return (self.first_seen,)

    @property
    def numbers(self) -> tuple[str, ...]:
        """None: any type can be compared."""
        return ()


HISTORY_KINDS: dict[str, type[_HistoryColumn]] = {
    "count": CountColumn,
    "sum": SumColumn,
    "distinct": DistinctColumn,
    "ratio": RatioColumn,
    "distance": DistanceColumn,
    "seconds_since": SinceColumn,
    "first_seen": FirstSeenColumn,
}


def _find_history_kind(given: object) -> str | None:
    """The kind of a history column, by the one key that only it has."""
    keys = given.keys() if isinstance(given, dict) else type(given).model_fields if isinstance(given, Section) else ()
    found = [kind for kind in HISTORY_KINDS if kind in keys]
    return found[0] if len(found) == 1 else None


HistoryColumn = Annotated[
    Annotated[CountColumn, Tag("count")]
    | Annotated[SumColumn, Tag("sum")]
    | Annotated[DistinctColumn, Tag("distinct")]
    | Annotated[RatioColumn, Tag("ratio")]
    | Annotated[DistanceColumn, Tag("distance")]
    | Annotated[SinceColumn, Tag("seconds_since")]
    | Annotated[FirstSeenColumn, Tag("first_seen")],
    Discriminator(
        _find_history_kind,
        custom_error_type="history_column",
        custom_error_message=f"give one of {', '.join(HISTORY_KINDS)}",
    ),
]


class EnrichParams(Section):
    """History columns: what an entity did before each record, strictly before it (at the same time, by record_id).

    entity: the column that names it. A name with {window} stands for one column per window.
    """

    entity: str
    windows: Annotated[tuple[WindowLength, ...], Field(min_length=1)]
    columns: Annotated[dict[str, HistoryColumn], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "EnrichParams":
        for name, column in self.columns.items():
            if "{window}" in name and column.window:
                raise ValueError(f"{name}: {{window}} stands for all windows: leave out window, or {{window}}")
        names = [name.replace("{window}", length) for name in self.columns for length in self._lengths(name)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} twice")
        return self

    def _lengths(self, name: str) -> tuple[str, ...]:
        return self.windows if "{window}" in name else (self.columns[name].window or self.longest,)

    @property
    def longest(self) -> str:
        """The longest of `windows`."""
        return max(self.windows, key=read_window)

    @property
    def history(self) -> dict[str, HistoryColumn]:
        """The columns by their full name, each with its entity and window."""
        return {
            name.replace("{window}", length): column.model_copy(
                update={"window": length, "by": column.by or self.entity}
            )
            for name, column in self.columns.items()
            for length in self._lengths(name)
        }

    @property
    def reach(self) -> timedelta:
        """How far back the longest window of a column reaches."""
        return max(read_window(column.window or self.longest) for column in self.history.values())

    @property
    def counts_reports(self) -> bool:
        """Whether a column counts reported anomalies."""
        return any(column.is_reports for column in self.columns.values())

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of records that it reads, in addition to event_time and record_id."""
        found = [name for column in self.history.values() for name in (column.by, *column.reads)]
        return tuple(dict.fromkeys(name for name in found if name))

    @property
    def definitions(self) -> dict[str, str]:
        """What each column is, as text: two versions with equal texts have learnt the same columns."""
        return {name: column.model_dump_json() for name, column in self.history.items()}
