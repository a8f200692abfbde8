"""The nearest normal records of a record or a case: what resembles it, or its worst flag, and was not flagged.

Near means: by the Euclidean distance of encoded rows (N, D), as the network sees them, numbers in standard deviations
of the fit rows. Only a sample of the flag's night, and of published nights before it, is compared. Reads only.
"""

import json
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from torch import Tensor

from models.detector import Detector
from models.encoders import Encoder, encode_records
from tasks.errors import CaseMissing, ChampionMissing, RecordMissing
from tasks.follow_up.cases import ANOMALY, FLAGS_OF_CASES
from tasks.on_demand.explain import find_record
from tasks.rows.columns import fits, to_records
from tasks.rows.describe import localise
from tasks.rows.record import RecordRule
from tasks.stores.lake import Manifest
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import case_flags, cases, flagged_anomalies, scoring_batches
from tasks.stores.warehouse import select_verdicts

SHOWN = 5
MOST_COMPARED = 20_000  # rows
MOST_NIGHTS = 30  # the flag's and those before it
MOST_COLUMNS = 3  # named of those in which a record differs from the flag
NUMBERS = ("numeric", "log_numeric")


@dataclass(frozen=True)
class Difference:
    """How much of the squared distance is one column's, in whole per cent, and by how much it is higher than the flag.

    change: in standard deviations; None for a masked column and one that is no number.
    """

    column: str
    percent: int
    change: float | None

    def __str__(self) -> str:
        """The difference in a few words."""
        by = "" if self.change is None else f" ({abs(self.change):.1f} {'higher' if self.change > 0 else 'lower'})"
        return f"{self.column} {self.percent} %{by}"


@dataclass(frozen=True)
class Neighbour:
    """A record beside the flag, or the flag itself. event_time: ISO 8601, in the detector's time zone, if it has one.

    record: the values that params publish. differences: from the flag, largest first, at most MOST_COLUMNS.
    """

    record_id: str
    batch_date: date
    event_time: str | None
    record: dict[str, Any]
    distance: float = 0.0
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Nearest:
    """A record, such as the worst flag of a case, and its nearest normal records, nearest first.

    rows: how many were compared. first, last: their batch dates. why: why there is nothing to show; "" if there is.
    """

    flag: Neighbour | None = None
    near: tuple[Neighbour, ...] = ()
    rows: int = 0
    first: date | None = None
    last: date | None = None
    why: str = ""


def find_nearest(
    site: Site, rule: RecordRule, masked: Set[str], number: int, load: Callable[[Version], Detector]
) -> Nearest:
    """The nearest normal records of a case's worst flag. load: reads a version's detector. Raises CaseMissing."""
    worst = _find_worst(site, number)
    if worst is None:
        return Nearest(why="No record of this case is flagged any more.")
    return find_near_record(site, rule, masked, *worst, load)


def find_near_record(
    site: Site,
    rule: RecordRule,
    masked: Set[str],
    record_id: str,
    day: date,
    version: int,
    load: Callable[[Version], Detector],
) -> Nearest:
    """The nearest normal records of a record of a published night, as the version that scored it sees them."""
    try:
        detector = load(site.registry.get_version(version))
    except ChampionMissing:
        return Nearest(why=f"Version {version}, which scored {record_id}, was deleted.")
    try:
        _, own = find_record(site, record_id, day)
    except RecordMissing:
        return Nearest(why=f"The validated row of {record_id} is not in the lake any more.")
    if not fits(own.schema, detector.columns):
        return Nearest(why=f"The rows of {day} lack columns that version {version} reads.")
    point = _encode(detector, own)[0]
    found, rows, nights = _search(site, rule, detector, point, day, record_id)
    flag = _describe(site, rule, day, own)
    if not found:
        return Nearest(flag, why="There is no other row of these nights to compare it with.")
    near = tuple(
        replace(
            _describe(site, rule, one.batch_date, one.row),
            distance=one.distance,
            differences=compare_points(detector.encoder, one.point - point, masked),
        )
        for one in found
    )
    return Nearest(flag, near, rows, min(nights), max(nights))


def _find_worst(site: Site, number: int) -> tuple[str, date, int] | None:
    """The record id, batch date and version of a case's worst flag."""
    f, m = flagged_anomalies.c, case_flags.c
    worst = sa.select(f.record_id, f.batch_date, f.model_version).select_from(FLAGS_OF_CASES)
    order = ((f.score / sa.func.nullif(f.threshold, 0.0)).desc(), f.batch_date, f.record_id)
    of_case = (m.detector == site.detector, m.case_id == number)
    with site.warehouse.begin_reading() as connection:
        is_there = sa.select(cases.c.case_id).where(cases.c.detector == site.detector, cases.c.case_id == number)
        if connection.scalar(is_there) is None:
            raise CaseMissing(
                f"{site.detector} has no case {number}.", todo=f"nightjar cases {site.detector} --all lists all of them"
            )
        row = connection.execute(worst.where(*of_case).order_by(*order).limit(1)).one_or_none()
    return (row.record_id, row.batch_date, row.model_version) if row else None


@dataclass(frozen=True, eq=False)
class _Found:
    distance: float
    batch_date: date
    record_id: str
    row: pa.Table  # of one row
    point: Tensor  # (D,)


def _search(
    site: Site, rule: RecordRule, detector: Detector, point: Tensor, day: date, record_id: str
) -> tuple[list[_Found], int, set[date]]:
    """The records nearest to a record's point (D,), how many were compared, and of which nights."""
    best: list[_Found] = []
    compared, nights = 0, set[date]()
    for night, rows in _sample(site, rule, detector, day, record_id):
        points = _encode(detector, rows)  # (N, D)
        distances = (points - point).square().sum(dim=1).sqrt()
        compared += rows.num_rows
        nights.add(night)
        for place in distances.topk(min(SHOWN, rows.num_rows), largest=False).indices.tolist():
            row = rows.take([place])  # a slice would keep all rows in memory
            best.append(_Found(float(distances[place]), night, row["record_id"][0].as_py(), row, points[place].clone()))
        best = sorted(best, key=lambda one: (one.distance, one.batch_date, one.record_id))[:SHOWN]
    return best, compared, nights


def _sample(
    site: Site, rule: RecordRule, detector: Detector, day: date, record_id: str
) -> Iterator[tuple[date, pa.Table]]:
    """Other rows of a record's night and of those before it that were not flagged; of a large night, evenly spread."""
    wanted = {"record_id", "event_time", *(column.name for column in detector.columns), *rule.show}
    nights = _choose_nights(site, day)
    abnormal = _read_abnormal(site, list(nights))
    abnormal.setdefault(day, []).append(record_id)
    left = MOST_COMPARED
    for night, validated in nights.items():
        step, start = -(-validated.rows // left), 0
        for part in validated.parts:
            schema = site.lake.schema(part)
            if not fits(schema, detector.columns):
                continue
            for rows in site.lake.slices(part, [name for name in schema.names if name in wanted]):
                chosen = rows.take(pa.array(range(-start % step, rows.num_rows, step), pa.int64()))
                start += rows.num_rows
                hidden = pa.array(abnormal.get(night, []), pa.string())
                normal = chosen.filter(pc.invert(pc.is_in(chosen["record_id"].cast(pa.string()), hidden)))
                if normal.num_rows:
                    yield night, normal
        left -= -(-validated.rows // step)


def _choose_nights(site: Site, day: date) -> dict[date, Manifest]:
    """The newest published nights up to a date with enough rows together: of others nobody knows what is normal."""
    b = scoring_batches.c
    found = sa.select(b.batch_date).where(b.detector == site.detector, b.batch_date <= day)
    with site.warehouse.begin_reading() as connection:
        newest = connection.scalars(found.order_by(b.batch_date.desc()).limit(MOST_NIGHTS)).all()
    chosen: dict[date, Manifest] = {}
    rows = 0
    for night in newest:
        validated = site.lake.find("validated", site.detector, night) if rows < MOST_COMPARED else None
        if validated and validated.rows:
            chosen[night] = validated
            rows += validated.rows
    return chosen


def _read_abnormal(site: Site, nights: list[date]) -> dict[date, list[str]]:
    """By night, the ids of its flags, suppressed or not, and of what else somebody called an anomaly."""
    f, said = flagged_anomalies.c, select_verdicts(site.detector).subquery().c
    flags = sa.select(f.batch_date, f.record_id).where(f.detector == site.detector, f.batch_date.in_(nights))
    judged = sa.select(said.batch_date, said.record_id).where(said.batch_date.in_(nights), said.verdict == ANOMALY)
    found: dict[date, list[str]] = {}
    with site.warehouse.begin_reading() as connection:
        for night, record_id in [*connection.execute(flags), *connection.execute(judged)]:
            found.setdefault(night, []).append(record_id)
    return found


def _encode(detector: Detector, rows: pa.Table) -> Tensor:
    records, _ = to_records(rows, detector.columns)
    return encode_records(detector.encoder, records, len(records))  # in one block: nothing depends on its last bits


def compare_points(encoder: Encoder, offset: Tensor, masked: Set[str]) -> tuple[Difference, ...]:
    """The columns in which two encoded rows differ most, by the offset (D,) from the first to the second."""
    squares = offset.new_zeros(len(encoder.columns)).index_add_(0, encoder.slots, offset.square())  # (F,)
    whole = float(squares.sum())
    found = []
    for place in squares.argsort(descending=True, stable=True)[:MOST_COLUMNS].tolist():
        column = encoder.columns[place]
        percent = round(100 * float(squares[place]) / whole) if whole else 0
        is_number = column.kind in NUMBERS and column.name not in masked
        change = float(offset[encoder.slots == place]) if is_number else None
        if percent:
            found.append(Difference(column.name, percent, change))
    return tuple(found)


def _describe(site: Site, rule: RecordRule, day: date, row: pa.Table) -> Neighbour:
    """One row: its values that params publish, as far as it has them."""
    there = replace(rule, entity=None, show=tuple(name for name in rule.show if name in row.column_names))
    [text] = there.describe(row)["record"]
    when = row["event_time"][0].as_py()
    return Neighbour(
        record_id=row["record_id"][0].as_py(),
        batch_date=day,
        event_time=when.astimezone(site.zone).isoformat(timespec="seconds") if site.has_times and when else None,
        record=localise(json.loads(text), site.zone) if text else {},
    )
