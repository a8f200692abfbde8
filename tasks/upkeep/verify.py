"""Check a published night against everything it was made from: landing, the lake's parts, the table and the version.

Nothing is taken on trust: bytes are hashed again, rows are counted again, and a sample of scores is computed again
directly from landing, without the parts in between.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from models.calibration import Floats
from models.detector import Detector
from tasks.errors import NightjarError
from tasks.rows.contract import Contract
from tasks.rows.derive import History, add_columns
from tasks.rows.duplicates import find_replaced
from tasks.rows.history import EnrichParams
from tasks.rows.judge import find_thresholds, judge
from tasks.rows.limits import LIMIT, name_limit, read_scores
from tasks.rows.params import RetentionParams
from tasks.rows.schema import type_rows
from tasks.stores.lake import Manifest
from tasks.stores.site import Site
from tasks.stores.tables import SECOND_STAGE, PublishedNight, case_flags, cases

Result = Literal["ok", "failed", "stale"]
# Largest difference between processors, relative to the score or, if larger, to the threshold: float32 is less exact
# for rows that are rebuilt almost perfectly, and those are never flagged.
TOLERANCE = 1e-5
NO_LANDING = "the landing partition is missing"
NAMED = 3  # problems or ids listed in a detail


@dataclass(frozen=True)
class Check:
    """The result of one check of one night. stale: not possible, because the night's input was changed or pruned."""

    batch_date: date
    check: str
    result: Result
    detail: str


@dataclass(frozen=True)
class Finding:
    """What a check found: its problems, or what it has checked; `stale` says why it was not possible."""

    problems: list[str]
    seen: str
    stale: str = ""


@dataclass(frozen=True)
class CheckedNight:
    """A published night with its partitions, read once. sample: how many scores to compute again, chosen by seed.

    past: zones in which this night's partition is past retention, so that it may be pruned.
    """

    site: Site
    contract: Contract
    batch: PublishedNight
    sample: int
    seed: int
    past: frozenset[str] = frozenset()
    enrich: EnrichParams | None = None

    @cached_property
    def partitions(self) -> dict[str, Manifest | None]:
        """The night's partitions by zone."""
        find, key = self.site.lake.find, (self.site.detector, self.batch.batch_date)
        found = {"landing": find("landing", *key), "validated": find("validated", *key)}
        return found | {"quarantine": find("quarantine", *key), "scores": find("scores", *key, self.batch.scores)}

    def is_pruned(self, zone: str) -> bool:
        """Whether a zone's partition is missing because it was pruned."""
        return self.partitions[zone] is None and zone in self.past

    @cached_property
    def has_same_input(self) -> bool:
        """Whether the night would be made from the same input now."""
        return self.site.hash_input(self.batch.batch_date) == self.batch.input_hash

    @cached_property
    def flags(self) -> pd.DataFrame:
        """The night's rows of flagged_anomalies."""
        engine = self.site.warehouse
        return engine.read_flags(self.site.detector, self.batch.batch_date)

    @cached_property
    def above(self) -> pd.DataFrame:
        """Rows of the scores zone above the recorded threshold, see `query_scores`."""
        return self.query_scores("where score > threshold")

    def query_scores(self, clause: str) -> pd.DataFrame:
        """Rows of the scores zone: record_id, score, percentile_rank and threshold."""
        scores, numbers = self.partitions["scores"], ("score", "percentile_rank", LIMIT)
        if scores is None or not scores.parts:
            return pd.DataFrame({"record_id": pd.Series(dtype="str"), **{name: [] for name in numbers}})
        limit = name_limit(self.site.lake, scores.parts, self.batch.threshold)
        rows = f"select record_id, score, percentile_rank, {limit} as {LIMIT} from parts"  # noqa: S608 - numbers only
        frame: pd.DataFrame = self.site.lake.query(f"from ({rows}) {clause}", scores.parts).to_pandas()
        return frame


def verify_nights(
    site: Site,
    contract: Contract,
    retention: RetentionParams,
    day: date | None,
    sample: int,
    seed: int,
    now: datetime,
    enrich: EnrichParams | None = None,
) -> list[Check]:
    """The checks of all published nights, or of one; sample: scores per night to compute again. Raises BatchMissing."""
    chosen = site.warehouse.get_nights(site.detector, day)
    today = now.astimezone(site.zone).date()
    nights = [
        CheckedNight(site, contract, batch, sample, seed, retention.find_past(batch.batch_date, today), enrich)
        for batch in chosen
    ]
    return [check for night in nights for check in verify_night(night)]


def verify_night(night: CheckedNight) -> list[Check]:
    """Run every check of a published night; one that fails does not stop the others."""
    checks: dict[str, Callable[[CheckedNight], Finding]] = {
        "input": check_input,
        "files": check_files,
        "counts": check_counts,
        "flags": check_flags,
        "scores": check_scores,
        "cases": check_cases,
    }
    return [_make(night, name, check) for name, check in checks.items()]


def _make(night: CheckedNight, name: str, check: Callable[[CheckedNight], Finding]) -> Check:
    try:
        found = check(night)
    except NightjarError as error:
        found = Finding([" ".join(str(error).split())], "")
    more = f" and {len(found.problems) - NAMED} more" if len(found.problems) > NAMED else ""
    result: Result = "failed" if found.problems else "stale" if found.stale else "ok"
    detail = "; ".join(found.problems[:NAMED]) + more or found.stale or found.seen
    return Check(night.batch.batch_date, name, result, detail)


def check_input(night: CheckedNight) -> Finding:
    """Landing, and the rows validated from it, are those that were scored."""
    landing, scores = night.partitions["landing"], night.partitions["scores"]
    wanted = night.batch.input_hash
    if landing is None:
        return Finding([], "", "landing was pruned") if night.is_pruned("landing") else Finding([NO_LANDING], "")
    if scores and scores.facts["input_hash"] != wanted:
        return Finding([f"the scores are from input {scores.facts['input_hash'][:12]}, recorded {wanted[:12]}"], "")
    stale = describe_later(night) if night.has_same_input else "its input has changed since"
    return Finding([], f"input hash {wanted[:12]}", stale)


def describe_later(night: CheckedNight) -> str:
    """Why the validated rows are no longer those that were scored; empty if they are."""
    validated, scores = night.partitions["validated"], night.partitions["scores"]
    if validated is None or validated.input_hash != night.batch.input_hash:
        return "the validated input has changed since"
    scored = scores.facts.get("validated", validated.hash) if scores else validated.hash
    return "" if scored == validated.hash else "the batch was validated again since"


def check_files(night: CheckedNight) -> Finding:
    """Every part has the hash recorded in its manifest."""
    problems, parts = [], 0
    for zone, manifest in night.partitions.items():
        if manifest is None and not night.is_pruned(zone):
            problems.append(f"the {zone} partition is missing")
        for part in manifest.parts if manifest else ():
            parts += 1
            found = night.site.lake.hash_file(part.path)
            if found != part.sha256:
                problem = f"sha256 {found[:12]}, recorded {part.sha256[:12]}" if found else "missing"
                problems.append(f"{part.path}: {problem}")
    pruned = ", ".join(zone for zone in night.partitions if night.is_pruned(zone))
    return Finding(problems, f"{parts} parts have the recorded sha256" + (f"; pruned: {pruned}" if pruned else ""))


def check_counts(night: CheckedNight) -> Finding:
    """The table's counts add up, and match the partitions that still belong to the night."""
    batch, rows = night.batch, {zone: m.rows for zone, m in night.partitions.items() if m}
    expected: dict[str, tuple[int, int | None]] = {
        "rows in": (batch.rows_in, batch.scored + batch.quarantined + batch.excluded),
        "published": (batch.published, len(night.flags)),
    }
    if not night.is_pruned("scores"):
        expected |= {"scored": (batch.scored, rows.get("scores")), "flagged": (batch.flagged, len(night.above))}
    landing = night.partitions["landing"]
    if landing and night.has_same_input:
        expected["landed"] = (batch.rows_in, rows["landing"])
        if not describe_later(night):
            expected["validated"] = (batch.scored, rows["validated"])
            if not night.is_pruned("quarantine"):
                expected["quarantined"] = (batch.quarantined, rows.get("quarantine"))
    problems = [
        f"{name}: {stored} in the table, {found} found" for name, (stored, found) in expected.items() if stored != found
    ]
    if problems and not night.has_same_input:
        return Finding([], "", f"its input has changed since, or was pruned; {'; '.join(problems)}")
    return Finding(problems, f"{batch.rows_in} rows in, {batch.scored} scored, {batch.flagged} flagged")


def check_flags(night: CheckedNight) -> Finding:
    """The table's flags are the rows above the threshold, with their scores; a cap leaves out only the lowest."""
    if night.is_pruned("scores"):
        return Finding([], "", "the scores were pruned")
    batch, flags = night.batch, night.flags.set_index("record_id")
    above = night.above.drop_duplicates("record_id").set_index("record_id")
    known = above.reindex(flags.index)
    wrong = {
        "twice in the table": pd.Series(flags.index.duplicated(), flags.index),
        "not above the threshold in the scores zone": known["score"].isna(),
        "with a score that differs from the scores zone": known["score"].notna() & (known["score"] != flags["score"]),
        "with a rank that differs from the scores zone": known["score"].notna()
        & (known["percentile_rank"].astype("float32") != flags["percentile_rank"].astype("float32")),
        "from another model version": flags["model_version"] != batch.model_version,
        "with another threshold": flags["threshold"] != known["threshold"].fillna(batch.threshold),
        "from another attempt": flags["attempt"] != batch.attempt,
    }
    problems = [f"{_name(flags.index[mask])} {what}" for what, mask in wrong.items() if mask.any()]
    left_out = above[~above.index.isin(flags.index)]
    lowest = [group["score"].min() for _, group in flags.groupby(find_second_stage(flags))]
    missing = left_out[left_out["score"] > max(lowest, default=-math.inf)]
    if len(missing):
        problems.append(f"{_name(missing.index)} above the threshold but not in the table")
    capped = f", {len(left_out)} left out by the cap" if len(left_out) else ""
    return Finding(problems, f"{len(flags)} flags, their scores as in the scores zone{capped}")


def check_scores(night: CheckedNight) -> Finding:
    """Flags and a sample of all rows get the same score when computed from landing, and the same rank and p-value."""
    landing = night.partitions["landing"]
    if landing is None:
        return check_input(night)
    if not night.has_same_input or night.is_pruned("scores"):
        return Finding([], "", "its input has changed since, or the scores were pruned")
    version = night.site.registry.get_version(night.batch.model_version)
    if not version.has_learnt(night.enrich.definitions if night.enrich else {}):
        return Finding([], "", "history columns have changed since")
    detector = Detector.load(night.site.registry.fetch_bundle(version))
    chosen = sample_rows(night)
    # Another processor may score a flag just below the threshold; its second stage is compared all the same.
    rows = read_landed(night, landing, chosen["record_id"])
    scores = night.partitions["scores"]
    threshold = detector.threshold.value
    if detector.discovery_rate is not None and scores:
        threshold, _ = detector.find_threshold(read_scores(night.site.lake, scores.parts))
    limits = find_thresholds(detector, rows) if detector.segments else np.full(rows.num_rows, threshold)
    again = judge_again(detector, rows, limits - TOLERANCE * np.abs(limits)).assign(limit=limits)
    lost = chosen.index.difference(again.index)
    problems = [f"{_name(lost)} not in landing"] if len(lost) else []
    if threshold != night.batch.threshold:
        problems.append(f"the threshold is {threshold!r}, recorded {night.batch.threshold!r}")
    chosen, flags = chosen.loc[again.index], night.flags.set_index("record_id")
    least = max(detector.threshold.value, np.finfo(float).tiny)
    difference = (again["score"] - chosen["score"]).abs() / again["score"].abs().clip(lower=least)
    ranks = pd.Series(detector.rank(chosen["score"].to_numpy()).astype("float32"), chosen.index)
    wrong = {"score": ~(difference <= TOLERANCE), "rank": ranks != chosen["percentile_rank"]}
    if detector.segments:
        wrong["threshold"] = again["limit"] != chosen["threshold"]
    wrong |= compare_flags(detector, flags.loc[flags.index.intersection(again.index)], again)
    problems += [f"{_name(mask.index[mask])}: different {what}" for what, mask in wrong.items() if mask.any()]
    largest = f"{difference.max():.2g}" if len(difference) else "none"
    if problems and night.enrich and any(column.is_reports for column in night.enrich.history.values()):
        return Finding([], "", f"reports may have arrived since: {'; '.join(problems)}")
    seen = f"{len(again)} rows from landing by version {version.version}, largest relative difference {largest}"
    return Finding(problems, seen)


def check_cases(night: CheckedNight) -> Finding:
    """Each alert is in a case, and no case has a record of this night that is not flagged."""
    opened = sa.select(sa.func.min(cases.c.opened_at)).where(cases.c.detector == night.site.detector)
    members = case_flags.c.detector == night.site.detector, case_flags.c.batch_date == night.batch.batch_date
    with night.site.warehouse.begin_reading() as connection:
        held = pd.Index(connection.scalars(sa.select(case_flags.c.record_id).where(*members)).all())
        first = connection.scalar(opened)
    is_alert = ~night.flags["suppressed"] & night.flags["suppressed_by"].isna()
    alerts = pd.Index(night.flags.loc[is_alert, "record_id"])
    if held.empty and len(alerts) and (first is None or night.batch.scored_at < first):
        return Finding([], "", "it was published before there were cases")
    wrong = {
        "in no case": alerts.difference(held),
        "in a case but not flagged": held.difference(night.flags["record_id"]),
    }
    problems = [f"{_name(ids)} {what}" for what, ids in wrong.items() if len(ids)]
    return Finding(problems, f"{len(alerts)} alerts in their cases")


def compare_flags(detector: Detector, flags: pd.DataFrame, again: pd.DataFrame) -> dict[str, "pd.Series[bool]"]:
    """Which flags (by record_id) differ from the detector's p-value or second stage."""
    again = again.loc[flags.index]
    p_values = pd.Series(detector.p_value(flags["score"].to_numpy()), flags.index)
    stored, found = flags["second_stage_probability"].astype(float), again["second_stage_probability"]
    is_other = (stored.isna() != found.isna()) | ((stored - found).abs() > TOLERANCE)
    return {
        "p-value": p_values != flags["p_value"],
        "second stage": is_other | (again["is_suppressed"] != find_second_stage(flags)),
    }


def find_second_stage(flags: pd.DataFrame) -> "pd.Series[bool]":
    """Which flags the second stage suppresses; nights before schema 0009 do not name it."""
    return flags["suppressed"] & flags["suppressed_by"].fillna(SECOND_STAGE).eq(SECOND_STAGE)


def sample_rows(night: CheckedNight) -> pd.DataFrame:
    """The rows to compute again, by record_id: the flags, then a sample of all rows, `night.sample` in total."""
    flagged = night.above[night.above["record_id"].isin(night.flags["record_id"])].head(night.sample)
    drawn = night.query_scores(f"order by hash(record_id, {night.seed:d}) limit {night.sample:d}")
    chosen = pd.concat([flagged, drawn], ignore_index=True).drop_duplicates("record_id").head(night.sample)
    return chosen.set_index("record_id", drop=False).rename_axis(None)


def read_landed(night: CheckedNight, landing: Manifest, ids: pd.Series) -> pa.Table:
    """The landed rows of some records in the contract's types, one per record, without rows that a replay replaced.

    Their history columns are computed again, from the validated rows before them.
    """
    lake, wanted, replaced = night.site.lake, pa.array(ids, pa.string()), find_replaced(night.site.lake, landing)
    found = [night.contract.schema.empty_table()]
    for part in landing.parts:
        gone = pa.array(replaced.get(part.sha256, ()), pa.string())
        for piece in lake.slices(part):
            record = piece["record_id"]
            counts = pc.and_(pc.is_in(record, wanted), pc.invert(pc.is_in(record, gone)))
            found.append(type_rows(piece.filter(counts), night.contract))
    rows = pa.concat_tables(found)
    rows = rows.filter(pa.array(~rows["record_id"].to_pandas().duplicated()))
    return add_columns(rows, History(night.site, night.enrich).derive(rows)) if night.enrich else rows


def judge_again(detector: Detector, rows: pa.Table, threshold: float | Floats) -> pd.DataFrame:
    """Judge the rows (N,) again with a given threshold or thresholds (N,), by record_id; see `Judgement.arrays`."""
    return pd.DataFrame(judge(detector, rows, threshold).arrays(), pd.Index(rows["record_id"].to_pylist(), dtype="str"))


def _name(ids: pd.Index) -> str:
    return ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
