"""Rules, suppressions and messages, through the web application."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from toy import make_project

from flows.config.settings import Settings
from flows.desk.access import Access, User, hash_token
from flows.desk.app import create_app
from tasks.errors import Failure
from tasks.follow_up.alerts import Fact, Planned
from tasks.follow_up.deliveries import keep_messages
from tasks.follow_up.suppressions import read_suppressions
from tasks.stores.warehouse import Warehouse

NIGHT, NOW = date(2026, 4, 8), datetime(2026, 4, 9, 4, tzinfo=UTC)
EVIL = '"><script>alert(1)</script>'
ALERTS = """
channels: {chat: }
rules:
  rejected: {on: night_rejected, channels: [chat], urgent: true}
  severe: {on: case, severity: high, channels: [chat], where: {items: {least: 5}, shop: [north, south]}}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Orders of shops, with a rejected night, two rules, and a message that is held back."""
    project = make_project(tmp_path_factory.mktemp("desk"))
    project.change("params.yaml", "detectors", "orders", "entity", value="shop")
    project.change("params.yaml", "detectors", "orders", "publish", value={"show": ["items", "shop"]})
    settings = Settings(project=project.folder)
    warehouse = Warehouse(settings.warehouse_url)
    warehouse.migrate()
    number = warehouse.begin_attempt("orders", NIGHT, "validate", NOW)
    warehouse.fail_attempt("orders", NIGHT, number, Failure("BatchRejected", {"what": "Bad."}), NOW)
    fact = Fact("case", "orders", "orders case 1 low", NIGHT, NOW, f"case of {EVIL}", "body")
    keep_messages(warehouse, [Planned("severe", "chat", fact, None, "maintenance: move")])
    return settings


@pytest.fixture
def desk(settings: Settings) -> Iterator[TestClient]:
    (settings.project / "alerts.yaml").write_text(ALERTS)
    with TestClient(create_app(settings, Access({}, local="kim"))) as client:
        yield client


def read(desk: TestClient, address: str = "/orders/rules") -> str:
    answer = desk.get(address)
    assert answer.status_code == 200, answer.text
    assert "<script>alert" not in answer.text
    return " ".join(answer.text.split())


def send(desk: TestClient, address: str, **form: str) -> str:
    key = re.search(r'name="form_key" value="(\w+)"', desk.get("/orders/rules").text)
    assert key
    answer = desk.post(address, data={"form_key": key[1], **form})
    return " ".join(answer.text.split())


def test_rules_are_shown_in_words_and_previewed_only_when_asked(desk: TestClient) -> None:
    page = read(desk)
    assert "severity high; items from 5.0 and shop north or south" in page
    assert "at once, urgent" in page and "has no address" in page
    assert "held back</th>" not in page
    preview = read(desk, "/orders/rules?preview=366")
    row = re.search(r'data-label="rule">rejected</td>.*?</tr>', preview)
    assert row
    assert re.findall(r'class="n">(\d+)<', row[0]) == ["1", "1", "0"]  # facts, messages, held back


def test_messages_say_what_became_of_them(desk: TestClient) -> None:
    page = read(desk)
    assert "maintenance: move" in page and "&lt;script&gt;" in page and "never" in page


def test_without_a_valid_file_the_page_says_why_and_shows_the_rest(desk: TestClient, settings: Settings) -> None:
    (settings.project / "alerts.yaml").write_text("channels: {}\nrules: {x: {on: tuesdays}}\n")
    page = read(desk)
    assert "ParamsInvalid: alerts.yaml has " in page and "maintenance: move" in page
    (settings.project / "alerts.yaml").unlink()
    assert "No alert rules are set up" in read(desk)


def test_a_suppression_is_added_and_ended(desk: TestClient, settings: Settings) -> None:
    last = str((datetime.now(UTC) + timedelta(days=3)).date())
    page = send(desk, "/orders/rules/suppress", entity=EVIL, cause="spend", reason="a gift", until=last)
    assert "<script>alert" not in page
    assert f"Suppression 1 applies through {last}" in page and "a gift" in page
    [added] = read_suppressions(Warehouse(settings.warehouse_url), "orders")
    assert (added.entity, added.cause, added.author) == (EVIL, "spend", "kim")
    assert "Suppression 1 has ended." in send(desk, "/orders/rules/suppress/1/end")
    assert "1 ended" in read(desk)
    [ended] = read_suppressions(Warehouse(settings.warehouse_url), "orders")
    assert ended.ended_at is not None


def test_a_suppression_may_hold_for_ever(desk: TestClient, settings: Settings) -> None:
    page = send(desk, "/orders/rules/suppress", cause="spend", reason="a gift", until="9999-12-31")
    found = re.search(r"Suppression (\d+) applies through 9999-12-31", page)
    assert found
    added = read_suppressions(Warehouse(settings.warehouse_url), "orders")[-1]
    assert (added.suppression_id, added.expires_at.year) == (int(found[1]), 9999)
    send(desk, f"/orders/rules/suppress/{found[1]}/end")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"cause": "spend", "reason": "x", "until": "soon"}, "Give the last day as YYYY-MM-DD."),
        ({"cause": "spend", "reason": " ", "until": "2099-01-01"}, "needs an entity or a cause, a reason"),
        ({"cause": "shoe", "reason": "x", "until": "2099-01-01"}, "is never a cause"),
        ({"reason": "x", "until": "2099-01-01"}, "needs an entity or a cause, a reason"),
        ({"cause": "spend", "reason": "x", "until": "2020-01-01"}, "needs an entity or a cause, a reason"),
    ],
)
def test_a_suppression_that_lacks_something_changes_nothing(
    desk: TestClient, settings: Settings, form: dict[str, str], message: str
) -> None:
    before = read_suppressions(Warehouse(settings.warehouse_url), "orders")
    assert message in send(desk, "/orders/rules/suppress", **form)
    assert read_suppressions(Warehouse(settings.warehouse_url), "orders") == before


def test_only_who_may_judge_suppresses_and_only_by_our_own_form(desk: TestClient, settings: Settings) -> None:
    assert desk.post("/orders/rules/suppress", data={"cause": "spend"}).status_code == 403
    app = create_app(settings, Access({"ann": User(role="read", token=hash_token("secret"))}))
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as reader:
        assert "Add a suppression" not in read(reader)
        for address in ("/orders/rules/suppress", "/orders/rules/suppress/1/end"):
            assert reader.post(address, data={"cause": "spend"}).status_code == 403
