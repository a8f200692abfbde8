"""The lanes of the explorer, through the web application."""

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from published import make_flag, publish_flags
from toy import make_project

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
from tasks.stores.warehouse import Warehouse

NOW = datetime.now(UTC)


def open_desk(folder: Path, entity: str | None, nights: dict[date, list[dict[str, object]]]) -> TestClient:
    project = make_project(folder)
    if entity:
        project.change("params.yaml", "detectors", "orders", "entity", value=entity)
    settings = Settings(project=folder)
    warehouse = Warehouse(settings.warehouse_url)
    warehouse.migrate()
    for day, flags in nights.items():
        publish_flags(warehouse, day, flags, NOW, detector="orders")
    return TestClient(create_app(settings, Access({}, local="kim")))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    first = [make_flag("a", "x", 3.0), make_flag("b", "x"), make_flag("c", "y", suppressed_by="second_stage")]
    nights = {date(2026, 6, 30): first, date(2026, 7, 2): [make_flag("d", "z", percentile_rank=99.9999)]}
    return open_desk(tmp_path_factory.mktemp("desk"), "shop", nights)


def test_each_cell_leads_to_the_entity_and_its_night_and_each_date_to_its_night(desk: TestClient) -> None:
    page = desk.get("/orders/explorer").text
    assert 'class="cell medium"><a href="/orders/entity/x?night=2026-06-30#flags"' in page
    assert re.search(r'title="2026-06-30: 2 flags, worst 3 times the threshold, medium">M2</a>', page)
    assert 'class="cell critical"><a href="/orders/entity/z?night=2026-07-02#flags"' in page
    assert 'title="2026-06-30: 1 flag, suppressed, worst 2 times the threshold, medium">S1</a>' in page
    assert page.count('class="day"') == 2 and 'href="/orders/2026-07-02"' in page
    assert page.index("entity/z") < page.index("entity/x") < page.index("entity/y")


def test_nights_and_lanes_are_chosen_by_the_address(desk: TestClient) -> None:
    causes = desk.get("/orders/explorer?by=cause&nights=7").text
    assert "Causes by night" in causes and 'href="/orders/2026-07-02?cause=spend"' in causes
    assert 'nights=7" aria-current="page">7 nights' in causes.replace("&amp;", "&")
    earlier = desk.get("/orders/explorer?last=2026-07-01").text
    assert earlier.count('class="day"') == 1 and "newest" in earlier
    assert "No night is published up to 2020-01-01" in desk.get("/orders/explorer?last=2020-01-01").text
    assert desk.get("/orders/explorer?nights=x&page=-1&last=soon&by=").status_code == 200
    for page in ("explorer", "2026-07-02", "case/1"):
        assert desk.get(f"/orders/{page}?page={'9' * 5000}").status_code == 200


def test_without_entities_causes_are_shown_and_the_page_says_why(tmp_path: Path) -> None:
    desk = open_desk(tmp_path, None, {date(2026, 7, 2): [make_flag("d", None)]})
    page = desk.get("/orders/explorer?by=entity").text
    assert "name no entity" in page and "Causes by night" in page and "?cause=spend" in page
