"""Check batches against their contract: good rows go to validated, bad rows to quarantine with the reason.

Row-level expectations run on up to JUDGED_ROWS rows at once, batch-level ones on one summary row per batch, computed by
DuckDB. Small batches share a slice, since Great Expectations takes milliseconds per expectation even for a few rows.
Of identical duplicates one row is kept; rows that share a record_id and differ are all quarantined. Rows that a replay
has replaced are excluded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from pydantic import TypeAdapter

from tasks.errors import BatchMissing, BatchRejected
from tasks.pages.validation import render_validations
from tasks.policy import PURE, progress_of
from tasks.rows.contract import STATISTICS, Contract, ContractExpectation
from tasks.rows.duplicates import Duplicates, find_duplicates, find_replaced
from tasks.rows.escaping import escape_markdown
from tasks.rows.expectations import Mask, Outcome, Suite, describe_batch, describe_rows
from tasks.rows.history import HISTORY
from tasks.rows.params import ValidateParams
from tasks.rows.schema import Landed, batch_dates_of, describe_unreadable, find_unreadable, type_rows
from tasks.rows.validation import Validation
from tasks.stores.faults import writing
from tasks.stores.files import read_ahead
from tasks.stores.lake import SLICE_BYTES, SLICE_ROWS, Lake, Manifest, PartitionWriter, PartWriter, quote
from tasks.stores.site import Site
from tasks.stores.tables import MOST_KEY_BYTES

DUPLICATE = "record_id shared by rows that differ"
LONG_ID = f"record_id: longer than {MOST_KEY_BYTES:,} bytes"
STRAY = "event_time: after tomorrow, or far from the other rows of its file"
JUDGED_ROWS = 2 * SLICE_ROWS  # rows judged at once; each call of Great Expectations takes milliseconds per expectation
PART_SLICES = 8  # slices per validated part: about a million rows, a second of scoring, the most that a crash can lose


@dataclass(eq=False)
class _OpenBatch:
    """A batch while its slices are processed: its writers, its counts, the duplicates already kept."""

    manifest: Manifest
    zone: ZoneInfo
    replaced: Mapping[str, frozenset[str]]  # ids whose rows in a part no longer count, by the part's SHA-256
    duplicates: Duplicates
    landed: Landed
    validated: PartitionWriter
    quarantine: PartitionWriter
    files: ExitStack = field(default_factory=ExitStack)
    kept: set[str] = field(default_factory=set)
    broken: Counter[str] = field(default_factory=Counter)  # rows that broke an expectation, by its text
    reasons: Counter[str] = field(default_factory=Counter)  # rows quarantined, by reason
    duplicated: int = 0  # rows excluded because an identical one is kept
    superseded: int = 0  # rows excluded because a replay has replaced them


@dataclass(frozen=True)
class _Piece:
    """Some rows of one landing part, raw and typed, and their writers."""

    batch: _OpenBatch
    raw: pa.Table
    typed: pa.Table
    replaced: frozenset[str]
    unreadable: dict[str, Mask]
    strays: Mask  # rows of another date: ingest adds those with an impossible date to the date with the most rows
    good: PartWriter
    bad: PartWriter


def open_pieces(lake: Lake, contract: Contract, batches: Iterable[_OpenBatch]) -> Iterator[_Piece]:
    """The rows of batches in order, slice by slice; a large landing part becomes several validated parts."""
    for batch in batches:
        for number, part in enumerate(batch.manifest.parts):
            replaced = batch.replaced.get(part.sha256, frozenset())
            for place, raw in enumerate(read_ahead(lake.slices(part))):
                if place % PART_SLICES == 0:
                    name = f"part-{number}-{place // PART_SLICES}" if place else f"part-{number}"
                    good = batch.files.enter_context(batch.validated.part(name))
                    bad = batch.files.enter_context(batch.quarantine.part(name))
                typed = type_rows(raw, contract)
                unreadable = find_unreadable(raw, typed, contract)
                batch.landed.add(raw, unreadable)
                strays = mark_strays(typed["event_time"], batch)
                yield _Piece(batch, raw, typed, replaced, unreadable, strays, good, bad)


def mark_strays(times: pa.ChunkedArray, batch: _OpenBatch) -> Mask:
    """The mask of the rows whose event time lies on another date than their batch."""
    dates = batch_dates_of(times, batch.zone)
    is_other: Mask = pc.fill_null(pc.not_equal(dates, batch.manifest.batch_date), False).to_numpy()
    return is_other


def group_pieces(pieces: Iterable[_Piece], rows: int = JUDGED_ROWS) -> Iterator[list[_Piece]]:
    """Group pieces of up to `rows` rows and a slice's bytes together."""
    group: list[_Piece] = []
    seen = size = 0
    for piece in pieces:
        seen, size = seen + piece.typed.num_rows, size + piece.typed.nbytes
        if group and (seen > rows or size > SLICE_BYTES):
            yield group
            group, seen, size = [], piece.typed.num_rows, piece.typed.nbytes
        group.append(piece)
    if group:
        yield group


def to_frame(table: pa.Table) -> pd.DataFrame:
    """The rows as a frame for Great Expectations; of an image only whether it is missing."""
    for place, name in enumerate(table.column_names):
        if pa.types.is_fixed_size_binary(table.schema.field(name).type):
            is_there = pc.if_else(table[name].is_valid(), True, pa.scalar(None, pa.bool_()))
            table = table.set_column(place, name, is_there)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def judge_duplicates(ids: pa.ChunkedArray, batch: _OpenBatch, superseded: Mask) -> tuple[Mask, Mask]:
    """Two masks over a slice's rows: those to exclude (a later identical row) and those to quarantine."""
    exclude = np.zeros(len(ids), bool)
    different: Mask = pc.is_in(ids, batch.duplicates.different).to_numpy() & ~superseded
    for row in np.flatnonzero(pc.is_in(ids, batch.duplicates.identical).to_numpy() & ~superseded):
        record = ids[row].as_py()
        exclude[row] = record in batch.kept
        batch.kept.add(record)
    return exclude, different


def sort_rows(piece: _Piece, broken: dict[ContractExpectation, Mask]) -> None:
    """Write a piece's rows to validated or quarantine, given the mask of rows for each broken expectation."""
    batch, ids = piece.batch, piece.typed["record_id"]
    superseded: Mask = pc.is_in(ids, pa.array(piece.replaced, pa.string())).to_numpy()
    duplicated, different = judge_duplicates(ids, batch, superseded)
    exclude = superseded | duplicated
    contract = batch.landed.contract
    reasons = ["", DUPLICATE]
    reason = different.astype(np.int64)  # index in `reasons` for each row; the first reason counts
    critical = {describe_unreadable(name, contract): mask for name, mask in piece.unreadable.items()}
    critical[STRAY] = piece.strays
    critical[LONG_ID] = pc.greater(pc.binary_length(ids), MOST_KEY_BYTES).fill_null(False).to_numpy()
    for expectation, mask in broken.items():
        batch.broken[expectation.text] += int((mask & ~exclude).sum())
        if expectation.severity == "critical":
            critical[expectation.text] = mask
    for text, mask in critical.items():
        reasons.append(text)
        reason[mask & (reason == 0)] = len(reasons) - 1
    bad = (reason > 0) & ~exclude
    batch.duplicated += int(duplicated.sum())
    batch.superseded += int(superseded.sum())
    if bad.any():
        named = [reasons[place] for place in reason[bad]]
        batch.reasons.update(named)
        quarantined = piece.raw.filter(pa.array(bad))
        piece.bad.append(quarantined.append_column("quarantine_reason", pa.array(named, pa.string())))
    spoilt = bad | exclude
    piece.good.append(piece.typed.filter(pa.array(~spoilt)) if spoilt.any() else piece.typed)


def summarise_batch(lake: Lake, contract: Contract, batch: _OpenBatch) -> dict[str, float]:
    """One batch's summary: its counts, and the statistics for batch-level expectations, computed by DuckDB."""
    rows = batch.manifest.rows - batch.superseded
    summary = {
        "rows": float(rows),
        "quarantined_fraction": batch.reasons.total() / max(rows, 1),  # an empty batch has no bad rows
        "duplicated_fraction": batch.duplicated / max(rows, 1),
    }
    wanted = sorted({str(e.kwargs["column"]) for e in contract.batch_expectations} - summary.keys())
    if not wanted or not batch.validated.parts:
        return summary | dict.fromkeys(wanted, float("nan"))
    terms = []
    for name in wanted:
        column, _, statistic = name.rpartition(".")
        terms.append(f"{STATISTICS[statistic].format(quote(column))}::double as {quote(name)}")
    found = lake.query(f"select {', '.join(terms)} from parts", tuple(batch.validated.parts))  # noqa: S608 - quoted
    return summary | {name: float("nan") if value is None else value for name, value in found.to_pylist()[0].items()}


def validate_batches(
    site: Site,
    contract: Contract,
    dates: Sequence[date],
    params: ValidateParams,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Validation]:
    """Validate batches of one detector and commit their validated and quarantine partitions.

    A rejected batch keeps its quarantine, with the findings, and gets no validated partition; it does not stop the
    others. Batches with unchanged input and contract are not validated again. Raises BatchMissing.
    """
    lake = site.lake
    manifests = [lake.get("landing", site.detector, day) for day in dates]
    cached = {day: find_validation(site, contract, day, params) for day in dates}
    done = {day: found for day, found in cached.items() if found}
    todo = [manifest for manifest in manifests if manifest.batch_date not in done]
    if todo:
        check_whole(lake, todo)
        fresh = _validate(lake, site.zone, contract, todo, params, on_progress)
        with writing(site.validations):
            site.validations.mkdir(parents=True, exist_ok=True)
            pages = render_validations(site.detector, contract, map(vars, fresh))
            for found, page in zip(fresh, pages, strict=True):
                (site.validations / f"{found.batch_date}.html").write_text(page, encoding="utf-8")
        done |= {validation.batch_date: validation for validation in fresh}
    return [done[day] for day in dates]


def check_whole(lake: Lake, manifests: Sequence[Manifest]) -> None:
    """Raise BatchMissing if rows have arrived for a batch whose other rows were pruned: it would be incomplete."""
    pruned = lake.pruned(manifests[0].detector, [manifest.batch_date for manifest in manifests])
    for manifest in manifests:
        needed = {part.source for part in pruned.get(manifest.batch_date, ()) if not part.replaces}  # no repairs
        gone = needed - {part.source for part in manifest.parts}
        if gone:
            raise BatchMissing(
                f"Most of a batch of {manifest.detector} was pruned from landing; what is left was not validated.",
                where=f"{manifest.zone}, {manifest.batch_date}",
                got=f"{manifest.rows} rows that arrived later",
                expected=f"the rows of {', '.join(sorted(gone)[:3])} as well",
                todo="deliver those again, changed or under another name, or list the date in filter.exclude_dates",
            )


def find_validation(site: Site, contract: Contract, day: date, params: ValidateParams) -> Validation | None:
    """The committed validation of a batch, if landing, contract and params have not changed since."""
    landing, validated = (site.lake.find(zone, site.detector, day) for zone in ("landing", "validated"))
    if not landing or not validated or validated.facts["contract_hash"] != contract.hash:
        return None
    if HISTORY in validated.facts and not site.reach:
        return None  # its history columns are no longer wanted
    found = TypeAdapter(Validation).validate_python(validated.facts["validation"] | {"batch_date": day})
    is_allowed = found.quarantined <= params.max_quarantined_fraction * found.rows_in
    return found if found.input_hash == landing.hash and is_allowed else None


def _validate(
    lake: Lake,
    zone: ZoneInfo,
    contract: Contract,
    manifests: list[Manifest],
    params: ValidateParams,
    on_progress: Callable[[int, int], None],
) -> list[Validation]:
    rows, summaries = Suite(contract.row_expectations, contract.masked), Suite(contract.batch_expectations)
    batches = [_open(lake, zone, contract, manifest) for manifest in manifests]
    total, seen = sum(manifest.rows for manifest in manifests), 0
    with ExitStack() as files:  # leaves no half-written file after an error
        for batch in batches:
            files.enter_context(batch.files)
        for group in group_pieces(open_pieces(lake, contract, batches)):
            _judge(group, rows)
            for batch in {piece.batch for piece in group} - {group[-1].batch}:
                batch.files.close()
            seen += sum(piece.typed.num_rows for piece in group)
            on_progress(seen, total)
    summary = pd.DataFrame([summarise_batch(lake, contract, batch) for batch in batches])
    broken = summaries.judge(summary)
    # A null summary value (computed from no rows) passes in Great Expectations, but not here.
    masks = {
        e: broken.get(e, False) | summary[str(e.kwargs["column"])].isna().to_numpy() for e in summaries.expectations
    }
    results = []
    for place, batch in enumerate(batches):
        observed = summary.iloc[place]
        outcomes = [describe_rows(e, batch.broken[e.text]) for e in rows.expectations]
        outcomes += [
            describe_batch(e, not masks[e][place], observed[e.kwargs["column"]]) for e in summaries.expectations
        ]
        results.append(_close(contract, batch, params, tuple(outcomes)))
    return results


def _judge(group: list[_Piece], rows: Suite) -> None:
    """Check pieces against the row-level expectations together, and write their rows."""
    broken = rows.judge(to_frame(pa.concat_tables([piece.typed for piece in group]).select(rows.columns)))
    position = 0
    for piece in group:
        end = position + piece.typed.num_rows
        sort_rows(piece, {expectation: mask[position:end] for expectation, mask in broken.items()})
        position = end


def _open(lake: Lake, zone: ZoneInfo, contract: Contract, manifest: Manifest) -> _OpenBatch:
    names = dict.fromkeys(name for part in manifest.parts for name in lake.columns(part))
    columns = [name for name in names if name in contract.columns or name == "event_time"]
    replaced = find_replaced(lake, manifest)
    duplicates = find_duplicates(lake, manifest, columns, replaced)
    key = (manifest.detector, manifest.batch_date)
    partitions = (lake.write("validated", *key), lake.write("quarantine", *key))
    return _OpenBatch(manifest, zone, replaced, duplicates, Landed(contract), *partitions)


def _close(contract: Contract, batch: _OpenBatch, params: ValidateParams, outcomes: tuple[Outcome, ...]) -> Validation:
    """Collect the findings and commit the partitions: quarantine always, validated only for an accepted batch."""
    rows_in, quarantined = batch.manifest.rows, batch.reasons.total()
    landed, failures, warnings = batch.landed, batch.landed.failures, batch.landed.warnings
    (failures if contract.extra_columns == "stop" else warnings).extend(landed.surprises)
    if quarantined > params.max_quarantined_fraction * rows_in:
        worst = ", ".join(f"{reason} ({n})" for reason, n in batch.reasons.most_common(3))
        limit = f"more than max_quarantined_fraction {params.max_quarantined_fraction:g}"
        failures.append(f"{quarantined} of {rows_in} rows quarantined, {limit}: {worst}")
        failures += [landed.describe_reading(name) for name in sorted(landed.unreadable)]
    for outcome in outcomes:
        if not outcome.success and outcome.level == "batch":
            (failures if outcome.severity == "critical" else warnings).append(f"{outcome.text}: got {outcome.observed}")
        elif not outcome.success and outcome.severity == "warning":
            warnings.append(f"{outcome.text}: broken by {outcome.observed}")
    result = Validation(
        batch_date=batch.manifest.batch_date,
        input_hash=batch.manifest.hash,
        rows_in=rows_in,
        validated=sum(part.rows for part in batch.validated.parts),
        quarantined=quarantined,
        excluded=batch.duplicated + batch.superseded,
        reasons=dict(batch.reasons.most_common()),
        warnings=tuple(warnings),
        failures=tuple(failures),
        results=outcomes,
    )
    facts = {"contract_hash": contract.hash, "validation": _to_facts(result)}
    batch.quarantine.commit(facts)
    if not failures:
        batch.validated.commit(facts)
    return result


def _to_facts(validation: Validation) -> dict[str, Any]:
    facts = {key: value for key, value in vars(validation).items() if key != "batch_date"}
    return facts | {"results": [vars(outcome) for outcome in validation.results]}


def check_accepted(detector: str, validations: Iterable[Validation]) -> None:
    """Raise BatchRejected with every rejected batch and the reasons."""
    rejected = [v for v in validations if v.failures]
    if rejected:
        raise BatchRejected(
            f"{name_rejected(rejected)}; nothing of it is scored or trained on.",
            where=f"contracts/{detector}.yaml, {', '.join(str(v.batch_date) for v in rejected)}",
            got="; ".join(f"{v.batch_date}: {', '.join(v.failures)}" for v in rejected),
            expected="every critical expectation met",
            todo="deliver the batch again, change the contract, or list the date in filter.exclude_dates",
        )


def name_rejected(rejected: Sequence[Validation]) -> str:
    """Which batches broke the contract; of a single one, the first expectation that it broke."""
    if len(rejected) > 1:
        return f"{len(rejected)} batches broke the contract"
    [(first, *others)] = [one.failures for one in rejected]
    more = f" and {len(others)} more" if others else ""
    return f"The batch broke the contract: {first}{more}"


def make_row(v: Validation) -> dict[str, str | int]:
    """A batch's row in the table on Prefect's page, which shows Markdown."""
    return {
        "batch date": str(v.batch_date),
        "rows in": v.rows_in,
        "validated": v.validated,
        "quarantined": v.quarantined,
        "excluded": v.excluded,
        "warnings": escape_markdown("; ".join(v.warnings)),
        "failures": escape_markdown("; ".join(v.failures)),
    }


@task(task_run_name="validate {site.detector}", **PURE)
def validate(site: Site, contract: Contract, dates: Sequence[date], params: ValidateParams) -> list[Validation]:
    """Validate batches; if some are rejected, the task fails after all have been checked."""
    validations = validate_batches(site, contract, dates, params, progress_of(f"validate to {dates[-1]}"))
    rows = [make_row(v) for v in validations]
    create_table_artifact(rows, key=f"validation-{site.artifact_key}", description=f"Validation of {site.detector}")
    total, bad = sum(v.rows_in for v in validations), sum(v.quarantined for v in validations)
    get_run_logger().info("%d batches, %d rows, %d quarantined", len(rows), total, bad)
    check_accepted(site.detector, validations)
    return validations
