from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pytest
import sqlalchemy as sa

from tasks.errors import ChampionMissing, Failure
from tasks.ingest import commit_parts
from tasks.stores import registry
from tasks.stores.registry import Version, imply_champions
from tasks.stores.tables import attempts, scoring_batches
from tasks.upkeep.ledger import (
    count_days_behind,
    find_champions,
    list_due,
    list_landed_dates,
    list_left,
    read_ledger,
    read_ledger_as_of,
)

FIRST = date(2026, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(6)]
NOW = datetime(2026, 3, 10, tzinfo=UTC)


def make_version(number: int, alias: str = "", previous: int | None = None) -> Version:
    tags = {"previous_champion": str(previous)} if previous else {}
    return Version("nightjar-toy", number, (alias,) if alias else (), tags, NOW + timedelta(days=number))


@pytest.fixture
def land_days(land_rows):
    def land(*days: date) -> None:
        for day in days:
            frame = pd.DataFrame({"record_id": [str(day)], "event_time": [f"{day}T12:00:00Z"]})
            land_rows(frame, name=str(day))

    return land


@pytest.fixture
def put_published(site):
    """Write the row of a published night as publishing leaves it."""

    def put(day: date, version: int = 1) -> None:
        engine = site.warehouse
        attempt = engine.begin_attempt("toy", day, "begin", NOW)
        counts = dict.fromkeys(("quarantined", "excluded", "flagged", "published", "unseen"), 0)
        row = counts | {
            "detector": "toy",
            "batch_date": day,
            "attempt": attempt,
            "input_hash": site.lake.get("landing", "toy", day).hash,
            "rows_in": 1,
            "scored": 1,
            "threshold": 1.0,
            "model_name": "nightjar-toy",
            "model_version": version,
            "scored_at": NOW + timedelta(days=30),  # after every version of make_version
            "seconds": 1.0,
        }
        with engine.begin() as connection:
            connection.execute(sa.insert(scoring_batches), row)
            connection.execute(sa.update(attempts).where(attempts.c.attempt == attempt).values(status="published"))

    return put


def fail_newest(site, day: date, what: str) -> None:
    engine = site.warehouse
    number = engine.begin_attempt("toy", day, "begin", NOW)
    engine.fail_attempt("toy", day, number, Failure("BatchRejected", {"what": what}), NOW)


def test_a_failed_night_that_is_tried_again_stays_failed_until_it_is_published(site, land_days):
    land_days(*DAYS[:2])
    fail_newest(site, DAYS[0], "no way")
    for day in DAYS[:2]:
        site.warehouse.begin_attempt("toy", day, "begin", NOW)
    found = read_ledger(site, DAYS[:2], None)
    assert [(night.state, night.why) for night in found] == [
        ("failed", "BatchRejected: no way"),
        ("missing", "never scored"),
    ]


def test_each_state_says_why(site, land_days, put_published):
    land_days(*DAYS[:5])
    for day, version in ((DAYS[0], 2), (DAYS[1], 2), (DAYS[2], 1)):
        put_published(day, version)
    commit_parts(site, str(DAYS[1]), {}, [DAYS[1]])
    fail_newest(site, DAYS[3], "no\nway")
    found = read_ledger(site, DAYS, make_version(2))
    assert [(night.state, night.why, night.version) for night in found] == [
        ("fresh", "", 2),
        ("stale", "its input has changed", 2),
        ("stale", "scored by version 1 instead of 2", 2),
        ("failed", "BatchRejected: no way", 2),
        ("missing", "never scored", 2),
        ("missing", "nothing has landed", 2),
    ]


def test_dates_before_the_first_cutoff_are_early_whatever_is_trained_later(site, land_days, monkeypatch):
    land_days(*DAYS[:2], DAYS[3])
    fail_newest(site, DAYS[1], "no way")
    first = replace(make_version(1), tags={"cutoff": str(DAYS[3])})
    later = replace(make_version(2), tags={"cutoff": str(DAYS[5])})
    foreign = replace(make_version(3), tags={"cutoff": "soon"})
    for versions in ([first], [later, first, make_version(4), foreign]):
        monkeypatch.setattr(registry.Registry, "list_versions", lambda self, found=versions: found)
        found = read_ledger(site, DAYS[:5], versions[0])
        assert [night.state for night in found] == ["early", "failed", "early", "missing", "missing"]
        assert found[0].why == "before the first training, which did not learn from it"
        assert found[2].why == found[4].why == "nothing has landed"
    monkeypatch.setattr(registry.Registry, "list_versions", lambda self: [foreign])
    assert {night.state for night in read_ledger(site, DAYS[:1], foreign)} == {"missing"}


def test_a_version_of_the_same_number_that_was_registered_again_is_another_version(site, land_days, put_published):
    land_days(DAYS[0])
    put_published(DAYS[0], version=1)
    for days, state in ((29, "fresh"), (31, "stale")):
        again = replace(make_version(1), registered_at=NOW + timedelta(days=days))
        assert [night.state for night in read_ledger(site, DAYS[:1], again)] == [state]


def test_a_newest_attempt_that_failed_is_shown_and_what_is_published_keeps_its_state(site, land_days, put_published):
    land_days(*DAYS[:3])
    fail_newest(site, DAYS[0], "before anything was published")
    for day in DAYS[:2]:
        put_published(day)
    fail_newest(site, DAYS[1], "the disk is full")
    put_published(DAYS[2])
    commit_parts(site, str(DAYS[2]), {}, [DAYS[2]])
    fail_newest(site, DAYS[2], "refused")
    found = read_ledger(site, DAYS[:3], make_version(1))
    assert [(night.state, night.why) for night in found] == [
        ("fresh", ""),
        ("fresh", "the newest attempt failed: BatchRejected: the disk is full"),
        ("stale", "its input has changed; the newest attempt failed: BatchRejected: refused"),
    ]


def test_dates_on_which_nothing_landed_are_due_too():
    landed = [DAYS[0], DAYS[2], DAYS[4]]
    assert list_due(landed, None, DAYS[5]) == DAYS[:5]
    assert list_due(landed, DAYS[0], DAYS[5]) == DAYS[1:5]
    assert list_due(landed, DAYS[2], DAYS[5]) == DAYS[3:5]
    assert list_due(landed, DAYS[4], DAYS[5]) == []
    assert list_due([], None, DAYS[5]) == []


def test_dates_that_all_rows_have_left_do_not_count_as_landed_before_and_after_the_others(
    site, land_days, put_published
):
    land_days(*DAYS)
    put_published(DAYS[0])
    for day in (DAYS[0], DAYS[1], DAYS[3], DAYS[5]):
        commit_parts(site, str(day), {}, [day])
    landed = list_landed_dates(site.lake, "toy")
    assert landed == DAYS[2:5]
    assert list_left(site, landed) == {DAYS[0]}
    assert [night.why for night in read_ledger(site, DAYS[:1], make_version(1))] == ["its input has changed"]
    for day in DAYS[2:5:2]:
        commit_parts(site, str(day), {}, [day])
    assert list_landed_dates(site.lake, "toy") == []


def test_days_to_come_are_not_due_but_one_that_has_landed_is_listed():
    ahead = date(2199, 1, 1)
    assert list_due([DAYS[0], ahead], None, DAYS[1]) == [DAYS[0], DAYS[1], ahead]
    assert list_due([ahead], DAYS[0], DAYS[0]) == [ahead]
    assert count_days_behind([DAYS[0], ahead], DAYS[3]) == 3
    assert count_days_behind([DAYS[3]], DAYS[3]) == 0
    assert count_days_behind([ahead], DAYS[3]) is None


def test_champions_before_history_was_kept_are_those_that_the_tags_name():
    versions = [make_version(1), make_version(2, previous=1), make_version(3, "champion", previous=2)]
    assert imply_champions(versions) == [(NOW + timedelta(days=n), n) for n in (1, 2, 3)]
    assert imply_champions([make_version(1), make_version(2, "champion")]) == [(NOW + timedelta(days=2), 2)]
    turned = [make_version(1, "champion", previous=2), make_version(2, previous=1)]
    assert [number for _, number in imply_champions(turned)] == [1, 2]
    assert imply_champions([make_version(1)]) == []


@pytest.fixture
def champions(monkeypatch):
    """Version 1 is champion until noon of the third day, version 2 from then on."""
    history = [(datetime(2026, 3, 2, tzinfo=UTC), 1), (datetime(2026, 3, 3, 12, tzinfo=UTC), 2)]
    monkeypatch.setattr(registry.Registry, "read_champions", lambda self: history)
    monkeypatch.setattr(registry.Registry, "list_versions", lambda self: [make_version(1), make_version(2, "champion")])


def test_a_date_is_scored_as_of_its_end_by_the_champion_of_then(make_site, champions):
    found = find_champions(make_site(), DAYS[:3])
    assert [version.version for version in found.values()] == [1, 1, 2]  # the first day ends as version 1 begins
    west = find_champions(make_site("America/New_York"), DAYS[:3])  # where days end five hours later
    assert [version.version for version in west.values()] == [1, 1, 2]
    east = find_champions(make_site("Pacific/Kiritimati"), DAYS[1:4])  # and fourteen hours earlier
    assert [version.version for version in east.values()] == [1, 1, 2]


def test_dates_that_had_no_champion_are_named(make_site, champions):
    early = FIRST - timedelta(days=1)
    with pytest.raises(ChampionMissing, match="got: 2026-02-28\n") as caught:
        find_champions(make_site(), [early, *DAYS[:2]])
    assert "version 1 since 2026-03-02 00:00 UTC" in str(caught.value)


def test_a_night_of_an_older_champion_is_fresh_as_of_then(site, land_days, put_published, champions):
    land_days(*DAYS[:3])
    for day in DAYS[:3]:
        put_published(day, version=1)
    now = [night.state for night in read_ledger(site, DAYS[:3], make_version(2))]
    then = read_ledger_as_of(site, DAYS[:3])
    assert now == ["stale"] * 3
    assert [(night.state, night.version) for night in then] == [("fresh", 1), ("fresh", 1), ("stale", 2)]
