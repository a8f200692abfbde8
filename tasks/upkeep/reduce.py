"""Fit the second stage of a version on all verdicts so far, and register both as a new version."""

from dataclasses import dataclass
from datetime import date

import numpy as np
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
from tasks.rows.judge import judge
from tasks.rows.params import ReviewParams
from tasks.stores.registry import CHAMPION
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


def read_verdicts(site: Site, detector: Detector) -> tuple[Verdicts, list[date]]:
    """All verdicts so far, with features from the detector, and their nights. Raises TooFewRows if there are none.

    The detector decides which records are flags, whichever version scored them originally. Records that were replaced
    or quarantined later, and nights whose validated rows were pruned or lack the detector's columns, are left out.
    """
    reviews = site.warehouse.read_reviews(site.detector)
    names = list(dict.fromkeys(["record_id", "event_time", *(column.name for column in detector.columns)]))
    rows, features, is_flag, times = [], [], [], []
    nights: dict[date, None] = {}
    kept = {*site.lake.dates("validated", site.detector)}
    for day in sorted(day for day in reviews["batch_date"].unique() if day in kept):
        of_night = reviews[reviews["batch_date"] == day]
        wanted = pa.array(of_night["record_id"], pa.string())
        for part in site.lake.get("validated", site.detector, day).parts:
            if not fits(site.lake.schema(part), detector.columns):
                continue
            for table in site.lake.slices(part, names):
                found = table.filter(pc.is_in(table["record_id"].cast(pa.string()), wanted))
                if not found.num_rows:
                    continue
                nights[day] = None
                records, _ = to_records(found, detector.columns)
                rows.append(of_night.set_index("record_id").loc[found["record_id"].to_pylist()])
                features.append(detector.describe(records))
                is_flag.append(judge(detector, found).is_flagged)
                times.append(found["event_time"].cast(pa.int64()).to_numpy())
    if not rows:
        raise TooFewRows(
            f"{site.detector} has no verdicts that it can learn from.",
            got=f"{len(reviews):,} verdicts"
            + (", on nights whose rows were pruned or lack the version's columns" if len(reviews) else ""),
            expected="verdicts on the flags of nights whose validated rows are kept",
            todo=f"nightjar review {site.detector} --date DATE > FILE, then --take FILE; or --from-labels",
        )
    reviewed = pd.concat(rows)
    verdicts = Verdicts(
        features=torch.cat(features),
        is_anomaly=(reviewed["verdict"] == ANOMALY).to_numpy(),
        is_flag=np.concatenate(is_flag),
        inclusion=reviewed["inclusion"].to_numpy(),
        times=np.concatenate(times),
    )
    return verdicts, list(nights)


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
    registered = register_bundle(site, folder, None)
    if CHAMPION not in base.aliases:
        return Reduced(registered, gain, None, None)
    batches = site.warehouse.read_nights(site.detector)
    flags = float(np.mean([batch.flagged for batch in batches if batch.batch_date in nights]))
    return Reduced(registered, gain, flags, flags * gain.alerts_share)
