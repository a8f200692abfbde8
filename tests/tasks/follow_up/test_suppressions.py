import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from published import make_flag, publish_flags

from tasks.errors import ParamsInvalid
from tasks.follow_up.suppressions import (
    Suppression,
    add_suppression,
    end_suppression,
    mark_flags,
    read_suppressions,
    request_suppression,
    suppress_flags,
)
from tasks.rows.record import RecordRule
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
DAY = timedelta(days=1)


def make_flags(*rows: tuple[str | None, str, bool]) -> pd.DataFrame:
    """One flag per entity, first cause, and whether the second stage suppresses it."""
    causes = [[{"column": cause, "share": 2.0}, {"column": "other", "share": 3.0}] for _, cause, _ in rows]
    return pd.DataFrame(
        {
            "record_id": [f"r{number}" for number in range(len(rows))],
            "entity": [entity for entity, _, _ in rows],
            "causes": [json.dumps(named) for named in causes],
            "suppressed": [by_reducer for _, _, by_reducer in rows],
        }
    )


def suppress(number: int, **of: Any) -> Suppression:
    return Suppression("toy", number, of.get("entity"), of.get("cause"), "why", "me", NOW - DAY, NOW + DAY, None)


FLAGS = make_flags(("a", "x", False), ("a", "y", True), ("b", "x", False), (None, "y", False))


@pytest.mark.parametrize(
    ("active", "by"),
    [
        ([], [None, "second_stage", None, None]),
        ([suppress(1, entity="a")], ["1", "second_stage", None, None]),
        ([suppress(2, cause="x")], ["2", "second_stage", "2", None]),
        ([suppress(3, entity="b", cause="x")], [None, "second_stage", "3", None]),
        ([suppress(3, entity="b", cause="y")], [None, "second_stage", None, None]),
        ([suppress(2, cause="x"), suppress(1, entity="b")], ["2", "second_stage", "1", None]),
        ([suppress(12, cause="y")], [None, "second_stage", None, "12"]),
        ([suppress(1, cause="other")], [None, "second_stage", None, None]),
    ],
)
def test_flags_name_what_suppresses_them(active: list[Suppression], by: list[str | None]) -> None:
    marked = mark_flags(FLAGS, active)
    assert marked["suppressed_by"].tolist() == by
    assert marked["suppressed"].tolist() == [one is not None for one in by]
    assert marked["record_id"].tolist() == FLAGS["record_id"].tolist()
    without = mark_flags(FLAGS.drop(columns="entity"), [one for one in active if one.entity is None])
    assert without["suppressed"].sum() <= marked["suppressed"].sum()


def test_a_night_without_flags_and_flags_without_causes_are_fine() -> None:
    assert mark_flags(FLAGS.head(0), [suppress(1, entity="a")])["suppressed_by"].tolist() == []
    bare = FLAGS.assign(causes="[]", suppressed=False)
    assert mark_flags(bare, [suppress(1, cause="x")])["suppressed"].sum() == 0
    assert mark_flags(bare, [suppress(1, entity="a")])["suppressed"].sum() == 2


def test_a_suppression_holds_until_it_expires_or_is_ended(warehouse_url: str) -> None:
    warehouse = Warehouse(warehouse_url)
    warehouse.migrate()
    for entity in ("a", "b"):
        add_suppression(warehouse, "toy", entity, None, "on holiday", "me", NOW, NOW + 2 * DAY)
    other = add_suppression(warehouse, "another", None, "x", "a new till", "me", NOW, NOW + DAY)
    assert other.suppression_id == 1

    def read(now: datetime) -> list[str | None]:
        return suppress_flags(warehouse, "toy", FLAGS, now)["suppressed_by"].tolist()

    assert read(NOW - DAY) == read(NOW + 2 * DAY) == [None, "second_stage", None, None]
    assert read(NOW + DAY) == ["1", "second_stage", "2", None]
    end_suppression(warehouse, "toy", 1, NOW + DAY)
    assert read(NOW + DAY) == [None, "second_stage", "2", None]
    end_suppression(warehouse, "toy", 1, NOW + 3 * DAY)
    [one, two] = read_suppressions(warehouse, "toy")
    assert (one.ended_at, two.ended_at) == (NOW + DAY, None)
    with pytest.raises(ParamsInvalid, match="no suppression 3"):
        end_suppression(warehouse, "toy", 3, NOW)


RULE = RecordRule(entity="card", pseudonymise=frozenset({"card"}), key=b"key")
TODAY = NOW.date()


def ask(site: Site, rule: RecordRule = RULE, last: date = TODAY, reason: str = "why", **of: str) -> Suppression:
    return request_suppression(site, rule, ["spend"], of.get("entity"), of.get("cause"), reason, "kim", last, NOW)


def test_a_suppression_holds_through_its_last_day_in_the_detectors_time_zone(
    make_site: Callable[..., Site],
) -> None:
    site = make_site("Europe/Berlin")
    added = ask(site, cause="spend", reason=" known ")
    assert (added.reason, added.author, added.suppression_id) == ("known", "kim", 1)
    assert added.expires_at == datetime(2026, 3, 2, 23, tzinfo=UTC)
    assert read_suppressions(site.warehouse, "toy") == [added]


def test_an_entity_is_suppressed_by_its_pseudonym_however_it_is_given(site: Site) -> None:
    card = RULE.pseudonym("4000")
    assert ask(site, entity="4000").entity == card
    publish_flags(site.warehouse, TODAY, [make_flag("a", card)], NOW)
    assert ask(site, entity=card).entity == card


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({}, "needs an entity or a cause"),
        ({"cause": "spend", "reason": " "}, "needs an entity or a cause"),
        ({"cause": "spend", "last": TODAY - DAY}, "needs an entity or a cause"),
        ({"cause": "shop"}, "'shop' is never a cause"),
        ({"entity": "a", "rule": RecordRule()}, "toy has no entities"),
    ],
)
def test_what_a_suppression_lacks_is_said_and_nothing_is_added(site: Site, of: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsInvalid, match=message):
        ask(site, **of)
    assert read_suppressions(site.warehouse, "toy") == []
