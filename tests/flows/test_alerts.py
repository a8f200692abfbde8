"""From alerts.yaml to an inbox: what a night, the watch and `nightjar alerts` tell, and what keeps them from it."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
import yaml
from inboxes import Inbox, serve_mail, serve_webhook
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from flows.config.documents import parse_yaml
from flows.config.params import parse_section
from tasks.follow_up.alerts import Alerts
from tasks.stores.tables import attempts, deliveries
from tasks.stores.warehouse import Warehouse

BERLIN = ZoneInfo("Europe/Berlin")
LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)
BASIC: dict[str, Any] = {
    "channels": {"mail": {}, "hook": {}},
    "rules": {
        "broken": {"on": "night_failed", "channels": ["mail"]},
        "refused": {"on": "night_rejected", "channels": ["mail", "hook"]},
        "many": {"on": "over_budget", "max_alerts": 2, "channels": ["hook"]},
    },
}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert execute([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with serve_mail() as inbox:
        monkeypatch.setenv("NIGHTJAR_CHANNEL_MAIL", inbox.url)
        yield inbox


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with serve_webhook() as inbox:
        monkeypatch.setenv("NIGHTJAR_CHANNEL_HOOK", inbox.url)
        yield inbox


def write_alerts(project: Project, document: object) -> None:
    (project.folder / "alerts.yaml").write_text(yaml.safe_dump(document))


def test_a_night_that_is_rejected_or_has_many_alerts_is_told_once_and_a_dead_channel_stops_nothing(
    trained: Project, capsys: pytest.CaptureFixture[str], mail: Inbox, hook: Inbox
) -> None:
    write_alerts(trained, BASIC)
    trained.write_day(NEW, make_rows(NEW, rows=20))  # the contract wants 50
    mail.is_down = True
    for _ in range(2):
        assert execute(["score", "orders", "--date", str(NEW)]) == 1
    capsys.readouterr()
    title = f"orders: the night of {NEW} was rejected by its contract"
    # The two nights of the first run were scored today, too.
    assert (mail.titles, hook.titles) == ([], ["2 messages of rule many", title])
    assert "BatchRejected" in hook.messages[1][1]
    assert "nightjar status orders" in hook.messages[1][1]

    trained.write_day(NEW)
    assert execute(["score", "orders", "--date", str(NEW)]) == 0
    capsys.readouterr()
    assert len(hook.titles) == 3
    assert f"alerts in the night of {NEW}" in hook.titles[2]

    sent = answer(capsys, "alerts", "list")["deliveries"]
    assert {(row["rule"], row["channel"], row["status"], row["tries"]) for row in sent} == {
        ("refused", "mail", "failed", 1),
        ("refused", "hook", "sent", 1),
        ("many", "hook", "sent", 1),
    }
    assert execute(["status", "orders"]) == 0
    assert "channel mail did not take 1 message since" in capsys.readouterr().out
    assert execute(["status"]) == 0
    assert "channel mail did not take 1 message since" in capsys.readouterr().out
    assert "channel mail" in answer(capsys, "status", "orders")["alerts"][0]


def test_the_nights_of_one_run_are_told_together(
    trained: Project, capsys: pytest.CaptureFixture[str], hook: Inbox
) -> None:
    write_alerts(trained, BASIC | {"rules": {"many": BASIC["rules"]["many"]}})
    for days in (1, 2):
        trained.write_day(LAST + timedelta(days=days))
    span = ("--from", str(LAST - timedelta(days=1)), "--to", str(LAST + timedelta(days=2)))
    assert execute(["ingest", "orders"]) == 0
    assert execute(["backfill", "orders", *span]) == 0
    assert hook.titles == ["4 messages of rule many"]
    assert execute(["score", "--all"]) in (0, 1)  # yesterday has no rows
    assert hook.titles == ["4 messages of rule many"]


def change_rows(project: Project, table: sa.Table, **values: object) -> None:
    with Warehouse(f"duckdb:///{project.folder}/.nightjar/warehouse.duckdb").begin() as connection:
        connection.execute(sa.update(table).values(values))


def test_digests_retries_and_late_nights_are_sent_by_the_watch_and_by_hand(
    trained: Project, capsys: pytest.CaptureFixture[str], mail: Inbox, hook: Inbox
) -> None:
    daily = {"on": "over_budget", "max_alerts": 0, "send": "digest", "at": "08:00", "channels": ["mail"]}
    write_alerts(trained, BASIC | {"rules": {"daily": daily, "late": {"on": "night_late", "channels": ["hook"]}}})
    assert answer(capsys, "alerts", "send") == {"new": 2, "sent": 0, "problems": []}
    assert {(row["status"], row["reason"]) for row in answer(capsys, "alerts")["deliveries"]} == {("held", "digest")}
    assert mail.titles == []

    now = datetime.now(UTC)
    change_rows(trained, attempts, started_at=now - timedelta(days=3))
    change_rows(trained, deliveries, due_at=now)
    mail.is_down = True
    late = [now.astimezone(BERLIN).date() - timedelta(days=days) for days in (3, 2, 1)]
    assert answer(capsys, "alerts", "send", code=1)["problems"] == [
        'channel mail: Sending email to "oncall@example.org" failed.'
    ]
    expected = [f"orders: the night of {day} is late" for day in late if now - timedelta(days=2) < due_at(day) <= now]
    body = "\n".join(f"{title}\n{text}" for title, text in hook.messages)
    assert all(title in body for title in expected)
    assert len(hook.titles) == 1

    mail.is_down = False
    change_rows(trained, deliveries, due_at=now)
    from flows.freshness import watch_freshness

    assert watch_freshness(return_state=True).is_failed()
    assert mail.titles == ["2 messages of rule daily"]
    assert len(hook.titles) == 2  # sent again, as its row was changed above
    assert execute(["alerts"]) == 0
    assert "2 messages" not in capsys.readouterr().out


def due_at(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(6), BERLIN)


def test_a_preview_counts_what_past_nights_would_have_sent(
    trained: Project, capsys: pytest.CaptureFixture[str], hook: Inbox
) -> None:
    digest = {"on": "over_budget", "max_alerts": 0, "send": "digest", "at": "08:00", "channels": ["hook"]}
    each = {"on": "over_budget", "max_alerts": 0, "channels": ["hook"]}
    write_alerts(trained, BASIC | {"rules": {"each": each, "digest": digest, "never": BASIC["rules"]["broken"]}})
    two = {"facts": 2, "messages": 2, "held": 0}
    found = answer(capsys, "alerts", "preview")
    assert found == {
        "nights": 30,
        "rules": {"each": two, "digest": two, "never": dict.fromkeys(two, 0)},
        "problems": [],
    }
    answer(capsys, "alerts", "snooze", "each", "--until", "2099-01-01")  # of today, not of these nights
    snoozed = answer(capsys, "alerts", "preview")
    assert snoozed == found | {"problems": ["rule each is snoozed until 2099-01-01 00:00"]}
    assert answer(capsys, "alerts", "preview", "--nights", "1")["rules"]["each"]["messages"] == 1
    assert execute(["alerts", "preview"]) == 0
    assert "each" in capsys.readouterr().out
    assert (hook.messages, answer(capsys, "alerts")["deliveries"]) == ([], [])


def test_a_test_message_says_whether_a_channel_works(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mail: Inbox
) -> None:
    write_alerts(project, BASIC)
    assert answer(capsys, "alerts", "test", "mail") == {"channel": "mail", "sent": True}
    assert mail.titles == ["nightjar: a test"]
    mail.is_down = True
    for arguments, message in (
        (("mail",), "Channel mail did not take the message."),
        (("hook",), "The address of channel hook is not set."),
        (("desk",), "The channel 'desk' does not exist."),
    ):
        assert execute(["alerts", "test", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert execute(["alerts", "test"]) == 2
    assert execute(["alerts", "send", "mail"]) == 2
    monkeypatch.setenv("NIGHTJAR_SECRETS", str(project.folder))
    (project.folder / "nightjar_channel_hook").write_text("nonsense://sesame7f\n")
    capsys.readouterr()
    assert execute(["alerts", "test", "hook"]) == 1
    said = capsys.readouterr().err
    assert "is not one that Apprise knows" in said
    assert "sesame7f" not in said
    found = {check["check"]: check["detail"] for check in answer(capsys, "doctor", "orders", code=1)["checks"]}
    assert "The address of channel hook is not one that Apprise knows." in found["alerts"]
    mail.is_down = False
    (project.folder / "channels").mkdir()
    (project.folder / "nightjar_channel_hook").rename(project.folder / "channels" / "nightjar_channel_hook")
    (project.folder / "channels" / "nightjar_channel_hook").write_text(f"{mail.url}\n")
    assert answer(capsys, "alerts", "test", "hook") == {"channel": "hook", "sent": True}


ALERTS_TEXT = """# who is on call
channels: {mail: }
rules:
  broken: {on: night_failed, channels: [mail]}  # at night
  late:
    # the feed
    on: night_late
    channels: [mail]
time_zone: Europe/Berlin
"""


def test_a_rule_is_snoozed_by_a_command_that_keeps_all_other_text(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project.folder / "alerts.yaml"
    path.write_text(ALERTS_TEXT)
    said = answer(capsys, "alerts", "snooze", "late", "--until", "2026-12-02")
    assert said == {"rule": "late", "snoozed_until": "2026-12-02T00:00", "time_zone": "Europe/Berlin"}
    line = "    # the feed\n    snoozed_until: '2026-12-02T00:00'\n    on: night_late\n"
    assert path.read_text() == ALERTS_TEXT.replace("    # the feed\n    on: night_late\n", line)
    answer(capsys, "alerts", "snooze", "late", "--until", "2026-12-02T07:30")
    assert path.read_text().count("snoozed_until") == 1
    before = datetime.now(BERLIN)
    answer(capsys, "alerts", "snooze", "broken", "--for", "8h")
    [written] = re.findall(
        r"broken: {on: night_failed, channels: \[mail\], snoozed_until: '(.{16})'}  # at night", path.read_text()
    )
    span = datetime.fromisoformat(written).replace(tzinfo=BERLIN).astimezone(UTC) - before.astimezone(UTC)
    assert timedelta(hours=7, minutes=59) <= span <= timedelta(hours=9)
    text = path.read_text()
    for arguments in (("late",), ("late", "--for", "8"), ("late", "--for", "1h", "--until", "2026-12-02"), ()):
        assert execute(["alerts", "snooze", *arguments]) == 2
    assert execute(["alerts", "preview", "--for", "8h"]) == 2
    assert execute(["alerts", "snooze", "nothing", "--for", "8h"]) == 1
    assert "The rule 'nothing' does not exist." in capsys.readouterr().err
    path.write_text(text.replace("  late:\n", "  late: &late\n"))
    assert execute(["alerts", "snooze", "late", "--for", "0m"]) == 0
    assert path.read_text().startswith("# who is on call")


def test_a_rule_that_cannot_be_changed_in_place_is_left_alone(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project.folder / "alerts.yaml"
    text = "channels: {mail: }\nrules:\n  one: &both {on: night_late, channels: [mail]}\n  two: *both\n"
    path.write_text(text)
    assert execute(["alerts", "snooze", "two", "--until", "2026-12-02"]) == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert path.read_text() == text


WORK = {"begin": "2026-03-01", "end": "2026-03-02"}
PUBLISHED = {"on": "case", "channels": ["mail"], "where": {"customer": ["a"]}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (BASIC | {"rules": {"r": {"on": "night_failed", "channels": ["pager"]}}}, "unknown channel pager"),
        (BASIC | {"rules": {"r": BASIC["rules"]["broken"] | {"detectors": ["order"]}}}, "rule r: order"),
        (BASIC | {"rules": {"r": PUBLISHED}}, "rules on columns that are not published"),
        (BASIC | {"rules": {"r": PUBLISHED | {"detectors": ["orders"]}}}, "rule r: customer of orders"),
        (
            BASIC | {"maintenance": [{"begin": "2026-03-01", "end": "2026-03-02", "detectors": ["x"]}]},
            "maintenance 1: x",
        ),
        ([], "alerts.yaml has 1 bad key"),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_shown_by_status(
    project: Project, capsys: pytest.CaptureFixture[str], document: object, message: str
) -> None:
    write_alerts(project, document)
    for action in ("preview", "test"):
        assert execute(["alerts", action, *(["mail"] if action == "test" else [])]) == 1
        assert message in capsys.readouterr().err
    assert message in answer(capsys, "alerts", "send", code=1)["problems"][0]
    assert message in answer(capsys, "status", "orders")["alerts"][0]


def test_a_calendar_that_cannot_be_read_or_a_broken_file_stops_neither_night_nor_message(
    trained: Project, capsys: pytest.CaptureFixture[str], hook: Inbox
) -> None:
    rules = {"many": BASIC["rules"]["many"]}
    write_alerts(trained, {"channels": {"hook": {"calendars": ["team.ics"]}}, "rules": rules})
    trained.write_day(NEW)
    assert execute(["score", "orders", "--date", str(NEW)]) == 0
    assert len(hook.titles) == 1
    capsys.readouterr()
    assert "A calendar cannot be read. where: team.ics" in answer(capsys, "status")["alerts"][0]
    write_alerts(trained, {"channels": 1})
    assert execute(["score", "orders", "--date", str(NEW)]) == 0
    assert len(hook.titles) == 1


def test_the_example_of_the_docs_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
    alerts = parse_section(Alerts, parse_yaml(text.split("```yaml\n")[1].split("```")[0], Path("alerts.md")), Path())
    assert {rule.on for rule in alerts.rules.values()} == {
        "night_failed", "night_rejected", "night_late", "night_recovered", "drifted", "over_budget",
        "canary_recall", "case",
    }  # fmt: skip


def test_without_a_file_nobody_is_told_and_nothing_is_wrong(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "alerts", "send") == {"new": 0, "sent": 0, "problems": []}
    assert answer(capsys, "status", "orders")["alerts"] == []
    assert execute(["alerts", "preview"]) == 0
    assert "nobody is told" in capsys.readouterr().out
