"""Which days the rows of a new source belong to, how many are scored, and how the days before them are split.

In: a Sample, its profiles and the arrivals. Out: a Calendar and the splits, each with its reason. Rows of a source
without times are dealt over days at random; times are read as ingest reads them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.compute as pc

from models.calibration import rows_for_quantile
from models.params import QuantilePolicy
from tasks.errors import SourceInvalid, TooFewRows
from tasks.ingest import find_strays, read_event_times
from tasks.onboarding.profile import ENOUGH_ROWS, Choice, ColumnProfile, Sample, check_column
from tasks.onboarding.reading import EPOCH_S, find_epoch
from tasks.rows.params import ByDate, EventTime, LeadingFraction, RandomFraction, ValidateParams
from tasks.rows.schema import batch_dates_of
from tasks.sources.arrival import UNPARSED, Arrival

FIRST_DATE = date(2026, 1, 1)  # of rows without a time
DEAL_SEED = 2  # another than that of the splits
PARTS = 10  # number of days for rows without a time: nine to learn from, one to score
MIN_ROWS_A_DATE = 20  # a time column is chosen automatically only if its days have this many rows
DATES_BY_DATE = 14  # with this many days, sets are whole days; with fewer, shares of the rows
TIME_NAMES = ("event_time", "timestamp", "datetime", "time", "date", "created_at", "occurred_at")
MAX_UNTIMED = 0.01  # largest share of rows without a time in a column chosen automatically
ZONE = ZoneInfo("UTC")
NEEDED = rows_for_quantile(QuantilePolicy().q) + 1  # calibration rows, plus one for rounding
QUANTILES = (QuantilePolicy().q, *(percent / 100 for percent in range(98, 49, -1)))
SURE = 0.9  # share of the expected calibration rows that is counted on: random sets and quarantine take some
DEALT = 0.95  # the same for the first of them, where the rows of a day are drawn
Splits = ByDate | LeadingFraction | RandomFraction


@dataclass(frozen=True)
class Calendar:
    """How rows get their days: the ingest rule, the rows per date, and the time column, if any."""

    event_time: EventTime
    rows: dict[date, int]
    column: str | None
    choice: Choice

    @property
    def is_dealt(self) -> bool:
        """Whether the days are invented."""
        return self.column is None


def choose_calendar(
    sample: Sample, profiles: Sequence[ColumnProfile], arrivals: Sequence[Arrival], requested: str | None
) -> Calendar:
    """Which days the rows belong to. An unsuitable column is an error if requested, and skipped otherwise."""
    if requested:
        check_column(sample, requested, "--time")
        profile = next(p for p in profiles if p.name == requested)
        rule = _read_time_rule(profile)
        dates = count_dates(arrivals, rule)
        if len(dates) > 1:
            why = f"set by --time{_describe_rule(profile)}{_undated(sample, dates)}"
            return Calendar(rule, dates, requested, Choice("event time", requested, why))
        return spread_evenly(sample, f"all values of {requested} fall on one day, and a night needs earlier days")
    times = [p for p in profiles if p.type == "timestamp" and p.there]
    times.sort(key=lambda p: TIME_NAMES.index(p.name.lower()) if p.name.lower() in TIME_NAMES else len(TIME_NAMES))
    reasons = {profile.name: _find_objection(sample, profile) for profile in times}
    fit = [profile for profile in times if not reasons[profile.name]]
    if not fit:
        listed = "; ".join(f"{name} has {reason}" for name, reason in reasons.items())
        return spread_evenly(sample, f"{listed or 'no column has date-times'}; set one with --time")
    rule = _rule_of(fit[0])
    dates = count_dates(arrivals, rule)
    others = f"; {', '.join(p.name for p in fit[1:])} is also possible with --time" if fit[1:] else ""
    why = f"date-times, {sample.rows // len(dates):,} rows per day{_describe_rule(fit[0])}{others}"
    why += _undated(sample, dates)
    return Calendar(rule, dates, fit[0].name, Choice("event time", fit[0].name, why))


def _rule_of(profile: ColumnProfile) -> EventTime:
    """The rule for a column of times; what equals the default stays unset, so that it is not written."""
    given: dict[str, Any] = {"format": profile.format, "local": profile.is_local}
    return EventTime(column=profile.name, **{key: value for key, value in given.items() if value})


def _describe_rule(profile: ColumnProfile) -> str:
    parts = [f"written {profile.format}"] if profile.format else []
    parts += ["those without an offset are in the detector's time_zone, UTC until you set another"] * profile.is_local
    return "".join(f"; {part}" for part in parts)


def _undated(sample: Sample, dates: dict[date, int]) -> str:
    lost = sample.rows - sum(dates.values())
    return f"; {lost:,} of {sample.rows:,} rows have no possible time and will be quarantined" if lost else ""


def spread_evenly(sample: Sample, why: str) -> Calendar:
    """Deal the rows over days at random: a file may be sorted, and then its last rows are like no others."""
    rows = {FIRST_DATE + timedelta(days=n): (sample.rows + n) // PARTS for n in range(PARTS)}
    what = f"none: rows are dealt at random over {PARTS} invented days from {FIRST_DATE} on"
    rule = EventTime(days=PARTS, seed=DEAL_SEED, first_date=FIRST_DATE)
    return Calendar(rule, rows, None, Choice("event time", what, why))


def count_dates(arrivals: Iterable[Arrival], rule: EventTime) -> dict[date, int]:
    """Rows per batch date over all arrivals (UTC), in order, without dates that cannot be right.

    Rows with such a date or without a readable time land on another date and are quarantined there. Raises
    SourceInvalid if there are too many of them.
    """
    found: Counter[date] = Counter()
    for arrival in arrivals:
        dates: Counter[date | None] = Counter()
        for table in arrival.read():
            if table.column_names == [UNPARSED]:
                continue
            times = read_event_times(table, rule, 0, ZONE)
            counts = pc.value_counts(batch_dates_of(times, ZONE)).to_pylist()
            dates.update({item["values"]: item["counts"] for item in counts})
        undated = dates.pop(None, 0)
        known = {day: count for day, count in dates.items() if day is not None}
        undated += sum(known.pop(day) for day in find_strays(known, rule))
        limit = ValidateParams().max_quarantined_fraction
        if not known or undated > limit * (undated + max(known.values())):
            raise SourceInvalid(
                "Too many rows have no possible time.",
                where=f"{arrival.name}, column {rule.column}",
                got=f"{undated:,} of {undated + sum(known.values()):,} rows",
                expected="times such as 2026-03-01T12:00:00Z or 2026-03-01 12:00, until tomorrow; rows without one "
                f"join the largest day, which may have at most {limit:.0%} of them",
                todo="correct the column, set another with --time, or leave out --time to deal the rows at random",
            )
        found.update(known)
    return dict(sorted(found.items()))


def _read_time_rule(profile: ColumnProfile) -> EventTime:
    if profile.type not in ("float", "int") or profile.low is None or profile.high is None:
        return _rule_of(profile)
    if unit := find_epoch(profile.low, profile.high):
        return EventTime(column=profile.name, format=unit)
    if profile.high > EPOCH_S[1]:
        raise SourceInvalid(
            "The time column has numbers too large for seconds.",
            where=profile.name,
            got=f"{profile.low:.6g} to {profile.high:.6g}",
            expected="date-times, a count since 1970 for the years 1985 to 2128, or seconds since the first row",
            todo="correct the column, or leave out --time to deal the rows over invented days",
        )
    start = datetime.combine(FIRST_DATE, datetime.min.time(), UTC)
    return EventTime(column=profile.name, seconds_since=start)


def _find_objection(sample: Sample, profile: ColumnProfile) -> str:
    """Why a column of times is not chosen without --time; empty if it is fit for it."""
    untimed = profile.rows - profile.there
    dates = batch_dates_of(read_event_times(sample.table, _rule_of(profile), 0, ZONE), ZONE).drop_null()
    largest = max(dates.value_counts().field("counts").to_pylist(), default=0)
    if untimed > min(MAX_UNTIMED * profile.rows, ValidateParams().max_quarantined_fraction * largest):
        return f"no readable time in {untimed:,} of {profile.rows:,} rows"
    days = len(dates.unique())
    if days < 2:
        return "a single day"
    rows_a_day = sample.rows / days
    return f"{rows_a_day:.3g} rows per day" if rows_a_day < MIN_ROWS_A_DATE else ""


def has_hours(calendar: Calendar, profiles: Sequence[ColumnProfile]) -> bool:
    """Whether the event time is useful as a column: real times of day, over a week or more."""
    start = calendar.event_time.seconds_since
    if calendar.column is None or len(calendar.rows) < 7 or (start and start.date() == FIRST_DATE):
        return False
    return bool(start) or next(p for p in profiles if p.name == calendar.column).has_clock


def choose_nights(calendar: Calendar) -> int:
    """The number of nights to score: a tenth of the days, at most a week."""
    return max(1, min(7, len(calendar.rows) // PARTS))


def choose_splits(calendar: Calendar, nights: int, anomalous: float, has_labels: bool) -> tuple[Splits, Choice]:
    """How the rows before the first night are split.

    Rows with times are split by time, so that no later row helps to judge an earlier one. Rows without are drawn at
    random: fit and calibration rows are then alike, as the threshold assumes.
    """
    days = list(calendar.rows)[:-nights]
    tuning = 0.1 if has_labels else 0.0
    splits: Splits
    if calendar.is_dealt:
        splits = RandomFraction(kind="random_fraction", fit=0.4, stopping=0.1, tuning=tuning, test=0.15, seed=1)
        why = "the rows have no times; random sets are alike"
    elif (by_date := _split_days(days, has_labels)) and _calibration_rows(calendar, days, by_date, anomalous) >= NEEDED:
        splits = by_date
        why = "whole days by time, the latest for the threshold"
    else:
        splits = LeadingFraction(kind="leading_fraction", fit=0.5, stopping=0.1, tuning=tuning, test=0.1)
        why = "rows by time: first to fit, then to set the threshold, then to test"
    shares = splits.model_dump(exclude={"kind", "seed"}, exclude_none=True)
    described = ", ".join(f"{key} {value:g}" for key, value in shares.items())
    return splits, Choice("splits", f"{splits.kind}: {described}", why)


def _split_days(days: Sequence[date], has_labels: bool) -> ByDate | None:
    if len(days) < DATES_BY_DATE:
        return None
    tenth = max(1, len(days) // 10)
    return ByDate(
        kind="by_date",
        stopping_days=tenth,
        tuning_days=tenth if has_labels else 0,
        test_days=tenth,
        calibration_days=2 * tenth,
    )


def _calibration_rows(calendar: Calendar, days: Sequence[date], split: ByDate, anomalous: float) -> float:
    return (1 - anomalous) * sum(calendar.rows[day] for day in days[-split.calibration_days :])


def choose_quantile(calendar: Calendar, nights: int, splits: Splits, anomalous: float) -> tuple[float, Choice]:
    """The quantile of the threshold: the 99th percentile, or in a small table the highest that its rows carry.

    Raises TooFewRows if there are fewer than ENOUGH_ROWS rows.
    """
    days, total = list(calendar.rows)[:-nights], sum(calendar.rows.values())
    if isinstance(splits, ByDate):
        clean = _calibration_rows(calendar, days, splits, anomalous)
    else:
        clean = (1 - anomalous) * splits.calibration * sum(calendar.rows[day] for day in days)
    first = DEALT if calendar.is_dealt else 1
    sure = [clean * (first if q == QUANTILES[0] else SURE) for q in QUANTILES]
    spare = [q for q, rows in zip(QUANTILES, sure, strict=True) if rows_for_quantile(q) + 1 <= rows]
    if total < ENOUGH_ROWS or not spare:
        raise TooFewRows(
            "There are too few rows for a threshold.",
            got=f"{total:,} rows, of which about {int(clean):,} are left to set the threshold",
            expected=f"at least {ENOUGH_ROWS} rows, most of them normal",
            todo="provide more rows",
        )
    if spare[0] == QUANTILES[0]:
        return spare[0], Choice("threshold", f"quantile {spare[0]:g}", f"of about {int(clean):,} normal rows")
    why = f"the highest that about {int(clean):,} normal rows carry: expect {1 - spare[0]:.0%} of normal rows flagged"
    return spare[0], Choice("threshold", f"quantile {spare[0]:g}", f"{why}; 0.99 needs {NEEDED}")


def describe_nights(calendar: Calendar, nights: int) -> Choice:
    """The scored days as text."""
    days = list(calendar.rows)
    scored = f"{days[-nights]} to {days[-1]}" if nights > 1 else f"{days[-1]}"
    every = "; nightjar run NAME --all scores every row" if calendar.is_dealt else ""
    why = f"a tenth of {len(days)} days, at most 7; the rest is training{every}"
    return Choice("nights", f"{nights} scored: {scored}", why)
