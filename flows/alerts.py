"""Tell people what alerts.yaml asks for: after each night, from the freshness watch, and by `nightjar alerts`.

Whatever goes wrong here is reported, and stops no night: a file that is not valid, a calendar or a channel that does
not answer.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from flows.config.alerts import FILE, PREFIX, get_url, load_alerts
from flows.config.params import detector_names
from flows.config.settings import load_settings
from flows.config.setup import Setup, fill_in, prepare_reading
from tasks.errors import NightjarError, ParamsInvalid, ServiceUnreachable, describe_failure
from tasks.follow_up.alerts import Alerts, Fact, count_messages, plan_messages
from tasks.follow_up.calendars import Window, list_events, read_calendar
from tasks.follow_up.channels import check_url, send_message
from tasks.follow_up.deliveries import find_failing, keep_messages, send_due
from tasks.follow_up.facts import read_facts
from tasks.stores.warehouse import Warehouse

LOGGER = logging.getLogger("nightjar.alerts")
LOOK_BACK = timedelta(days=2)  # what became known earlier is no longer news
SCORED_BY = timedelta(hours=4)  # after midnight: when schedules score a night
HORIZON_DAYS = 14  # of the calendars' events


@dataclass
class Told:
    """How many messages are new and how many were sent, and what went wrong, each as one line."""

    new: int = 0
    sent: int = 0
    problems: list[str] = field(default_factory=list)


def tell(names: Iterable[str] | None = None, is_whole: bool = True, is_retry: bool = False) -> Told:
    """Note what is new of these detectors (default: all), and send what is due. Raises nothing.

    is_whole: False for a part of a larger run, which sends the messages of all its parts together at its end. is_retry:
    try again now what failed before.
    """
    told, now = Told(), read_clock()
    try:
        settings = load_settings()
        alerts = load_alerts(settings)
        if alerts is None:
            return told
        events, told.problems = read_events(alerts, now)
        for name in detector_names(settings.project) if names is None else names:
            told.new += _collect(alerts, name, events, now, told.problems)
        if is_whole:
            told.sent, failed = send_due(Warehouse(settings.warehouse_url), send_to_channel, read_clock, is_retry)
            told.problems += failed
    except Exception as error:  # noqa: BLE001 - a night that is published must not fail because nobody can be told
        told.problems.append(describe(error))
    if told.problems:
        _log(told.problems)
    return told


def read_clock() -> datetime:
    """The current instant."""
    return datetime.now(UTC)


def _log(problems: list[str]) -> None:
    from prefect import get_run_logger  # takes long to import, and is needed by flows only
    from prefect.context import FlowRunContext

    logger = get_run_logger() if FlowRunContext.get() else LOGGER
    for problem in problems:
        logger.warning("alerts: %s", problem)


def describe(error: Exception) -> str:
    """An error in one line, whole if it is one of ours."""
    return " ".join(str(error).split()) if isinstance(error, NightjarError) else describe_failure(error).line


def _collect(alerts: Alerts, name: str, events: Mapping[str, list[Window]], now: datetime, problems: list[str]) -> int:
    try:
        setup = prepare_reading(name)
        news = read_setup_facts(setup, now - LOOK_BACK, now)
        return keep_messages(setup.site.warehouse, plan_messages(alerts, news, events, now))
    except Exception as error:  # noqa: BLE001 - one detector must not silence the others
        problems.append(f"{name}: {describe(error)}")
        return 0


def read_setup_facts(setup: Setup, since: datetime, now: datetime) -> list[Fact]:
    """The news of a detector; a night of it may be late if it runs every night."""
    return read_facts(setup.site, since, now, setup.configured.detector.run.every_night)


def replay_facts(setup: Setup, nights: int, now: datetime) -> list[Fact]:
    """The facts of a detector's last nights, as if each had been scored when it was due."""
    facts = read_setup_facts(setup, datetime.min.replace(tzinfo=UTC), now)
    days = sorted({fact.day for fact in facts})[-nights:]
    due = {day: setup.site.start_of(day + timedelta(days=1)) + SCORED_BY for day in days}
    return [
        replace(fact, at=fact.at if fact.kind == "night_late" else due[fact.day]) for fact in facts if fact.day in due
    ]


def read_events(alerts: Alerts, now: datetime, days: int = HORIZON_DAYS) -> tuple[dict[str, list[Window]], list[str]]:
    """The events of each channel's calendars; those that cannot be read hold back nothing, and are named."""
    events: dict[str, list[Window]] = {}
    problems: list[str] = []
    for name, channel in alerts.channels.items():
        for path in channel.calendars if channel else ():
            try:
                url = fill_in(path, os.environ) if "://" in path else path
                data = read_calendar(url, load_settings().project, path, read_clock())
                events.setdefault(name, []).extend(list_events(data, path, now, days, alerts.zone))
            except NightjarError as error:
                problems.append(f"channel {name}: {describe(error)}")
    return events, problems


def send_to_channel(name: str, title: str, body: str) -> str:
    """Send one message; returns why it failed, or ""."""
    try:
        url = get_url(name)
    except NightjarError as error:
        return error.what
    return send_message(url, title, body)


def preview(nights: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What each rule would have sent in the last nights: facts, messages, held; and what could not be read.

    Raises ParamsInvalid.
    """
    settings, now = load_settings(), datetime.now(UTC)
    alerts = load_alerts(settings)
    if alerts is None:
        return {}, []
    facts: list[Fact] = []
    problems: list[str] = []
    for name in detector_names(settings.project):
        try:
            facts += replay_facts(prepare_reading(name), nights, now)
        except NightjarError as error:
            problems.append(f"{name}: {describe(error)}")
    counts, unread = count_by_rule(alerts, facts, now)
    return counts, problems + unread + alerts.list_snoozes(now)


def count_by_rule(alerts: Alerts, facts: Sequence[Fact], now: datetime) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What each rule would have sent about these facts: facts, messages, held; and which calendars cannot be read."""
    first = min((fact.at for fact in facts), default=now)
    events, unread = read_events(alerts, first, (now - first).days + HORIZON_DAYS)
    counts = count_messages(plan_messages(alerts.without_snoozes(), facts, events))
    empty = {"facts": 0, "messages": 0, "held": 0}
    return {rule: counts.get(rule, empty) for rule in alerts.rules}, unread


def find_zone() -> ZoneInfo:
    """The time zone of alerts.yaml; UTC without a valid one."""
    with suppress(NightjarError):
        if alerts := load_alerts(load_settings()):
            return alerts.zone
    return ZoneInfo("UTC")


def list_problems() -> list[str]:
    """What keeps people from being told: an alerts.yaml that is not valid, and channels that took no message."""
    settings = load_settings()
    return [*_try(lambda: read_events(alerts, datetime.now(UTC))[1] if (alerts := load_alerts(settings)) else []),
            *_try(lambda: find_failing(Warehouse(settings.warehouse_url)))]  # fmt: skip


def _try(look: Callable[[], list[str]]) -> list[str]:
    try:
        return look()
    except NightjarError as error:
        return [describe(error)]


def test_channel(name: str) -> None:
    """Send a message to a channel. Raises ParamsInvalid, or ServiceUnreachable if it does not take it."""
    alerts = load_alerts(load_settings())
    if alerts is None or name not in alerts.channels:
        raise ParamsInvalid(
            f"The channel {name!r} does not exist.",
            where=FILE,
            expected=", ".join(alerts.channels) if alerts else "a file of this name in the project's folder",
            todo="use one of these names, or add it: docs/alerts.md",
        )
    url = get_url(name)
    check_url(name, url)
    if reason := send_message(url, "nightjar: a test", f"nightjar alerts test {name}"):
        raise ServiceUnreachable(
            f"Channel {name} did not take the message.",
            where=f"{PREFIX}{name.upper()}",
            got=reason,
            todo="check the address and the service",
        )
