"""Causes as text, from the JSON of `causes.name_causes`; without torch, so that commands that read start at once."""

from collections.abc import Mapping, Sequence
from typing import Any


def describe_causes(causes: Sequence[dict[str, Any]]) -> list[str]:
    """All causes of a record as texts, each with its share of the score in per cent; those without one are left out."""
    whole = sum(cause["share"] for cause in causes) or 1.0
    return [_describe(cause, cause["share"] / whole) for cause in causes if cause["share"]]


def describe_values(record: Mapping[str, Any] | None) -> str:
    """The values of a record by column, as one text."""
    return ", ".join(f"{column} {show_value(value)}" for column, value in (record or {}).items())


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
