"""The history columns that `nightjar init --entity` proposes, by rules on names and values."""

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from tasks.onboarding.days import Calendar, has_hours
from tasks.onboarding.profile import Choice, ColumnProfile, Decision, Kind
from tasks.rows.history import EnrichParams, FirstSeenColumn

AMOUNT = re.compile(r"(?i)(^|[^a-z])(amount|amt|price|cost|spend|total|value|bytes|size|quantity|duration)s?($|[^a-z])")
LATITUDE, LONGITUDE = re.compile(r"(?i)(^|_)lat(itude)?$"), re.compile(r"(?i)(^|_)(lon|lng|long|longitude)$")
MIN_RECORDS = 3  # per entity: with fewer there is hardly any history
MOST_OF_A_KIND = 2  # amounts to add up, categories to look back for
MIN_REPEATS = 1.5  # rows per value of a column whose values are counted


def choose_history(
    profiles: Sequence[ColumnProfile],
    decisions: Sequence[Decision],
    calendar: Calendar,
    entity: str | None,
    is_requested: bool,
    reserved: Set[str],
) -> tuple[EnrichParams | None, list[Choice]]:
    """The section to propose, and why; None unless the entity was requested and its records have times to compare."""
    if entity is None:
        return None, []
    if not is_requested:
        return None, [Choice("history", "none", f"--entity {entity} proposes columns of what each one did before")]
    if calendar.column is None:
        return None, [Choice("history", "none", "the rows have no event time")]
    profile = next(p for p in profiles if p.name == entity)
    if profile.there < MIN_RECORDS * profile.distinct:
        why = f"{profile.distinct:,} different values in {profile.there:,} rows: too few records each"
        return None, [Choice("history", "none", why)]
    short, long = choose_windows(calendar, profiles)
    taken = {p.name for p in profiles} | reserved
    listed = _list_columns(profiles, decisions, entity, reserved, short[-1], long)
    columns = {name: column for name, column in listed if name not in taken}
    enrich = EnrichParams.model_validate({"entity": entity, "windows": short, "columns": columns}, strict=False)
    what = f"{len(enrich.history)} columns over {', '.join(dict.fromkeys([*short, long]))}"
    return enrich, [Choice("history", what, f"what each {entity} did before a record; see enrich in params.yaml")]


def choose_windows(calendar: Calendar, profiles: Sequence[ColumnProfile]) -> tuple[list[str], str]:
    """The windows to count in: an hour and a day where times have hours, else a week; and the one of what is usual.

    The latter is 28 or 7 days, of which the data must hold at least two. Nothing is counted in it: that would say how
    busy an entity is, and grow over the first days, rather than what has changed.
    """
    days = (max(calendar.rows) - min(calendar.rows)).days + 1
    return ["1h", "24h"] if has_hours(calendar, profiles) else ["7d"], "28d" if days >= 56 else "7d"


def _list_columns(
    profiles: Sequence[ColumnProfile],
    decisions: Sequence[Decision],
    entity: str,
    reserved: Set[str],
    lately: str,
    usually: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = {decision.column: decision.kind for decision in decisions}
    numbers = [p for p in profiles if kinds.get(p.name) in ("numeric", "log_numeric")]
    yield "records_{window}", {"count": "*"}
    for amount in [p.name for p in numbers if AMOUNT.search(p.name)][:MOST_OF_A_KIND]:
        yield f"{amount}_sum_{{window}}", {"sum": amount}
        yield f"{amount}_to_mean", {"ratio": amount, "to": "mean", "window": usually}
    texts = [
        p
        for p in profiles
        if p.type == "text" and p.name not in {entity, *reserved} and 1 < p.distinct <= p.there / MIN_REPEATS
    ]
    if texts:
        most = max(texts, key=lambda p: p.distinct).name
        yield f"{most}_distinct_{lately}", {"distinct": most, "window": lately}
    learnt = [p for p in texts if kinds.get(p.name) == "categorical"]
    for category in sorted(learnt, key=lambda p: -p.distinct)[:MOST_OF_A_KIND]:
        yield f"new_{category.name}", {"first_seen": category.name, "window": usually}
    place = [next((p.name for p in numbers if pattern.search(p.name)), None) for pattern in (LATITUDE, LONGITUDE)]
    if None not in place:
        yield "km_from_last", {"distance": place, "window": usually}
    yield "since_last_s", {"seconds_since": "previous", "window": usually}


def decide_history(enrich: EnrichParams) -> dict[str, Decision]:
    """The kind of each history column: whether a value is new is a category, the others are numbers."""
    kinds: dict[str, Kind] = {
        name: "categorical" if isinstance(column, FirstSeenColumn) else "numeric"
        for name, column in enrich.history.items()
    }
    return {name: Decision(name, kind, "history of the entity") for name, kind in kinds.items()}
