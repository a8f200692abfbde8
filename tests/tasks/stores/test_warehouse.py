import dataclasses
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from texts import AWKWARD

from tasks.errors import Failure, ParamsInvalid, SchemaMismatch, ServiceUnreachable, SourceInvalid
from tasks.stores.bulk import load_rows
from tasks.stores.tables import Drift, Finding, attempts, labels, metadata, reviews
from tasks.stores.warehouse import (
    SCHEMA_VERSION,
    Warehouse,
    lock_key,
)

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


def make_labels(*rows: tuple[str, int, datetime]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["record_id", "label", "known_at"])


def test_migrating_an_empty_warehouse_makes_every_table(engine):
    with engine.begin() as connection:
        for table in metadata.tables.values():
            assert connection.execute(sa.select(table)).all() == []


def test_migrating_twice_changes_nothing(engine):
    engine.begin_attempt("cards", DAY, "validate", NOW, None)
    engine.migrate()
    assert len(engine.read_attempts("cards")) == 1


def test_the_schema_version_is_the_newest_migration():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "tasks.stores:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_VERSION]


def test_the_migrations_make_the_tables_that_the_code_names(postgres_warehouse_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = Warehouse(postgres_warehouse_url)
    engine.migrate()
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_review_older_than_the_inclusion_column_gets_inclusion_1(warehouse_url):
    engine = Warehouse(warehouse_url)
    engine.migrate("0001")
    old = {"detector": "cards", "batch_date": DAY, "record_id": "a", "reviewer": "kim", "reviewed_at": NOW}
    with engine.begin() as connection:
        connection.execute(
            sa.insert(sa.table("reviews", *map(sa.column, [*old, "verdict"]))), old | {"verdict": "normal"}
        )
    assert engine.migrate() == "0001"
    assert engine.read_reviews("cards")[["record_id", "verdict", "inclusion"]].values.tolist() == [["a", "normal", 1.0]]
    with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
        connection.execute(sa.insert(reviews), old | {"record_id": "b", "verdict": "normal", "inclusion": None})


def test_a_warehouse_of_a_newer_nightjar_is_refused(engine):
    version = sa.table("alembic_version", sa.column("version_num"))
    with engine.begin() as connection:
        connection.execute(sa.update(version).values(version_num="9999"))
    with pytest.raises(SchemaMismatch, match="newer Nightjar"):
        engine.migrate()


def test_attempts_are_numbered_from_one_for_each_batch(engine):
    numbers = [engine.begin_attempt("cards", DAY, "validate", NOW, "run-1") for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert engine.begin_attempt("cards", DAY + timedelta(days=1), "validate", NOW, None) == 1
    assert engine.begin_attempt("logs", DAY, "validate", NOW, None) == 1


def test_eight_racing_attempts_get_eight_numbers(engine):
    with ThreadPoolExecutor(8) as pool:
        racing = [pool.submit(engine.begin_attempt, "cards", DAY, "score", NOW, None) for _ in range(8)]
        assert sorted(one.result() for one in racing) == list(range(1, 9))


MIGRATE_AND_BEGIN_FOUR = """
import sys
from datetime import UTC, date, datetime
from tasks.stores.warehouse import Warehouse
warehouse = Warehouse(sys.argv[1])
warehouse.migrate()
for _ in range(4):
    print(warehouse.begin_attempt("cards", date(2026, 3, 1), "score", datetime.now(UTC), None))
"""


@pytest.mark.slow
def test_two_processes_can_migrate_and_begin_attempts_at_once(warehouse_url):
    command = [sys.executable, "-c", MIGRATE_AND_BEGIN_FOUR, warehouse_url]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    numbers = [number for process in racing for number in process.communicate()[0].split()]
    assert sorted(map(int, numbers)) == list(range(1, 9))


def test_a_failed_attempt_keeps_its_step_and_its_error(engine):
    engine.begin_attempt("cards", DAY, "validate", NOW, "run-1")
    engine.reach_step("cards", DAY, 1, "score")
    failure = Failure("BatchRejected", {"what": "It's\nbroken.", "todo": 'Mend "it".'})
    engine.fail_attempt("cards", DAY, 1, failure, NOW + timedelta(minutes=3))
    engine.begin_attempt("cards", DAY, "validate", NOW + timedelta(hours=1), None)
    first, second = engine.read_attempts("cards", DAY)
    assert (first.step, first.status, first.failure, first.run_id) == ("score", "failed", failure, "run-1")
    assert failure.line == "BatchRejected: It's broken."
    assert (first.started_at, first.finished_at) == (NOW, NOW + timedelta(minutes=3))
    assert (second.status, second.failure, second.finished_at) == ("running", None, None)


def test_a_published_attempt_stays_published_when_a_later_step_fails(engine):
    engine.begin_attempt("cards", DAY, "validate", NOW, None)
    with engine.begin() as connection:
        connection.execute(sa.update(attempts).values(status="published"))
    engine.fail_attempt("cards", DAY, 1, Failure("OSError", {"what": "no disk"}), NOW)
    assert engine.read_attempts("cards")[0].status == "published"


def test_instants_come_back_in_utc_from_any_zone(engine):
    local = NOW.astimezone(timezone(timedelta(hours=9)))
    engine.begin_attempt("cards", DAY, "validate", local, None)
    started_at = engine.read_attempts("cards")[0].started_at
    assert started_at == NOW
    assert started_at.utcoffset() == timedelta(0)


def test_an_instant_without_a_zone_is_refused(engine):
    with pytest.raises(sa.exc.StatementError, match="no time zone"):
        engine.begin_attempt("cards", DAY, "validate", NOW.replace(tzinfo=None), None)
    with pytest.raises(ValueError, match="no time zone"):
        engine.add_labels("cards", make_labels(("a", 1, NOW.replace(tzinfo=None))))


def test_an_exception_rolls_everything_back(engine):
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.execute(sa.insert(labels).values(detector="d", record_id="a", known_at=NOW, label=1))
        raise ZeroDivisionError
    assert engine.read_labels("d", NOW).empty


@pytest.mark.slow
def test_awkward_names_survive_the_bulk_load(engine):
    for detector in AWKWARD:
        engine.add_labels(detector, make_labels(*((name, 1, NOW) for name in AWKWARD)))
    for detector in AWKWARD:
        assert sorted(engine.read_labels(detector, NOW).record_id) == sorted(AWKWARD)


def test_missing_numbers_load_as_null(engine):
    rows = pd.DataFrame({"detector": "d", "batch_date": DAY, "group": ["a", "b"], "score": [1e-300, 2.0]})
    rows = rows.assign(grouping="shop", records=1, flagged=False)
    with engine.begin() as connection:
        load_rows(connection, metadata.tables["group_scores"], rows.assign(rank=[float("nan"), 0.1]))
    with engine.begin() as connection:
        found = connection.execute(sa.text('select score, rank from group_scores order by "group"')).all()
    assert found == [(1e-300, None), (2.0, 0.1)]


def make_reviews(*rows: tuple[str, str, str, datetime]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["record_id", "reviewer", "verdict", "reviewed_at"])
    return frame.assign(batch_date=DAY, inclusion=0.25)


def test_of_several_verdicts_on_a_record_the_latest_counts(engine):
    later = NOW + timedelta(hours=1)
    rows = make_reviews(("a", "kim", "normal", later), ("a", "ada", "anomaly", NOW), ("b", "ada", "anomaly", NOW))
    assert engine.add_reviews("cards", rows) == 3
    assert engine.add_reviews("cards", rows) == 0
    engine.add_reviews("logs", make_reviews(("a", "ada", "anomaly", later)))
    found = engine.read_reviews("cards")
    assert found[["record_id", "reviewer", "verdict", "inclusion"]].values.tolist() == [
        ["a", "kim", "normal", 0.25],
        ["b", "ada", "anomaly", 0.25],
    ]
    assert found["batch_date"].tolist() == [DAY, DAY]
    assert engine.read_reviews("nobody").empty
    assert engine.read_reviews("cards", NOW)["verdict"].tolist() == ["anomaly", "anomaly"]


def test_labels_are_read_as_they_were_known_at_an_instant(engine):
    later = NOW + timedelta(days=30)
    engine.add_labels("cards", make_labels(("a", 0, NOW), ("a", 1, later), ("b", 1, later)))
    engine.add_labels("logs", make_labels(("a", 7, NOW)))
    before = NOW - timedelta(microseconds=1)
    assert engine.read_labels("cards", before).empty
    assert engine.read_labels("cards", NOW)[["record_id", "label"]].values.tolist() == [["a", 0]]
    known = engine.read_labels("cards", later)
    assert known[["record_id", "label"]].values.tolist() == [["a", 1], ["b", 1]]
    assert known.known_at.tolist() == [later, later]
    assert engine.read_labels("cards", later, pd.Series(["b", "z"])).record_id.tolist() == ["b"]
    pd.testing.assert_frame_equal(engine.read_labels("cards", None), known)


def test_a_report_counts_once_when_it_is_first_known(engine):
    hours = [NOW + timedelta(hours=n) for n in range(5)]
    again = (("a", 1, hours[1]), ("a", 0, hours[2]), ("a", 1, hours[3]))
    engine.add_labels("cards", make_labels(*again, ("b", 0, hours[1]), ("b", 1, hours[2]), ("c", 1, hours[0])))
    engine.add_labels("logs", make_labels(("d", 1, hours[1])))
    assert engine.list_reports("cards", hours[1], hours[4]).values.tolist() == [["a", hours[1]], ["b", hours[2]]]
    assert engine.list_reports("cards", hours[1], hours[2]).values.tolist() == [["a", hours[1]]]
    assert engine.list_reports("cards", hours[3], hours[4]).empty


def test_an_empty_answer_has_the_same_types_as_a_full_one(engine):
    empty = engine.read_labels("cards", NOW)
    engine.add_labels("cards", make_labels(("a", 0, NOW)))
    assert empty.dtypes.to_dict() == engine.read_labels("cards", NOW).dtypes.to_dict()


def test_adding_labels_again_adds_none(engine):
    frame = make_labels(("a", 0, NOW), ("b", 1, NOW))
    assert engine.add_labels("cards", frame) == 2
    assert engine.add_labels("cards", pd.concat([frame, frame, make_labels(("c", 1, NOW))])) == 1
    assert engine.add_labels("cards", frame.iloc[:0]) == 0
    assert len(engine.read_labels("cards", NOW)) == 3


def test_two_labels_of_one_record_at_one_instant_are_refused(engine):
    engine.add_labels("cards", make_labels(("a", 0, NOW)))
    with pytest.raises(SourceInvalid, match="1 contradictory"):
        engine.add_labels("cards", make_labels(("a", 1, NOW), ("b", 1, NOW)))
    assert engine.read_labels("cards", NOW)[["record_id", "label"]].values.tolist() == [["a", 0]]


def test_a_nights_statistics_and_finding_replace_the_former_unless_a_newer_attempt_has_found(engine):
    finding = Finding("cards", DAY, 1, "attack", ("one", "a \0 value"), "look now", NOW)
    first = [Drift("", "rows", 5.0, None), Drift(AWKWARD[0], "psi", 0.3, 0.1)]
    engine.replace_drift(finding, first)
    assert engine.read_drift("cards", DAY, DAY) == {DAY: first}
    assert engine.read_findings("cards") == [finding]
    engine.replace_drift(dataclasses.replace(finding, attempt=2, finding="nothing", evidence=()), first[:1])
    engine.replace_drift(finding, first)
    assert engine.read_drift("cards", DAY, DAY) == {DAY: first[:1]}
    assert [(one.attempt, one.finding) for one in engine.read_findings("cards")] == [(2, "nothing")]
    assert engine.read_findings("others") == []
    assert engine.read_drift("cards", DAY + timedelta(days=1), DAY + timedelta(days=2)) == {}


def test_a_night_that_was_never_published_has_no_flags(engine):
    assert engine.read_flags("cards", DAY).empty


HOLD = (
    "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=sys.argv[2:] == ['read']); "
    "print('held', flush=True); sys.stdin.readline()"
)


@pytest.fixture
def held_file(tmp_path: Path):
    """A DuckDB file that another process has open, and that process; a line on its standard input ends it."""
    file = tmp_path / "held.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        holder.stdout.readline()
        yield file, holder


def test_a_duckdb_file_that_stays_locked_is_an_error_that_names_the_holder(held_file):
    file, holder = held_file
    with pytest.raises(ServiceUnreachable, match=f"PID {holder.pid}"), Warehouse(f"duckdb:///{file}").begin(0.2):
        pass


def test_a_duckdb_file_that_another_program_writes_can_not_be_read_and_the_program_is_named(held_file):
    file, holder = held_file
    engine = Warehouse(f"duckdb:///{file}")
    with pytest.raises(ServiceUnreachable) as refused, engine.begin_reading(0.2):
        pass
    assert f"got: PID {holder.pid}, {sys.executable} -c import duckdb" in str(refused.value)
    assert "has the file open to write" in str(refused.value)
    assert "read_only=True" in str(refused.value)


def test_a_duckdb_file_that_another_program_reads_can_be_read(tmp_path):
    file = tmp_path / "w.duckdb"
    engine = Warehouse(f"duckdb:///{file}")
    engine.migrate()
    engine.add_labels("cards", make_labels(("a", 1, NOW)))
    command = [sys.executable, "-c", HOLD, str(file), "read"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        assert engine.migrate() == SCHEMA_VERSION
        assert engine.read_labels("cards", NOW, pd.Series(["a", "b"]))["label"].tolist() == [1]
        with pytest.raises(ServiceUnreachable, match=f"PID {holder.pid}(.|\n)*open to read"), engine.begin(0.2):
            pass
        holder.communicate()
    with engine.begin_reading(), engine.begin_reading() as second:  # readers of Nightjar do not wait for each other
        assert second.scalar(sa.select(1)) == 1
        with (
            pytest.raises(ServiceUnreachable, match=f"of Nightjar held it for 0.1 s: PID {os.getpid()}"),
            engine.begin(0.1),
        ):
            pass
    with (
        engine.begin(),
        pytest.raises(ServiceUnreachable, match=r"of Nightjar held it for 0\.1 s"),
        engine.begin_reading(0.1),
    ):
        pass


def test_nothing_of_a_transaction_on_a_duckdb_file_is_left_to_the_next(tmp_path):
    file = tmp_path / "it's new.duckdb"
    engine, other = Warehouse(f"duckdb:///{file}"), Warehouse(f"duckdb:///{tmp_path}/other.duckdb")
    engine.migrate()
    for transaction in (engine.begin, engine.begin_reading, engine.begin_reading):
        with transaction() as connection:
            connection.execute(sa.text("create temporary table staged as select 1 as one"))
            assert str(file) in list_open_files()
        assert str(file) not in list_open_files()
    with engine.begin() as connection:
        connection.execute(sa.text("create table theirs as select 1 as one"))
    with other.begin() as connection:  # in the same database in memory
        assert not sa.inspect(connection).has_table("theirs")
        assert not sa.inspect(connection).has_table("alembic_version")
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".wal"]


def list_open_files() -> list[str]:
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            files.append(str(link.readlink()))
    return files


def test_reading_a_warehouse_that_does_not_exist_creates_nothing(tmp_path):
    for driver in ("duckdb", "sqlite"):
        assert Warehouse(f"{driver}:///{tmp_path}/new/w.file").read_schema() is None
    assert not list(tmp_path.rglob("w.file*"))


def test_a_sqlite_file_is_read_while_another_writes(tmp_path):
    engine = Warehouse(f"sqlite:///{tmp_path}/w.sqlite")
    engine.migrate()
    with engine.begin(), engine.begin_reading() as reading:
        assert reading.scalar(sa.select(1)) == 1
        assert engine.read_nights("cards") == []


def test_a_duckdb_file_is_waited_for(held_file):
    file, holder = held_file
    release = threading.Timer(0.3, holder.communicate, ["\n"])
    release.start()
    with Warehouse(f"duckdb:///{file}").begin(10) as connection:
        assert connection.scalar(sa.select(1)) == 1
    release.join()


def test_a_duckdb_file_is_free_between_transactions(tmp_path):
    engine = Warehouse(f"duckdb:///{tmp_path}/new/folder/w.duckdb")
    engine.migrate()
    opened = subprocess.run([sys.executable, "-c", HOLD, tmp_path / "new/folder/w.duckdb"], input="\n", text=True)
    assert opened.returncode == 0


def test_a_thread_that_waits_too_long_for_duckdb_gets_an_error(tmp_path):
    engine = Warehouse(f"duckdb:///{tmp_path}/w.duckdb")
    with engine.begin(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.begin(0.1).__enter__)
        with pytest.raises(ServiceUnreachable, match="another process or thread of Nightjar"):
            waiting.result()


def test_a_postgresql_lock_that_stays_taken_is_an_error(postgres_warehouse_url):
    engine = Warehouse(postgres_warehouse_url)
    with engine.begin() as holder:
        lock_key(holder, "cards", "2026-03-01")
        with pytest.raises(ServiceUnreachable, match="lock timeout"), engine.begin(0.1) as connection:
            lock_key(connection, "cards", "2026-03-01")


def test_an_unreachable_server_is_an_error_without_the_password():
    engine = Warehouse("postgresql+psycopg://bird:s3cret@127.0.0.1:1/night?password=s3cret")
    with pytest.raises(ServiceUnreachable) as caught:
        engine.migrate()
    assert "127.0.0.1:1/night" in str(caught.value)
    assert "s3cret" not in str(caught.value) + str(caught.value.__cause__)


def test_a_wrong_password_is_an_error_without_the_password(postgres_warehouse_url):
    url = sa.make_url(postgres_warehouse_url).set(password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(ParamsInvalid, match="password authentication failed") as caught:
        Warehouse(url).migrate()
    assert "s3cret" not in str(caught.value)


def test_a_server_that_ends_the_session_is_unreachable(postgres_warehouse_url):
    engine = Warehouse(postgres_warehouse_url)
    with pytest.raises(ServiceUnreachable), engine.begin() as connection:
        own = connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with engine.begin() as other:
            other.execute(sa.select(sa.func.pg_terminate_backend(own)))
        connection.execute(sa.select(1))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3cret",
        "duckdb://",
        "duckdb:///:memory:",
        "sqlite://",
        "mysql://u:s3cret@h/d",
        "bigquery://s3cret/d",
        "postgresql+psycopg://u:p@s3cret:s3cret/d",  # read as a port
        "postgresql+psycopg://u:p@s3cret@h/d",  # read as a host
    ],
)
def test_a_url_that_cannot_hold_a_warehouse_is_refused(url):
    with pytest.raises(ParamsInvalid) as caught:
        Warehouse(url).is_new()
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_not_a_duckdb_database_is_an_immediate_error(tmp_path):
    (tmp_path / "w.duckdb").write_text(json.dumps({"not": "a database"}) * 500)
    with (
        pytest.raises(ServiceUnreachable, match="not a valid DuckDB"),
        Warehouse(f"duckdb:///{tmp_path}/w.duckdb").begin(),
    ):
        pass


def test_the_texts_of_old_failures_become_errors_with_parts(warehouse_url):
    engine = Warehouse(warehouse_url)
    engine.migrate("0005")
    rejected = "BatchRejected: 1 batch broke it.\n  where: c.yaml\n  got: a\nb\n  to do: mend"
    lost = "its process died without a word: host 1 2.0 (host, process, born)"
    old = {"detector": "cards", "batch_date": DAY, "step": "publish", "status": "failed", "started_at": NOW}
    causes = {1: f"Flow run encountered an exception: {rejected}", 2: lost, 3: None}
    table = sa.table("attempts", *map(sa.column, [*old, "attempt", "cause"]))
    with engine.begin() as connection:
        connection.execute(sa.insert(table), [old | {"attempt": n, "cause": text} for n, text in causes.items()])
    assert engine.migrate() == "0005"
    first, second, third = (attempt.failure for attempt in engine.read_attempts("cards", DAY))
    parts = {"what": "1 batch broke it.", "where": "c.yaml", "got": "a\nb", "todo": "mend"}
    assert (first.error, dict(first.parts)) == ("BatchRejected", parts)
    assert (second.line, third) == (f"ProcessLost: {lost}", None)


def test_a_held_warehouse_reads_one_state_in_one_transaction(engine):
    engine.begin_attempt("cards", DAY, "validate", NOW, None)
    with engine.hold() as held:
        first = held.read_attempts("cards")
        if engine.engine.dialect.name == "postgresql":  # a DuckDB file waits for its readers
            engine.begin_attempt("cards", DAY, "validate", NOW, None)
        assert held.read_attempts("cards", DAY) == first
        with held.begin_reading() as one, held.begin_reading() as other:
            assert one is other
    engine.begin_attempt("cards", DAY, "validate", NOW, None)
