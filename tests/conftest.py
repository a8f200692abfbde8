"""Shared fixtures: a real PostgreSQL server for the session and a fresh warehouse for each test."""

import gc
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
import sqlalchemy as sa
from network import find_free_port
from objects import ObjectStore, forget_stores, start_object_store
from once import make_once
from psycopg import sql

from flows.config.garbage import collect_less_often
from flows.config.quiet import hush_at_exit

# Ten times as many cases as usual, new ones each time: pytest tests/fuzz --hypothesis-profile=torture
hypothesis.settings.register_profile("torture", max_examples=1000)
# Fixtures and parameters of tests that start a server.
SERVERS = {"postgres_url", "own_postgres_url", "object_server", "prefect_server", "prefect_url", "served"}
STORES = {"postgresql", "s3"}


def pytest_configure() -> None:
    """Keep pytest's summary the last line, and search for garbage as seldom as commands do."""
    hush_at_exit()
    collect_less_often()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the length of the torture tests: short by default, long with `make torture`."""
    parser.addoption("--kills", type=int, default=4, help="runs to kill on each warehouse")
    parser.addoption("--screenshots", default="", help="a folder for the pictures of pages that tests/stack takes")
    parser.addoption("--rounds", type=int, default=4, help="races to run on each warehouse")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that all workers are busy until the end. Mark tests that need a server."""
    items.sort(key=lambda item: [folder not in item.path.parts for folder in ("torture", "flows")])
    for item in items:
        if SERVERS & {*getattr(item, "fixturenames", ())} or any(store in item.name for store in STORES):
            item.add_marker("server")


def pytest_collection_finish() -> None:
    """The modules imported by now stay, so they are not searched for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def registries_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A migrated MLflow database to copy, because MLflow runs all its migrations on each new SQLite file."""
    from mlflow.store.db import utils

    made, upgrade = tmp_path_factory.mktemp("mlflow") / "empty.db", utils._upgrade_db

    def copy_or_upgrade(engine: sa.Engine) -> None:
        is_new = {*sa.inspect(engine).get_table_names()} == {*utils.InitialBase.metadata.tables}
        if engine.dialect.name != "sqlite" or not is_new:
            upgrade(engine)
        elif made.exists():
            copy_sqlite(str(made), str(engine.url.database))
        else:
            upgrade(engine)
            copy_sqlite(str(engine.url.database), str(made))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(utils, "_upgrade_db", copy_or_upgrade)
        yield


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database of Prefect to copy: its migrations take longer than most tests. All workers share it."""

    def make(folder: Path) -> None:
        code = "import asyncio; from flows.team.temporary import prepare_database; asyncio.run(prepare_database())"
        quiet = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        subprocess.run([sys.executable, "-c", code], env=os.environ | quiet, check=True)

    return make_once(tmp_path_factory, "prefect-database", make) / "prefect.db"


def copy_sqlite(source: str, target: str) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL, without a database name, of an empty PostgreSQL server on loopback; stopped after the session."""
    with run_postgres() as url:
        yield url


@pytest.fixture(scope="module")
def own_postgres_url() -> Iterator[str]:
    """Another server, for a module whose tests change what all databases of a server share."""
    with run_postgres() as url:
        yield url


@contextmanager
def run_postgres() -> Iterator[str]:
    initdb, pg_ctl = find_binary("initdb"), find_binary("pg_ctl")
    password, port = secrets.token_hex(8), find_free_port()
    # Not pytest's folder: if the tests run as root, the server runs as another user, who cannot open it.
    folder = Path(tempfile.mkdtemp(prefix="nightjar-postgres-"))
    password_file = folder / "password"
    password_file.write_text(password)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(password_file, "postgres")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    try:
        run_server_command(
            folder, initdb, "-D", "data", "-U", "tests", "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8",
            "--no-sync",
        )  # fmt: skip
        run_server_command(folder, pg_ctl, "-D", "data", "-l", "log", "-w", "-o", options, "start")
        yield f"postgresql+psycopg://tests:{password}@127.0.0.1:{port}"
        run_server_command(folder, pg_ctl, "-D", "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres_warehouse_url(postgres_url: str) -> str:
    """A fresh, empty database on the session's server."""
    name = f"night_{secrets.token_hex(6)}"
    with psycopg.connect(f"{postgres_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return f"{postgres_url}/{name}"


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server for the session; the environment does not point to it yet."""
    with start_object_store(tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture
def object_store(object_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server, with its endpoint and keys in the environment."""
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_stores()
    return object_server


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty warehouse; each test that uses it runs once per engine."""
    if request.param == "duckdb":
        return f"duckdb:///{tmp_path}/warehouse/nightjar.duckdb"
    url: str = request.getfixturevalue("postgres_warehouse_url")
    return url


def find_binary(name: str) -> str:
    pg_config = shutil.which("pg_config")
    asked = [pg_config, "--bindir"] if pg_config else ["true"]
    folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    found = shutil.which(name, path=folder or None) or shutil.which(name)
    if found is None:
        pytest.fail(
            f"{name} is missing: install PostgreSQL's server (Debian: apt-get install postgresql)", pytrace=False
        )
    return found


def run_server_command(folder: Path, *command: str) -> None:
    """Run it in the folder; if the tests run as root, as the user postgres, because PostgreSQL refuses root."""
    user = "postgres" if os.getuid() == 0 else None
    done = subprocess.run(
        command, cwd=folder, user=user, extra_groups=[] if user else None, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}", pytrace=False)
