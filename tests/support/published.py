"""Nights with flags that tests name, published as a night publishes them, cases included."""

import json
from datetime import date, datetime
from typing import Any

import pandas as pd

from tasks.publish import publish_night
from tasks.stores.tables import Night
from tasks.stores.warehouse import Warehouse


def make_flag(record_id: str, entity: str | None, times: float = 2.0, **others: Any) -> dict[str, Any]:
    """A flag with a score of so many times the threshold, which is 0.5. causes: columns with shares; when: its time."""
    causes = others.pop("causes", {"spend": 3.0, "items": 1.0})
    named = [{"column": column, "share": share} for column, share in causes.items()]
    record = others.pop("record", None)
    by = others.pop("suppressed_by", None)
    return {
        "record_id": record_id,
        "entity": entity,
        "score": times * 0.5,
        "percentile_rank": 99.95,
        "p_value": 0.01,
        "causes": json.dumps([*named, {"column": "other", "share": 1.0}]),
        "second_stage_probability": None,
        "suppressed": by is not None,
        "suppressed_by": by,
        "record": None if record is None else json.dumps(record),
    } | others


def publish_flags(
    warehouse: Warehouse,
    day: date,
    flags: list[dict[str, Any]],
    now: datetime,
    scores: str | None = None,
    detector: str = "toy",
    scored: int = 0,
) -> None:
    """Publish a night of a detector with these flags, and as many rows in all (by default no other)."""
    noon = pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=12)
    frame = pd.DataFrame([{"event_time": noon} | flag for flag in flags])
    attempt = warehouse.begin_attempt(detector, day, "score", now)
    night = Night(
        detector=detector, batch_date=day, input_hash="h", rows_in=scored or len(flags), quarantined=0, excluded=0,
        scored=scored or len(flags), flagged=len(flags), unseen=0, threshold=0.5, model_name="m", model_version=1,
        scored_at=now, scores=scores, attempt=attempt, seconds=1.0,
    )  # fmt: skip
    publish_night(warehouse, night, frame, now, lambda: "h")
