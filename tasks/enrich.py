"""Add history columns to validated batches: what the entity of each row did before it.

In: validated rows of the batches and of those before them, as far as the longest window reaches. Out: the same
validated partitions with the columns of `enrich.columns`, rows in the same order. A batch whose rows, history and
params have not changed is not enriched again. Memory holds one slice and what DuckDB may use.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
from prefect import get_run_logger, task

from tasks.errors import BatchRejected
from tasks.policy import PURE, progress_of
from tasks.rows.contract import Contract
from tasks.rows.derive import add_columns, derive_history, take_rows
from tasks.rows.entities import lack_entity
from tasks.rows.history import COLUMNS, HISTORY, PLAIN, EnrichParams
from tasks.rows.params import ValidateParams
from tasks.rows.validation import Validation
from tasks.stores.files import read_ahead
from tasks.stores.lake import Manifest
from tasks.stores.site import Site
from tasks.validate import validate_batches

CODE_VERSION = 1  # increase it when the same rows and params give other columns
RUN_ROWS = 4_000_000  # rows of neighbouring batches that are enriched together, to read their history once
MOST_MISSING = 0.5  # share of a batch's rows without an entity


@dataclass(frozen=True)
class _Due:
    """A batch to enrich: its validated partition, its history's input hash and key."""

    batch: Manifest
    input_hash: str
    key: str


def enrich_batches(
    site: Site,
    contract: Contract,
    days: Sequence[date],
    validate: ValidateParams,
    params: EnrichParams,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Validation]:
    """Enrich batches; returns their validations, each with the input hash of the batch and its history.

    Validates the earlier batches that the windows reach, where that is due; a rejected one has no rows in any history.
    Batches that lose their history columns by it get them back. A rejected batch of `days` is left as it is, and so is
    one whose history was pruned since it got these columns. Raises BatchMissing, BatchRejected.
    """
    site = replace(site, lake=site.lake.reading_once())
    lake, name = site.lake, site.detector
    # What arrives for a pruned batch is not whole: the rows validated before count.
    pruned = {*lake.pruned_dates(name)}
    landed = {*lake.dates("landing", name)} - pruned
    reached = sorted({one for day in days for one in site.list_reached(day)} | {*days})
    before = {day for day in reached if (batch := lake.find("validated", name, day)) and HISTORY in batch.facts}
    inputs = site.hash_inputs(reached)  # before the rows are read: what lands meanwhile is refused when it is published
    validations = validate_batches(site, contract, [day for day in reached if day in landed or day in days], validate)
    found = {validation.batch_date: validation for validation in validations}
    rejected = {day for day, validation in found.items() if validation.failures}
    batches = {day: batch for day in reached if day not in rejected and (batch := lake.find("validated", name, day))}
    lost = [day for day in before & batches.keys() if HISTORY not in batches[day].facts]
    further = {one for day in lost for one in site.list_reached(day)} - batches.keys() - rejected
    batches |= {day: batch for day in further if (batch := lake.find("validated", name, day))}
    reports = site.read_reports(sorted({*reached, *batches}))
    told = site.hash_reports(reports)
    due = []
    for day in sorted({*days, *lost} - rejected):
        batch, input_hash = batches[day], inputs[day]
        is_cut = any(one in pruned and one not in batches for one in site.list_reached(day))
        if input_hash is None or (is_cut and batch.facts.get(COLUMNS) == params.definitions):
            continue
        key = make_key(site, params, day, batches, told)
        if batch.facts.get(HISTORY) != key or batch.input_hash != input_hash:
            due.append(_Due(batch, input_hash, key))
    total, done = sum(one.batch.rows for one in due), 0
    for run in _group(due):
        _enrich(site, contract, params, run, batches, reports)
        done += sum(one.batch.rows for one in run)
        on_progress(done, total)
    return [replace(found[day], input_hash=inputs[day] or found[day].input_hash) for day in days]


def make_key(
    site: Site, params: EnrichParams, day: date, batches: Mapping[date, Manifest], told: Mapping[date, str]
) -> str:
    """A hash of everything that a batch's history columns depend on: code, params, rows, and reports until its end.

    told: the hash of the reports of each date.
    """
    reached = site.list_reached(day)
    rows = [(str(one), hash_plain(batches[one])) for one in reached if one in batches]
    reports = [(str(one), told[one]) for one in reached if one in told]
    facts = {"code": CODE_VERSION, "columns": params.definitions, "rows": rows, "reports": reports}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def hash_plain(validated: Manifest) -> str:
    """The content hash of a validated partition without its history columns."""
    return str(validated.facts.get(PLAIN, validated.hash))


def _group(due: Sequence[_Due]) -> Iterator[list[_Due]]:
    """Neighbouring batches together, up to RUN_ROWS rows."""
    run: list[_Due] = []
    for one in due:
        if run and sum(other.batch.rows for other in run) + one.batch.rows > RUN_ROWS:
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _enrich(
    site: Site,
    contract: Contract,
    params: EnrichParams,
    run: Sequence[_Due],
    batches: Mapping[date, Manifest],
    reports: pa.Table,
) -> None:
    """Write the partitions of some batches again with their history columns."""
    lake, days = site.lake, {one.batch.batch_date for one in run}
    reached = {day for one in days for day in site.list_reached(one)} - days
    targets = tuple(part for one in run for part in one.batch.parts)
    earlier = tuple(part for day in sorted(reached & batches.keys()) for part in batches[day].parts)
    history = derive_history(lake, params, targets, earlier, reports) if targets else iter(())
    take = take_rows(history)
    entities = {str(column.by) for column in params.history.values()}
    for one in run:
        partition = lake.write("validated", site.detector, one.batch.batch_date)
        missing: Counter[str] = Counter()
        for number, part in enumerate(one.batch.parts):
            with partition.part(f"part-{number}") as writer:
                for table in read_ahead(lake.slices(part, contract.schema.names)):  # without older history columns
                    missing.update({name: pc.sum(lack_entity(table[name])).as_py() or 0 for name in entities})
                    writer.append(add_columns(table, take(table.num_rows)))
        _refuse_missing(one.batch, missing)
        facts = {
            HISTORY: one.key,
            COLUMNS: params.definitions,
            PLAIN: hash_plain(one.batch),
            "input_hash": one.input_hash,
        }
        partition.commit({**one.batch.facts, **facts})


def _refuse_missing(batch: Manifest, missing: Mapping[str, int]) -> None:
    """Raise BatchRejected if most rows have no entity: their history would be missing too."""
    most = {name: count for name, count in missing.items() if count > MOST_MISSING * batch.rows}
    if most:
        raise BatchRejected(
            "Most rows of a batch do not say whose history they belong to.",
            where=f"{batch.detector}, {batch.batch_date}, column {', '.join(most)}",
            got=", ".join(f"{count} of {batch.rows} rows without {name}" for name, count in most.items()),
            expected=f"at most {MOST_MISSING:.0%} of rows without one",
            todo="deliver the batch with the column filled, choose another entity in enrich, or list the date in "
            "filter.exclude_dates",
        )


@task(task_run_name="enrich {site.detector}", **PURE)
def enrich(
    site: Site, contract: Contract, days: Sequence[date], validate: ValidateParams, params: EnrichParams
) -> list[Validation]:
    """Add history columns to validated batches; returns their validations with the input hash of their history."""
    found = enrich_batches(site, contract, days, validate, params, progress_of(f"enrich to {days[-1]}"))
    get_run_logger().info("%d batches with %d history columns", len(found), len(params.history))
    return found
