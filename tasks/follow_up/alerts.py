"""alerts.yaml: whom to notify about what. In: facts of the nights. Out: a message per rule, fact and channel, and when.

A fact is something that happened to a night or a case; `about` names it, and a rule notifies a channel about it once.
Nothing here reads a table or sends anything.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from models.params import Section
from tasks.follow_up.calendars import QuietHours, Window, find_next, find_sending
from tasks.rows.params import SEVERITIES, Severity, known_zone

Finding = Literal["data_broke", "world_changed", "attack"]
DATE = re.compile(r"\d{4}-\d\d-\d\d")
NAME = r"^[a-z][a-z0-9_]{0,39}$"
Name = Annotated[str, Field(pattern=NAME)]
MOST_LISTED = 50  # of the facts in one message


def _read_moment(text: object) -> object:
    """A date alone is its first moment."""
    if not isinstance(text, str):
        raise ValueError("give a date and a time, such as 2026-12-01T22:00")
    return f"{text}T00:00" if DATE.fullmatch(text) else text


Moment = Annotated[datetime, Field(strict=False), BeforeValidator(_read_moment)]


@dataclass(frozen=True)
class Fact:
    """What happened, when it became known, and what a rule may ask about it.

    day: the batch date; of a case, that of its first flag. number: a night's alerts, or its smallest canary recall.
    beyond: flags that score.max_alerts left out, or canaries below their bound. records: the published values of a
    case's flags.
    """

    kind: str
    detector: str
    about: str
    day: date
    at: datetime
    title: str
    body: str
    number: float = 0.0
    beyond: int = 0
    finding: str = ""
    severity: str = ""
    records: Sequence[Mapping[str, Any]] = field(default=())


class _Rule(Section):
    """What every rule has. `detectors`: none means all. A digest goes out at the local time `at`."""

    channels: Annotated[tuple[Name, ...], Field(min_length=1)]
    detectors: tuple[str, ...] = ()
    send: Literal["at_once", "digest"] = "at_once"
    at: time | None = None
    urgent: bool = False  # does not wait for the end of quiet hours or of a calendar's event
    snoozed_until: Moment | None = None

    @model_validator(mode="after")
    def _check_digest(self) -> "_Rule":
        if (self.send == "digest") != (self.at is not None):
            raise ValueError("a digest, and only a digest, needs `at`, such as 08:00")
        if self.at and self.at.tzinfo:
            raise ValueError("give a local time, such as 08:00; alerts.yaml has one time_zone")
        return self


class NightRule(_Rule):
    """A night that failed, was rejected by its contract, was not published by six in the morning, or recovered."""

    on: Literal["night_failed", "night_rejected", "night_late", "night_recovered"]

    def accepts(self, fact: Fact) -> bool:
        """Whether the rule reports a fact of its kind."""
        return True


class DriftRule(_Rule):
    """What `monitor` found in a night."""

    on: Literal["drifted"]
    findings: Annotated[tuple[Finding, ...], Field(min_length=1)] = ("data_broke", "world_changed", "attack")

    def accepts(self, fact: Fact) -> bool:
        """Whether the rule reports a fact of its kind."""
        return fact.finding in self.findings


class BudgetRule(_Rule):
    """A night with more alerts than `max_alerts`, or of which score.max_alerts left some out."""

    on: Literal["over_budget"]
    max_alerts: int | None = Field(default=None, ge=0)

    def accepts(self, fact: Fact) -> bool:
        """Whether the rule reports a fact of its kind."""
        return fact.beyond > 0 or (self.max_alerts is not None and fact.number > self.max_alerts)


class CanaryRule(_Rule):
    """A night in which a smaller share than `below` of a canary's rows was found, or than its bound in `drift`."""

    on: Literal["canary_recall"]
    below: float | None = Field(default=None, gt=0, le=1)

    def accepts(self, fact: Fact) -> bool:
        """Whether the rule reports a fact of its kind."""
        return fact.beyond > 0 if self.below is None else fact.number < self.below


class Range(Section):
    """Numbers from `least` to `most`, both included."""

    least: float | None = None
    most: float | None = None

    def accepts(self, value: object) -> bool:
        """Whether a published value lies in it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


class CaseRule(_Rule):
    """An open case of this severity or a higher one; `where`: at least one of its flags has all of these values."""

    on: Literal["case"]
    severity: Severity = "low"
    where: dict[str, Range | tuple[str | bool | int | float, ...]] = Field(default={})

    def accepts(self, fact: Fact) -> bool:
        """Whether the rule reports a fact of its kind."""
        if SEVERITIES.index(fact.severity) < SEVERITIES.index(self.severity):
            return False
        return not self.where or any(all(self._has(record, name) for name in self.where) for record in fact.records)

    def _has(self, record: Mapping[str, Any], name: str) -> bool:
        wanted, value = self.where[name], record.get(name)
        return wanted.accepts(value) if isinstance(wanted, Range) else value in wanted


Rule = Annotated[NightRule | DriftRule | BudgetRule | CanaryRule | CaseRule, Field(discriminator="on")]


class ChannelParams(Section):
    """When a channel's messages wait. Its address is a secret: see NIGHTJAR_CHANNEL_... in docs/settings.md."""

    quiet: QuietHours | None = None
    calendars: tuple[str, ...] = ()  # files or URLs in iCalendar form


class Maintenance(Section):
    """Planned work: events in this period send no notification. `detectors`: none means all."""

    begin: Moment
    end: Moment
    reason: str = "maintenance"
    detectors: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Maintenance":
        if (self.begin.tzinfo is None) != (self.end.tzinfo is None) or self.begin >= self.end:
            raise ValueError("begin must be before end, both with an offset or both without")
        return self


class Alerts(Section):
    """alerts.yaml: channels, the rules that use them, and planned work. Times without an offset are of `time_zone`."""

    time_zone: Annotated[str, AfterValidator(known_zone)] = "UTC"
    channels: dict[Name, ChannelParams | None]
    rules: dict[Name, Rule]
    maintenance: tuple[Maintenance, ...] = ()

    @model_validator(mode="after")
    def _check_channels(self) -> "Alerts":
        for name, rule in self.rules.items():
            if unknown := [channel for channel in rule.channels if channel not in self.channels]:
                known = ", ".join(self.channels) or "none"
                raise ValueError(f"rule {name} uses the unknown channel {unknown[0]} (known: {known})")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of quiet hours, digests, snoozes and maintenance."""
        return ZoneInfo(self.time_zone)

    def without_snoozes(self) -> "Alerts":
        """The same without snoozes, which are of today and not of the nights before."""
        awake = {name: rule.model_copy(update={"snoozed_until": None}) for name, rule in self.rules.items()}
        return self.model_copy(update={"rules": awake})

    def list_snoozes(self, now: datetime) -> list[str]:
        """One sentence per rule that is snoozed now."""
        found = {name: self._in_zone(rule.snoozed_until) for name, rule in self.rules.items() if rule.snoozed_until}
        return [f"rule {name} is snoozed until {until:%Y-%m-%d %H:%M}" for name, until in found.items() if now < until]

    def find_mute(self, rule: Rule, fact: Fact) -> str:
        """Why a fact sends no notification; empty if it does."""
        until = rule.snoozed_until and self._in_zone(rule.snoozed_until)
        if until and fact.at < until:
            return f"snoozed until {until:%Y-%m-%d %H:%M}"
        for work in self.maintenance:
            if fact.detector in (work.detectors or (fact.detector,)) and self._covers(work, fact.at):
                return f"maintenance: {work.reason}"
        return ""

    def _covers(self, work: Maintenance, at: datetime) -> bool:
        return self._in_zone(work.begin) <= at < self._in_zone(work.end)

    def _in_zone(self, moment: datetime) -> datetime:
        return moment if moment.tzinfo else moment.replace(tzinfo=self.zone)


@dataclass(frozen=True)
class Planned:
    """One message of a rule about a fact to a channel. due_at None: it is held back for good; `reason` says why."""

    rule: str
    channel: str
    fact: Fact
    due_at: datetime | None
    reason: str = ""


def plan_messages(
    alerts: Alerts, facts: Iterable[Fact], events: Mapping[str, Sequence[Window]], now: datetime | None = None
) -> list[Planned]:
    """The messages that the rules send about these facts, in order.

    events: the calendars' events by channel. now: when the facts are looked at; None: each as soon as it is known.
    """
    planned: dict[tuple[str, str, str], Planned] = {}  # by rule, channel and what it is about
    for fact in sorted(facts, key=lambda fact: fact.at):
        for name, rule in alerts.rules.items():
            if rule.on == fact.kind and fact.detector in (rule.detectors or (fact.detector,)) and rule.accepts(fact):
                mute = alerts.find_mute(rule, fact)
                for channel in rule.channels:
                    due = (None, mute) if mute else _find_due(alerts, rule, channel, events, now or fact.at)
                    planned.setdefault((name, channel, fact.about), Planned(name, channel, fact, *due))
    return list(planned.values())


def _find_due(
    alerts: Alerts, rule: Rule, channel: str, events: Mapping[str, Sequence[Window]], now: datetime
) -> tuple[datetime, str]:
    zone, params = alerts.zone, alerts.channels[channel] or ChannelParams()
    due, why = (find_next(now, rule.at, zone), "digest") if rule.at else (now, "")
    if rule.urgent:
        return due, why
    free, waits = find_sending(due, zone, params.quiet, events.get(channel, ()))
    return free, waits or why


def count_messages(planned: Iterable[Planned]) -> dict[str, dict[str, int]]:
    """By rule: its facts, the messages that it sends about them, and those that are held back for good.

    A rule's facts that are due on a channel at the same instant are one message.
    """
    facts: dict[str, set[str]] = {}
    sent: dict[str, set[tuple[str, datetime]]] = {}
    held: dict[str, set[tuple[str, str]]] = {}
    for one in planned:
        facts.setdefault(one.rule, set()).add(one.fact.about)
        if one.due_at:
            sent.setdefault(one.rule, set()).add((one.channel, one.due_at))
        else:
            held.setdefault(one.rule, set()).add((one.channel, one.fact.about))
    return {
        rule: {"facts": len(abouts), "messages": len(sent.get(rule, ())), "held": len(held.get(rule, ()))}
        for rule, abouts in facts.items()
    }


def write_message(rule: str, texts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Title and body of one message about these facts, each given by its own title and body."""
    if len(texts) == 1:
        return texts[0]
    listed = [f"{title}\n{body}" for title, body in texts[:MOST_LISTED]]
    more = [f"and {len(texts) - MOST_LISTED:,} more: nightjar alerts list"] if len(texts) > MOST_LISTED else []
    return f"{len(texts):,} messages of rule {rule}", "\n\n".join([*listed, *more])
