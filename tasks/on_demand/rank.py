"""Rank one record given by hand: the champion's score, severity and causes; nothing is stored.

In: the record's values as text, by column. Out: the judgement that a night would give. Types and row-level
expectations are the contract's; expectations on columns that were not given are skipped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from models.detector import Detector
from tasks.errors import RecordInvalid
from tasks.rows.contract import Contract
from tasks.rows.derive import History, add_columns
from tasks.rows.expectations import Suite
from tasks.rows.history import EnrichParams
from tasks.rows.judge import judge, load_detector
from tasks.rows.params import ScoreParams
from tasks.rows.schema import find_unreadable, type_rows
from tasks.stores import registry
from tasks.stores.site import Site


@dataclass(frozen=True)
class Ranked:
    """A record's score, its rank and band among calibration scores, and causes that add up to the score.

    second_stage_probability: None if the record is not flagged or the detector has no reducer.
    """

    score: float
    percentile_rank: float
    p_value: float
    band: str
    threshold: float
    is_flagged: bool
    second_stage_probability: float | None
    is_suppressed: bool
    causes: list[dict[str, Any]]
    model: str
    model_version: int


def type_record(values: Mapping[str, str], contract: Contract, read: set[str]) -> pa.Table:
    """One row in the contract's types. Raises RecordInvalid if a column has no value, or an unreadable one.

    read: the columns that the detector reads. Nullable ones may be left out.
    """
    known = {*contract.columns, "event_time"}
    images = [name for name in read if name in contract.columns and contract.columns[name].shape]
    nullable = {name for name, column in contract.columns.items() if column.nullable}
    problems = {
        "no such column": sorted(values.keys() - known),
        "required but missing": sorted(read - values.keys() - nullable - set(images)),
        "an image, which cannot be given as text": images,
    }
    raw = pa.table({name: [text] for name, text in values.items()})
    typed = type_rows(raw, contract)
    unreadable = find_unreadable(raw, typed, contract)
    unread = [name for name in values if name in unreadable or (name == "event_time" and typed[name].null_count)]
    problems |= {"not readable as its type": [f"{name} ({typed.schema.field(name).type})" for name in unread]}
    found = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise _invalid_record("; ".join(found), f"values of {', '.join(sorted(read))}")
    return typed


def check_record(typed: pa.Table, contract: Contract, given: set[str]) -> None:
    """Check the row against the critical row-level expectations on the given columns. Raises RecordInvalid."""
    critical = [e for e in contract.row_expectations if e.severity == "critical"]
    chosen = [e for e in critical if all(v in given for k, v in e.kwargs.items() if k.startswith("column"))]
    suite = Suite(chosen, contract.masked)
    broken = suite.judge(typed.select(suite.columns).to_pandas()) if chosen else {}
    if broken:
        # Only the expectations' text, because the value may be masked.
        raise _invalid_record("a value that breaks the contract", "; ".join(e.text for e in broken))


def _invalid_record(got: str, expected: str) -> RecordInvalid:
    todo = "correct --value COLUMN=TEXT; the contract lists the columns and their types"
    return RecordInvalid("The record cannot be scored.", where="--value", got=got, expected=expected, todo=todo)


def rank_record(
    detector: Detector,
    version: registry.Version,
    contract: Contract,
    values: Mapping[str, str],
    params: ScoreParams,
    history: History | None = None,
) -> Ranked:
    """Score one record, given as text by column. Raises RecordInvalid.

    Its history columns are computed from its entity and time, and the validated rows before it.
    """
    read = {column.name for column in detector.columns}
    if history:
        read = (read - history.params.history.keys()) | {*history.needed} - {"record_id"}
    typed = type_record(values, contract, read)
    check_record(typed, contract, set(values))
    if history:
        typed = add_columns(typed, history.derive(typed))
    judged = judge(detector, typed)
    [text] = judged.name_causes(contract.masked, params.causes)
    return Ranked(
        **judged.only(),
        band=params.name_band(judged.percentile_rank.item()),
        threshold=judged.threshold.item(),
        causes=json.loads(text),
        model=version.name,
        model_version=version.version,
    )


def rank_by_champion(
    site: Site, contract: Contract, values: Mapping[str, str], params: ScoreParams, enrich: EnrichParams | None = None
) -> Ranked:
    """Rank a record with tonight's champion. Raises RecordInvalid, ChampionMissing, ParamsInvalid."""
    champion = site.registry.get_champion()
    champion.check_types(contract.types | (enrich.definitions if enrich else {}))
    detector = load_detector(site.lake, site.detector, site.registry.fetch_bundle(champion))
    history = History(site, enrich) if enrich else None
    return rank_record(detector, champion, contract, values, params, history)
