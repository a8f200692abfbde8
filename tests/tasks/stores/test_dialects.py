"""Other engines than DuckDB and PostgreSQL: SQLite for real, PostgreSQL by the general way, the rest by compiling.

What is compiled are the statements that really run: a campaign executes every function that has any, and a test holds
it to that.
"""

import ast
import io
import json
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from published import make_flag, publish_flags
from racers import FLAGS, NOW, make_flags, make_night
from sites import open_site
from texts import AWKWARD
from toy import PARAMS

from tasks.errors import Failure, ParamsInvalid, PublishConflict, StoreNotEmpty
from tasks.follow_up import actions, approvals, cases, keeping
from tasks.follow_up.alerts import Planned
from tasks.follow_up.deliveries import count_failed, find_failing, keep_messages, list_deliveries, send_due
from tasks.follow_up.facts import read_facts
from tasks.follow_up.suppressions import (
    add_suppression,
    count_suppressed,
    end_suppression,
    read_suppressions,
    request_suppression,
    suppress_cause,
)
from tasks.on_demand import nearest
from tasks.on_demand.case import show_case_page
from tasks.on_demand.entity import read_others, show_entity
from tasks.on_demand.explorer import draw_causes, draw_entities
from tasks.on_demand.find import find
from tasks.on_demand.history import read_case_history
from tasks.on_demand.night import Wanted, find_newest, list_cases_of_night, show_night
from tasks.on_demand.queue import VIEWS, count_waiting, next_sample, read_inclusion, show_queue
from tasks.on_demand.recall import estimate_recall
from tasks.on_demand.similar import find_similar
from tasks.on_demand.standing import count_verdicts
from tasks.on_demand.worth import count_worth
from tasks.publish import publish_night
from tasks.report import read_night, render_index
from tasks.review import draw_sample
from tasks.rows.contract import Contract
from tasks.rows.params import CasesParams, DetectorParams, RetentionParams
from tasks.rows.record import RecordRule
from tasks.stores import tables
from tasks.stores.site import Site
from tasks.stores.tables import DATA_BROKE, Drift, Finding, attempts, metadata, superseded_anomalies
from tasks.stores.warehouse import (
    SCHEMA_VERSION,
    Warehouse,
)
from tasks.upkeep import nights, prune
from tasks.upkeep.backup import check_tables_empty, export_tables, fill_tables
from tasks.upkeep.delete import delete_rows
from tasks.upkeep.erase import erase_rows, read_published
from tasks.upkeep.prune import hold_batch, prune_tables
from tasks.upkeep.verify import CheckedNight, check_cases

DAY = date(2026, 3, 1)
DETECTOR = "race"  # of the racers' nights


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh, empty SQLite file."""
    return f"sqlite:///{tmp_path}/other/w.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest) -> Warehouse:
    """A migrated warehouse that is used as any engine is that the code does not know by name."""
    if request.param == "sqlite":
        engine = Warehouse(request.getfixturevalue("sqlite_url"))
        engine.migrate()
        return engine
    engine = Warehouse(request.getfixturevalue("postgres_warehouse_url"))
    engine.migrate()
    engine.engine.dialect.name = "another"  # many writers at once, read committed: what Snowflake promises too
    return engine


def publish(engine: Warehouse, day: date, attempt: int) -> None:
    groups = pd.DataFrame(
        {"grouping": "shop", "q": 0.99, "group": ["g"], "score": [float(attempt)], "records": [attempt]}
    )
    publish_night(engine, make_night(day, attempt), make_flags(attempt), NOW, lambda: "h", groups)


def run_campaign(site: Site, folder: Path) -> dict[str, Any]:
    """Everything that Nightjar does in a warehouse; returns what was read from it, and last every table."""
    engine, read = site.warehouse, {}
    read["migrated"] = (engine.is_new(), engine.migrate(), engine.migrate())
    for attempt in (1, 2):
        assert engine.begin_attempt(DETECTOR, DAY, "begin", NOW) == attempt
        publish(engine, DAY, attempt)
    engine.begin_attempt(DETECTOR, DAY, "begin", NOW)
    engine.reach_step(DETECTOR, DAY, 3, "score")
    engine.record_heartbeat(DETECTOR, DAY, 3)
    engine.fail_attempt(DETECTOR, DAY, 3, Failure("OSError", {"what": "r2-0 is not r2-01"}), NOW)
    engine.begin_attempt(DETECTOR, DAY + timedelta(days=1), "begin", NOW)
    publish(engine, DAY + timedelta(days=1), 1)
    engine.begin_attempt(DETECTOR, DAY, "begin", NOW)
    with engine.begin() as connection:  # of a process that is dead
        connection.execute(
            sa.update(attempts).where(attempts.c.attempt == 4).values(owner=f"{socket.gethostname()} 1 1")
        )
    read["dead"] = [attempt.attempt for attempt in engine.end_dead_attempts(DETECTOR, NOW)]
    ids = [*AWKWARD, *(f"many {n}" for n in range(25_000))]
    labels = pd.DataFrame({"record_id": ids, "label": 1, "known_at": NOW + timedelta(microseconds=1)})
    read["labels"] = [engine.add_labels(DETECTOR, frame) for frame in (labels, labels, labels.iloc[:0])]
    verdict = {"batch_date": DAY, "reviewer": "kim", "reviewed_at": NOW, "verdict": "normal", "inclusion": 0.1}
    verdicts = pd.DataFrame([verdict | {"record_id": record} for record in ("r2-0", "r2-1", "r2-1")])
    read["reviews"] = [engine.add_reviews(DETECTOR, verdicts) for _ in range(2)]
    desk = actions.Desk(engine, DETECTOR, CasesParams(), "kim", NOW + timedelta(seconds=1))
    actions.merge_case(desk, 8, 7)
    actions.judge_case(desk, 7, "confirmed")
    actions.reopen_case(desk, 7)
    read |= read_everything(engine) | read_cases(engine)
    site = replace(site, detector=DETECTOR)
    with hold_batch(site, DAY, NOW) as held:
        read["held"] = held
    read["published"] = read_published(site)
    read["kept"] = prune.read_kept(site)
    statistics = [Drift("amount", "psi", 0.5, 0.1), Drift("", "rows", 100.0, None)]
    for _ in range(2):
        engine.replace_drift(Finding(DETECTOR, DAY, 2, DATA_BROKE, ("in cents",), "stop", NOW), statistics)
    read["watched"] = (
        engine.read_drift(DETECTOR, DAY, DAY),
        engine.read_findings(DETECTOR),
        engine.read_broken_dates(DETECTOR),
    )
    read["told"] = follow_up(site)
    read["desk"] = work_at_the_desk(toy := replace(site, detector="toy"))
    [night] = engine.get_nights("toy", DAY)
    read["verified"] = check_cases(CheckedNight(toy, Contract(columns={}), night, 1, 0))
    limits = RetentionParams(superseded_days=1, attempts_days=1)
    read["pruned"] = prune_tables(site, limits, NOW + timedelta(days=9), dry_run=False)
    read["erased"] = erase_rows(site, "r2-0")
    read["rows"] = export_tables(engine, folder / "copy")
    copy = Warehouse(f"{engine.engine.url.drivername}:///{folder}/copy.{engine.engine.url.drivername}")
    check_tables_empty(copy)
    fill_tables(copy, folder / "copy", SCHEMA_VERSION)
    with pytest.raises(StoreNotEmpty):
        check_tables_empty(copy)
    read["tables"], read["copy"] = read_tables(engine), read_tables(copy)
    with engine.begin() as connection:  # nothing is deleted while a night runs
        connection.execute(sa.update(attempts).where(attempts.c.status == "running").values(status="failed"))
    read["deleted"] = delete_rows(site, dry_run=False)
    return read


def follow_up(site: Site) -> list[Any]:
    """Suppress, tell of what happened to nights, and fail to tell."""
    engine, facts = site.warehouse, read_facts(site, NOW - timedelta(days=9), NOW + timedelta(days=1), is_nightly=True)
    plan = [Planned("rule", name, fact, NOW if name else None) for fact in facts for name in ("up", "down", "")]
    kept = [keep_messages(engine, plan) for _ in range(2)]
    sent = [send_due(engine, lambda name, *_: "" if name == "up" else "no route", lambda: NOW) for _ in range(2)]
    add_suppression(engine, DETECTOR, "card", None, "why", "kim", NOW, NOW + timedelta(days=1))
    end_suppression(engine, DETECTOR, 1, NOW)
    failed = [find_failing(engine), count_failed(engine, DETECTOR)]
    return [facts, kept, sent, list_deliveries(engine), failed, read_suppressions(engine, DETECTOR)]


def work_at_the_desk(site: Site) -> list[Any]:
    """What people do at the desk with a night, and what its screens and the report read."""
    engine, rule, param = (
        site.warehouse,
        RecordRule("card", ("shop",)),
        DetectorParams.model_validate_json(json.dumps(PARAMS)),
    )
    ids = [f"t{number}" for number in range(9)]
    times = pa.array([NOW.replace(hour=3)] * 9, pa.timestamp("us", "UTC"))
    rows = {"record_id": ids, "event_time": times, "card": ["a"] * 9, "shop": ["north"] * 9}
    for zone, table in (("validated", rows), ("scores", {"record_id": ids, "score": [1.0] * 3 + [0.1] * 6})):
        partition = site.lake.write(zone, "toy", DAY)
        with partition.part("part-0") as part:
            part.append(pa.table(table))
        partition.commit({})
    record = {"shop": "north", "spend": 1.5}
    flags = [make_flag("t0", "a", 4.0, record=record), make_flag("t1", "b", record=record), make_flag("t2", None)]
    publish_flags(engine, DAY, [make_flag("t9", "a")], NOW, scored=9)
    publish_flags(engine, DAY, flags, NOW, scored=9)
    finding = Finding("toy", DAY, 2, DATA_BROKE, ("in cents",), "stop", NOW)
    engine.replace_drift(finding, [Drift("", "flag_rate", 0.5, 0.4)])
    ann, ben = (actions.Desk(engine, "toy", CasesParams(), name, NOW) for name in ("ann", "ben"))
    locked = [actions.lock_case(ann, 1, 15), actions.lock_next(ben, 15), actions.lock_next(ben, 15)]
    for desk, verdict in ((ann, "confirmed"), (ben, "expected")):
        actions.judge_case(desk, 1, verdict)
    actions.rate_case(ann, 1, True)
    actions.undo_case(ben, 1)
    number = approvals.ask_approval(ann, [2, 3], "expected")
    decided = approvals.decide_approval(ben, number, approvals.APPROVED)
    for name in ("mine", "yours"):
        keeping.keep_filter(ann, name, {"search": name})
    keeping.drop_filter(ann, "mine")
    keeping.annotate(ann, DAY, "a sale")
    end = NOW + timedelta(days=3)
    suppress_cause(engine, "toy", "a", "spend", "a gift", "ann", NOW, end)
    hiding = replace(rule, pseudonymise=frozenset({"card"}), key=b"key")
    request_suppression(site, hiding, ["spend"], "b", "spend", "a gift", "ann", DAY + timedelta(days=9), NOW)
    drawn = draw_sample(site, rule, DAY, 3, NOW)
    sample = next_sample(site, "ann")
    assert sample is not None
    with engine.begin_reading() as connection:
        seen = [
            find_newest(connection, "toy"), count_waiting(connection, "toy", NOW),
            approvals.read_approvals(connection, "toy"), keeping.read_filters(connection, "toy", "ann"),
        ]  # fmt: skip
    wanted = Wanted(state="all", search="north", value="shop=NORTH")
    return [
        locked, decided, drawn, sample, seen, read_inclusion(site, sample), estimate_recall(site),
        show_night(site, DAY, wanted, NOW), list_cases_of_night(site, DAY, wanted, NOW), find(site, rule, "t1"),
        [show_case_page(site, param.score, case, NOW, lambda version: {}) for case in (1, 3)],
        [show_queue(site, "ann", view, NOW) for view in VIEWS], show_entity(site, param, rule, "a", NOW),
        read_others(site, rule, "a"), draw_entities(site, param), draw_causes(site, param), find_similar(site, 1),
        replace(read_case_history(site, rule, 1), records=[]), count_verdicts(site), count_worth(site),
        nearest._find_worst(site, 1), list(nearest._choose_nights(site, DAY)), nearest._read_abnormal(site, [DAY]),
        nights._count_suppressed(site, DAY), nights._count_superseded(site, DAY), count_suppressed(engine, "toy"),
        read_night(site, DAY).cases, render_index(site) != "",
    ]  # fmt: skip


def read_everything(engine: Warehouse) -> dict[str, Any]:
    ids = pd.Series([AWKWARD[0], "nobody"])
    return {
        "flags": engine.read_flags(DETECTOR, DAY).to_dict("records"),
        "groups": engine.read_groups(DETECTOR, DAY + timedelta(days=1)).to_dict("records"),
        "batches": engine.read_nights(DETECTOR),
        "attempts": [
            replace(attempt, owner=None, heartbeat_at=None) for attempt in engine.read_attempts(DETECTOR, DAY)
        ],
        "known": engine.read_labels(DETECTOR, NOW + timedelta(days=1), ids).to_dict("records"),
        "unknown": engine.read_labels(DETECTOR, NOW).to_dict("records"),
        "reports": [
            engine.list_reports(DETECTOR, NOW, NOW + timedelta(microseconds=end)).to_dict("records") for end in (1, 2)
        ],
        "has rows": [engine.has_rows(name) for name in (DETECTOR, "nobody")],
        "verdicts": [engine.read_reviews(DETECTOR, by).to_dict("records") for by in (None, NOW)],
    }


def read_cases(engine: Warehouse) -> dict[str, Any]:
    with engine.begin_reading() as connection:
        return {
            "cases": cases.read_cases(connection, tables.cases.c.detector == DETECTOR),
            "members": cases.read_members(connection, DETECTOR, tables.cases.c.case_id < 9).to_dict("records"),
            "numbers": cases.read_numbers(connection, DETECTOR, [DAY]).sort_values("record_id").to_dict("records"),
            "events": [cases.read_events(connection, DETECTOR, number) for number in (1, 7, 8)],
        }


def read_tables(engine: Warehouse) -> dict[str, list[str]]:
    """Every table's rows, but for the processes that made them and their signs of life."""
    with engine.begin() as connection:
        return {
            table.name: sorted(
                repr(
                    [
                        value
                        for column, value in zip(table.c, row, strict=True)
                        if column.name not in ("owner", "heartbeat_at")
                    ]
                )
                for row in connection.execute(sa.select(table))
            )
            for table in metadata.sorted_tables
        }


@dataclass
class Heard:
    """The statements that an engine executed, with the names of their parameters, and the functions that did."""

    statements: list[tuple[sa.ClauseElement, list[str] | None]] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)

    def listen(self, connection: Any, statement: Any, many: Any, one: Any, options: Any) -> None:
        parameters = many[0] if many else one
        self.statements.append((statement, list(parameters) if parameters else None))
        frame = sys._getframe()
        while frame := frame.f_back:  # type: ignore[assignment]
            path = Path(frame.f_code.co_filename)
            if "tasks" in path.parts:
                self.functions.add((path.stem, frame.f_code.co_name))


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory, make_any_site: Any) -> dict[str, tuple[dict[str, Any], Heard]]:
    """What the campaign read on DuckDB and on SQLite, and the statements of each."""
    found = {}
    for name in ("duckdb", "sqlite"):
        folder, heard = tmp_path_factory.mktemp(name), Heard()
        sa.event.listen(sa.Engine, "before_execute", heard.listen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.stores.registry.Registry.list_versions", lambda registry: [])
            try:
                found[name] = (run_campaign(make_any_site(f"{name}:///{folder}/w.{name}"), folder), heard)
            finally:
                sa.event.remove(sa.Engine, "before_execute", heard.listen)
    return found


@pytest.fixture(scope="module")
def make_any_site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Site]:
    """A site with the warehouse of the test's choice."""

    def make(warehouse_url: str) -> Site:
        home = tmp_path_factory.mktemp("home")
        return open_site(home, DETECTOR, warehouse=Warehouse(warehouse_url))

    return make


def test_sqlite_holds_and_answers_all_that_duckdb_does(campaigns: dict[str, tuple[dict[str, Any], Heard]]) -> None:
    (duckdb, _), (sqlite, _) = campaigns["duckdb"], campaigns["sqlite"]
    for name in duckdb:
        assert repr(sqlite[name]) == repr(duckdb[name]), name
    assert sqlite["copy"] == sqlite["tables"]
    assert sqlite["migrated"] == (True, None, SCHEMA_VERSION)
    told = {fact.about for fact in sqlite["told"][0]}
    assert sqlite["labels"] == [25_000 + len(AWKWARD), 0, 0]
    assert (sqlite["reviews"], sqlite["dead"], sqlite["pruned"]) == (
        [2, 0],
        [4],
        {"superseded_anomalies": 5, "attempts": 2, "deliveries": 2 * len(told)},
    )


def list_executing_functions() -> set[tuple[str, str]]:
    """The functions of tasks/ that give a warehouse's connection something to execute."""
    found = set()
    for path in (Path(__file__).parents[3] / "tasks").rglob("*.py"):
        text = path.read_text()
        if "warehouse.begin" not in text and path.stem not in ("warehouse", "bulk"):
            continue
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef) and "connection." in (body := ast.unparse(function)):
                calls = ("connection.execute(", "connection.scalar(", "connection.scalars(")
                found |= {(path.stem, function.name)} if any(call in body for call in calls) else set()
    return found


def test_the_campaign_runs_every_function_that_has_a_statement(
    campaigns: dict[str, tuple[dict[str, Any], Heard]],
) -> None:
    executing = list_executing_functions()
    assert len(executing) > 25
    # PostgreSQL's lock_timeout, DuckDB's own, and what needs a champion (tests/tasks/test_review.py).
    others = {("warehouse", "_transact"), ("warehouse", "_copy_duckdb"), ("preview", "read_stamp")}
    assert executing - campaigns["sqlite"][1].functions == others


@pytest.fixture(scope="module")
def dialects() -> dict[str, sa.Dialect]:
    """Every dialect that docs/warehouses.md speaks of."""
    import duckdb_engine
    import snowflake.sqlalchemy.snowdialect as snowflake
    import sqlalchemy_bigquery as bigquery
    from sqlalchemy.dialects import mssql, mysql, oracle, postgresql, sqlite
    from sqlalchemy.sql import functions

    functions._registry["_default"].pop("unnest", None)  # BigQuery's would take PostgreSQL's place in reflection
    built_in = {name: module.dialect() for name, module in {
        "mssql": mssql, "mysql": mysql, "oracle": oracle, "postgresql": postgresql, "sqlite": sqlite,
        "snowflake": snowflake, "bigquery": bigquery,
    }.items()}  # fmt: skip
    return built_in | {"duckdb": duckdb_engine.Dialect()}


NAMES = ("bigquery", "duckdb", "mssql", "mysql", "oracle", "postgresql", "snowflake", "sqlite")


@pytest.mark.parametrize("name", NAMES)
def test_every_statement_that_runs_compiles(
    campaigns: dict[str, tuple[dict[str, Any], Heard]], dialects: dict[str, sa.Dialect], name: str
) -> None:
    statements = campaigns["sqlite"][1].statements
    words = set()
    for statement, names in statements:
        if isinstance(statement, sa.schema.ExecutableDDLElement):
            words.add(str(statement.compile(dialect=dialects[name])))
        elif not isinstance(statement, sa.TextClause):
            words.add(str(statement.compile(dialect=dialects[name], column_keys=names)))
    kinds = {word.split()[0].lower() for word in words}
    assert kinds >= {"select", "insert", "update", "delete", "create", "alter"}


@pytest.mark.parametrize("name", NAMES)
def test_every_migration_compiles(dialects: dict[str, sa.Dialect], name: str) -> None:
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    config, output = Config(), io.StringIO()
    config.set_main_option("script_location", "tasks.stores:migrations")
    steps = reversed(list(ScriptDirectory.from_config(config).walk_revisions()))
    context = MigrationContext.configure(dialect=dialects[name], opts={"as_sql": True, "output_buffer": output})
    with Operations.context(context):
        for step in steps:
            if (step.revision, name) != ("0005", "postgresql"):  # asks the server which roles there are
                step.module.upgrade()
    for table in metadata.sorted_tables:
        assert f"TABLE {dialects[name].identifier_preparer.format_table(table)} (" in output.getvalue()


def test_when_eight_publish_at_once_on_any_other_engine_the_newest_wins(other: Warehouse) -> None:
    def take_number(_: int) -> int:
        return other.begin_attempt(DETECTOR, DAY, "begin", NOW)

    def publish_or_lose(attempt: int) -> bool:
        try:
            publish(other, DAY, attempt)
        except PublishConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(take_number, range(8)))
        assert sorted(numbers) == list(range(1, 9))
        published = dict(zip(numbers, pool.map(publish_or_lose, numbers), strict=True))
    assert published[8]
    assert set(other.read_flags(DETECTOR, DAY)["attempt"]) == {8}
    with other.begin() as connection:
        kept = sa.select(superseded_anomalies.c.superseded_by, sa.func.count()).group_by("superseded_by")
        assert {count for _, count in connection.execute(kept)} <= {FLAGS}


def test_eight_loaders_of_the_same_labels_keep_each_once(other: Warehouse) -> None:
    labels = pd.DataFrame({"record_id": [f"r{n}" for n in range(200)], "label": 0, "known_at": NOW})
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: other.add_labels(DETECTOR, labels), range(8)))
    assert sorted(added) == [0] * 7 + [200]
    assert len(other.read_labels(DETECTOR, NOW)) == 200


def test_a_failure_before_the_commit_leaves_the_old_result_on_any_other_engine(
    other: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [other.begin_attempt(DETECTOR, DAY, "begin", NOW) for _ in range(2)]
    publish(other, DAY, numbers[0])
    before = read_tables(other)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.publish._finish_attempt", fail)
    with pytest.raises(KeyboardInterrupt):
        publish(other, DAY, numbers[1])
    assert read_tables(other) == before


def test_a_sqlite_migration_that_fails_leaves_no_table(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Warehouse(sqlite_url)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alembic.operations.Operations.add_column", fail)
        with pytest.raises(KeyboardInterrupt):
            engine.migrate()
    assert engine.is_new()
    assert engine.migrate() is None


def test_a_driver_that_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'snowflake'")

    monkeypatch.setattr("snowflake.sqlalchemy.snowdialect.SnowflakeDialect.import_dbapi", fail)
    with pytest.raises(ParamsInvalid, match=r"nightjar\[snowflake\]") as refused:
        Warehouse("snowflake://u:s3cret@account/db/public").is_new()
    assert "s3cret" not in str(refused.value)


def test_snowflake_is_opened_with_transactions() -> None:
    engine = Warehouse("snowflake://u:s3cret@account/db/public").engine
    _, options = engine.dialect.create_connect_args(engine.url)
    assert options["autocommit"] is False
