"""Compute history columns with DuckDB: for each record, what its entity did strictly before it.

A record is before another of its entity if it has an earlier event time or, at the same time, a smaller record_id. A
window of length w before a record at time t holds the earlier records after t - w. Sums are exact, whatever the order
of the rows: numbers are added as multiples of 2^-50, so that training, a night and a loose file see the same bits.
"""
# ruff: noqa: S608 - columns have short names of our own; history columns are quoted

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import assert_never

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.rows.entities import write_entity
from tasks.rows.history import (
    CountColumn,
    DistanceColumn,
    DistinctColumn,
    EnrichParams,
    FirstSeenColumn,
    HistoryColumn,
    RatioColumn,
    SinceColumn,
    SumColumn,
    read_window,
)
from tasks.rows.schema import batch_dates_of
from tasks.stores.lake import Lake, Manifest, Part, quote
from tasks.stores.site import NO_REPORTS, Site

UNIT = 2**50  # parts of 1: numbers below 1e-15 count as 0
LARGEST = 1e15  # larger numbers count as this: 100 million of them still fit into a sum of 128 bits
EARTH_KM = 6371.0088  # mean radius (IUGG)
SECOND_US = 1_000_000


@dataclass(frozen=True)
class History:
    """The history of rows that are not in the lake, or not only there: of a loose file, one record, landing."""

    site: Site
    params: EnrichParams

    @property
    def needed(self) -> list[str]:
        """The columns of rows that it reads."""
        return list(dict.fromkeys(["record_id", "event_time", *self.params.reads]))

    def derive(self, rows: pa.Table) -> pa.Table:
        """The history columns of rows: by the validated rows of their dates and of those before, and by each other.

        Of rows that share a record_id only the first is in the history of others, and they all get its history.
        """
        ids = rows["record_id"].to_pandas()
        codes, _ = pd.factorize(ids.where(ids.notna(), pd.Series(range(len(ids))).map("without id {}".format)))
        _, firsts = np.unique(codes, return_index=True)
        return self._derive(rows.take(pa.array(firsts))).take(pa.array(codes))

    def _derive(self, rows: pa.Table) -> pa.Table:
        site, lake = self.site, self.site.lake
        dates = pc.unique(batch_dates_of(rows["event_time"], site.zone)).to_pylist()
        near = [day for day in dates if 1900 <= day.year < 2200]  # a file may hold impossible times
        reached = sorted({one for day in near for one in site.list_reached(day)})
        pruned = {*lake.pruned_dates(site.detector)}
        found = [manifest for day in reached if (manifest := self._find(day, day in pruned))]
        earlier = tuple(part for manifest in found for part in manifest.parts)
        reports = site.read_reports(reached)
        return pa.concat_tables(derive_history(lake, self.params, rows, earlier, reports))

    def _find(self, day: date, is_pruned: bool) -> Manifest | None:
        """A batch's validated rows, unless it was rejected since: then a night does not count them either.

        What arrives for a pruned batch is not whole: the rows validated before count.
        """
        landing, validated = (self.site.lake.find(zone, self.site.detector, day) for zone in ("landing", "validated"))
        is_current = not landing or (validated and validated.facts["validation"]["input_hash"] == landing.hash)
        return validated if is_current or is_pruned else None


def derive_history(
    lake: Lake,
    params: EnrichParams,
    rows: tuple[Part, ...] | pa.Table,
    earlier: tuple[Part, ...],
    reports: pa.Table = NO_REPORTS,
) -> Iterator[pa.Table]:
    """The history columns of rows, slice by slice and in their order: by part and line, or as the table has them.

    earlier: parts with the records before them; of the days of `rows` only what `rows` does not have. If `rows` is a
    table, records of `earlier` with the same record_id are replaced by its own. reports: record_id and known_at (UTC)
    of records labelled anomalous. Counts are int64, first_seen is bool, everything else float64; all are null where
    the entity is missing. DuckDB keeps what does not fit into `lake.HISTORY_MEMORY` in temporary files.
    """
    # Short names: users call their columns what they like, and DuckDB ignores case.
    names = {name: f"v{place}" for place, name in enumerate(params.reads)}
    entities = {str(by): f"e{place}" for place, by in enumerate(dict.fromkeys(c.by for c in params.history.values()))}
    columns = [f"{quote(name)} as {short}" for name, short in names.items()]
    columns += [f"{write_entity(quote(by))} as {short}" for by, short in entities.items()]
    select = ", ".join(["record_id", "epoch_us(event_time) as moment", *columns])
    sql = write_query(params.history, names, entities, is_loose=isinstance(rows, pa.Table))
    for table in lake.stream(sql, select, rows, earlier, reports=reports):
        yield table.rename_columns(list(params.history))


def take_rows(slices: Iterator[pa.Table]) -> Callable[[int], pa.Table]:
    """A function that takes the next n rows of slices, whatever their lengths. It raises StopIteration at the end."""
    left: list[pa.Table] = []

    def take(n: int) -> pa.Table:
        while sum(table.num_rows for table in left) < n or not left:
            left.append(next(slices))
        joined = pa.concat_tables(left)
        left[:] = [joined.slice(n)]
        return joined.slice(0, n)

    return take


def add_columns(rows: pa.Table, history: pa.Table) -> pa.Table:
    """Rows with their history columns after the others."""
    for name in history.column_names:
        rows = rows.append_column(name, history[name])
    return rows


def write_query(
    history: Mapping[str, HistoryColumn], names: Mapping[str, str], entities: Mapping[str, str], is_loose: bool
) -> str:
    """The query over the tables `targets`, `earlier` and `reports`, whose result has h0, h1 and so on for `history`.

    names, entities: what the columns that are read, and those that name entities, are called in the tables.
    """
    others = " where record_id not in (select record_id from targets where record_id is not null)" if is_loose else ""
    steps = [
        f"events as (select * from targets union all by name select -1 as part, -1 as line, * from earlier{others})"
    ]
    joined: list[str] = []
    chosen: dict[str, str] = {}
    short = {name: f"h{place}" for place, name in enumerate(history)}
    for by, entity in entities.items():
        own = {name: column for name, column in history.items() if column.by == by}
        steps += _write_steps(f"of_{entity}", entity, {short[name]: column for name, column in own.items()}, names)
        joined.append(f"left join of_{entity} using (part, line)")
        chosen |= {name: f"of_{entity}.{short[name]}" for name in own}
    listed, joins = ", ".join(chosen[name] for name in history), " ".join(joined)
    return f"with {', '.join(steps)} select {listed} from (select part, line from targets) {joins} order by part, line"


def _write_steps(step: str, by: str, history: Mapping[str, HistoryColumn], names: Mapping[str, str]) -> list[str]:
    """The steps for one entity: its records in order, the number of them in each window, then the columns."""
    columns = history.values()
    summed = sorted({names[column.reads[0]] for column in columns if isinstance(column, SumColumn | RatioColumn)})
    until_now = f"partition by {by} order by moment range between {{}} preceding and current row"
    spans = sorted({_span(column) for column in columns})
    placed = [
        "*",
        # A frame by time includes all records of the same instant: `peers` are this record and those after it.
        f"count(*) over ({until_now.format('unbounded')}) - row_number() over ({_order(by)}) + 1 as peers",
        *(f"count(*) over ({until_now.format(span - 1)}) as within_{span}" for span in spans),
        *(f"{_exact(number)} as exact_{number}" for number in summed),
    ]
    terms = ", ".join(f"{_write_term(by, column, names)} as {name}" for name, column in history.items())
    steps = [
        f"{step}_events as (select * from events where {by} is not null and {by} in (select {by} from targets))",
        f"{step}_placed as (select {', '.join(placed)} from {step}_events)",
    ]
    joins = ""
    told = {_span(column) for column in columns if column.is_reports}
    if told:
        steps.append(
            f"{step}_reported as (select {by} as entity, moment as since, record_id as reported, "
            f"epoch_us(known_at) as known from {step}_events join reports using (record_id))"
        )
    for span in sorted(told):
        steps.append(
            f"{step}_reports_{span} as (select part, line, count(*) as reports_{span} from {step}_events "
            f"join {step}_reported on entity = {by} and since > moment - {span} and known <= moment "
            "and (since, reported) < (moment, record_id) where part >= 0 group by part, line)"
        )
        joins += f" left join {step}_reports_{span} using (part, line)"
    own = f"select part, line, {terms} from {step}_placed{joins}"
    return [*steps, f"{step} as (select * from ({own}) where part >= 0)"]


def _order(by: str) -> str:
    return f"partition by {by} order by moment, record_id, part, line"


def _span(column: HistoryColumn) -> int:
    """The length of a column's window in microseconds."""
    return int(read_window(str(column.window)).total_seconds()) * SECOND_US


def _exact(number: str) -> str:
    """A number as a multiple of 1 / UNIT; null for what is not finite."""
    real = f"{number}::double"
    return f"case when isfinite({real}) then (greatest(least({real}, {LARGEST}), -{LARGEST}) * {UNIT})::hugeint end"


def _write_term(by: str, column: HistoryColumn, names: Mapping[str, str]) -> str:
    """One column as SQL over the rows of `_placed`."""
    span, order = _span(column), _order(by)
    before = f"within_{span} - peers"
    frame = f"({order} rows between {before} preceding and 1 preceding)"
    previous = f"lag(moment) over ({order})"
    reads = [names[name] for name in column.reads]
    match column:
        case CountColumn(count="reports"):
            return f"coalesce(reports_{span}, 0)"
        case CountColumn():
            return f"({before})"
        case SumColumn():
            return f"coalesce(sum(exact_{reads[0]}) over {frame}, 0)::double / {UNIT}"
        case DistinctColumn():
            return f"count(distinct {reads[0]}) over {frame}"
        case RatioColumn():
            exact, finite = f"exact_{reads[0]}", f"case when isfinite({reads[0]}::double) then {reads[0]}::double end"
            mean = f"(sum({exact}) over {frame})::double / {UNIT} / nullif(count({exact}) over {frame}, 0)"
            usual = f"max({finite}) over {frame}" if column.to == "max" else mean
            return f"({finite}) / nullif({usual}, 0)"
        case DistanceColumn():
            return f"case when {previous} > moment - {span} then {_write_distance(reads, order)} end"
        case SinceColumn():
            return f"case when {previous} > moment - {span} then (moment - {previous}) / {SECOND_US}::double end"
        case FirstSeenColumn():
            same = f"lag(moment) over (partition by {by}, {reads[0]} order by moment, record_id, part, line)"
            return f"case when {reads[0]} is not null then coalesce({same} <= moment - {span}, true) end"
    assert_never(column)


def _write_distance(place: Sequence[str], order: str) -> str:
    """The great-circle distance to the previous record's place, by the haversine formula (Sinnott 1984)."""
    here = [f"radians({name}::double)" for name in place]
    there = [f"radians((lag({name}) over ({order}))::double)" for name in place]
    half = [f"pow(sin(({a} - {b}) / 2), 2)" for a, b in zip(here, there, strict=True)]
    chord = f"({half[0]} + cos({here[0]}) * cos({there[0]}) * {half[1]})"
    return f"2 * {EARTH_KM} * atan2(sqrt({chord}), sqrt(greatest(0, 1 - {chord})))"
