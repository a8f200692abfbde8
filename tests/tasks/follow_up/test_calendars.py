import functools
import io
from datetime import UTC, datetime, time, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import SourceInvalid
from tasks.follow_up.calendars import (
    QuietHours,
    Window,
    find_free,
    find_next,
    find_sending,
    list_events,
    list_quiet,
    read_calendar,
)

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC", "Pacific/Apia")
CLOCKS = st.times(timezones=st.none()).map(lambda clock: clock.replace(microsecond=0, fold=0))
INSTANTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))


def at(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


def quiet(begin: str, end: str) -> QuietHours:
    return QuietHours(begin=time.fromisoformat(begin), end=time.fromisoformat(end))


@pytest.mark.parametrize(
    ("hours", "now", "free"),
    [
        (("22:00", "07:00"), "2026-03-02T21:59:59", "2026-03-02T21:59:59"),
        (("22:00", "07:00"), "2026-03-02T22:00", "2026-03-03T07:00"),
        (("22:00", "07:00"), "2026-03-03T06:59:59", "2026-03-03T07:00"),
        (("22:00", "07:00"), "2026-03-03T07:00", "2026-03-03T07:00"),
        (("12:00", "13:30"), "2026-03-03T12:30", "2026-03-03T13:30"),
        (("12:00", "13:30"), "2026-03-03T11:30", "2026-03-03T11:30"),
        (("00:00", "07:00"), "2026-03-03T00:00", "2026-03-03T07:00"),
        (("18:00", "00:00"), "2026-03-03T23:00", "2026-03-04T00:00"),
        # Clocks go forward at 2 on 29 March 2026: 02:30 is not shown, and the night is an hour shorter.
        (("22:00", "07:00"), "2026-03-29T03:30", "2026-03-29T07:00"),
        (("22:00", "02:30"), "2026-03-29T01:30", "2026-03-29T03:30"),
        (("02:00", "03:00"), "2026-03-29T03:00", "2026-03-29T03:00"),
        # Clocks go back at 3 on 25 October 2026: 02:30 is shown twice, and the first of them counts.
        (("22:00", "07:00"), "2026-10-25T02:30", "2026-10-25T07:00"),
        (("22:00", "02:30"), "2026-10-25T02:15", "2026-10-25T02:30"),
    ],
)
def test_messages_wait_for_the_end_of_quiet_hours(hours: tuple[str, str], now: str, free: str) -> None:
    found, why = find_sending(at(now), BERLIN, quiet(*hours), ())
    assert found == at(free)
    assert why == ("quiet hours" if at(free) > at(now) else "")


def test_after_the_first_half_past_two_the_second_is_not_quiet_again() -> None:
    second = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15, an hour after the first 02:15
    assert find_sending(second, BERLIN, quiet("22:00", "02:30"), ()) == (second, "")


@given(INSTANTS, CLOCKS, CLOCKS, st.sampled_from(ZONES), st.lists(st.tuples(INSTANTS, st.integers(1, 40)), max_size=5))
def test_a_message_leaves_at_the_first_free_instant(
    now: datetime, begin: time, end: time, name: str, events: list[tuple[datetime, int]]
) -> None:
    zone, hours = ZoneInfo(name), QuietHours(begin=begin, end=end) if begin != end else None
    windows = [Window(first, first + timedelta(hours=long), "an event") for first, long in events]

    def is_free(instant: datetime) -> bool:
        every = [*windows, *(list_quiet(hours, instant, zone) if hours else ())]
        return not any(window.begin <= instant < window.end for window in every)

    free, why = find_sending(now, zone, hours, windows)
    assert free >= now
    assert is_free(free)
    assert (why == "") == (free == now) == is_free(now)
    steps = range(0, int((free - now).total_seconds()), 900)
    assert not any(is_free(now + timedelta(seconds=step)) for step in steps)


@given(INSTANTS, CLOCKS, CLOCKS, st.sampled_from(ZONES))
def test_quiet_hours_are_the_hours_that_clocks_show(now: datetime, begin: time, end: time, name: str) -> None:
    zone = ZoneInfo(name)
    if begin == end:
        return
    shown = now.astimezone(zone).time()
    is_quiet = begin <= shown < end if begin < end else shown >= begin or shown < end
    found = any(w.begin <= now < w.end for w in list_quiet(QuietHours(begin=begin, end=end), now, zone))
    near = [now + timedelta(hours=step) for step in range(-26, 27)]
    if len({instant.astimezone(zone).utcoffset() for instant in near}) == 1:  # clocks do not change
        assert found == is_quiet


@given(INSTANTS, CLOCKS, st.sampled_from(ZONES))
def test_the_next_digest_is_within_a_day_and_an_hour_or_two_and_shows_its_time(
    now: datetime, clock: time, name: str
) -> None:
    zone = ZoneInfo(name)
    found = find_next(now, clock, zone)
    assert now < found <= now + timedelta(hours=26)
    shown = found.astimezone(zone)
    if shown.time() != clock:  # the clocks skip it
        assert (found - timedelta(hours=3)).astimezone(zone).utcoffset() != shown.utcoffset()


ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//tests//EN
BEGIN:VTIMEZONE
TZID:Europe/Berlin
BEGIN:STANDARD
DTSTART:19961027T030000
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
END:STANDARD
BEGIN:DAYLIGHT
DTSTART:19810329T020000
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
END:DAYLIGHT
END:VTIMEZONE
{}
END:VCALENDAR
"""
EVENT = "BEGIN:VEVENT\nUID:{uid}\nSUMMARY:{what}\n{when}\nEND:VEVENT"


def make_calendar(*events: str) -> bytes:
    text = ICS.format("\n".join(EVENT.format(uid=n, what=f"event {n}", when=when) for n, when in enumerate(events)))
    return text.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            "DTSTART;TZID=Europe/Berlin:20260302T090000\nDTEND;TZID=Europe/Berlin:20260302T100000",
            [("2026-03-02T09:00", "2026-03-02T10:00")],
        ),
        ("DTSTART:20260302T080000Z\nDURATION:PT2H", [("2026-03-02T09:00", "2026-03-02T11:00")]),
        ("DTSTART:20260302T090000\nDTEND:20260302T100000", [("2026-03-02T09:00", "2026-03-02T10:00")]),
        ("DTSTART;VALUE=DATE:20260303\nDTEND;VALUE=DATE:20260305", [("2026-03-03T00:00", "2026-03-05T00:00")]),
        ("DTSTART;VALUE=DATE:20260303", [("2026-03-03T00:00", "2026-03-04T00:00")]),
        # Every Monday at nine, by the clocks of Berlin, which change on 29 March; not on 9 March.
        (
            "DTSTART;TZID=Europe/Berlin:20250106T090000\nDURATION:PT1H\nRRULE:FREQ=WEEKLY;BYDAY=MO\n"
            "EXDATE;TZID=Europe/Berlin:20260309T090000",
            [(f"2026-{day}T09:00", f"2026-{day}T10:00") for day in ("03-02", "03-16", "03-23", "03-30")],
        ),
        # A freeze of two months that began long before.
        ("DTSTART;VALUE=DATE:20260101\nDTEND;VALUE=DATE:20260501", [("2026-01-01T00:00", "2026-05-01T00:00")]),
        ("DTSTART:20260302T080000Z\nDURATION:PT2H\nSTATUS:CANCELLED", []),
        ("DTSTART:20260302T080000Z\nDURATION:PT2H\nTRANSP:TRANSPARENT", []),
        ("DTSTART:20260302T080000Z", []),
        ("DTSTART:20250302T080000Z\nDURATION:PT2H", []),
    ],
)
def test_events_of_a_calendar_are_instants(event: str, expected: list[tuple[str, str]]) -> None:
    now = at("2026-03-02T00:00")
    found = list_events(make_calendar(event), "team.ics", now, 30, BERLIN)
    assert [(one.begin, one.end) for one in sorted(found, key=lambda one: one.begin)] == [
        (at(begin), at(end)) for begin, end in expected
    ]
    assert all(one.why == "event 0" for one in found)


def test_events_that_touch_hold_a_message_until_the_last_has_ended() -> None:
    hours = [Window(at(f"2026-03-02T{n:02d}:00"), at(f"2026-03-02T{n + 1:02d}:00"), f"{n}") for n in (9, 11, 10)]
    assert find_free(at("2026-03-02T09:30"), hours) == (at("2026-03-02T12:00"), "9")
    assert find_sending(at("2026-03-02T06:00"), BERLIN, quiet("22:00", "09:00"), hours)[0] == at("2026-03-02T12:00")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a calendar",
        b"<html>log in</html>",
        b"\xff\xfe\x00",
        make_calendar("DTSTART:20260302T080000Z")[:-20],
        make_calendar("DTSTART:yesterday"),
        make_calendar("DTSTART:20260302T080000Z\nRRULE:FREQ=OFTEN"),
        make_calendar("SUMMARY:an event without a time"),
        make_calendar("DTSTART:20260101T000000Z\nDURATION:PT1S\nRRULE:FREQ=SECONDLY"),
    ],
)
def test_a_calendar_that_cannot_be_read_is_an_error_that_names_it(data: bytes) -> None:
    with pytest.raises(SourceInvalid, match=r"A calendar cannot be read\.\n  where: team\.ics"):
        list_events(data, "team.ics", at("2026-03-02T00:00"), 30, BERLIN)


def test_a_calendar_that_is_missing_or_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceInvalid, match=r"A calendar cannot be read(.|\n)*No such file"):
        read_calendar("team.ics", tmp_path, "team.ics", NOW)
    (tmp_path / "team.ics").write_bytes(make_calendar())
    assert read_calendar("team.ics", tmp_path, "team.ics", NOW) == make_calendar()
    monkeypatch.setattr("tasks.follow_up.calendars.MOST_BYTES", 10)
    with pytest.raises(SourceInvalid, match="more than 10 bytes"):
        read_calendar("team.ics", tmp_path, "team.ics", NOW)
    with pytest.raises(SourceInvalid, match=r"where: http://127\.0\.0\.1"):
        read_calendar("http://127.0.0.1:1/sesame7f", tmp_path, "http://127.0.0.1:1/${KEY}", NOW)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: ICS.format(text).encode()))
def test_any_bytes_are_events_or_an_error_that_names_the_calendar(data: bytes) -> None:
    try:
        found = list_events(data, "team.ics", at("2026-03-02T00:00"), 30, BERLIN)
    except SourceInvalid as error:
        assert "team.ics" in str(error)
        return
    assert all(window.begin < window.end for window in found)


@pytest.mark.parametrize("status", ["ICY nonsense", "HTTP/1.1 404 Not Found"])
def test_a_calendar_on_the_web_is_read_or_named_without_its_secret(tmp_path: Path, status: str) -> None:
    (tmp_path / "sesame7f.ics").write_bytes(make_calendar())
    handler = functools.partial(_Files, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        place = f"http://127.0.0.1:{server.server_port}"
        try:
            assert read_calendar(f"{place}/sesame7f.ics", tmp_path, "${KEY}", NOW) == make_calendar()
            _Files.status = status
            for path in ("sesame7f.ics", "sesame7f ics"):
                with pytest.raises(SourceInvalid, match=r"where: \$\{KEY\}") as refused:
                    read_calendar(f"{place}/{path}", tmp_path, "${KEY}", NOW + timedelta(hours=1))
                assert "sesame7f" not in str(refused.value)
        finally:
            _Files.status = ""
            server.shutdown()
            thread.join()


class _Files(SimpleHTTPRequestHandler):
    status = ""

    def do_GET(self) -> None:
        if self.status:
            self.wfile.write(f"{self.status}\r\n\r\n".encode())
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


def test_a_calendar_at_a_url_is_read_once_in_a_while_also_if_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if "down" in url:
            raise OSError("no route to the host")
        return io.BytesIO(f"answer {len(asked)}".encode())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    now = datetime(2026, 3, 2, 4, tzinfo=UTC)
    for _ in range(5):
        assert read_calendar("webcal://calendars.test/one.ics", tmp_path, "one", now) == b"answer 1"
        with pytest.raises(SourceInvalid, match="no route to the host"):
            read_calendar("http://calendars.test/down.ics", tmp_path, "down", now)
    assert asked == ["https://calendars.test/one.ics", "http://calendars.test/down.ics"]
    later = now + timedelta(minutes=11)
    assert read_calendar("webcal://calendars.test/one.ics", tmp_path, "one", later) == b"answer 3"
