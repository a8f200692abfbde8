"""The warehouse: one short transaction at a time, its schema, its attempts and labels, and what is read from it.

DuckDB (one file, one process at a time), PostgreSQL and the others are told apart in three places only: opening,
locking and bulk loading. Every other statement is the same for all. Instants are UTC, with their zone. `migrate` brings
an empty or older warehouse to SCHEMA_VERSION.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from filelock import FileLock, Timeout

from tasks.errors import RecordMissing, SchemaMismatch, SourceInvalid
from tasks.stores.bulk import _read_frame, load_rows
from tasks.stores.faults import FILES, _explain_failure, _forbidden, _invalid_url, _no_driver, describe_place
from tasks.stores.owner import is_dead, name_process
from tasks.stores.roles import grant_roles, may_migrate
from tasks.stores.tables import (
    Attempt,
    Batch,
    Flag,
    attempts,
    flagged_anomalies,
    group_scores,
    labels,
    reviews,
    scoring_batches,
)

SCHEMA_VERSION = "0005"  # the newest file in migrations/versions
SCHEMA = sa.table("alembic_version", sa.column("version_num", sa.Text))  # one row, from the first migration on
LOCK_TIMEOUT_S = 30.0
DRIVERS = (*FILES, "postgresql+psycopg", "snowflake")
NOT_A_WAREHOUSE = {
    "bigquery": "its driver has no transactions: a reader would see half a night, and a kill would leave it",
    **dict.fromkeys(("mysql", "mariadb", "mssql", "oracle"), "its keys cannot be text of any length, as ids are"),
}
NO_RIGHT = "42501"  # SQLSTATE insufficient_privilege
REVIEW_COLUMNS = ("batch_date", "record_id", "reviewer", "reviewed_at", "verdict", "inclusion")


def open_engine(url: str) -> sa.Engine:
    """Describe the warehouse at `duckdb:///PATH`, `postgresql+psycopg://...` or another of DRIVERS; `begin` connects.

    Raises ParamsInvalid, and ServiceUnreachable where a file's folder cannot be made.
    """
    parsed = _read_url(url)
    if parsed.drivername in FILES:
        _make_folder(parsed)
    waits = {"postgresql+psycopg": {"connect_timeout": 10}, "sqlite": {"timeout": LOCK_TIMEOUT_S}}
    options = waits.get(parsed.drivername, {})
    try:
        # A pool would keep DuckDB's file lock; hidden parameters keep record ids and labels out of logs.
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, hide_parameters=True, connect_args=options)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        raise _no_driver(parsed, error) from error
    if parsed.drivername == "sqlite":
        _begin_immediately(engine)
    return engine


def _read_url(url: str) -> sa.URL:
    """No message quotes the text: it may hold a password."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise _invalid_url("text that is no URL") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")  # without a driver SQLAlchemy takes another one
    if parsed.drivername not in DRIVERS:
        reason = NOT_A_WAREHOUSE.get(parsed.get_backend_name(), "publishing is not proven there")
        raise _invalid_url(f"driver {parsed.drivername!r}: {reason}")
    if parsed.drivername in FILES:
        if parsed.database in (None, "", ":memory:"):
            raise _invalid_url(f"{parsed.drivername} without a file, which forgets everything between two transactions")
    elif "@" in f"{parsed.host}{parsed.database}":
        raise _invalid_url("a host or database with an @: in a user or password it is written %40")
    return parsed


def _begin_immediately(engine: sa.Engine) -> None:
    """One SQLite transaction at a time, DDL included; its driver would begin late and leave DDL out."""
    sa.event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("begin immediate"))


def _make_folder(url: sa.URL) -> None:
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain_failure(url, str(error)) from error


@contextmanager
def begin(engine: sa.Engine, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[sa.Connection]:
    """One transaction: committed at the end, rolled back by any exception, the connection closed either way.

    Raises ServiceUnreachable when the server is away, its disk is full, or another process or thread keeps DuckDB's
    file, or a PostgreSQL lock, for longer than `lock_timeout_s`; ParamsInvalid when the login lacks a right. Do not
    nest.
    """
    with _alone(engine, lock_timeout_s), _connect(engine, lock_timeout_s) as connection:
        try:
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    lock_timeout = sa.func.set_config("lock_timeout", f"{round(lock_timeout_s * 1000)}ms", True)
                    connection.execute(sa.select(lock_timeout))
                yield connection
        except sa.exc.DBAPIError as error:
            # Operational: a server that went away, a lock refused, a full disk. Anything else is a fault of ours.
            if error.connection_invalidated or isinstance(error, sa.exc.OperationalError):
                raise _explain_failure(engine.url, error) from error
            if getattr(error.orig, "sqlstate", None) == NO_RIGHT:
                raise _forbidden(engine.url, error.orig) from error
            raise


def lock_key(connection: sa.Connection, *key: str) -> None:
    """Make others that lock the same key wait until this transaction ends.

    DuckDB's open file is the lock. Engines without locks by name have one row that all keys share: who updates it first
    makes the others wait.
    """
    if connection.dialect.name == "postgresql":
        number = sa.func.hashtextextended("\x1f".join(("nightjar", *key)), 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
    elif connection.dialect.name != "duckdb":
        connection.execute(sa.update(SCHEMA).values(version_num=SCHEMA.c.version_num))


def migrate(engine: sa.Engine, version: str | None = None) -> str | None:
    """Bring the tables to SCHEMA_VERSION, or an older one, and return the version they had; None: there were none.

    Costs one query where there is nothing to do. Raises SchemaMismatch where the warehouse is newer, or older and the
    login may not change it.
    """
    version = version or SCHEMA_VERSION
    with begin(engine) as connection:
        found = _read_version(connection)
        if found == version:
            return found
        if found is not None or connection.dialect.name == "postgresql":  # elsewhere the lock is a row yet to come
            lock_key(connection, "schema")
        found = _read_version(connection)  # another process may have migrated while this one waited
        if found != version:
            _refuse_mismatch(connection, found, version)
            _upgrade_schema(connection, version)
    return found


def _refuse_mismatch(connection: sa.Connection, found: str | None, version: str) -> None:
    where = describe_place(connection.engine.url)
    if found is not None and found > SCHEMA_VERSION:
        raise SchemaMismatch(
            "the warehouse was migrated by a newer Nightjar",
            where=where,
            got=f"schema {found}",
            expected=f"schema {SCHEMA_VERSION} or older",
            todo="install the newer Nightjar here too; if the database is another program's, MLflow's for example, "
            "give Nightjar one of its own",
        )
    if not may_migrate(connection, is_new=found is None):
        raise SchemaMismatch(
            "the warehouse is older than this Nightjar, and this login may not change its tables",
            where=where,
            got=f"schema {found}" if found else "none of Nightjar's tables",
            expected=f"schema {version}",
            todo="let the owner of the warehouse run: nightjar migrate",
        )


def renew_roles(engine: sa.Engine) -> list[str]:
    """Make PostgreSQL's roles where there are none and grant them their rights again; returns those that have them."""
    with begin(engine) as connection:
        if connection.dialect.name != "postgresql" or not may_migrate(connection, is_new=False):
            return []
        lock_key(connection, "schema")
        return grant_roles(connection)


def is_new(engine: sa.Engine) -> bool:
    """Whether no version of Nightjar has made its tables here yet."""
    return read_schema(engine) is None


def read_schema(engine: sa.Engine) -> str | None:
    """The version of the tables, such as SCHEMA_VERSION, or None where there are none yet."""
    with begin(engine) as connection:
        return _read_version(connection)


def begin_attempt(
    engine: sa.Engine, detector: str, batch_date: date, step: str, now: datetime, run_id: str | None = None
) -> int:
    """Record a try of this process at a batch; return its fencing number: one more than any before, also in a race."""
    key = {"detector": detector, "batch_date": batch_date}
    with begin(engine) as connection:
        lock_key(connection, detector, batch_date.isoformat())
        newest = connection.scalar(sa.select(sa.func.max(attempts.c.attempt)).where(*_match(attempts, key)))
        attempt = (newest or 0) + 1
        row = key | {"attempt": attempt, "step": step, "status": "running", "started_at": now, "run_id": run_id}
        connection.execute(sa.insert(attempts).values(row | {"owner": name_process()}))
    return attempt


def fail_attempt(
    engine: sa.Engine, detector: str, batch_date: date, attempt: int, step: str, cause: str, now: datetime
) -> None:
    """Record where and why a try ended. A try that published stays published, whatever fails after it."""
    key = {"detector": detector, "batch_date": batch_date, "attempt": attempt, "status": "running"}
    outcome = {"status": "failed", "step": step, "cause": cause, "finished_at": now}
    with begin(engine) as connection:
        connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(outcome))


def bury_dead(engine: sa.Engine, detector: str, now: datetime) -> list[Attempt]:
    """Mark as failed every try whose process, on this host, died without a word; returns them as they were."""
    running = sa.select(attempts).where(*_match(attempts, {"detector": detector, "status": "running"}))
    with begin(engine) as connection:
        tries = [Attempt(**row) for row in connection.execute(running).mappings()]
        dead = [attempt for attempt in tries if is_dead(attempt.owner)]
        for one in dead:
            key = {name: getattr(one, name) for name in ("detector", "batch_date", "attempt", "status")}
            cause = f"its process died without a word: {one.owner} (host, process, born)"
            outcome = {"status": "failed", "cause": cause, "finished_at": now}
            connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(outcome))
    return dead


def read_batches(engine: sa.Engine, detector: str) -> list[Batch]:
    """Every published night of a detector, by date."""
    nights = sa.select(scoring_batches).where(scoring_batches.c.detector == detector)
    with begin(engine) as connection:
        return [Batch(**row) for row in connection.execute(nights.order_by(scoring_batches.c.batch_date)).mappings()]


def read_attempts(engine: sa.Engine, detector: str, batch_date: date | None = None) -> list[Attempt]:
    """Every try of a detector, or of one of its batches, by date and number."""
    tries = sa.select(attempts).where(attempts.c.detector == detector)
    if batch_date is not None:
        tries = tries.where(attempts.c.batch_date == batch_date)
    with begin(engine) as connection:
        ordered = tries.order_by(attempts.c.batch_date, attempts.c.attempt)
        return [Attempt(**row) for row in connection.execute(ordered).mappings()]


def read_flags(engine: sa.Engine, detector: str, batch_date: date) -> pd.DataFrame:
    """The published flags of one batch, worst first; the columns of flagged_anomalies."""
    key = {"detector": detector, "batch_date": batch_date}
    flags = sa.select(flagged_anomalies).where(*_match(flagged_anomalies, key))
    with begin(engine) as connection:
        return _read_frame(connection, flags.order_by(flagged_anomalies.c.score.desc(), flagged_anomalies.c.record_id))


def read_groups(engine: sa.Engine, detector: str, batch_date: date) -> pd.DataFrame:
    """The published groups of one batch, by name; the columns of group_scores."""
    key = {"detector": detector, "batch_date": batch_date}
    groups = sa.select(group_scores).where(*_match(group_scores, key))
    with begin(engine) as connection:
        return _read_frame(connection, groups.order_by(group_scores.c.group))


def find_flag(engine: sa.Engine, detector: str, record_id: str) -> Flag:
    """The latest night's flag of a record. Raises RecordMissing where no published night flagged it."""
    key = {"detector": detector, "record_id": record_id}
    newest = flagged_anomalies.c.batch_date.desc()
    with begin(engine) as connection:
        flags = sa.select(flagged_anomalies).where(*_match(flagged_anomalies, key)).order_by(newest).limit(1)
        row = connection.execute(flags).mappings().first()
    if row is None:
        raise RecordMissing(
            "no published night flagged this record",
            where=f"detector {detector}",
            got=f"record_id {record_id!r}",
            todo="check the id; a record at or below the threshold is scored but not kept in the warehouse",
        )
    return Flag(**row)


def add_labels(engine: sa.Engine, detector: str, frame: pd.DataFrame) -> int:
    """Keep what was learnt and return how many labels were new; labels already there are left out.

    frame: record_id (text), label (int), known_at (instant), one row per label learnt. Raises SourceInvalid where
    one record has two labels known at one instant: nobody could say which one is right.
    """
    with begin(engine) as connection:
        staged = _stage_rows(connection, labels, frame[["record_id", "label", "known_at"]].assign(detector=detector))
        lock_key(connection, detector, "labels")  # two loaders of the same rows would deadlock
        added = _insert_new(connection, labels, staged)
        both = sa.and_(staged.c.record_id == labels.c.record_id, staged.c.known_at == labels.c.known_at)
        contradicting = sa.select(sa.func.count()).select_from(sa.join(staged, labels, both))
        rows = connection.scalar(contradicting.where(labels.c.detector == detector, staged.c.label != labels.c.label))
        if rows:
            raise SourceInvalid(
                "records have two different labels known at the same instant; no label was kept",
                where=f"labels of detector {detector}",
                got=f"{rows} contradicting rows",
                expected="one label per record and instant",
                todo="correct the label, or give the correction the later instant at which it was known",
            )
    return added


def _stage_rows(connection: sa.Connection, table: sa.Table, frame: pd.DataFrame) -> sa.Table:
    """Load the frame into a temporary table like `table`; it goes with the connection. Not under a lock.

    Snowflake commits where a table is made, which would end the lock.
    """
    staged = sa.Table(f"staged_{table.name}", sa.MetaData(), *_copy_columns(table), prefixes=["temporary"])
    staged.create(connection)
    load_rows(connection, staged, frame)
    return staged


def _insert_new(connection: sa.Connection, table: sa.Table, staged: sa.Table) -> int:
    """Insert the staged rows whose key the table lacks, one row a key, and return how many; the key is locked."""
    names, keys = table.c.keys(), table.primary_key.columns.keys()
    others = [staged.c[name] for name in names if name not in keys]
    turn = sa.func.row_number().over(partition_by=[staged.c[name] for name in keys], order_by=others)
    ranked = sa.select(staged, turn.label("turn")).subquery()
    there = sa.select(sa.literal(1)).select_from(table).where(*(table.c[name] == ranked.c[name] for name in keys))
    new = sa.select(*(ranked.c[name] for name in names)).where(ranked.c.turn == 1, ~there.exists())
    inserted = connection.execute(
        sa.insert(table).from_select(names, new), execution_options={"preserve_rowcount": True}
    )
    return inserted.rowcount


def read_labels(
    engine: sa.Engine, detector: str, known_by: datetime, record_ids: pd.Series | None = None
) -> pd.DataFrame:
    """The labels as they were known at an instant: per record the latest with known_at <= known_by.

    Columns record_id, label, known_at, by record_id; of `record_ids` only, where given.
    """
    latest = sa.func.row_number().over(partition_by=labels.c.record_id, order_by=labels.c.known_at.desc())
    columns = [labels.c.record_id, labels.c.label, labels.c.known_at]
    known = sa.select(*columns, latest.label("recency")).where(
        labels.c.detector == detector, labels.c.known_at <= known_by
    )
    with begin(engine) as connection:
        if record_ids is not None:
            asked = sa.Table("asked_records", sa.MetaData(), sa.Column("record_id", sa.Text), prefixes=["temporary"])
            asked.create(connection)
            load_rows(connection, asked, pd.DataFrame({"record_id": record_ids}))
            known = known.where(labels.c.record_id.in_(sa.select(asked.c.record_id)))
        ranked = known.subquery()
        current = sa.select(ranked.c.record_id, ranked.c.label, ranked.c.known_at).where(ranked.c.recency == 1)
        return _read_frame(connection, current.order_by(ranked.c.record_id))


def list_labels(engine: sa.Engine, detector: str) -> pd.DataFrame:
    """Every label that was ever learnt: record_id, label, known_at, by record and instant."""
    columns = [labels.c.record_id, labels.c.label, labels.c.known_at]
    known = sa.select(*columns).where(labels.c.detector == detector)
    with begin(engine) as connection:
        return _read_frame(connection, known.order_by(labels.c.record_id, labels.c.known_at))


def add_reviews(engine: sa.Engine, detector: str, frame: pd.DataFrame) -> int:
    """Keep verdicts and return how many were new; a verdict already there is left out.

    frame: batch_date, record_id, reviewer, reviewed_at (instant), verdict ("anomaly" or "normal"), inclusion (0, 1].
    """
    with begin(engine) as connection:
        staged = _stage_rows(connection, reviews, frame.assign(detector=detector))
        lock_key(connection, detector, "reviews")
        return _insert_new(connection, reviews, staged)


def read_reviews(engine: sa.Engine, detector: str, known_by: datetime | None = None) -> pd.DataFrame:
    """Each reviewed record's latest verdict (as of an instant, if one is named), by date and record: REVIEW_COLUMNS."""
    record = [reviews.c.batch_date, reviews.c.record_id]
    # Two reviewers at one instant: one of them, but always the same one.
    order = [reviews.c.reviewed_at.desc(), reviews.c.reviewer]
    recency = sa.func.row_number().over(partition_by=record, order_by=order).label("recency")
    columns = [reviews.c[name] for name in REVIEW_COLUMNS]
    given = sa.select(*columns, recency).where(reviews.c.detector == detector)
    if known_by is not None:
        given = given.where(reviews.c.reviewed_at <= known_by)
    ranked = given.subquery()
    current = sa.select(*(ranked.c[name] for name in REVIEW_COLUMNS)).where(ranked.c.recency == 1)
    with begin(engine) as connection:
        return _read_frame(connection, current.order_by(ranked.c.batch_date, ranked.c.record_id))


@contextmanager
def _alone(engine: sa.Engine, lock_timeout_s: float) -> Iterator[None]:
    """Keep the other threads and processes of Nightjar out of DuckDB's file.

    DuckDB's own lock is not enough: of processes that open and close one file in quick turns, some lost rows that
    others had committed (tests/torture/test_races.py found it).
    """
    if engine.dialect.name != "duckdb":
        yield
        return
    lock = FileLock(f"{engine.url.database}.lock", timeout=lock_timeout_s, poll_interval=0.01)
    try:
        lock.acquire()
    except Timeout:
        kept = f"another process or thread of Nightjar kept it for {lock_timeout_s:g} s"
        raise _explain_failure(engine.url, kept) from None
    except OSError as error:
        raise _explain_failure(engine.url, str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _connect(engine: sa.Engine, lock_timeout_s: float) -> sa.Connection:
    """Open the connection, waiting while another process has DuckDB's file open."""
    deadline = time.monotonic() + lock_timeout_s
    while True:
        try:
            return engine.connect()
        except sa.exc.DBAPIError as error:
            if "Could not set lock" not in str(error.orig) or time.monotonic() >= deadline:
                raise _explain_failure(engine.url, error) from error
            time.sleep(0.05)


def _read_version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.select(SCHEMA.c.version_num))


def _upgrade_schema(connection: sa.Connection, version: str) -> None:
    from alembic import command  # 0.3 s, needed once in a schema's life
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "tasks.stores:migrations")
    command.upgrade(config, version)


def _match(table: sa.Table, values: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


def _copy_columns(table: sa.Table) -> list[sa.Column[Any]]:
    return [sa.Column(column.name, column.type) for column in table.c]
