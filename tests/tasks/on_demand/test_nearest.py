"""The normal records nearest to a case's worst flag, against distances computed by hand."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from published import make_flag, publish_flags
from tiny import make_tiny_detector

from models.detector import Detector
from tasks.errors import CaseMissing, ChampionMissing
from tasks.on_demand import nearest
from tasks.on_demand.nearest import Nearest, find_near_record, find_nearest
from tasks.rows.record import RecordRule
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

NIGHT, NOW = date(2026, 7, 31), datetime(2026, 8, 1, 4, tzinfo=UTC)
NOON = datetime(2026, 7, 31, 12, tzinfo=UTC)
RULE = RecordRule("card", ("amount", "owner"), frozenset({"card", "owner"}), b"key")
BEFORE = NIGHT - timedelta(days=1)
AMOUNTS = {"f": 3.0, "far": -2.0, "near": 2.5, "same": 3.0, "g": 2.9, "known": 3.1}  # f and g are flagged
Find = Callable[..., Nearest]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_tiny_detector()


def put(site: Site, day: date, amounts: dict[str, float], country: str = "DE") -> None:
    n = len(amounts)
    rows = {
        "record_id": list(amounts),
        "event_time": pa.array([NOON] * n, pa.timestamp("us", "UTC")),
        "at": pa.array([NOON] * n, pa.timestamp("us", "UTC")),
        "amount": list(amounts.values()),
        "country": [country] * n,
        "owner": ["Kim"] * n,
    }
    partition = site.lake.write("validated", "toy", day)
    with partition.part("part-0") as part:
        part.append(pa.table(rows))
    partition.commit({})


@pytest.fixture
def site(engine: Warehouse, make_site: Callable[..., Site]) -> Site:
    """A night with two flags, the night before, in another country, and one that was never published."""
    site = replace(make_site("Europe/Berlin"), warehouse=engine)
    put(site, NIGHT, AMOUNTS)
    put(site, BEFORE, {"old": 3.0, "older": 2.0}, country="FR")
    put(site, BEFORE - timedelta(days=1), {"unpublished": 3.0})
    publish_flags(site.warehouse, BEFORE, [make_flag("x", "two")], NOW)
    publish_flags(site.warehouse, NIGHT, [make_flag("f", "one", 4.0), make_flag("g", "one", 3.0)], NOW)
    said = pd.DataFrame({"batch_date": [NIGHT], "record_id": ["known"], "verdict": ["anomaly"]})
    site.warehouse.add_reviews("toy", said.assign(reviewer="kim", reviewed_at=pd.Timestamp(NOW), inclusion=1.0))
    return site


@pytest.fixture
def find(site: Site, detector: Detector) -> Find:
    def find_by(number: int = 2, masked: frozenset[str] = frozenset(), **versions: Any) -> Nearest:
        registry: Any = SimpleNamespace(get_version=lambda number: Version("m", number, (), {}))
        return find_nearest(replace(site, registry=registry), RULE, masked, number, lambda _: detector)

    return find_by


def test_the_nearest_records_that_nobody_flagged_come_first(find: Find, detector: Detector) -> None:
    found = find()
    assert found.flag and (found.flag.record_id, found.flag.batch_date) == ("f", NIGHT)
    assert [one.record_id for one in found.near] == ["same", "near", "old", "older", "far"]  # not g, nor known
    assert (found.rows, found.first, found.last, found.why) == (5, BEFORE, NIGHT, "")
    scale = float(detector.encoder.scale[0])
    both = np.sqrt((1.0 / scale) ** 2 + 2)  # another amount, and one slot of country less and one more
    expected = [0, 0.5 / scale, np.sqrt(2), both, 5 / scale]
    assert [one.distance for one in found.near] == pytest.approx(expected, rel=1e-6)


def test_the_columns_that_differ_most_are_named_with_their_share_and_direction(find: Find, detector: Detector) -> None:
    same, near, old, older, _ = find().near
    scale = float(detector.encoder.scale[0])
    assert same.differences == ()
    [amount] = near.differences
    assert (amount.column, amount.percent, amount.change) == ("amount", 100, pytest.approx(-0.5 / scale, rel=1e-6))
    assert [(one.column, one.percent, one.change) for one in old.differences] == [("country", 100, None)]
    of_country = round(200 / (2 + (1.0 / scale) ** 2))
    assert [(one.column, one.percent) for one in older.differences] == [
        ("country", of_country),
        ("amount", 100 - of_country),
    ]


def test_values_are_those_that_params_publish_and_masked_columns_show_nothing(find: Find) -> None:
    found = find(masked=frozenset({"amount"}))
    assert found.near[1].record == {"amount": 2.5, "owner": RULE.pseudonym("Kim")}
    assert found.near[1].event_time == "2026-07-31T14:00:00+02:00"
    assert [one.change for one in found.near[1].differences] == [None]
    assert "Kim" not in repr(found)


def test_a_record_that_is_not_flagged_is_not_its_own_neighbour(site: Site, detector: Detector) -> None:
    registry: Any = SimpleNamespace(get_version=lambda number: Version("m", number, (), {}))
    of = frozenset[str](), "near", NIGHT, 1, lambda _: detector
    found = find_near_record(replace(site, registry=registry), RULE, *of)
    assert found.flag and found.flag.record_id == "near"
    assert [one.record_id for one in found.near] == ["same", "old", "older", "far"]


def test_a_large_night_is_sampled_evenly_and_earlier_ones_only_fill_up(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "MOST_COMPARED", 3)
    found = find()
    assert {one.record_id for one in found.near} == {"near"}  # every second: f, near, g; two are flags
    assert (found.rows, found.first) == (1, NIGHT)
    monkeypatch.setattr(nearest, "MOST_COMPARED", 7)
    assert {one.record_id for one in find().near} == {"same", "near", "far", "old"}


def test_a_deleted_version_pruned_rows_and_an_unknown_case_are_named(
    find: Find, site: Site, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Version:
        raise ChampionMissing(f"There is no version {number}.")

    gone: Any = SimpleNamespace(get_version=refuse)
    found = find_nearest(replace(site, registry=gone), RULE, frozenset(), 2, lambda _: detector)
    assert found.why == "Version 1, which scored f, was deleted." and found.flag is None
    assert find(1).why == "The validated row of x is not in the lake any more."
    monkeypatch.setattr(nearest, "fits", lambda *_: False)
    assert find().why == "The rows of 2026-07-31 lack columns that version 1 reads."
    with pytest.raises(CaseMissing):
        find(9)
