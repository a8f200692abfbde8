"""Score a validated batch with one model version, slice by slice, and explain its worst flags.

In: the validated partition and a bundle. Out: the scores partition (record_id, score, percentile_rank for every row)
and beside it flags.parquet, the flags to publish with their causes, and groups.parquet, the scores of its groups.
Memory holds one slice, the worst flags and some sums a group.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from prefect import get_run_logger, task
from pydantic import Field, field_validator

from models.detector import Detector, Explanation
from models.encoders import UNSEEN
from models.params import Section
from models.records import Column
from tasks.columns import to_records
from tasks.contract import Contract
from tasks.errors import LeakageFound
from tasks.groups import GroupScores, GroupsParams, write_groups
from tasks.lake import Manifest, read_ahead
from tasks.policy import IO
from tasks.progress import progress_of
from tasks.site import Site
from tasks.tokens import list_unseen
from tasks.tracking import Version
from tasks.validate import Validation

Floats = npt.NDArray[np.float64]
MASKED = "masked"


class ScoreParams(Section):
    """How many alerts a night may publish (the worst are kept), and how many causes each carries.

    Suppressed flags are published too, beside the alerts, and at most as many. `bands` names severities: each begins
    at a percentile rank. `groups`: None publishes no group scores.
    """

    max_alerts: int = Field(default=1000, ge=1)
    causes: int = Field(default=3, ge=1)
    bands: dict[str, float] = Field(default={"low": 0, "medium": 99, "high": 99.9, "critical": 99.99})
    groups: GroupsParams | None = None

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: dict[str, float]) -> dict[str, float]:
        ranks = list(bands.values())
        if ranks[:1] != [0] or ranks[-1] >= 100 or any(low >= high for low, high in pairwise(ranks)):
            raise ValueError("bands begin with 0 and rise: the percentile rank, below 100, from which each one counts")
        return bands

    def name_band(self, percentile_rank: float) -> str:
        """The severity of a rank, 0 to 100: the last band that begins at or below it."""
        return [name for name, rank in self.bands.items() if rank <= percentile_rank][-1]


@dataclass(frozen=True)
class Scored:
    """One scored batch, ready to publish. `flags_path` is relative to the lake root."""

    batch_date: date
    input_hash: str
    rows_in: int
    quarantined: int
    excluded: int
    scored: int
    flagged: int
    unseen: int
    threshold: float
    version: int
    flags_path: str
    scored_at: datetime


class WorstRows:
    """The `most` rows with the highest scores of all that were added; ties keep the earlier row."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._scores: Floats = np.empty(0)
        self._rows: pa.Table | None = None

    def add(self, rows: pa.Table, scores: Floats) -> None:
        """Add rows (N,) with their scores (N,)."""
        self._scores = np.concatenate([self._scores, scores])
        self._rows = rows if self._rows is None else pa.concat_tables([self._rows, rows], promote_options="permissive")
        if len(self._scores) > 2 * self._most:
            self._cut()

    def take(self) -> tuple[pa.Table | None, Floats]:
        """The rows kept, worst first, and their scores."""
        self._cut()
        return self._rows, self._scores

    def _cut(self) -> None:
        order = np.argsort(-self._scores, kind="stable")[: self._most]
        self._scores = self._scores[order]
        self._rows = None if self._rows is None else self._rows.take(pa.array(order))


def name_causes(
    explanation: Explanation, rows: pa.Table, columns: Sequence[Column], masked: set[str], most: int
) -> list[str]:
    """For each row the JSON text of its causes: the `most` largest shares of the score, then "other".

    Shares add up to the score. A patch of an image or a token of a sequence is named by "part". Actual and expected
    are in the record's own units; a masked column shows neither.
    """
    actual = {column.name: rows[column.name].to_pylist() for column in columns if column.kind != "image"}
    texts = []
    for row, shares in enumerate(explanation.contributions):
        order = np.argsort(-shares, kind="stable")
        causes: list[dict[str, Any]] = []
        for position in order[:most]:
            unit = explanation.units[position]
            column = columns[unit.column]
            shown: dict[str, Any] = {"part": unit.part} if unit.part else {}
            if not unit.part:
                shown["actual"] = _plain(actual[column.name][row])
            elif unit.part == UNSEEN:
                shown["actual"] = ", ".join(list_unseen(actual[column.name][row], column))
            else:
                shown["actual"] = _round(explanation.actual[row, position])
            shown["expected"] = _expected(column, explanation.expected[row, position])
            if column.name in masked:
                shown = dict.fromkeys(shown, MASKED)
            causes.append({"column": column.name, "share": float(shares[position])} | shown)
        causes.append({"column": "other", "share": float(shares[order[most:]].sum())})
        texts.append(json.dumps(causes, allow_nan=False))
    return texts


def _expected(column: Column, value: float) -> Any:
    if column.kind == "categorical":
        code = int(value)
        return column.vocabulary[code] if 0 <= code < len(column.vocabulary) else "unseen"
    if column.kind == "datetime":
        return f"around {int(value) % 24:02d}:00 UTC"
    return _plain(_round(value))


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()  # as the vocabulary of a true-or-false column has it
    return value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else value


def score_batch(
    site: Site,
    detector: Detector,
    contract: Contract,
    validated: Manifest,
    params: ScoreParams,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, int, int, int]:
    """Write the scores of a validated batch; returns the flags' path and the rows scored, flagged and unseen."""
    lake, names = site.lake, [column.name for column in detector.columns]
    grouped = params.groups.names if params.groups else ()
    read = list(dict.fromkeys(["record_id", "event_time", *names, *grouped]))
    texts = tuple(column.name for column in detector.columns if column.kind in ("categorical", "sequence"))
    partition = lake.write("scores", site.detector, validated.batch_date)
    alerts, suppressed = WorstRows(params.max_alerts), WorstRows(params.max_alerts)
    groups, threshold = GroupScores(params.groups, site.zone), detector.threshold.value
    scored = flagged = unseen = 0
    for number, part in enumerate(validated.parts):
        with partition.part(f"part-{number}") as writer:
            for table in read_ahead(lake.slices(part, read, texts)):
                records, is_unseen = to_records(table, detector.columns)
                scores = detector.score(records)
                ranks = pa.array(detector.rank(scores).astype(np.float32))
                writer.append(pa.table({"record_id": table["record_id"], "score": scores, "percentile_rank": ranks}))
                groups.add(table, scores)
                mask = scores > threshold
                _, is_suppressed = detector.reduce(records[torch.from_numpy(mask)])
                above, their_scores = table.filter(pa.array(mask)), scores[mask]
                alerts.add(above.filter(pa.array(~is_suppressed)), their_scores[~is_suppressed])
                suppressed.add(above.filter(pa.array(is_suppressed)), their_scores[is_suppressed])
                scored, flagged, unseen = scored + len(scores), flagged + int(mask.sum()), unseen + int(is_unseen.sum())
                on_progress(scored, validated.rows)
    found = [describe_flags(detector, *kept.take(), contract, params) for kept in (alerts, suppressed)]
    flags = pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True)
    path = partition.path("flags.parquet")
    lake.replace_frame(path, flags)
    write_groups(lake, path, groups.take())
    partition.commit({"input_hash": validated.facts["validation"]["input_hash"], "flags": path})
    return path, scored, flagged, unseen


def describe_flags(
    detector: Detector, rows: pa.Table | None, scores: Floats, contract: Contract, params: ScoreParams
) -> pd.DataFrame:
    """Flags to publish, worst first: score, rank, p-value, causes and second stage of each row."""
    if rows is None or not len(scores):
        rows = pa.table({"record_id": pa.array([], pa.string()), "event_time": pa.array([], pa.timestamp("us", "UTC"))})
        causes: list[str] = []
        probabilities, is_suppressed = np.empty(0), np.empty(0, dtype=bool)
    else:
        records, _ = to_records(rows, detector.columns)
        causes = name_causes(detector.explain(records), rows, detector.columns, contract.masked, params.causes)
        probabilities, is_suppressed = detector.reduce(records)
    return pd.DataFrame(
        {
            "record_id": rows["record_id"].to_pandas(),
            "event_time": rows["event_time"].to_pandas(),
            "score": scores,
            "percentile_rank": detector.rank(scores),
            "p_value": detector.p_value(scores),
            "causes": pd.Series(causes, dtype="str"),
            "second_stage_probability": probabilities,
            "suppressed": is_suppressed,
        }
    )


def check_out_of_sample(site: Site, detector: Detector, day: date) -> None:
    """Refuse to score a day that the model was trained, calibrated or tested on. Raises LeakageFound."""
    trained_through = date.fromisoformat(str(detector.lineage["trained_through"]))
    if day <= trained_through:
        raise LeakageFound(
            f"{site.detector} has learnt from {day}; its scores there would say nothing.",
            where=f"lineage of the champion, trained through {trained_through}",
            expected=f"a batch date after {trained_through}",
            todo=f"nightjar train {site.detector} --cutoff {day} makes a version that has not seen it",
        )


@task(task_run_name="score {site.detector} {validation.batch_date}", **IO)
def score(
    site: Site,
    contract: Contract,
    validation: Validation,
    version: Version,
    bundle: Path,
    params: ScoreParams,
    now: datetime,
) -> Scored:
    """Score one batch with the version resolved at the start of the night."""
    detector, day = Detector.load(bundle), validation.batch_date
    check_out_of_sample(site, detector, day)
    validated = site.lake.get("validated", site.detector, day)
    path, scored, flagged, unseen = score_batch(
        site, detector, contract, validated, params, progress_of(f"score {day}")
    )
    get_run_logger().info("%d rows scored, %d flagged, %d with an unseen category", scored, flagged, unseen)
    return Scored(
        batch_date=day,
        input_hash=validation.input_hash,
        rows_in=validation.rows_in,
        quarantined=validation.quarantined,
        excluded=validation.excluded,
        scored=scored,
        flagged=flagged,
        unseen=unseen,
        threshold=detector.threshold.value,
        version=version.version,
        flags_path=path,
        scored_at=now,
    )
