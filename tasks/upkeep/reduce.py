"""Fit the second stage of a version on all verdicts so far, and register both as a new version."""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import JsonValue

from models.detector import Detector
from models.reducer import Gain, Verdicts, fit_reducer
from tasks.errors import TooFewRows
from tasks.follow_up.cases import ANOMALY
from tasks.register import Registered, register_bundle
from tasks.rows.columns import fits, to_records
from tasks.rows.judge import Mask, judge
from tasks.rows.params import ReviewParams
from tasks.stores.registry import CHAMPION, NIGHT_TAGS
from tasks.stores.site import Site


@dataclass(frozen=True)
class Reduced:
    """The new version with a reducer, its gain, and the flags and expected alerts of a typical reviewed night.

    They are None for a version other than the champion, whose flags the published nights do not count.
    """

    registered: Registered
    gain: Gain
    flags_per_night: float | None
    alerts_per_night: float | None


@dataclass(frozen=True, eq=False)
class Described:
    """Rows of nights as a detector sees them now, whichever version scored them originally.

    rows: what was asked for, of the N whose validated row is there. features: float32 (N, E), of `Detector.describe`.
    is_flag, is_suppressed: by the detector's threshold and its second stage (N,). times: of the records (N,).
    """

    rows: pd.DataFrame
    features: torch.Tensor
    is_flag: Mask
    is_suppressed: Mask
    times: npt.NDArray[np.int64]

    @property
    def is_reviewed(self) -> Mask:
        """Which rows have a verdict."""
        return self.rows["verdict"].notna().to_numpy()

    @property
    def verdicts(self) -> Verdicts:
        """Those that have one."""
        chosen = self.is_reviewed
        return Verdicts(
            features=self.features[torch.from_numpy(np.flatnonzero(chosen))],
            is_anomaly=(self.rows["verdict"] == ANOMALY).to_numpy()[chosen],
            is_flag=self.is_flag[chosen],
            inclusion=self.rows["inclusion"].to_numpy(dtype=np.float64)[chosen],
            times=self.times[chosen],
        )


def describe_rows(site: Site, detector: Detector, wanted: pd.DataFrame) -> Described | None:
    """Find the validated rows of records, and judge and describe them; None if there are none.

    wanted: batch_date, record_id and more. Records that were replaced or quarantined later, and nights whose validated
    rows were pruned or lack the detector's columns, are left out.
    """
    names = list(dict.fromkeys(["record_id", "event_time", *(column.name for column in detector.columns)]))
    rows, features, is_flag, is_suppressed, times = [], [], [], [], []
    kept = {*site.lake.dates("validated", site.detector)}
    for day in sorted(day for day in wanted["batch_date"].unique() if day in kept):
        of_night = wanted[wanted["batch_date"] == day]
        ids = pa.array(of_night["record_id"], pa.string())
        for part in site.lake.get("validated", site.detector, day).parts:
            if not fits(site.lake.schema(part), detector.columns):
                continue
            for table in site.lake.slices(part, names):
                found = table.filter(pc.is_in(table["record_id"].cast(pa.string()), ids))
                if not found.num_rows:
                    continue
                records, _ = to_records(found, detector.columns)
                rows.append(of_night.set_index("record_id").loc[found["record_id"].to_pylist()])
                features.append(detector.describe(records))
                judged = judge(detector, found)
                is_flag.append(judged.is_flagged)
                is_suppressed.append(judged.is_suppressed)
                times.append(found["event_time"].cast(pa.int64()).to_numpy())
    if not rows:
        return None
    masks = np.concatenate(is_flag), np.concatenate(is_suppressed)
    return Described(pd.concat(rows), torch.cat(features), *masks, np.concatenate(times))


def read_verdicts(site: Site, detector: Detector) -> tuple[Verdicts, list[date]]:
    """All verdicts so far, with features from the detector, and their nights. Raises TooFewRows if there are none."""
    reviews = site.warehouse.read_reviews(site.detector)
    found = describe_rows(site, detector, reviews)
    if found is None:
        raise lack_verdicts(site.detector, len(reviews))
    return found.verdicts, list(found.rows["batch_date"].unique())


def lack_verdicts(detector: str, given: int) -> TooFewRows:
    """The error for a detector without any verdict whose row is there."""
    return TooFewRows(
        f"{detector} has no verdicts that it can learn from.",
        got=f"{given:,} verdicts"
        + (", on nights whose rows were pruned or lack the version's columns" if given else ""),
        expected="verdicts on the flags of nights whose validated rows are kept",
        todo=f"nightjar review {detector} --date DATE > FILE, then --take FILE; or --from-labels",
    )


def reduce_detector(
    detector: Detector, verdicts: Verdicts, nights: list[date], version: int, params: ReviewParams
) -> tuple[Detector, Gain]:
    """The detector with a second stage added, and the gain. Raises TooFewRows and ReducerRefused.

    Its lineage lists the reviewed nights as trained on, so it will not score them.
    """
    reducer = fit_reducer(verdicts, params.reducer, params.limits)
    through = max(str(detector.lineage["trained_through"]), nights[-1].isoformat())
    origin: dict[str, JsonValue] = {"from_version": version, "reviewed_through": nights[-1].isoformat()}
    reduced = detector.with_reducer(reducer)
    lineage = {**detector.lineage, "trained_through": through, "reducer": origin}
    return reduced.with_lineage(lineage), reducer.header.gain


def register_reducer(site: Site, params: ReviewParams, version: int | None = None) -> Reduced:
    """Fit a reducer for a version (default: the champion) on all verdicts so far; register the result as a new version.

    Raises ChampionMissing, TooFewRows and ReducerRefused.
    """
    registry = site.registry
    base = registry.get_champion() if version is None else registry.get_version(version)
    detector = Detector.load(registry.fetch_bundle(base))
    verdicts, nights = read_verdicts(site, detector)
    reduced, gain = reduce_detector(detector, verdicts, nights, base.version, params)
    folder = registry.bundles / "reduced" / str(base.version)
    reduced.save(folder)
    kept = {name: base.tags[name] for name in NIGHT_TAGS if name in base.tags}
    registered = register_bundle(site, folder, None, kept)
    if CHAMPION not in base.aliases:
        return Reduced(registered, gain, None, None)
    batches = site.warehouse.read_nights(site.detector)
    flags = float(np.mean([batch.flagged for batch in batches if batch.batch_date in nights]))
    return Reduced(registered, gain, flags, flags * gain.alerts_share)
