"""`nightjar verify`: every check of tasks/verify.py for the published nights of a detector."""

import secrets
from datetime import UTC, date, datetime

from flows.setup import prepare
from tasks import warehouse
from tasks.errors import BatchMissing
from tasks.verify import Check, Published, verify_night


def verify_nights(name: str, day: date | None, sample: int) -> list[Check]:
    """The checks of all published nights, or of one. Raises BatchMissing where there is none."""
    setup = prepare(name)
    published = warehouse.read_batches(warehouse.open_engine(setup.site.warehouse_url), name)
    chosen = [batch for batch in published if day in (None, batch.batch_date)]
    if not chosen:
        raise BatchMissing(
            f"{name} has published no night{f' of {day}' if day else ''}.",
            where=f"scoring_batches in {setup.site.warehouse_label}",
            todo=f"nightjar status {name} shows what is published",
        )
    seed = secrets.randbelow(2**31)  # another sample each time
    retention, now = setup.configured.detector.retention, datetime.now(UTC)
    return [
        check
        for batch in chosen
        for check in verify_night(
            Published(
                setup.site,
                setup.configured.contract,
                batch,
                sample,
                seed,
                retention.find_past(batch.batch_date, now.astimezone(setup.site.zone).date()),
            )
        )
    ]
