"""What a backfill would do: which nights of a range it would score, why, and with which version."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from flows.setup import prepare
from tasks.ledger import NightState, list_due, list_landed_dates, read_ledger, read_ledger_as_of
from tasks.tracking import find_version

Only = Literal["all", "missing", "stale", "failed"]


@dataclass(frozen=True)
class Plan:
    """The nights to score, of so many landed dates; and the dates of the range on which nothing has landed."""

    nights: list[NightState]
    landed: int
    not_landed: list[date]

    @property
    def dates(self) -> list[date]:
        """The dates to score."""
        return [night.batch_date for night in self.nights]

    @property
    def versions(self) -> list[int]:
        """The version of each date that scores it; a plan as of then has one for each."""
        return [night.version for night in self.nights if night.version is not None]


def make_plan(name: str, first: date, last: date, only: str, as_of: bool) -> Plan:
    """Plan a range of batch dates, or those of them in one state. Raises ChampionMissing where as_of has no version."""
    setup = prepare(name)
    site, known = setup.site, list_landed_dates(setup.site.lake, name)
    landed = site.lake.dates("landing", name)
    asked = [day for day in list_due(known, None, setup.yesterday()) if first <= day <= last]
    found = [day for day in asked if day in landed]
    ledger = read_ledger_as_of(site, found) if as_of else read_ledger(site, found, find_version(site))
    nights = [night for night in ledger if only in ("all", night.state)]
    return Plan(nights, len(found), [day for day in asked if day not in known])
