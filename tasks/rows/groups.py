"""Group scores: how anomalous the records of one hour, or with one value of a column, are as a group.

In: slices of records with their scores, N rows each. Out: one row per group: the mean of its records' scores, weighted
by a column such as a frequency, and its percentile rank among the groups of earlier nights. Memory holds three numbers
per group, however many records it has.
"""

import hashlib
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
MISSING = "(missing)"  # the group of records without a value


class GroupScores:
    """Sums of weighted scores, weights and records by group, over all added slices."""

    def __init__(self, params: GroupsParams | None, zone: ZoneInfo) -> None:
        self._params, self._zone = params, zone
        self._sums: dict[str, Floats] = {}

    def add(self, rows: pa.Table, scores: Floats) -> None:
        """Add rows (N,) with their scores (N,). Raises BatchRejected if a weight is missing or not positive."""
        if self._params is None:
            return
        by_hour = self._params.by == HOUR
        groups, places = name_hours(rows["event_time"], self._zone) if by_hour else name_values(rows[self._params.by])
        weights = np.ones(len(scores)) if self._params.weight is None else _read_weights(rows, self._params.weight)
        columns = [np.bincount(places, each, len(groups)) for each in (scores * weights, weights, np.ones(len(scores)))]
        for group, sums in zip(groups, np.stack(columns, axis=1), strict=True):
            self._sums[group] = self._sums.get(group, np.zeros(3)) + sums

    def sums(self) -> pd.DataFrame:
        """One row per group, by name: group, weighted (sum of score times weight), weight (sum), records."""
        names = sorted(self._sums)
        sums = np.array([self._sums[name] for name in names]).reshape(-1, 3)
        columns = {"weighted": sums[:, 0], "weight": sums[:, 1], "records": sums[:, 2].astype(np.int64)}
        return pd.DataFrame({"group": pd.Series(names, dtype="str"), **columns})


def combine_groups(sums: pd.DataFrame) -> pd.DataFrame:
    """Combine the sums of a batch's parts into one row per group, by name: group, score (weighted mean), records."""
    total = sums.groupby("group", sort=True, as_index=False).sum()
    score = total["weighted"] / total["weight"]
    return pd.DataFrame({"group": total["group"], "score": score, "records": total["records"]})


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


def rank_groups(groups: pd.DataFrame, past: Sequence[float]) -> pd.DataFrame:
    """Add each group's `rank`: the share of past scores strictly below its own, 0 to 100; NaN without past scores."""
    known = np.sort(np.asarray(past, dtype=np.float64))
    if not len(known):
        return groups.assign(rank=np.nan)
    return groups.assign(rank=percentile_ranks(groups["score"].to_numpy(), known))
