"""Where one detector's data lives: the record that every task gets, made once by the flows from the settings."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from tasks.errors import hide_password
from tasks.stores.lake import Lake


@dataclass(frozen=True)
class Site:
    """A detector's name, its calendar, and the stores it works with."""

    detector: str
    time_zone: str
    label_delay: timedelta
    sources: str
    lake_root: str
    warehouse_url: str
    mlflow_uri: str
    artifacts: str | None  # where a serverless MLflow keeps files; None lets the server decide
    home: Path
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    commit: str
    devices: int = 1  # that fit a network together
    sole_writer: bool = False  # of the lake: true in experiments, whose files have the same names in every run

    @property
    def lake(self) -> Lake:
        """The lake, opened anew: it holds no connection worth sharing."""
        return Lake(self.lake_root, self.sole_writer)

    def for_workers(self, device: Literal["cpu", "cuda"]) -> "Site":
        """The site as it is sent to workers: without the warehouse, the sources, and any password of MLflow's URL."""
        return replace(self, warehouse_url="", sources="", mlflow_uri=hide_password(self.mlflow_uri), device=device)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone that bounds batch dates."""
        return ZoneInfo(self.time_zone)

    @property
    def model_name(self) -> str:
        """The registered model."""
        return f"nightjar-{self.detector}"

    @property
    def warehouse_label(self) -> str:
        """The warehouse's URL as it may be shown: without user and password."""
        return hide_password(self.warehouse_url)

    @property
    def docs(self) -> Path:
        """The Great Expectations project; its Data Docs lie in gx/uncommitted/data_docs/local_site."""
        return self.home / "validation" / self.detector

    @property
    def reports(self) -> Path:
        """One HTML page a night."""
        return self.home / "reports" / self.detector

    @property
    def bundles(self) -> Path:
        """Bundles on their way to the registry, and those fetched from it."""
        return self.home / "bundles" / self.detector

    def fitted(self, cutoff: date) -> Path:
        """The bundle of a training cut-off, before calibration."""
        return self.bundles / "fitted" / str(cutoff)

    def calibrated(self, cutoff: date) -> Path:
        """The bundle of a training cut-off, ready to register."""
        return self.bundles / "calibrated" / str(cutoff)

    def start_of(self, day: date) -> datetime:
        """The instant at which a batch date begins."""
        return datetime.combine(day, time(), self.zone)

    def has_matured(self, day: date, cutoff: date) -> bool:
        """Whether every label of a batch date had arrived when the cut-off date began."""
        # In UTC: adding to a local time skips the hour that a clock change takes or gives.
        end = self.start_of(day + timedelta(days=1)).astimezone(UTC)
        return end + self.label_delay <= self.start_of(cutoff).astimezone(UTC)

    @property
    def artifact_key(self) -> str:
        """The detector's name as Prefect accepts it in artifact keys."""
        return self.detector.replace("_", "-")
