import contextlib
import dataclasses
import json
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from prefect.states import Failed
from texts import AWKWARD

from tasks.errors import Failure, PublishConflict, ReconciliationFailed, ServiceUnreachable
from tasks.publish import FLAG_COLUMNS, Night, publish, publish_night, reconcile_counts
from tasks.stores.tables import case_events, case_flags, cases, superseded_anomalies
from tasks.stores.warehouse import (
    Warehouse,
)

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


def make_night(attempt: int = 1, **changes) -> Night:
    night = Night(
        detector='it\'s a "detector"',
        batch_date=DAY,
        attempt=attempt,
        input_hash="h1",
        rows_in=100_000,
        quarantined=10,
        excluded=5,
        scored=99_985,
        flagged=99_985,
        unseen=2,
        threshold=0.1 + 0.2,
        model_name="cards",
        model_version=3,
        scored_at=NOW,
        seconds=1.5,
        scores=None,
    )
    return dataclasses.replace(night, **changes)


def make_flags(*record_ids: str) -> pd.DataFrame:
    n = len(record_ids)
    return pd.DataFrame(
        {
            "record_id": list(record_ids),
            "event_time": pd.date_range("2026-03-01", periods=n, freq="us", tz="UTC"),
            "score": np.linspace(1e-9, 1 / 3, n),
            "percentile_rank": np.linspace(99, 100, n),
            "p_value": np.linspace(0.01, 1e-300, n),
            "causes": [json.dumps([{"column": f'am"ount\\ {name}', "share": 0.7}]) for name in record_ids],
            "second_stage_probability": np.where(np.arange(n) % 2, 0.25, np.nan),
            "suppressed": np.arange(n) % 3 == 0,
        }
    )


def publish_new(engine: Warehouse, *record_ids: str, now: datetime = NOW) -> Night:
    """Begin an attempt and publish it."""
    attempt = engine.begin_attempt(make_night().detector, DAY, "validate", now)
    night = make_night(attempt)
    publish_night(engine, night, make_flags(*record_ids), now, lambda: "h1")
    return night


def read_everything(engine: Warehouse, detector: str) -> tuple[object, ...]:
    tables = (superseded_anomalies, cases, case_flags, case_events)
    with engine.begin() as connection:
        archived = [connection.execute(sa.select(table).order_by(*table.c)).all() for table in tables]
    flags = engine.read_flags(detector, DAY).to_json(date_format="iso")
    return flags, archived, engine.read_nights(detector), engine.read_attempts(detector)


def test_a_published_night_is_read_back_as_it_was(engine):
    night, flags = make_night(), make_flags(*AWKWARD)
    assert engine.begin_attempt(night.detector, DAY, "validate", NOW) == 1
    publish_night(engine, night, flags, NOW + timedelta(seconds=2), lambda: "h1")

    found = engine.read_flags(night.detector, DAY).sort_values("score", ignore_index=True)
    pd.testing.assert_frame_equal(found[FLAG_COLUMNS], flags)
    assert set(found.threshold) == {0.1 + 0.2}
    assert [set(found[name]) for name in ("attempt", "model_version", "scored_at")] == [{1}, {3}, {NOW}]
    (batch,) = engine.read_nights(night.detector)
    assert batch.published == len(AWKWARD)
    assert {**dataclasses.asdict(night), "published": len(AWKWARD)} == dataclasses.asdict(batch)
    (attempt,) = engine.read_attempts(night.detector)
    assert (attempt.status, attempt.step, attempt.finished_at) == ("published", "publish", NOW + timedelta(seconds=2))


def test_a_flag_is_found_by_its_record(engine):
    night = publish_new(engine, "a", "b\\n")
    flags = engine.read_flags(night.detector, DAY).set_index("record_id")
    assert tuple(flags.loc["b\\n", ["batch_date", "score", "second_stage_probability"]]) == (DAY, 1 / 3, 0.25)
    assert np.isnan(flags.loc["a", "second_stage_probability"])


def test_a_night_without_flags_is_published(engine):
    night = publish_new(engine)
    assert engine.read_nights(night.detector)[0].published == 0
    assert engine.read_flags(night.detector, DAY).empty


def test_publishing_the_same_attempt_twice_leaves_the_same_tables(engine):
    publish_new(engine, "a")
    night = publish_new(engine, "a", "b")
    once = read_everything(engine, night.detector)
    for _ in range(2):
        publish_night(engine, night, make_flags("a", "b"), NOW, lambda: "h1")
    assert read_everything(engine, night.detector) == once


def test_a_newer_attempt_replaces_the_rows_and_archives_the_old(engine):
    publish_new(engine, "a", "b")
    publish_new(engine, "b", now=NOW + timedelta(hours=1))
    night = publish_new(engine, "c", now=NOW + timedelta(hours=2))
    assert engine.read_flags(night.detector, DAY).record_id.tolist() == ["c"]
    t = superseded_anomalies.c
    with engine.begin() as connection:
        rows = connection.execute(sa.select(t.record_id, t.attempt, t.superseded_by, t.superseded_at))
        assert sorted(map(tuple, rows)) == [
            ("a", 1, 2, NOW + timedelta(hours=1)),
            ("b", 1, 2, NOW + timedelta(hours=1)),
            ("b", 2, 3, NOW + timedelta(hours=2)),
        ]


def test_nights_and_detectors_do_not_touch_each_other(engine):
    night = publish_new(engine, "a")
    for other in (make_night(batch_date=DAY + timedelta(days=1)), make_night(detector="other")):
        engine.begin_attempt(other.detector, other.batch_date, "validate", NOW)
        publish_night(engine, other, make_flags("a"), NOW, lambda: "h1")
    publish_new(engine, "b")
    assert engine.read_flags("other", DAY).record_id.tolist() == ["a"]
    assert engine.read_flags(night.detector, DAY + timedelta(days=1)).record_id.tolist() == ["a"]


def test_an_attempt_that_a_newer_one_overtook_is_refused(engine):
    old = make_night(engine.begin_attempt(make_night().detector, DAY, "validate", NOW))
    publish_new(engine, "new")
    before = read_everything(engine, old.detector)
    with pytest.raises(PublishConflict, match="attempt 1, published is attempt 2"):
        publish_night(engine, old, make_flags("old"), NOW, lambda: "h1")
    assert read_everything(engine, old.detector) == before


def test_a_night_whose_input_changed_is_refused(engine):
    night = publish_new(engine, "a")
    newer = make_night(engine.begin_attempt(night.detector, DAY, "validate", NOW))
    before = read_everything(engine, night.detector)
    with pytest.raises(PublishConflict, match="input hash h2"):
        publish_night(engine, newer, make_flags("b"), NOW, lambda: "h2")
    assert read_everything(engine, night.detector) == before


def test_an_attempt_that_never_began_is_refused(engine):
    with pytest.raises(PublishConflict, match="is not from this warehouse"):
        publish_night(engine, make_night(7), make_flags("a"), NOW, lambda: "h1")
    assert engine.read_nights(make_night().detector) == []


def test_an_attempt_that_was_given_up_for_dead_is_refused(engine):
    publish_new(engine, "a")
    night = make_night(engine.begin_attempt(make_night().detector, DAY, "score", NOW))
    engine.fail_attempt(night.detector, DAY, night.attempt, Failure("ProcessLost", {"what": "No heartbeat."}), NOW)
    before = read_everything(engine, night.detector)
    with pytest.raises(
        PublishConflict, match=r"marked as failed(.|\n)*ProcessLost: No heartbeat(.|\n)*run the night again"
    ):
        publish_night(engine, night, make_flags("b"), NOW, lambda: "h1")
    assert read_everything(engine, night.detector) == before


def test_an_attempt_given_up_while_it_publishes_is_refused_and_one_that_publishes_is_not_given_up(
    postgres_warehouse_url, monkeypatch
):
    engine = Warehouse(postgres_warehouse_url, lost_after_s=0)
    engine.migrate()
    monkeypatch.setattr("tasks.stores.warehouse.name_process", lambda: "another-host 1 1.00")
    lost = make_night(engine.begin_attempt(make_night().detector, DAY, "score", NOW))
    give_up = lambda: engine.end_dead_attempts(lost.detector, NOW) and "h1"  # noqa: E731 - while the batch is locked
    with pytest.raises(PublishConflict, match="marked as failed"):
        publish_night(engine, lost, make_flags("a"), NOW, give_up)
    assert engine.read_nights(lost.detector) == []
    night = publish_new(engine, "a")
    assert engine.end_dead_attempts(night.detector, NOW) == []


@pytest.mark.parametrize(
    ("changes", "record_ids"),
    [
        ({"rows_in": 100_001}, ["a"]),
        ({"quarantined": 0}, ["a"]),
        ({"flagged": 0}, ["a"]),
        ({"flagged": 99_986}, ["a"]),
        ({}, ["a", "a"]),
    ],
)
def test_a_night_whose_counts_do_not_add_up_is_refused(changes, record_ids):
    with pytest.raises(ReconciliationFailed, match="rows in"):
        reconcile_counts(make_night(**changes), make_flags(*record_ids))


def test_counts_are_checked_before_anything_is_written(engine):
    night = publish_new(engine, "a")
    with pytest.raises(ReconciliationFailed):
        publish_night(engine, dataclasses.replace(night, scored=1), make_flags("b"), NOW, lambda: "h1")
    assert engine.read_flags(night.detector, DAY).record_id.tolist() == ["a"]


@pytest.mark.parametrize("step", ["_archive_flags", "load_rows", "_replace_batch", "_finish_attempt", "place_alerts"])
def test_a_failure_after_any_step_leaves_the_old_result_whole(engine, monkeypatch, step):
    night = publish_new(engine, "a", "b")
    newer = make_night(engine.begin_attempt(night.detector, DAY, "validate", NOW))
    before = read_everything(engine, night.detector)
    done = getattr(sys.modules["tasks.publish"], step)

    def do_and_fail(*arguments):
        done(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"tasks.publish.{step}", do_and_fail)
    with pytest.raises(KeyboardInterrupt):
        publish_night(engine, newer, make_flags("c"), NOW, lambda: "h1")
    assert read_everything(engine, night.detector) == before


KILLED = """
import os, pickle, sys
import tasks.publish as p
from tasks.stores.warehouse import Warehouse
url, night, flags, now = pickle.load(sys.stdin.buffer)
place = p.place_alerts
p.place_alerts = lambda *given: place(*given) or os.kill(os.getpid(), 9)
p.publish_night(Warehouse(url), night, flags, now, lambda: "h1")
"""


@pytest.mark.slow
def test_a_process_killed_before_its_commit_leaves_the_old_result_whole(engine, warehouse_url):
    night = publish_new(engine, "a", "b")
    newer = make_night(engine.begin_attempt(night.detector, DAY, "validate", NOW))
    before = read_everything(engine, night.detector)
    work = pickle.dumps((warehouse_url, newer, make_flags("c"), NOW))
    killed = subprocess.run([sys.executable, "-c", KILLED], input=work)
    assert killed.returncode == -signal.SIGKILL
    assert read_everything(engine, night.detector) == before
    publish_night(engine, newer, make_flags("c"), NOW, lambda: "h1")
    assert engine.read_flags(night.detector, DAY).record_id.tolist() == ["c"]


@pytest.mark.slow
def test_when_attempts_publish_at_once_the_newest_wins(engine):
    nights = [make_night(engine.begin_attempt(make_night().detector, DAY, "validate", NOW)) for _ in range(8)]

    def publish_or_lose(night: Night) -> None:
        with contextlib.suppress(PublishConflict):
            publish_night(engine, night, make_flags(f"of {night.attempt}", "both"), NOW, lambda: "h1")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish_or_lose, nights))
    found = engine.read_flags(nights[0].detector, DAY)
    assert sorted(found.record_id) == ["both", "of 8"]
    assert set(found.attempt) == {8}


def test_a_reader_during_a_publish_sees_the_old_result(postgres_warehouse_url, monkeypatch):
    engine = Warehouse(postgres_warehouse_url)
    engine.migrate()
    night = publish_new(engine, "a", "b")
    seen = []
    finish = sys.modules["tasks.publish"]._finish_attempt

    def read_and_finish(*arguments):
        seen.extend(engine.read_flags(night.detector, DAY).record_id)
        finish(*arguments)

    monkeypatch.setattr("tasks.publish._finish_attempt", read_and_finish)
    publish_new(engine, "c")
    assert sorted(seen) == ["a", "b"]
    assert engine.read_flags(night.detector, DAY).record_id.tolist() == ["c"]


@pytest.mark.slow
def test_a_hundred_thousand_flags_are_published_and_republished(engine):
    records = [f"record-{i}" for i in range(99_985)]
    publish_new(engine, *records)
    night = publish_new(engine, *records)
    found = engine.read_flags(night.detector, DAY)
    assert sorted(found.record_id) == sorted(records)
    assert found.score.is_monotonic_decreasing


def test_only_a_warehouse_that_does_not_answer_is_tried_again():
    retry = publish.retry_condition_fn
    assert retry(publish, None, Failed(data=ServiceUnreachable("away")))
    assert not retry(publish, None, Failed(data=PublishConflict("late")))


def make_groups(*scores: float) -> pd.DataFrame:
    names = [f"it's group {n}" for n in range(len(scores))]
    columns = {"group": pd.Series(names, dtype="str"), "score": scores, "records": range(1, len(scores) + 1)}
    return pd.DataFrame({"grouping": "shop", "q": 0.75, **columns})


def publish_groups(engine: Warehouse, day: date, *scores: float) -> None:
    attempt = engine.begin_attempt(make_night().detector, day, "validate", NOW)
    night = make_night(attempt, batch_date=day)
    publish_night(engine, night, make_flags(), NOW, lambda: "h1", make_groups(*scores))


def read_ranks(engine: Warehouse, day: date) -> list[float | None]:
    return [None if np.isnan(rank) else rank for rank in engine.read_groups(make_night().detector, day)["rank"]]


def test_groups_are_ranked_against_those_of_earlier_nights(engine):
    publish_groups(engine, DAY, 1.0, 2.0, 3.0, 4.0)
    publish_groups(engine, DAY + timedelta(days=1), 2.5, 0.5, 9.0)
    publish_groups(engine, DAY - timedelta(days=1), 2.5)  # a backfilled night knows nothing of later ones
    assert read_ranks(engine, DAY) == [None] * 4
    assert read_ranks(engine, DAY + timedelta(days=1)) == [50, 0, 100]
    assert read_ranks(engine, DAY - timedelta(days=1)) == [None]
    found = engine.read_groups(make_night().detector, DAY)
    given = make_groups(1.0, 2.0, 3.0, 4.0)[["grouping", "group", "score", "records"]]
    pd.testing.assert_frame_equal(found[given.columns], given)
    later = engine.read_groups(make_night().detector, DAY + timedelta(days=1))
    assert later["threshold"].tolist() == [4.0] * 3 and later["flagged"].tolist() == [False, False, True]


def test_publishing_again_replaces_the_nights_groups_and_ranks_them_alike(engine):
    publish_groups(engine, DAY, 1.0, 2.0)
    for scores in ((1.5, 2.5, 3.5), (1.5, 2.5), (1.5, 2.5)):
        publish_groups(engine, DAY + timedelta(days=1), *scores)
    assert read_ranks(engine, DAY + timedelta(days=1)) == [50, 100]
    publish_groups(engine, DAY + timedelta(days=1))
    assert read_ranks(engine, DAY + timedelta(days=1)) == []


def test_a_refused_night_leaves_the_groups_alone(engine):
    publish_groups(engine, DAY, 1.0, 2.0)
    late = make_night(engine.begin_attempt(make_night().detector, DAY, "validate", NOW))
    with pytest.raises(PublishConflict):
        publish_night(engine, late, make_flags(), NOW, lambda: "another input", make_groups(7.0))
    assert engine.read_groups(late.detector, DAY)["score"].tolist() == [1.0, 2.0]
    assert engine.read_groups("another detector", DAY).empty
