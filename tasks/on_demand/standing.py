"""How the model stands: its versions, what the verdicts say of its alerts, and what the second stage still needs.

In: the registry, the versions' bundles, and counts that the warehouse makes. Out: what the desk's page of the model
shows. Nothing is judged anew and torch is not loaded: comparing versions takes minutes, so the last result is kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from models.bundle import CALIBRATION, HEADER
from models.calibration import FalseAlarms, Threshold, bound_quantile, expect_false_alarms, rows_for_loss
from models.params import ReducerLimits
from tasks.errors import NightjarError
from tasks.follow_up.cases import ANOMALY, NORMAL
from tasks.rows.shares import Share, estimate_share
from tasks.stores.registry import DECISION, HASH_TAG, TEST, Registry, Version
from tasks.stores.site import Site
from tasks.stores.tables import flagged_anomalies
from tasks.stores.warehouse import select_verdicts

LOSS = "_loss"
REPEAT_DAYS = 30  # an alert repeats if its entity had another one within this many days before
CUT_CONFIDENCE = 0.9  # models.reducer.CONFIDENCE, without torch


@dataclass(frozen=True)
class Standing:
    """One version. threshold_low, threshold_high: the 95 % interval of its quantile; None for other policies.

    false_alarm_rate: the share of normal rows above the threshold, with its interval. false_alarms: their number in a
    night; None if the version does not say how many rows one has. recall: of a threshold that was chosen for it.
    losses: per network and epoch (E,), by name. metrics: on test rows. note: why the bundle's figures are missing; ""
    if they are there.
    """

    version: int
    aliases: tuple[str, ...]
    registered_at: datetime | None
    trained_through: date | None
    cutoff: str
    has_second_stage: bool
    decision: str
    rows: Mapping[str, int]
    threshold: float | None
    threshold_low: float | None
    threshold_high: float | None
    policy: Mapping[str, Any]
    false_alarm_rate: Share
    false_alarms: FalseAlarms | None
    recall: Share | None
    losses: Mapping[str, Sequence[float]]
    metrics: Mapping[str, float]
    searched: Mapping[str, Any] | None
    note: str = ""


def describe_standing(registry: Registry, version: Version) -> Standing:
    """A version as the page shows it, from its tags, its run and its bundle."""
    figures, note = dict[str, Any](), ""
    try:
        figures = _read_figures(registry, version.version, version.tags.get(HASH_TAG, ""))
    except NightjarError as error:
        note = error.line
    threshold = figures.get("threshold", {})
    rate, n = threshold.get("false_alarm_rate"), threshold.get("n", 0)
    measured, false_alarms, recall = Share(0, 0, None, None, None), None, None
    if found := threshold.get("recall"):
        hits, total = found["flagged"], found["anomalies"]
        recall = Share(hits, total, hits / total, found["interval_low"], found["interval_high"])
    if rate is not None:
        measured = Share(round(rate * n), n, rate, threshold["interval_low"], threshold["interval_high"])
    if threshold and version.rows_per_night:
        calibrated = TypeAdapter(Threshold).validate_python(threshold)
        false_alarms = expect_false_alarms(calibrated, version.rows_per_night, version.night_spread)
    curves = figures.get("curves", {})
    return Standing(
        version=version.version,
        aliases=version.aliases,
        registered_at=version.registered_at,
        trained_through=_read_date(version.tags.get("trained_through", "")),
        cutoff=version.tags.get("cutoff", ""),
        has_second_stage="reducer" in version.tags,
        decision=version.tags.get(DECISION, ""),
        rows=_read_json(version.tags.get("rows", "{}")),
        threshold=threshold.get("value"),
        threshold_low=figures.get("low"),
        threshold_high=figures.get("high"),
        policy=threshold.get("policy", {}),
        false_alarm_rate=measured,
        false_alarms=false_alarms,
        recall=recall,
        losses={name: values for name, values in curves.items() if name.endswith(LOSS)},
        metrics={name.removeprefix(TEST): values[-1] for name, values in curves.items() if name.startswith(TEST)},
        searched=version.searched,
        note=note,
    )


@lru_cache(maxsize=64)
def _read_figures(registry: Registry, number: int, bundle_hash: str) -> dict[str, Any]:
    """What never changes of a version: its curves, and its threshold with the interval of the quantile."""
    from safetensors.numpy import load_file

    version = registry.get_version(number)
    folder = registry.fetch_bundle(version)
    threshold = json.loads((folder / HEADER).read_text(encoding="utf-8"))["threshold"] or {}
    low = high = None
    if threshold.get("policy", {}).get("kind") == "quantile":
        scores = load_file(folder / CALIBRATION)["scores"]
        low, high = bound_quantile(scores, threshold["policy"]["q"])
    return {"curves": registry.read_curves(version), "threshold": threshold, "low": low, "high": high}


@dataclass(frozen=True)
class Curve:
    """The losses of one name as a line in a box of 300 x 100, logarithmic and upside down, and its last value."""

    name: str
    points: str
    last: float


def draw_losses(losses: Mapping[str, Sequence[float]]) -> tuple[list[Curve], float, float]:
    """The losses as curves, and the lowest and highest of all; without positive losses there are none."""
    drawn = {name: values for name, values in losses.items() if values and min(values) > 0}
    if not drawn:
        return [], 0.0, 0.0
    low, high = min(map(min, drawn.values())), max(map(max, drawn.values()))
    span, epochs = math.log(high / low) or 1.0, max(map(len, drawn.values()))
    step = 300 / max(epochs - 1, 1)
    return (
        [
            Curve(
                name.removesuffix(LOSS).replace("_", " "),
                " ".join(
                    f"{step * n:.1f},{100 - 100 * math.log(loss / low) / span:.1f}" for n, loss in enumerate(values)
                ),
                values[-1],
            )
            for name, values in drawn.items()
        ],
        low,
        high,
    )


def _read_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _read_json(text: str) -> dict[str, int]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {name: rows for name, rows in found.items() if isinstance(rows, int)} if isinstance(found, dict) else {}


@dataclass(frozen=True)
class JudgedNight:
    """The alerts of one or several published nights, and what people have said of them.

    alerts: flags that nothing suppresses. precision: the anomalies of the alerts with a verdict. repeats: of the alerts
    of a known entity, those whose entity had another alert on an earlier night of the last 30 days.
    """

    batch_date: date  # the first, of several
    version: int  # that scored it; the last one's, of several
    alerts: int
    precision: Share
    repeats: Share

    @property
    def false_positives(self) -> Share:
        """The normal ones of the alerts with a verdict."""
        return self.precision.rest


@dataclass(frozen=True)
class Verdicts:
    """The verdicts so far. nights: the published ones with a flag, in order. flags, confirmed: judged, and anomalies.

    They count the flags that a second stage or a suppression suppresses, too.
    """

    nights: tuple[JudgedNight, ...]
    flags: int
    confirmed: int

    @property
    def whole(self) -> JudgedNight | None:
        """All nights together."""
        return add_nights(self.nights) if self.nights else None

    @property
    def versions(self) -> dict[int, JudgedNight]:
        """The nights of each version together."""
        by_version: dict[int, list[JudgedNight]] = {}
        for night in self.nights:
            by_version.setdefault(night.version, []).append(night)
        return {version: add_nights(nights) for version, nights in by_version.items()}

    @property
    def weeks(self) -> list[JudgedNight]:
        """The nights of each week together, by its first night."""
        weeks: dict[tuple[int, int], list[JudgedNight]] = {}
        for night in self.nights:
            weeks.setdefault(night.batch_date.isocalendar()[:2], []).append(night)
        return [add_nights(week) for week in weeks.values()]


def add_nights(nights: Sequence[JudgedNight]) -> JudgedNight:
    """Several nights as one."""
    return JudgedNight(
        nights[0].batch_date,
        nights[-1].version,
        sum(night.alerts for night in nights),
        estimate_share(*(sum(getattr(night.precision, name) for night in nights) for name in ("hits", "total"))),
        estimate_share(*(sum(getattr(night.repeats, name) for night in nights) for name in ("hits", "total"))),
    )


def count_verdicts(site: Site) -> Verdicts:
    """The verdicts on the published flags of a detector, by night."""
    flags = flagged_anomalies.c
    given = select_verdicts(site.detector).subquery()
    same = (given.c.batch_date == flags.batch_date, given.c.record_id == flags.record_id)
    joined = flagged_anomalies.outerjoin(given, sa.and_(*same))
    is_alert, is_hit = ~flags.suppressed, given.c.verdict == ANOMALY
    is_answer = given.c.verdict.in_((ANOMALY, NORMAL))
    counts = (
        sa.select(
            flags.batch_date,
            sa.func.max(flags.model_version).label("version"),
            _count(is_alert).label("alerts"),
            _count(is_alert, is_answer).label("judged"),
            _count(is_alert, is_hit).label("hits"),
            _count(is_answer).label("flags"),
            _count(is_hit).label("confirmed"),
        )
        .select_from(joined)
        .where(flags.detector == site.detector)
        .group_by(flags.batch_date)
        .order_by(flags.batch_date)
    )
    with site.warehouse.begin_reading() as connection:
        rows = connection.execute(counts).all()
        repeats = _count_repeats(connection, site.detector)
    nights = tuple(
        JudgedNight(
            row.batch_date,
            row.version,
            row.alerts,
            estimate_share(row.hits, row.judged),
            estimate_share(*repeats.get(row.batch_date, (0, 0))),
        )
        for row in rows
    )
    return Verdicts(nights, sum(row.flags for row in rows), sum(row.confirmed for row in rows))


def _count(*which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((sa.and_(*which), 1), else_=0)), 0)


def _count_repeats(connection: sa.Connection, detector: str) -> dict[date, tuple[int, int]]:
    """By night: the alerts whose entity had another one shortly before, and all alerts of a known entity."""
    flags = flagged_anomalies.c
    own = (flags.detector == detector, flags.entity.is_not(None), ~flags.suppressed)
    nights = sa.select(flags.entity, flags.batch_date, sa.func.count().label("alerts")).where(*own)
    night = nights.group_by(flags.entity, flags.batch_date).subquery().c
    before = sa.func.lag(night.batch_date).over(partition_by=night.entity, order_by=night.batch_date)
    gap = sa.select(night.batch_date, before.label("before"), night.alerts).subquery().c
    # The days between are counted here: engines disagree on the difference of two dates.
    counted = sa.select(gap.batch_date, gap.before, sa.func.sum(gap.alerts)).group_by(gap.batch_date, gap.before)
    found: dict[date, tuple[int, int]] = {}
    for day, earlier, alerts in connection.execute(counted):
        hits, total = found.get(day, (0, 0))
        repeats = alerts if earlier and day - earlier <= timedelta(days=REPEAT_DAYS) else 0
        found[day] = (hits + int(repeats), total + int(alerts))
    return found


@dataclass(frozen=True)
class Need:
    """What the second stage needs of something, and how much of it there is."""

    name: str
    there: int
    needed: int

    @property
    def missing(self) -> int:
        """How many are still to come."""
        return max(0, self.needed - self.there)


def list_needs(found: Verdicts, limits: ReducerLimits) -> list[Need]:
    """What a second stage needs before it may suppress anything."""
    confirmed = max(limits.min_confirmed, rows_for_loss(limits.max_recall_loss, CUT_CONFIDENCE))
    return [
        Need("verdicts on flags", found.flags, limits.min_verdicts),
        Need("confirmed anomalies among them", found.confirmed, confirmed),
    ]


def keep_comparison(site: Site, pair: tuple[Version, Version], found: Any, now: datetime) -> None:
    """Keep what compare says of two versions, without the records that change side. found: a Comparison."""
    document = asdict(found) | {"compared_at": now.isoformat(timespec="seconds")}
    document.pop("changed")
    site.lake.replace(_name_comparison(site, pair), json.dumps(document, default=str, indent=1).encode())


def find_comparison(site: Site, pair: tuple[Version, Version]) -> dict[str, Any] | None:
    """What compare last said of two versions, as it was kept; None if they were never compared."""
    data = site.lake.find_file(_name_comparison(site, pair))
    if data is None:
        return None
    document: dict[str, Any] = json.loads(data)
    return document | {"compared_at": datetime.fromisoformat(document["compared_at"])}


def _name_comparison(site: Site, pair: tuple[Version, Version]) -> str:
    first, second = (site.registry.check_tags(version)[:16] for version in pair)
    return f"comparisons/{site.detector}/{first}-{second}.json"
