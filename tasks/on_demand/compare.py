"""Compare two versions on the same rows: published nights that neither has learnt from. Nothing is published.

Rows are read and judged slice by slice, so memory holds one slice and the twenty records to show. A row is an anomaly
or normal by its verdict, else by its label, else, in a matured night, normal. Rows with a verdict and rows of matured
nights are answered. Labels that come early are mostly of anomalies: they count for recall, not for precision.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from models.detector import Detector
from models.fitting import resolve_device
from tasks.errors import BatchMissing, ChampionMissing, NightjarError, ParamsInvalid
from tasks.evaluate import evaluate_bundle
from tasks.filter import read_training_set
from tasks.follow_up.cases import ANOMALY
from tasks.on_demand.loose import SMALLEST
from tasks.rows.canaries import list_canaries, list_segments, measure_recall
from tasks.rows.columns import fits
from tasks.rows.escaping import escape_markdown
from tasks.rows.history import COLUMNS
from tasks.rows.judge import Judgement, Mask, find_level, judge
from tasks.rows.params import Canary, GateParams
from tasks.rows.record import RecordRule
from tasks.rows.reference import load_reference, name_references
from tasks.rows.shares import Share, describe_share, estimate_share
from tasks.rows.worst import Floats, WorstRows
from tasks.stores.lake import Manifest
from tasks.stores.registry import CHALLENGER, TEST, Version
from tasks.stores.site import Site

MOST_NIGHTS = 7
CANARY_ROWS = 500
SHOWN = 20  # records that change side
SAME = 1e-3  # of a metric, absolute and relative: scores on another processor differ in the last bits
ANSWERS = {1.0: "anomaly", 0.0: "normal"}


@dataclass(frozen=True)
class Side:
    """What one version makes of the rows. clean_error: the mean score of the rows that it does not flag.

    precision: of its answered alerts, the anomalies; recall: of the known anomalies, those that are alerts.
    """

    version: int
    aliases: tuple[str, ...]
    trained_through: date
    has_second_stage: bool
    threshold: float
    flags: int
    alerts: int
    alerts_per_night: float
    clean_error: float | None
    precision: Share
    recall: Share


@dataclass(frozen=True)
class Overlap:
    """How many records both versions chose, or only one; jaccard: both / any, None if none chose one."""

    both: int
    only_first: int
    only_second: int
    jaccard: float | None


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same nights.

    answers: the answered rows; anomalies: the known ones. changed: alerts of one version only, those furthest above a
    threshold first. canaries: by name, the share of rows made anomalous that each version alerts on; empty before the
    first version was monitored.
    """

    detector: str
    nights: list[date]
    rows: int
    answers: int
    anomalies: int
    first: Side
    second: Side
    flags: Overlap
    alerts: Overlap
    changed: list[dict[str, Any]]
    canaries: dict[str, tuple[float, float]]


def choose_versions(site: Site, first: int | None = None, second: int | None = None) -> tuple[Version, Version]:
    """The versions to compare; by default the champion and the challenger; with one, the champion and that one.

    Raises ChampionMissing, and ParamsInvalid if both are the same.
    """
    registry = site.registry
    if first is not None and second is not None:
        pair = registry.get_version(first), registry.get_version(second)
    else:
        champion = registry.get_champion()
        other = registry.find_version(CHALLENGER) if first is None else registry.get_version(first)
        if other is None:
            raise ChampionMissing(
                f"{site.detector} has no challenger to compare with its champion.",
                where=f"registered model {registry.model_name}",
                got=f"versions {', '.join(str(version.version) for version in registry.list_versions())}",
                todo=f"nightjar train {site.detector} registers a challenger; or name two versions",
            )
        pair = champion, other
    if pair[0].version == pair[1].version:
        raise ParamsInvalid(
            f"Version {pair[0].version} cannot be compared with itself.",
            where=f"registered model {registry.model_name}",
            todo=f"nightjar compare {site.detector} A B, with two different versions",
        )
    return pair


def find_nights(
    site: Site, pair: tuple[Version, Version], detectors: Sequence[Detector], most: int = MOST_NIGHTS
) -> list[Manifest]:
    """The validated rows of the newest published nights that neither version has learnt from. Raises BatchMissing.

    Nights whose data broke are left out, since what a version makes of them says nothing of it, and nights that were
    validated without a column that one of them has learnt, or with other history columns of the same names.
    """
    learnt = max(version.trained_through for version in pair)
    published = [night.batch_date for night in site.warehouse.read_nights(site.detector)]
    broken = site.warehouse.read_broken_dates(site.detector)
    later = [day for day in published if day > learnt and day not in broken]
    kept = [manifest for day in later if (manifest := site.lake.find("validated", site.detector, day))]
    columns = tuple(column for detector in detectors for column in detector.columns)
    kept = [night for night in kept if all(v.has_learnt(night.facts.get(COLUMNS, {})) for v in pair)]
    found = [night for night in kept if all(fits(site.lake.schema(part), columns) for part in night.parts)]
    if found:
        return found[-most:]
    a, b = pair
    newest = f"; the newest published night is {published[-1]}" if published else "; no night is published"
    lacking = "lack a column that one has learnt" if kept else "were pruned"
    pruned = f"; the validated rows of {len(later)} later nights {lacking}" if later else newest
    raise BatchMissing(
        f"There is no published night that neither version {a.version} nor version {b.version} has learnt from.",
        where=f"published nights of {site.detector}",
        got=f"version {a.version} learnt through {a.trained_through}, version {b.version} through "
        f"{b.trained_through}{pruned}",
        expected=f"a published night after {learnt} whose validated rows are kept",
        todo=f"wait for the next night; or nightjar train {site.detector} --cutoff DATE, with nights left after DATE",
    )


def compare_versions(
    site: Site,
    rule: RecordRule,
    pair: tuple[Version, Version],
    has_labels: bool,
    now: datetime,
    most: int = MOST_NIGHTS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    canaries: Sequence[Canary] | None = None,
) -> Comparison:
    """Judge the same rows with two versions. has_labels: whether rows of matured nights without a label are normal.

    canaries: of params; None chooses some.

    on_progress is called with the rows judged so far, and all. Raises BatchMissing without common later nights, and
    BundleInvalid for a version that cannot be loaded or does not fit the rows.
    """
    device = resolve_device(site.device)
    detectors = [Detector.load(site.registry.fetch_bundle(version)).to(device) for version in pair]
    nights = find_nights(site, pair, detectors, most)
    tallies, overlaps, changed = [_Tally(), _Tally()], [_Both(), _Both()], WorstRows(SHOWN)
    only_entity, answers, anomalies = replace(rule, show=()), 0, 0
    total, done = sum(night.rows for night in nights), 0
    levels = {night.batch_date: [find_level(one, _slice(site, night, one)) for one in detectors] for night in nights}
    for night, table, truth, is_answered in _read(site, nights, detectors, only_entity, has_labels, now):
        chosen = zip(detectors, levels[night.batch_date], strict=True)
        first, second = (judge(detector, table, level) for detector, level in chosen)
        for tally, judged in zip(tallies, (first, second), strict=True):
            tally.add(judged, truth, is_answered)
        answers, anomalies = answers + int(is_answered.sum()), anomalies + int((truth == 1).sum())
        alerts = [judged.is_alert for judged in (first, second)]
        overlaps[0].add(first.is_flagged, second.is_flagged)
        overlaps[1].add(*alerts)
        _keep_changed(changed, night, table, truth, (first, second), only_entity)
        done += table.num_rows
        on_progress(done, total)
    sides = [
        tally.sum_up(version, detector, len(nights), anomalies)
        for tally, version, detector in zip(tallies, pair, detectors, strict=True)
    ]
    return Comparison(
        detector=site.detector,
        nights=[night.batch_date for night in nights],
        rows=total,
        answers=answers,
        anomalies=anomalies,
        first=sides[0],
        second=sides[1],
        flags=overlaps[0].sum_up(),
        alerts=overlaps[1].sum_up(),
        changed=_describe_changed(changed),
        canaries=_judge_canaries(site, pair[0], detectors, nights[-1], canaries),
    )


def _slice(site: Site, night: Manifest, detector: Detector) -> Iterator[pa.Table]:
    columns = [column.name for column in detector.columns]
    return (table for part in night.parts for table in site.lake.slices(part, columns))


def _judge_canaries(
    site: Site, first: Version, detectors: Sequence[Detector], night: Manifest, canaries: Sequence[Canary] | None
) -> dict[str, tuple[float, float]]:
    """The share of each canary, made of the first rows of a night, that either version alerts on."""
    kept = site.lake.find_file(name_references(site.detector, site.registry.check_tags(first)))
    reference = load_reference(json.loads(kept)["columns"]) if kept else {}
    if not reference or not night.rows:
        return {}
    columns = detectors[0].columns  # which the reference is of
    chosen = list_canaries(canaries, columns)
    learnt = [column.name for detector in detectors for column in detector.columns]
    rows = _read_first(site, night, list(dict.fromkeys([*learnt, *list_segments(chosen)])))
    made = (columns, reference, rows, chosen, night.batch_date.toordinal(), CANARY_ROWS)
    one, two = (measure_recall(detector, *made) for detector in detectors)
    return {name: (share, two[name]) for name, share in one.items()}


def _read_first(site: Site, night: Manifest, names: list[str]) -> pa.Table:
    """The first CANARY_ROWS rows of a night."""
    tables, missing = [], CANARY_ROWS
    for table in (table for part in night.parts for table in site.lake.slices(part, names)):
        tables.append(table.slice(0, missing))
        missing -= tables[-1].num_rows
        if not missing:
            break
    return pa.concat_tables(tables)


def name_span(found: Comparison) -> str:
    """The nights and rows that were judged, in words."""
    span = f"{found.nights[0]} to {found.nights[-1]}" if len(found.nights) > 1 else f"{found.nights[0]}"
    return f"{found.detector}: {len(found.nights)} nights, {span}, {found.rows:,} rows that neither has learnt from"


def describe_sides(found: Comparison) -> list[tuple[str, str, str]]:
    """Each figure of the two versions: its name and both values."""
    sides = zip(_describe_side(found.first), _describe_side(found.second), strict=True)
    canaries = [(f"canary, {name}", f"{one:.0%}", f"{two:.0%}") for name, (one, two) in found.canaries.items()]
    return [*((label, one, two) for (label, one), (_, two) in sides), *canaries]


def summarise_comparison(found: Comparison) -> str:
    """The comparison as Markdown, for Prefect's page."""
    names = (f"version {found.first.version}", f"version {found.second.version}")
    rows = [("", *names), ("---",) * 3, *(map(escape_markdown, line) for line in describe_sides(found))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    agree = f"Alerts: {describe_overlap(found.alerts, names)}."
    return f"**{escape_markdown(name_span(found))}**\n\n{table}\n\n{escape_markdown(agree)}\n"


def _describe_side(side: Side) -> list[tuple[str, str]]:
    """One version's figures, each with its name."""
    return [
        ("alias", ", ".join(side.aliases)),
        ("learnt through", str(side.trained_through)),
        ("second stage", "yes" if side.has_second_stage else "no"),
        ("threshold", f"{side.threshold:.4g}"),
        ("flags", f"{side.flags:,}"),
        ("alerts per night", f"{side.alerts_per_night:,.1f}"),
        ("clean error", "" if side.clean_error is None else f"{side.clean_error:.4g}"),
        ("precision", describe_share(side.precision)),
        ("recall", describe_share(side.recall)),
    ]


def describe_overlap(found: Overlap, names: tuple[str, str]) -> str:
    """How far two sets of records agree."""
    share = "none" if found.jaccard is None else f"{100 * found.jaccard:.1f} % in common"
    return (
        f"{share}: {found.both:,} of both, {found.only_first:,} only of {names[0]}, "
        f"{found.only_second:,} only of {names[1]}"
    )


def list_refusals(site: Site, gate: GateParams | None, found: Comparison) -> list[str]:
    """Why the gate refuses the second version by the comparison and its nights in shadow; empty if it passes."""
    if gate is None:
        return []
    version, nights, limit = found.second.version, len(found.nights), gate.max_alerts_per_night
    refusals = [_describe_nights(version, nights, gate)] if nights < gate.min_nights else []
    refusals += _check_shadow(site, gate, version)
    before, after = found.first.recall, found.second.recall
    if before.hits - after.hits > gate.max_recall_loss * before.total:
        refusals.append(
            f"of {before.total:,} known anomalies, version {version} alerts on {after.hits:,} and version "
            f"{found.first.version} on {before.hits:,}, and promote.gate.max_recall_loss is {gate.max_recall_loss:g}"
        )
    if limit is not None and found.second.alerts_per_night > limit:
        refusals.append(
            f"version {version} raises {found.second.alerts_per_night:,.1f} alerts per night, and "
            f"promote.gate.max_alerts_per_night is {limit:,g}"
        )
    return refusals


def check_gate(
    site: Site, rule: RecordRule, gate: GateParams | None, number: int | None, has_labels: bool, now: datetime,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:  # fmt: skip
    """Compare a version (default: the challenger) with the champion; why the gate refuses it, empty if it passes.

    Without a gate, a champion or the version there is nothing to check. A failed comparison is a refusal.
    """
    registry = site.registry
    champion = registry.find_version()
    named = (version for version in registry.list_versions() if version.version == number)
    chosen = registry.find_version(CHALLENGER) if number is None else next(named, None)
    if gate is None or champion is None or chosen is None or chosen.version == champion.version:
        return []
    try:
        most = max(MOST_NIGHTS, gate.min_nights)
        found = compare_versions(site, rule, (champion, chosen), has_labels, now, most, on_progress)
        return [*list_refusals(site, gate, found), *_check_metrics(site, chosen)]
    except BatchMissing:
        return [_describe_nights(chosen.version, 0, gate)]
    except NightjarError as error:
        return [f"version {chosen.version} cannot be compared with the champion: {error.line}"]


def _check_shadow(site: Site, gate: GateParams, number: int) -> list[str]:
    if not gate.min_shadow_nights:
        return []
    version = site.registry.get_version(number)
    nights = len(site.lake.scored_by(site.detector, site.registry.check_tags(version), version.trained_through))
    if nights >= gate.min_shadow_nights:
        return []
    return [
        f"version {number} has scored {nights:,} nights in shadow, and promote.gate.min_shadow_nights is "
        f"{gate.min_shadow_nights:,}"
    ]


def _check_metrics(site: Site, version: Version) -> list[str]:
    """Which of the metrics that MLflow shows of a version its bundle does not give again on the same test rows.

    Nothing is checked without such metrics, or if the rows are not kept any more.
    """
    recorded, cutoff = site.registry.read_metrics(version), version.read_date("cutoff")
    clean = site.lake.find("clean", site.detector, cutoff)
    if not recorded or clean is None or clean.hash != version.tags.get("data_hash"):
        return []
    rows = read_training_set(site.lake, site.detector, cutoff)
    found = evaluate_bundle(site, rows, site.registry.fetch_bundle(version)).metrics
    again = {f"{TEST}{name}": value for name, value in asdict(found).items()} if found else {}
    unlike = [
        f"{name} is {again.get(name)}, not {value:g}"
        for name, value in recorded.items()
        if name.startswith(TEST) and not _is_same(value, again.get(name))
    ]
    return [f"version {version.version} does not give its own metrics again: {', '.join(unlike)}"] if unlike else []


def _is_same(recorded: float, again: float | None) -> bool:
    return again is not None and math.isclose(recorded, again, rel_tol=SAME, abs_tol=SAME)


def _describe_nights(version: int, nights: int, gate: GateParams) -> str:
    return (
        f"only {nights:,} published nights are new to both version {version} and the champion, and "
        f"promote.gate.min_nights is {gate.min_nights:,}"
    )


def _read(
    site: Site, nights: Sequence[Manifest], detectors: Sequence[Detector], rule: RecordRule, has_labels: bool,
    now: datetime,
) -> Iterator[tuple[Manifest, pa.Table, Floats, Mask]]:  # fmt: skip
    """The validated rows by slices, what they are (1 anomaly, 0 normal, NaN unknown; N,), and the answered (N,)."""
    columns = [column.name for detector in detectors for column in detector.columns]
    names = list(dict.fromkeys(["record_id", *columns, *rule.columns]))
    reviews, today = site.warehouse.read_reviews(site.detector), now.astimezone(site.zone).date()
    for night in nights:
        given = reviews[reviews["batch_date"] == night.batch_date].set_index("record_id")["verdict"]
        verdicts = given.map(lambda verdict: float(verdict == ANOMALY))
        has_matured = has_labels and site.has_matured(night.batch_date, today)
        for part in night.parts:
            for table in site.lake.slices(part, names):
                ids = table["record_id"].to_pandas().astype("str")
                truth = ids.map(verdicts).astype(float)
                is_answered = truth.notna() | has_matured
                if has_labels:
                    labels = site.warehouse.read_labels(site.detector, now, ids).set_index("record_id")["label"]
                    truth = truth.fillna(ids.map(labels).astype(float)).fillna(0.0 if has_matured else np.nan)
                yield night, table, truth.to_numpy(dtype=np.float64), is_answered.to_numpy(dtype=bool)


@dataclass
class _Tally:
    """The counts of one version over all slices."""

    rows: int = 0
    flags: int = 0
    alerts: int = 0
    answered: int = 0
    confirmed: int = 0  # of the answered
    hits: int = 0
    clean_score: float = 0.0

    def add(self, judged: Judgement, truth: Floats, is_answered: Mask) -> None:
        is_flag = judged.is_flagged
        is_alert = judged.is_alert
        self.rows += len(is_flag)
        self.flags += int(is_flag.sum())
        self.alerts += int(is_alert.sum())
        self.answered += int((is_alert & is_answered).sum())
        self.confirmed += int((is_alert & is_answered & (truth == 1)).sum())
        self.hits += int((is_alert & (truth == 1)).sum())
        self.clean_score += float(judged.score[~is_flag].sum())

    def sum_up(self, version: Version, detector: Detector, nights: int, anomalies: int) -> Side:
        clean = self.rows - self.flags
        return Side(
            version=version.version,
            aliases=version.aliases,
            trained_through=version.trained_through,
            has_second_stage=detector.reducer is not None,
            threshold=detector.threshold.value,
            flags=self.flags,
            alerts=self.alerts,
            alerts_per_night=self.alerts / nights,
            clean_error=self.clean_score / clean if clean else None,
            precision=estimate_share(self.confirmed, self.answered),
            recall=estimate_share(self.hits, anomalies),
        )


@dataclass
class _Both:
    """The counts of an Overlap over all slices."""

    counts: Counter[tuple[bool, bool]] = field(default_factory=Counter)

    def add(self, first: Mask, second: Mask) -> None:
        self.counts[True, True] += int((first & second).sum())
        self.counts[True, False] += int((first & ~second).sum())
        self.counts[False, True] += int((second & ~first).sum())

    def sum_up(self) -> Overlap:
        both, total = self.counts[True, True], self.counts.total()
        jaccard = both / total if total else None
        return Overlap(both, self.counts[True, False], self.counts[False, True], jaccard)


def _keep_changed(
    changed: WorstRows,
    night: Manifest,
    table: pa.Table,
    truth: Floats,
    pair: tuple[Judgement, Judgement],
    rule: RecordRule,
) -> None:
    """Add the records that are an alert of one version only, ranked by the higher of their scores / thresholds."""
    alerts = [judged.is_alert for judged in pair]
    chosen = alerts[0] != alerts[1]
    if not chosen.any():
        return
    rows = table.filter(pa.array(chosen))
    # The column may have been added to the contract after the night was validated.
    known = {*rule.columns} <= {*rows.column_names}
    entity = rule.describe(rows)["entity"].tolist() if known else [None] * rows.num_rows
    kept = pa.table(
        {
            "batch_date": pa.array([night.batch_date] * rows.num_rows, pa.date32()),
            "record_id": rows["record_id"].cast(pa.string()),
            "entity": pa.array(entity, pa.string()),
        }
    )
    times = [(judged.score / np.maximum(judged.threshold, SMALLEST))[chosen] for judged in pair]
    marks = [mask[chosen] for judged, alert in zip(pair, alerts, strict=True) for mask in (alert, judged.is_suppressed)]
    changed.add(kept, np.maximum(*times), truth[chosen], *times, *marks)


def _describe_changed(changed: WorstRows) -> list[dict[str, Any]]:
    rows, *arrays = changed.take()
    if rows is None:
        return []
    _, truth, first, second, first_alert, first_suppressed, second_alert, second_suppressed = arrays
    return [
        {
            **row,
            "answer": ANSWERS.get(truth[place]),
            "first": _describe(first[place], first_alert[place], first_suppressed[place]),
            "second": _describe(second[place], second_alert[place], second_suppressed[place]),
        }
        for place, row in enumerate(rows.to_pylist())
    ]


def _describe(times: float, is_alert: bool, is_suppressed: bool) -> dict[str, Any]:
    """One version's judgement of a record; times_threshold: score / threshold."""
    return {"times_threshold": float(times), "is_alert": bool(is_alert), "is_suppressed": bool(is_suppressed)}
