import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from tasks.errors import ParamsInvalid
from tasks.follow_up.suppressions import (
    Suppression,
    add_suppression,
    end_suppression,
    mark_flags,
    read_suppressions,
    suppress_flags,
)
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
