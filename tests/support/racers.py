"""Processes that publish the same batch at once, and readers that watch them."""

import random
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import sqlalchemy as sa

from tasks.errors import PublishConflict
from tasks.publish import publish_night
from tasks.stores.tables import Night, flagged_anomalies, group_scores, scoring_batches
from tasks.stores.warehouse import Warehouse

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
RACERS, FLAGS = 8, 5


def make_night(day: date, attempt: int) -> Night:
    return Night(
        detector="race", batch_date=day, input_hash="h", rows_in=10, quarantined=0, excluded=0, scored=10,
        flagged=FLAGS, unseen=0, threshold=1.0, model_name="m", model_version=attempt, scored_at=NOW,
        scores=None, attempt=attempt, seconds=1.0,
    )  # fmt: skip


def make_flags(attempt: int) -> pd.DataFrame:
    """Flags that say whose they are; two attempts share some records."""
    return pd.DataFrame(
        {
            "record_id": [f"r{attempt % 3}-{number}" for number in range(FLAGS)],
            "event_time": pd.date_range("2026-03-01", periods=FLAGS, freq="h", tz="UTC"),
            "score": [attempt + number / 10 for number in range(FLAGS)],
            "percentile_rank": 99.0,
            "p_value": 0.01,
            "causes": f"attempt {attempt}",
            "second_stage_probability": None,
            "suppressed": False,
        }
    )


def prepare(url: str) -> None:
    """Bring the warehouse to its schema."""
    Warehouse(url).migrate()


def publish_once(url: str, day: date, seed: int) -> tuple[int, bool]:
    """Take a number, dawdle, publish; returns the number and whether it was published."""
    rng, engine = random.Random(seed), Warehouse(url)
    attempt = engine.begin_attempt("race", day, "begin", NOW)
    time.sleep(rng.choice([0.0, 0.001, 0.01, 0.03]))
    groups = pd.DataFrame(
        {"grouping": "shop", "q": 0.99, "group": [f"g{attempt}"], "score": [float(attempt)], "records": [attempt]}
    )
    try:
        publish_night(engine, make_night(day, attempt), make_flags(attempt), NOW, lambda: "h", groups)
    except PublishConflict:
        return attempt, False
    return attempt, True


def read_whole(url: str, day: date) -> int | None:
    """The attempt whose result is published, by one statement; AssertionError if it is a mix of several."""
    flags, batches, groups = flagged_anomalies, scoring_batches, group_scores
    of = lambda table: (table.c.detector == batches.c.detector, table.c.batch_date == batches.c.batch_date)  # noqa: E731
    details = [
        sa.select(what).where(*of(flags)).scalar_subquery()
        for what in (sa.func.count(), sa.func.min(flags.c.attempt), sa.func.max(flags.c.attempt),
                     sa.func.min(flags.c.score), sa.func.max(flags.c.model_version))
    ]  # fmt: skip
    group = sa.select(sa.func.min(groups.c.records)).where(*of(groups)).scalar_subquery()
    query = sa.select(batches.c.attempt, batches.c.published, *details, group).where(batches.c.batch_date == day)
    with Warehouse(url).begin() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    attempt = row[0]
    assert tuple(row) == (attempt, FLAGS, FLAGS, attempt, attempt, float(attempt), attempt, attempt), row
    return int(attempt)


def watch(url: str, day: date, newest: int, over: Path) -> None:
    """Read over and over until the race is over: never a mix, never an older one again, and this attempt at the end.

    over: a file that is there once every racer has ended.
    """
    seen, is_over = 0, False
    while not is_over:
        is_over = over.exists()  # before the read, so that the last one sees what the last racer left
        found = read_whole(url, day) or 0
        assert found >= seen, f"attempt {found} after {seen}"
        seen = found
    assert seen == newest, f"attempt {seen} stands"


def day_of(round_number: int) -> date:
    """A separate batch date for each round."""
    return date(2020, 1, 1) + timedelta(days=round_number)
