"""One self-contained HTML page per published night: counts, charts, flags with causes, drift, validation, lineage.

In: the night's data in lake, warehouse and registry. Out: reports/DETECTOR/DATE.html and index.html. The pages load no
external resources, and all values are escaped.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from prefect import task
from prefect.artifacts import create_markdown_artifact

from models.calibration import FalseAlarms, expect_false_alarms
from models.detector import Detector
from tasks.pages.charts import TREND_DAYS, Chart, lay_out_histogram, lay_out_hours, lay_out_trend
from tasks.pages.nights import link_nights, write_page
from tasks.pages.sketch import Sketch, sketch_night
from tasks.pages.validation import ENVIRONMENT
from tasks.policy import IO
from tasks.rows.contract import Contract
from tasks.rows.describe import describe_causes, describe_values, list_causes
from tasks.rows.escaping import escape_markdown
from tasks.rows.excess import describe_excess, is_excess
from tasks.rows.histogram import Histogram, count_scores
from tasks.rows.params import HOUR, ScoreParams
from tasks.rows.validation import Validation
from tasks.stores.faults import writing
from tasks.stores.lake import Lake, Manifest, quote
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import SECOND_STAGE, Drift, Finding, PublishedNight, case_flags, cases
from tasks.stores.warehouse import Warehouse

SHOWN_FLAGS = 100
SHOWN_GROUPS = 24  # the hours of a day, or the worst groups
SHOWN_DRIFT = 12
SAMPLE_ROWS = 900  # of the latent map; with the flags that are shown, one block of the encoder
SAMPLE_BYTES = 64 << 20
EXTREME = 99.0  # the rank above which an hour is marked
NO_SKETCH = Sketch()
LINEAGE = ("split", "trained_through", "data_hash", "params_hash", "contract_hash", "commit", "bundle_hash")


@dataclass(frozen=True, eq=False)
class NightFacts:
    """What the warehouse has of a published night: its counts, its flags (worst first), its groups, and what follows.

    cases: by record id. finding: None if monitor has none of this attempt; statistics: with it. trend: of the nights
    up to this one.
    """

    batch: PublishedNight
    flags: pd.DataFrame
    groups: pd.DataFrame
    cases: Mapping[str, int]
    finding: Finding | None
    statistics: Sequence[Drift]
    trend: Chart


@dataclass(frozen=True)
class NightRow:
    """A published night in the index, with its finding ("": none of this attempt) and the cases that have its flags."""

    night: PublishedNight
    finding: str
    cases: int
    open_cases: int


def render_report(
    facts: NightFacts,
    histogram: Histogram | None,
    validation: Validation,
    version: Version,
    params: ScoreParams,
    zone: ZoneInfo,
    sketch: Sketch = NO_SKETCH,
    has_times: bool = True,
    validation_page: str = "",
    false_alarms: FalseAlarms | None = None,
) -> str:
    """The page as HTML: alerts and groups in tables, suppressed flags as a count.

    Times are shown in the zone; those of events only if the table has times. validation_page: its URL, if
    there is one.
    """
    batch, flags, groups, statistics = facts.batch, facts.flags, facts.groups, facts.statistics
    alerts = flags[~flags["suppressed"]]
    shown = alerts.head(SHOWN_FLAGS)
    found = [facts.cases.get(record) for record in shown["record_id"]]
    rows = [
        {
            **row,
            "case": case,
            "is_first": case is not None and found.index(case) == place,
            "entity": row["entity"] if isinstance(row["entity"], str) else "",
            "values": describe_values(json.loads(row["record"]), zone) if isinstance(row["record"], str) else "",
            "event_time": show_time(row["event_time"], batch.batch_date, zone) if has_times else None,
            "causes": list_causes(json.loads(row["causes"]), zone),
            "images": sketch.images.get(row["record_id"], ()),
            "texts": sketch.texts.get(row["record_id"], ()),
            "share": row["score"] / row["threshold"] if row["threshold"] else math.inf,
            "band": params.name_band(row["percentile_rank"]),
        }
        for place, (row, case) in enumerate(zip(shown.to_dict("records"), found, strict=True))
    ]
    night = batch.flagged, batch.scored, version.most_false_alarms or math.inf
    return ENVIRONMENT.get_template("night.html").render(
        batch=batch,
        scored_at=f"{batch.scored_at.astimezone(zone):%Y-%m-%d %H:%M %Z}",
        flags=rows,
        has_entity=any(row["entity"] for row in rows),
        has_cases=any(row["case"] for row in rows),
        has_values=any(row["values"] for row in rows),
        zone=zone.key if has_times else "",
        groupings=[lay_out_groups(str(name), own) for name, own in groups.groupby("grouping")],
        extreme=f"{EXTREME:g}",
        hidden=len(alerts) - len(rows),
        excess=describe_excess(*night, flags["causes"]) if is_excess(*night) else "",
        alerts=len(alerts),
        suppressed=len(flags) - len(alerts),
        by_hand=int(flags["suppressed_by"].fillna(SECOND_STAGE).ne(SECOND_STAGE).sum()),
        has_reducer=bool(flags["second_stage_probability"].notna().any()),
        capped=batch.flagged - batch.published,
        is_pooled=bool((flags["threshold"] != batch.threshold).any()),
        histogram=lay_out_histogram(histogram, batch.threshold) if histogram else None,
        trend=facts.trend,
        finding=facts.finding,
        drift=choose_drift(statistics),
        beyond=sum(one.is_beyond for one in statistics),
        statistics=len(statistics),
        latent=sketch.latent,
        validation=validation,
        validation_page=validation_page,
        false_alarms=false_alarms,
        lineage={key: version.tags[key] for key in LINEAGE if key in version.tags},
        version=version,
    )


def lay_out_groups(name: str, groups: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of one grouping: its groups, worst first, and its hours as a chart."""
    rows = groups.to_dict("records")
    return {
        "name": name,
        "rows": groups.nlargest(SHOWN_GROUPS, "score").to_dict("records"),
        "hours": lay_out_hours(rows, EXTREME) if name == HOUR else None,
        "flagged": int(groups["flagged"].sum()),
        "threshold": groups["threshold"].iloc[0],
        "hidden": max(0, len(groups) - SHOWN_GROUPS),
    }


def show_time(instant: datetime, day: date, zone: ZoneInfo) -> str:
    """An event's local time; with the zone's abbreviation on a day whose clocks change, which has some times twice."""
    start, end = (datetime.combine(one, time(), zone).utcoffset() for one in (day, day + timedelta(days=1)))
    return f"{instant.astimezone(zone):{'%m-%d %H:%M:%S' if start == end else '%m-%d %H:%M:%S %Z'}}"


def choose_drift(statistics: Sequence[Drift]) -> list[Drift]:
    """The statistics to show: those beyond their bounds, then the columns whose values have changed most."""
    beyond = [one for one in statistics if one.is_beyond]
    changed = [one for one in statistics if one.statistic == "psi" and not one.is_beyond]
    return [*beyond, *sorted(changed, key=lambda one: -one.value)][: max(SHOWN_DRIFT, len(beyond))]


def read_night(site: Site, day: date) -> NightFacts:
    """A published night. Raises BatchMissing."""
    with site.warehouse.hold() as warehouse:
        nights = warehouse.read_nights(site.detector, day - timedelta(days=TREND_DAYS))
        [batch] = [one for one in nights if one.batch_date == day] or warehouse.get_nights(site.detector, day)
        said = {(one.batch_date, one.attempt): one for one in warehouse.read_findings(site.detector, day)}
        finding = said.get((day, batch.attempt))
        return NightFacts(
            batch=batch,
            flags=warehouse.read_flags(site.detector, day),
            groups=warehouse.read_groups(site.detector, day),
            cases=_read_cases(warehouse, batch),
            finding=finding,
            statistics=warehouse.read_drift(site.detector, day, day).get(day, ()) if finding else (),
            trend=_read_trend(warehouse, nights, day),
        )


def render_index(site: Site) -> str:
    """The page of all published nights, newest first, with their trend."""
    with site.warehouse.hold() as warehouse:
        nights, findings = warehouse.read_nights(site.detector), warehouse.read_findings(site.detector)
        counts = _count_cases(warehouse, site.detector)
        trend = _read_trend(warehouse, nights, nights[-1].batch_date)
    names = {(one.batch_date, one.attempt): one.finding for one in findings}
    rows = [
        NightRow(one, names.get((one.batch_date, one.attempt), ""), *counts.get(one.batch_date, (0, 0)))
        for one in reversed(nights)
    ]
    now = f"{datetime.now(site.zone):%Y-%m-%d %H:%M %Z}"
    return ENVIRONMENT.get_template("index.html").render(detector=site.detector, rows=rows, now=now, trend=trend)


def _read_trend(warehouse: Warehouse, nights: Sequence[PublishedNight], last: date) -> Chart:
    first = last - timedelta(days=TREND_DAYS)
    return draw_trend(nights, warehouse.read_drift(nights[0].detector, first, last, "flag_rate"), last)


def draw_trend(nights: Sequence[PublishedNight], rates: Mapping[date, Sequence[Drift]], last: date) -> Chart:
    """The flags of the nights up to a date, and how many are usual. rates: monitor's flag rates with their bounds."""
    counts = {night.batch_date: night.flagged for night in nights}
    bounds = {day: one.bound for day, found in rates.items() for one in found if one.bound is not None}
    usual = {one.batch_date: bounds[one.batch_date] * one.scored for one in nights if one.batch_date in bounds}
    return lay_out_trend(counts, usual, last)


def _read_cases(warehouse: Warehouse, batch: PublishedNight) -> dict[str, int]:
    """The case of each record of a batch that is in one."""
    of_batch = (case_flags.c.detector == batch.detector, case_flags.c.batch_date == batch.batch_date)
    with warehouse.begin_reading() as connection:
        found = connection.execute(sa.select(case_flags.c.record_id, case_flags.c.case_id).where(*of_batch))
        return {row.record_id: row.case_id for row in found}


def _count_cases(warehouse: Warehouse, detector: str) -> dict[date, tuple[int, int]]:
    """The numbers of cases, and of open ones, with flags of each batch date."""
    of_case = sa.and_(*(case_flags.c[name] == cases.c[name] for name in ("detector", "case_id")))
    is_open = sa.case((cases.c.closed_at.is_(None), cases.c.case_id))
    counts = [sa.func.count(sa.distinct(one)) for one in (cases.c.case_id, is_open)]
    found = sa.select(case_flags.c.batch_date, *counts).select_from(sa.join(case_flags, cases, of_case))
    with warehouse.begin_reading() as connection:
        rows = connection.execute(found.where(cases.c.detector == detector).group_by(case_flags.c.batch_date))
        return {day: (whole, waiting) for day, whole, waiting in rows}


def draw_sketch(lake: Lake, validated: Manifest, detector: Detector, contract: Contract, flags: pd.DataFrame) -> Sketch:
    """The latent map of a night, and the images and texts of its worst alerts."""
    if not validated.parts:
        return NO_SKETCH
    rows = draw_sample(lake, validated, detector, flags)
    shown = flags[~flags["suppressed"]].head(SHOWN_FLAGS)
    causes = dict(zip(shown["record_id"], shown["causes"], strict=True))
    return sketch_night(detector, rows, rows["is_flagged"].to_numpy(), causes, contract.masked)


def draw_sample(lake: Lake, validated: Manifest, detector: Detector, flags: pd.DataFrame) -> pa.Table:
    """Some rows of a night with the detector's columns, record_id and is_flagged; the SHOWN_FLAGS worst alerts are in.

    About SAMPLE_ROWS rows are drawn by the hash of their ids, fewer of wide ones.
    """
    row_bytes = sum(max(8, math.prod(column.shape)) for column in detector.columns)
    step = max(1, validated.rows // max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // row_bytes)))
    ids, is_alert = pa.array(flags["record_id"], pa.string()), ~flags["suppressed"].astype(bool)
    shown = is_alert & (is_alert.cumsum() <= SHOWN_FLAGS)
    wanted = pa.table({"record_id": ids, "shown": pa.array(shown, pa.bool_())})
    columns = ", ".join(f"parts.{quote(column.name)}" for column in detector.columns)
    sql = f"""
        select parts.record_id, {columns}, wanted.record_id is not null as is_flagged
        from parts left join wanted using (record_id)
        where wanted.shown or hash(parts.record_id) % {step} = 0
        order by parts.record_id"""  # noqa: S608 - quoted
    return lake.query(sql, validated.parts, wanted=wanted)


def write_report(
    site: Site,
    contract: Contract,
    validation: Validation,
    version: Version,
    bundle: Path,
    params: ScoreParams,
) -> tuple[Path, NightFacts]:
    """Write the page of a published night, the index of nights and the links between them; return page and night."""
    lake, day = site.lake, validation.batch_date
    facts = read_night(site, day)
    histogram = count_scores(lake, lake.get("scores", site.detector, day, facts.batch.scores), facts.batch.threshold)
    validated = lake.get("validated", site.detector, day)
    detector = Detector.load(bundle)
    sketch = draw_sketch(lake, validated, detector, contract, facts.flags)
    expected = expect_false_alarms(detector.threshold, facts.batch.scored, version.night_spread)
    path = site.reports / f"{day.isoformat()}.html"
    checked = site.validations / path.name  # on another machine, if that one validated the batch
    link = Path(os.path.relpath(checked, site.reports)).as_posix() if checked.exists() else ""
    page = render_report(
        facts, histogram, validation, version, params, site.zone, sketch, site.has_times, link, expected
    )
    with writing(path):
        write_page(path, page)
        link_nights(site.reports, [path], lambda: render_index(site))
    return path, facts


def summarise_night(batch: PublishedNight, flags: pd.DataFrame, page: Path, zone: ZoneInfo) -> str:
    """The night as Markdown, for the Prefect UI: counts, the five worst alerts, and where the report is.

    Its path is text: browsers open no link from a server's page to a file.
    """
    alerts = flags[~flags["suppressed"]]
    suppressed = len(flags) - len(alerts)
    lines = [
        f"**{batch.detector} {batch.batch_date}**: {batch.rows_in:,} rows in = {batch.scored:,} scored + "
        f"{batch.quarantined:,} quarantined + {batch.excluded:,} excluded; {batch.flagged:,} flagged above "
        f"{batch.threshold:.4g} by version {batch.model_version}"
        + (f", {suppressed:,} of them suppressed." if suppressed else "."),
        "",
        "| record | score | rank | worst cause |",
        "|---|---|---|---|",
    ]
    for row in alerts.head(5).to_dict("records"):
        worst = next(iter(describe_causes(json.loads(row["causes"]), zone)), "")
        cells = [str(row["record_id"]), f"{row['score']:.4g}", f"{row['percentile_rank']:.2f}", worst]
        lines.append("| " + " | ".join(map(escape_markdown, cells)) + " |")
    return "\n".join([*lines, "", f"Report: {escape_markdown(str(page))}"]) + "\n"


@task(task_run_name="report {site.detector} {validation.batch_date}", **IO)
def report(
    site: Site, contract: Contract, validation: Validation, version: Version, bundle: Path, params: ScoreParams
) -> Path:
    """Write the night's page, and its summary for the Prefect UI."""
    path, night = write_report(site, contract, validation, version, bundle, params)
    create_markdown_artifact(
        summarise_night(night.batch, night.flags, path, site.zone),
        key=f"night-{site.artifact_key}",
        description=f"{site.detector} {validation.batch_date}",
    )
    return path
