"""What became of each batch date: fresh, stale, failed or missing, from landing, the warehouse and the champion."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from tasks import warehouse
from tasks.site import Site
from tasks.tables import Batch
from tasks.tracking import Version

State = Literal["fresh", "stale", "failed", "missing"]


@dataclass(frozen=True)
class NightState:
    """One batch date. `why` is empty for a fresh one; `batch` is what is published, if anything."""

    batch_date: date
    state: State
    why: str
    batch: Batch | None


def read_ledger(site: Site, dates: Sequence[date], champion: Version | None) -> list[NightState]:
    """The state of batch dates, in order.

    stale: published, but landing has changed since, or another version is the champion now. failed: the newest try
    failed and nothing is published. missing: landed, never published.
    """
    engine, lake = warehouse.open_engine(site.warehouse_url), site.lake
    published = {batch.batch_date: batch for batch in warehouse.read_batches(engine, site.detector)}
    newest = {attempt.batch_date: attempt for attempt in warehouse.read_attempts(engine, site.detector)}
    causes = {day: attempt.cause for day, attempt in newest.items() if attempt.status == "failed"}
    states = []
    for day in dates:
        batch, landing = published.get(day), lake.find("landing", site.detector, day)
        if batch is None:
            state: State = "failed" if day in causes else "missing"
            states.append(NightState(day, state, causes.get(day) or "never scored", None))
        elif landing and landing.hash != batch.input_hash:
            states.append(NightState(day, "stale", "its input has changed", batch))
        elif champion and champion.version != batch.model_version:
            why = f"scored by version {batch.model_version}, the champion is {champion.version}"
            states.append(NightState(day, "stale", why, batch))
        else:
            states.append(NightState(day, "fresh", "", batch))
    return states
