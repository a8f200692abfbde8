"""Nights as lanes, worst first, on DuckDB and PostgreSQL alike."""

import json
from datetime import UTC, date, datetime, timedelta

import pytest
from published import make_flag, publish_flags
from sites import open_site
from toy import PARAMS

from tasks.on_demand import explorer
from tasks.on_demand.explorer import draw_causes, draw_entities
from tasks.rows.params import DetectorParams
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

FIRST, NOW = date(2026, 7, 1), datetime(2026, 7, 5, 4, tzinfo=UTC)
DAYS = [FIRST + timedelta(days=number) for number in range(4)]
PARAM = DetectorParams.model_validate_json(json.dumps(PARAMS))


@pytest.fixture
def site(engine: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three published nights, the 1st, 2nd and 4th of July."""
    nights = {
        DAYS[0]: [make_flag("a", "x", 2.0), make_flag("b", "x", 3.0), make_flag("c", "y", 1.5, percentile_rank=99.2)],
        DAYS[1]: [make_flag("d", None, 9.0, percentile_rank=99.9999), make_flag("e", "z", 8.0, suppressed_by="7")],
        DAYS[3]: [
            make_flag("f", "x", 6.0, suppressed_by="second_stage", percentile_rank=99.999),
            make_flag("g", "x", 1.2, percentile_rank=99.4, causes={"shop": 4.0, "spend": 1.0}),
            make_flag("h", "x", 1.1, percentile_rank=99.3, causes={"colour": 4.0}),
            make_flag("i", "y", 1.5, percentile_rank=99.999),
        ],
    }
    for day, flags in nights.items():
        publish_flags(engine, day, flags, NOW)
    return open_site(tmp_path_factory.mktemp("site"), warehouse=engine)


def test_each_entity_has_a_lane_with_its_flags_by_night_and_the_worst_comes_first(site: Site) -> None:
    drawn = draw_entities(site, PARAM)
    assert drawn.nights == [DAYS[0], DAYS[1], DAYS[3]]  # those that were published
    assert [lane.name for lane in drawn.lanes] == ["y", "x", "z"]  # the suppressed flag of z counts last
    _, x, z = drawn.lanes
    cells = [cell and (cell["flags"], cell["suppressed"], cell["severity"], cell["times"]) for cell in x.cells]
    assert cells == [(2, 0, "medium", 3.0), None, (3, 1, "low", 1.2)]
    assert (x.worst["flags"], x.worst["suppressed"], x.worst["rank"]) == (5, 1, 99.95)
    assert z.cells[1] and (z.cells[1]["is_suppressed"], z.cells[1]["times"]) == (True, 8.0)
    assert not drawn.has_next


def test_the_nights_are_the_newest_up_to_a_date(site: Site) -> None:
    drawn = draw_entities(site, PARAM, nights=1)
    assert (drawn.nights, [lane.name for lane in drawn.lanes]) == ([DAYS[3]], ["y", "x"])
    earlier = draw_entities(site, PARAM, nights=1, last=DAYS[2])
    assert (earlier.nights, [lane.name for lane in earlier.lanes]) == ([DAYS[1]], ["z"])
    assert draw_entities(site, PARAM, last=DAYS[0] - timedelta(days=1)) == draw_causes(
        site, PARAM, last=DAYS[0] - timedelta(days=1)
    )  # nothing was published by then


def test_entities_come_in_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MOST_LANES", 2)
    first, second = draw_entities(site, PARAM), draw_entities(site, PARAM, page=2)
    assert [[lane.name for lane in drawn.lanes] for drawn in (first, second)] == [["y", "x"], ["z"]]
    assert (first.has_next, second.has_next) == (True, False)


def test_causes_are_lanes_too_and_flags_without_an_entity_count(site: Site) -> None:
    drawn = draw_causes(site, PARAM)
    assert {lane.name: [cell and cell["flags"] for cell in lane.cells] for lane in drawn.lanes} == {
        "spend": [3, 2, 2],
        "shop": [None, None, 1],
        None: [None, None, 1],  # the params no longer name the column
    }
    assert drawn.lanes[0].name == "spend"
