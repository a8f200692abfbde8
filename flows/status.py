"""`nightjar status`: the nights of one detector, or one line per detector; a broken one does not hide the others."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from flows.config.params import detector_names
from flows.config.settings import load_settings
from flows.config.setup import Setup, load_setup, prepare_reading
from tasks.errors import NightjarError, describe_failure
from tasks.follow_up.facts import DUE_BY
from tasks.on_demand.cases import OpenCases, count_open
from tasks.on_demand.findings import describe_finding
from tasks.stores.registry import CHALLENGER, DECISION, Version
from tasks.stores.site import Site
from tasks.upkeep.ledger import (
    BatchState,
    State,
    count_days_behind,
    list_due,
    list_failed,
    list_landed_dates,
    list_left,
    read_ledger,
    read_ledger_as_of,
)
from tasks.upkeep.nights import Cell, list_cells


@dataclass(frozen=True)
class Waiting:
    """The challenger, and the nights that it has scored in shadow; of those, flags per night of both; None without."""

    version: int
    nights: list[date]
    flags_per_night: float | None
    champions_flags_per_night: float | None
    decision: str  # of the last promotion that was tried


@dataclass(frozen=True)
class Status:
    """The nights of a detector after the champion's training data.

    `finding`: what monitor says of the newest published night, in one line; "" if it has not seen it.
    `days_behind`: how many days before yesterday the newest landed batch is; None if the source has a last date or no
    times, or nothing has landed. `outdated`: what has changed since the champion was trained, and the command; "" if
    nothing has.
    """

    detector: str
    champion: int | None
    nights: list[BatchState]
    newest_landed: date | None
    days_behind: int | None
    outdated: str
    challenger: Waiting | None
    finding: str = ""
    cases: OpenCases | None = None


@dataclass(frozen=True)
class StatusLine:
    """A detector in one line: champion, newest published night, nights by state, or its error.

    nights: those that are counted.
    """

    detector: str
    champion: int | None
    newest_night: date | None
    days_behind: int | None
    counts: dict[State, int]
    error: str | None
    nights: tuple[BatchState, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Its row in a table of detectors."""
        names = ("detector", "champion", "newest_night", "days_behind", "error")
        return {name: getattr(self, name) for name in names} | self.counts


def read_status(name: str) -> Status:
    """The state of every due batch date, and how far behind the source is. Raises NightjarError."""
    return read_nights(prepare_reading(name))


def read_nights(setup: Setup) -> Status:
    """The same for a loaded detector, without changing any store."""
    site, champion = setup.site, setup.site.registry.find_version()
    name = site.detector
    landed, yesterday = list_landed_dates(site.lake, name), setup.yesterday()
    nights = read_due(setup, champion, landed)
    is_bounded = setup.configured.detector.run.last_date is not None or not site.has_times
    behind = None if is_bounded else count_days_behind(landed, yesterday)
    newest, outdated = landed[-1] if landed else None, setup.changes_since(champion) if champion else ""
    published = max((night.batch_date for night in nights if night.batch), default=None)
    finding = describe_finding(site.warehouse.read_findings(name), published)
    number, challenger = champion.version if champion else None, read_challenger(site)
    shown = finding and f"{published}: {finding}"
    cases = count_open(site, datetime.now(UTC))
    return Status(name, number, nights, newest, behind, outdated, challenger, shown, cases)


def read_due(setup: Setup, champion: Version | None, landed: Sequence[date]) -> list[BatchState]:
    """The states of the batch dates after the champion's training data. landed: all dates that have, in order."""
    site, learnt = setup.site, champion.trained_through if champion else None
    left = {day for day in list_left(site, landed) if learnt is None or day > learnt}
    due = {*list_due(landed, learnt, setup.yesterday()), *list_failed(site, learnt or date.min), *left}
    return read_ledger(site, sorted(due), champion)


def read_calendar(setup: Setup, now: datetime) -> list[Cell]:
    """A cell of the calendar per date that has landed, is published or is due, in order."""
    site, champion = setup.site, setup.site.registry.find_version()
    landed = list_landed_dates(site.lake, site.detector)
    learnt = champion.trained_through if champion else None
    due = read_due(setup, champion, landed)
    late = list_late_dates(setup, landed, now) - {night.batch_date for night in due}
    return list_cells(site, [*due, *read_ledger(site, sorted(late), champion)], landed, learnt, now)


def list_late_dates(setup: Setup, landed: Sequence[date], now: datetime) -> set[date]:
    """The dates since the newest landed one that should have been published by now, if a night is due every day."""
    run = setup.configured.detector.run
    if not landed or not run.every_night or run.last_date is not None or not setup.site.has_times:
        return set()
    days = (setup.yesterday(now - DUE_BY) - landed[-1]).days
    return {landed[-1] + timedelta(days=n) for n in range(1, days + 1)}


def read_challenger(site: Site) -> Waiting | None:
    """The challenger, if there is one, and what it makes of the published nights that it has scored in shadow."""
    challenger = site.registry.find_version(CHALLENGER)
    if challenger is None:
        return None
    published = {night.batch_date: night for night in site.warehouse.read_nights(site.detector)}
    shadow = site.lake.scored_by(site.detector, site.registry.check_tags(challenger), challenger.trained_through)
    both = {one.batch_date: (one.facts["flagged"], published[one.batch_date].flagged) for one in shadow
            if one.batch_date in published}  # fmt: skip
    mine, champions = (sum(flags) / len(both) for flags in zip(*both.values(), strict=True)) if both else (None, None)
    return Waiting(challenger.version, list(both), mine, champions, challenger.tags.get(DECISION, ""))


def read_lines(project: Path) -> list[StatusLine]:
    """One line per detector of params.yaml."""
    return [read_line(name) for name in detector_names(project)]


def read_line(name: str) -> StatusLine:
    """A detector's line; an error becomes part of it."""
    states: tuple[State, ...] = get_args(State)
    try:
        status = read_status(name)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one detector, the others are shown
        return StatusLine(name, None, None, None, dict.fromkeys(states, 0), describe_failure(error).line)
    found = Counter(night.state for night in status.nights)
    published = [night.batch_date for night in status.nights if night.batch]
    counts = {state: found[state] for state in states}
    newest = max(published, default=None)
    return StatusLine(name, status.champion, newest, status.days_behind, counts, None, tuple(status.nights))


Only = Literal["all", "unpublished", "missing", "failed", "stale"]  # unpublished: missing, failed or early


@dataclass(frozen=True)
class Plan:
    """The nights to score, the number of landed dates in the range, the dates without data, and the learnt ones.

    learnt: landed dates that the champion has learnt from, which it would refuse to score.
    """

    nights: list[BatchState]
    landed: int
    not_landed: list[date]
    learnt: list[date]

    @property
    def dates(self) -> list[date]:
        """The dates to score."""
        return [night.batch_date for night in self.nights]

    @property
    def versions(self) -> list[int]:
        """The version that scores each date; complete only in an as_of plan."""
        return [night.version for night in self.nights if night.version is not None]


def make_plan(name: str, first: date, last: date, only: Only, as_of: bool) -> Plan:
    """Plan a range of batch dates: all, only the unpublished ones, or only those in one state.

    Raises ChampionMissing if, with as_of, a date had no champion.
    """
    setup = prepare_reading(name)
    site, known = setup.site, list_landed_dates(setup.site.lake, name)
    landed = site.lake.dates("landing", name)
    due = {*list_due(known, None, setup.yesterday()), *list_left(site, known)}
    asked = [day for day in sorted(due) if first <= day <= last]
    found = [day for day in asked if day in landed]
    champion = site.registry.find_version()
    learnt = [day for day in found if champion and not as_of and day <= champion.trained_through]
    wanted = [day for day in found if day not in learnt]
    ledger = read_ledger_as_of(site, wanted) if as_of else read_ledger(site, wanted, champion)
    chosen = {"all": get_args(State), "unpublished": ("missing", "failed", "early")}.get(only, (only,))
    nights = [night for night in ledger if night.state in chosen]
    return Plan(nights, len(found), [day for day in asked if day not in known and day not in landed], learnt)


def list_in_service(time_zone: str | None = None) -> Iterator[str]:
    """The detectors that run every night and have a registered version; of one time zone, if it is given.

    A detector that cannot be loaded is included, so that its run reports the error.
    """
    for name in detector_names(load_settings().project):
        is_in_service = True
        with suppress(NightjarError):
            setup = load_setup(name)
            is_meant = setup.configured.detector.run.every_night and time_zone in (None, setup.site.time_zone)
            is_in_service = is_meant and bool(setup.site.registry.list_versions())
        if is_in_service:
            yield name
