"""Group scores: how anomalous the records of one hour, or with one value of a column, are as a group.

In: slices of records with their scores, N rows each. Out, for each grouping: one row per group, with the mean of its
records' scores, weighted by a column such as a frequency, its percentile rank among the groups of earlier nights, and
whether it is above their threshold. Memory holds three numbers per group, however many records it has.
"""

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.calibration import percentile_ranks
from tasks.errors import BatchRejected
from tasks.rows.params import HOUR, GroupsParams
from tasks.stores.bulk import NO_NUL
from tasks.stores.tables import MOST_KEY_BYTES

Floats = npt.NDArray[np.float64]
QUARTER_S = 900  # every time zone's offset from UTC is a multiple of a quarter of an hour
UNNAMED = ""  # the grouping of groups that were published before schema 0011
SUMS = {
    "grouping": "str",
    "q": "float64",
    "minimum": "int64",
    "group": "str",
    "weighted": "float64",
    "weight": "float64",
    "records": "int64",
}
RULE = ["grouping", "q", "minimum"]  # of a row of sums or groups: the key of its grouping, and how groups compare
MISSING = "(missing)"  # the group of records without a value


class GroupScores:
    """Sums of weighted scores, weights and records by grouping and group, over all added slices."""

    def __init__(self, groupings: Sequence[GroupsParams], zone: ZoneInfo) -> None:
        self._groupings, self._zone = groupings, zone
        self._sums: list[dict[str, Floats]] = [{} for _ in groupings]

    def add(self, rows: pa.Table, scores: Floats) -> None:
        """Add rows (N,) with their scores (N,). Raises BatchRejected if a weight is missing or not positive."""
        for params, known in zip(self._groupings, self._sums, strict=True):
            by_hour = params.by == HOUR
            groups, places = name_hours(rows["event_time"], self._zone) if by_hour else name_values(rows[params.by])
            weights = np.ones(len(scores)) if params.weight is None else _read_weights(rows, params.weight)
            added = (scores * weights, weights, np.ones(len(scores)))
            columns = [np.bincount(places, each, len(groups)) for each in added]
            for group, sums in zip(groups, np.stack(columns, axis=1), strict=True):
                known[group] = known.get(group, np.zeros(3)) + sums

    def sums(self) -> pd.DataFrame:
        """One row per grouping, in their order, and group, by name.

        Columns: grouping, q, minimum, group, weighted (sum of score times weight), weight (sum), records.
        """
        found = [
            (params.by, params.q, params.minimum, group, *sums[:2], int(sums[2]))
            for params, known in zip(self._groupings, self._sums, strict=True)
            for group, sums in sorted(known.items())
        ]
        return pd.DataFrame(found, columns=list(SUMS)).astype(SUMS)


def combine_groups(sums: pd.DataFrame) -> pd.DataFrame:
    """Combine the sums of a batch's parts into one row per group: RULE, group, score (weighted mean), records.

    Groupings keep their order; groups are in order of their names.
    """
    sums = sums.fillna({"minimum": 1})  # of parts that were scored before there was one
    order = {name: place for place, name in enumerate(sums["grouping"].unique())}
    total = sums.groupby([*RULE, "group"], as_index=False).sum()
    total = total.sort_values(["grouping", "group"], key=lambda c: c.map(order) if c.name == "grouping" else c)
    score = total["weighted"] / total["weight"]
    return total[[*RULE, "group"]].assign(score=score, records=total["records"]).reset_index(drop=True)


def name_hours(times: pa.ChunkedArray, zone: ZoneInfo) -> tuple[list[str], npt.NDArray[np.intp]]:
    """The distinct hours of instants (N,), such as 2026-03-01T14:00+01:00, and the index of each instant's hour (N,).

    Hours are local; an hour that a clock change repeats counts as two.
    """
    seconds = times.cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64()).to_numpy()
    quarters, places = np.unique(seconds // QUARTER_S, return_inverse=True)
    local = [datetime.fromtimestamp(int(quarter) * QUARTER_S, UTC).astimezone(zone) for quarter in quarters]
    hours = [moment.replace(minute=0).isoformat(timespec="minutes") for moment in local]
    names = sorted(set(hours))
    return names, np.array([names.index(hour) for hour in hours], dtype=np.intp)[places]


def name_values(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.intp]]:
    """The distinct values of a column (N,) as text, and the index of each row's value (N,)."""
    texts = column.cast(pa.string()).fill_null(MISSING).combine_chunks()
    encoded = pc.replace_substring(texts, "\0", NO_NUL).dictionary_encode()
    return [_shorten(name) for name in encoded.dictionary.to_pylist()], encoded.indices.to_numpy().astype(np.intp)


def _shorten(name: str) -> str:
    """A name that is a key in every warehouse; that of a long text ends in its hash."""
    text = name.encode()
    if len(text) <= MOST_KEY_BYTES:
        return name
    return f"{text[:200].decode(errors='ignore')}... {hashlib.sha256(text).hexdigest()}"


def _read_weights(rows: pa.Table, name: str) -> Floats:
    weights: Floats = rows[name].cast(pa.float64(), safe=False).to_numpy()
    bad = int((~(np.isfinite(weights) & (weights > 0))).sum())
    if bad:
        raise BatchRejected(
            "Some records have no valid group weight.",
            where=f"column {name}, which score.groups.weight names",
            got=f"{bad} of {len(weights)} rows of a slice without a positive, finite number",
            expected="a positive weight for each record, such as how often it occurred",
            todo="quarantine such rows with a row-level expectation on the column in the contract",
        )
    return weights


def rank_groups(groups: pd.DataFrame, past: pd.DataFrame) -> pd.DataFrame:
    """Compare groups with those of their grouping in earlier nights, whose `grouping`, `score` and `records` are given.

    Adds `rank`, the share of past scores strictly below, 0 to 100; `threshold`, the q-quantile of past scores, finite-
    sample exact; and whether the score is `flagged`, strictly above it. Without past scores the rank is NaN, and with
    too few the threshold. Groups with fewer records than the grouping's minimum have neither, and do not count for
    others. Groups published before groupings had names count for the first grouping.
    """
    groups = groups if "minimum" in groups else groups.assign(minimum=1)  # scored before there was one
    found = groups.assign(rank=np.nan, threshold=np.nan)
    first = groups["grouping"].iloc[0] if len(groups) else UNNAMED
    large = groups[groups["records"] >= groups["minimum"]]
    for (name, q, minimum), own in large.groupby(RULE):
        names = {name, UNNAMED} if name == first else {name}
        is_compared = past["grouping"].isin(names) & (past["records"] >= minimum)
        known = np.sort(past.loc[is_compared, "score"].to_numpy(dtype=np.float64))
        if len(known):
            found.loc[own.index, "rank"] = percentile_ranks(own["score"].to_numpy(), known)
        place = math.ceil((len(known) + 1) * float(str(q)))
        if place <= len(known):
            found.loc[own.index, "threshold"] = known[place - 1]
    return found.assign(flagged=found["score"] > found["threshold"]).drop(columns=["q", "minimum"])
