"""When messages wait: quiet hours, and the events of calendars in iCalendar form (RFC 5545).

Windows are [begin, end) of instants, so that a change of clocks neither lengthens nor repeats one. A local time that
the clocks skip is the first instant after the gap, one that occurs twice is the first of the two.
"""

import re
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import model_validator

from models.params import Section
from tasks.errors import SourceInvalid, hide_password

DAY = timedelta(days=1)
MOST_BYTES = 10_000_000
TIMEOUT_S = 10
KEPT = timedelta(minutes=10)
TOO_OFTEN = re.compile(rb"FREQ=(SECONDLY|MINUTELY)", re.IGNORECASE)  # millions of events
MOST_WINDOWS = 1000  # one after another, without a gap between them


class QuietHours(Section):
    """Local hours of every day in which messages wait; `end` before `begin` is on the next day."""

    begin: time
    end: time

    @model_validator(mode="after")
    def _check(self) -> "QuietHours":
        if self.begin == self.end:
            raise ValueError("begin and end must differ")
        if self.begin.tzinfo or self.end.tzinfo:
            raise ValueError("give local times, such as 22:00; alerts.yaml has one time_zone")
        return self


@dataclass(frozen=True)
class Window:
    """A span of time in which messages wait, and why."""

    begin: datetime
    end: datetime
    why: str


def find_instant(day: date, clock: time, zone: ZoneInfo) -> datetime:
    """The instant, in UTC, of a local time of day."""
    return datetime.combine(day, clock, zone).astimezone(UTC)


def find_next(now: datetime, clock: time, zone: ZoneInfo) -> datetime:
    """The first instant after `now` at which clocks show this time of day; in UTC."""
    today = now.astimezone(zone).date()
    return next(at for days in range(3) if (at := find_instant(today + days * DAY, clock, zone)) > now)


def list_quiet(hours: QuietHours, now: datetime, zone: ZoneInfo) -> list[Window]:
    """The quiet hours that begin yesterday, today and tomorrow."""
    today, later = now.astimezone(zone).date(), DAY if hours.end <= hours.begin else timedelta()
    days = [today - DAY, today, today + DAY]
    found = [(find_instant(d, hours.begin, zone), find_instant(d + later, hours.end, zone)) for d in days]
    return [Window(begin, end, "quiet hours") for begin, end in found if begin < end]


def find_free(now: datetime, windows: Iterable[Window]) -> tuple[datetime, str]:
    """The first instant from `now` on that lies in no window, and why it is not `now`; "" if it is."""
    ordered, free, why = sorted(windows, key=lambda window: window.begin), now, ""
    for window in ordered:
        if window.begin <= free < window.end:
            free, why = window.end, why or window.why
    return free, why


def read_calendar(path: str, folder: Path, name: str, now: datetime) -> bytes:
    """The bytes of a calendar: a file, relative to the folder, or an http(s) URL. Raises SourceInvalid.

    name: what errors call it, since a URL may hold a secret. now: a URL is read again after KEPT.
    """
    url = re.sub("^webcal://", "https://", path)
    if url.startswith(("http://", "https://")):
        data, problem = _fetch(url, int(now.timestamp() // KEPT.total_seconds()))
    else:
        data, problem = _read_file(folder / path)
    if problem:
        raise _unreadable(name, problem.replace(path, name).replace(url, name))
    if len(data) > MOST_BYTES:
        raise _unreadable(name, f"more than {MOST_BYTES:,} bytes")
    return data


@lru_cache(maxsize=64)
def _fetch(url: str, period: int) -> tuple[bytes, str]:
    """What a URL answers, or why it does not; the nights of a backfill ask only once in a period."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s) only
            return answer.read(MOST_BYTES + 1), ""
    except HTTPException as error:  # its text may quote the URL
        return b"", type(error).__name__
    except (OSError, ValueError) as error:
        return b"", str(error) or type(error).__name__


def _read_file(path: Path) -> tuple[bytes, str]:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1), ""
    except (OSError, ValueError) as error:
        return b"", str(error)


def list_events(data: bytes, name: str, now: datetime, days: int, zone: ZoneInfo) -> list[Window]:
    """The events of a calendar from a day before `now` on, repeated ones included. Raises SourceInvalid.

    An event of whole days, and one whose times have no zone, goes by the local time of `zone`. Cancelled events, and
    those that are marked as free time, are left out.
    """
    import icalendar
    import recurring_ical_events

    try:
        if found := TOO_OFTEN.search(data):
            raise ValueError(f"an event that repeats {found[1].decode().lower()}")
        calendars = icalendar.Calendar.from_ical(data, multiple=True)
        if not calendars:
            raise ValueError("no calendar in it")
        span = (now - DAY).astimezone(zone), (now + days * DAY).astimezone(zone)
        listed = [one for calendar in calendars for one in recurring_ical_events.of(calendar).between(*span)]
        events = [
            Window(_to_instant(one.start, zone), _to_instant(one.end, zone), str(one.get("SUMMARY") or "calendar"))
            for one in listed
            if one.get("STATUS") != "CANCELLED" and one.get("TRANSP") != "TRANSPARENT"
        ]
    except Exception as error:  # the parser raises what the bytes provoke
        raise _unreadable(name, f"{type(error).__name__}: {error}") from error
    return [event for event in events if event.begin < event.end]


def _to_instant(moment: date | datetime, zone: ZoneInfo) -> datetime:
    if not isinstance(moment, datetime):
        return find_instant(moment, time(), zone)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _unreadable(name: str, got: str) -> SourceInvalid:
    return SourceInvalid(
        "A calendar cannot be read.",
        where=hide_password(name),
        got=" ".join(got.split())[:300],
        expected="an iCalendar file (.ics), as calendars export it",
        todo="correct the path in alerts.yaml, or the file; until then messages are sent as if it had no events",
    )


def find_sending(
    now: datetime, zone: ZoneInfo, quiet: QuietHours | None, events: Sequence[Window]
) -> tuple[datetime, str]:
    """The first instant from `now` on that lies neither in quiet hours nor in an event, and why it is not `now`."""
    free, why = now, ""
    for _ in range(MOST_WINDOWS):
        windows = [*events, *(list_quiet(quiet, free, zone) if quiet else ())]
        later, reason = find_free(free, windows)
        if later == free:
            break
        free, why = later, why or reason
    return free, why
