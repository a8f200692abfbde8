"""The calendar of nights and the page of a date, through the web application."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from toy import Project, make_project

from flows.config.settings import Settings
from flows.config.setup import prepare_reading
from flows.desk.access import Access
from flows.desk.app import create_app
from flows.status import read_calendar
from tasks.errors import Failure
from tasks.stores.lake import Lake
from tasks.stores.warehouse import Warehouse

REJECTED = date(2026, 4, 8)
LOST = REJECTED - timedelta(days=1)
NOW = datetime(2026, 4, 9, 4, tzinfo=UTC)
EVIL = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Orders without a champion: a day that landed and was rejected, and the day before, which never landed."""
    folder = tmp_path_factory.mktemp("desk")
    project = make_project(folder)
    project.change("params.yaml", "detectors", "orders", "run", value={"nights": 2, "last_date": "2026-04-08"})
    settings = Settings(project=folder)
    warehouse, lake = Warehouse(settings.warehouse_url), Lake(settings.lake_root)
    warehouse.migrate()
    for day in (LOST - timedelta(days=1), REJECTED):
        landing = lake.write("landing", "orders", day)
        with landing.part("part-0", source=f"orders-{day}.csv", arrived_at=NOW.isoformat()) as part:
            part.append(pa.table({"record_id": ["a", "b", "c"]}))
        landed = landing.commit({})
    outcome = {"text": f"spend is {EVIL}", "level": "row", "severity": "critical", "observed": "2 rows"}
    validation = {
        "input_hash": landed.hash, "rows_in": 3, "validated": 1, "quarantined": 2, "excluded": 0,
        "reasons": {EVIL: 2}, "warnings": [], "failures": [f"2 of 3 rows: {EVIL}"],
        "results": [outcome | {"success": False}, outcome | {"success": True, "text": "met"}],
    }  # fmt: skip
    lake.write("quarantine", "orders", REJECTED).commit({"contract_hash": "c", "validation": validation})
    number = warehouse.begin_attempt("orders", REJECTED, "validate", NOW, "run-7")
    parts = {"what": f"The batch broke the contract: {EVIL}.", "todo": "deliver the batch again"}
    warehouse.fail_attempt("orders", REJECTED, number, Failure("BatchRejected", parts), NOW)
    with TestClient(create_app(settings, Access({}, local="kim"))) as client:
        yield client


def test_a_nightly_source_that_stops_is_not_delivered_until_yesterday(project: Project) -> None:
    landing = Lake(Settings(project=project.folder).lake_root).write("landing", "orders", REJECTED)
    with landing.part("part-0") as part:
        part.append(pa.table({"record_id": ["a"]}))
    landing.commit({})
    setup = prepare_reading("orders")
    six = setup.site.start_of(REJECTED + timedelta(days=3)) + timedelta(hours=6)
    kinds = [(cell.batch_date, cell.kind) for cell in read_calendar(setup, six)]
    days = [REJECTED + timedelta(days=n) for n in range(3)]
    assert kinds == [(days[0], "missing"), (days[1], "not_delivered"), (days[2], "not_delivered")]
    assert len(read_calendar(setup, six - timedelta(seconds=1))) == 2  # not due yet
    project.change("params.yaml", "detectors", "orders", "run", value={"nights": 2, "every_night": False})
    assert len(read_calendar(prepare_reading("orders"), six)) == 1


def read(desk: TestClient, address: str) -> str:
    answer = desk.get(address)
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    return " ".join(answer.text.split())


def test_the_calendar_marks_each_night_with_a_letter_and_says_what_puts_it_right(desk: TestClient) -> None:
    page = read(desk, "/orders/nights")
    cells = re.findall(r'<a class="night (\w+)" href="/orders/nights/([\d-]+)" title="([^"]*)"', page)
    assert [(kind, day) for kind, day, _ in cells] == [
        ("missing", str(LOST - timedelta(days=1))), ("not_delivered", str(LOST)), ("rejected", str(REJECTED)),
    ]  # fmt: skip
    assert "rejected by its contract; The batch broke the contract" in cells[2][2]
    assert f"nightjar score orders --date {REJECTED}" in page
    assert "run-7" in page and "deliver the batch again" in page


def test_a_rejected_night_has_a_page(desk: TestClient) -> None:
    page = read(desk, f"/orders/nights/{REJECTED}")
    assert "Attempt 1: rejected at validate" in page
    assert "3 rows came in: 1 good, 2 quarantined" in page
    assert "1 expectation broken" in page and "1 expectation met" in page
    assert f"orders-{REJECTED}.csv" in page and "2026-04-09 06:00" in page  # in Berlin
    assert f'href="/orders/nights/{LOST}" rel="prev"' in page
    assert "Nothing is published for this date." in page


def test_a_date_of_which_nothing_is_known_says_so_and_what_is_no_date_has_no_page(desk: TestClient) -> None:
    assert "Nothing has landed for this date" in read(desk, "/orders/nights/2030-01-01")
    assert desk.get("/orders/nights/yesterday").status_code == 404
    assert desk.get("/nobody/nights").status_code == 404


def test_a_program_gets_the_nights_as_json(desk: TestClient) -> None:
    found = desk.get("/orders/nights", headers={"Accept": "application/json"}).json()
    newest = found["wrong"][0]
    assert (newest["batch_date"], newest["kind"]) == (str(REJECTED), "rejected")


def test_a_page_of_a_night_warns_of_it_and_of_later_ones(desk: TestClient) -> None:
    part = desk.get(f"/orders/nights/{LOST}/standing", headers={"HX-Request": "true"}).text
    assert re.findall(r'<div class="banner (\w+)"><strong>([\d-]+) ', part) == [
        ("not_delivered", str(LOST)), ("rejected", str(REJECTED)),
    ]  # fmt: skip
    assert "<html" not in part
    assert "<script>alert" not in part
    assert "<html" in read(desk, f"/orders/nights/{LOST}/standing")
    assert desk.get("/orders/nights/soon/standing").status_code == 404


def test_a_night_that_is_not_published_leads_to_what_is_known_of_it(desk: TestClient) -> None:
    answer = desk.get(f"/orders/{REJECTED}")
    assert answer.status_code == 200
    assert answer.url.path == f"/orders/nights/{REJECTED}"
