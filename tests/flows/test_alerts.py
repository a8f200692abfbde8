"""From alerts.yaml to an inbox: what a night, the watch and `nightjar alerts` tell, and what keeps them from it."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import yaml
from inboxes import Inbox, serve_mail, serve_webhook
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute

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
