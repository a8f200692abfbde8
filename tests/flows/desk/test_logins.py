"""PostgreSQL's own roles behind the desk: a login that may only read shows every page and writes nothing."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from people import NIGHT, TOKENS, USERS
from psycopg import sql
from published import make_flag, publish_flags

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
from tasks.stores.roles import READER, WRITER
from tasks.stores.warehouse import Warehouse

LOGIN = "test_desk"
PAGES = (
    f"/orders/{NIGHT}", f"/orders/{NIGHT}/cases.csv", "/orders/case/1", "/orders/case/1/text", "/orders/case/1/history",
    "/orders/case/1/similar", "/orders/entity/customer-1", "/orders/explorer", "/orders/queue", "/orders/blind",
    "/orders/nights", "/orders/model", "/orders/rules",
)  # fmt: skip
ACTS = {
    "/orders/case/1/judge": {"verdict": "confirmed"},
    "/orders/case/1/note": {"note": "seen"},
    "/orders/case/1/lock": {},
    "/orders/next": {},
    f"/orders/{NIGHT}/note": {"note": "a quiet night"},
    "/orders/filters": {"name": "worst", "severity": "critical"},
    "/orders/verdicts": {"case": "1", "verdict": "expected", "is_sure": "1"},
}


@pytest.fixture
def owner(own_postgres_url: str) -> Iterator[Warehouse]:
    """A warehouse with one published night, and the login of a desk that is a member of nothing."""
    database = f"night_{secrets.token_hex(6)}"
    with psycopg.connect(f"{own_postgres_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
        connection.execute(sql.SQL("create role {} login password 'desk'").format(sql.Identifier(LOGIN)))
        warehouse = Warehouse(f"{own_postgres_url}/{database}")
        warehouse.migrate()
        now = datetime.now(UTC) - timedelta(hours=1)
        publish_flags(warehouse, NIGHT, [make_flag("r1", "customer-1")], now, detector="orders")
        yield warehouse
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(LOGIN)))


def test_a_login_that_only_reads_shows_every_page_and_names_the_right_that_each_action_needs(
    owner: Warehouse, settings: Settings
) -> None:
    grant(owner, READER)
    url = sa.make_url(owner.url).set(username=LOGIN, password="desk").render_as_string(hide_password=False)
    app = create_app(settings.model_copy(update={"warehouse": url, "pseudonym_key": "key"}), Access(USERS))
    with TestClient(app, headers={"Authorization": f"Bearer {TOKENS['ann']}"}) as client:
        assert {path: client.get(path).status_code for path in PAGES} == dict.fromkeys(PAGES, 200)
        for path, form in ACTS.items():
            refused = client.post(path, data=form)
            assert refused.status_code == 400, path
            assert "The login in the warehouse URL lacks a right" in refused.text
            assert "grant it nightjar_writer" in refused.text
        assert owner.read_reviews("orders").empty
        grant(owner, WRITER)
        assert client.post("/orders/case/1/judge", data=ACTS["/orders/case/1/judge"]).status_code == 200
    assert owner.read_reviews("orders")["reviewer"].tolist() == ["ann"]


def grant(owner: Warehouse, role: str) -> None:
    with owner.begin() as connection:
        connection.execute(sa.text(f"grant {role} to {LOGIN}"))
