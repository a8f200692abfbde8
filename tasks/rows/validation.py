"""What validation found in a batch; the steps after it are handed this."""

from dataclasses import dataclass
from datetime import date

from tasks.rows.expectations import Outcome


@dataclass(frozen=True)
class Validation:
    """The result for one batch: rows_in = validated + quarantined + excluded."""

    batch_date: date
    input_hash: str
    rows_in: int
    validated: int
    quarantined: int
    excluded: int
    reasons: dict[str, int]
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()  # critical; if there are any, the batch is rejected
    results: tuple[Outcome, ...] = ()
