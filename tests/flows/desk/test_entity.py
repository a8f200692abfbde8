"""The pages of an entity and what is beside a case, through the web application."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from published import make_flag, publish_flags
from toy import make_project

from flows.config.settings import Settings
from flows.desk.access import Access, User, hash_token
from flows.desk.app import create_app
from tasks.follow_up import actions
from tasks.follow_up.suppressions import read_suppressions
from tasks.rows.params import CasesParams
from tasks.rows.record import RecordRule
from tasks.stores.lake import Lake
from tasks.stores.warehouse import Warehouse

NIGHT = date(2026, 7, 1)
NOW = datetime.now(UTC)
RULE = RecordRule("customer", ("shop", "items"), frozenset({"customer"}), b"key")
EVIL = '"><script>alert(1)</script>'
HIDDEN = RULE.pseudonym("ann@example.org")
FORM = {"cause": "spend", "until": str(NOW.date() + timedelta(days=9)), "reason": "a gift"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Orders of a customer, one of them flagged, whose case was judged; another customer; and a name that is markup."""
    folder = tmp_path_factory.mktemp("desk")
    project = make_project(folder)
    project.change("params.yaml", "detectors", "orders", "entity", value="customer")
    publish = {"show": ["shop", "items"], "pseudonymise": ["customer"]}
    project.change("params.yaml", "detectors", "orders", "publish", value=publish)
    settings = Settings(project=folder, pseudonym_key="key")
    warehouse = Warehouse(settings.warehouse_url)
    warehouse.migrate()
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)
    ids, times = ["a", "b"], pa.array([noon, noon - timedelta(hours=3)], pa.timestamp("us", "UTC"))
    rows = {"record_id": ids, "event_time": times, "shop": ["north", "south"], "items": [3, 4], "spend": [1.0, 2.0]}
    partition = Lake(settings.lake_root).write("validated", "orders", NIGHT)
    with partition.part("part-0") as part:
        part.append(pa.table(rows | {"customer": ["ann@example.org"] * 2}))
    partition.commit({})
    flags = [
        make_flag("a", HIDDEN, 4.0, record={"shop": "north", "items": 3}),
        make_flag("c", EVIL, record={"shop": "north", "items": 7}),
        make_flag("d", "a/b c?", record={"shop": EVIL}),
    ]
    publish_flags(warehouse, NIGHT, flags, NOW, detector="orders")
    actions.judge_case(actions.Desk(warehouse, "orders", CasesParams(), "kim", NOW), 1, "expected", EVIL)
    return settings


@pytest.fixture(scope="module")
def desk(settings: Settings) -> Iterator[TestClient]:
    """The desk as somebody who may do everything sees it."""
    with TestClient(create_app(settings, Access({}, local="kim"))) as client:
        yield client


def find_key(page: str) -> str:
    found = re.search(r'name="form_key" value="(\w+)"', page)
    assert found
    return found[1]


def test_the_page_of_an_entity_says_what_it_did(desk: TestClient) -> None:
    page = desk.get(f"/orders/entity/{HIDDEN}").text
    assert "1 flag in 1 night, 2026-07-01; main causes: spend (1)." in " ".join(page.split())
    assert f'href="/orders/entity/{HIDDEN}?night=2026-07-01#flags"' in page  # of the pictures
    assert '<a href="/orders/case/1">1</a>' in page
    assert "expected" in page and "shop north, items 3" in page
    of_night = desk.get(f"/orders/entity/{HIDDEN}?night=2026-07-01").text
    assert "Flags of 2026-07-01" in of_night and "/orders/2026-07-01" in of_night


def test_an_entity_that_is_given_by_its_own_name_leads_to_its_pseudonym(desk: TestClient) -> None:
    answer = desk.get("/orders/entity/ann@example.org", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/orders/entity/{HIDDEN}")
    unknown = desk.get("/orders/entity/bob@example.org")
    assert unknown.status_code == 404
    assert "flagged a record of this entity" in unknown.text


def test_names_and_values_from_outside_are_escaped(desk: TestClient) -> None:
    pages = [
        desk.get("/orders/explorer").text,
        desk.get(f"/orders/entity/{HIDDEN}").text,
        desk.get("/orders/entity/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E").text,
        desk.get("/orders/entity/a%2Fb%20c%3F").text,
        desk.get(f"/orders/others/{HIDDEN}").text,
        desk.get("/orders/case/2/history").text,
    ]
    assert all("<script>alert" not in page and " style=" not in page for page in pages)
    assert all("&lt;script&gt;" in page for page in pages)
    assert 'href="/orders/entity/a%2Fb%20c%3F"' in pages[0]


def test_entities_that_share_values_are_a_part_of_the_page_or_one_of_their_own(desk: TestClient) -> None:
    part = desk.get(f"/orders/others/{HIDDEN}", headers={"HX-Request": "true"}).text
    assert part.strip().startswith("<section") and "<strong>north</strong>" in part
    assert "<!doctype html>" in desk.get(f"/orders/others/{HIDDEN}").text


def test_the_history_of_a_case_shows_what_was_not_flagged_too(desk: TestClient) -> None:
    page = desk.get("/orders/case/1/history").text
    assert "2 records in the 24 hours up to the newest flag, 2 records in 30 days" in " ".join(page.split())
    assert "No validated rows of 30 dates" in page
    assert page.count('<line class="dot') == 4  # in both pictures
    assert "2026-07-01 11:00:00" in page and "ann@example.org" not in page
    assert "no longer in the lake" in desk.get("/orders/case/2/history").text
    missing = desk.get("/orders/case/9/history", headers={"HX-Request": "true"})
    assert (missing.status_code, missing.text.startswith("<div")) == (404, True)  # what takes the part's place


def test_a_case_leads_to_its_history_and_to_judged_cases_like_it(desk: TestClient) -> None:
    page = desk.get("/orders/case/2").text
    assert 'hx-get="/orders/case/2/history"' in page and 'hx-get="/orders/case/2/similar"' in page
    similar = " ".join(desk.get("/orders/case/2/similar").text.split())
    assert '<a href="/orders/case/1">1</a>' in similar and "<strong>expected</strong>" in similar and "100 %" in similar


def test_a_cause_is_suppressed_from_the_page(desk: TestClient, settings: Settings) -> None:
    address = f"/orders/suppress/{HIDDEN}"
    key = find_key(desk.get(f"/orders/entity/{HIDDEN}").text)
    answer = desk.post(address, data=FORM | {"form_key": key}, follow_redirects=False)
    desk.get(f"/orders/others/{HIDDEN}", headers={"HX-Request": "true"})  # a part that comes first takes no message
    answer = desk.get(answer.headers["location"])
    assert answer.url.path == f"/orders/entity/{HIDDEN}"
    assert "Suppression 1: spend does not count as an alert" in answer.text
    [one] = read_suppressions(Warehouse(settings.warehouse_url), "orders")
    assert (one.entity, one.cause, one.reason, one.author) == (HIDDEN, "spend", "a gift", "kim")
    assert "by kim: a gift" in answer.text  # among those that hold
    for change, said in (
        ({"cause": "colour"}, "never a cause"), ({"until": "soon"}, "Choose the last day"),
        ({"until": "2020-01-01"}, "until a date"), ({"reason": " "}, "for a reason"),
    ):  # fmt: skip
        assert said in desk.post(address, data=FORM | change | {"form_key": key}).text
    other = desk.post("/orders/suppress/a%2Fb%20c%3F", data=FORM | {"form_key": key})
    assert (other.status_code, "has a verdict" in other.text) == (409, True)
    assert desk.post(address, data=FORM).status_code == 403  # a form of another page
    assert len(read_suppressions(Warehouse(settings.warehouse_url), "orders")) == 1


def test_who_may_only_read_sees_no_form_and_cannot_suppress(settings: Settings) -> None:
    people = {"lee": User(role="read", token=hash_token("t"))}
    with TestClient(create_app(settings, Access(people)), headers={"Authorization": "Bearer t"}) as desk:
        page = desk.get(f"/orders/entity/{HIDDEN}").text
        assert "needs the role judge" in page and "/orders/suppress/" not in page
        assert desk.post(f"/orders/suppress/{HIDDEN}", data=FORM).status_code == 403


def test_a_program_gets_the_same_as_json(desk: TestClient) -> None:
    found = desk.get(f"/orders/entity/{HIDDEN}", headers={"Accept": "application/json"}).json()
    assert found["entity"]["nights"][0]["severity"] == "medium"
    history = desk.get("/orders/case/1/history", headers={"Accept": "application/json"}).json()["history"]
    assert [row["is_flagged"] for row in history["records"]] == [True, False]
