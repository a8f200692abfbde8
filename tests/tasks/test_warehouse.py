import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from texts import AWKWARD

from tasks.errors import ParamsInvalid, RecordMissing, SchemaMismatch, ServiceUnreachable, SourceInvalid
from tasks.tables import attempts, labels, metadata, reviews
from tasks.warehouse import (
    SCHEMA_VERSION,
    add_labels,
    add_reviews,
    begin,
    begin_attempt,
    fail_attempt,
    find_flag,
    load_rows,
    lock_key,
    migrate,
    open_engine,
    read_attempts,
    read_flags,
    read_labels,
    read_reviews,
)

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


def make_labels(*rows: tuple[str, int, datetime]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["record_id", "label", "known_at"])


def test_migrating_an_empty_warehouse_makes_every_table(engine):
    with begin(engine) as connection:
        for table in metadata.tables.values():
            assert connection.execute(sa.select(table)).all() == []


def test_migrating_twice_changes_nothing(engine):
    begin_attempt(engine, "cards", DAY, "validate", NOW, None)
    migrate(engine)
    assert len(read_attempts(engine, "cards")) == 1


def test_the_schema_version_is_the_newest_migration():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "tasks:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_VERSION]


def test_the_migrations_make_the_tables_that_the_code_names(postgres_warehouse_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = open_engine(postgres_warehouse_url)
    migrate(engine)
    with begin(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_review_written_before_inclusion_was_kept_counts_as_asked_for_certain(warehouse_url):
    engine = open_engine(warehouse_url)
    migrate(engine, "0001")
    old = {"detector": "cards", "batch_date": DAY, "record_id": "a", "reviewer": "kim", "reviewed_at": NOW}
    with begin(engine) as connection:
        connection.execute(
            sa.insert(sa.table("reviews", *map(sa.column, [*old, "verdict"]))), old | {"verdict": "normal"}
        )
    assert migrate(engine) == "0001"
    assert read_reviews(engine, "cards")[["record_id", "verdict", "inclusion"]].values.tolist() == [
        ["a", "normal", 1.0]
    ]
    with pytest.raises(sa.exc.DBAPIError), begin(engine) as connection:
        connection.execute(sa.insert(reviews), old | {"record_id": "b", "verdict": "normal", "inclusion": None})


def test_a_warehouse_of_a_newer_nightjar_is_refused(engine):
    version = sa.table("alembic_version", sa.column("version_num"))
    with begin(engine) as connection:
        connection.execute(sa.update(version).values(version_num="9999"))
    with pytest.raises(SchemaMismatch, match="newer Nightjar"):
        migrate(engine)


def test_attempts_are_numbered_from_one_for_each_batch(engine):
    numbers = [begin_attempt(engine, "cards", DAY, "validate", NOW, "run-1") for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert begin_attempt(engine, "cards", DAY + timedelta(days=1), "validate", NOW, None) == 1
    assert begin_attempt(engine, "logs", DAY, "validate", NOW, None) == 1


def test_eight_racing_attempts_get_eight_numbers(engine):
    with ThreadPoolExecutor(8) as pool:
        racing = [pool.submit(begin_attempt, engine, "cards", DAY, "score", NOW, None) for _ in range(8)]
        assert sorted(one.result() for one in racing) == list(range(1, 9))


MIGRATE_AND_BEGIN_FOUR = """
import sys
from datetime import UTC, date, datetime
from tasks.warehouse import begin_attempt, migrate, open_engine
engine = open_engine(sys.argv[1])
migrate(engine)
for _ in range(4):
    print(begin_attempt(engine, "cards", date(2026, 3, 1), "score", datetime.now(UTC), None))
"""


@pytest.mark.slow
def test_two_processes_can_migrate_and_begin_attempts_at_once(warehouse_url):
    command = [sys.executable, "-c", MIGRATE_AND_BEGIN_FOUR, warehouse_url]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    numbers = [number for process in racing for number in process.communicate()[0].split()]
    assert sorted(map(int, numbers)) == list(range(1, 9))


def test_a_failed_attempt_keeps_its_step_and_cause(engine):
    begin_attempt(engine, "cards", DAY, "validate", NOW, "run-1")
    fail_attempt(engine, "cards", DAY, 1, "score", "it's\nbroken", NOW + timedelta(minutes=3))
    begin_attempt(engine, "cards", DAY, "validate", NOW + timedelta(hours=1), None)
    first, second = read_attempts(engine, "cards", DAY)
    assert (first.step, first.status, first.cause, first.run_id) == ("score", "failed", "it's\nbroken", "run-1")
    assert (first.started_at, first.finished_at) == (NOW, NOW + timedelta(minutes=3))
    assert (second.status, second.cause, second.finished_at) == ("running", None, None)


def test_a_published_attempt_stays_published_when_a_later_step_fails(engine):
    begin_attempt(engine, "cards", DAY, "validate", NOW, None)
    with begin(engine) as connection:
        connection.execute(sa.update(attempts).values(status="published"))
    fail_attempt(engine, "cards", DAY, 1, "report", "no disk", NOW)
    assert read_attempts(engine, "cards")[0].status == "published"


def test_instants_come_back_in_utc_from_any_zone(engine):
    local = NOW.astimezone(timezone(timedelta(hours=9)))
    begin_attempt(engine, "cards", DAY, "validate", local, None)
    started_at = read_attempts(engine, "cards")[0].started_at
    assert started_at == NOW
    assert started_at.utcoffset() == timedelta(0)


def test_an_instant_without_a_zone_is_refused(engine):
    with pytest.raises(sa.exc.StatementError, match="no time zone"):
        begin_attempt(engine, "cards", DAY, "validate", NOW.replace(tzinfo=None), None)
    with pytest.raises(ValueError, match="no time zone"):
        add_labels(engine, "cards", make_labels(("a", 1, NOW.replace(tzinfo=None))))


def test_an_exception_rolls_everything_back(engine):
    with pytest.raises(ZeroDivisionError), begin(engine) as connection:
        connection.execute(sa.insert(labels).values(detector="d", record_id="a", known_at=NOW, label=1))
        raise ZeroDivisionError
    assert read_labels(engine, "d", NOW).empty


@pytest.mark.slow
def test_awkward_names_survive_the_bulk_load(engine):
    for detector in AWKWARD:
        add_labels(engine, detector, make_labels(*((name, 1, NOW) for name in AWKWARD)))
    for detector in AWKWARD:
        assert sorted(read_labels(engine, detector, NOW).record_id) == sorted(AWKWARD)


def test_missing_numbers_load_as_null(engine):
    rows = pd.DataFrame({"detector": "d", "batch_date": DAY, "group": ["a", "b"], "score": [1e-300, 2.0], "records": 1})
    with begin(engine) as connection:
        load_rows(connection, metadata.tables["group_scores"], rows.assign(rank=[float("nan"), 0.1]))
    with begin(engine) as connection:
        found = connection.execute(sa.text('select score, rank from group_scores order by "group"')).all()
    assert found == [(1e-300, None), (2.0, 0.1)]


def make_reviews(*rows: tuple[str, str, str, datetime]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["record_id", "reviewer", "verdict", "reviewed_at"])
    return frame.assign(batch_date=DAY, inclusion=0.25)


def test_of_several_verdicts_on_a_record_the_latest_counts(engine):
    later = NOW + timedelta(hours=1)
    rows = make_reviews(("a", "kim", "normal", later), ("a", "ada", "anomaly", NOW), ("b", "ada", "anomaly", NOW))
    assert add_reviews(engine, "cards", rows) == 3
    assert add_reviews(engine, "cards", rows) == 0
    add_reviews(engine, "logs", make_reviews(("a", "ada", "anomaly", later)))
    found = read_reviews(engine, "cards")
    assert found[["record_id", "reviewer", "verdict", "inclusion"]].values.tolist() == [
        ["a", "kim", "normal", 0.25],
        ["b", "ada", "anomaly", 0.25],
    ]
    assert found["batch_date"].tolist() == [DAY, DAY]
    assert read_reviews(engine, "nobody").empty
    assert read_reviews(engine, "cards", NOW)["verdict"].tolist() == ["anomaly", "anomaly"]


def test_labels_are_read_as_they_were_known_at_an_instant(engine):
    later = NOW + timedelta(days=30)
    add_labels(engine, "cards", make_labels(("a", 0, NOW), ("a", 1, later), ("b", 1, later)))
    add_labels(engine, "logs", make_labels(("a", 7, NOW)))
    before = NOW - timedelta(microseconds=1)
    assert read_labels(engine, "cards", before).empty
    assert read_labels(engine, "cards", NOW)[["record_id", "label"]].values.tolist() == [["a", 0]]
    known = read_labels(engine, "cards", later)
    assert known[["record_id", "label"]].values.tolist() == [["a", 1], ["b", 1]]
    assert known.known_at.tolist() == [later, later]
    assert read_labels(engine, "cards", later, pd.Series(["b", "z"])).record_id.tolist() == ["b"]


def test_an_empty_answer_has_the_same_types_as_a_full_one(engine):
    empty = read_labels(engine, "cards", NOW)
    add_labels(engine, "cards", make_labels(("a", 0, NOW)))
    assert empty.dtypes.to_dict() == read_labels(engine, "cards", NOW).dtypes.to_dict()


def test_adding_labels_again_adds_none(engine):
    frame = make_labels(("a", 0, NOW), ("b", 1, NOW))
    assert add_labels(engine, "cards", frame) == 2
    assert add_labels(engine, "cards", pd.concat([frame, frame, make_labels(("c", 1, NOW))])) == 1
    assert add_labels(engine, "cards", frame.iloc[:0]) == 0
    assert len(read_labels(engine, "cards", NOW)) == 3


def test_two_labels_of_one_record_at_one_instant_are_refused(engine):
    add_labels(engine, "cards", make_labels(("a", 0, NOW)))
    with pytest.raises(SourceInvalid, match="1 contradicting"):
        add_labels(engine, "cards", make_labels(("a", 1, NOW), ("b", 1, NOW)))
    assert read_labels(engine, "cards", NOW)[["record_id", "label"]].values.tolist() == [["a", 0]]


def test_a_record_that_was_never_flagged_is_reported_missing(engine):
    with pytest.raises(RecordMissing, match="'x-1'"):
        find_flag(engine, "cards", "x-1")
    assert read_flags(engine, "cards", DAY).empty


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.readline()"


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
    with pytest.raises(ServiceUnreachable, match=f"PID {holder.pid}"), begin(open_engine(f"duckdb:///{file}"), 0.2):
        pass


def test_a_duckdb_file_is_waited_for(held_file):
    file, holder = held_file
    release = threading.Timer(0.3, holder.communicate, ["\n"])
    release.start()
    with begin(open_engine(f"duckdb:///{file}"), 10) as connection:
        assert connection.scalar(sa.select(1)) == 1
    release.join()


def test_a_duckdb_file_is_free_between_transactions(tmp_path):
    engine = open_engine(f"duckdb:///{tmp_path}/new/folder/w.duckdb")
    migrate(engine)
    opened = subprocess.run([sys.executable, "-c", HOLD, tmp_path / "new/folder/w.duckdb"], input="\n", text=True)
    assert opened.returncode == 0


def test_a_thread_that_waits_too_long_for_duckdb_gets_an_error(tmp_path):
    engine = open_engine(f"duckdb:///{tmp_path}/w.duckdb")
    with begin(engine), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(begin(engine, 0.1).__enter__)
        with pytest.raises(ServiceUnreachable, match="another process or thread of Nightjar"):
            waiting.result()


def test_a_postgresql_lock_that_stays_taken_is_an_error(postgres_warehouse_url):
    engine = open_engine(postgres_warehouse_url)
    with begin(engine) as holder:
        lock_key(holder, "cards", "2026-03-01")
        with pytest.raises(ServiceUnreachable, match="lock timeout"), begin(engine, 0.1) as connection:
            lock_key(connection, "cards", "2026-03-01")


def test_an_unreachable_server_is_an_error_without_the_password():
    engine = open_engine("postgresql+psycopg://bird:s3cret@127.0.0.1:1/night?password=s3cret")
    with pytest.raises(ServiceUnreachable) as caught:
        migrate(engine)
    assert "127.0.0.1:1/night" in str(caught.value)
    assert "s3cret" not in str(caught.value) + str(caught.value.__cause__)


def test_a_wrong_password_is_an_error_without_the_password(postgres_warehouse_url):
    url = sa.make_url(postgres_warehouse_url).set(password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(ParamsInvalid, match="password authentication failed") as caught:
        migrate(open_engine(url))
    assert "s3cret" not in str(caught.value)


def test_a_server_that_ends_the_session_is_unreachable(postgres_warehouse_url):
    engine = open_engine(postgres_warehouse_url)
    with pytest.raises(ServiceUnreachable), begin(engine) as connection:
        own = connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with begin(engine) as other:
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
        "postgres://u:s3cret@h/d",
        "postgresql+psycopg://u:p@s3cret:s3cret/d",  # read as a port
        "postgresql+psycopg://u:p@s3cret@h/d",  # read as a host
    ],
)
def test_a_url_that_cannot_hold_a_warehouse_is_refused(url):
    with pytest.raises(ParamsInvalid) as caught:
        open_engine(url)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_duckdb_is_an_error_at_once(tmp_path):
    (tmp_path / "w.duckdb").write_text(json.dumps({"not": "a database"}) * 500)
    with (
        pytest.raises(ServiceUnreachable, match="not a valid DuckDB"),
        begin(open_engine(f"duckdb:///{tmp_path}/w.duckdb")),
    ):
        pass
