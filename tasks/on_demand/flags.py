"""List published flags as people read them: local times, causes in per cent, the record's own values, and verdicts."""

import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from tasks.errors import BatchMissing
from tasks.follow_up.cases import read_numbers
from tasks.rows.describe import describe_causes, localise
from tasks.rows.params import ScoreParams
from tasks.rows.record import RecordRule
from tasks.stores.site import Site

RECORD = ["batch_date", "record_id"]


def list_flags(
    site: Site, params: ScoreParams, rule: RecordRule, first: date | None, last: date | None, entity: str | None
) -> list[dict[str, Any]]:
    """The published flags of these batch dates, by date, worst first. Raises BatchMissing.

    By default those of the newest night; with an entity, those of all nights. An entity whose column is pseudonymised
    may be given as itself or as its pseudonym. event_time: in the detector's time zone, ISO 8601, or None for a table
    without times. case: its number, or None; record: the values by column, or None; causes: texts, largest share first;
    verdict: the latest, in the reviewer's word.
    """
    nights = [night.batch_date for night in site.warehouse.get_nights(site.detector)]
    if first is None and last is None and entity is None:
        first = nights[-1]
    chosen = [day for day in nights if (first or day) <= day <= (last or day)]
    if not chosen:
        raise BatchMissing(
            f"{site.detector} has no published night in these dates.",
            got=f"{first or 'any'} to {last or 'any'}",
            expected=f"dates from {nights[0]} to {nights[-1]}",
            todo=f"nightjar status {site.detector} shows what is published",
        )
    found = site.warehouse.read_flags(site.detector, chosen[0], chosen[-1], name_entity(rule, entity))
    return describe_flags(site, params, found)


def name_entity(rule: RecordRule, entity: str | None) -> set[str] | None:
    """An entity as it may be in the tables: as given, or as its pseudonym. None: any."""
    return None if entity is None else {entity, *([rule.pseudonym(entity)] if rule.hides_entity else [])}


def describe_flags(site: Site, params: ScoreParams, found: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of flagged_anomalies as people read them, with the latest verdict in the reviewer's word: see list_flags."""
    reviews = site.warehouse.read_reviews(site.detector, learnt=False)
    with site.warehouse.begin_reading() as connection:
        numbers = read_numbers(connection, site.detector, sorted(set(found["batch_date"])))
    found = found.merge(numbers, "left", RECORD)
    flags = found.merge(reviews[[*RECORD, "verdict", "said", "note"]], "left", RECORD).astype(object)
    return describe_judged(site, params, flags.where(flags.notna(), None).to_dict("records"))


def describe_judged(site: Site, params: ScoreParams, flags: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """The same of rows that have case_id, verdict, said and note too; each may be None."""
    return [
        {
            "batch_date": row["batch_date"],
            "event_time": row["event_time"].astimezone(site.zone).isoformat(timespec="seconds")
            if site.has_times
            else None,
            "record_id": row["record_id"],
            "entity": row["entity"],
            "score": row["score"],
            "threshold": row["threshold"],
            "band": params.name_band(row["percentile_rank"]),
            "suppressed": row["suppressed"],
            "suppressed_by": row["suppressed_by"],
            "case": None if row["case_id"] is None else int(row["case_id"]),
            "record": json.loads(row["record"]) if row["record"] else None,
            "causes": describe_causes(json.loads(row["causes"]), site.zone),
            "verdict": row["said"] or row["verdict"],
            "note": row["note"],
            "model_version": row["model_version"],
        }
        for row in flags
    ]


def flatten(flags: list[dict[str, Any]], zone: ZoneInfo) -> pd.DataFrame:
    """The flags for a spreadsheet: causes as one text, and each value of the record, times in the zone, in a column."""
    rows = []
    for flag in flags:
        shown = localise(flag["record"] or {}, zone)
        values = {f"record.{name}" if name in flag else name: value for name, value in shown.items()}
        named = {name: value for name, value in flag.items() if name != "record"}
        rows.append({**named, "causes": "; ".join(flag["causes"]), **values})
    return pd.DataFrame(rows)
