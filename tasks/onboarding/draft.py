"""From a profile to the first params section and contract that `nightjar init` writes, each choice with its reason.

In: a Sample and the kinds of its columns. Out: the typed sections. Labels are used to find the rarer value and to
keep anomalies out of the skewness; no choice about the detector itself depends on them.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.params import AutoencoderParams, EncodeParams, FitParams, NeighboursParams
from tasks.errors import ParamsInvalid, SourceInvalid
from tasks.onboarding.days import (
    Calendar,
    Splits,
    choose_calendar,
    choose_nights,
    choose_quantile,
    choose_splits,
    describe_nights,
    has_hours,
)
from tasks.onboarding.history import choose_history, decide_history
from tasks.onboarding.profile import (
    ENOUGH_ROWS,
    ID_NAME,
    Choice,
    ColumnProfile,
    Decision,
    Mask,
    Sample,
    check_column,
    decide_kinds,
    draw_sample,
    profile_columns,
)
from tasks.onboarding.reading import OTHER_WAY, Type
from tasks.rows.contract import FLOAT_LIMIT, Contract, ContractColumn, ContractExpectation
from tasks.rows.history import EnrichParams
from tasks.rows.labels import NO_LABEL, interpret_labels
from tasks.rows.params import (
    ColumnsParams,
    FilterParams,
    IngestParams,
    LabelColumn,
    TrainParams,
    ValidateParams,
    normalise_label,
)
from tasks.rows.schema import cast_column, shorten
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource
from tasks.sources.sql import SqlSource

MAX_LABELS = 50
LABEL_NAME = re.compile(
    r"(?i)(^|[^a-z])(label|labels|class|target|outcome|anomal(y|ous|ies)|outlier|(is_?)?fraud(ulent)?|attack|malicious|"
    r"malware|phishing|spam|intrusion|defect(ive)?|fault(y)?|is_?normal|ground_?truth|y_true)($|[^a-z])"
)
ENTITY_NAME = re.compile(
    r"(?i)(^|[^a-z])(account|card|client|customer|device|employee|entity|host(name)?|machine|member|merchant|patient|"
    r"sensor|server|supplier|tenant|user(name)?|vehicle|vendor)s?($|[^a-z])|(^|[^a-z])ip($|[^a-z])"
)
MIN_ROWS_PER_ENTITY = 1.5
SHOWN_VALUES = 8  # columns of a record that are published with its flag
TRIMMED = 0.01  # of unlabelled rows: costs little if all are normal, and helps much if some are not
WIDE = 20  # slots of a row: up to here, comparing with 4,000 rows takes no longer than 2,000 random ones did
MAX_RANGES = 40  # each expectation costs milliseconds, so wide tables get no ranges


# --- labels and names ---


def choose_labels(sample: Sample, column: str, normal: str | None) -> tuple[LabelColumn, float, Choice]:
    """The label rule, the anomalous share of labelled rows, and the reason. Raises SourceInvalid unless binary."""
    check_column(sample, column, "--label")
    counts, total = count_labels(sample.labels), sample.labels.total()
    normal = None if normal is None else normalise_label(normal)
    listed = ", ".join(f"{value!r} ({count:,} rows)" for value, count in counts.most_common(12))
    common = counts.most_common(1)[0][0] if counts else ""
    if normal is not None and normal not in counts:
        raise SourceInvalid(
            "The label never has the value given by --normal.", where=column, got=listed, expected=repr(normal)
        )
    if len(counts) < 2 or (len(counts) > 2 and normal is None):
        todo = f"set the normal value, such as --normal {common}; all other values then mean anomalous"
        raise SourceInvalid(
            f"The label has {len(counts)} values." if counts else "The label has no values.",
            where=column,
            got=(listed or f"type {sample.table[column].type}, {sample.table.num_rows:,} rows without a readable value")
            + (f" and {len(counts) - 12} more" if len(counts) > 12 else ""),
            expected="two values, the rarer of which means anomalous",
            todo=todo if len(counts) > 2 else "leave out --label: without it all rows are unlabelled",
        )
    if normal is not None:
        rule, anomalies = LabelColumn(column=column, normal=(normal,)), total - counts[normal]
        what, why = f"everything but {normal!r} is anomalous", "set by --normal"
    else:
        (common, _), (value, anomalies) = counts.most_common()
        rule = LabelColumn(column=column, anomalous=(value,), normal=(common,))
        what, why = f"{value!r} is anomalous", "the rarer of the two values"
    share = anomalies / total
    what = f"{column}: {what}, {anomalies:,} of {total:,} rows ({share:.2%})"
    return rule, share, Choice("label", what, f"{why}; the detector never reads it")


def find_first_row(source: FilesSource | SqlSource) -> int | None:
    """The number that a spreadsheet gives to the first record of a file."""
    if isinstance(source, SqlSource):
        return None
    return 1 + source.skip_lines + (not source.header)


def count_labels(spelt: Counter[str]) -> Counter[str]:
    """The number of rows of each label, over all spellings of it; words for missing values are not labels."""
    counts: Counter[str] = Counter()
    for text, rows in spelt.items():
        if (label := normalise_label(text)) not in NO_LABEL:
            counts[label] += rows
    return counts


def check_names(names: Sequence[str]) -> None:
    """Raise SourceInvalid for a column that a contract cannot name."""
    if odd := [ascii(name) for name in names if not name.isprintable()]:
        raise SourceInvalid(
            "The name of a column holds unprintable characters.",
            got=", ".join(odd),
            expected="names of printable characters; in files, line breaks, tabs and no-break spaces count as blanks",
            todo="rename the column where the data is written; in a query, with AS",
        )


def choose_record_id(sample: Sample, requested: str | None, is_query: bool) -> tuple[str | None, Choice]:
    """The column that identifies records: the requested one, or one named like an identifier that never repeats.

    Raises SourceInvalid if the requested column is missing or repeats too often, or if a query has no such column:
    row numbers cannot identify its rows, because their order is not fixed.
    """
    if requested:
        check_column(sample, requested, "--id")
        repeated = 1 - _distinct(sample.table[requested]) / sample.table.num_rows
        if repeated > ValidateParams().max_quarantined_fraction:
            raise SourceInvalid(
                "The column given by --id does not identify rows.",
                where=requested,
                got=f"{repeated:.1%} of the rows repeat a value or have none",
                expected="a different value for each row of a day",
                todo="choose another column, or leave out --id to identify rows by file and row number",
            )
        return requested, Choice("record_id", requested, "set by --id")
    names = [name for name in sample.table.column_names if ID_NAME.search(name)]
    found = [name for name in names if _distinct(sample.table[name]) == sample.table.num_rows >= ENOUGH_ROWS]
    if found:
        return found[0], Choice("record_id", found[0], "named like an identifier, and different in every row")
    if is_query:
        raise SourceInvalid(
            "No column of the query identifies its rows.",
            got=f"columns {', '.join(sample.table.column_names)}",
            expected="a column with a different value for each row",
            todo="set it with --id, or add one to the query",
        )
    return None, Choice("record_id", "file and row number", "no column is named like an identifier and never repeats")


def choose_entity(
    sample: Sample, profiles: Sequence[ColumnProfile], requested: str | None, reserved: Set[str]
) -> tuple[str | None, Choice]:
    """The column that says whom a record is about: the requested one, or one that is named like it and repeats.

    Of several, the one with the most different values. Raises SourceInvalid if the requested column does not exist.
    """
    if requested:
        check_column(sample, requested, "--entity")
        return requested, Choice("entity", requested, "set by --entity")
    found = [
        profile
        for profile in profiles
        if profile.name not in reserved
        and profile.type in ("text", "int")
        and (ENTITY_NAME.search(profile.name) or ID_NAME.search(profile.name))
        and 1 < profile.distinct <= profile.there / MIN_ROWS_PER_ENTITY
    ]
    if not found:
        return None, Choice("entity", "none", "no column is named like one and repeats; --entity sets it")
    most = max(found, key=lambda profile: profile.distinct)
    why = f"named like one, with {most.distinct:,} different values in {most.there:,} rows"
    return most.name, Choice("entity", most.name, why)


def _distinct(column: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(cast_column(column, pa.string()), mode="only_valid").as_py())


def choose_filter(splits: Splits, columns: ColumnsParams, has_labels: bool) -> tuple[FilterParams, Choice]:
    """The filter section: without labels, the most outlying rows are left out of training."""
    if has_labels or not columns.numbers:
        why = "the label says which rows to leave out" if has_labels else "no numeric columns to find outliers in"
        return FilterParams(splits=splits), Choice("trimmed", "none", why)
    why = "there are no labels; little is lost if no row is anomalous"
    return FilterParams(splits=splits, trim_fraction=TRIMMED), Choice(
        "trimmed", f"{TRIMMED:.0%}, the most outlying", why
    )


def choose_training(columns: ColumnsParams, rows: int, profiles: Sequence[ColumnProfile]) -> TrainParams:
    """Network, fit and score defaults for `rows` fit rows; they are defined only here.

    Where a few extreme values decide the skewness of a number, training must not choose its scale again.

    Best on average of the models compared on public tables (bench/adbench.py), whatever the width: a narrow bottleneck,
    and the distance of row and residual to clean rows, half of them chosen far apart. Wide rows are compared with
    fewer, because each comparison costs more.
    """
    numbers = [p for p in profiles if p.name in columns.numbers]
    slots = len(numbers) + 4 * len(columns.datetime)
    slots += sum(min(p.distinct, columns.max_categories) + 1 for p in profiles if p.name in columns.categorical)
    limit = EncodeParams().log_skewness
    is_decided = any(p.raw_skewness > limit >= p.skewness and not p.has_negative for p in numbers) if limit else False
    return TrainParams(
        columns=columns,
        **_given(encode=EncodeParams(log_skewness=None) if is_decided else None),
        networks=(AutoencoderParams(kind="autoencoder", layers=(64, 2, 64), activation="silu"),),
        fit=FitParams(epochs=60, batch_size=256 if rows < 50_000 else 1024, learning_rate=0.003, seed=1),
        score=NeighboursParams(kind="neighbours", references=4000 if slots <= WIDE else 2000, draw="spread"),
    )


def choose_columns(decisions: Sequence[Decision]) -> ColumnsParams:
    """The columns section. Raises ParamsInvalid if every column was left out."""
    named = {
        kind: tuple(d.column for d in decisions if d.kind == kind)
        for kind in ("numeric", "log_numeric", "categorical", "date-time")
    }
    if not any(named.values()):
        raise ParamsInvalid(
            "No column is left for a detector to read.",
            got="; ".join(f"{d.column}: {d.rule}" for d in decisions[:10]),
            expected="at least one column of numbers, categories or date-times that varies",
            todo="add such a column to the source",
        )
    fields = {"date-time": "datetime"}
    return ColumnsParams(**_given(**{fields.get(kind, kind): names or None for kind, names in named.items()}))


# --- the contract ---


def draft_contract(
    sample: Sample,
    profiles: Sequence[ColumnProfile],
    decisions: Sequence[Decision],
    calendar: Calendar,
    has_id: bool,
    others: Sequence[str | None],
) -> Contract:
    """A first contract: the types found, and expectations that a normal next day meets.

    A column that some files lack is optional. `others`, which are read but not learnt, are nullable texts.

    Expectations on single rows are warnings, never critical: a value far outside the range may be the anomaly that the
    detector has to find. Only a row that cannot be scored (a missing or unreadable value) is quarantined.
    """
    kinds = {d.column: d.kind for d in reversed(decisions)}  # that of a column, not of the event time that follows
    read = [p for p in profiles if kinds[p.name] != "left out" and p.type]
    columns = {p.name: _describe_column(p, p.type, sample.count_lacking(p.name) > 0) for p in read if p.type}
    for name in others:
        if name and name not in columns:
            columns[name] = ContractColumn(type="text", nullable=True)
    expectations = [*_expect_rows(calendar), *([_between("duplicated_fraction", high=0.02)] if has_id else [])]
    for profile in read:
        if profile.missing:
            limit = min(1.0, profile.missing_fraction + max(0.1, profile.missing_fraction))
            expectations.append(_between(f"{profile.name}.missing_fraction", high=round(limit, 3), is_critical=False))
        if kinds[profile.name] == "categorical" and profile.distinct > 2:
            expectations.append(_between(f"{profile.name}.distinct", high=2 * profile.distinct + 10, is_critical=False))
    ranged = [p for p in read if p.type in ("float", "int") and kinds[p.name] in ("numeric", "log_numeric")]
    if len(ranged) <= MAX_RANGES:
        expectations += [_expect_range(p) for p in ranged]
    ignored = tuple(p.name for p in profiles if p.name not in columns and p.name != calendar.column)
    return Contract(columns=columns, expectations=tuple(expectations), **_given(ignored=ignored or None))


def _describe_column(profile: ColumnProfile, kind: Type, is_optional: bool) -> ContractColumn:
    nullable = profile.missing > 0 or is_optional
    required = False if is_optional else None
    given = _given(nullable=nullable or None, required=required, format=profile.format, missing=profile.words or None)
    return ContractColumn(type=kind, **given)


def _expect_rows(calendar: Calendar) -> list[ContractExpectation]:
    """Half the smallest to twice the largest day; a warning if days follow file order, as they grow with it."""
    low, high = max(1, min(calendar.rows.values()) // 2), 2 * max(calendar.rows.values())
    return [_between("rows", low, high, is_critical=not calendar.is_dealt)]


def _expect_range(profile: ColumnProfile) -> ContractExpectation:
    """The range found, widened by its span on both sides; a minimum of at least 0 is not made negative."""
    low, high = profile.low or 0.0, profile.high or 0.0
    span = (high - low) or 1.0
    below = 0.0 if low >= 0 else _round_out(low - span, math.floor)
    return _between(profile.name, below, _round_out(high + span, math.ceil), level="row", is_critical=False)


def _round_out(value: float, towards: Callable[[float], int]) -> float:
    """Round a value up or down to three digits, within the range of float64."""
    if value == 0:
        return 0.0
    digits = 2 - math.floor(math.log10(abs(value))) if math.isfinite(value) else 0
    unit = 10.0 ** -min(digits, 300)
    rounded = towards(value / unit) * unit if math.isfinite(value / unit) else value
    return float(f"{min(max(rounded, -FLOAT_LIMIT), FLOAT_LIMIT):.12g}")


def _between(
    column: str,
    low: float | None = None,
    high: float | None = None,
    level: Literal["row", "batch"] = "batch",
    is_critical: bool = True,
) -> ContractExpectation:
    limits = {"min_value": low, "max_value": high}
    kwargs = {"column": column} | {key: value for key, value in limits.items() if value is not None}
    severity: dict[str, Any] = {} if is_critical else {"severity": "warning"}
    return ContractExpectation(level=level, type="expect_column_values_to_be_between", kwargs=kwargs, **severity)


# --- all of it ---


@dataclass(frozen=True)
class Request:
    """The user's options: the label, id, time and entity columns, and the label's normal value."""

    label: str | None = None
    normal: str | None = None
    record_id: str | None = None
    time: str | None = None
    entity: str | None = None


@dataclass(frozen=True)
class Draft:
    """The sections and the contract to write, with every decision and its reason."""

    ingest: IngestParams
    filter: FilterParams
    train: TrainParams
    contract: Contract
    entity: str | None
    enrich: EnrichParams | None
    show: tuple[str, ...]  # the columns whose values are published with each flag
    nights: int
    quantile: float  # of the threshold
    last_date: date
    rows: int
    decisions: tuple[Decision, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def draft_detector(source: FilesSource | SqlSource, arrivals: Sequence[Arrival], request: Request) -> Draft:
    """Read a source and draft a detector. Raises SourceInvalid, TooFewRows, ParamsInvalid."""
    sample = draw_sample(arrivals, request.label)
    check_names(sample.table.column_names)
    labels, anomalous, reserved = None, 0.0, {}
    choices = [_describe_rows(sample)]
    if request.label:
        labels, anomalous, choice = choose_labels(sample, request.label, request.normal)
        choices.append(choice)
        reserved[request.label] = "the label"
    record_id, choice = choose_record_id(sample, request.record_id, isinstance(source, SqlSource))
    choices.append(choice)
    if record_id:
        reserved[record_id] = "the record id"
    is_anomaly = mark_anomalies(sample, labels)
    profiles = profile_columns(sample, ~is_anomaly)
    calendar = choose_calendar(sample, profiles, arrivals, request.time)
    choices.append(calendar.choice)
    if calendar.column:
        reserved[calendar.column] = "the event time"
    entity, choice = choose_entity(sample, profiles, request.entity, reserved.keys())
    choices.append(choice)
    decisions = decide_kinds(profiles, reserved)
    if has_hours(calendar, profiles):
        decisions.append(Decision("event_time", "date-time", "hour and weekday of the event time"))
    enrich, proposed = choose_history(profiles, decisions, calendar, entity, bool(request.entity), reserved.keys())
    choices += proposed
    history = decide_history(enrich) if enrich else {}
    decisions += history.values()
    nights = choose_nights(calendar)
    splits, choice = choose_splits(calendar, nights, anomalous, labels is not None)
    quantile, threshold = choose_quantile(calendar, nights, splits, anomalous)
    choices += [describe_nights(calendar, nights), choice, threshold]
    columns = choose_columns(decisions)
    filtered, choice = choose_filter(splits, columns, labels is not None)
    choices.append(choice)
    train = choose_training(columns, round(0.4 * sample.rows), profiles)
    return Draft(
        ingest=IngestParams(
            source=source,
            event_time=calendar.event_time,
            **_given(record_id=record_id, labels=labels, first_row=None if record_id else find_first_row(source)),
        ),
        filter=filtered,
        train=train,
        contract=draft_contract(
            sample, profiles, decisions, calendar, record_id is not None, enrich.reads if enrich else (entity,)
        ),
        entity=entity,
        enrich=enrich,
        show=tuple(name for name in columns.names if name not in {"event_time", entity, *history})[:SHOWN_VALUES],
        nights=nights,
        quantile=quantile,
        last_date=max(calendar.rows),
        rows=sample.rows,
        decisions=tuple(decisions),
        choices=(*choices, _describe_training(train)),
        notes=(
            *note_unparsed(sample),
            *note_headers(sample, decisions),
            *note_labels(profiles, decisions),
            *describe_readings(profiles, decisions, calendar),
        ),
    )


def note_headers(sample: Sample, decisions: Sequence[Decision]) -> Iterator[str]:
    """Name the columns that some files lack, and those that may be one column under two names."""
    files, learnt = len(sample.headers), [d.column for d in decisions if d.kind != "left out"]
    lacking = {name: n for name in learnt if (n := sample.count_lacking(name)) and name in sample.table.column_names}
    for name, n in lacking.items():
        twins = [
            other
            for other in lacking
            if name < other and all((name in names) != (other in names) for names in sample.headers)
        ]
        renamed = f"; where it is missing there is {' or '.join(twins)}: it looks renamed" if twins else ""
        yield f"{name} is missing in {n:,} of {files:,} files, so it is optional in the contract{renamed}"


def note_labels(profiles: Sequence[ColumnProfile], decisions: Sequence[Decision]) -> Iterator[str]:
    """Name the columns that look like labels and would be learnt as features."""
    learnt = {d.column for d in decisions if d.kind != "left out"}
    for profile in profiles:
        if profile.name in learnt and LABEL_NAME.search(profile.name) and profile.distinct <= MAX_LABELS:
            more = " and --normal VALUE" if profile.distinct > 2 else ""
            yield (
                f"{profile.name} looks like a label, and the detector would learn from it: if it is one, run init "
                f"again with --label {profile.name}{more} --force, or take it out of train.columns"
            )


def describe_readings(
    profiles: Sequence[ColumnProfile], decisions: Sequence[Decision], calendar: Calendar
) -> Iterator[str]:
    """What was seen in values that people should check: unreadable ones, doubtful ones, words for missing."""
    kept = {d.column for d in decisions if d.kind != "left out"}
    for profile in profiles:
        is_time = profile.name == calendar.column
        where = "ingest.event_time in params.yaml" if is_time else "its format in the contract"
        if profile.name not in kept and not is_time:
            if profile.doubt and OTHER_WAY not in profile.doubt:
                yield f"{profile.name} is left out: {profile.doubt}"
            continue
        if profile.unreadable:
            yield (
                f"{profile.name}: {profile.unreadable:,} of {profile.rows:,} values cannot be read as {profile.type}, "
                f"such as {profile.odd}; their rows will be quarantined"
            )
        if profile.words:
            listed = ", ".join(map(shorten, profile.words))
            yield f"{profile.name}: {listed} is taken as a missing value; see `missing` in the contract"
        if profile.doubt:
            todo = f"; if that is right, change {where}" if OTHER_WAY in profile.doubt else ""
            todo = todo or "; it is learnt as categories" * (profile.type == "text")
            yield f"{profile.name}: {profile.doubt}{todo}"


def mark_anomalies(sample: Sample, labels: LabelColumn | None) -> Mask:
    """The mask (n,) of sampled rows that are labelled anomalous."""
    if labels is None:
        return np.zeros(sample.table.num_rows, dtype=bool)
    texts = cast_column(sample.table[labels.column], pa.string()).to_pandas()
    marked: Mask = (interpret_labels(labels, texts) == 1).to_numpy(bool, na_value=False)
    return marked


def note_unparsed(sample: Sample) -> list[str]:
    """A note on rows that have another number of values than the header."""
    if not sample.unparsed:
        return []
    return [f"rows with another number of values than the header, such as a line of totals: {sample.unparsed:,}; "
            "every night quarantines such rows"]  # fmt: skip


def _describe_rows(sample: Sample) -> Choice:
    files = f" in {len(sample.sizes):,} files" if len(sample.sizes) > 1 else ""
    n = sample.table.num_rows
    seen = "all of them examined" if n == sample.rows else f"an even sample of {n:,} examined"
    return Choice("rows", f"{sample.rows:,}{files}", seen)


def _describe_training(train: TrainParams) -> Choice:
    [network] = train.networks
    layers = "-".join(map(str, network.layers)) if isinstance(network, AutoencoderParams) else ""
    what = f"{network.kind} {layers}, {train.score.kind} score"
    if isinstance(train.score, NeighboursParams):
        what += f" with at most {train.score.references:,} clean rows, half of them far apart"
    return Choice("network", what, "the best on average of public tables")


def _given(**values: object) -> dict[str, Any]:
    """The given values without None, so that defaults stay out of the file."""
    return {key: value for key, value in values.items() if value is not None}
