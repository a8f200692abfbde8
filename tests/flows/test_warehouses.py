"""Warehouses from the command line: wrong URLs and passwords, older and newer schemas, restricted logins."""

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import psycopg
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from psycopg import sql
from toy import DAYS, FIRST, Project

from flows.cli.main import execute
from tasks.stores.roles import READER, WRITER
from tasks.stores.tables import metadata
from tasks.stores.warehouse import (
    SCHEMA_VERSION,
    Warehouse,
)

NOW = datetime(2026, 4, 3, 4, tzinfo=UTC)
LAST = FIRST + timedelta(days=DAYS - 1)
PASSWORD = "s3cret-9f"


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on a warehouse; returns the exit code, stdout, and stderr. No password is in either."""

    def run(url: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("NIGHTJAR_WAREHOUSE", url)
        code = execute(list(arguments))
        captured = capsys.readouterr()
        assert PASSWORD not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def log_in(postgres_warehouse_url: str) -> Iterator[Callable[[str], str]]:
    """Create a login that is a member of a role; returns its URL."""
    admin, made = sa.make_url(postgres_warehouse_url), []

    def run(statement: sql.Composable) -> None:
        url = admin.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    def make(role: str) -> str:
        name = f"person_{secrets.token_hex(4)}"
        grant = sql.SQL("create role {} login password {} in role {}")
        run(grant.format(sql.Identifier(name), sql.Literal(PASSWORD), sql.Identifier(role)))
        made.append(name)
        return admin.set(username=name, password=PASSWORD).render_as_string(hide_password=False)

    yield make
    for name in made:
        run(sql.SQL("drop role {}").format(sql.Identifier(name)))


COMMANDS = (["migrate"], ["ingest", "orders"], ["migrate", "--json"])


@pytest.mark.parametrize(
    ("url", "name", "expected"),
    [
        (PASSWORD, "ParamsInvalid", "not a URL"),
        (f"postgres://u:{PASSWORD}@127.0.0.1:1/d", "ServiceUnreachable", "does not answer"),
        (f"postgresql+psycopg://u:p@{PASSWORD}@127.0.0.1/d", "ParamsInvalid", "%40"),
        (f"postgresql+psycopg://u:p@h:{PASSWORD}/d", "ParamsInvalid", "not a URL"),
        (f"bigquery://u:{PASSWORD}@project/d", "ParamsInvalid", "no transactions"),
        (f"mysql+pymysql://u:{PASSWORD}@127.0.0.1/d", "ParamsInvalid", "text of any length"),
        (f"postgresql+psycopg://u:{PASSWORD}@no-such-host.invalid/d", "ServiceUnreachable", "no-such-host.invalid"),
        (f"postgresql+psycopg://u:{PASSWORD}@127.0.0.1:9/d", "ServiceUnreachable", "127.0.0.1:9"),
    ],
)
def test_a_wrong_url_ends_in_one_message(
    project: Project, say: Callable[..., tuple[int, str, str]], url: str, name: str, expected: str
) -> None:
    for command in COMMANDS:
        code, out, err = say(url, *command)
        assert (code, out) == (1, "")
        assert err[err.index("error: ") :].startswith(f"error: {name}: The warehouse")
        assert expected in err
        assert "Traceback" not in err


def test_a_wrong_password_or_database_ends_in_one_message(
    project: Project, say: Callable[..., tuple[int, str, str]], postgres_warehouse_url: str
) -> None:
    right = sa.make_url(postgres_warehouse_url)
    wrong = {
        "password authentication failed": right.set(password=PASSWORD),
        'database "nowhere" does not exist': right.set(database="nowhere"),
    }
    for expected, url in wrong.items():
        for command in COMMANDS:
            code, out, err = say(url.render_as_string(hide_password=False), *command)
            assert (code, out) == (1, "")
            assert "ParamsInvalid: The warehouse's server refuses the login, or the database does not exist" in err
            assert expected in err
            assert str(right.password) not in err


def test_a_warehouse_one_migration_behind_is_refused_for_its_writer_and_migrated_by_its_owner(
    project: Project,
    say: Callable[..., tuple[int, str, str]],
    postgres_warehouse_url: str,
    log_in: Callable[[str], str],
) -> None:
    Warehouse(postgres_warehouse_url).migrate("0005")  # creates the roles
    writer = log_in(WRITER)
    for command in (["status", "orders"], ["ingest", "orders"], ["migrate"]):
        code, out, err = say(writer, *command)
        assert (code, out) == (1, "")
        assert "error: SchemaMismatch: The warehouse is older than this Nightjar" in err
        assert "got: schema 0005" in err
        assert f"expected: schema {SCHEMA_VERSION}" in err
        assert "ask the owner of the warehouse to run: nightjar migrate" in err
    code, out, _ = say(postgres_warehouse_url, "migrate", "--json")
    result = json.loads(out)
    assert (code, result["before"], result["schema"], result["roles"]) == (0, "0005", SCHEMA_VERSION, [WRITER, READER])
    assert say(writer, "ingest", "orders")[0] == 0
    code, out, _ = say(postgres_warehouse_url, "migrate")
    assert f"schema     is {SCHEMA_VERSION} in postgresql+psycopg://127.0.0.1" in out
    assert f"roles      {WRITER}, {READER}" in out


def test_a_warehouse_one_migration_ahead_is_refused(
    project: Project, say: Callable[..., tuple[int, str, str]], warehouse_url: str
) -> None:
    engine = Warehouse(warehouse_url)
    engine.migrate()
    newer = f"{int(SCHEMA_VERSION) + 1:04}"
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = :newer"), {"newer": newer})
    for command in (["status", "orders"], ["ingest", "orders"], ["migrate"]):
        code, out, err = say(warehouse_url, *command)
        assert (code, out) == (1, "")
        assert "error: SchemaMismatch: The warehouse was migrated by a newer Nightjar" in err
        assert f"got: schema {newer}" in err


def test_migrating_duckdb_shows_the_schema_before_and_after(
    project: Project, say: Callable[..., tuple[int, str, str]]
) -> None:
    url = f"duckdb:///{project.folder}/w.duckdb"
    assert say(url, "migrate")[1] == f"schema     was empty, is now {SCHEMA_VERSION} in {url}\n"
    result = json.loads(say(url, "migrate", "--json")[1])
    assert result == {"warehouse": url, "before": SCHEMA_VERSION, "schema": SCHEMA_VERSION, "roles": []}


def test_an_export_contains_every_table_and_needs_a_new_folder(
    project: Project, say: Callable[..., tuple[int, str, str]], warehouse_url: str, tmp_path: Path
) -> None:
    Warehouse(warehouse_url).migrate()
    Warehouse(warehouse_url).begin_attempt("orders", LAST, "begin", NOW)
    folder = tmp_path / "exports" / "today"
    result = json.loads(say(warehouse_url, "export", str(folder), "--json")[1])
    assert result["rows"] == {table: int(table == "attempts") for table in metadata.tables}
    assert sorted(path.stem for path in folder.iterdir()) == sorted(metadata.tables)
    [row] = pq.read_table(folder / "attempts.parquet").to_pylist()
    assert (row["detector"], row["batch_date"], row["attempt"], row["started_at"]) == ("orders", LAST, 1, NOW)
    code, out, err = say(warehouse_url, "export", str(folder))
    assert (code, out) == (1, "")
    assert "error: StoreNotEmpty: The folder is not empty." in err
    assert f"1 rows  {tmp_path}/again/attempts.parquet" in say(warehouse_url, "export", str(tmp_path / "again"))[1]


def test_an_export_to_a_file_is_a_copy_of_all_or_one_detector_that_replaces_an_older_copy_only(
    project: Project, say: Callable[..., tuple[int, str, str]], warehouse_url: str, tmp_path: Path
) -> None:
    Warehouse(warehouse_url).migrate()
    Warehouse(warehouse_url).begin_attempt("orders", LAST, "begin", NOW)
    Warehouse(warehouse_url).begin_attempt("cards", LAST, "begin", NOW)
    copy = tmp_path / "flags.duckdb"
    for wanted in ([], ["orders"]):
        options = [f"--detector={name}" for name in wanted]
        assert say(warehouse_url, "export", str(copy), *options)[0] == 0
        with duckdb.connect(copy, read_only=True) as connection:
            assert {name for (name,) in connection.execute("show tables").fetchall()} == {*metadata.tables}
            found = connection.execute("select detector, started_at from attempts order by 1").fetchall()
        assert found == [(name, NOW) for name in wanted or ["cards", "orders"]]
    assert [path.name for path in tmp_path.iterdir() if "flags" in path.name] == ["flags.duckdb"]
    code, _, err = say(warehouse_url, "export", str(tmp_path / "typo"), "--detector", "order")
    assert code == 1 and "The detector 'order' does not exist." in err and "did you mean orders?" in err
    assert not (tmp_path / "typo").exists()
    other = tmp_path / "other.duckdb"
    duckdb.connect(other).close()
    for file in (other, Path(warehouse_url.removeprefix("duckdb:///"))):
        if file.exists():  # PostgreSQL is no file
            before = file.read_bytes()
            code, _, err = say(warehouse_url, "export", str(file))
            assert (code, file.read_bytes()) == (1, before)
            assert "StoreNotEmpty: The file exists and is not an earlier copy" in err


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); sys.stdin.read()"


def test_a_notebook_that_reads_the_file_stops_no_command_that_only_reads(
    trained: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, day = trained.folder / ".nightjar", str(LAST)
    warehouse = Warehouse(f"duckdb:///{home}/warehouse.duckdb")
    lost = LAST + timedelta(days=1)
    with subprocess.Popen("true") as ended:
        owner = f"{socket.gethostname()} {ended.pid} 1.0"
    monkeypatch.setattr("tasks.stores.warehouse.name_process", lambda: owner)
    warehouse.begin_attempt("orders", lost, "score", NOW)
    monkeypatch.setattr(Warehouse.begin.__wrapped__, "__defaults__", (0.2, None))  # otherwise it waits for 30 s
    notebook = subprocess.Popen(
        [sys.executable, "-c", HOLD, f"{home}/warehouse.duckdb"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with notebook:
        assert notebook.stdout is not None
        notebook.stdout.readline()
        for command in (
            ["status"], ["explain", "orders", f"{LAST:%m%d}-0299"], ["doctor", "orders"], ["metrics"],
            ["verify", "orders", "--date", day], ["review", "orders"], ["replay", "orders", "--date", day],
            ["backfill", "orders", "--from", day, "--to", day, "--dry-run"], ["prune", "orders", "--dry-run"],
            ["delete", "orders", "--dry-run"], ["export", f"{trained.folder}/copy.duckdb"], ["migrate"],
        ):  # fmt: skip
            assert execute(command) == 0, (command, capsys.readouterr().err)
        capsys.readouterr()
        assert execute(["status", "orders"]) == 0
        assert "ProcessLost" in next(line for line in capsys.readouterr().out.splitlines() if str(lost) in line)
        assert execute(["doctor", "orders"]) == 0
        assert f"PID {notebook.pid}" in capsys.readouterr().out
        assert execute(["run", "orders"]) == 1
        err = capsys.readouterr().err
        assert f"PID {notebook.pid}, {sys.executable} -c import duckdb" in err
        assert "has the file open to read" in err
        assert "nightjar export COPY.duckdb" in err
        notebook.communicate()
    assert execute(["status", "orders"]) == 0


def test_a_writer_scores_a_night_while_a_reader_reads_it(
    trained: Project,
    say: Callable[..., tuple[int, str, str]],
    postgres_warehouse_url: str,
    log_in: Callable[[str], str],
) -> None:
    Warehouse(postgres_warehouse_url).migrate()
    writer, reader = log_in(WRITER), log_in(READER)
    code, out, err = say(writer, "score", "orders", "--date", str(LAST))
    assert code == 0, err
    flags = Warehouse(reader).read_flags("orders", LAST)
    assert len(flags) >= 3
    assert say(reader, "explain", "orders", str(flags["record_id"][0]))[0] == 0
    assert "fresh" in say(reader, "status", "orders")[1]
    assert say(reader, "export", str(trained.folder / "export"))[0] == 0
    code, out, err = say(reader, "score", "orders", "--date", str(LAST))
    assert (code, out) == (1, "")
    assert "error: ParamsInvalid: The login in the warehouse URL lacks a right" in err
    assert [one.status for one in Warehouse(reader).read_attempts("orders")] == ["published"]
