"""Score a validated batch with one model version, part by part, and explain its worst flags.

In: the validated partition and a bundle. Out: a partition of scores (record_id, score, percentile_rank for every row)
and in it flags.parquet, the flags to publish with their causes, and groups.parquet, the scores of its groups.
A part that is finished leaves a receipt, so that whoever comes after a crash goes on from there.
Memory holds one slice, the worst flags and some sums a group.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from prefect import get_run_logger, task
from pydantic import Field, TypeAdapter, field_validator

from models.bundle import read_manifest
from models.detector import Detector
from models.fitting import resolve_device
from models.params import Section
from tasks.causes import name_causes
from tasks.columns import to_records
from tasks.contract import Contract
from tasks.errors import LeakageFound, PublishConflict
from tasks.groups import GroupScores, GroupsParams, combine_groups
from tasks.lake import Manifest, Part, PartitionWriter, read_ahead
from tasks.policy import IO
from tasks.progress import progress_of
from tasks.site import Site
from tasks.tables import Scored
from tasks.tracking import Version, fetch_bundle
from tasks.validate import Validation
from tasks.workers import Workers

Floats = npt.NDArray[np.float64]
CODE_VERSION = 1  # raise it when the same inputs come to other scores, flags or causes: what is finished is then left
COUNTS = ("scored", "flagged", "unseen")
MOST_TASKS = 500  # of a batch: Prefect is at ease with hundreds


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


@dataclass(frozen=True)
class PartScores:
    """The receipt of one part: its scores' part, how many rows were scored, flagged, and had an unseen category."""

    part: Part
    scored: int
    flagged: int
    unseen: int


@dataclass(frozen=True)
class Scoring:
    """Everything that scoring the parts of one batch needs: small, and the same for all of them."""

    site: Site
    detector: Detector
    contract: Contract
    params: ScoreParams
    partition: PartitionWriter

    def find(self, name: str) -> PartScores | None:
        """The receipt of a part that an earlier attempt finished."""
        data = self.site.lake.find_file(self.partition.path(f"{name}.json"))
        return None if data is None else TypeAdapter(PartScores).validate_json(data)

    def score(self, name: str, validated: Part, on_progress: Callable[[int], None]) -> PartScores:
        """Score a part; its worst flags and its sums of groups are left beside its scores, the receipt last."""
        lake, columns = self.site.lake, self.detector.columns
        grouped = self.params.groups.names if self.params.groups else ()
        read = list(dict.fromkeys(["record_id", "event_time", *(column.name for column in columns), *grouped]))
        texts = tuple(column.name for column in columns if column.kind in ("categorical", "sequence"))
        alerts, suppressed = WorstRows(self.params.max_alerts), WorstRows(self.params.max_alerts)
        groups = GroupScores(self.params.groups, self.site.zone)
        flagged = unseen = 0
        with self.partition.part(name) as writer:
            for table in read_ahead(lake.slices(validated, read, texts)):
                records, is_unseen = to_records(table, columns)
                scores = self.detector.score(records)
                ranks = pa.array(self.detector.rank(scores).astype(np.float32))
                writer.append(pa.table({"record_id": table["record_id"], "score": scores, "percentile_rank": ranks}))
                groups.add(table, scores)
                mask = scores > self.detector.threshold.value
                _, is_suppressed = self.detector.reduce(records[torch.from_numpy(mask)])
                above, their_scores = table.filter(pa.array(mask)), scores[mask]
                alerts.add(above.filter(pa.array(~is_suppressed)), their_scores[~is_suppressed])
                suppressed.add(above.filter(pa.array(is_suppressed)), their_scores[is_suppressed])
                flagged, unseen = flagged + int(mask.sum()), unseen + int(is_unseen.sum())
                on_progress(writer.rows)
        found = [
            describe_flags(self.detector, *kept.take(), self.contract, self.params) for kept in (alerts, suppressed)
        ]
        lake.replace_frame(self.partition.path(f"{name}-flags.parquet"), combine_flags(found, self.params.max_alerts))
        lake.replace_frame(self.partition.path(f"{name}-groups.parquet"), groups.sums())
        receipt = PartScores(self.partition.parts[-1], writer.rows, flagged, unseen)
        lake.replace(self.partition.path(f"{name}.json"), json.dumps(asdict(receipt)).encode())
        return receipt

    def combine(self, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The batch's flags and its groups, from those of its parts."""
        flags, groups = self._describe(WorstRows(1)), GroupScores(self.params.groups, self.site.zone).sums()
        for name in names:
            flags = combine_flags([flags, self._read(f"{name}-flags.parquet")], self.params.max_alerts)
            groups = pd.concat([groups, self._read(f"{name}-groups.parquet")], ignore_index=True)
        return flags, combine_groups(groups)

    def _describe(self, worst: WorstRows) -> pd.DataFrame:
        return describe_flags(self.detector, *worst.take(), self.contract, self.params)

    def _read(self, name: str) -> pd.DataFrame:
        return self.site.lake.read_frame(self.partition.path(name))


def hash_inputs(site: Site, validated: Manifest, bundle_hash: str, contract: Contract, params: ScoreParams) -> str:
    """The key of a batch's scores: equal where all they depend on is equal, so that they need not be computed again."""
    inputs = {
        "code": CODE_VERSION,
        "landing": validated.facts["validation"]["input_hash"],
        "parts": [part.sha256 for part in validated.parts],
        "bundle": bundle_hash,
        "masked": sorted(contract.masked),
        "params": params.model_dump(mode="json", exclude={"bands"}),
        "time_zone": site.time_zone,  # of groups by hour
    }
    if (device := resolve_device(site.device).type) != "cpu":
        inputs["device"] = device  # the last bits of scores differ, and one key has one set of bytes
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def score_batch(
    site: Site,
    detector: Detector,
    contract: Contract,
    validated: Manifest,
    params: ScoreParams,
    inputs: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the scores of a validated batch under their key, and beside them the flags and groups to publish.

    What an earlier attempt finished is not computed again. Facts: input_hash, validated (its hash), scored, flagged,
    unseen, and the paths of flags and groups.
    """
    key = (site.detector, validated.batch_date)
    if finished := site.lake.find("scores", *key, inputs):
        on_progress(validated.rows, validated.rows)
        return finished
    partition = site.lake.write("scores", *key, inputs)
    scoring = Scoring(site, detector, contract, params, partition)
    receipts: dict[str, PartScores] = {}
    done = 0
    for number, part in enumerate(validated.parts):
        tell = partial(_tell_more, on_progress, done, validated.rows)
        name, done = f"part-{number}", done + part.rows
        if receipt := scoring.find(name):
            tell(part.rows)
        receipts[name] = receipt or scoring.score(name, part, tell)
    flags, groups = scoring.combine(list(receipts))
    paths = {name: partition.path(f"{name}.parquet") for name in ("flags", "groups")}
    site.lake.replace_frame(paths["flags"], flags)
    site.lake.replace_frame(paths["groups"], groups)
    partition.parts = [receipt.part for receipt in receipts.values()]
    counts = {name: sum(vars(receipt)[name] for receipt in receipts.values()) for name in COUNTS}
    origin = {"input_hash": validated.facts["validation"]["input_hash"], "validated": validated.hash}
    return partition.commit({**origin, **counts, **paths})


def _tell_more(on_progress: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    on_progress(before + rows, total)


def combine_flags(found: Sequence[pd.DataFrame], most: int) -> pd.DataFrame:
    """The worst `most` alerts of all, then the worst suppressed flags, at most as many; ties keep the earlier row."""
    flags = pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True)
    ranked = flags.sort_values("score", ascending=False, kind="stable")
    kept = [ranked[ranked["suppressed"] == is_suppressed].head(most) for is_suppressed in (False, True)]
    return pd.concat(kept, ignore_index=True)


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


def check_input(site: Site, validated: Manifest, validation: Validation) -> None:
    """Refuse rows that another run validated meanwhile from other input. Raises PublishConflict."""
    found = validated.facts["validation"]["input_hash"]
    if found != validation.input_hash:
        raise PublishConflict(
            "the batch was validated again while this night ran; nothing was scored",
            where=f"detector {site.detector}, batch {validation.batch_date}",
            got=f"validated rows of input {found}",
            expected=f"those of input {validation.input_hash}, which this night validated",
            todo="nothing if the other run publishes; else run the night again",
        )


def open_batch(
    site: Site, contract: Contract, validation: Validation, detector: Detector, bundle: Path, params: ScoreParams
) -> tuple[Manifest, str]:
    """The validated batch and the key of its scores. Raises LeakageFound, PublishConflict."""
    check_out_of_sample(site, detector, validation.batch_date)
    validated = site.lake.get("validated", site.detector, validation.batch_date)
    check_input(site, validated, validation)
    return validated, hash_inputs(site, validated, read_manifest(bundle).content_hash, contract, params)


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
    detector, day = Detector.load(bundle).to(resolve_device(site.device)), validation.batch_date
    validated, inputs = open_batch(site, contract, validation, detector, bundle, params)
    scores = score_batch(site, detector, contract, validated, params, inputs, progress_of(f"score {day}"))
    return Scored(
        detector=site.detector,
        batch_date=day,
        input_hash=validation.input_hash,
        rows_in=validation.rows_in,
        quarantined=validation.quarantined,
        excluded=validation.excluded,
        threshold=detector.threshold.value,
        model_name=version.name,
        model_version=version.version,
        scored_at=now,
        scores=inputs,
        **{name: scores.facts[name] for name in COUNTS},
    )


@dataclass(frozen=True)
class ScoreJob:
    """What scoring some parts of a batch takes: small, to be sent to a worker. Its site leads to no warehouse."""

    site: Site
    contract: Contract
    params: ScoreParams
    version: Version
    batch_date: date
    inputs: str


@dataclass(frozen=True)
class Unscored:
    """The job of a batch, its parts without a receipt by name, and the rows of those that have one."""

    job: ScoreJob
    parts: tuple[tuple[str, Part], ...]
    rows_done: int


def find_unscored(
    site: Site, contract: Contract, validation: Validation, version: Version, bundle: Path, params: ScoreParams
) -> Unscored:
    """What is left to score of a batch. Raises LeakageFound, PublishConflict."""
    validated, inputs = open_batch(site, contract, validation, Detector.load(bundle), bundle, params)
    manifest = site.lake.manifest_path("scores", site.detector, validation.batch_date, inputs)
    folder = manifest.rpartition("/")[0]
    there = site.lake.files(folder)
    named = [(f"part-{number}", part) for number, part in enumerate(validated.parts)]
    left = [(name, part) for name, part in named if not {manifest, f"{folder}/{name}.json"} & there.keys()]
    # The key tells the scores of a GPU from those of a CPU: a worker must not choose for itself.
    sent = site.for_workers("cpu" if resolve_device(site.device).type == "cpu" else "cuda")
    job = ScoreJob(sent, contract, params, version, validation.batch_date, inputs)
    return Unscored(job, tuple(left), validated.rows - sum(part.rows for _, part in left))


def score_pieces(job: ScoreJob, parts: Sequence[tuple[str, Part]]) -> int:
    """Score those of some parts that have no receipt yet; returns their rows. The bundle is fetched if need be."""
    detector = Detector.load(fetch_bundle(job.site, job.version)).to(resolve_device(job.site.device))
    partition = job.site.lake.write("scores", job.site.detector, job.batch_date, job.inputs)
    scoring = Scoring(job.site, detector, job.contract, job.params, partition)
    left = [(name, part) for name, part in parts if scoring.find(name) is None]
    return sum(scoring.score(name, part, lambda rows: None).scored for name, part in left)


def share_out(parts: Sequence[tuple[str, Part]], tasks: int) -> list[Sequence[tuple[str, Part]]]:
    """Parts in neighbouring runs of one length, as short as so many tasks allow."""
    length = max(1, math.ceil(len(parts) / tasks))
    return [parts[first : first + length] for first in range(0, len(parts), length)]


@task(task_run_name="score {site.detector} {validation.batch_date}: plan", **IO)
def plan_parts(
    site: Site, contract: Contract, validation: Validation, version: Version, bundle: Path, params: ScoreParams
) -> Unscored:
    """Find the parts that no attempt has finished."""
    return find_unscored(site, contract, validation, version, bundle, params)


@task(task_run_name="score {job.site.detector} {job.batch_date}: from {parts[0][0]}", **IO)
def score_parts(job: ScoreJob, parts: Sequence[tuple[str, Part]]) -> int:
    """Score some parts, on whichever worker this is."""
    rows = score_pieces(job, parts)
    get_run_logger().info("%d rows of %d parts", rows, len(parts))
    return rows


def spread_parts(
    site: Site,
    contract: Contract,
    validation: Validation,
    version: Version,
    bundle: Path,
    params: ScoreParams,
    workers: Workers,
) -> None:
    """Score what is left of a batch in tasks that `workers` share. Raises what the parts end with, once.

    One part alone is left to `score`, unless workers elsewhere are there for it.
    """
    unscored = plan_parts(site, contract, validation, version, bundle, params)
    shares = share_out(unscored.parts, MOST_TASKS)
    if len(shares) == 1 and workers.scheduler is None:
        return
    rows = [sum(part.rows for _, part in share) for share in shares]
    total, tell = unscored.rows_done + sum(rows), progress_of(f"score {validation.batch_date}")
    pieces = [{"job": unscored.job, "parts": share} for share in shares]
    workers.run(score_parts, pieces, lambda done: tell(unscored.rows_done + sum(rows[: done + 1]), total))


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
