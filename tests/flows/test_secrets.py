"""Passwords in URLs are shown nowhere: commands that fail, the tables, Prefect's states and logs."""

import sqlite3

import pytest
import sqlalchemy as sa
from toy import CUTOFF, Project

from flows.cli.main import execute
from flows.config.setup import fill_in
from tasks.errors import ParamsInvalid
from tasks.ingest import ingest
from tasks.stores.tables import attempts
from tasks.stores.warehouse import Warehouse

PIECES = ("sesame7f", "rhubarb9c")  # a program that cuts the URL at a special character shows only one of them
SECRETS = (
    "sesame7f",
    "sesame7f/rhubarb9c",
    "sesame7f@rhubarb9c",
    "sesame7f#rhubarb9c",
    "sesame7f:rhubarb9c",
    "sesame7f?rhubarb9c",
)
SQL = [f"{driver}://me:{secret}@127.0.0.1:1/db" for secret in SECRETS for driver in ("postgresql", "mysql+pymysql")]
SQL += ["postgresql://127.0.0.1:1/db?password=sesame7f&sslpassword=rhubarb9c", "nothing://?odbc_connect=PWD%3Dsesame7f"]
FILES = [f"{scheme}://me:{secret}@127.0.0.1:1/x.csv" for secret in SECRETS for scheme in ("nothing", "file")]
HTTP = [f"http://me:{secret}@127.0.0.1:9" for secret in SECRETS]


def fail(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert execute(list(arguments)) in (1, 2)
    found = "".join(capfd.readouterr())
    assert "error: " in found.lower() or "Traceback" in found
    assert not [piece for piece in PIECES if piece in found], found
    return found


def set_source(project: Project, url: str) -> None:
    source = {"kind": "sql", "url": url, "query": "select 1"} if url in SQL else {"kind": "files", "path": url}
    project.change("params.yaml", "detectors", "orders", "ingest", "source", value=source)


@pytest.mark.parametrize("url", [*SQL, *FILES])
def test_a_source_that_cannot_be_read_is_named_without_its_password(
    project: Project, capfd: pytest.CaptureFixture[str], url: str
) -> None:
    set_source(project, url)
    fail(capfd, "ingest", "orders")


def test_a_traceback_shows_no_password(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    set_source(project, SQL[2])
    assert "Traceback" in fail(capfd, "--debug", "ingest", "orders")


@pytest.mark.parametrize("name", ["NIGHTJAR_MLFLOW", "NIGHTJAR_WAREHOUSE", "NIGHTJAR_LAKE", "PREFECT_API_URL"])
def test_a_setting_that_leads_nowhere_is_named_without_its_password(
    project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    urls = {"NIGHTJAR_WAREHOUSE": SQL, "NIGHTJAR_LAKE": FILES[::2], "PREFECT_API_URL": HTTP[1:3]}.get(name, HTTP)
    for url in urls:
        monkeypatch.setenv(name, url)
        fail(capfd, "status", "orders")


# Every command that opens the warehouse; those that train or serve open it first.
COMMANDS = {
    "backfill orders": ("--from", "2026-03-30", "--to", "2026-03-31"), "backup": ("copy",),
    "case orders 1": (), "cases orders": (), "compare orders": (), "delete orders": ("--yes",), "erase orders a": (),
    "explain orders a": (), "export": ("copy",), "flags orders": (), "ingest orders": (), "metrics": (), "migrate": (),
    "prune": (), "reduce orders": (), "replay orders": ("--date", "2026-03-30"), "review orders": (), "run orders": (),
    "score orders": ("--date", "2026-03-30"), "status": (), "suppress orders": (), "train orders": (),
    "verify orders": (),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_the_password_of_a_warehouse_that_is_away(
    project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for url in SQL:
        monkeypatch.setenv("NIGHTJAR_WAREHOUSE", url)
        assert execute([*command.split(), *COMMANDS[command]]) in (1, 2)
        found = "".join(capfd.readouterr())
        assert "The warehouse" in found
        assert not [piece for piece in PIECES if piece in found], found


@pytest.mark.parametrize("url", SQL)
def test_init_names_the_database_of_a_query_without_its_password(
    project: Project, capfd: pytest.CaptureFixture[str], url: str
) -> None:
    fail(capfd, "init", "other", "--source", "select 1", "--url", url)


def test_init_stores_no_password_of_a_file(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert "${PASSWORD}" in fail(capfd, "init", "other", "--source", "ftp://me:sesame7f@127.0.0.1:1/x.csv")
    assert "${PASSWORD}" in fail(capfd, "init", "other", "--source", "https://127.0.0.1:1/x.csv?token=sesame7f")


def test_a_failed_night_keeps_no_password_in_the_table_or_in_prefect(
    prefect_server: None, project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", "sesame7f/rhubarb9c@#?")
    monkeypatch.setattr(ingest, "retries", 0)  # of a database that does not answer
    set_source(project, SQL[0])
    project.change(
        "params.yaml", "detectors", "orders", "ingest", "source", "url", value="postgresql://me:${PW}@127.0.0.1:1/d"
    )
    assert "connection refused" in fail(capfd, "score", "orders", "--date", str(CUTOFF)).lower()
    with Warehouse(f"duckdb:///{project.folder}/.nightjar/warehouse.duckdb").begin() as connection:
        [row] = connection.execute(sa.select(attempts)).mappings()
    assert "database does not answer" in row["cause"]
    assert not [piece for piece in PIECES if piece in str(dict(row))]
    assert find_in_prefect() == []


def find_in_prefect() -> list[str]:
    """The tables of the flow runs' database that hold a piece of a secret, once the logs are sent."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import get_current_settings

    APILogWorker.drain_all()
    url = get_current_settings().server.database.connection_url
    assert url is not None
    with sqlite3.connect(url.get_secret_value().split("///")[1].split("?")[0]) as connection:
        text = "\n".join(connection.iterdump())
    assert "database does not answer" in text
    return [line for line in text.splitlines() if any(piece in line for piece in PIECES)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("${DB}", "postgresql://me:plain@h/d"),
        ("postgresql://me:${PW}@h/d", "postgresql://me:p%40%2F%23%3F%26@h/d"),
        ("postgresql://$USER:$PW@h/d", "postgresql://m%2Fe:p%40%2F%23%3F%26@h/d"),
        ("postgresql://${LOGIN}@h/d", "postgresql://me:p%2F@h/d"),
        ("postgresql://h/d?password=${PW}", "postgresql://h/d?password=p%40%2F%23%3F%26"),
        ("postgresql://me:${ESCAPED}@h/${NAME}", "postgresql://me:p%40@h/a/b"),
    ],
)
def test_a_variable_is_escaped_where_the_url_needs_it(url: str, expected: str) -> None:
    environment = {
        "DB": "postgresql://me:plain@h/d", "PW": "p@/#?&", "USER": "m/e", "LOGIN": "me:p/", "ESCAPED": "p%40",
        "NAME": "a/b",
    }  # fmt: skip
    assert fill_in(url, environment) == expected
    with pytest.raises(ParamsInvalid, match="needs the variable PW, which is not set"):
        fill_in("postgresql://me:${PW}@h/d", {})


def test_the_home_folder_is_closed_to_others(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["status"]) == 0
    assert (project.folder / ".nightjar").stat().st_mode & 0o777 == 0o700
