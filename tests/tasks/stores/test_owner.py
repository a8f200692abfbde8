import shutil
import socket
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from tasks.errors import Failure
from tasks.stores.owner import is_dead, is_elsewhere, name_process
from tasks.stores.tables import attempts

NAME = "from tasks.stores.owner import name_process; print(name_process(), flush=True); input()"
DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, 4, tzinfo=UTC)


def test_a_process_is_alive_until_it_is_killed():
    child = subprocess.Popen([sys.executable, "-c", NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    owner = child.stdout.readline().strip()
    assert owner.split()[1] == str(child.pid)
    assert not is_dead(owner)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert is_dead(owner)


def test_a_number_that_was_given_again_is_another_process():
    host, pid, born, *_ = name_process().split(" ")
    assert not is_dead(f"{host} {pid} {born}")
    assert not is_dead(f"{host} {pid} {float(born) - 60:.2f}")  # somebody has set the clock
    assert is_dead(f"{host} {pid} {float(born) - 3600:.2f}")


@pytest.mark.parametrize("other", ["4026532179", "4026532179-0b5c9d1e", "4026531836-0b5c9d1e"])
def test_a_container_of_the_same_host_name_is_elsewhere(other):
    host, _, _, *own = name_process().split(" ")
    assert is_elsewhere(f"{host} 1 1.00 {other}")
    assert not is_dead(f"{host} 999999 1.00 {other}")
    assert is_dead(f"{host} 999999 1.00{''.join(f' {namespace}' for namespace in own)}")
    assert is_dead(f"{host} 999999 1.00")  # of an earlier version


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urpf", "true"], check=False).returncode != 0 if shutil.which("unshare") else True,
    reason="no PID namespaces here",
)
def test_processes_with_process_ids_of_their_own_do_not_call_each_other_dead():
    own = name_process()
    code = f"{NAME.split(';')[0]}, is_dead; print(name_process()); print(is_dead({own!r}))"
    command = ["unshare", "-Urpf", "--mount-proc", sys.executable, "-c", code]
    there, is_dead_there = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert (is_dead(there), is_elsewhere(there), is_dead_there) == (False, True, "False")


def test_nothing_is_known_of_other_hosts_and_unnamed_processes():
    assert not is_dead(None)
    assert not is_dead("another-host 1 1.00")
    for text in (socket.gethostname(), f"{socket.gethostname()} me now", f"{socket.gethostname()} 1"):
        assert not is_dead(text)


def test_a_try_whose_process_died_is_marked_failed_and_others_are_left(engine, monkeypatch):
    host, pid, *_ = name_process().split(" ")
    owners = [f"{host} {pid} 1.00", name_process(), "another-host 7 1.00"]
    for owner in owners:
        monkeypatch.setattr("tasks.stores.warehouse.name_process", lambda owner=owner: owner)
        engine.begin_attempt("toy", DAY, "begin", NOW)
    assert [attempt.attempt for attempt in engine.end_dead_attempts("toy", NOW)] == [1]
    assert engine.end_dead_attempts("toy", NOW) == []
    dead, *others = engine.read_attempts("toy", DAY)
    assert (dead.status, dead.finished_at) == ("failed", NOW)
    what = f"The process of this attempt died without a message: {owners[0]} (host, process, start, PID namespace)."
    assert dead.failure == Failure("ProcessLost", {"what": what})
    assert [attempt.status for attempt in others] == ["running", "running"]


def test_an_attempt_of_another_host_is_failed_when_its_heartbeats_have_stopped(engine, monkeypatch):
    owners = ["another-host 1 1.00", "another-host 7 1.00", "another-host 9 1.00", name_process(), None]
    for owner in owners:
        monkeypatch.setattr("tasks.stores.warehouse.name_process", lambda owner=owner: owner)
        engine.begin_attempt("toy", DAY, "begin", NOW)
    assert engine.end_dead_attempts("toy", NOW) == []  # they began just now, by the warehouse's clock
    begun = engine.read_attempts("toy", DAY)[0].heartbeat_at
    for ago_s, number in ((601, 1), (599 - 60, 2), (10**6, 4), (10**6, 5)):
        set_heartbeat(engine, number, begun - timedelta(seconds=ago_s))
    set_heartbeat(engine, 3, None)  # of an earlier version; it began long ago
    assert [attempt.attempt for attempt in engine.end_dead_attempts("toy", NOW)] == [1, 3, 5]
    lost, alive, *_ = engine.read_attempts("toy", DAY)
    assert f"no heartbeat since {begun - timedelta(seconds=601):%Y-%m-%d %H:%M} UTC: another-host 1" in lost.cause
    engine.record_heartbeat("toy", DAY, 2)
    engine.record_heartbeat("toy", DAY, 1)
    still_lost, beating, *_ = engine.read_attempts("toy", DAY)
    assert (still_lost, beating.heartbeat_at >= begun) == (lost, True)
    assert alive.heartbeat_at < begun


def set_heartbeat(engine, number: int, at: datetime | None) -> None:
    with engine.begin() as connection:
        connection.execute(sa.update(attempts).where(attempts.c.attempt == number).values(heartbeat_at=at))
