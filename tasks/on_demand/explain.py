"""Explain one record of a published night: score its validated row again with the night's model version."""

import json
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import BatchRejected, ChampionMissing, RecordMissing
from tasks.rows.contract import Contract
from tasks.rows.describe import describe_causes
from tasks.rows.history import COLUMNS
from tasks.rows.judge import judge, load_detector
from tasks.rows.record import RecordRule
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import PublishedNight

MOST_CAUSES = 20  # of a record with many patches or tokens; columns are always all shown


@dataclass(frozen=True)
class RecordExplanation:
    """A record's score, severity and causes; the causes add up to the score.

    event_time: in the detector's time zone, ISO 8601; None for a table without times. entity and record: what its night
    publishes of it, by params. second_stage_probability: None if it is not flagged or the version has no reducer.
    is_suppressed: by the second stage; suppressed_by: what suppresses the published flag.
    """

    record_id: str
    batch_date: date
    event_time: str | None
    entity: str | None
    record: dict[str, Any] | None
    score: float
    percentile_rank: float
    p_value: float
    threshold: float
    is_flagged: bool
    second_stage_probability: float | None
    is_suppressed: bool
    suppressed_by: str | None
    causes: list[dict[str, Any]]
    model: str
    model_version: int
    input_hash: str
    data_hash: str


def find_record(site: Site, record_id: str, day: date | None) -> tuple[PublishedNight, pa.Table]:
    """The newest published night that scored the record, and the record's validated row. Raises RecordMissing."""
    batches = site.warehouse.read_nights(site.detector)
    for batch in reversed([b for b in batches if day in (None, b.batch_date)]):
        validated = site.lake.find("validated", site.detector, batch.batch_date)
        for part in validated.parts if validated else ():  # the partition may have been pruned
            for table in site.lake.slices(part):
                found = table.filter(pc.equal(table["record_id"], record_id))
                if found.num_rows:
                    return batch, found
    raise RecordMissing(
        f"No published night of {site.detector} scored this record.",
        got=f"record_id {record_id!r}" + (f" on {day}" if day else ""),
        expected="a record that was validated and scored",
        todo="check the id and retention.validated_days; the lake's quarantine zone has quarantined rows and reasons",
    )


def get_scorer(site: Site, batch: PublishedNight, record_id: str) -> Version:
    """The version that scored a night. Raises ChampionMissing, with what the record's flag says, if it was deleted."""
    try:
        return site.registry.get_version(batch.model_version)
    except ChampionMissing as error:
        flags = site.warehouse.read_flags(site.detector, batch.batch_date)
        flag = next(iter(flags[flags["record_id"] == record_id].to_dict("records")), None)
        causes = "; ".join(describe_causes(json.loads(flag["causes"]), site.zone)) if flag else ""
        raise ChampionMissing(
            f"Version {batch.model_version} of {site.detector}, which scored this record, was deleted.",
            where=f"registered model {site.registry.model_name}",
            got=f"the flag, with score {flag['score']:.4g}, rank {flag['percentile_rank']:.2f}, causes: {causes}"
            if flag
            else f"no flag, so a score of at most {batch.threshold:.4g}",
            todo=f"to explain it again, score its night with a registered version: nightjar score {site.detector} "
            f"--date {batch.batch_date}",
        ) from error


def find_suppression(site: Site, batch: PublishedNight, record_id: str) -> str | None:
    """What suppresses the record's published flag; None if nothing does, or if it is not flagged."""
    flags = site.warehouse.read_flags(site.detector, batch.batch_date)
    by = flags.loc[flags["record_id"] == record_id, "suppressed_by"].dropna()
    return str(by.iloc[0]) if len(by) else None


def explain_record(
    site: Site, contract: Contract, rule: RecordRule, record_id: str, day: date | None = None
) -> RecordExplanation:
    """Score a record again with the version that scored its night, and list every column's share.

    Raises RecordMissing; ChampionMissing with what the table says if that version is no longer registered.
    """
    batch, row = find_record(site, record_id, day)
    version = get_scorer(site, batch, record_id)
    validated = site.lake.get("validated", site.detector, batch.batch_date)
    if not version.has_learnt(validated.facts.get(COLUMNS, {})):
        raise BatchRejected(
            f"The history columns of {batch.batch_date} are no longer those that version {version.version} has learnt.",
            where=f"validated rows of {site.detector}",
            expected="the columns of enrich in params.yaml at its training",
            todo=f"nightjar score {site.detector} --date {batch.batch_date} scores the night by today's champion",
        )
    detector = load_detector(site.lake, site.detector, site.registry.fetch_bundle(version))
    judged = judge(detector, row, None if detector.segments else batch.threshold)
    [text] = judged.name_causes(contract.masked, max(len(detector.columns), MOST_CAUSES))
    causes = json.loads(text)
    [(entity, record)] = rule.describe(row).itertuples(index=False)
    return RecordExplanation(
        record_id=record_id,
        batch_date=batch.batch_date,
        event_time=row["event_time"][0].as_py().astimezone(site.zone).isoformat() if site.has_times else None,
        entity=entity,
        record=json.loads(record) if record else None,
        **judged.only(),
        suppressed_by=find_suppression(site, batch, record_id),
        threshold=judged.threshold.item(),
        causes=causes if causes[-1]["share"] else causes[:-1],
        model=version.name,
        model_version=version.version,
        input_hash=batch.input_hash,
        data_hash=version.tags.get("data_hash", ""),
    )
