"""One detector's calendar, stores and folders, set up once by the flows and passed to every task."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from tasks.stores.lake import Lake, hash_parts
from tasks.stores.registry import Registry
from tasks.stores.warehouse import Warehouse


@dataclass(frozen=True)
class Site:
    """A detector's name, its calendar and its stores."""

    detector: str
    time_zone: str
    label_delay: timedelta
    sources: str  # folder or URL that relative source paths start from
    lake: Lake
    warehouse: Warehouse
    registry: Registry
    home: Path
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    commit: str
    devices: int = 1  # number of devices that fit a network together
    reach: timedelta = timedelta()  # how far back history columns look; 0 without any
    has_times: bool = True  # otherwise dates and event times are invented, and event times are not shown
    entity: str | None = None  # the column that names whom a record is about

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of batch dates."""
        return ZoneInfo(self.time_zone)

    @property
    def validations(self) -> Path:
        """The folder of the validation's pages, one HTML page per batch."""
        return self.home / "validation" / self.detector

    @property
    def reports(self) -> Path:
        """The folder of nightly reports, one HTML page per night."""
        return self.home / "reports" / self.detector

    def fitted(self, cutoff: date) -> Path:
        """The bundle of a training cut-off, before calibration."""
        return self.registry.bundles / "fitted" / str(cutoff)

    def epochs(self, cutoff: date) -> Path:
        """The losses of the epochs of a training, as CSV."""
        return self.registry.bundles / "fitted" / f"{cutoff}.csv"

    def calibrated(self, cutoff: date) -> Path:
        """The bundle of a training cut-off, ready to register."""
        return self.registry.bundles / "calibrated" / str(cutoff)

    def start_of(self, day: date) -> datetime:
        """The instant at which a batch date begins."""
        return datetime.combine(day, time(), self.zone)

    def span_of(self, first: date, last: date) -> tuple[datetime, datetime]:
        """The instants at which the first date begins and the last one ends."""
        return self.start_of(first), self.start_of(last + timedelta(days=1))

    def has_matured(self, day: date, cutoff: date) -> bool:
        """Whether every label of a batch date had arrived when the cut-off date began."""
        # In UTC: adding to a local time ignores the hour that a clock change removes or adds.
        end = self.start_of(day + timedelta(days=1)).astimezone(UTC)
        return end + self.label_delay <= self.start_of(cutoff).astimezone(UTC)

    def list_reached(self, day: date) -> list[date]:
        """The batch dates that a date's history columns look at, the date itself last."""
        try:
            first = (self.start_of(day).astimezone(UTC) - self.reach).astimezone(self.zone).date()
        except OverflowError:  # near the year 1, in a file with an impossible time
            first = day
        return [first + timedelta(days=n) for n in range((day - first).days + 1)]

    def hash_inputs(self, days: Iterable[date]) -> dict[date, str | None]:
        """By date, the hash of everything that its night is made from: its batch, and those its history looks at.

        None if nothing has landed for the date. Of a pruned batch the parts are remembered.
        """
        wanted = list(days)
        if not self.reach:
            found = {day: self.lake.find("landing", self.detector, day) for day in wanted}
            return {day: landing.hash if landing else None for day, landing in found.items()}
        landed, pruned = {*self.lake.dates("landing", self.detector)}, self.lake.pruned(self.detector)
        hashes = {
            day: hash_parts(pruned[day]) if day in pruned else self.lake.get("landing", self.detector, day).hash
            for day in {reached for day in wanted for reached in self.list_reached(day)}
            if day in landed or day in pruned
        }
        return {
            day: self._combine([(one, hashes[one]) for one in self.list_reached(day) if one in hashes])
            if day in landed
            else None
            for day in wanted
        }

    def hash_input(self, day: date) -> str | None:
        """The same for one date."""
        return self.hash_inputs([day])[day]

    @staticmethod
    def _combine(hashes: list[tuple[date, str]]) -> str:
        text = "\n".join(f"{day} {one}" for day, one in hashes)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def artifact_key(self) -> str:
        """The detector's name in the form that Prefect accepts in artifact keys."""
        return self.detector.replace("_", "-")
