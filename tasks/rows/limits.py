"""The threshold of each row in a night's scores: the night's, or, where thresholds go by segment, the row's own."""

from collections.abc import Iterator, Sequence

from models.calibration import Floats
from tasks.stores.lake import Lake, Part

LIMIT = "threshold"  # the column of the scores zone; only nights with thresholds by segment have it


def has_limits(lake: Lake, parts: Sequence[Part]) -> bool:
    """Whether the rows of these scores have thresholds of their own."""
    return bool(parts) and LIMIT in lake.columns(parts[0])


def read_scores(lake: Lake, parts: Sequence[Part]) -> Iterator[Floats]:
    """The scores of a night's parts, slice by slice."""
    return (table["score"].to_numpy() for part in parts for table in lake.slices(part, ["score"]))


def name_limit(lake: Lake, parts: Sequence[Part], threshold: float) -> str:
    """SQL for the threshold of a row of these scores; `threshold`: the night's."""
    return LIMIT if has_limits(lake, parts) else f"'{threshold!r}'::double"
