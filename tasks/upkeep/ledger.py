"""The state of each batch date: fresh, stale, failed, missing or early, from landing, the warehouse and the champion.

The version that should have scored a date is today's champion, or the one that was champion when the night was due.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from tasks.errors import BundleInvalid, ChampionMissing
from tasks.rows.excess import describe_excess, is_excess
from tasks.stores.lake import Lake
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import Attempt, PublishedNight

State = Literal["fresh", "stale", "failed", "missing", "early"]
NEVER_SCORED, NOT_LANDED = "never scored", "nothing has landed"
EARLY = "before the first training, which did not learn from it"


@dataclass(frozen=True)
class BatchState:
    """One batch date. `batch` is its published night, if any; `version` is the one that would score it now.

    `why` is empty if it is fresh, unless too many rows are flagged or the newest attempt failed: the published night
    stays valid.
    """

    batch_date: date
    state: State
    why: str
    batch: PublishedNight | None
    version: int | None


def list_landed_dates(lake: Lake, detector: str) -> list[date]:
    """The dates on which something has landed, in order, including pruned ones.

    Without the first and the last ones if all rows have left them, such as after a change of the rule for times: no day
    between them and the others is due.
    """
    landed, pruned = lake.dates("landing", detector), {*lake.pruned_dates(detector)}
    dates = deque(sorted({*landed, *pruned}))

    def is_left(day: date) -> bool:
        return day not in pruned and not lake.get("landing", detector, day).parts

    while dates and is_left(dates[-1]):
        dates.pop()
    while dates and is_left(dates[0]):
        dates.popleft()
    return list(dates)


def list_left(site: Site, landed: Sequence[date]) -> set[date]:
    """The published dates that all rows have left. landed: see `list_landed_dates`."""
    return {night.batch_date for night in site.warehouse.read_nights(site.detector)}.difference(landed)


def list_due(landed: Sequence[date], learnt: date | None, yesterday: date) -> list[date]:
    """The batch dates after training (`learnt`) up to the newest landed date, including dates that never landed.

    landed: in order. After yesterday only landed dates are listed, since the others are still to come.
    """
    chosen = [day for day in landed if learnt is None or day > learnt]
    if not chosen:
        return []
    first = learnt + timedelta(days=1) if learnt and landed[0] <= learnt else chosen[0]
    days = (min(chosen[-1], yesterday) - first).days + 1
    return sorted({*chosen, *(first + timedelta(days=n) for n in range(days))})


def list_failed(site: Site, learnt: date) -> set[date]:
    """The batch dates after training whose attempt failed, also before a row of them landed.

    A date for which a working source had no rows is left out.
    """
    failed = [attempt for attempt in site.warehouse.read_attempts(site.detector) if attempt.status == "failed"]
    return {a.batch_date for a in failed if a.batch_date > learnt and a.failure and a.failure.error != "BatchMissing"}


def count_days_behind(landed: Sequence[date], yesterday: date) -> int | None:
    """Days from the newest complete landed batch to yesterday; None if none has landed."""
    complete = [day for day in landed if day <= yesterday]
    return (yesterday - max(complete)).days if complete else None


def read_ledger(site: Site, dates: Sequence[date], champion: Version | None) -> list[BatchState]:
    """The state of batch dates, in order, as today's champion should have scored them.

    stale: published, but from other input or by another version. failed: nothing is published, and the newest attempt
    that has ended failed. missing: never published, or nothing has landed. early: as missing, but before the first
    cut-off: no version existed that could have scored it, and it was too young to be learnt.
    """
    return _read(site, dates, dict.fromkeys(dates, champion))


def read_ledger_as_of(site: Site, dates: Sequence[date]) -> list[BatchState]:
    """The state of batch dates, in order, as the champions at the time should have scored them.

    Raises ChampionMissing if some dates had no champion when they were due, at the end of the batch date.
    """
    return _read(site, dates, find_champions(site, dates))


def find_champions(site: Site, dates: Sequence[date]) -> dict[date, Version | None]:
    """For each batch date the version that was champion when the date ended. Raises ChampionMissing."""
    history = site.registry.read_champions()
    versions = {version.version: version for version in site.registry.list_versions()}
    found: dict[date, Version | None] = {}
    for day in dates:
        due = site.start_of(day + timedelta(days=1))
        reigned = [number for since, number in history if since <= due]
        found[day] = versions.get(reigned[-1]) if reigned else None
    reigns = "; ".join(f"version {number} since {since:%Y-%m-%d %H:%M} UTC" for since, number in history)
    if lacking := [day for day, version in found.items() if version is None]:
        raise ChampionMissing(
            f"{len(lacking)} of {len(dates)} dates of {site.detector} had no champion when they were due.",
            where=f"registered model {site.registry.model_name}",
            got=", ".join(map(str, lacking)),
            expected=reigns or "any champion",
            todo="choose later dates, or leave out --as-of to score them with today's champion",
        )
    return found


def _read(site: Site, dates: Sequence[date], scorers: Mapping[date, Version | None]) -> list[BatchState]:
    engine, lake = site.warehouse, site.lake
    published = {batch.batch_date: batch for batch in engine.read_nights(site.detector)}
    # A failed night that is tried again is failed until it is published.
    ended = (attempt for attempt in engine.read_attempts(site.detector) if attempt.status != "running")
    newest = {attempt.batch_date: attempt for attempt in ended}
    inputs, landed = site.hash_inputs(dates), {*lake.dates("landing", site.detector)}
    states = [
        _judge(site, day, day in landed, inputs[day], published.get(day), newest.get(day), scorers[day])
        for day in dates
    ]
    if not any(one.state == "missing" for one in states):
        return states
    cutoff = find_first_cutoff(site)
    return [_forgive(one) if one.state == "missing" and one.batch_date < cutoff else one for one in states]


def _forgive(missing: BatchState) -> BatchState:
    return replace(missing, state="early", why=EARLY if missing.why == NEVER_SCORED else missing.why)


def find_first_cutoff(site: Site) -> date:
    """The earliest cut-off of a registered version, before which no night was due."""
    cutoffs = []
    for version in site.registry.list_versions():
        with suppress(BundleInvalid):  # Nightjar did not register it
            cutoffs.append(version.read_date("cutoff"))
    return min(cutoffs, default=date.min)


def _judge(
    site: Site,
    day: date,
    has_landed: bool,
    input_hash: str | None,
    batch: PublishedNight | None,
    newest: Attempt | None,
    scorer: Version | None,
) -> BatchState:
    version = scorer.version if scorer else None
    failure = newest.failure if newest and newest.status == "failed" else None
    if batch is None:
        why = failure.line if failure else NEVER_SCORED if has_landed else NOT_LANDED
        return BatchState(day, "failed" if failure else "missing", why, None, version)
    reasons = []
    if input_hash is not None and input_hash != batch.input_hash:
        reasons.append("its input has changed")
    elif version is not None and version != batch.model_version:
        reasons.append(f"scored by version {batch.model_version} instead of {version}")
    elif scorer and scorer.registered_at and scorer.registered_at > batch.scored_at:
        reasons.append(f"version {version} was registered again after it was scored")
    state: State = "stale" if reasons else "fresh"
    if batch.model_version == version and scorer and (most := scorer.most_false_alarms):
        night = batch.flagged, batch.scored, most
        if is_excess(*night):
            reasons.append(describe_excess(*night, site.warehouse.read_flags(site.detector, day)["causes"]))
    if failure and newest and newest.attempt > batch.attempt:
        reasons.append(f"the newest attempt failed: {failure.line}")
    return BatchState(day, state, "; ".join(reasons), batch, version)
