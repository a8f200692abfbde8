"""Causes and values as people read them, from the JSON of `causes.name_causes` and of records; times are local.

Without torch, so that commands that read start at once.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

INSTANT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?\+00:00")  # how JSON has a time
AROUND = re.compile(r"around (\d\d):00 UTC")  # and the hour that is expected of one


@dataclass(frozen=True)
class Cause:
    """One cause: its column and part, its share of the score in whole per cent, and its values as texts.

    actual and expected: None for what has no value of its own, such as "other".
    """

    name: str
    percent: int
    actual: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        """The cause in one line."""
        values = "" if self.actual is None else f" ({self.actual}, expected {self.expected})"
        return f"{self.name} {self.percent}%{values}"


def list_causes(causes: Sequence[dict[str, Any]], zone: ZoneInfo) -> list[Cause]:
    """All causes of a record, whose shares add up to 100 per cent; those without a share are left out."""
    found = [cause for cause in localise_causes(causes, zone) if cause["share"]]
    percents = round_shares([cause["share"] for cause in found])
    return [_show_cause(cause, percent) for cause, percent in zip(found, percents, strict=True)]


def describe_causes(causes: Sequence[dict[str, Any]], zone: ZoneInfo) -> list[str]:
    """The causes of `list_causes`, each as a text."""
    return [str(cause) for cause in list_causes(causes, zone)]


def round_shares(shares: Sequence[float]) -> list[int]:
    """Shares as whole per cents of their sum that add up to 100: those cut off most are rounded up."""
    whole = sum(shares)
    exact = [100 * share / whole for share in shares]
    found = [int(share) for share in exact]
    cut = sorted(range(len(exact)), key=lambda place: found[place] - exact[place])
    for place in cut[: 100 - sum(found)]:
        found[place] += 1
    return found


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


def _show_cause(cause: Mapping[str, Any], percent: int) -> Cause:
    name = f"{cause['column']} {cause['part']}" if "part" in cause else cause["column"]
    values = (show_value(cause[key]) for key in ("actual", "expected") if key in cause)
    return Cause(name, percent, *values)


def show_value(value: object) -> str:
    """A value as text, numbers with five digits or, from 100,000 on, as whole ones."""
    if isinstance(value, float) and 1e5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
