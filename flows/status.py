"""`nightjar status`: the nights of one detector, or a line for each of them; a broken one does not hide the others."""

from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import get_args

from flows.params import detector_names
from flows.setup import Setup, prepare
from tasks.errors import NightjarError
from tasks.ledger import NightState, State, count_days_behind, list_due, list_landed_dates, read_ledger
from tasks.tracking import find_version


@dataclass(frozen=True)
class Status:
    """The nights of a detector after those its champion learnt from.

    `days_behind`: how many days before yesterday the newest landed batch is; None where the source has a last date, or
    nothing has landed.
    """

    detector: str
    champion: int | None
    nights: list[NightState]
    newest_landed: date | None
    days_behind: int | None


@dataclass(frozen=True)
class StatusLine:
    """A detector in one line: its champion, its newest published night, nights by state; or what is wrong with it."""

    detector: str
    champion: int | None
    newest_night: date | None
    days_behind: int | None
    counts: dict[State, int]
    error: str | None


def read_status(name: str) -> Status:
    """The state of every batch date that is due, and how far behind the source is. Raises ParamsInvalid and others."""
    return read_nights(prepare(name))


def read_nights(setup: Setup) -> Status:
    """The same of a detector that is loaded already, without a change to any store."""
    site, champion = setup.site, find_version(setup.site)
    name = site.detector
    learnt = date.fromisoformat(champion.tags["trained_through"]) if champion else None
    landed, yesterday = list_landed_dates(site.lake, name), setup.yesterday()
    nights = read_ledger(site, list_due(landed, learnt, yesterday), champion)
    is_bounded = setup.configured.detector.run.last_date is not None
    behind = None if is_bounded else count_days_behind(landed, yesterday)
    return Status(name, champion.version if champion else None, nights, landed[-1] if landed else None, behind)


def read_lines(project: Path) -> list[StatusLine]:
    """One line for each detector of params.yaml."""
    return [read_line(name) for name in detector_names(project)]


def read_line(name: str) -> StatusLine:
    """A detector's line; its error stands in it."""
    states: tuple[State, ...] = get_args(State)
    try:
        status = read_status(name)
    except NightjarError as error:
        return StatusLine(name, None, None, None, dict.fromkeys(states, 0), str(error))
    found = Counter(night.state for night in status.nights)
    published = [night.batch_date for night in status.nights if night.batch]
    counts = {state: found[state] for state in states}
    return StatusLine(name, status.champion, max(published, default=None), status.days_behind, counts, None)
