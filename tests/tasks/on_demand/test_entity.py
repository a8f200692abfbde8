"""What one entity did, on DuckDB and PostgreSQL alike, and the entities that share its values."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from published import make_flag, publish_flags
from sites import open_site
from toy import PARAMS

from tasks.errors import CaseRefused, RecordMissing
from tasks.follow_up import actions
from tasks.follow_up.suppressions import add_suppression, read_suppressions, suppress_cause
from tasks.on_demand import entity
from tasks.on_demand.entity import find_others, lay_out, read_others, show_entity
from tasks.rows.params import CasesParams, DetectorParams
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

FIRST, NOW = date(2026, 7, 1), datetime(2026, 7, 5, 4, tzinfo=UTC)
NEXT = FIRST + timedelta(days=2)
PARAM = DetectorParams.model_validate_json(json.dumps(PARAMS))
RULE = RecordRule("card", ("shop", "spend"), frozenset({"card"}), b"key")
CARD = RULE.pseudonym("4000")


@pytest.fixture
def site(engine: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two nights of a card, whose only case was judged after the first, and of two others."""
    record = {"shop": "north", "spend": 7.5}
    first = [
        make_flag("a", CARD, 2.0, record=record),
        make_flag("b", CARD, 4.0, record=record, causes={"shop": 1.0}, suppressed_by="second_stage"),
        make_flag("c", "near", record={"shop": "north", "spend": 9.0}),
    ]
    publish_flags(engine, FIRST, first, NOW)
    actions.judge_case(actions.Desk(engine, "toy", CasesParams(), "kim", NOW), 1, "expected", "a gift")
    later = [
        make_flag("d", CARD, 3.0, record={"shop": "south", "spend": 7.5}),
        make_flag("e", "far", record={"shop": "east", "spend": 7.5}),
        make_flag("f", "no record"),
    ]
    publish_flags(engine, NEXT, later, NOW + timedelta(hours=1))
    return open_site(tmp_path_factory.mktemp("site"), "toy", warehouse=engine, time_zone="Europe/Berlin")


def test_an_entity_is_shown_with_its_nights_flags_verdicts_and_cases(site: Site) -> None:
    found = show_entity(site, PARAM, RULE, CARD, NOW)
    nights = [(n["batch_date"], n["flags"], n["suppressed"], n["times"], n["severity"]) for n in found.nights]
    assert nights == [(FIRST, 2, 1, 2.0, "medium"), (NEXT, 1, 0, 3.0, "medium")]
    assert (found.flags, found.suppressed, found.causes) == (3, 1, [("spend", 2), ("shop", 1)])
    flags = [(flag["record_id"], flag["verdict"], flag["note"], flag["case"]) for flag in found.records]
    assert flags == [("d", None, None, 3), ("a", "expected", "a gift", 1), ("b", None, None, None)]
    assert found.records[1]["record"] == {"shop": "north", "spend": 7.5}
    assert found.records[0]["event_time"] == "2026-07-03T14:00:00+02:00"
    cases = [(case["case"], case["state"], case["verdict"], case["flags"]) for case in found.cases]
    assert cases == [(3, "open", None, 1), (1, "closed", "expected", 1)]
    assert found.cases[1]["closed_at"] == "2026-07-05T06:00:00+02:00"


def test_nights_have_their_places_in_a_picture_of_a_month_or_more() -> None:
    night = {"flags": 2, "suppressed": 1, "times": 3.0}
    [one] = lay_out([{"batch_date": FIRST, **night}])
    assert one["x"] == pytest.approx(29 / 30)
    assert (one["flags_y"], one["alerts_y"], one["score_y"], one["threshold_y"]) == (
        1.0,
        0.5,
        1.0,
        pytest.approx(1 / 3),
    )
    early, late = lay_out(
        [{"batch_date": FIRST, **night}, {"batch_date": FIRST + timedelta(days=39), **night, "flags": 8}]
    )
    assert (early["x"], late["x"], late["width"], early["flags_y"]) == (0.0, 39 / 40, 1 / 40, 0.25)
    [old] = lay_out([{"batch_date": FIRST, **night}], [FIRST + timedelta(days=9)])
    assert (old["first"], old["last"], old["x"]) == (FIRST - timedelta(days=20), FIRST + timedelta(days=9), 20 / 30)
    assert lay_out([]) == []


def test_an_entity_may_be_given_as_itself_and_is_shown_by_its_pseudonym(site: Site) -> None:
    assert show_entity(site, PARAM, RULE, "4000", NOW).entity == CARD
    with pytest.raises(RecordMissing, match="of this entity") as caught:
        show_entity(site, PARAM, RULE, "4001", NOW)
    assert "4001" not in str(caught.value)  # a name that was given by mistake stays out of logs


def test_flags_come_in_pages_and_by_night(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entity, "PAGE", 2)
    pages = [show_entity(site, PARAM, RULE, CARD, NOW, page) for page in (1, 2)]
    assert [[flag["record_id"] for flag in page.records] for page in pages] == [["d", "a"], ["b"]]
    assert [page.has_next for page in pages] == [True, False]
    of_night = show_entity(site, PARAM, RULE, CARD, NOW, night=FIRST)
    assert [flag["record_id"] for flag in of_night.records] == ["a", "b"]
    assert len(of_night.nights) == 2  # the picture shows all


def test_a_cause_of_an_entity_is_suppressed_only_after_a_verdict_with_a_reason_and_an_end(site: Site) -> None:
    warehouse, later = site.warehouse, NOW + timedelta(days=30)
    one = suppress_cause(warehouse, "toy", CARD, "spend", " big gifts ", "kim", NOW, later)
    assert (one.suppression_id, one.reason) == (1, "big gifts")
    add_suppression(warehouse, "toy", None, "shop", "moved", "kim", NOW, later)
    add_suppression(warehouse, "toy", "near", None, "moved", "kim", NOW, later)
    shown = show_entity(site, PARAM, RULE, CARD, NOW)
    assert [(one.suppression_id, one.cause) for one in shown.suppressions] == [(1, "spend"), (2, "shop")]
    assert shown.may_suppress
    assert show_entity(site, PARAM, RULE, CARD, later).suppressions == []
    assert not show_entity(site, PARAM, RULE, "near", NOW).may_suppress
    for name, reason, until in (
        ("near", "gifts", later), (CARD, "  ", later), (CARD, "gifts", NOW), (CARD, "gifts", NOW + timedelta(days=400)),
    ):  # fmt: skip
        with pytest.raises(CaseRefused):
            suppress_cause(warehouse, "toy", name, "spend", reason, "kim", NOW, until)
    assert len(read_suppressions(warehouse, "toy")) == 3


def test_entities_that_share_a_published_value_are_found(site: Site) -> None:
    [near] = read_others(site, RULE, CARD)
    assert near == {"entity": "near", "shared": [{"column": "shop", "value": "north", "entities": 2}]}
    assert read_others(site, replace(RULE, show=("spend",)), CARD) == []  # a number with decimals is no name
    assert read_others(site, RULE, "no record") == []


def test_the_rarest_shared_value_comes_first() -> None:
    own = [{"terminal": 7, "country": "DE", "ok": True}, {"terminal": 8, "country": None}]
    others = [
        ("a", {"terminal": 1, "country": "DE", "ok": True}),
        ("b", {"terminal": 7, "country": "DE"}),
        ("b", {"terminal": 7, "country": "DE"}),
        ("c", {"terminal": 8, "country": "FR"}),
        ("d", {"terminal": 8, "country": "DE"}),
        ("e", {"terminal": 9, "country": None}),
    ]
    found = find_others(own, others, ("terminal", "country", "ok"))
    assert [(one["entity"], [(s["column"], s["value"], s["entities"]) for s in one["shared"]]) for one in found] == [
        ("b", [("terminal", 7, 2), ("country", "DE", 4)]),
        ("d", [("terminal", 8, 3), ("country", "DE", 4)]),
        ("c", [("terminal", 8, 3)]),
        ("a", [("country", "DE", 4)]),
    ]
