"""Nights and the desk live together, and so do people: nobody waits for a page, and nobody loses a verdict."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from people import NIGHT, Browser
from published import make_flag, publish_flags

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
from tasks.errors import ServiceUnreachable
from tasks.follow_up import actions
from tasks.rows.params import CasesParams
from tasks.stores.snapshot import Snapshot
from tasks.stores.tables import case_events, cases, flagged_anomalies
from tasks.stores.warehouse import Warehouse


def test_a_page_never_keeps_a_night_out(ann: Browser, settings: Settings) -> None:
    ann.read("/orders/queue")
    warehouse = Warehouse(settings.warehouse_url)
    with warehouse.begin(lock_timeout_s=0):  # the file is free while the desk runs
        pass


def test_a_night_that_is_being_published_holds_no_page_up_and_is_shown_once_it_is_there(
    ann: Browser, settings: Settings
) -> None:
    day = NIGHT + timedelta(days=1)
    with Warehouse(settings.warehouse_url).begin() as connection:
        connection.execute(sa.update(cases).values(severity="low"))
        assert "critical" in ann.read(f"/orders/{NIGHT}")  # as before
    flags, now = [make_flag("n1", "customer-9")], datetime.now(UTC)
    publish_flags(Warehouse(settings.warehouse_url), day, flags, now, detector="orders")
    assert ann.get("/orders").url.path == f"/orders/{day}"
    assert '<span class="badge critical">' not in ann.read(f"/orders/{NIGHT}")


def test_what_somebody_wrote_is_on_their_next_page(ann: Browser) -> None:
    for number in range(8):
        ann.post("/orders/case/1/note", note=f"note {number}")
        assert f"note {number}" in ann.read("/orders/case/1")


def test_two_who_judge_one_case_at_once_are_both_heard_and_the_later_verdict_counts(
    ann: Browser, ben: Browser, settings: Settings
) -> None:
    keys, gate = {"ann": ann.key(), "ben": ben.key()}, threading.Barrier(2)

    def judge(browser: Browser, name: str, verdict: str) -> int:
        gate.wait()
        form = {"form_key": keys[name], "verdict": verdict}
        return browser.client.post("/orders/case/1/judge", data=form, follow_redirects=False).status_code

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(judge, ann, "ann", "confirmed"), pool.submit(judge, ben, "ben", "false_alarm")]
        assert [answer.result() for answer in answers] == [303, 303]
    warehouse = Warehouse(settings.warehouse_url)
    with warehouse.begin_reading() as connection:
        events = sa.select(case_events.c.kind, case_events.c.actor).where(case_events.c.case_id == 1)
        kinds = connection.execute(events.order_by(case_events.c.number)).all()
        verdict = connection.scalar(sa.select(cases.c.verdict).where(cases.c.case_id == 1))
    judged = [row.actor for row in kinds if row.kind == "verdict"]
    assert sorted(judged) == ["ann", "ben"]
    assert [row.kind for row in kinds].count("closed") == 1
    assert verdict == {"ann": "confirmed", "ben": "false_alarm"}[judged[-1]]


def test_two_who_ask_for_the_next_case_at_once_never_get_the_same(ann: Browser, ben: Browser) -> None:
    keys, gate = {"ann": ann.key(), "ben": ben.key()}, threading.Barrier(2)

    def ask(browser: Browser, name: str) -> str:
        gate.wait()
        answer = browser.client.post("/orders/next", data={"form_key": keys[name]}, follow_redirects=False)
        return answer.headers["location"]

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(ask, ann, "ann"), pool.submit(ask, ben, "ben")]
        assert len({answer.result() for answer in found}) == 2


def test_people_work_on_postgresql_too(tmp_path: Path, published_project: Path, postgres_warehouse_url: str) -> None:
    settings = Settings(project=published_project, home=tmp_path, warehouse=postgres_warehouse_url, pseudonym_key="key")
    warehouse = Warehouse(postgres_warehouse_url)
    warehouse.migrate()
    flags = [make_flag("p1", "customer-1", record={"shop": "north"}), make_flag("p2", None)]
    publish_flags(warehouse, NIGHT, flags, datetime.now(UTC), detector="orders")
    with TestClient(create_app(settings, Access({}, local="kim"))) as client:
        browser = Browser(client)
        browser.post("/orders/case/1/note", note="a\0b")
        assert "a\ufffdb" in browser.read("/orders/case/1")
        for address in (f"case/{2**31}", f"case/{10**40}", "find?q=%00", "entity/%00"):
            assert browser.get(f"/orders/{address}").status_code == 404
        assert "2 cases, worst first" in browser.read(f"/orders/{NIGHT}")
        assert browser.read(f"/orders/{NIGHT}?value=shop=north&search=p1").count("<tr data-row") == 1
        assert browser.post("/orders/next").url.path == "/orders/case/1"
        assert browser.say("/orders/case/1/judge", verdict="confirmed") == "Case 1: confirmed, for 1 flag."
        assert browser.say("/orders/case/1/undo") == "Undone: verdict."
        for page in ("queue?view=all", "queue?view=conflicting", "case/2", "entity/customer-1", "explorer", "blind",
                     "nights", f"nights/{NIGHT}", "model", "rules"):  # fmt: skip
            browser.read(f"/orders/{page}")


def test_copies_of_a_killed_desk_go_with_the_next_one_and_those_of_a_running_one_stay(settings: Settings) -> None:
    parent = settings.home_path / "desk"
    left = parent / f"{os.getpid()}-x"  # in a container each desk has the number of the one before
    left.mkdir(parents=True)
    (left / "warehouse.duckdb").write_text("rows of somebody")
    first = Snapshot(Warehouse(settings.warehouse_url), parent)
    second = Snapshot(Warehouse(settings.warehouse_url), parent)
    assert not left.exists()
    for snapshot in (first, second):
        with snapshot.latest().begin_reading() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(cases))


def test_a_full_disk_shows_the_last_copy_and_leaves_no_part_of_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(source: IO[bytes], target: IO[bytes], *rest: int) -> None:
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    warehouse, folder = Warehouse(settings.warehouse_url), settings.home_path / "desk"
    snapshot = Snapshot(warehouse, folder)
    before, copies = snapshot.latest(), sorted(folder.rglob("*"))
    with warehouse.begin() as connection:
        connection.execute(sa.update(cases).values(severity="low"))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", fill_disk)
        assert snapshot.latest() is before
        with pytest.raises(ServiceUnreachable, match="No space left"):
            snapshot.refresh()
    assert sorted(folder.rglob("*")) == copies
    snapshot.refresh()
    with snapshot.latest().begin_reading() as connection:
        assert set(connection.scalars(sa.select(cases.c.severity))) == {"low"}


def test_no_program_writes_while_the_file_is_copied(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another process: within one, file locks of this kind do not count."""
    warehouse, seen = Warehouse(settings.warehouse_url), []
    path = Path(str(warehouse.engine.url.database))
    path.with_name(f"{path.name}.wal").write_bytes(b"")
    probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def copy_log(source: Path, target: Path) -> None:
        seen.append(subprocess.run([sys.executable, "-c", probe, str(path)], capture_output=True, check=False))

    monkeypatch.setattr(shutil, "copyfile", copy_log)  # which comes after the file
    warehouse.copy_files(tmp_path)
    assert [b"BlockingIOError" in one.stderr for one in seen] == [True]


def test_undoing_gives_back_the_verdict_that_counted_before(ann: Browser, ben: Browser, settings: Settings) -> None:
    warehouse = Warehouse(settings.warehouse_url)
    ann.post("/orders/case/2/judge", verdict="confirmed")
    ben.post("/orders/case/2/judge", verdict="expected")
    ben.post("/orders/case/2/undo")
    found = warehouse.read_reviews("orders", learnt=False)
    assert set(found["said"]) == {"confirmed"} and set(found["reviewer"]) == {"ben"}
    assert set(found["note"]) == {"as ann said before"}
    assert "confirmed" in ann.read("/orders/case/2")
    desk = actions.Desk(warehouse, "orders", CasesParams(), "ann", datetime.now(UTC))
    actions.reopen_case(desk, 2)
    assert actions.undo_case(desk, 2) == "reopened"
    with warehouse.begin_reading() as connection:
        case = connection.execute(sa.select(cases).where(cases.c.case_id == 2)).mappings().one()
    assert (case["state"], case["verdict"]) == ("closed", "confirmed")


def test_a_page_sees_one_state_of_a_night_that_is_republished_meanwhile(
    tmp_path: Path, postgres_warehouse_url: str
) -> None:
    warehouse = Warehouse(postgres_warehouse_url)
    warehouse.migrate()
    publish_flags(warehouse, NIGHT, [make_flag("p1", None), make_flag("p2", None)], datetime.now(UTC))
    count = sa.select(sa.func.count()).select_from(flagged_anomalies)
    snapshot = Snapshot(warehouse, tmp_path)
    with snapshot.latest().begin_reading() as connection:
        assert connection.scalar(count) == 2
        publish_flags(warehouse, NIGHT, [make_flag("p1", None)], datetime.now(UTC))
        assert connection.scalar(count) == 2
    with snapshot.latest().begin_reading() as connection:
        assert connection.scalar(count) == 1
    snapshot.close()
