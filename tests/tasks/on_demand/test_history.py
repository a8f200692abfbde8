"""What an entity did, flagged or not, from the validated rows of the lake."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from published import make_flag, publish_flags

from tasks.errors import CaseMissing
from tasks.on_demand import history
from tasks.on_demand.history import lay_out, read_case_history, read_history
from tasks.rows.record import RecordRule
from tasks.stores.site import Site

NIGHT, NOW = date(2026, 7, 31), datetime(2026, 8, 1, 4, tzinfo=UTC)
NOON = datetime(2026, 7, 31, 10, tzinfo=UTC)  # in Berlin
RULE = RecordRule("card", ("spend", "owner"), frozenset({"card", "owner"}), b"key")
CARD = RULE.pseudonym("4000")
PLAIN = RecordRule("card", ("spend",))


def make_rows(*rows: tuple[str, datetime, str, float]) -> pa.Table:
    ids, times, cards, spends = zip(*rows, strict=True)
    times = pa.array(times, pa.timestamp("us", "UTC"))
    return pa.table(
        {"record_id": ids, "event_time": times, "card": cards, "spend": spends, "owner": ["Kim"] * len(ids)}
    )


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A night with scores, one without, one that was never published; the record "a" is in two of them."""
    site = make_site("Europe/Berlin")
    ago = lambda **of: NOON - timedelta(**of)  # noqa: E731
    rows = {
        NIGHT: [
            ("a", NOON, "4000", 90.0),
            ("b", ago(hours=1), "4000", 5.0),
            ("c", ago(hours=1), "5000", 6.0),
            ("z", NOON + timedelta(hours=1), "4000", 1.0),
        ],
        NIGHT - timedelta(days=1): [("d", ago(hours=23), "4000", 7.0), ("a", ago(hours=25), "4000", 8.0)],
        NIGHT - timedelta(days=30): [("e", ago(days=30, seconds=-1), "4000", 9.0), ("f", ago(days=30), "4000", 9.5)],
        NIGHT - timedelta(days=40): [("g", ago(days=40), "4000", 10.0)],
    }
    for day, found in rows.items():
        partition = site.lake.write("validated", "toy", day)
        with partition.part("part-0") as part:
            part.append(make_rows(*found))
        partition.commit({})
    scores = site.lake.write("scores", "toy", NIGHT, "key")
    with scores.part("part-0") as part:
        part.append(pa.table({"record_id": ["a", "b", "c"], "score": [2.0, 0.25, 0.1]}))
    scores.commit({})
    flags = [make_flag("a", CARD, 4.0, event_time=NOON), make_flag("c", None, event_time=NOON)]
    publish_flags(site.warehouse, NIGHT, flags, NOW, "key")
    publish_flags(site.warehouse, NIGHT - timedelta(days=1), [make_flag("k", "other")], NOW)
    return site


def test_all_records_of_an_entity_are_found_by_its_pseudonym_newest_first(site: Site) -> None:
    found = read_history(site, RULE, CARD, NOON)
    rows = [
        (row["record_id"], row["batch_date"].day, row["score"], row["times"], row["is_flagged"])
        for row in found.records
    ]
    assert rows == [
        ("a", 31, 2.0, 4.0, True),
        ("b", 31, 0.25, 0.5, False),
        ("d", 30, None, None, False),
        ("a", 30, None, None, False),  # another record with the flagged one's id
        ("e", 1, None, None, False),
    ]
    assert (found.in_day, found.in_month) == (3, 5)
    assert found.records[0]["event_time"] == "2026-07-31T12:00:00+02:00"


def test_only_published_values_are_shown_and_masked_ones_as_pseudonyms(site: Site) -> None:
    found = read_history(site, RULE, CARD, NOON)
    assert found.records[1]["record"] == {"spend": 5.0, "owner": RULE.pseudonym("Kim")}
    assert "4000" not in repr(found) and "Kim" not in repr(found)


def test_dates_without_validated_rows_are_named(site: Site) -> None:
    found = read_history(site, RULE, CARD, NOON)
    assert len(found.missing) == 28
    assert (found.missing[0], found.missing[-1]) == (date(2026, 7, 2), date(2026, 7, 29))


def test_without_the_rows_of_a_flag_or_under_another_key_the_page_says_why(site: Site) -> None:
    assert "another pseudonym key" in read_history(site, replace(RULE, key=b"new"), CARD, NOON).why
    site.lake.remove(site.lake.manifest_path("validated", "toy", NIGHT))
    found = read_history(site, RULE, CARD, NOON)
    assert found.records == []
    assert "no longer in the lake" in found.why


def test_the_newest_records_are_shown_and_all_are_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_SHOWN", 2)
    found = read_history(site, RULE, CARD, NOON)
    assert ([row["record_id"] for row in found.records], found.in_month) == (["a", "b"], 5)


def test_columns_that_older_rows_lack_are_empty_there(site: Site) -> None:
    partition = site.lake.write("validated", "toy", NIGHT - timedelta(days=1))
    with partition.part("part-0") as part:
        part.append(make_rows(("d", NOON - timedelta(hours=23), "4000", 7.0)).drop(["spend", "owner"]))
    partition.commit({})
    found = read_history(site, RULE, CARD, NOON)
    assert [row["record"]["spend"] for row in found.records] == [90.0, 5.0, None, 9.0]
    shown = read_history(site, replace(RULE, show=("spend", "new")), CARD, NOON)
    assert shown.records[0]["record"] == {"spend": 90.0, "new": None}


def test_columns_may_have_any_name(site: Site) -> None:
    partition = site.lake.write("validated", "toy", NIGHT)
    with partition.part("part-0") as part:
        rows = make_rows(("a", NOON, "4000", 90.0))
        odd = pa.array(["x"], pa.string())
        part.append(rows.append_column("name", odd).append_column("day", odd).append_column("in_day", odd))
    partition.commit({})
    rule = replace(RULE, show=("name", "day", "in_day", "record_id", "event_time"))
    found = read_history(site, rule, CARD, NOON)
    expected = {"name": "x", "day": "x", "in_day": "x", "record_id": "a", "event_time": "2026-07-31T10:00:00+00:00"}
    assert (found.records[0]["record"], found.in_day) == (expected, 2)


def test_an_entity_that_is_no_secret_is_found_too(site: Site) -> None:
    publish_flags(site.warehouse, NIGHT, [make_flag("a", "4000", event_time=NOON)], NOW, "key")
    assert read_history(site, PLAIN, "4000", NOON).in_month == 5


def test_the_history_of_a_case_ends_with_its_newest_flag(site: Site) -> None:
    found = read_case_history(site, RULE, 1)
    assert (found.entity, found.until, found.in_month) == (CARD, NOON, 5)
    assert "names no entity" in read_case_history(site, RULE, 2).why
    with pytest.raises(CaseMissing, match="no case 9"):
        read_case_history(site, RULE, 9)


def test_places_in_the_picture() -> None:
    day = timedelta(days=1)
    rows = [
        {"when": NOON, "times": 5.0},
        {"when": NOON - day / 2, "times": 1.0},
        {"when": NOON - 15 * day, "times": None},
    ]
    assert lay_out(rows, NOON) == pytest.approx(math.log(2) / math.log(6))
    assert [row["y"] for row in rows] == pytest.approx([1.0, math.log(2) / math.log(6), 0.0])
    assert [row["x"] for row in rows] == pytest.approx([1.0, 1 - 0.5 / 30, 0.5])
    assert [row["day_x"] for row in rows] == [1.0, 0.5, None]
    assert lay_out([], NOON) == pytest.approx(math.log(2) / math.log(3))
