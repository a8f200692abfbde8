"""A desk over a small project: two published nights of orders, and people of each role."""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from people import NIGHT, TOKENS, USERS, Browser
from published import make_flag, publish_flags
from toy import make_project

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
from tasks.stores.warehouse import Warehouse


@pytest.fixture(scope="session")
def published_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The night of the 30th of June with one case, and that of the 1st of July with three more."""
    folder = tmp_path_factory.mktemp("desk") / "project"
    folder.mkdir()
    project = make_project(folder)
    project.change("params.yaml", "detectors", "orders", "entity", value="customer")
    project.change(
        "params.yaml", "detectors", "orders", "publish", value={"show": ["shop", "items"], "pseudonymise": ["customer"]}
    )
    project.change("params.yaml", "detectors", "orders", "cases", value={"bulk_limit": 2})
    warehouse = Warehouse(Settings(project=folder).warehouse_url)
    warehouse.migrate()
    now = datetime.now(UTC) - timedelta(hours=1)
    first = [make_flag("r0", "customer-1", 1.5, record={"shop": "north", "items": 3})]
    publish_flags(warehouse, NIGHT - timedelta(days=1), first, now, detector="orders")
    flags = [
        make_flag("r1", "customer-1", 4.0, record={"shop": "north", "items": 9}, percentile_rank=99.9995),
        make_flag("r2", "customer-2", 3.0, record={"shop": "south", "items": 2}, causes={"items": 2.0, "spend": 1.0}),
        make_flag("r3", "customer-2", 2.0, record={"shop": "south", "items": 4}),
        make_flag("r4", "<b>customer</b>", 1.2, record={"shop": '"><script>x</script>', "items": 1}),
        make_flag("r5", None, 1.1, record=None, percentile_rank=99.1),
    ]
    publish_flags(warehouse, NIGHT, flags, now, detector="orders")
    return folder


@pytest.fixture
def settings(published_project: Path, tmp_path: Path) -> Settings:
    """A copy of the project of its own."""
    shutil.copytree(published_project, tmp_path / "project")
    return Settings(project=tmp_path / "project")


@pytest.fixture
def open_browser(settings: Settings) -> Iterator[Callable[[str], Browser]]:
    """Opens a browser for a person who signs in with a token."""
    app = create_app(settings, Access(USERS))
    clients: list[TestClient] = []

    def sign_in(person: str) -> Browser:
        client = TestClient(app)
        clients.append(client)
        found = re.search(r'name="form_key" value="(\w+)"', client.get("/-/sign-in").text)
        assert found
        answer = client.post("/-/sign-in", data={"form_key": found[1], "token": TOKENS[person], "to": "/"})
        assert answer.status_code == 200, answer.text
        return Browser(client)

    yield sign_in
    for client in clients:
        client.close()


@pytest.fixture
def ann(open_browser: Callable[[str], Browser]) -> Browser:
    return open_browser("ann")


@pytest.fixture
def ben(open_browser: Callable[[str], Browser]) -> Browser:
    return open_browser("ben")
