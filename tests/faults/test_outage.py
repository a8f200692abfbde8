"""PostgreSQL goes away after any of its answers: one typed error, which is tried again, and a whole result."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from network import CutProxy
from racers import FLAGS, NOW, make_flags, make_night

from flows.cli.main import execute
from tasks.errors import Failure, ServiceUnreachable
from tasks.publish import publish_night
from tasks.stores.warehouse import Warehouse

DAY = date(2026, 3, 1)


def use_everything(warehouse: Warehouse) -> None:
    warehouse.migrate()
    attempt = warehouse.begin_attempt("race", DAY, "begin", NOW)
    warehouse.record_heartbeat("race", DAY, attempt)
    labels = pd.DataFrame({"record_id": ["a"], "label": 1, "known_at": pd.Timestamp(NOW)})
    warehouse.add_labels("race", labels)
    assert len(warehouse.read_labels("race", NOW, labels["record_id"])) == 1
    publish_night(warehouse, make_night(DAY, attempt), make_flags(attempt), NOW, lambda: "h")
    assert len(warehouse.read_flags("race", DAY)) == FLAGS
    lost = warehouse.begin_attempt("race", DAY, "begin", NOW)
    warehouse.fail_attempt("race", DAY, lost, Failure("ProcessLost", {"what": "gone"}), NOW)
    warehouse.end_dead_attempts("race", NOW)
    warehouse.renew_roles()


@contextmanager
def cut_after(url: str, answers: int, farewell: tuple[str, str] | None) -> Iterator[tuple[Warehouse, CutProxy]]:
    direct = sa.make_url(url)
    proxy = CutProxy(int(direct.port or 0), answers, farewell)
    try:
        yield Warehouse(direct.set(port=proxy.port).render_as_string(hide_password=False)), proxy
    finally:
        proxy.close()


@pytest.mark.parametrize(
    "farewell",
    [
        None,
        ("57P01", "terminating connection due to administrator command"),
        ("57P03", "the database system is shutting down"),
        ("57P03", "the database system is starting up"),
    ],
)
def test_a_server_that_goes_away_at_any_answer_is_unreachable(
    postgres_warehouse_url: str, farewell: tuple[str, str] | None
) -> None:
    Warehouse(postgres_warehouse_url).migrate()
    answers, is_cut = 1, True
    while is_cut:
        with cut_after(postgres_warehouse_url, answers, farewell) as (warehouse, proxy):
            try:
                use_everything(warehouse)
            except ServiceUnreachable as error:
                assert "127.0.0.1" in str(error)  # anything else fails the test
            is_cut = proxy.left <= 0
        answers += 9
    assert answers > 100
    flags = Warehouse(postgres_warehouse_url).read_flags("race", DAY)
    assert (len(flags), flags["attempt"].nunique()) == (FLAGS, 1)


# psycopg warns of its own cursor, whose connection is lost.
@pytest.mark.filterwarnings("ignore:.*ServerCursor object:ResourceWarning")
def test_a_command_whose_server_goes_away_shows_its_error_and_no_traceback(
    postgres_warehouse_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_everything(Warehouse(postgres_warehouse_url))
    monkeypatch.setenv("NIGHTJAR_PROJECT", str(tmp_path))
    answers, code = 1, 1
    while code:
        with cut_after(postgres_warehouse_url, answers, None) as (warehouse, _):
            monkeypatch.setenv("NIGHTJAR_WAREHOUSE", warehouse.url)
            code = execute(["export", str(tmp_path / str(answers))])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert code == 0 or err.startswith("error: ServiceUnreachable: The warehouse does not answer.")
        answers += 1
    assert answers > 40
    assert not [record for record in caplog.records if record.name.startswith(("sqlalchemy", "psycopg"))]
    caplog.clear()  # its tracebacks hold the cursors
    gc.collect()


def test_a_standby_server_is_unreachable(postgres_warehouse_url: str) -> None:
    warehouse = Warehouse(postgres_warehouse_url)
    warehouse.migrate()
    with pytest.raises(ServiceUnreachable, match="read-only transaction"), warehouse.begin() as connection:
        connection.execute(sa.text("set transaction read only"))
        connection.execute(sa.text("delete from labels"))
