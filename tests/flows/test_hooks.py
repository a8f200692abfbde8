import logging
from datetime import UTC, date, datetime
from threading import Event, current_thread
from typing import Any

import pytest
from sites import open_site

from flows import hooks
from tasks.errors import ServiceUnreachable
from tasks.ingest import ingest
from tasks.publish import Begun
from tasks.stores.warehouse import Warehouse

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, 4, tzinfo=UTC)


def test_heartbeats_are_sent_while_an_attempt_runs_and_a_lost_warehouse_stops_neither(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, senders, third = [], set(), Event()

    def record(warehouse: Warehouse, *key: object) -> None:
        calls.append(key)
        senders.add(current_thread())
        if len(calls) < 3:
            raise (ServiceUnreachable("The warehouse does not answer."), RuntimeError("a bug"))[len(calls) - 1]
        third.set()

    monkeypatch.setattr(Warehouse, "record_heartbeat", record)
    monkeypatch.setattr(hooks, "HEARTBEAT_S", 0)
    monkeypatch.setattr(hooks, "get_run_logger", lambda: logging.getLogger("tests"))
    site = open_site(tmp_path)
    site.warehouse.migrate()
    attempt = site.warehouse.begin_attempt("toy", DAY, "begin", NOW)
    with hooks.follow_steps(site, DAY, Begun(attempt, NOW)) as at:
        assert at(ingest) is ingest
        assert third.wait(60)
    [sender] = senders
    assert not sender.is_alive()
    assert {*calls} == {("toy", DAY, attempt)}
    assert [record.message for record in caplog.records] == [
        "no heartbeat: ServiceUnreachable: The warehouse does not answer.",
        "no heartbeat: RuntimeError: a bug",
    ]
    assert site.warehouse.read_attempts("toy")[0].step == "ingest"
