"""One detector's calendar, stores and folders, set up once by the flows and passed to every task."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.stores.lake import Lake, hash_parts
from tasks.stores.registry import Registry
from tasks.stores.warehouse import Warehouse

NO_REPORTS = pa.table({"record_id": pa.array([], pa.string()), "known_at": pa.array([], pa.timestamp("us", "UTC"))})


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
    counts_reports: bool = False  # history columns count reported anomalies (labels)
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

    def read_reports(self, days: Sequence[date]) -> pa.Table:
        """When records were first labelled anomalous, on days in order: record_id, known_at; none unless counted."""
        if not days or not self.counts_reports:
            return NO_REPORTS
        told = self.warehouse.list_reports(self.detector, *self.span_of(days[0], days[-1]))
        return pa.Table.from_pandas(told, NO_REPORTS.schema, preserve_index=False)

    def hash_reports(self, reports: pa.Table) -> dict[date, str]:
        """The hash of reports by the date on which they became known, whatever their order."""
        frame = reports.to_pandas()
        rows = pd.util.hash_pandas_object(frame, index=False).groupby(
            frame["known_at"].dt.tz_convert(self.zone).dt.date
        )
        return {day: hashlib.sha256(np.sort(one.to_numpy()).tobytes()).hexdigest() for day, one in rows}

    def hash_inputs(self, days: Iterable[date], reports: pa.Table | None = None) -> dict[date, str | None]:
        """By date, the hash of everything that its night is made from: its batch, and what its history looks at.

        That is the batches of earlier days, and the reports known by then. None if nothing has landed for the date. Of
        a pruned batch the parts are remembered. reports: those that became known on the dates, if read already.
        """
        wanted = list(days)
        if not self.reach:
            found = {day: self.lake.find("landing", self.detector, day) for day in wanted}
            return {day: landing.hash if landing else None for day, landing in found.items()}
        all_reached = sorted({reached for day in wanted for reached in self.list_reached(day)})
        landed, pruned = {*self.lake.dates("landing", self.detector)}, self.lake.pruned(self.detector, all_reached)
        hashes = {
            day: hash_parts(pruned[day]) if day in pruned else self.lake.get("landing", self.detector, day).hash
            for day in all_reached
            if day in landed or day in pruned
        }
        told = self.hash_reports(self.read_reports(all_reached) if reports is None else reports)
        return {day: self._combine(day, hashes, told) if day in landed else None for day in wanted}

    def hash_input(self, day: date) -> str | None:
        """The same for one date."""
        return self.hash_inputs([day])[day]

    def _combine(self, day: date, *by_date: Mapping[date, str]) -> str:
        reached = self.list_reached(day)
        text = "\n".join(f"{one} {hashes[one]}" for hashes in by_date for one in reached if one in hashes)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def artifact_key(self) -> str:
        """The detector's name in the form that Prefect accepts in artifact keys."""
        return self.detector.replace("_", "-")
