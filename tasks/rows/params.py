"""A detector's sections of params.yaml, one per step; those of the model are in models/params.py.

They are separate from the steps because the steps import Prefect and torch, for which a command that only reads params
must not wait. flows/config/params.py reads the file and builds a detector from them.
"""

import hashlib
import json
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Annotated, Literal, get_args
from zoneinfo import available_timezones

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from models.params import (
    AlarmBudgetPolicy,
    EncodeParams,
    FitParams,
    NetworkReducerParams,
    Networks,
    QuantilePolicy,
    ReducerLimits,
    ReducerParams,
    ResidualParams,
    ScoringParams,
    Section,
    ThresholdParams,
)
from tasks.rows.history import EnrichParams
from tasks.sources.files import FilesSource
from tasks.sources.formats import EPOCHS, check_time_format
from tasks.sources.kinds import Source
from tasks.sources.payments import PaymentsSource

HOUR = "hour"


class RunParams(Section):
    """What `nightjar run` covers: `nights` scored batches up to `last_date`; and whether it runs every night.

    After days without any run, a night also scores the missed dates: the latest `catch_up` of them.
    """

    nights: int = Field(ge=1, le=366)
    last_date: date | None = None  # None: the source's newest batch date
    every_night: bool = True  # with a champion: scored by `score --all`, trained weekly, checked for freshness
    catch_up: int = Field(default=7, ge=0, le=366)


class EventTime(Section):
    """The column with the event time: a timestamp, or seconds since `seconds_since`.

    `format` is how its values are written, if not in ISO 8601: see tasks/sources/formats.py. Times without an offset
    are in UTC or, if `local`, in the detector's time zone: one that the clocks skip is the first instant after the gap,
    one that occurs twice is the first of the two.

    Without one, rows are dealt over days (UTC) from `first_date` on: at random over `days` of them, by their id and
    `seed`; or in file order, `rows_per_day` each.
    """

    column: str | None = None
    seconds_since: AwareDatetime | None = None
    # Excluded from hashes at their defaults, so that params older than these keys keep their hash.
    format: Annotated[str, AfterValidator(check_time_format)] | None = Field(
        default=None, exclude_if=lambda form: form is None
    )
    local: bool = Field(default=False, exclude_if=lambda local: not local)
    rows_per_day: int | None = Field(default=None, ge=1)
    first_date: date | None = None
    days: int | None = Field(default=None, ge=2, le=366, exclude_if=lambda days: days is None)
    seed: int | None = Field(default=None, ge=0, exclude_if=lambda seed: seed is None)

    @model_validator(mode="after")
    def _check(self) -> "EventTime":
        dealt = ("first_date", "rows_per_day", "days", "seed")
        given = {name for name in dealt if getattr(self, name) is not None}
        wanted = [set()] if self.column else [{"first_date", "rows_per_day"}, {"first_date", "days", "seed"}]
        if given not in wanted:
            raise ValueError("give either column, or first_date with days and seed, or first_date with rows_per_day")
        if self.seconds_since and self.column is None:
            raise ValueError("seconds_since needs a column of seconds")
        if self.format and (self.column is None or self.seconds_since):
            raise ValueError("format needs a column of times, without seconds_since")
        if self.local and (self.column is None or self.seconds_since or self.format in EPOCHS):
            raise ValueError("local: true needs a column of dates and times of day; seconds are counted in UTC")
        return self


def normalise_label(text: str) -> str:
    """One spelling for equal labels: "1", "1.0", " 1" and "True" are all "1", "Y" and "Yes" are "yes".

    Words lose case and outer blanks.
    """
    word = text.strip().casefold()
    word = {"true": "1", "false": "0", "y": "yes", "n": "no"}.get(word, word)
    try:
        number = Decimal(word)
    except InvalidOperation:
        return word
    return f"{number.normalize() + 0:f}" if number.is_finite() else word


class LabelColumn(Section):
    """Labels delivered with the rows: the column, and the values that mean anomalous and normal.

    With `normal` alone, every other value means anomalous. With `anomalous` alone, which must then be numbers or
    booleans, normal is 0 (or false). tasks/rows/labels.py reads them.
    """

    column: str
    anomalous: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "LabelColumn":
        anomalous, normal = self.meanings
        if not anomalous and not normal:
            raise ValueError("give anomalous, normal or both: lists of values")
        if not normal:
            raise ValueError("list the normal values too: a value that is in neither list is refused")
        if both := anomalous & normal:
            raise ValueError(f"{', '.join(sorted(both))} cannot mean both anomalous and normal")
        return self

    @property
    def meanings(self) -> tuple[set[str], set[str]]:
        """The anomalous and the normal values, each in one spelling."""
        anomalous, normal = ({*map(normalise_label, values)} for values in (self.anomalous, self.normal))
        is_implied = not normal and all(value.lstrip("-").replace(".", "").isdecimal() for value in anomalous)
        return anomalous, {"0"} if is_implied and anomalous else normal


class IngestParams(Section):
    """Where rows come from and what identifies them. Without `record_id` it is the file and the row number.

    `first_row` is the number of a file's first record in these ids: 2 where a header is row 1, as in a spreadsheet.
    Without it, nine digits count from 0. `file_column` is the name of a column to add, with the file of each row.
    """

    source: Source
    record_id: str | None = None
    first_row: int | None = Field(default=None, ge=0, exclude_if=lambda first: first is None)
    file_column: str | None = None
    event_time: EventTime
    labels: LabelColumn | None = None

    def hash_landing(self, time_zone: str) -> str:
        """A hash of what decides where rows land: if it changes, they land again."""
        rule = self.model_dump(mode="json", exclude={"source"}, exclude_defaults=True) | {"time_zone": time_zone}
        if isinstance(self.source, FilesSource):
            rule["source"] = self.source.model_dump(mode="json", exclude={"path"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def has_labels(self) -> bool:
        """Whether labels ever arrive: with the rows, or as the simulator's reports."""
        return self.labels is not None or isinstance(self.source, PaymentsSource)


class ValidateParams(Section):
    """How large a share of a batch may be quarantined before the batch is rejected."""

    max_quarantined_fraction: float = Field(default=0.05, ge=0, le=1)


class ByDate(Section):
    """Whole days: calibration uses the latest matured days, then test, tuning and stopping; fit uses the rest."""

    kind: Literal["by_date"]
    stopping_days: int = Field(ge=1)
    tuning_days: int = Field(ge=0)
    test_days: int = Field(ge=0)
    calibration_days: int = Field(ge=1)


class Fractions(Section):
    """Shares of the normal rows in the order of SETS; the remainder is calibration.

    Anomalies are split between tuning and test; each keeps its first `anomalies_per_normal` anomalies per normal row.
    """

    fit: float = Field(gt=0, lt=1)
    stopping: float = Field(gt=0, lt=1)
    tuning: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    anomalies_per_normal: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Fractions":
        if self.fit + self.stopping + self.tuning + self.test >= 1:
            raise ValueError("fit + stopping + tuning + test must be less than 1, to leave a share for calibration")
        return self

    @property
    def calibration(self) -> float:
        """The share left for calibration."""
        return 1 - self.fit - self.stopping - self.tuning - self.test


class LeadingFraction(Fractions):
    """Rows in order of event time: the first share is for fitting, the last for testing."""

    kind: Literal["leading_fraction"]


class RandomFraction(Fractions):
    """Rows in an order drawn from their record_id and the seed, so that all sets are alike."""

    kind: Literal["random_fraction"]
    seed: int = Field(ge=0)


class FilterParams(Section):
    """How rows are split, and which are excluded."""

    splits: Annotated[ByDate | LeadingFraction | RandomFraction, Field(discriminator="kind")]
    trim_fraction: float = Field(default=0.0, ge=0, lt=0.5)
    exclude_dates: tuple[date, ...] = ()


class SequenceParams(Section):
    """How texts become tokens: words and, with `ngrams` of 2 or more, runs of up to that many words.

    `shapes`: runs use the shapes of words instead: A for a capital, a for any other letter, 9 for a digit.

    The `vocabulary` commonest tokens of the fit rows get a slot each, all others share one. Of each record at most as
    many words are read as `length_percentile` percent of the fit rows have.
    """

    separator: str = r"\s+"
    ngrams: int = Field(default=1, ge=1, le=5)
    vocabulary: int = Field(default=750, ge=1)
    form: Literal["multi_hot", "counts"] = "multi_hot"
    length_percentile: float = Field(default=99.0, gt=0, le=100)
    shapes: bool = False

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, separator: str) -> str:
        try:
            is_empty = pc.match_substring_regex(pa.scalar(""), separator).as_py()
        except pa.ArrowInvalid as error:
            raise ValueError(str(error)) from error
        if is_empty:
            raise ValueError("the separator must not match an empty text")
        return separator

    @model_validator(mode="after")
    def _check_shapes(self) -> "SequenceParams":
        if self.shapes and self.ngrams < 2:
            raise ValueError("shapes apply to runs of words: they need ngrams of 2 or more")
        return self


class ColumnsParams(Section):
    """Which columns a detector reads, by kind. A numeric one becomes log_numeric if the skewness rule applies."""

    numeric: tuple[str, ...] = ()
    log_numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    datetime: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    sequence: dict[str, SequenceParams] = Field(default={})
    max_categories: int = Field(default=200, ge=1)  # rarer ones share a slot

    @model_validator(mode="after")
    def _check(self) -> "ColumnsParams":
        if not self.names:
            raise ValueError("a detector needs at least one column")
        if len(set(self.names)) < len(self.names):
            raise ValueError("a column is listed under two kinds")
        return self

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of kind numeric and log_numeric."""
        return (*self.numeric, *self.log_numeric)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, in the detector's order."""
        return (*self.numbers, *self.categorical, *self.datetime, *self.image, *self.sequence)


class PerEntityParams(Section):
    """The numbers that are scaled for each entity, and the fewest rows after which its own spread counts for half."""

    scale: tuple[str, ...] = Field(min_length=1)
    minimum: int = Field(default=30, ge=1)


class TrainParams(Section):
    """What a detector reads, and how it is fitted."""

    columns: ColumnsParams
    # Excluded from the hash at its default, so that params older than this key keep their hash.
    per_entity: PerEntityParams | None = Field(default=None, exclude_if=lambda given: given is None)
    encode: EncodeParams = EncodeParams()
    networks: Networks
    fit: FitParams = FitParams()
    score: ScoringParams = ResidualParams()


class CalibrateParams(Section):
    """The threshold policy, and the column by whose values thresholds differ."""

    threshold: ThresholdParams = Field(default=QuantilePolicy(), discriminator="kind")
    by: str | None = Field(default=None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _check(self) -> "CalibrateParams":
        if self.by is not None and not isinstance(self.threshold, QuantilePolicy | AlarmBudgetPolicy):
            kind = self.threshold.kind
            raise ValueError(f"by needs a threshold of kind quantile or alarm_budget: {kind} has none for a segment")
        return self


class GroupsParams(Section):
    """How records are grouped, by the hour of event_time or by a column's value, and how they are weighted.

    q: a group is flagged when its score is above this quantile of the scores of earlier nights' groups.
    minimum: groups with fewer records have no rank, are not flagged and are not compared with: a mean of few varies.
    """

    by: str
    weight: str | None = None  # a column of positive numbers; None: equal weights
    # Left out of the key of scores at its default, as in params older than it.
    q: float = Field(default=0.99, gt=0, lt=1, exclude_if=lambda given: given == 0.99)
    minimum: int = Field(default=1, ge=1, exclude_if=lambda given: given == 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the groups need in addition to event_time."""
        return tuple(name for name in (self.by, self.weight) if name not in (HOUR, None))


def _list_groupings(given: object) -> object:
    return () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)


class ScoreParams(Section):
    """How many alerts a night may publish (the worst are kept), and how many causes each has.

    Suppressed flags are published in addition to the alerts, with the same limit. `bands` maps each severity to the
    percentile rank at which it begins. `groups`: one grouping, a list of them, or none.
    """

    max_alerts: int = Field(default=1000, ge=1)
    causes: int = Field(default=3, ge=1)
    bands: dict[str, float] = Field(default={"low": 0, "medium": 99, "high": 99.9, "critical": 99.99})
    groups: Annotated[tuple[GroupsParams, ...], Field(strict=False), BeforeValidator(_list_groupings)] = ()

    @field_serializer("groups")
    def _dump_groups(self, groups: tuple[GroupsParams, ...]) -> object:
        """As params.yaml had them when there was at most one, so that older scores keep their key."""
        dumped = [one.model_dump(mode="json") for one in groups]
        return dumped if len(dumped) > 1 else dumped[0] if dumped else None

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: tuple[GroupsParams, ...]) -> tuple[GroupsParams, ...]:
        names = [one.by for one in groups]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two groupings by {', '.join(twice)}")
        return groups

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: dict[str, float]) -> dict[str, float]:
        ranks = list(bands.values())
        if ranks[:1] != [0] or ranks[-1] >= 100 or any(low >= high for low, high in pairwise(ranks)):
            raise ValueError("bands must be rising percentile ranks below 100, the first of them 0")
        return bands

    def name_band(self, percentile_rank: float) -> str:
        """The severity of a rank, 0 to 100: the last band that begins at or below it."""
        return [name for name, rank in self.bands.items() if rank <= percentile_rank][-1]


class ReviewParams(Section):
    """How many rows to review in addition to a night's alerts, and how the reducer learns from the verdicts.

    sample: rows per night below the threshold, and also the limit for suppressed flags.
    """

    sample: int = Field(default=50, ge=0)
    reducer: ReducerParams = Field(default=NetworkReducerParams(), discriminator="kind")
    limits: ReducerLimits = ReducerLimits()


class GateParams(Section):
    """What a version must meet to become champion, on the nights on which `nightjar compare` judges it.

    min_shadow_nights: nights that it has scored beside the champion, as they came. max_alerts_per_night: None for any
    number. max_recall_loss: of the known anomalies, the share that it may miss beyond the champion's.
    """

    min_nights: int = Field(default=1, ge=1, le=366)
    min_shadow_nights: int = Field(default=0, ge=0, le=366)
    max_alerts_per_night: float | None = Field(default=None, gt=0)
    max_recall_loss: float = Field(default=0.05, ge=0, le=1)


class PromoteParams(Section):
    """The gate before a promotion; None: only what a version would lose is checked."""

    gate: GateParams | None = None


class ShiftCanary(Section):
    """A number is moved by this many of its spreads in the training rows; a log_numeric one on its logarithm."""

    kind: Literal["shift"]
    column: str
    spreads: float = 8.0

    @property
    def changes(self) -> tuple[str, ...]:
        """The columns that it changes."""
        return (self.column,)


class SwapCanary(Section):
    """Two numbers are exchanged."""

    kind: Literal["swap"]
    columns: tuple[str, str]

    @property
    def changes(self) -> tuple[str, ...]:
        """The columns that it changes."""
        return self.columns


class CategoryCanary(Section):
    """A category comes from a row of another `segment`, a column; without one it is the night's rarest."""

    kind: Literal["category"]
    column: str
    segment: str | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """The columns that it changes."""
        return (self.column,)


Canary = Annotated[ShiftCanary | SwapCanary | CategoryCanary, Field(discriminator="kind")]


def check_holiday(text: str) -> str:
    """A date, or a month and day of every year, such as 12-25. Raises ValueError."""
    try:
        if date.fromisoformat(f"2024-{text}" if len(text) == len("12-25") else text).isoformat().endswith(text):
            return text
    except ValueError:
        pass
    raise ValueError(f"{text!r} is neither a date such as 2026-04-03 nor a month and day such as 12-25")


class MonitorParams(Section):
    """What is watched after each published night.

    canaries: None chooses some by the kinds of columns; an empty list makes none. ignore: columns that may drift.
    holidays: dates whose number of rows says nothing, each a date or, in every year, month and day.
    """

    canaries: tuple[Canary, ...] | None = None
    ignore: tuple[str, ...] = ()
    holidays: tuple[Annotated[str, AfterValidator(check_holiday)], ...] = ()

    def is_holiday(self, day: date) -> bool:
        """Whether a date is one of the holidays."""
        return not {day.isoformat(), f"{day:%m-%d}"}.isdisjoint(self.holidays)


class RetentionParams(Section):
    """Number of days after which data is pruned, by batch date, cut-off or time of writing; None: never.

    Without `landing` a night cannot be scored again, without `validated` it cannot be explained, and without `scores`
    it cannot be sampled for review.
    """

    landing_days: int | None = Field(default=None, ge=1)
    validated_days: int | None = Field(default=None, ge=1)
    quarantine_days: int | None = Field(default=None, ge=1)
    clean_days: int | None = Field(default=None, ge=1)
    scores_days: int | None = Field(default=None, ge=1)
    reports_days: int | None = Field(default=None, ge=1)  # and validation pages
    bundles_days: int | None = Field(default=None, ge=1)  # local copies; registered bundles stay
    superseded_days: int | None = Field(default=None, ge=1)
    attempts_days: int | None = Field(default=None, ge=1)

    def find_past(self, day: date, today: date) -> frozenset[str]:
        """The zones of the lake in which a day's partition is past its retention."""
        days = {
            "landing": self.landing_days,
            "validated": self.validated_days,
            "quarantine": self.quarantine_days,
            "clean": self.clean_days,
            "scores": self.scores_days,
        }
        return frozenset(zone for zone, limit in days.items() if limit and day < today - timedelta(days=limit))


class PublishParams(Section):
    """The columns whose values are published with each flag, also ones that the detector does not learn from.

    pseudonymise: masked columns whose values are published as keyed hashes: see tasks/rows/record.py.
    """

    show: tuple[str, ...] = ()
    pseudonymise: tuple[str, ...] = ()


Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
RANKS: dict[Severity, float] = {"low": 0, "medium": 99.9, "high": 99.99, "critical": 99.999}
DUE_HOURS: dict[Severity, float] = {"low": 168, "medium": 72, "high": 24, "critical": 4}


class CasesParams(Section):
    """How severe a case is, and how soon a person should have looked at it.

    ranks: the percentile rank of the worst flag at which a severity begins. raised_by: with this many flags, a case
    above low is one severity higher; many weak flags say little (docs/cases.md). due_hours: by severity. A severity
    that is not named keeps its default. At the desk, lock_minutes: how long a case that somebody opened is theirs;
    bulk_limit: the most cases on which one person may give a verdict at once, without a second one's approval.
    """

    ranks: dict[Severity, float] = Field(default=RANKS)
    raised_by: int = Field(default=3, ge=2)
    due_hours: dict[Severity, Annotated[float, Field(gt=0, le=8784)]] = Field(default=DUE_HOURS)
    lock_minutes: float = Field(default=15, gt=0, le=1440)
    bulk_limit: int = Field(default=20, ge=1)

    @field_validator("ranks")
    @classmethod
    def _fill_ranks(cls, given: dict[Severity, float]) -> dict[Severity, float]:
        ranks = {severity: given.get(severity, RANKS[severity]) for severity in SEVERITIES}
        values = list(ranks.values())
        if values[0] != 0 or values[-1] > 100 or any(low > high for low, high in pairwise(values)):
            raise ValueError("ranks must rise from low, which is 0, to critical, at most 100")
        return ranks

    @field_validator("due_hours")
    @classmethod
    def _fill_due_hours(cls, given: dict[Severity, float]) -> dict[Severity, float]:
        return {severity: given.get(severity, DUE_HOURS[severity]) for severity in SEVERITIES}

    def find_severity(self, worst_rank: float, flags: int) -> Severity:
        """The severity of a case by the rank of its worst flag, 0 to 100, and the number of its flags."""
        level = sum(rank <= worst_rank for rank in self.ranks.values()) - 1
        return SEVERITIES[min(level + (level > 0 and flags >= self.raised_by), len(SEVERITIES) - 1)]

    def find_due(self, severity: str, since: datetime) -> datetime:
        """When a case that became this severe at an instant is due."""
        return since + timedelta(hours=next(hours for name, hours in self.due_hours.items() if name == severity))


def known_zone(name: str) -> str:
    """The name of a time zone, if it is one. Raises ValueError."""
    if name not in available_timezones():
        raise ValueError(f"{name!r} is not a time zone of the IANA database, such as Europe/Berlin")
    return name


class DetectorParams(Section):
    """One configured anomaly-detection job."""

    time_zone: Annotated[str, AfterValidator(known_zone)] = "UTC"
    label_delay_days: int = Field(default=0, ge=0, le=365)
    entity: str | None = None  # the column that names whom a record is about, such as a card or a host
    run: RunParams
    ingest: IngestParams
    validate_: ValidateParams = Field(default=ValidateParams(), alias="validate")
    enrich: EnrichParams | None = Field(default=None, exclude_if=lambda enrich: enrich is None)
    filter: FilterParams
    train: TrainParams
    calibrate: CalibrateParams = CalibrateParams()
    score: ScoreParams = ScoreParams()
    publish: PublishParams = PublishParams()
    cases: CasesParams = CasesParams()
    monitor: MonitorParams = MonitorParams()
    review: ReviewParams = ReviewParams()
    promote: PromoteParams = PromoteParams()
    retention: RetentionParams = RetentionParams()

    @property
    def history(self) -> dict[str, str]:
        """What each history column is, as text."""
        return self.enrich.definitions if self.enrich else {}

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that judging a record needs: those learnt from, and the keys of its scales and its threshold."""
        keys = [self.entity if self.train.per_entity else None, self.calibrate.by]
        return tuple(dict.fromkeys([*self.train.columns.names, *(name for name in keys if name)]))
