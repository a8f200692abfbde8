from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.config.params import parse_section
from tasks.errors import ParamsInvalid
from tasks.follow_up.alerts import MOST_LISTED, Alerts, Fact, count_messages, plan_messages, write_message
from tasks.follow_up.calendars import Window

NOW = datetime(2026, 3, 2, 3, tzinfo=UTC)  # 04:00 in Berlin
DAY = date(2026, 3, 1)


def read(**rules: dict[str, Any]) -> Alerts:
    document = {
        "time_zone": "Europe/Berlin",
        "channels": {"mail": None, "phone": {"quiet": {"begin": "22:00", "end": "07:00"}}},
        "rules": {name: {"channels": ["mail"]} | rule for name, rule in rules.items()},
        "maintenance": [
            {"begin": "2026-03-05T00:00", "end": "2026-03-05T12:00", "reason": "moving", "detectors": ["toy"]}
        ],
    }
    return parse_section(Alerts, document, Path("alerts.yaml"))


def fact(kind: str, about: str = "toy 2026-03-01", **others: Any) -> Fact:
    basic = {"kind": kind, "detector": "toy", "about": about, "day": DAY, "at": NOW, "title": "T", "body": "B"}
    return Fact(**basic | others)


def plan(alerts: Alerts, *facts: Fact, now: datetime | None = NOW) -> list[tuple[str, str, str, str]]:
    return [
        (one.rule, one.channel, f"{one.due_at.astimezone(alerts.zone):%d %H:%M}" if one.due_at else "never", one.reason)
        for one in plan_messages(alerts, facts, {}, now)
    ]


FAILED = {"on": "night_failed", "channels": ["mail"]}
CASE = {"on": "case", "severity": "high"}
RECORDS = ({"country": "NG", "amount": 20, "is_new": True}, {"country": "DE", "amount": 900.5, "is_new": False})


@pytest.mark.parametrize(
    ("rule", "found", "fires"),
    [
        ({"on": "night_failed"}, fact("night_failed"), True),
        ({"on": "night_failed"}, fact("night_rejected"), False),
        ({"on": "night_rejected"}, fact("night_rejected"), True),
        ({"on": "night_late", "detectors": ["toy"]}, fact("night_late"), True),
        ({"on": "night_late", "detectors": ["other"]}, fact("night_late"), False),
        ({"on": "drifted"}, fact("drifted", finding="attack"), True),
        ({"on": "drifted", "findings": ["data_broke"]}, fact("drifted", finding="attack"), False),
        ({"on": "over_budget"}, fact("over_budget", number=1000), False),
        ({"on": "over_budget"}, fact("over_budget", number=1000, beyond=1), True),
        ({"on": "over_budget", "max_alerts": 20}, fact("over_budget", number=20), False),
        ({"on": "over_budget", "max_alerts": 20}, fact("over_budget", number=21), True),
        ({"on": "over_budget", "max_alerts": 0}, fact("over_budget", number=1), True),
        ({"on": "canary_recall", "below": 0.8}, fact("canary_recall", number=0.8), False),
        ({"on": "canary_recall", "below": 0.8}, fact("canary_recall", number=0.79), True),
        ({"on": "canary_recall"}, fact("canary_recall", number=0.1), False),
        ({"on": "canary_recall"}, fact("canary_recall", number=0.9, beyond=1), True),
        (CASE, fact("case", severity="medium"), False),
        (CASE, fact("case", severity="high"), True),
        (CASE, fact("case", severity="critical"), True),
        (CASE | {"where": {"country": ["NG"]}}, fact("case", severity="high", records=RECORDS), True),
        (CASE | {"where": {"country": ["FR"]}}, fact("case", severity="high", records=RECORDS), False),
        (CASE | {"where": {"amount": {"least": 900}}}, fact("case", severity="high", records=RECORDS), True),
        (CASE | {"where": {"amount": {"most": 20}}}, fact("case", severity="high", records=RECORDS), True),
        (CASE | {"where": {"country": ["NG"], "is_new": [0]}}, fact("case", severity="high", records=RECORDS), False),
        (CASE | {"where": {"is_new": [True]}}, fact("case", severity="high", records=RECORDS), True),
        (CASE | {"where": {"is_new": {"least": 0}}}, fact("case", severity="high", records=RECORDS), False),
        (CASE | {"where": {"unknown": ["NG"]}}, fact("case", severity="high", records=RECORDS), False),
        (CASE | {"where": {"country": ["NG"]}}, fact("case", severity="high"), False),
    ],
)  # fmt: skip
def test_a_rule_tells_of_facts_of_its_kind(rule: dict[str, Any], found: Fact, fires: bool) -> None:
    assert bool(plan(read(rule=rule), found)) == fires


def test_a_message_is_due_at_once_in_the_digest_or_after_quiet_hours() -> None:
    alerts = read(
        at_once={"on": "night_failed", "channels": ["mail", "phone"]},
        digest={"on": "night_failed", "send": "digest", "at": "08:30", "channels": ["mail", "phone"]},
        early={"on": "night_failed", "send": "digest", "at": "06:00", "channels": ["phone"]},
        urgent={"on": "night_failed", "urgent": True, "channels": ["phone"]},
    )
    assert plan(alerts, fact("night_failed")) == [
        ("at_once", "mail", "02 04:00", ""),
        ("at_once", "phone", "02 07:00", "quiet hours"),
        ("digest", "mail", "02 08:30", "digest"),
        ("digest", "phone", "02 08:30", "digest"),
        ("early", "phone", "02 07:00", "quiet hours"),
        ("urgent", "phone", "02 04:00", ""),
    ]


def test_the_same_thing_is_told_once_per_rule_and_channel() -> None:
    alerts = read(one={"on": "night_failed", "channels": ["mail", "mail"]}, two={"on": "night_failed"})
    again = replace(fact("night_failed"), at=NOW + timedelta(hours=1))
    other = fact("night_failed", about="toy 2026-03-02")
    planned = plan_messages(alerts, [again, other, fact("night_failed")], {})
    assert [(one.rule, one.fact.about) for one in planned] == [
        ("one", "toy 2026-03-02"), ("two", "toy 2026-03-02"), ("one", "toy 2026-03-01"), ("two", "toy 2026-03-01"),
    ]  # fmt: skip
    assert {one.due_at for one in planned} == {NOW}


def test_nobody_is_told_what_happens_during_a_snooze_or_maintenance() -> None:
    alerts = read(
        snoozed={"on": "night_failed", "snoozed_until": "2026-03-03T09:00"},
        awake={"on": "night_failed", "urgent": True},
    )
    last, first = datetime(2026, 3, 3, 7, 59, tzinfo=UTC), datetime(2026, 3, 3, 8, tzinfo=UTC)
    for at, expected in ((last, ("never", "snoozed until 2026-03-03 09:00")), (first, ("02 04:00", ""))):
        assert plan(alerts, fact("night_failed", at=at))[0] == ("snoozed", "mail", *expected)
    during = datetime(2026, 3, 5, 10, tzinfo=UTC)
    assert plan(alerts, fact("night_failed", at=during))[1] == ("awake", "mail", "never", "maintenance: moving")
    assert plan(alerts, fact("night_failed", at=during, detector="other"))[1][2] != "never"
    assert plan(alerts, fact("night_failed", at=during + timedelta(hours=1)))[1][2] != "never"


def test_events_of_a_channels_calendar_hold_its_messages_only() -> None:
    alerts = read(rule={"on": "night_failed", "channels": ["mail", "phone"]})
    holiday = Window(NOW - timedelta(days=1), NOW + timedelta(days=2), "holiday")
    mail, phone = plan_messages(alerts, [fact("night_failed")], {"mail": [holiday]})
    assert (mail.due_at, mail.reason) == (holiday.end, "holiday")
    assert phone.reason == "quiet hours"


def test_a_preview_counts_messages_not_facts() -> None:
    alerts = read(
        at_once={"on": "night_failed"},
        digest={"on": "night_failed", "send": "digest", "at": "08:00", "channels": ["mail", "phone"]},
        snoozed={"on": "night_failed", "snoozed_until": "2027-01-01"},
    )
    hours = [NOW, NOW, NOW + timedelta(hours=1), NOW + timedelta(days=1)]
    facts = [fact("night_failed", about=str(number), at=at) for number, at in enumerate(hours)]
    assert count_messages(plan_messages(alerts, facts, {})) == {
        "at_once": {"facts": 4, "messages": 3, "held": 0},
        "digest": {"facts": 4, "messages": 4, "held": 0},
        "snoozed": {"facts": 4, "messages": 0, "held": 4},
    }


def test_a_long_message_lists_the_first_and_counts_the_others() -> None:
    assert write_message("rule", [("T", "B")]) == ("T", "B")
    title, body = write_message("rule", [(f"T{n}", "B") for n in range(MOST_LISTED + 3)])
    assert title == "53 messages of rule rule"
    assert body.startswith("T0\nB\n\nT1\nB")
    assert body.endswith("and 3 more: nightjar alerts list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"r": {"on": "night_failed", "channels": ["pager"]}}}, "unknown channel pager (known: mail)"),
        ({"rules": {"r": {"on": "night_failed", "channels": []}}}, "rules.r.night_failed.channels"),
        ({"rules": {"r": {"on": "night_ended", "channels": ["mail"]}}}, "'night_failed'"),
        ({"rules": {"r": {"channels": ["mail"]}}}, "discriminator 'on'"),
        ({"rules": {"r": FAILED | {"below": 1}}}, "unknown key"),
        ({"rules": {"r": FAILED | {"chanels": 1}}}, "did you mean 'channels'"),
        ({"rules": {"r": {"on": "case", "channels": ["mail"], "severity": "huge"}}}, "'low', 'medium'"),
        ({"rules": {"r": FAILED | {"send": "digest"}}}, "needs `at`"),
        ({"rules": {"r": FAILED | {"at": "08:00"}}}, "needs `at`"),
        ({"rules": {"r": FAILED | {"send": "digest", "at": "25:00"}}}, "got '25:00'"),
        ({"rules": {"r": FAILED | {"send": "digest", "at": "08:00Z"}}}, "local time"),
        ({"rules": {"A rule": {"on": "night_failed", "channels": ["mail"]}}}, "A rule"),
        ({"channels": {"mail": {"quiet": {"begin": "22:00", "end": "22:00"}}}}, "must differ"),
        ({"channels": {"mail": {"url": "mailto://me:secret@example.org"}}}, "channels.mail.url: unknown key"),
        ({"channels": {"mail": "mailto://me:secret@example.org"}}, "channels.mail"),
        ({"rules": {"r": FAILED | {"snoozed_until": 5}}}, "give a date and a time"),
        ({"rules": {"r": FAILED | {"snoozed_until": "tomorrow"}}}, "snoozed_until"),
        ({"time_zone": "Berlin"}, "not a time zone"),
        ({"maintenance": [{"begin": "2026-03-02T10:00", "end": "2026-03-02T09:00"}]}, "begin must be before end"),
        ({"maintenance": [{"begin": "2026-03-02T10:00Z", "end": "2026-03-02T12:00"}]}, "both with an offset"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_by_its_key_and_without_its_secrets(change: dict[str, Any], message: str) -> None:
    document = {"channels": {"mail": None}, "rules": {"r": {"on": "night_failed", "channels": ["mail"]}}} | change
    with pytest.raises(ParamsInvalid) as refused:
        parse_section(Alerts, document, Path("alerts.yaml"))
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)
