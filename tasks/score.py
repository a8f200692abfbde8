"""Score a validated batch with one model version, part by part, and explain its worst flags.

In: the validated partition and a bundle. Out: a partition of scores (record_id, score, percentile_rank for every row)
with flags.parquet, the flags to publish with their causes, and groups.parquet, the scores of its groups.
Each finished part leaves a receipt, so that an attempt after a crash continues from there.
Memory holds one slice, the worst flags and a few sums per group.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
from prefect import get_run_logger, task
from pydantic import TypeAdapter

from models.bundle import read_bundle_manifest
from models.detector import Detector
from models.fitting import resolve_device
from tasks.errors import LeakageFound, PublishConflict
from tasks.policy import IO, progress_of
from tasks.rows.contract import Contract
from tasks.rows.groups import GroupScores, combine_groups
from tasks.rows.judge import Judgement, find_thresholds, judge, load_detector
from tasks.rows.kinds import KINDS
from tasks.rows.limits import LIMIT, read_scores
from tasks.rows.params import ScoreParams
from tasks.rows.validation import Validation
from tasks.rows.worst import WorstRows
from tasks.stores.files import read_ahead
from tasks.stores.lake import Lake, Manifest, Part, PartitionWriter
from tasks.stores.registry import CHALLENGER, Version
from tasks.stores.site import Site
from tasks.stores.tables import Scored

CODE_VERSION = 2  # increase it when the same inputs give other results: finished scores are then not reused
COUNTS = ("scored", "flagged", "unseen")
NO_ROWS = pa.table({"record_id": pa.array([], pa.string()), "event_time": pa.array([], pa.timestamp("us", "UTC"))})


@dataclass(frozen=True)
class PartScores:
    """The receipt of one part: its part of scores, and the numbers of scored, flagged and unseen-category rows."""

    part: Part
    scored: int
    flagged: int
    unseen: int


@dataclass(frozen=True)
class Scoring:
    """Everything needed to score the parts of one batch: small, and the same for all parts."""

    lake: Lake
    zone: ZoneInfo
    detector: Detector
    contract: Contract
    params: ScoreParams
    partition: PartitionWriter

    @property
    def least_threshold(self) -> float | None:
        """The lowest threshold that the night may get once all its parts are scored; None if rows have their own."""
        return None if self.detector.segments else self.detector.least_threshold

    def find(self, name: str) -> PartScores | None:
        """The receipt of a part that an earlier attempt finished, or None."""
        data = self.lake.find_file(self.partition.path(f"{name}.json"))
        return None if data is None else TypeAdapter(PartScores).validate_json(data)

    def score(self, name: str, validated: Part, on_progress: Callable[[int], None]) -> PartScores:
        """Score a part; write its scores, worst flags and group sums, and the receipt last."""
        lake, columns = self.lake, self.detector.columns
        grouped = [name for one in self.params.groups for name in one.names]
        read = list(dict.fromkeys(["record_id", "event_time", *(column.name for column in columns), *grouped]))
        texts = tuple(column.name for column in columns if KINDS[column.kind].is_text)
        alerts, suppressed = WorstRows(self.params.max_alerts), WorstRows(self.params.max_alerts)
        groups = GroupScores(self.params.groups, self.zone)
        flagged = unseen = 0
        with self.partition.part(name) as writer:
            for table in read_ahead(lake.slices(validated, read, texts)):
                judged = judge(self.detector, table, self.least_threshold)
                ranks = pa.array(judged.percentile_rank.astype(np.float32))
                scores = {"record_id": table["record_id"], "score": judged.score, "percentile_rank": ranks}
                scores |= {LIMIT: judged.threshold} if self.detector.segments else {}
                writer.append(pa.table(scores))
                groups.add(table, judged.score)
                flags = judged[judged.is_flagged]
                _keep(alerts, flags[~flags.is_suppressed])
                _keep(suppressed, flags[flags.is_suppressed])
                flagged, unseen = flagged + len(flags.score), unseen + int(judged.is_unseen.sum())
                on_progress(writer.rows)
        found = [self._describe(alerts), self._describe(suppressed)]
        lake.replace_frame(self.partition.path(f"{name}-flags.parquet"), combine_flags(found, self.params.max_alerts))
        lake.replace_frame(self.partition.path(f"{name}-groups.parquet"), groups.sums())
        receipt = PartScores(self.partition.parts[-1], writer.rows, flagged, unseen)
        lake.replace(self.partition.path(f"{name}.json"), json.dumps(asdict(receipt)).encode())
        return receipt

    def combine(self, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The batch's flags and groups, combined from its parts."""
        flags, groups = self._describe(WorstRows(1)), GroupScores(self.params.groups, self.zone).sums()
        for name in names:
            flags = combine_flags([flags, self._read(f"{name}-flags.parquet")], self.params.max_alerts)
            groups = pd.concat([groups, self._read(f"{name}-groups.parquet")], ignore_index=True)
        return flags, combine_groups(groups)

    def _describe(self, worst: WorstRows) -> pd.DataFrame:
        rows, *arrays = worst.take()
        if rows is None or not rows.num_rows:
            rows, arrays = NO_ROWS, [np.empty(0), np.empty(0), np.empty(0, dtype=bool)]
        judged = Judgement(self.detector, find_thresholds(self.detector, rows), rows, *arrays)
        return describe_flags(judged, self.contract, self.params)

    def _read(self, name: str) -> pd.DataFrame:
        return self.lake.read_frame(self.partition.path(name))


def hash_inputs(site: Site, validated: Manifest, bundle_hash: str, contract: Contract, params: ScoreParams) -> str:
    """The key of a batch's scores: a hash of everything they depend on, so that finished scores are reused."""
    inputs = {
        "code": CODE_VERSION,
        "landing": validated.input_hash,
        "parts": [part.sha256 for part in validated.parts],
        "bundle": bundle_hash,
        "masked": sorted(contract.masked),
        "params": params.model_dump(mode="json", exclude={"bands"}),
        "time_zone": site.time_zone,  # for groups by hour
    }
    if (device := resolve_device(site.device).type) != "cpu":
        inputs["device"] = device  # scores differ in the last bits, and one key must mean the same bytes
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def score_batch(
    site: Site,
    detector: Detector,
    contract: Contract,
    validated: Manifest,
    params: ScoreParams,
    inputs: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    bundle_hash: str | None = None,
) -> Manifest:
    """Write the scores of a validated batch under their key, with the flags and groups to publish.

    Parts finished by an earlier attempt are not computed again. Facts: input_hash, validated (its hash), bundle (its
    hash), scored, flagged, unseen, the paths of flags and groups and, if each night has its own, the threshold.
    """
    key = (site.detector, validated.batch_date)
    if finished := site.lake.find("scores", *key, inputs):
        on_progress(validated.rows, validated.rows)
        return finished
    partition = site.lake.write("scores", *key, inputs)
    scoring = Scoring(site.lake, site.zone, detector, contract, params, partition)
    receipts: dict[str, PartScores] = {}
    done = 0
    for number, part in enumerate(validated.parts):
        report = partial(_report_rows, on_progress, done, validated.rows)
        name, done = f"part-{number}", done + part.rows
        if receipt := scoring.find(name):
            report(part.rows)
        receipts[name] = receipt or scoring.score(name, part, report)
    partition.parts = [receipt.part for receipt in receipts.values()]
    flags, groups = scoring.combine(list(receipts))
    counts: dict[str, Any] = {name: sum(vars(receipt)[name] for receipt in receipts.values()) for name in COUNTS}
    if detector.discovery_rate is not None:
        threshold, flagged = detector.find_threshold(read_scores(site.lake, partition.parts))
        flags = flags[flags["score"] > threshold].reset_index(drop=True)
        counts |= {"flagged": flagged, LIMIT: threshold}
    paths = {name: partition.path(f"{name}.parquet") for name in ("flags", "groups")}
    site.lake.replace_frame(paths["flags"], flags)
    site.lake.replace_frame(paths["groups"], groups)
    origin = {"input_hash": validated.input_hash, "validated": validated.hash}
    return partition.commit({**origin, "bundle": bundle_hash, **counts, **paths})


def _report_rows(on_progress: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    on_progress(before + rows, total)


def combine_flags(found: Sequence[pd.DataFrame], most: int) -> pd.DataFrame:
    """The worst `most` alerts, then up to `most` of the worst suppressed flags; ties keep their order."""
    flags = pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True)
    ranked = flags.sort_values("score", ascending=False, kind="stable")
    kept = [ranked[ranked["suppressed"] == is_suppressed].head(most) for is_suppressed in (False, True)]
    return pd.concat(kept, ignore_index=True)


def describe_flags(judged: Judgement, contract: Contract, params: ScoreParams) -> pd.DataFrame:
    """Flags to publish, in the given order: score, rank, p-value, causes and second stage of each row.

    And its threshold, if thresholds go by segment.
    """
    flags = pd.DataFrame(
        {
            "record_id": judged.rows["record_id"].to_pandas(),
            "event_time": judged.rows["event_time"].to_pandas(),
            "score": judged.score,
            "percentile_rank": judged.percentile_rank,
            "p_value": judged.p_value,
            "causes": pd.Series(judged.name_causes(contract.masked, params.causes), dtype="str"),
            "second_stage_probability": judged.second_stage_probability,
            "suppressed": judged.is_suppressed,
        }
    )
    return flags.assign(**{LIMIT: judged.threshold}) if judged.detector.segments else flags


def _keep(worst: WorstRows, judged: Judgement) -> None:
    worst.add(judged.rows, judged.score, judged.second_stage_probability, judged.is_unseen)


def check_out_of_sample(site: Site, detector: Detector, day: date) -> None:
    """Refuse to score a day that the model was trained, calibrated or tested on. Raises LeakageFound."""
    trained_through = date.fromisoformat(str(detector.lineage["trained_through"]))
    if day <= trained_through:
        raise LeakageFound(
            f"{site.detector} was trained on {day}, so its scores for that day would be meaningless.",
            where=f"lineage of the champion, trained through {trained_through}",
            expected=f"a batch date after {trained_through}",
            todo=f"nightjar train {site.detector} --cutoff {day} trains a version that has not seen it",
        )


def refuse_other_input(site: Site, validated: Manifest, validation: Validation) -> None:
    """Refuse rows that another run has just validated from other input. Raises PublishConflict."""
    found = validated.input_hash
    if found != validation.input_hash:
        raise PublishConflict(
            "Another run validated the batch again during this night; nothing was scored.",
            where=f"detector {site.detector}, batch {validation.batch_date}",
            got=f"validated rows of input {found}",
            expected=f"rows of input {validation.input_hash}, which this night validated",
            todo="nothing if the other run publishes; otherwise run the night again",
        )


def open_batch(
    site: Site, contract: Contract, validation: Validation, detector: Detector, bundle: Path, params: ScoreParams
) -> tuple[Manifest, str]:
    """The validated batch, and the key of its scores. Raises LeakageFound, PublishConflict."""
    check_out_of_sample(site, detector, validation.batch_date)
    validated = site.lake.get("validated", site.detector, validation.batch_date)
    refuse_other_input(site, validated, validation)
    return validated, hash_inputs(site, validated, read_bundle_manifest(bundle).content_hash, contract, params)


def score_night(
    site: Site,
    contract: Contract,
    validation: Validation,
    version: Version,
    bundle: Path,
    params: ScoreParams,
    now: datetime,
) -> Scored:
    """Score one validated batch with one version. Raises LeakageFound, PublishConflict."""
    day, device = validation.batch_date, resolve_device(site.device)
    detector = load_detector(site.lake, site.detector, bundle).to(device)
    validated, inputs = open_batch(site, contract, validation, detector, bundle, params)
    progress, bundle_hash = progress_of(f"score {day}"), read_bundle_manifest(bundle).content_hash
    scores = score_batch(site, detector, contract, validated, params, inputs, progress, bundle_hash)
    return Scored(
        detector=site.detector,
        batch_date=day,
        input_hash=validation.input_hash,
        rows_in=validation.rows_in,
        quarantined=validation.quarantined,
        excluded=validation.excluded,
        threshold=scores.facts.get(LIMIT, detector.threshold.value),
        model_name=version.name,
        model_version=version.version,
        scored_at=now,
        scores=inputs,
        **{name: scores.facts[name] for name in COUNTS},
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
    scored = score_night(site, contract, validation, version, bundle, params, now)
    get_run_logger().info("%d rows scored, %d flagged, %d with an unseen category", *(vars(scored)[n] for n in COUNTS))
    return scored


@task(task_run_name="shadow {site.detector} {validation.batch_date}", **IO)
def shadow(
    site: Site, contract: Contract, types: Mapping[str, str], validation: Validation, params: ScoreParams, now: datetime
) -> int | None:
    """Score a night with the challenger too, into the lake only; its version, or None if nothing is to be scored.

    types: of the columns, history columns included, as params and contract have them.

    The champion has published by then: a challenger that cannot score costs this task, not the night.
    """
    challenger = site.registry.find_version(CHALLENGER)
    if challenger is None or validation.batch_date <= challenger.trained_through:
        return None
    challenger.check_types(types)
    scored = score_night(site, contract, validation, challenger, site.registry.fetch_bundle(challenger), params, now)
    get_run_logger().info("version %d would flag %d of %d rows", challenger.version, scored.flagged, scored.scored)
    return challenger.version
