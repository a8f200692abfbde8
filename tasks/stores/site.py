"""One detector's calendar, stores and folders, set up once by the flows and passed to every task."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from tasks.stores.lake import Lake
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
    has_times: bool = True  # otherwise dates and event times are invented, and event times are not shown

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

    def has_matured(self, day: date, cutoff: date) -> bool:
        """Whether every label of a batch date had arrived when the cut-off date began."""
        # In UTC: adding to a local time ignores the hour that a clock change removes or adds.
        end = self.start_of(day + timedelta(days=1)).astimezone(UTC)
        return end + self.label_delay <= self.start_of(cutoff).astimezone(UTC)

    @property
    def artifact_key(self) -> str:
        """The detector's name in the form that Prefect accepts in artifact keys."""
        return self.detector.replace("_", "-")
