"""What `monitor` found on a night, and how old the version is that scored it; reads only, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from tasks.stores.registry import CHALLENGER, Version
from tasks.stores.site import Site
from tasks.stores.tables import Drift, Finding


@dataclass(frozen=True)
class WatchedNight:
    """A published night, its finding and its statistics. finding: None, and `note` says why, if there is none.

    facts: the version, the challenger and the labels, as texts by name.
    """

    batch_date: date
    finding: Finding | None
    statistics: list[Drift]
    facts: dict[str, str]
    note: str


def read_watched(site: Site, day: date | None = None) -> WatchedNight:
    """What is known of a published night, by default the newest. Raises BatchMissing if it is not published."""
    night = site.warehouse.get_nights(site.detector, day)[-1]
    day = night.batch_date
    found = next((one for one in site.warehouse.read_findings(site.detector, day) if one.batch_date == day), None)
    statistics = site.warehouse.read_drift(site.detector, day, day).get(day, [])
    versions = site.registry.list_versions()
    scorer = next((one for one in versions if one.version == night.model_version), None)
    challenger = next((one for one in versions if CHALLENGER in one.aliases), None)
    facts = describe_version(scorer, challenger, day) | {"labels": describe_labels(site, day)}
    again = f"nightjar score {site.detector} --date {day}"
    note = f"this night was not monitored, or monitor failed: {again} scores and monitors it again"
    if found and found.attempt != night.attempt:
        note = f"attempt {night.attempt} is published, but the finding is of attempt {found.attempt}: {again}"
    elif found:
        note = ""
    return WatchedNight(day, found, statistics, facts, note)


def describe_version(scorer: Version | None, challenger: Version | None, day: date) -> dict[str, str]:
    """The version that scored a night, how long ago its training ended, and the challenger that waits."""
    known = scorer.tags.get("trained_through") if scorer else None
    age = f", trained through {known}, {(day - date.fromisoformat(known)).days} days before" if known else ""
    waiting = f"version {challenger.version} waits" if challenger else "none"
    return {"version": f"{scorer.version if scorer else 'unknown'}{age}", "challenger": waiting}


def describe_labels(site: Site, day: date) -> str:
    """When the labels of a night are complete."""
    return f"complete on {day + timedelta(days=1) + site.label_delay}, {site.label_delay.days} days after the night"


def describe_finding(found: Sequence[Finding], day: date | None) -> str:
    """The finding of a night in one line; "" if it has none."""
    finding = next((one for one in found if one.batch_date == day), None)
    if finding is None:
        return ""
    return " ".join([f"{finding.finding.replace('_', ' ')}.", *finding.evidence[:1], finding.todo]).strip()
