"""Fit the second stage on all verdicts so far, and register the champion with it as a new version."""

from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from models.detector import Detector
from models.reducer import Gain, Verdicts, fit_reducer
from tasks.errors import TooFewRows
from tasks.params import ReviewParams
from tasks.register import Registered, register_bundle
from tasks.review import ANOMALY
from tasks.rows.columns import to_records
from tasks.rows.judge import judge
from tasks.stores.site import Site


@dataclass(frozen=True)
class Reduced:
    """The new version with a reducer, its gain, and the flags and expected alerts of a typical reviewed night."""

    registered: Registered
    gain: Gain
    flags_per_night: float
    alerts_per_night: float


def read_verdicts(site: Site, detector: Detector) -> tuple[Verdicts, list[date]]:
    """All verdicts so far, with features from the detector, and their nights. Raises TooFewRows if there are none.

    The detector decides which records are flags, whichever version scored them originally. Records that were replaced
    or quarantined later, and nights whose validated rows were pruned, are left out.
    """
    reviews = site.warehouse.read_reviews(site.detector)
    names = list(dict.fromkeys(["record_id", "event_time", *(column.name for column in detector.columns)]))
    tables, rows = [], []
    kept = {*site.lake.dates("validated", site.detector)}
    nights: list[date] = sorted(day for day in reviews["batch_date"].unique() if day in kept)
    for day in nights:
        of_night = reviews[reviews["batch_date"] == day]
        wanted = pa.array(of_night["record_id"], pa.string())
        for part in site.lake.get("validated", site.detector, day).parts:
            for table in site.lake.slices(part, names):
                found = table.filter(pc.is_in(table["record_id"].cast(pa.string()), wanted))
                tables.append(found)
                rows.append(of_night.set_index("record_id").loc[found["record_id"].to_pylist()])
    if not tables:
        raise TooFewRows(
            f"{site.detector} has no verdicts that it can learn from.",
            got=f"{len(reviews):,} verdicts" + (", on nights whose rows were pruned" if len(reviews) else ""),
            expected="verdicts on the flags of nights whose validated rows are kept",
            todo=f"nightjar review {site.detector} --date DATE > FILE, then --take FILE; or --from-labels",
        )
    table, reviewed = pa.concat_tables(tables), pd.concat(rows)
    records, _ = to_records(table, detector.columns)
    verdicts = Verdicts(
        features=detector.describe(records),
        is_anomaly=(reviewed["verdict"] == ANOMALY).to_numpy(),
        is_flag=judge(detector, table).is_flagged,
        inclusion=reviewed["inclusion"].to_numpy(),
        times=table["event_time"].cast(pa.int64()).to_numpy(),
    )
    return verdicts, nights


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


def register_reducer(site: Site, params: ReviewParams) -> Reduced:
    """Fit a reducer for the champion on all verdicts so far, and register the result as a new version."""
    champion = site.registry.get_champion()
    detector = Detector.load(site.registry.fetch_bundle(champion))
    verdicts, nights = read_verdicts(site, detector)
    reduced, gain = reduce_detector(detector, verdicts, nights, champion.version, params)
    folder = site.registry.bundles / "reduced" / str(champion.version)
    reduced.save(folder)
    registered = register_bundle(site, folder, None)
    batches = site.warehouse.read_nights(site.detector)
    flags = float(np.mean([batch.flagged for batch in batches if batch.batch_date in nights]))
    return Reduced(registered, gain, flags, flags * gain.alerts_share)
