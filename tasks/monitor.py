"""Watch a published night: are its rows still what the detector has learnt, and does it still see what it should?

In: the night's validated rows and scores, the version's training rows, and the nights before. Out: the tables drift and
findings. At most SAMPLE_ROWS rows (N) are measured, drawn by the date, so memory does not grow with the batch.
What the training rows looked like is computed once per version, from the clean rows that it was fitted on, and kept in
the lake: counts by bin, and the statistics of the last days before the cut-off as the first history.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from models.bundle import read_bundle_manifest
from models.calibration import expect_false_alarms
from models.detector import Detector
from models.fitting import resolve_device
from tasks.on_demand.findings import describe_labels, describe_version
from tasks.policy import IO
from tasks.rows.canaries import list_canaries, list_segments, measure_recall
from tasks.rows.contract import Contract
from tasks.rows.drift import (
    ALMOST_SURE,
    COUNTED,
    MIN_NIGHTS,
    OF_CATEGORY,
    SHIFT_EXPLAINS,
    TOGETHER,
    UNLEARNT,
    WEEK,
    Floats,
    PastNight,
    Values,
    bound_values,
    compare_counts,
    compare_discoveries,
    compare_flags,
    compare_medians,
    compute_psi,
    correct_p_values,
    find_hour_shift,
    find_renamed,
)
from tasks.rows.escaping import escape_markdown
from tasks.rows.finding import Watched, decide
from tasks.rows.judge import Mask, find_night_thresholds, judge
from tasks.rows.limits import read_scores
from tasks.rows.params import Canary, MonitorParams
from tasks.rows.record import RecordRule
from tasks.rows.reference import (
    HOURS,
    Reference,
    load_reference,
    make_reference,
    measure_mode,
    measure_spread,
    name_references,
    read_values,
    rescale,
    unscale,
)
from tasks.stores.bulk import NO_NUL
from tasks.stores.lake import Lake, Manifest, Part, count_slice_rows, quote
from tasks.stores.registry import CHALLENGER, Version
from tasks.stores.site import Site
from tasks.stores.tables import Drift, Finding, Night, PublishedNight

SAMPLE_ROWS = 50_000
PRACTICE_ROWS = 10_000  # of a day before the cut-off, which has to be scored first
PRACTICE_DAYS = 28  # before the cut-off, measured like nights: the first history
HISTORY_DAYS = 56
SHOWN = 12  # statistics beyond their bounds in the artifact
MOST_VALUE = 60  # characters of a value in the tables and evidence
MOST_CATEGORIES = 100  # of a column, whose flags are counted
FORMAT = 2  # of what is kept of a version; 1 had no flags by category
DECILES = np.array([*range(10, 100, 10), 99])  # of percentile ranks


def measure_columns(
    detector: Detector, reference: Reference, rows: pa.Table, is_flag: Mask, zone: ZoneInfo, ignored: Collection[str]
) -> Values:
    """How the values of each column differ from those of the training rows."""
    found: dict[tuple[str, str], float] = {}
    learnt = [c for c in detector.columns if c.name in reference and c.name not in ignored]
    values = {c.name: read_values(c, rows[c.name], zone) for c in learnt}
    p_values = []
    for name, numbers in values.items():
        bins = reference[name]
        usual = np.array(bins.counts)
        counts = bins.count(numbers)
        known = numbers[~np.isnan(numbers)]
        found[name, "psi"] = compute_psi(counts, usual)
        found[name, "psi_unflagged"] = compute_psi(bins.count(numbers[~is_flag]), usual)
        p_values.append(compare_counts(counts, usual))
        found[name, "null_share"] = 1 - len(known) / max(1, len(numbers))
        found[name, "mode_share"] = measure_mode(known)
        if bins.unseen is not None:
            found[name, "unseen_share"] = float(counts[-1] / max(1, counts.sum()))
            found[name, "renamed_share"] = find_renamed(counts, bins)
        elif bins.kind == "datetime":
            found[name, "hour_shift"] = abs(find_hour_shift(counts[:HOURS], usual[:HOURS]))
        else:
            median = measure_spread(rescale(bins.kind, known))[0]
            now, then = unscale(bins.kind, np.array([median, bins.median]))
            ratio = found[name, "median_ratio"] = compare_medians(float(now), float(then))
            found[name, "psi_rescaled"] = compute_psi(bins.count(numbers / ratio), usual)
    for name, p_value in zip(values, correct_p_values(p_values), strict=True):
        found[name, "p_value"] = p_value
    for first, second in find_swaps(reference, values):
        found[first, f"swapped with {second}"] = 1.0
    return found


def find_swaps(reference: Reference, values: Mapping[str, Floats]) -> Iterator[tuple[str, str]]:
    """The pairs of columns of one kind whose values fit the training rows once they are exchanged."""
    psi = {
        name: compute_psi(reference[name].count(found), np.array(reference[name].counts))
        for name, found in values.items()
    }
    moved = [name for name, value in psi.items() if value > UNLEARNT["psi"] and not reference[name].codes]
    for place, first in enumerate(moved):
        for second in moved[place + 1 :]:
            back = [
                compute_psi(reference[one].count(values[other]), np.array(reference[one].counts)) / psi[one]
                for one, other in ((first, second), (second, first))
            ]
            if max(back) < SHIFT_EXPLAINS:
                yield first, second


def measure_scores(detector: Detector, score: Floats, is_flag: Mask) -> Values:
    """How the scores (N,) lie among those of the calibration, and the share of flags."""
    if not len(score):
        return {}
    rank = detector.rank(score)
    counts = np.bincount(np.searchsorted(DECILES, rank, side="right"), minlength=len(DECILES) + 1)
    shares = np.diff([0, *DECILES, 100]) / 100
    return {
        ("", "score_psi"): compute_psi(counts, np.round(shares * 1_000_000).astype(np.int64)),
        ("", "score_shift"): abs(float(np.median(rank)) - 50),
        ("", "flag_rate"): float(is_flag.mean()),
    }


def measure_flags(flags: pa.Table, names: Sequence[str]) -> tuple[Values, dict[str, object]]:
    """How many flags share one value of each column, and the value that most of them share."""
    found: dict[tuple[str, str], float] = {}
    shared: dict[str, object] = {}
    for name in names:
        values = [value for value in flags[name].to_pylist() if value is not None]
        [(shared[name], count)] = Counter(values).most_common(1) or [("", 0)]
        found[name, "flags_of_one_value"] = float(count)
    return found, shared


def measure_categories(flags: pa.Table, categories: Sequence[str]) -> Values:
    """How many flags each category has, of each column and of all together; of many categories the commonest."""
    values = {name: flags[name].to_pylist() for name in categories}
    if len(categories) > 1:
        values[TOGETHER] = list(zip(*values.values(), strict=True))
    found: dict[tuple[str, str], float] = {}
    for name, column in values.items():
        counted = Counter(name_value(value) for value in column if value is not None)
        found[name, COUNTED] = float(counted.total())
        for value, count in sorted(counted.items(), key=lambda one: (-one[1], one[0]))[:MOST_CATEGORIES]:
            found[name, f"{OF_CATEGORY} {value}"] = float(count)
    return found


def name_value(value: object) -> str:
    """A value, or several, as the tables and evidence show it."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return " ".join(text.split()).replace("\0", NO_NUL)[:MOST_VALUE]


def draw_rows(
    lake: Lake,
    parts: Sequence[Part],
    columns: Sequence[str],
    seed: int,
    most: int = SAMPLE_ROWS,
    scores: Sequence[Part] = (),
) -> tuple[pa.Table, Floats]:
    """About `most` rows of some parts, fewer of wide rows, drawn by the seed; and their scores (N,), if there are any.

    scores: one part for each of the others, with its rows in their order.
    """
    rng = np.random.default_rng(seed)
    rows = sum(part.rows for part in parts)
    fitting = min(most, count_slice_rows(next(lake.slices(parts[0], list(columns)))))
    tables, found = [], [np.empty(0)]
    for number, part in enumerate(parts):
        chosen = rng.random(part.rows) < fitting / max(fitting, rows)
        start = 0
        for table in lake.slices(part, list(columns)):
            tables.append(table.filter(pa.array(chosen[start : start + table.num_rows])))
            start += table.num_rows
        if scores:
            found.append(np.concatenate([*read_scores(lake, [scores[number]])])[chosen])
    return pa.concat_tables(tables), np.concatenate(found)


@dataclass(frozen=True)
class Watch:
    """A version that is watched: what measures its nights. reference: empty if its clean rows are gone.

    spread: of the false alarms between nights, see `models.calibration.measure_spread`. unreadable: days before the
    cut-off that are not in `practice`, because another contract validated them.
    """

    site: Site
    detector: Detector
    contract: Contract
    rule: RecordRule
    params: MonitorParams
    reference: Reference = field(default_factory=dict)
    practice: tuple[PastNight, ...] = ()
    unreadable: int = 0
    spread: float = 1.0
    has_labels: bool = False

    @property
    def cutoff(self) -> date:
        """The date before which the version's training rows were taken."""
        cutoff = self.detector.lineage.get("cutoff")
        return date.fromisoformat(str(cutoff)) if cutoff else self.trained_through + timedelta(days=1)

    @property
    def trained_through(self) -> date:
        """The last batch date that it learnt from."""
        return date.fromisoformat(str(self.detector.lineage["trained_through"]))

    @property
    def categories(self) -> list[str]:
        """The categorical columns that it reads."""
        return [column.name for column in self.detector.columns if column.kind == "categorical"]

    @property
    def canaries(self) -> tuple[Canary, ...]:
        """The canaries that params name and this version reads, or those chosen by the kinds of columns."""
        return list_canaries(self.params.canaries, self.detector.columns)

    def read_reference(self) -> Reference:
        """Count the rows that the version was fitted on; empty if the lake has them no more."""
        lake, lineage = self.site.lake, self.detector.lineage
        clean = lake.find("clean", self.site.detector, self.cutoff)
        parts = [part for part in clean.parts if part.source == "fit"] if clean else []
        if not clean or clean.hash != lineage.get("data_hash") or not parts:
            return {}
        columns = [column.name for column in self.detector.columns]
        rows, _ = draw_rows(lake, parts, columns, self.cutoff.toordinal())
        return make_reference(self.detector.columns, rows, self.site.zone)

    def practise(self, excluded: Collection[date]) -> tuple[tuple[PastNight, ...], int]:
        """Measure the last days before the cut-off as if they were nights; and how many cannot be, see `can_read`."""
        lake, name = self.site.lake, self.site.detector
        days = [day for day in lake.dates("validated", name) if day < self.cutoff and day not in excluded]
        batches = [lake.get("validated", name, day) for day in days[-PRACTICE_DAYS:]]
        readable = [batch for batch in batches if self.can_read(batch)]
        found = tuple(PastNight(batch.batch_date, self.measure(batch)[0]) for batch in readable)
        return found, len(batches) - len(found)

    def can_read(self, batch: Manifest) -> bool:
        """Whether a batch has the columns that the version reads, of the types that the contract has now."""
        names, kinds = {column.name for column in self.detector.columns}, self.contract.schema
        for schema in (self.site.lake.schema(part) for part in batch.parts):
            if not names.issubset(schema.names):
                return False
            if any(schema.field(name).type != kinds.field(name).type for name in names.intersection(kinds.names)):
                return False
        return True

    def measure(self, batch: Manifest, scores: Manifest | None = None) -> tuple[Values, dict[str, str]]:
        """The statistics of a validated batch, and the values that its flags share; without `scores` it is scored."""
        facts = batch.facts["validation"]
        rows_in = facts["rows_in"]
        found: dict[tuple[str, str], float] = {("", "rows"): rows_in}
        found["", "quarantine_share"] = facts["quarantined"] / max(1, rows_in)
        if not batch.parts:
            return found, {}
        lake, columns, seed = self.site.lake, self.detector.columns, batch.batch_date.toordinal()
        groups = self._choose_groups(lake.columns(batch.parts[0]))
        wanted = dict.fromkeys([*(column.name for column in columns), *groups, *list_segments(self.canaries)])
        if scores:
            rows, score = draw_rows(lake, batch.parts, list(wanted), seed, scores=scores.parts)
        else:
            rows, _ = draw_rows(lake, batch.parts, list(wanted), seed, PRACTICE_ROWS)
            score = judge(self.detector, rows).score
        is_flag = score > find_night_thresholds(self.detector, rows, score)
        found |= measure_scores(self.detector, score, is_flag)
        if self.reference:
            zone, ignored = self.site.zone, self.params.ignore
            found |= measure_columns(self.detector, self.reference, rows, is_flag, zone, ignored)
            recall = measure_recall(self.detector, columns, self.reference, rows, self.canaries, seed)
            found |= {(name, "canary_recall"): share for name, share in recall.items()}
        is_sample = rows.num_rows < batch.rows
        flags = _read_flags(lake, batch, scores, groups) if is_sample else rows.filter(pa.array(is_flag)).select(groups)
        if flags is None:
            return found, {}
        categories = [name for name in groups if name in self.categories and name not in self.contract.masked]
        counted, shared = measure_flags(flags, [name for name in groups if name not in categories])
        found |= {**counted, **measure_categories(flags, categories)}
        return found, {name: self._name_shared(name, value) for name, value in shared.items()}

    def _choose_groups(self, names: Collection[str]) -> list[str]:
        """The columns by whose values flags are counted: the entity, what is published of a flag, and categories."""
        types = self.contract.types
        chosen = dict.fromkeys([*self.rule.columns, *self.categories])
        return [name for name in chosen if name in names and types.get(name) in ("text", "bool", "int")]

    def _name_shared(self, name: str, value: object) -> str:
        """A value as evidence may show it: that of a masked column only as its pseudonym."""
        if name in self.rule.pseudonymise:
            return self.rule.pseudonym(value)
        if name in self.contract.masked:
            return ""
        return name_value(value)


def _read_flags(lake: Lake, batch: Manifest, scores: Manifest | None, groups: Sequence[str]) -> pa.Table | None:
    """The groups' columns of the flags that were kept; None without scores."""
    if scores is None or not groups:
        return None
    wanted = pa.table({"record_id": pa.array(lake.read_frame(scores.facts["flags"])["record_id"], pa.string())})
    names = ", ".join(f"parts.{quote(name)}" for name in groups)
    sql = f"select {names} from parts join wanted using (record_id)"  # noqa: S608 - quoted
    return lake.query(sql, batch.parts, wanted=wanted)


def open_watch(watch: Watch, bundle_hash: str, excluded: Collection[date]) -> Watch:
    """The watch with what is known of its version, from the lake; for its first night it is measured and kept there.

    excluded: dates that may not be learnt from.
    """
    lake = watch.site.lake
    path = name_references(watch.site.detector, bundle_hash)
    kept = lake.find_file(path)
    document = json.loads(kept) if kept else {}
    reference = load_reference(document["columns"]) if document else watch.read_reference()
    watch = replace(watch, reference=reference)
    if document.get("format") == FORMAT:
        return replace(watch, practice=load_practice(document), unreadable=document["unreadable"])
    practice, unreadable = watch.practise(excluded)
    lake.replace(path, dump_known(reference, practice, unreadable))
    return replace(watch, practice=practice, unreadable=unreadable)


def dump_known(reference: Reference, practice: Sequence[PastNight], unreadable: int) -> bytes:
    """What is known of a version, as JSON."""
    days = [{"batch_date": one.batch_date.isoformat(), "values": list_values(one.values)} for one in practice]
    columns = {name: asdict(bins) for name, bins in reference.items()}
    document = {"format": FORMAT, "columns": columns, "practice": days, "unreadable": unreadable}
    return json.dumps(document, allow_nan=False).encode()


def load_practice(document: Mapping[str, Any]) -> tuple[PastNight, ...]:
    """The days before the cut-off, from what `dump_known` has written."""
    return tuple(
        PastNight(date.fromisoformat(day["batch_date"]), {(c, s): value for c, s, value in day["values"]})
        for day in document["practice"]
    )


def list_values(values: Values) -> list[list[Any]]:
    """Statistics as JSON can hold them."""
    return [[column, statistic, value] for (column, statistic), value in values.items()]


def read_nights(watch: Watch, day: date, version: int) -> list[PublishedNight]:
    """The nights up to a date that a version has scored, without earlier ones on which the data broke."""
    warehouse, name = watch.site.warehouse, watch.site.detector
    broken = warehouse.read_broken_dates(name) - {day}
    nights = (night for night in warehouse.read_nights(name) if night.batch_date <= day)
    return [night for night in nights if night.model_version == version and night.batch_date not in broken]


def read_history(watch: Watch, nights: Sequence[PublishedNight], day: date) -> list[PastNight]:
    """What was measured of nights before a date, and the version's practice."""
    scored, first = {night.batch_date for night in nights}, day - timedelta(days=HISTORY_DAYS)
    found = watch.site.warehouse.read_drift(watch.site.detector, first, day - timedelta(days=1))
    past = [
        PastNight(date_, {(one.column, one.statistic): one.value for one in drift})
        for date_, drift in found.items()
        if date_ in scored
    ]
    return [*watch.practice, *past]


def count_false_alarms(
    watch: Watch, nights: Sequence[PublishedNight], now: datetime
) -> list[tuple[int, PublishedNight]]:
    """The flags without an anomalous label of the latest nights whose labels have arrived."""
    site, today = watch.site, now.astimezone(watch.site.zone).date()
    whole = (night for night in nights if night.published == night.flagged)
    chosen = [night for night in whole if watch.has_labels and site.has_matured(night.batch_date, today)][-WEEK:]
    if not chosen:
        return []
    flags = site.warehouse.read_flags(site.detector, chosen[0].batch_date, chosen[-1].batch_date)
    labels = site.warehouse.read_labels(site.detector, now, flags["record_id"])
    is_false = ~flags["record_id"].isin(labels.loc[labels["label"] == 1, "record_id"])
    counts = Counter(flags.loc[is_false, "batch_date"])
    return [(counts[night.batch_date], night) for night in chosen]


def measure_arrival(site: Site, day: date) -> Values:
    """Hours from the end of the batch date to the arrival of its last part."""
    landing = site.lake.find("landing", site.detector, day)
    arrived = [datetime.fromisoformat(part.arrived_at) for part in landing.parts if part.arrived_at] if landing else []
    if not arrived:
        return {}
    late = max(arrived) - site.start_of(day + timedelta(days=1))
    return {("", "arrival_hours"): late.total_seconds() / 3600}


def watch_night(watch: Watch, night: Night, now: datetime) -> tuple[list[Drift], Finding]:
    """Measure a published night against the nights before, and decide what has happened."""
    site, day, threshold = watch.site, night.batch_date, watch.detector.threshold
    batch = site.lake.get("validated", site.detector, day)
    scores = site.lake.get("scores", site.detector, day, night.scores)
    is_whole = scores.facts["validated"] == batch.hash  # otherwise another run has validated the rows again
    values, shared = watch.measure(batch, scores if is_whole else None)
    values = {**values, **measure_arrival(site, day), ("", "champion_age_days"): (day - watch.trained_through).days}
    nights = read_nights(watch, day, night.model_version)
    history = read_history(watch, nights, day)
    chance = expect_false_alarms(threshold, night.scored, watch.spread, 2 * ALMOST_SURE)
    before = [one for one in nights if one.batch_date < day]
    answered = count_false_alarms(watch, nights, now)
    recent = [(one.flagged, one.scored) for one in (*before[1 - WEEK :], night)]
    drift = bound_values(values, history, day, chance.high / max(1, night.scored))
    if (rate := watch.detector.discovery_rate) is not None:
        drift += compare_discoveries([(false, one.flagged) for false, one in answered], rate)
    else:
        drift += compare_flags(recent, [(false, one.scored) for false, one in answered], threshold, watch.spread)
    watched = Watched(drift, history, shared, watch.params.is_holiday(day))
    decision = decide(site.detector, day.isoformat(), watched)
    evidence = (*decision.evidence, *describe_lacks(watch, night.model_version))
    finding = Finding(site.detector, day, night.attempt, decision.finding, evidence, decision.todo, now)
    return drift, finding


def describe_lacks(watch: Watch, version: int) -> Iterator[str]:
    """What the night could not be compared with, why, and what to do."""
    if not watch.reference:
        yield (
            f"Version {version} has no training reference, since the lake no longer has the rows that it was fitted "
            f"on: columns and canaries were not checked; nightjar run {watch.site.detector} --retrain makes a version "
            "that has one."
        )
    if watch.unreadable and len(watch.practice) < MIN_NIGHTS:
        yield (
            f"{watch.unreadable} days before the training's cut-off were validated by another contract, without these "
            "columns or with other types, so they do not show what is usual; later nights will."
        )


def summarise_finding(finding: Finding, drift: Sequence[Drift], facts: Mapping[str, str]) -> str:
    """The finding as Markdown, for the Prefect UI: evidence, what to do, and the statistics beyond their bounds."""
    lines = [f"**{finding.detector} {finding.batch_date}: {finding.finding.replace('_', ' ')}**", ""]
    lines += [f"- {escape_markdown(sentence)}" for sentence in finding.evidence]
    lines += ["", escape_markdown(finding.todo)] if finding.todo else []
    lines += ["", *(f"- {name}: {escape_markdown(text)}" for name, text in facts.items())]
    beyond = [one for one in drift if one.is_beyond][:SHOWN]
    if beyond:
        lines += ["", "| column | statistic | value | bound |", "|---|---|---|---|"]
    for one in beyond:
        cells = [one.column or "the night", one.statistic, f"{one.value:.4g}", f"{one.bound:.4g}"]
        lines.append("| " + " | ".join(map(escape_markdown, cells)) + " |")
    return "\n".join(lines) + "\n"


def monitor_night(
    site: Site,
    contract: Contract,
    night: Night,
    bundle: Path,
    rule: RecordRule,
    params: MonitorParams,
    excluded: Collection[date],
    spread: float = 1.0,
    has_labels: bool = False,
) -> tuple[list[Drift], Finding]:
    """Watch a published night and write its statistics and its finding to the warehouse."""
    detector = Detector.load(bundle).to(resolve_device(site.device))
    opened = Watch(site, detector, contract, rule, params, spread=spread, has_labels=has_labels)
    watch = open_watch(opened, read_bundle_manifest(bundle).content_hash, excluded)
    drift, finding = watch_night(watch, night, datetime.now(UTC))
    site.warehouse.replace_drift(finding, drift)
    return drift, finding


@task(task_run_name="monitor {site.detector} {night.batch_date}", **IO)
def monitor(
    site: Site,
    contract: Contract,
    night: Night,
    version: Version,
    bundle: Path,
    rule: RecordRule,
    params: MonitorParams,
    excluded: Collection[date],
    has_labels: bool,
) -> Finding:
    """Say of a published night whether its data broke, its world changed, or it was attacked."""
    drift, finding = monitor_night(
        site, contract, night, bundle, rule, params, excluded, version.night_spread, has_labels
    )
    challenger = site.registry.find_version(CHALLENGER)
    facts = describe_version(version, challenger, night.batch_date)
    page = summarise_finding(finding, drift, facts | {"labels": describe_labels(site, night.batch_date)})
    create_markdown_artifact(
        page, key=f"monitor-{site.artifact_key}", description=f"{site.detector} {night.batch_date}"
    )
    get_run_logger().info("%s: %s", finding.finding, " ".join(finding.evidence) or "no evidence of a change")
    return finding
