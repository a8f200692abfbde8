"""`nightjar replay`: a batch's quarantined rows, and their repair: landed in their date, and the night scored again."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa

from flows.setup import prepare
from tasks.ledger import read_ledger
from tasks.replay import Taken, find_quarantine, list_quarantined, read_rows, take_repairs
from tasks.tables import Night
from tasks.tracking import find_version


@dataclass(frozen=True)
class Replayed:
    """The repairs taken, and the night that was scored with them; None where it was fresh or learnt from."""

    taken: Taken
    night: Night | None
    why_not_scored: str


def list_bad_rows(name: str, day: date) -> pa.Table:
    """The quarantined rows of a batch as texts, masked columns left out. Raises BatchMissing."""
    setup = prepare(name)
    params, contract = setup.configured.detector.validate_, setup.configured.contract
    return list_quarantined(read_rows(setup.site.lake, find_quarantine(setup.site, contract, params, day)), contract)


def replay_batch(name: str, day: date, path: Path) -> Replayed:
    """Take a file of repaired rows and score the night again, unless it is fresh."""
    setup = prepare(name)
    site, params = setup.site, setup.configured.detector
    taken = take_repairs(site, setup.configured.contract, params.ingest, params.validate_, day, path, datetime.now(UTC))
    champion = find_version(site)
    if champion and day.isoformat() <= champion.tags["trained_through"]:
        return Replayed(taken, None, f"version {champion.version} has learnt from {day}")
    [night] = read_ledger(site, [day], champion)
    if night.state == "fresh":
        return Replayed(taken, None, f"{day} is fresh")
    from flows.nightly import nightly

    return Replayed(taken, nightly(name, day), "")
