"""Causes and values as people read them, from the JSON of `causes.name_causes` and of records; times are local.

Without torch, so that commands that read start at once.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

INSTANT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?\+00:00")  # how JSON has a time
AROUND = re.compile(r"around (\d\d):00 UTC")  # and the hour that is expected of one


def describe_causes(causes: Sequence[dict[str, Any]], zone: ZoneInfo) -> list[str]:
    """All causes of a record as texts, each with its share of the score in per cent; those without one are left out."""
    whole = sum(cause["share"] for cause in causes) or 1.0
    return [_describe(cause, cause["share"] / whole) for cause in localise_causes(causes, zone) if cause["share"]]


def describe_values(record: Mapping[str, Any] | None, zone: ZoneInfo) -> str:
    """The values of a record by column, as one text."""
    return ", ".join(f"{column} {show_value(value)}" for column, value in localise(record or {}, zone).items())


def localise_causes(causes: Sequence[dict[str, Any]], zone: ZoneInfo) -> list[dict[str, Any]]:
    """Causes with times in a zone: an expected hour has the offset of its record's date."""
    return [localise({**cause, "expected": _localise_hour(cause, zone)}, zone) if "expected" in cause else dict(cause)
            for cause in causes]  # fmt: skip


def localise(values: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """Values in which each time that is a text in UTC is one in a zone, with its offset."""
    return {name: str(found) if (found := _read_time(value, zone)) else value for name, value in values.items()}


def _read_time(value: object, zone: ZoneInfo) -> datetime | None:
    with suppress(ValueError, OverflowError):  # no such date, or none in this zone
        if isinstance(value, str) and INSTANT.fullmatch(value):
            return datetime.fromisoformat(value).astimezone(zone)
    return None


def _localise_hour(cause: Mapping[str, Any], zone: ZoneInfo) -> Any:
    hour, actual = AROUND.fullmatch(str(cause["expected"])), str(cause.get("actual"))
    if hour and INSTANT.fullmatch(actual) and (local := _read_time(f"{actual[:10]} {hour[1]}:00:00+00:00", zone)):
        return f"around {local:%H:%M %Z}"
    return cause["expected"]


def _describe(cause: dict[str, Any], share: float) -> str:
    what = f"{cause['column']} {cause['part']}" if "part" in cause else cause["column"]
    if "actual" not in cause:
        return f"{what} {share:.0%}"
    return f"{what} {share:.0%} ({show_value(cause['actual'])}, expected {show_value(cause['expected'])})"


def show_value(value: object) -> str:
    """A value as text, numbers with five digits or, from 100,000 on, as whole ones."""
    if isinstance(value, float) and 1e5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
