"""Choose the rows to learn from: five disjoint sets of validated rows, with labels as known at the training cut-off.

Fit, stopping and calibration rows are clean: records labelled or judged anomalous by then are left out and, on
request, so is the most outlying share of unlabelled fit and stopping rows. Tuning and test rows keep their anomalies,
with the label. The result is one `clean` partition, dated by the cut-off, with one part per set; excluded rows are
counted by reason.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from prefect import get_run_logger, task
from pydantic import TypeAdapter

from tasks.errors import LeakageFound, ParamsInvalid, TooFewRows
from tasks.policy import IO
from tasks.rows.params import ByDate, FilterParams, Fractions, RandomFraction
from tasks.rows.sampling import draw_order
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site

SETS = ("fit", "stopping", "calibration", "tuning", "test")
CLEAN_SETS = ("fit", "stopping", "calibration")
Names = npt.NDArray[np.object_]
# Columns that the clean partition adds to the contract's, which may not have these names.
BATCH_DATE, LABEL = "_batch_date", "_label"


@dataclass(frozen=True)
class TrainingSet:
    """The key of the committed clean partition, and the facts about it that the lineage needs."""

    cutoff: date
    data_hash: str
    rows: dict[str, int]  # by set
    excluded: dict[str, int]  # by reason
    first_date: date
    trained_through: date
    split: str
    rows_per_night: float  # the mean of the matured batches


def split_by_date(dates: Sequence[date], split: ByDate) -> dict[date, str]:
    """The set of each matured batch date. Raises TooFewRows if no day is left to fit on."""
    lengths = {"calibration": split.calibration_days, "test": split.test_days}
    lengths |= {"tuning": split.tuning_days, "stopping": split.stopping_days}
    if len(dates) <= sum(lengths.values()):
        raise TooFewRows(
            "There are too few matured days to train on.",
            got=f"{len(dates)} days",
            expected=f"more than {sum(lengths.values())}: " + ", ".join(f"{v} {k}" for k, v in lengths.items()),
            todo="ingest more history, choose a later cut-off, or shorten filter.splits in params.yaml",
        )
    assigned = dict.fromkeys(dates, "fit")
    remaining = sorted(dates)
    for name, days in lengths.items():
        assigned |= dict.fromkeys(remaining[len(remaining) - days :], name)
        remaining = remaining[: len(remaining) - days]
    return assigned


def split_by_fractions(order: npt.NDArray[np.float64], is_anomaly: npt.NDArray[np.bool_], split: Fractions) -> Names:
    """The set of each row (N,), given its position in the order (N,): a rank or a random number, smaller is earlier."""
    sets = np.full(len(order), "", dtype=object)
    normal, anomalous = np.flatnonzero(~is_anomaly), np.flatnonzero(is_anomaly)
    shares = np.cumsum([split.fit, split.stopping, split.calibration, split.tuning])
    _assign(sets, normal[np.argsort(order[normal], kind="stable")], shares, SETS)
    labelled = split.tuning + split.test
    if not labelled:
        return sets  # no set takes anomalies
    cut = np.array([split.tuning / labelled])
    ordered = anomalous[np.argsort(order[anomalous], kind="stable")]
    _assign(sets, ordered, cut, ("tuning", "test"))
    if split.anomalies_per_normal is not None:
        for name in ("tuning", "test"):
            kept = round(split.anomalies_per_normal * int((sets[normal] == name).sum()))
            sets[ordered[sets[ordered] == name][kept:]] = ""
    return sets


def _assign(sets: Names, rows: npt.NDArray[np.intp], shares: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    bounds = [0, *np.round(shares * len(rows)).astype(int), len(rows)]
    for name, start, end in zip(names, bounds, bounds[1:], strict=False):
        sets[rows[start:end]] = name


def find_outliers(numbers: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.bool_]:
    """The mask (N,) of the most outlying `share` of rows, by the largest mean squared robust z of (N, F) numbers.

    The robust z is the distance from the median in normal-consistent median absolute deviations (Rousseeuw and
    Croux 1993), capped at 10 so that no single column decides alone.
    """
    center = np.nanmedian(numbers, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(numbers - center), axis=0)
    with np.errstate(invalid="ignore"):  # infinite values give NaN
        spread = np.where(spread > 0, spread, np.nanstd(numbers, axis=0))
    z = np.nan_to_num((numbers - center) / np.where(spread > 0, spread, 1.0), posinf=10, neginf=-10).clip(-10, 10)
    distance = (z**2).mean(axis=1)
    count = int(share * len(distance))
    mask = np.zeros(len(distance), dtype=bool)
    mask[np.argsort(-distance, kind="stable")[:count]] = True
    return mask


def choose_rows(
    site: Site, cutoff: date, params: FilterParams, numeric: Sequence[str], labels: pd.DataFrame
) -> tuple[pa.Table, Names, npt.NDArray[np.int8], Counter[str], list[date]]:
    """All matured rows before the cut-off with their set ('' = excluded), label (-1 unknown, 0, 1) and the reasons.

    labels: record_id and label as known at the cut-off. A matured record without a label counts as normal in tuning and
    test rows, because the source reports every anomaly within the label delay.
    """
    if params.trim_fraction and not numeric:
        raise ParamsInvalid(
            "Rows cannot be trimmed without a numeric column.",
            where=f"detectors.{site.detector}.filter.trim_fraction",
            got=f"trim_fraction {params.trim_fraction:g} and no numeric columns",
            todo="set trim_fraction to 0, or name numeric columns in train.columns",
        )
    lake = site.lake
    before = [d for d in lake.dates("validated", site.detector) if d < cutoff and d not in params.exclude_dates]
    manifests = [m for day in before if (m := lake.get("validated", site.detector, day)).rows]
    known = [manifest.batch_date for manifest in manifests]
    dates = [day for day in known if site.has_matured(day, cutoff)]
    excluded = Counter({"not matured at the cut-off": sum(m.rows for m in manifests if m.batch_date not in dates)})
    tables = [_read(lake, m) for m in manifests if m.batch_date in dates]
    if not tables:
        raise TooFewRows(
            f"{site.detector} has no matured rows before {cutoff}.",
            got=f"{len(known)} validated days, all too recent for their labels",
            expected=f"days at least {site.label_delay.days} days before the cut-off",
            todo="ingest more history, or choose a later cut-off",
        )
    table = pa.concat_tables(tables)
    found = pd.Series(table["record_id"].to_pandas()).map(labels.set_index("record_id")["label"])
    label = found.fillna(-1).to_numpy(dtype=np.int8)
    if isinstance(params.splits, ByDate):
        by_day = split_by_date(dates, params.splits)
        sizes = [t.num_rows for t in tables]
        sets = np.repeat(np.array([by_day[day] for day in dates], dtype=object), sizes)
    else:
        if isinstance(params.splits, RandomFraction):
            order = draw_order(table["record_id"].to_pylist(), params.splits.seed)
        else:
            order = table["event_time"].cast(pa.int64()).to_numpy().astype(float)
        sets = split_by_fractions(order, label == 1, params.splits)
        excluded["labelled anomalous"] += int((sets == "").sum())
    _drop(sets, np.isin(sets, CLEAN_SETS) & (label == 1), "labelled anomalous", excluded)
    if params.trim_fraction:
        candidates = np.flatnonzero(np.isin(sets, ("fit", "stopping")) & (label == -1))
        numbers = np.column_stack([table[c].to_numpy()[candidates] for c in numeric]) if numeric else np.empty((0, 0))
        outlying = np.zeros(len(sets), dtype=bool)
        outlying[candidates[find_outliers(numbers.astype(float), params.trim_fraction)]] = True
        _drop(sets, outlying, "trimmed as suspected", excluded)
    return table, sets, label, excluded, dates


def _drop(sets: Names, mask: npt.NDArray[np.bool_], reason: str, excluded: Counter[str]) -> None:
    excluded[reason] += int(mask.sum())
    sets[mask] = ""


def _read(lake: Lake, manifest: Manifest) -> pa.Table:
    slices = [piece for part in manifest.parts for piece in lake.slices(part)]
    table = pa.concat_tables(slices)
    return table.append_column(BATCH_DATE, pa.array([manifest.batch_date] * table.num_rows, pa.date32()))


def check_leakage(lake: Lake, clean: Manifest, labels: pd.DataFrame, site: Site, cutoff: date) -> None:
    """Check on the written parts that sets and scored nights are disjoint and that no label came from the future.

    Nights are scored only after the last day of these sets (tasks/score.py refuses others), so it is enough that all
    sets end before the cut-off. Raises LeakageFound.
    """
    sql = "select count(*) - count(distinct (_batch_date, record_id)) as shared, max(_batch_date) as newest from parts"
    found = lake.query(sql, clean.parts).to_pylist()[0]
    future = int((labels["known_at"] > pd.Timestamp(site.start_of(cutoff))).sum()) if site.has_times else 0
    problems = {
        "records in two sets": found["shared"],
        "batch dates on or after the cut-off": found["newest"] >= cutoff,
    }
    problems |= {"labels used before they were known": future}
    if any(problems.values()):
        raise LeakageFound(
            f"The training sets of {site.detector} leak.",
            where=f"cut-off {cutoff}",
            got=", ".join(f"{count} {what}" for what, count in problems.items() if count),
            expected="disjoint sets before the cut-off",
            todo="this is a bug in Nightjar or damage to the lake; report it. Nothing was trained",
        )


def read_known(site: Site, cutoff: date) -> pd.DataFrame:
    """What was known when the cut-off began: record_id, label, known_at. Verdicts count for records without a label.

    Of a table without times, whose dates are invented, all that is known now.
    """
    engine, start = site.warehouse, site.start_of(cutoff) if site.has_times else None
    labels = engine.read_labels(site.detector, start)
    reviews = engine.read_reviews(site.detector, start).drop_duplicates("record_id", keep="last")
    judged = reviews[~reviews["record_id"].isin(labels["record_id"])]
    label = (judged["verdict"] == "anomaly").astype("int64")
    verdicts = pd.DataFrame({"record_id": judged["record_id"], "label": label, "known_at": judged["reviewed_at"]})
    return pd.concat([labels, verdicts], ignore_index=True) if len(verdicts) else labels


def prepare_rows(site: Site, cutoff: date, params: FilterParams, numeric: Sequence[str]) -> TrainingSet:
    """Write the clean partition of a cut-off and describe it. Raises TooFewRows and LeakageFound."""
    labels = read_known(site, cutoff)
    table, sets, label, excluded, dates = choose_rows(site, cutoff, params, numeric, labels)
    table = table.append_column(LABEL, pa.array(label, pa.int8()))
    lake = site.lake
    partition = lake.write("clean", site.detector, cutoff)
    rows = {}
    for name in SETS:
        with partition.part(name, source=name) as part:
            part.append(table.filter(pa.array(sets == name)))
        rows[name] = part.rows
    if not all(rows[name] for name in CLEAN_SETS):
        raise TooFewRows(
            f"{site.detector} has no rows in at least one set.",
            got=", ".join(f"{name} {count}" for name, count in rows.items()),
            expected="at least one row each for fit, stopping and calibration",
            todo="ingest more history, or change filter.splits in params.yaml",
        )
    manifest = Manifest("clean", site.detector, cutoff, partition.attempt, tuple(partition.parts))
    check_leakage(lake, manifest, labels, site, cutoff)
    split = f"{params.splits.kind}, {dates[0]} to {dates[-1]}, cut-off {cutoff}"
    described = TrainingSet(
        cutoff, manifest.hash, rows, dict(excluded), dates[0], dates[-1], split, len(sets) / len(dates)
    )
    partition.commit(TypeAdapter(TrainingSet).dump_python(described, mode="json"))
    return described


def read_training_set(lake: Lake, detector: str, cutoff: date) -> TrainingSet:
    """The description of a cut-off's clean partition, see `prepare_rows`. Raises BatchMissing."""
    return TypeAdapter(TrainingSet).validate_python(lake.get("clean", detector, cutoff).facts)


def read_set(lake: Lake, detector: str, cutoff: date, name: str) -> pa.Table:
    """One of the five sets; an empty table if the split gave it no rows."""
    manifest = lake.get("clean", detector, cutoff)
    pieces = [piece for part in manifest.parts if part.source == name for piece in lake.slices(part)]
    if pieces:
        return pa.concat_tables(pieces)
    schema = next(lake.slices(manifest.parts[0])).schema
    return schema.empty_table()


@task(name="filter", task_run_name="filter {site.detector} before {cutoff}", **IO)
def filter_rows(site: Site, cutoff: date, params: FilterParams, numeric: Sequence[str]) -> TrainingSet:
    """Choose and write the training sets."""
    prepared = prepare_rows(site, cutoff, params, numeric)
    get_run_logger().info("rows by set %s; excluded %s", prepared.rows, prepared.excluded)
    return prepared
