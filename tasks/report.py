"""One self-contained HTML page per published night: counts, histogram, flags with causes, validation, lineage.

In: the night's data in lake, warehouse and registry. Out: reports/DETECTOR/DATE.html. The page loads no external
resources, and all values are escaped.
"""

import json
import math
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.pages.validation import ENVIRONMENT
from tasks.policy import IO
from tasks.rows.describe import describe_causes, describe_values
from tasks.rows.escaping import escape_markdown
from tasks.rows.excess import describe_excess, is_excess
from tasks.rows.params import ScoreParams
from tasks.stores.faults import writing
from tasks.stores.lake import Lake, Manifest
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import SECOND_STAGE, PublishedNight
from tasks.validate import Validation

BINS = 60
SHOWN_FLAGS = 100
SHOWN_GROUPS = 24  # the hours of a day, or the worst groups
LINEAGE = ("split", "trained_through", "data_hash", "params_hash", "contract_hash", "commit", "bundle_hash")


@dataclass(frozen=True)
class Histogram:
    """Counts of rows by score on a logarithmic axis: edges (B + 1,), counts (B,)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def count_scores(lake: Lake, scores: Manifest) -> Histogram | None:
    """The histogram of a batch's scores, computed by DuckDB; None if no rows were scored."""
    if not scores.parts:
        return None
    low, high = lake.query(
        "select min(log10(greatest(score, 1e-12))) as low, max(log10(greatest(score, 1e-12))) as high from parts",
        scores.parts,
    ).to_pylist()[0].values()  # fmt: skip
    step = (high - low) / BINS or 1.0
    place = f"least(floor((log10(greatest(score, 1e-12)) - ({low!r})) / {step!r}), {BINS - 1})"
    rows = lake.query(f"select {place}::int as bin, count(*) as n from parts group by 1", scores.parts)  # noqa: S608
    counts = dict(zip(rows["bin"].to_pylist(), rows["n"].to_pylist(), strict=True))
    edges = tuple(10 ** (low + step * i) for i in range(BINS + 1))
    return Histogram(edges, tuple(counts.get(i, 0) for i in range(BINS)))


def lay_out_bars(histogram: Histogram, threshold: float) -> dict[str, Any]:
    """The histogram as shapes on a 1000 x 200 canvas, both axes logarithmic: bars, decade ticks, threshold."""
    low, high = math.log10(histogram.edges[0]), math.log10(histogram.edges[-1])
    tallest = math.log10(1 + max(histogram.counts))

    def across(score: float) -> float:
        return 1000 * (math.log10(score) - low) / (high - low or 1.0)

    bars = [
        {"x": across(start), "width": across(end) - across(start), "height": 200 * math.log10(1 + count) / tallest,
         "flagged": start >= threshold, "title": f"{count:,} rows from {start:.3g} to {end:.3g}"}
        for start, end, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        if count
    ]  # fmt: skip
    ticks = [(across(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)]
    rows = [(200 * math.log10(1 + n) / tallest, f"{n:,}") for n in (1, 10, 100, 1000, 10**4, 10**5, 10**6, 10**7)]
    shown = across(max(threshold, 1e-12)) if threshold > 0 else 0.0
    inside = [(height, text) for height, text in rows if height <= 200]
    return {"bars": bars, "ticks": ticks, "rows": inside, "threshold": min(max(shown, 0.0), 1000.0)}


def render_report(
    batch: PublishedNight,
    flags: pd.DataFrame,
    histogram: Histogram | None,
    validation: Validation,
    version: Version,
    params: ScoreParams,
    groups: pd.DataFrame,
    zone: ZoneInfo,
    has_times: bool = True,
    validation_page: str = "",
) -> str:
    """The page as HTML: alerts and groups in tables, suppressed flags as a count. groups: rows of group_scores.

    Times are shown in the zone; those of events only if the table has times. validation_page: its URL, if
    there is one.
    """
    alerts = flags[~flags["suppressed"]]
    shown = alerts.head(SHOWN_FLAGS)
    rows = [
        {
            **row,
            "entity": row["entity"] if isinstance(row["entity"], str) else "",
            "values": describe_values(json.loads(row["record"]), zone) if isinstance(row["record"], str) else "",
            "event_time": row["event_time"].astimezone(zone) if has_times else None,
            "causes": describe_causes(json.loads(row["causes"]), zone),
            "share": row["score"] / batch.threshold if batch.threshold else math.inf,
            "band": params.name_band(row["percentile_rank"]),
        }
        for row in shown.to_dict("records")
    ]
    night = batch.flagged, batch.scored, version.most_false_alarms or math.inf
    return ENVIRONMENT.get_template("night.html").render(
        batch=batch,
        scored_at=f"{batch.scored_at.astimezone(zone):%Y-%m-%d %H:%M %Z}",
        flags=rows,
        has_entity=any(row["entity"] for row in rows),
        has_values=any(row["values"] for row in rows),
        zone=zone.key if has_times else "",
        groups=groups.nlargest(SHOWN_GROUPS, "score").to_dict("records"),
        hidden_groups=max(0, len(groups) - SHOWN_GROUPS),
        hidden=len(alerts) - len(rows),
        excess=describe_excess(*night, flags["causes"]) if is_excess(*night) else "",
        alerts=len(alerts),
        suppressed=len(flags) - len(alerts),
        by_hand=int(flags["suppressed_by"].fillna(SECOND_STAGE).ne(SECOND_STAGE).sum()),
        has_reducer=bool(flags["second_stage_probability"].notna().any()),
        capped=batch.flagged - batch.published,
        chart=lay_out_bars(histogram, batch.threshold) if histogram else None,
        validation=validation,
        validation_page=validation_page,
        lineage={key: version.tags[key] for key in LINEAGE if key in version.tags},
        version=version,
    )


def read_night(site: Site, day: date) -> tuple[PublishedNight, pd.DataFrame]:
    """A published night in the warehouse: its counts, and its flags, worst first."""
    [batch] = site.warehouse.get_nights(site.detector, day)
    return batch, site.warehouse.read_flags(site.detector, day)


def write_report(
    site: Site,
    batch: PublishedNight,
    flags: pd.DataFrame,
    validation: Validation,
    version: Version,
    params: ScoreParams,
) -> Path:
    """Write the page of a published night and return its path."""
    lake, day = site.lake, batch.batch_date
    histogram = count_scores(lake, lake.get("scores", site.detector, day, batch.scores))
    groups = site.warehouse.read_groups(site.detector, day)
    path = site.reports / f"{day.isoformat()}.html"
    checked = site.validations / path.name  # on another machine, if that one validated the batch
    link = Path(os.path.relpath(checked, site.reports)).as_posix() if checked.exists() else ""
    page = render_report(batch, flags, histogram, validation, version, params, groups, site.zone, site.has_times, link)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return path


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
def report(site: Site, validation: Validation, version: Version, params: ScoreParams) -> Path:
    """Write the night's page, and its summary for the Prefect UI."""
    day = validation.batch_date
    batch, flags = read_night(site, day)
    path = write_report(site, batch, flags, validation, version, params)
    create_markdown_artifact(
        summarise_night(batch, flags, path, site.zone),
        key=f"night-{site.artifact_key}",
        description=f"{site.detector} {day}",
    )
    return path
