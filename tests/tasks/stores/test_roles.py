"""PostgreSQL's roles, by logins that are members of them: what a night needs is allowed, everything else is not."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from racers import make_flags, make_night

from tasks.errors import Failure, ParamsInvalid, SchemaMismatch
from tasks.follow_up.actions import Desk, judge_case
from tasks.publish import publish_night
from tasks.rows.params import CasesParams, RetentionParams
from tasks.stores.lake import Lake
from tasks.stores.roles import READER, RIGHTS, WRITER
from tasks.stores.site import Site
from tasks.stores.tables import attempts, metadata
from tasks.stores.warehouse import (
    SCHEMA_VERSION,
    Warehouse,
)
from tasks.upkeep.erase import erase_rows
from tasks.upkeep.prune import hold_batch, prune_tables

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
TABLES = sorted(metadata.tables)
OWNER = "test_owner"
LOGINS = (OWNER, "test_writer", "test_reader", "test_stranger")


class Server:
    """A server, and four logins on it that are members of nothing."""

    def __init__(self, url: str) -> None:
        self.url, self.password = sa.make_url(f"{url}/postgres"), secrets.token_hex(8)
        self.databases: list[str] = []

    def run(self, statement: str, *names: str, database: str = "postgres") -> None:
        """Run a statement as the administrator, with quoted names in the place of {}."""
        url = self.url.set(drivername="postgresql", database=database)
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def make_database(self) -> str:
        """An empty database that test_owner owns."""
        self.databases.append(f"night_{secrets.token_hex(6)}")
        self.run("create database {} owner {}", self.databases[-1], OWNER)
        return self.databases[-1]

    def log_in(self, login: str, database: str) -> Warehouse:
        """A login's way to the warehouse."""
        url = self.url.set(username=login, password=self.password, database=database)
        return Warehouse(url.render_as_string(hide_password=False))


@pytest.fixture
def server(own_postgres_url: str) -> Iterator[Server]:
    """A server without Nightjar's roles; the owner may make them."""
    server = Server(own_postgres_url)
    for login in LOGINS:
        server.run(f"create role {{}} login password '{server.password}'", login)
    server.run("alter role {} createrole", OWNER)
    yield server
    for database in server.databases:
        server.run("drop database {} with (force)", database)
    for role in (*LOGINS, *RIGHTS):
        server.run("drop role if exists {}", role)


@pytest.fixture
def engines(server: Server) -> dict[str, Warehouse]:
    """The engine of each login on a warehouse that its owner has migrated."""
    database = server.make_database()
    (server.log_in(OWNER, database)).migrate()
    server.run("grant {} to {}", WRITER, "test_writer")
    server.run("grant {} to {}", READER, "test_reader")
    return {login: server.log_in(login, database) for login in LOGINS}


def publish(engine: Warehouse, attempt: int) -> None:
    groups = pd.DataFrame(
        {"grouping": "shop", "q": 0.99, "group": ["g"], "score": [float(attempt)], "records": [attempt]}
    )
    night = replace(make_night(DAY, attempt), rows_in=10)
    publish_night(engine, night, make_flags(attempt), NOW, lambda: "h", groups)


def fill(engine: Warehouse) -> None:
    """Everything that nights, reviews and people write."""
    for attempt in (1, 2):
        assert engine.begin_attempt("race", DAY, "begin", NOW) == attempt
        publish(engine, attempt)
    engine.begin_attempt("race", DAY, "begin", NOW)
    engine.fail_attempt("race", DAY, 3, Failure("OSError", {"what": "no r2-0"}), NOW)
    engine.begin_attempt("race", DAY, "begin", NOW)
    with engine.begin() as connection:
        connection.execute(
            sa.update(attempts).where(attempts.c.attempt == 4).values(owner=f"{socket.gethostname()} 1 1")
        )
    labels = pd.DataFrame({"record_id": ["r2-0", "x"], "label": [1, 0], "known_at": NOW})
    assert [engine.add_labels("race", labels) for _ in range(2)] == [2, 0]
    verdict = {"batch_date": DAY, "record_id": "r2-0", "reviewer": "kim", "reviewed_at": NOW, "inclusion": 1.0}
    assert engine.add_reviews("race", pd.DataFrame([verdict | {"verdict": "normal"}])) == 1
    judge_case(Desk(engine, "race", CasesParams(), "kim", NOW), 7, "confirmed")


def read(engine: Warehouse) -> None:
    """Everything that pages, reports and people read."""
    flags = engine.read_flags("race", DAY)
    assert (len(flags), set(flags["attempt"])) == (5, {2})
    assert engine.read_groups("race", DAY)["records"].tolist() == [2]
    assert [batch.attempt for batch in engine.read_nights("race")] == [2]
    assert [attempt.attempt for attempt in engine.read_attempts("race")] == [1, 2, 3, 4]
    assert engine.read_labels("race", NOW, pd.Series(["x"]))["label"].tolist() == [0]
    assert engine.read_reviews("race")["verdict"].tolist() == ["normal", "anomaly"]
    with engine.begin() as connection:
        for table in metadata.tables.values():
            connection.execute(sa.select(table)).all()


def test_a_writer_does_all_that_nights_do_and_a_reader_reads_it(engines: dict[str, Warehouse], site: Site) -> None:
    writer = engines["test_writer"]
    assert writer.migrate() == SCHEMA_VERSION
    fill(writer)
    assert [attempt.attempt for attempt in writer.end_dead_attempts("race", NOW)] == [4]
    read(writer)
    read(engines["test_reader"])
    as_writer = replace(site, detector="race", warehouse=writer)
    with hold_batch(as_writer, DAY, NOW) as held:
        assert held.is_idle
    later = NOW + timedelta(days=9)
    removed = prune_tables(as_writer, RetentionParams(superseded_days=1, attempts_days=1), later, dry_run=False)
    assert removed == {"superseded_anomalies": 5, "attempts": 2, "deliveries": 0}
    erased = {place.what for place in erase_rows(as_writer, "r2-0")}
    assert erased == {"flagged_anomalies", "labels", "reviews", "cases", "case_flags", "case_events"}
    assert Lake(site.lake.root).dates("landing", "race") == []


FORBIDDEN_TO_BOTH = (
    "drop table {}",
    "truncate {}",
    "alter table {} add column more text",
    "alter table {} owner to current_user",
    "create index on {} (detector)",
    "create trigger t before insert on {} execute function suppress_redundant_updates_trigger()",
)
CHANGES = ("delete from {}", "insert into {} select * from {}", "update {} set detector = 'x'")


def is_refused(engine: Warehouse, statement: str) -> bool:
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(statement))
    except ParamsInvalid as error:
        assert "The login in the warehouse URL lacks a right" in str(error)
        return True
    return False


@pytest.mark.slow
def test_neither_writer_nor_reader_can_drop_alter_or_make_anything_and_a_reader_changes_nothing(
    engines: dict[str, Warehouse],
) -> None:
    writer, reader, stranger = (engines[f"test_{name}"] for name in ("writer", "reader", "stranger"))
    for table in TABLES:
        for login in (writer, reader):
            assert [s for s in FORBIDDEN_TO_BOTH if not is_refused(login, s.format(table))] == []
        assert [s for s in CHANGES if not is_refused(reader, s.format(table, table))] == []
        assert [s for s in CHANGES if is_refused(writer, s.format(table, table))] == []
        assert is_refused(stranger, f"select * from {table}")
    for login in (writer, reader):
        for statement in (
            "create table mine (x int)",
            "create schema mine",
            "update alembic_version set version_num=''",
        ):
            assert is_refused(login, statement), statement


def test_a_reader_that_publishes_gets_an_error_that_names_the_missing_right(engines: dict[str, Warehouse]) -> None:
    with pytest.raises(ParamsInvalid, match="permission denied for table attempts") as refused:
        engines["test_reader"].begin_attempt("race", DAY, "begin", NOW)
    assert "nightjar_writer" in str(refused.value)
    assert str(engines["test_reader"].engine.url.password) not in str(refused.value)


def test_tables_that_a_later_migration_makes_are_the_roles_too(engines: dict[str, Warehouse]) -> None:
    with engines[OWNER].begin() as connection:
        connection.execute(sa.text("create table of_a_later_version (x int)"))
    assert not is_refused(engines["test_writer"], "insert into of_a_later_version values (1)")
    assert not is_refused(engines["test_reader"], "select * from of_a_later_version")
    assert is_refused(engines["test_reader"], "delete from of_a_later_version")


@pytest.mark.parametrize("login", ["test_writer", "test_reader", "test_stranger"])
def test_the_error_for_a_login_that_is_not_the_owner_says_who_can_migrate(server: Server, login: str) -> None:
    database = server.make_database()
    owner, other = server.log_in(OWNER, database), server.log_in(login, database)
    with pytest.raises(SchemaMismatch, match=r"none of Nightjar's tables(.|\n)*ask the owner"):
        other.migrate()
    owner.migrate("0004")
    server.run("grant all on all tables in schema public to {}", login, database=database)  # as before there were roles
    with pytest.raises(SchemaMismatch, match=rf"schema 0004(.|\n)*{SCHEMA_VERSION}(.|\n)*nightjar migrate") as refused:
        other.migrate()
    assert server.password not in str(refused.value)
    assert owner.migrate() == "0004"
    assert other.migrate() == SCHEMA_VERSION


def test_without_the_right_to_make_roles_a_migration_goes_on_and_grants_follow(server: Server) -> None:
    server.run("alter role {} nocreaterole", OWNER)
    database = server.make_database()
    owner, writer = server.log_in(OWNER, database), server.log_in("test_writer", database)
    owner.migrate()
    assert owner.renew_roles() == []
    for role in RIGHTS:
        server.run("create role {}", role)
    server.run("grant {} to {}", WRITER, "test_writer")
    assert is_refused(writer, "select * from labels")
    assert writer.renew_roles() == []
    assert owner.renew_roles() == [WRITER, READER]
    assert writer.begin_attempt("race", DAY, "begin", NOW) == 1


def test_tables_of_others_in_the_same_schema_are_left_alone(server: Server) -> None:
    database = server.make_database()
    server.run("create table somebodys (x int)", database=database)
    (server.log_in(OWNER, database)).migrate()
    server.run("grant {} to {}", READER, "test_reader")
    assert is_refused(server.log_in("test_reader", database), "select * from somebodys")


def test_going_back_revokes_every_right_and_leaves_the_roles(engines: dict[str, Warehouse]) -> None:
    from alembic import command
    from alembic.config import Config

    with engines[OWNER].begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "tasks.stores:migrations")
        command.downgrade(config, "0004")
    with engines[OWNER].begin() as connection:
        connection.execute(sa.text("create table of_a_later_version (x int)"))
    with engines[OWNER].begin() as connection:
        tables = sa.inspect(connection).get_table_names()
    assert {"labels", "of_a_later_version"} < set(tables)
    for table in tables:
        assert is_refused(engines["test_writer"], f"select * from {table}")
        assert is_refused(engines["test_reader"], f"select * from {table}")
    assert engines[OWNER].migrate() == "0004"
    assert not is_refused(engines["test_reader"], "select * from labels")


MIGRATE = "import sys; from tasks.stores.warehouse import Warehouse; Warehouse(sys.argv[1]).migrate()"


MIGRATE = "import sys; from tasks.stores.warehouse import Warehouse; Warehouse(sys.stdin.read()).migrate()"


def start_migrating(engine: Warehouse) -> "subprocess.Popen[str]":
    """Another process that migrates; Alembic has room for one migration in a process."""
    process = subprocess.Popen(
        [sys.executable, "-c", MIGRATE], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(engine.url)
    process.stdin.close()
    return process


def end(process: "subprocess.Popen[str]") -> None:
    with process:
        assert process.stderr is not None
        stderr_text = process.stderr.read()
    assert process.returncode == 0, stderr_text


@pytest.mark.slow
def test_two_databases_of_one_server_are_migrated_at_once(server: Server) -> None:
    engines = [server.log_in(OWNER, server.make_database()) for _ in range(2)]
    for process in [start_migrating(engine) for engine in engines]:
        end(process)
    assert [engine.renew_roles() for engine in engines] == [[WRITER, READER]] * 2


@pytest.mark.slow
def test_a_migration_waits_for_another_database_that_makes_the_same_roles(server: Server) -> None:
    first, second = (server.log_in(OWNER, server.make_database()) for _ in range(2))
    with first.begin() as connection:
        connection.execute(sa.text(f"create role {WRITER}"))
        process = start_migrating(second)
        wait_until_blocked(server.log_in(OWNER, "postgres"), process)
    end(process)
    assert second.renew_roles() == [WRITER, READER]


def wait_until_blocked(engine: Warehouse, process: "subprocess.Popen[str]") -> None:
    """Until a session of the server waits for another one; the process must not end before."""
    blocked = sa.text("select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0")
    while process.poll() is None:
        with engine.begin() as connection:
            if connection.scalar(blocked):
                return
        time.sleep(0.02)
    pytest.fail("nobody waited")
