"""Score the rows of a loose file as a night would, without publishing anything.

In: arrivals with the source's columns; the label is optional. Out: one row per row of the file, in file order, with a
score, or with the reason for which validation would quarantine it. Memory holds one slice.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.detector import Detector
from tasks.errors import ParamsInvalid, SourceInvalid, hide_password
from tasks.ingest import add_identity
from tasks.on_demand.output import check_output, open_output
from tasks.rows.contract import Contract
from tasks.rows.derive import History, add_columns, take_rows
from tasks.rows.expectations import Mask, Suite
from tasks.rows.groups import GroupScores, combine_groups, rank_groups
from tasks.rows.judge import find_level, judge, load_detector
from tasks.rows.params import DetectorParams, IngestParams
from tasks.rows.schema import batch_dates_of, describe_unreadable, find_unreadable, type_rows
from tasks.sources.arrival import UNPARSED, Arrival
from tasks.sources.files import FilesSource, find_settings, list_files, name_files
from tasks.stores.site import Site

SCHEMA = pa.schema(
    {
        "record_id": pa.string(),
        "score": pa.float64(),
        "percentile_rank": pa.float64(),
        "p_value": pa.float64(),
        "is_flagged": pa.bool_(),
        "second_stage_probability": pa.float64(),  # for flagged rows, from a detector with a reducer
        "is_suppressed": pa.bool_(),
        "causes": pa.string(),  # JSON, for flagged rows
        "reason": pa.string(),  # for rows that are not scored
    }
)
Reasons = npt.NDArray[np.object_]  # for which rows are bad; None for good ones
COMPARED = {"threshold": pa.float64(), "times_threshold": pa.float64()}  # of the row's fold; score / threshold
FOLD_SCHEMA = pa.schema([*list(SCHEMA)[:2], *COMPARED.items(), *list(SCHEMA)[2:]])
SMALLEST = 1e-12  # a threshold of 0 counts as this, so that scores can be compared


@dataclass(frozen=True)
class Collected:
    """The result for a loose file: rows = scored + bad rows, which `reasons` counts; records are worst first.

    suppressed: flags that the second stage suppresses.
    """

    rows: int
    scored: int
    flagged: int
    suppressed: int
    reasons: dict[str, int]
    records: list[dict[str, Any]]
    bad_rows: list[dict[str, Any]]


def without_label(contract: Contract, params: IngestParams) -> Contract:
    """The contract without the label column, which a loose file need not have."""
    if params.labels is None or params.labels.column not in contract.columns:
        return contract
    label = params.labels.column
    kept = tuple(e for e in contract.expectations if label not in map(str, e.kwargs.values()))
    columns = {name: column for name, column in contract.columns.items() if name != label}
    return contract.model_copy(update={"columns": columns, "expectations": kept})


def score_rows(
    detector: Detector,
    contract: Contract,
    params: IngestParams,
    arrivals: Iterable[Arrival],
    causes: int,
    zone: ZoneInfo,
    history: History | None = None,
    groups: GroupScores | None = None,
    level: float | None = None,
) -> Iterator[pa.Table]:
    """The scores of a file's rows, slice by slice, as SCHEMA. `zone` is the detector's. The rows are added to `groups`.

    level: the threshold of all rows, see `find_level`. Raises SourceInvalid if columns are missing, BatchRejected if a
    group's weight is.
    """
    for rows, reasons in check_rows(contract, params, arrivals, zone, history):
        if "event_time" not in rows.column_names:
            yield rows
            continue
        scored = _score_slice(detector, contract.masked, rows, reasons, causes, level)
        if groups:
            good = scored["score"].is_valid()
            groups.add(rows.filter(good), scored["score"].filter(good).to_numpy())
        yield scored.select(SCHEMA.names)


def check_rows(
    contract: Contract,
    params: IngestParams,
    arrivals: Iterable[Arrival],
    zone: ZoneInfo,
    history: History | None = None,
) -> Iterator[tuple[pa.Table, Reasons]]:
    """A file's rows in the contract's types, slice by slice, with the reason (N,) for which each is bad, or None.

    Good rows get history columns, for which all are read first. Rows that could not be split into values come as
    SCHEMA. Raises SourceInvalid if columns are missing.
    """
    contract, files = without_label(contract, params), list(arrivals)
    suite = Suite(contract.row_expectations, contract.masked)

    def check() -> Iterator[tuple[pa.Table, Reasons]]:
        for raw in _read_rows(contract, params, files, zone):
            is_split = "event_time" in raw.column_names
            yield _check_slice(contract, suite, raw) if is_split else (raw, np.array(raw["reason"].to_pylist(), object))

    if history is None:
        yield from check()
        return
    needed = pa.schema([contract.schema.field(name) for name in history.needed]).empty_table()
    good = (rows.filter(pa.array(mark_good(reasons))) for rows, reasons in check() if "event_time" in rows.column_names)
    take = take_rows(
        iter([history.derive(pa.concat_tables([needed, *(rows.select(history.needed) for rows in good)]))])
    )
    for rows, reasons in check():
        if "event_time" in rows.column_names:
            is_good = mark_good(reasons)
            places = pa.array(np.cumsum(is_good) - 1, mask=~is_good)  # null: a bad row has no history
            rows = add_columns(rows, take(int(is_good.sum())).take(places))
        yield rows, reasons


def mark_good(reasons: Reasons) -> Mask:
    """The mask (N,) of rows without a reason for which they are bad."""
    is_good: Mask = reasons == None  # noqa: E711 - elementwise
    return is_good


def score_folds(
    detectors: Mapping[date, Detector],
    contract: Contract,
    params: IngestParams,
    arrivals: Iterable[Arrival],
    causes: int,
    zone: ZoneInfo,
) -> Iterator[pa.Table]:
    """The same as FOLD_SCHEMA, each row by the detector of its day, which has not learnt from it."""
    for rows, reasons in check_rows(contract, params, arrivals, zone):
        if "event_time" not in rows.column_names:
            yield _compare(rows.append_column("threshold", pa.nulls(rows.num_rows, pa.float64())))
            continue
        days = batch_dates_of(rows["event_time"], zone).to_numpy()
        scored, places = [], []
        for day, detector in detectors.items():
            places.append(np.flatnonzero(days == np.datetime64(day)))
            chosen = rows.take(pa.array(places[-1])), reasons[places[-1]]
            scored.append(_compare(_score_slice(detector, contract.masked, *chosen, causes)))
        yield pa.concat_tables(scored).take(pa.array(np.argsort(np.concatenate(places))))


def _compare(scored: pa.Table) -> pa.Table:
    """Scores beside their threshold, which differs between folds; null for rows that are not scored."""
    times = pc.divide(scored["score"], pc.max_element_wise(scored["threshold"], SMALLEST, skip_nulls=False))
    return scored.append_column("times_threshold", times).select(FOLD_SCHEMA.names)


def _read_rows(
    contract: Contract, params: IngestParams, arrivals: Iterable[Arrival], zone: ZoneInfo
) -> Iterator[pa.Table]:
    """The rows with their identity, slice by slice; those that could not be split into values as SCHEMA."""
    params = params.model_copy(update={"labels": None})
    required = {name for name, column in contract.columns.items() if column.required}
    for arrival in arrivals:
        first = 0
        for table in arrival.read():
            if table.column_names == [UNPARSED]:
                yield _refuse_unparsed(table[UNPARSED])
                continue
            raw = add_identity(table, params, arrival.name, first, zone)
            first += table.num_rows
            if missing := required - set(raw.column_names):
                raise SourceInvalid(
                    f"The file lacks {', '.join(sorted(missing))}.",
                    where=arrival.name,
                    got=f"columns {', '.join(table.column_names)}",
                    expected="the columns of the contract",
                    todo="add the columns that the detector was trained with",
                )
            if table.num_rows:
                yield raw


def score_file(
    site: Site,
    contract: Contract,
    params: DetectorParams,
    source: str,
    most: int | None,
    output: Path | None,
    with_groups: bool = False,
) -> dict[str, Any]:
    """Score a file with the champion: counts, the `most` worst and first bad rows; `output` gets all rows.

    with_groups: also the file's groups, compared with those of all published nights. Raises ParamsInvalid without any.
    """
    if output:
        check_output(output)
    if with_groups and not params.score.groups:
        raise ParamsInvalid(
            f"{site.detector} has no groups.",
            where=f"detectors.{site.detector}.score",
            got="no groups",
            expected="score.groups, such as {by: hour}",
            todo="add score.groups to params.yaml, or leave out --groups",
        )
    version = site.registry.get_champion()
    version.check_types(contract.types | params.history)
    detector = load_detector(site.lake, site.detector, site.registry.fetch_bundle(version))
    arrivals = list_arrivals(site, params.ingest, source)
    history = History(site, params.enrich) if params.enrich else None
    groups = GroupScores(params.score.groups, site.zone) if with_groups else None
    checked = check_rows(contract, params.ingest, arrivals, site.zone, history)
    split = ((rows, mark_good(reasons)) for rows, reasons in checked if "event_time" in rows.column_names)
    level = find_level(detector, (rows.filter(pa.array(good)) for rows, good in split))
    causes = params.score.causes
    scored = score_rows(detector, contract, params.ingest, arrivals, causes, site.zone, history, groups, level)
    facts: dict[str, Any] = {"detector": site.detector, "source": hide_password(source)}
    facts |= {"model": version.name, "version": version.version}
    threshold = detector.threshold.value if level is None else level
    facts |= {"threshold": threshold} | ({"thresholds_by": detector.segments.column} if detector.segments else {})
    facts |= asdict(collect_scores(scored, most, output))
    if groups:
        past = site.warehouse.read_past_groups(site.detector, threshold)
        ranked = rank_groups(combine_groups(groups.sums()), past)
        facts["groups"] = ranked.astype(object).where(ranked.notna(), None).to_dict("records")
    return facts


def list_arrivals(site: Site, params: IngestParams, source: str) -> list[Arrival]:
    """The files of a loose source, which are read as the detector's own are. Raises SourceInvalid."""
    files, own = name_files(source, site.sources), params.source
    if isinstance(own, FilesSource):
        files = own.model_copy(update={"path": files.path})
    else:
        files, _ = find_settings(files, site.sources)
    return list(list_files(files, site.sources))


def _refuse_unparsed(texts: pa.ChunkedArray) -> pa.Table:
    """Rows that could not be split into values, which are not scored."""
    others = {field.name: pa.nulls(len(texts), field.type) for field in SCHEMA}
    reasons = pa.repeat("another number of values than the header has", len(texts))
    return pa.table(others | {"record_id": texts, "reason": reasons}, schema=SCHEMA)


def _check_slice(contract: Contract, suite: Suite, raw: pa.Table) -> tuple[pa.Table, Reasons]:
    typed = type_rows(raw, contract)
    reasons = np.full(typed.num_rows, None, dtype=object)
    for name, mask in find_unreadable(raw, typed, contract).items():
        reasons[mask & mark_good(reasons)] = describe_unreadable(name, contract)
    for expectation, mask in suite.judge(typed.select(suite.columns).to_pandas()).items():
        if expectation.severity == "critical":
            reasons[mask & mark_good(reasons)] = expectation.text
    return typed, reasons


def _score_slice(
    detector: Detector, masked: Set[str], typed: pa.Table, reasons: Reasons, causes: int, level: float | None = None
) -> pa.Table:
    good = mark_good(reasons)
    judged = judge(detector, typed.filter(pa.array(good)), level)
    texts = np.full(len(judged.score), None, dtype=object)
    texts[judged.is_flagged] = judged[judged.is_flagged].name_causes(masked, causes)
    arrays = judged.arrays() | {"causes": texts, "threshold": judged.threshold}
    columns = {name: _spread(values, good) for name, values in arrays.items()}
    schema = SCHEMA.append(pa.field("threshold", pa.float64()))
    return pa.table(columns | {"record_id": typed["record_id"], "reason": reasons}, schema=schema)


def _spread(values: npt.NDArray[Any], good: Mask) -> pa.Array:
    """Spread the values of good rows (M,) over all rows (N,); null where the mask is False or the value is NaN."""
    spread = np.zeros(len(good), dtype=values.dtype)
    spread[good] = values
    return pa.array(spread, mask=~good | pd.isna(spread))


def collect_scores(
    slices: Iterable[pa.Table], most: int | None, output: Path | None, schema: pa.Schema = SCHEMA, by: str = "score"
) -> Collected:
    """Count the rows, keep the `most` worst (largest `by`) and first bad ones, and write all to a file on request."""
    kept, bad = [schema.empty_table()], [schema.empty_table()]
    rows = flagged = suppressed = 0
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        write = stack.enter_context(open_output(output, schema)) if output else None
        for table in slices:
            rows += table.num_rows
            if write:
                write(table)
            is_bad = pc.is_valid(table["reason"])
            flagged += pc.sum(table["is_flagged"]).as_py() or 0
            suppressed += pc.sum(table["is_suppressed"]).as_py() or 0
            kept.append(table.filter(pc.invert(is_bad)))
            bad.append(table.filter(is_bad))
            reasons.update(bad[-1]["reason"].to_pylist())
            if most is not None:
                kept = [pa.concat_tables(kept).sort_by([(by, "descending")]).slice(0, most)]
                bad = [pa.concat_tables(bad).slice(0, most)]
    worst = pa.concat_tables(kept).sort_by([(by, "descending")])
    return Collected(
        rows,
        rows - reasons.total(),
        flagged,
        suppressed,
        dict(reasons.most_common()),
        _to_records(worst),
        _to_bad(pa.concat_tables(bad)),
    )


def _to_records(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.drop_columns(["reason"]).to_pylist()
    return [row | {"causes": json.loads(row["causes"] or "[]")} for row in found]


def _to_bad(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.select(["record_id", "reason"]).to_pylist()
    return found
