"""The warehouse: its connection, transactions and schema; attempts, labels and reviews; and the reading of nights.

DuckDB (one file, one process at a time), PostgreSQL and the other engines differ in three places only: opening,
locking and bulk loading. Every other statement is the same for all. Instants have a time zone and are UTC. `migrate`
brings an empty or older warehouse to SCHEMA_VERSION.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from filelock import FileLock, Timeout

from tasks.errors import BatchMissing, Failure, NightjarError, SchemaMismatch, SourceInvalid
from tasks.stores.bulk import NO_NUL, load_rows, read_frame
from tasks.stores.faults import FILES, describe_place, explain_database, invalid_url, lacks_driver, reaching_warehouse
from tasks.stores.owner import find_holder, is_dead, is_elsewhere, name_process
from tasks.stores.roles import grant_roles, may_migrate
from tasks.stores.tables import (
    DATA_BROKE,
    Attempt,
    Drift,
    Finding,
    Instant,
    PublishedNight,
    attempts,
    drift,
    findings,
    flagged_anomalies,
    group_scores,
    labels,
    metadata,
    reviews,
    scoring_batches,
)

SCHEMA_VERSION = "0011"  # the newest file in migrations/versions
SCHEMA = sa.table("alembic_version", sa.column("version_num", sa.Text))  # one row, since the first migration
LOCK_TIMEOUT_S = 30.0
LOST_AFTER_S = 600.0
COPY_BYTES = 1 << 20
DRIVERS = (*FILES, "postgresql+psycopg", "snowflake")
NOT_A_WAREHOUSE = {
    "bigquery": "its driver has no transactions: readers could see half a night, and a kill could leave one",
    **dict.fromkeys(("mysql", "mariadb", "mssql", "oracle"), "its keys cannot be text of any length, as ids are"),
}
WITHDRAWN = "withdrawn"  # in place of a verdict: the record has none any more
UNRESOLVED = "unresolved"  # a verdict from which nothing is learnt
REVIEW_COLUMNS = (
    "batch_date",
    "record_id",
    "reviewer",
    "reviewed_at",
    "verdict",
    "note",
    "inclusion",
    "attempt",
    "said",
)


@dataclass(frozen=True)
class Warehouse:
    """The database at `duckdb:///PATH`, `postgresql+psycopg://...` or another of DRIVERS; it connects per transaction.

    Small, and one object for a whole run. Nothing is opened before the first use, which raises ParamsInvalid if the URL
    is invalid and ServiceUnreachable if the file's folder cannot be created. `lost_after_s`: an attempt of another host
    without a heartbeat for this long is dead.
    """

    url: str = field(repr=False)
    lost_after_s: float = LOST_AFTER_S

    @cached_property
    def engine(self) -> sa.Engine:
        """SQLAlchemy's engine, without a pool: a pool would keep DuckDB's file lock."""
        return open_engine(self.url)

    @cached_property
    def reading_engine(self) -> sa.Engine:
        """The same for reading: of a file, one that does not lock it against other readers."""
        return open_engine(self.url, to_write=False) if self.engine.url.drivername in FILES else self.engine

    @property
    def place(self) -> str:
        """The URL without secrets, for messages."""
        return describe_place(self.engine.url)

    @contextmanager
    def begin(
        self, lock_timeout_s: float = LOCK_TIMEOUT_S, isolation_level: str | None = None
    ) -> Iterator[sa.Connection]:
        """One transaction: committed at the end, rolled back by any exception, the connection closed either way.

        Raises ServiceUnreachable if the server is unreachable, its disk is full, or another process or thread holds
        DuckDB's file or a PostgreSQL lock for longer than `lock_timeout_s`; ParamsInvalid if the login lacks a right.
        Do not nest. isolation_level: for PostgreSQL, if all statements must see the same snapshot.
        """
        with _transact(self.engine, _alone(self.engine, lock_timeout_s), lock_timeout_s, isolation_level) as connection:
            yield connection

    @contextmanager
    def begin_reading(
        self, lock_timeout_s: float = LOCK_TIMEOUT_S, isolation_level: str | None = None
    ) -> Iterator[sa.Connection]:
        """One transaction that only reads, and creates temporary tables; raises what `begin` raises.

        Others may have a DuckDB or SQLite file open to read. DuckDB's must exist.
        """
        engine = self.reading_engine
        with _transact(engine, _beside_readers(engine, lock_timeout_s), lock_timeout_s, isolation_level) as connection:
            yield connection

    @contextmanager
    def lock(self, *key: str) -> Iterator[None]:
        """Keep out others that lock the same key, for what is not in the warehouse; raises what `begin` raises.

        DuckDB's file is not opened, which would take longer than most of what is locked.
        """
        if self.engine.dialect.name == "duckdb":
            with _alone(self.engine, LOCK_TIMEOUT_S):
                yield
            return
        with self.begin() as connection:
            lock_key(connection, *key)
            yield

    @contextmanager
    def hold(self) -> Iterator["Warehouse"]:
        """The same warehouse, but all of its reading is in one transaction; raises what `begin` raises."""
        with self.begin_reading(isolation_level="REPEATABLE READ") as connection:
            yield _Held(self.url, self.lost_after_s, connection=connection)

    def migrate(self, version: str | None = None) -> str | None:
        """Bring the tables to SCHEMA_VERSION, or an older one, and return the version they had; None: no tables.

        Takes one query, which only reads, when nothing has to change. Raises SchemaMismatch if the warehouse is newer,
        or if it is older and the login may not change it.
        """
        version = version or SCHEMA_VERSION
        if self.read_schema() == version:
            return version
        with self.begin() as connection:
            found = _read_version(connection)
            if found == version:
                return found
            if found is not None or connection.dialect.name == "postgresql":  # elsewhere there is no lock row yet
                lock_key(connection, "schema")
            found = _read_version(connection)  # another process may have migrated while this one waited
            if found != version:
                _refuse_mismatch(connection, found, version)
                _upgrade_schema(connection, version)
        return found

    def rewrite_file(self, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Write a DuckDB or SQLite file anew, since its free pages still hold deleted rows. Other engines: nothing.

        Raises ServiceUnreachable if another program has the file open; the file is unchanged then.
        """
        name = self.engine.dialect.name
        if name == "duckdb":
            with _alone(self.engine, lock_timeout_s):
                _copy_duckdb(self.engine.url)
        if name == "sqlite":
            with reaching_warehouse(self.engine.url), self.engine.connect() as connection:
                connection.exec_driver_sql("vacuum")

    def copy_files(self, folder: Path, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Path:
        """Copy a DuckDB file, with its log, into a folder while nobody writes; returns the copy's path.

        Without opening it as a database, which takes longer. Raises what `begin_reading` raises.
        """
        path = Path(str(self.engine.url.database))
        with _beside_readers(self.engine, lock_timeout_s), reaching_warehouse(self.engine.url), path.open("rb") as file:
            _lock_against_programs(self.engine, file.fileno(), lock_timeout_s)
            with (folder / path.name).open("wb") as copy:
                shutil.copyfileobj(file, copy, COPY_BYTES)  # not by its path: closing another handle drops the lock
            for log in list_files(path)[1:]:
                if log.exists():
                    shutil.copyfile(log, folder / log.name)
        return folder / path.name

    def is_new(self) -> bool:
        """Whether Nightjar's tables do not exist yet."""
        return self.read_schema() is None

    def read_schema(self) -> str | None:
        """The version of the tables, such as SCHEMA_VERSION, or None if they do not exist yet."""
        if self.engine.url.drivername in FILES and not Path(str(self.engine.url.database)).exists():
            return None  # reading creates no file
        with self.begin_reading() as connection:
            return _read_version(connection)

    def has_rows(self, detector: str) -> bool:
        """Whether a table has a row of a detector."""
        any_row = (
            sa.select(sa.literal(1)).where(table.c.detector == detector).limit(1) for table in metadata.tables.values()
        )
        with self.begin_reading() as connection:
            return any(connection.scalars(one).all() for one in any_row)

    def renew_roles(self) -> list[str]:
        """Create PostgreSQL's roles if missing, grant them their rights again, and return the roles that have them."""
        if self.engine.dialect.name != "postgresql":
            return []
        with self.begin() as connection:
            if not may_migrate(connection, is_new=False):
                return []
            lock_key(connection, "schema")
            return grant_roles(connection)

    def begin_attempt(
        self, detector: str, batch_date: date, step: str, now: datetime, run_id: str | None = None
    ) -> int:
        """Record an attempt of this process at a batch; return its fencing number, one more than the highest so far."""
        key = {"detector": detector, "batch_date": batch_date}
        with self.begin() as connection:
            lock_key(connection, detector, batch_date.isoformat())
            newest = connection.scalar(sa.select(sa.func.max(attempts.c.attempt)).where(*_match(attempts, key)))
            attempt = (newest or 0) + 1
            row = key | {"attempt": attempt, "step": step, "status": "running", "started_at": now, "run_id": run_id}
            alive = {"owner": name_process(), "heartbeat_at": _read_clock(connection)}
            connection.execute(sa.insert(attempts).values(row | alive))
        return attempt

    def record_heartbeat(self, detector: str, batch_date: date, attempt: int) -> None:
        """Record that the process of a running attempt is alive."""
        key = {"detector": detector, "batch_date": batch_date, "attempt": attempt, "status": "running"}
        with self.begin() as connection:
            clock = _read_clock(connection)
            connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(heartbeat_at=clock))

    def reach_step(self, detector: str, batch_date: date, attempt: int, step: str) -> None:
        """Record an attempt's current step, which is also where it failed if it ends there."""
        key = {"detector": detector, "batch_date": batch_date, "attempt": attempt, "status": "running"}
        with self.begin() as connection:
            connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(step=step))

    def fail_attempt(self, detector: str, batch_date: date, attempt: int, failure: Failure, now: datetime) -> None:
        """Record why an attempt failed. An attempt that has published stays published, whatever fails afterwards."""
        key = {"detector": detector, "batch_date": batch_date, "attempt": attempt, "status": "running"}
        with self.begin() as connection:
            outcome = _describe_outcome(failure, now)
            connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(outcome))

    def end_dead_attempts(self, detector: str, now: datetime) -> list[Attempt]:
        """Mark every attempt as failed whose process is dead, and return them as they were.

        A process of this host is dead if it has ended, one of another host or container if its heartbeat stopped
        `lost_after_s` ago.
        """
        running = sa.select(attempts).where(*_match(attempts, {"detector": detector, "status": "running"}))
        with self.begin() as connection:
            found = [Attempt(**row) for row in connection.execute(running).mappings()]
            dead = self._find_dead(connection, found)
            for one, failure in dead:
                key = {name: getattr(one, name) for name in ("detector", "batch_date", "attempt", "status")}
                outcome = _describe_outcome(failure, now)
                connection.execute(sa.update(attempts).where(*_match(attempts, key)).values(outcome))
        return [one for one, _ in dead]

    def _find_dead(self, connection: sa.Connection, running: list[Attempt]) -> list[tuple[Attempt, Failure]]:
        clock, dead = _read_clock(connection) if running else None, []
        for one in running:
            sign = one.heartbeat_at or one.started_at
            is_lost = clock and is_elsewhere(one.owner) and clock - sign > timedelta(seconds=self.lost_after_s)
            if is_lost or is_dead(one.owner):
                how = f"has sent no heartbeat since {sign:%Y-%m-%d %H:%M} UTC" if is_lost else "died without a message"
                what = f"The process of this attempt {how}: {one.owner} (host, process, start, PID namespace)."
                dead.append((one, Failure("ProcessLost", {"what": what})))
        return dead

    def read_nights(self, detector: str, first: date = date.min) -> list[PublishedNight]:
        """Every published night of a detector, by date, from the first date on."""
        of_detector = scoring_batches.c.detector == detector, scoring_batches.c.batch_date >= first
        nights = sa.select(scoring_batches).where(*of_detector)
        with self.begin_reading() as connection:
            return [
                PublishedNight(**row)
                for row in connection.execute(nights.order_by(scoring_batches.c.batch_date)).mappings().all()
            ]

    def get_nights(self, detector: str, batch_date: date | None = None) -> list[PublishedNight]:
        """A detector's published nights, or the one of a date. Raises BatchMissing if nothing is published."""
        published = self.read_nights(detector)
        if found := [night for night in published if batch_date in (None, night.batch_date)]:
            return found
        raise BatchMissing(
            f"{detector} has no published night{f' for {batch_date}' if batch_date else ''}.",
            where=f"scoring_batches in {self.place}",
            got=f"{len(published)} published nights"
            + (f", the newest {published[-1].batch_date}" if published else ""),
            expected="a published night",
            todo=f"nightjar status {detector} shows what is published; nightjar score {detector} --date DATE publishes",
        )

    def read_attempts(self, detector: str, batch_date: date | None = None) -> list[Attempt]:
        """All attempts at a detector's batches, or at one, by date and number; those of dead processes as failed."""
        found = sa.select(attempts).where(attempts.c.detector == detector)
        if batch_date is not None:
            found = found.where(attempts.c.batch_date == batch_date)
        with self.begin_reading() as connection:
            ordered = found.order_by(attempts.c.batch_date, attempts.c.attempt)
            rows = [Attempt(**row) for row in connection.execute(ordered).mappings()]
            dead = self._find_dead(connection, [one for one in rows if one.status == "running"])
        lost = {(one.batch_date, one.attempt): _describe_outcome(failure, None) for one, failure in dead}
        return [replace(one, **lost.get((one.batch_date, one.attempt), {})) for one in rows]

    def read_flags(
        self, detector: str, batch_date: date, last: date | None = None, entities: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """The published flags of one batch date, or up to a last one, by date, worst first: flagged_anomalies.

        entities: only the flags of these.
        """
        table = flagged_anomalies
        flags = sa.select(table).where(
            table.c.detector == detector, table.c.batch_date.between(batch_date, last or batch_date)
        )
        if entities is not None:
            flags = flags.where(table.c.entity.in_(list(entities)))
        with self.begin_reading() as connection:
            return read_frame(connection, flags.order_by(table.c.batch_date, table.c.score.desc(), table.c.record_id))

    def read_groups(self, detector: str, batch_date: date) -> pd.DataFrame:
        """The published groups of one batch, by name, with the columns of group_scores."""
        key = {"detector": detector, "batch_date": batch_date}
        groups = sa.select(group_scores).where(*_match(group_scores, key))
        with self.begin_reading() as connection:
            return read_frame(connection, groups.order_by(group_scores.c.grouping, group_scores.c.group))

    def read_past_groups(self, detector: str, threshold: float) -> pd.DataFrame:
        """All published groups of a detector, see the function `read_past_groups`."""
        with self.begin_reading() as connection:
            return read_past_groups(connection, detector, threshold)

    def replace_drift(self, finding: Finding, found: Sequence[Drift]) -> None:
        """Replace a night's statistics and its finding in one transaction, unless a newer attempt has written its own.

        One statistic of a column at most once.
        """
        night = {"detector": finding.detector, "batch_date": finding.batch_date}
        rows = pd.DataFrame([night | vars(one) for one in found], columns=list(drift.c.keys()))
        row = vars(finding) | {"evidence": json.dumps(finding.evidence, ensure_ascii=False)}
        with self.begin() as connection:
            lock_key(connection, finding.detector, finding.batch_date.isoformat())
            newest = connection.scalar(sa.select(findings.c.attempt).where(*_match(findings, night)))
            if newest is not None and newest > finding.attempt:
                return
            for table in (drift, findings):
                connection.execute(sa.delete(table).where(*_match(table, night)))
            load_rows(connection, drift, rows)
            connection.execute(sa.insert(findings).values(row))

    def read_drift(
        self, detector: str, first: date, last: date, statistic: str | None = None
    ) -> dict[date, list[Drift]]:
        """The statistics of the nights from first to last, or one of them, by batch date."""
        values = drift.c.batch_date, drift.c.column, drift.c.statistic, drift.c.value, drift.c.bound
        chosen = sa.select(*values).where(drift.c.detector == detector, drift.c.batch_date.between(first, last))
        if statistic is not None:
            chosen = chosen.where(drift.c.statistic == statistic)
        found: dict[date, list[Drift]] = {}
        with self.begin_reading() as connection:
            for day, *one in connection.execute(chosen.order_by(*drift.primary_key.columns)).all():
                found.setdefault(day, []).append(Drift(*one))
        return found

    def read_findings(self, detector: str, first: date = date.min) -> list[Finding]:
        """The findings of a detector, by batch date, from the first date on."""
        of_detector = findings.c.detector == detector, findings.c.batch_date >= first
        chosen = sa.select(findings).where(*of_detector).order_by(findings.c.batch_date)
        with self.begin_reading() as connection:
            rows = [dict(row) for row in connection.execute(chosen).mappings().all()]
        return [Finding(**row | {"evidence": tuple(json.loads(row["evidence"]))}) for row in rows]

    def read_broken_dates(self, detector: str) -> set[date]:
        """The batch dates of a detector whose data broke, as monitor has found."""
        chosen = sa.select(findings.c.batch_date).where(
            findings.c.detector == detector, findings.c.finding == DATA_BROKE
        )
        with self.begin_reading() as connection:
            return {*connection.execute(chosen).scalars()}

    def add_labels(self, detector: str, frame: pd.DataFrame) -> int:
        """Add labels and return how many were new; existing ones are skipped.

        frame: record_id (text), label (int), known_at (instant), one row per label. Raises SourceInvalid if a record
        has two different labels known at the same instant.
        """
        with self.begin() as connection:
            staged = _stage_rows(
                connection, labels, frame[["record_id", "label", "known_at"]].assign(detector=detector)
            )
            lock_key(connection, detector, "labels")  # two processes loading the same rows would deadlock
            added = _insert_new(connection, labels, staged)
            both = sa.and_(staged.c.record_id == labels.c.record_id, staged.c.known_at == labels.c.known_at)
            contradicting = sa.select(sa.func.count()).select_from(sa.join(staged, labels, both))
            rows = connection.scalar(
                contradicting.where(labels.c.detector == detector, staged.c.label != labels.c.label)
            )
            if rows:
                raise SourceInvalid(
                    "Some records have two different labels known at the same instant; no label was added.",
                    where=f"labels of detector {detector}",
                    got=f"{rows} contradictory rows",
                    expected="one label per record and instant",
                    todo="correct the label, or give the correction the later instant at which it became known",
                )
        return added

    def read_labels(
        self, detector: str, known_by: datetime | None, record_ids: pd.Series | None = None
    ) -> pd.DataFrame:
        """The labels known at an instant: per record the latest with known_at <= known_by; None: the latest of all.

        Columns record_id, label, known_at, ordered by record_id; limited to `record_ids` if given.
        """
        latest = sa.func.row_number().over(partition_by=labels.c.record_id, order_by=labels.c.known_at.desc())
        columns = [labels.c.record_id, labels.c.label, labels.c.known_at]
        known = sa.select(*columns, latest.label("recency")).where(labels.c.detector == detector)
        if known_by is not None:
            known = known.where(labels.c.known_at <= known_by)
        with self.begin_reading() as connection:
            if record_ids is not None:
                requested = sa.Table(
                    "requested_records", sa.MetaData(), sa.Column("record_id", sa.Text), prefixes=["temporary"]
                )
                requested.create(connection)
                load_rows(connection, requested, pd.DataFrame({"record_id": record_ids}))
                known = known.where(labels.c.record_id.in_(sa.select(requested.c.record_id)))
            ranked = known.subquery()
            current = sa.select(ranked.c.record_id, ranked.c.label, ranked.c.known_at).where(ranked.c.recency == 1)
            return read_frame(connection, current.order_by(ranked.c.record_id))

    def list_labels(self, detector: str) -> pd.DataFrame:
        """All labels, superseded ones included: record_id, label, known_at, ordered by record and instant."""
        columns = [labels.c.record_id, labels.c.label, labels.c.known_at]
        known = sa.select(*columns).where(labels.c.detector == detector)
        with self.begin_reading() as connection:
            return read_frame(connection, known.order_by(labels.c.record_id, labels.c.known_at))

    def list_reports(self, detector: str, first: datetime, end: datetime) -> pd.DataFrame:
        """The records whose first label as an anomaly became known in [first, end): record_id, known_at, by record."""
        known_at = sa.func.min(labels.c.known_at)
        told = sa.select(labels.c.record_id, known_at.label("known_at")).where(
            labels.c.detector == detector, labels.c.label == 1, labels.c.known_at < end
        )
        reports = told.group_by(labels.c.record_id).having(known_at >= first).order_by(labels.c.record_id)
        with self.begin_reading() as connection:
            return read_frame(connection, reports)

    def add_reviews(
        self, detector: str, frame: pd.DataFrame, then: Callable[[sa.Connection], None] = lambda connection: None
    ) -> int:
        """Add verdicts and return how many were new; existing ones are skipped.

        frame: batch_date, record_id, reviewer, reviewed_at (instant), verdict (anomaly, normal, unresolved or
        withdrawn), inclusion (0, 1], and note, attempt and said, which may be absent or null. `then` is called in the
        same transaction, which has the detector's cases locked.
        """
        with self.begin() as connection:
            staged = _stage_rows(connection, reviews, frame.assign(detector=detector))
            lock_cases(connection, detector)
            added = _insert_new(connection, reviews, staged)
            then(connection)
        return added

    def read_reviews(self, detector: str, known_by: datetime | None = None, learnt: bool = True) -> pd.DataFrame:
        """The latest verdict per record, as of `known_by` if given: REVIEW_COLUMNS, ordered by date and record.

        A record whose latest verdict was withdrawn has none. learnt: nor has one that is unresolved.
        """
        current = select_verdicts(detector, known_by).subquery()
        found = sa.select(current).order_by(current.c.batch_date, current.c.record_id)
        if learnt:
            found = found.where(current.c.verdict != UNRESOLVED)
        with self.begin_reading() as connection:
            return read_frame(connection, found)


@dataclass(frozen=True)
class _Held(Warehouse):
    """A warehouse that is only read, in a transaction that is open already."""

    connection: sa.Connection = field(kw_only=True)

    @contextmanager
    def begin_reading(
        self, lock_timeout_s: float = LOCK_TIMEOUT_S, isolation_level: str | None = None
    ) -> Iterator[sa.Connection]:
        """The open transaction."""
        yield self.connection


def read_past_groups(
    connection: sa.Connection, detector: str, threshold: float, before: date | None = None
) -> pd.DataFrame:
    """The groups of a detector's published nights, of those before a date if one is given: grouping, score, records.

    Versions score on different scales. So scores are multiplied by the given threshold over that of their night.
    """
    g, b = group_scores.c, scoring_batches.c
    night = sa.and_(b.detector == g.detector, b.batch_date == g.batch_date)
    found = (
        sa.select(g.grouping, g.score, g.records, b.threshold)
        .join(scoring_batches, night)
        .where(g.detector == detector)
    )
    past = read_frame(connection, found if before is None else found.where(g.batch_date < before))
    scale = np.where(past["threshold"] > 0, threshold / past["threshold"].where(past["threshold"] > 0, 1.0), 1.0)
    return past.assign(score=past["score"] * scale)


def select_verdicts(
    detector: str, known_by: datetime | None = None, records: sa.Select[tuple[str]] | None = None
) -> sa.Select[Any]:
    """The latest verdict per record, REVIEW_COLUMNS, without those that were withdrawn. records: only of these ids."""
    record = [reviews.c.batch_date, reviews.c.record_id]
    # Of two reviewers at the same instant, always the same one counts.
    order = [reviews.c.reviewed_at.desc(), reviews.c.reviewer]
    recency = sa.func.row_number().over(partition_by=record, order_by=order).label("recency")
    given = sa.select(*(reviews.c[name] for name in REVIEW_COLUMNS), recency).where(reviews.c.detector == detector)
    if known_by is not None:
        given = given.where(reviews.c.reviewed_at <= known_by)
    if records is not None:
        given = given.where(reviews.c.record_id.in_(records))
    ranked = given.subquery()
    columns = [ranked.c[name] for name in REVIEW_COLUMNS]
    return sa.select(*columns).where(ranked.c.recency == 1, ranked.c.verdict != WITHDRAWN)


def open_engine(url: str, to_write: bool = True, connections: int = 0) -> sa.Engine:
    """The engine for `duckdb:///PATH`, `postgresql+psycopg://...` or another of DRIVERS; it does not connect yet.

    connections: how many stay open after use. Raises ParamsInvalid, and ServiceUnreachable if the file's folder cannot
    be created.
    """
    parsed = _read_url(url)
    if parsed.drivername in FILES and to_write:
        _create_folder(parsed)
    known: dict[str, dict[str, Any]] = {
        "postgresql+psycopg": {"connect_timeout": 10},
        "sqlite": {"timeout": LOCK_TIMEOUT_S},
        # Of connections that stay open; each has a thread of its own.
        "duckdb": {"read_only": not to_write, "config": {"threads": 1}},
    }
    options = known.get(parsed.drivername, {})
    # Without a pool, which would keep DuckDB's file lock, unless that is wanted.
    pool: dict[str, Any] = {"poolclass": sa.NullPool}
    if connections:
        pool = {"poolclass": sa.QueuePool, "pool_size": connections, "max_overflow": -1, "pool_pre_ping": True}
    elif parsed.drivername == "duckdb":
        pool["creator"] = partial(_attach, str(parsed.database), not to_write)
    try:
        # Hidden parameters keep record ids and labels out of logs.
        engine = sa.create_engine(parsed, hide_parameters=True, connect_args=options, **pool)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        raise lacks_driver(parsed, error) from error
    if parsed.drivername == "sqlite":
        _begin_explicitly(engine, "begin immediate" if to_write else "begin")
    return engine


def _attach(path: str, read_only: bool) -> Any:
    from tasks.stores.attached import AttachedFile  # imports DuckDB, which other warehouses do not need

    return AttachedFile(path, read_only)


def _read_url(url: str) -> sa.URL:
    """Messages never quote the text: it may contain a password."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise invalid_url("not a URL") from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")  # SQLAlchemy's default is another driver
    if parsed.drivername not in DRIVERS:
        reason = NOT_A_WAREHOUSE.get(parsed.get_backend_name(), "publishing is not tested with it")
        raise invalid_url(f"driver {parsed.drivername!r}: {reason}")
    if parsed.drivername in FILES:
        if parsed.database in (None, "", ":memory:"):
            raise invalid_url(f"{parsed.drivername} without a file, which loses everything between two transactions")
    elif "@" in f"{parsed.host}{parsed.database}":
        raise invalid_url("a host or database that contains @: in a user or password write it as %40")
    return parsed


def _copy_duckdb(url: sa.URL) -> None:
    import duckdb

    path = Path(str(url.database))
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with duckdb.connect() as connection:
            old, fresh = (str(one).replace("'", "''") for one in (path, new))
            for statement in (
                f"attach '{old}' as old",  # alone: a reader would keep the old file
                f"attach '{fresh}' as fresh",
                "copy from database old to fresh",
                "detach fresh",
                "detach old",
            ):
                connection.execute(statement)
        shutil.copymode(path, new)
        new.replace(path)
    except (duckdb.Error, OSError) as error:
        raise explain_database(url, str(error)) from error
    finally:
        new.unlink(missing_ok=True)


def _begin_explicitly(engine: sa.Engine, statement: str) -> None:
    """One writing SQLite transaction at a time, DDL included; by default the driver begins late and skips DDL."""
    sa.event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(statement))


def _create_folder(url: sa.URL) -> None:
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_database(url, str(error)) from error


def lock_key(connection: sa.Connection, *key: str) -> None:
    """Block other transactions that lock the same key until this one ends.

    For DuckDB the open file is the lock. Engines without named locks use one row for all keys: the first transaction to
    update it blocks the others.
    """
    if connection.dialect.name == "postgresql":
        number = sa.func.hashtextextended("\x1f".join(("nightjar", *key)), 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
    elif connection.dialect.name != "duckdb":
        connection.execute(sa.update(SCHEMA).values(version_num=SCHEMA.c.version_num))


def lock_cases(connection: sa.Connection, detector: str) -> None:
    """Block others that change a detector's cases or verdicts. Lock it after a batch, never before."""
    lock_key(connection, detector, "cases")


def _refuse_mismatch(connection: sa.Connection, found: str | None, version: str) -> None:
    where = describe_place(connection.engine.url)
    if found is not None and found > SCHEMA_VERSION:
        raise SchemaMismatch(
            "The warehouse was migrated by a newer Nightjar.",
            where=where,
            got=f"schema {found}",
            expected=f"schema {SCHEMA_VERSION} or older",
            todo="install the newer Nightjar here too; if the database belongs to another program such as MLflow, "
            "give Nightjar a separate database",
        )
    if not may_migrate(connection, is_new=found is None):
        raise SchemaMismatch(
            "The warehouse is older than this Nightjar, and this login may not change its tables.",
            where=where,
            got=f"schema {found}" if found else "none of Nightjar's tables",
            expected=f"schema {version}",
            todo="ask the owner of the warehouse to run: nightjar migrate",
        )


def _stage_rows(connection: sa.Connection, table: sa.Table, frame: pd.DataFrame) -> sa.Table:
    """Load the frame into a temporary table like `table`, dropped with the connection. Call it before locking.

    Snowflake commits when a table is created, which would release the lock.
    """
    staged = sa.Table(f"staged_{table.name}", sa.MetaData(), *_copy_columns(table), prefixes=["temporary"])
    staged.create(connection)
    load_rows(connection, staged, frame)
    return staged


def _insert_new(connection: sa.Connection, table: sa.Table, staged: sa.Table) -> int:
    """Insert the staged rows whose key is new, one row per key, and return how many; the caller holds the lock."""
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


@contextmanager
def _transact(
    engine: sa.Engine, turn: AbstractContextManager[None], lock_timeout_s: float, isolation_level: str | None
) -> Iterator[sa.Connection]:
    """A transaction, opened when it is its turn."""
    if isolation_level and engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level=isolation_level)
    with (
        turn,
        _connect(engine, lock_timeout_s) as connection,
        reaching_warehouse(engine.url),
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            lock_timeout = sa.func.set_config("lock_timeout", f"{round(lock_timeout_s * 1000)}ms", True)
            connection.execute(sa.select(lock_timeout))
        yield connection


@contextmanager
def _alone(engine: sa.Engine, lock_timeout_s: float) -> Iterator[None]:
    """Keep the other threads and processes of Nightjar out of DuckDB's file.

    DuckDB's own lock is not enough: when processes opened and closed one file in quick succession, committed rows were
    lost (found by tests/torture/test_races.py).
    """
    if engine.dialect.name != "duckdb":
        yield
        return
    lock = FileLock(_lock_file(engine), timeout=lock_timeout_s, poll_interval=0.01)
    try:
        lock.acquire()
    except Timeout:
        raise _held_too_long(engine, lock_timeout_s) from None
    except OSError as error:
        raise explain_database(engine.url, str(error)) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _beside_readers(engine: sa.Engine, lock_timeout_s: float) -> Iterator[None]:
    """Keep Nightjar's writers, but not its readers, out of DuckDB's file: a shared lock on the file of `_alone`."""
    if engine.dialect.name != "duckdb":
        yield
        return
    try:
        lock = os.open(_lock_file(engine), os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError:  # a folder in which this user cannot write, and nobody has written yet
        yield
        return
    try:
        deadline = time.monotonic() + lock_timeout_s
        while not _lock_shared(lock):
            if time.monotonic() >= deadline:
                raise _held_too_long(engine, lock_timeout_s)
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def list_files(path: Path) -> list[Path]:
    """A DuckDB file and its log, which is there after a crash."""
    return [path, path.with_name(f"{path.name}.wal")]


def _lock_against_programs(engine: sa.Engine, file: int, lock_timeout_s: float) -> None:
    """Wait until no other program has DuckDB's file open to write: with the lock that DuckDB itself takes to read."""
    deadline = time.monotonic() + lock_timeout_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise explain_database(engine.url, "another program has the file open to write") from error
            time.sleep(0.05)


def _lock_shared(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(engine: sa.Engine) -> str:
    return f"{engine.url.database}.lock"


def _held_too_long(engine: sa.Engine, lock_timeout_s: float) -> NightjarError:
    holder = find_holder(_lock_file(engine))
    held = f"another process or thread of Nightjar held it for {lock_timeout_s:g} s"
    return explain_database(engine.url, f"{held}: {holder}" if holder else held)


def _connect(engine: sa.Engine, lock_timeout_s: float) -> sa.Connection:
    """Open the connection, waiting while another process has DuckDB's file open."""
    deadline = time.monotonic() + lock_timeout_s
    while True:
        try:
            return engine.connect()
        except sa.exc.DBAPIError as error:
            if "Could not set lock" not in str(error.orig) or time.monotonic() >= deadline:
                raise explain_database(engine.url, error) from error
            time.sleep(0.05)


def _read_clock(connection: sa.Connection) -> datetime:
    """The database's time, the same for all hosts. Written as a value: some engines would store their local time."""
    clock: datetime = connection.execute(sa.select(sa.func.now(type_=Instant))).scalar_one()
    return clock


def _read_version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.select(SCHEMA.c.version_num))


def _upgrade_schema(connection: sa.Connection, version: str) -> None:
    from alembic import command  # takes 0.3 s to import, and is needed only for a schema change
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "tasks.stores:migrations")
    command.upgrade(config, version)


def _describe_outcome(failure: Failure, now: datetime | None) -> dict[str, Any]:
    return {
        "status": "failed",
        "cause": failure.line.replace("\0", NO_NUL),
        "error": failure.error,
        "parts": json.dumps(dict(failure.parts), ensure_ascii=False),
        "finished_at": now,
    }


def _match(table: sa.Table, values: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


def _copy_columns(table: sa.Table) -> list[sa.Column[Any]]:
    return [sa.Column(column.name, column.type) for column in table.c]
