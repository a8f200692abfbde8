import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sites import open_site

from tasks.errors import Failure
from tasks.follow_up.alerts import Fact
from tasks.follow_up.facts import read_facts
from tasks.stores.site import Site
from tasks.stores.tables import (
    attempts,
    case_events,
    case_flags,
    cases,
    drift,
    findings,
    flagged_anomalies,
    scoring_batches,
)
from tasks.stores.warehouse import Warehouse

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)  # 05:00 in Berlin
HOUR = timedelta(hours=1)


@pytest.fixture
def site(tmp_path: Path, warehouse_url: str) -> Site:
    found = open_site(tmp_path, warehouse=Warehouse(warehouse_url), time_zone="Europe/Berlin")
    found.warehouse.migrate()
    return found


def add(site: Site, table: sa.Table, **values: Any) -> None:
    blank = {sa.Text: "", sa.Integer: 1, sa.BigInteger: 0, sa.Double: 0.5, sa.Boolean: False, sa.Date: DAY}
    needed = {column.name: blank.get(type(column.type), NOW) for column in table.c if not column.nullable}
    with site.warehouse.begin() as connection:
        connection.execute(sa.insert(table).values(needed | {"detector": "toy"} | values))


def fail(site: Site, error: str, at: datetime, day: date = DAY) -> None:
    number = site.warehouse.begin_attempt("toy", day, "begin", at - HOUR)
    site.warehouse.fail_attempt("toy", day, number, Failure(error, {"what": "It broke.", "todo": "mend it"}), at)


def read(site: Site, now: datetime = NOW, days: int = 30, is_nightly: bool = False) -> list[Fact]:
    return read_facts(site, NOW - timedelta(days=days), now, is_nightly)


def test_attempts_that_failed_or_were_rejected_are_facts_and_late_files_are_not(site: Site) -> None:
    for hour, error in enumerate(
        ("BatchRejected", "SourceInvalid", "BatchMissing", "PublishConflict", "SourceInvalid")
    ):
        fail(site, error, NOW - (6 - hour) * HOUR)
    found = read(site)
    assert [(one.kind, one.about) for one in found] == [
        ("night_rejected", "toy 2026-03-01 BatchRejected"),
        ("night_failed", "toy 2026-03-01 SourceInvalid"),
        ("night_failed", "toy 2026-03-01 SourceInvalid"),
    ]
    assert found[1].title == "toy: the night of 2026-03-01 failed"
    assert found[1].body == "SourceInvalid: It broke.\ntodo: mend it\nnightjar status toy"
    assert [one.at for one in read_facts(site, NOW - 5 * HOUR, NOW, False)] == [NOW - 2 * HOUR]


def publish(site: Site, day: date, at: datetime, attempt: int = 1) -> None:
    values = {"batch_date": day, "started_at": at, "finished_at": at, "status": "published", "attempt": attempt}
    add(site, attempts, **values)


def test_a_night_is_late_at_six_in_the_morning_unless_it_was_published(site: Site) -> None:
    six = datetime(2026, 3, 2, 5, tzinfo=UTC)
    assert read(site, now=six + 100 * HOUR, is_nightly=True) == []  # nothing ever ran
    publish(site, DAY - timedelta(days=1), six - 30 * HOUR)  # on 28 February's morning
    publish(site, DAY, six + HOUR)
    publish(site, DAY, six + 9 * HOUR, attempt=2)
    assert read(site, now=six + 20 * HOUR) == []
    found = read(site, now=six + 26 * HOUR, is_nightly=True)
    late = [one for one in found if one.kind == "night_late"]
    assert [(one.about, one.at) for one in late] == [("toy 2026-03-01", six), ("toy 2026-03-02", six + 24 * HOUR)]
    assert late[0].title == "toy: the night of 2026-03-01 is late"
    assert [one.about for one in read(site, now=six - timedelta(seconds=1), is_nightly=True)] == []


def test_a_night_that_is_published_after_all_is_a_fact_once(site: Site) -> None:
    six = datetime(2026, 3, 2, 5, tzinfo=UTC)
    publish(site, DAY - timedelta(days=1), six - 30 * HOUR)
    fail(site, "SourceInvalid", six - HOUR)
    fail(site, "BatchMissing", six - HOUR)
    publish(site, DAY, six + HOUR, attempt=3)
    publish(site, DAY, six + 2 * HOUR, attempt=4)  # replaces a night that was fine
    fail(site, "BatchMissing", six + 3 * HOUR)
    publish(site, DAY, six + 4 * HOUR, attempt=6)  # the file came late, that is all
    for is_nightly in (True, False):
        [found] = [one for one in read(site, six + 9 * HOUR, is_nightly=is_nightly) if one.kind == "night_recovered"]
        assert (found.about, found.at) == ("toy 2026-03-01 attempt 3", six + HOUR)
        assert found.title == "toy: the night of 2026-03-01 is published"
        assert "attempt 1 had failed: SourceInvalid: It broke." in found.body


def test_a_late_night_that_is_published_has_recovered(site: Site) -> None:
    six = datetime(2026, 3, 2, 5, tzinfo=UTC)
    publish(site, DAY - timedelta(days=1), six - 30 * HOUR)
    publish(site, DAY, six + HOUR)
    found = [one for one in read(site, six + 9 * HOUR, is_nightly=True) if one.kind == "night_recovered"]
    assert [(one.day, one.at) for one in found] == [(DAY, six + HOUR)]
    assert "it was late" in found[0].body


def test_a_night_counts_its_alerts_and_what_the_cap_left_out(site: Site) -> None:
    add(site, scoring_batches, flagged=9, published=5, scored=100)
    for number, by in enumerate((None, None, "second_stage", "3", None)):
        add(site, flagged_anomalies, record_id=str(number), suppressed=by is not None, suppressed_by=by)
    [found] = read(site)
    assert (found.kind, found.number, found.beyond) == ("over_budget", 3, 4)
    assert found.title == "toy: 3 alerts in the night of 2026-03-01"
    assert "score.max_alerts left out 4" in found.body


def test_findings_are_facts_unless_nothing_was_found(site: Site) -> None:
    evidence = json.dumps(["amount is 10 times as large"])
    add(site, findings, finding="nothing", evidence="[]", batch_date=DAY - timedelta(days=1))
    add(site, findings, finding="data_broke", evidence=evidence, todo="stop", found_at=NOW - HOUR)
    [found] = read(site)
    assert (found.finding, found.at) == ("data_broke", NOW - HOUR)
    assert found.title == "toy: the data broke (night of 2026-03-01)"
    assert found.body == "amount is 10 times as large\nstop"


def test_the_canary_that_is_found_least_is_named(site: Site) -> None:
    add(site, scoring_batches)
    for column, value, bound in (("swapped", 0.9, 0.95), ("shifted", 0.25, None), ("fine", 1.0, 0.5)):
        add(site, drift, column=column, statistic="canary_recall", value=value, bound=bound)
    add(site, drift, column="amount", statistic="psi", value=0.01)
    found = next(one for one in read(site) if one.kind == "canary_recall")
    assert (found.number, found.beyond) == (0.25, 1)
    assert found.title == "toy: only 25% of the canary shifted was found in the night of 2026-03-01"
    assert found.body == "Recall by canary:\nshifted: 25%\nswapped: 90%\nfine: 100%"


def test_a_case_is_news_when_it_is_opened_and_when_flags_join_it(site: Site) -> None:
    old = NOW - timedelta(days=40)
    for number, severity, opened in ((1, "high", NOW - HOUR), (2, "low", old), (3, "critical", old), (4, "low", NOW)):
        add(site, cases, case_id=number, severity=severity, opened_at=opened, entity="card-7" if number == 1 else None,
            record_id="secret-record", due_at=NOW + HOUR)  # fmt: skip
    for number, record in ((1, "a"), (1, "b"), (2, "c"), (3, "d")):  # the flags of case 4 were pruned
        add(site, case_flags, case_id=number, record_id=record)
        add(site, flagged_anomalies, record_id=record, record='{"country": "NG"}' if record == "a" else None)
    add(site, case_events, case_id=3, kind="joined", happened_at=NOW)
    add(site, case_events, case_id=2, kind="note", happened_at=NOW)
    add(site, case_events, detector="other", case_id=2, kind="joined", happened_at=NOW)
    found = [one for one in read(site) if one.kind == "case"]
    assert [(one.about, one.at, len(one.records)) for one in found] == [
        ("toy case 1 high", NOW - HOUR, 1),
        ("toy case 3 critical", NOW, 0),
    ]
    assert (found[0].title, found[1].title) == ("toy: case 1 is high: card-7", "toy: case 3 is critical")
    assert found[0].body == "flags: 2; due 2026-03-02 06:00, Europe/Berlin\nnightjar case toy 1"
    assert "secret-record" not in str(found)
