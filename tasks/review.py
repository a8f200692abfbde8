"""Select records of a published night for review, and store the verdicts.

A night's questions are its alerts, and small seeded random samples of its suppressed flags and of its rows below the
threshold, which show what both stages miss. One row per record: QUESTIONS; `inclusion` is the probability with which
such a record is selected. Verdicts are VERDICTS, `withdrawn` for one that was wrong, each with an optional note. Out:
rows of `reviews`, and what follows for the cases of the records.
"""

from collections.abc import Sequence
from datetime import date, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from tasks.errors import SourceInvalid
from tasks.follow_up.cases import ANOMALY, MEANING, NORMAL, follow_verdicts
from tasks.rows.escaping import unguard
from tasks.rows.limits import LIMIT, has_limits
from tasks.rows.params import IngestParams
from tasks.rows.record import RecordRule
from tasks.rows.sampling import draw_order
from tasks.rows.worst import WorstRows
from tasks.sources.dialect import find_encoding
from tasks.stores.bulk import load_rows
from tasks.stores.lake import Lake, Manifest
from tasks.stores.site import Site
from tasks.stores.tables import samples
from tasks.stores.warehouse import WITHDRAWN, lock_cases

QUESTIONS = ["batch_date", "attempt", "record_id", "score", "inclusion", "causes", "verdict", "note"]
RECORD = ["batch_date", "record_id"]
HEAD_BYTES = 100_000  # of a file, which show its encoding
VERDICTS = (ANOMALY, NORMAL, *MEANING, WITHDRAWN)


def ask_about(site: Site, day: date, sample: int) -> pd.DataFrame:
    """The questions of a published night, reproducible: QUESTIONS, alerts first. Raises BatchMissing."""
    [batch] = site.warehouse.get_nights(site.detector, day)
    flags = site.warehouse.read_flags(site.detector, day)
    alerts, suppressed = flags[~flags["suppressed"]], flags[flags["suppressed"]]
    some = suppressed.iloc[np.argsort(draw_order(suppressed["record_id"].tolist(), day.toordinal()))[:sample]]
    below, rows_below = sample_below(
        site.lake, site.lake.get("scores", site.detector, day, batch.scores), batch.threshold, sample
    )
    questions = [
        group.assign(inclusion=len(group) / total)
        for group, total in ((alerts, len(alerts)), (some, len(suppressed)), (below, rows_below))
        if len(group)
    ]
    if not questions:
        return pd.DataFrame(columns=QUESTIONS)
    night: dict[str, Any] = {"batch_date": day, "attempt": batch.attempt, "verdict": "", "note": ""}
    return pd.concat(questions, ignore_index=True).assign(**night)[QUESTIONS]


def ask_about_all(site: Site, days: Sequence[date], sample: int) -> pd.DataFrame:
    """The questions of several published nights. Raises BatchMissing."""
    return pd.concat([ask_about(site, day, sample) for day in days], ignore_index=True)


def draw_sample(site: Site, rule: RecordRule, day: date, most: int, now: datetime) -> int:
    """Draw records of a published night to be judged blind, and keep them in `samples`; returns how many there are.

    Up to `most` flags and as many rows below the threshold, each with its inclusion. A night keeps its first sample:
    drawing again draws nothing. Raises BatchMissing.
    """
    [batch] = site.warehouse.get_nights(site.detector, day)
    flags = site.warehouse.read_flags(site.detector, day)
    some = flags.iloc[np.argsort(draw_order(flags["record_id"].tolist(), day.toordinal()))[:most]]
    scores = site.lake.get("scores", site.detector, day, batch.scores)
    below, rows_below = sample_below(site.lake, scores, batch.threshold, most)
    parts = [
        group[["record_id"]].assign(inclusion=len(group) / total, batch_date=day, attempt=batch.attempt)
        for group, total in ((some, len(flags)), (below, rows_below))
        if len(group)
    ]
    drawn = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if drawn.empty:
        return 0
    found = _read_validated(site, rule, day, drawn["record_id"].tolist())
    rows = drawn.merge(found, on="record_id").assign(detector=site.detector, drawn_at=pd.Timestamp(now))
    own = (samples.c.detector == site.detector, samples.c.batch_date == day)
    with site.warehouse.begin() as connection:
        lock_cases(connection, site.detector)
        [known] = connection.scalars(sa.select(sa.func.count()).select_from(samples).where(*own)).all()
        if not known:
            load_rows(connection, samples, rows)
    return known or len(rows)


def _read_validated(site: Site, rule: RecordRule, day: date, record_ids: list[str]) -> pd.DataFrame:
    """The event time and what is published of some rows of a batch: record_id, event_time, entity, record."""
    wanted = pa.array(record_ids, pa.string())
    found: list[pd.DataFrame] = []
    columns = ["record_id", "event_time", *(name for name in rule.columns if name not in ("record_id", "event_time"))]
    for part in site.lake.get("validated", site.detector, day).parts:
        for table in site.lake.slices(part, columns):
            rows = table.filter(pc.is_in(table["record_id"], wanted))
            if rows.num_rows:
                known = rows.select(["record_id", "event_time"]).to_pandas()
                found.append(pd.concat([known, rule.describe(rows)], axis=1))
    return pd.concat(found, ignore_index=True)


def sample_below(lake: Lake, scores: Manifest, threshold: float, most: int) -> tuple[pd.DataFrame, int]:
    """Sample up to `most` records at or below the threshold; returns record_id, score, causes, and the number of rows.

    A record's position in the order depends only on its id and the date, so slices do not matter.
    """
    drawn, total, has_own = WorstRows(most), 0, has_limits(lake, scores.parts)
    for part in scores.parts:
        for table in lake.slices(part, ["record_id", "score", *([LIMIT] if has_own else [])]):
            below = table.filter(pc.less_equal(table["score"], table[LIMIT] if has_own else threshold))
            drawn.add(below, -draw_order(below["record_id"].to_pylist(), scores.batch_date.toordinal()))
            total += below.num_rows
    rows, *_ = drawn.take()
    kept = ["record_id", "score"]
    frame = rows.select(kept).to_pandas() if rows is not None else pd.DataFrame({name: [] for name in kept})
    return frame.assign(causes=""), total


def judge_by_labels(questions: pd.DataFrame, site: Site, params: IngestParams, now: datetime) -> pd.DataFrame:
    """Fill in verdicts from the labels known by `now`; once the night has matured, no label means normal.

    Raises SourceInvalid if the detector has no labels.
    """
    if not params.has_labels:
        raise SourceInvalid(
            f"{site.detector} has no labels to use as verdicts.",
            where=f"detectors.{site.detector}.ingest.labels",
            todo=f"ask people for verdicts: nightjar review {site.detector} --date DATE > FILE, then --take FILE",
        )
    engine, today = site.warehouse, now.astimezone(site.zone).date()
    labels = engine.read_labels(site.detector, now, questions["record_id"]).set_index("record_id")["label"]
    label = questions["record_id"].map(labels)
    label = label.mask(label.isna() & questions["batch_date"].map(lambda day: site.has_matured(day, today)), 0)
    return questions.assign(verdict=label.map({1: ANOMALY, 0: NORMAL}).fillna(""))


def read_answers(source: Path | bytes) -> pd.DataFrame:
    """Read a file of questions with verdicts, or its bytes; rows without a verdict are skipped.

    Notes and attempts may be absent, and columns in any order. What a spreadsheet makes of the file is
    read too: semicolons or tabs, a byte-order mark, decimal commas, dates as 20.11.2026. Raises SourceInvalid.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        text = data.decode(find_encoding(data[:HEAD_BYTES])).removeprefix("\ufeff")
        header = text.partition("\n")[0]
        mark = max(",;\t", key=header.count)
        frame = pd.read_csv(StringIO(text), sep=mark, dtype=str, keep_default_na=False).map(unguard)
        frame = frame.rename(columns=lambda name: str(name).strip().lower())
        if frame.columns.has_duplicates:
            raise ValueError(f"two columns {', '.join(sorted({*frame.columns[frame.columns.duplicated()]}))}")
        missing = {"batch_date", "record_id", "inclusion", "verdict"} - set(frame.columns)
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        answers = frame[frame["verdict"].str.strip() != ""].reset_index(drop=True)
        answers["verdict"] = answers["verdict"].str.strip().str.lower().str.replace(" ", "_")
        answers["batch_date"] = answers["batch_date"].str.strip().map(_read_date)
        answers["inclusion"] = answers["inclusion"].str.replace(",", ".").astype(float)
        answers["note"] = answers["note"].str.strip() if "note" in answers else ""
        attempts = answers["attempt"].str.strip() if "attempt" in answers else pd.Series("", answers.index)
        answers["attempt"] = [int(attempt) if attempt else None for attempt in attempts]
        unknown = set(answers["verdict"]) - set(VERDICTS)
        if unknown:
            raise ValueError(f"verdicts {', '.join(sorted(unknown))}")
        if not answers["inclusion"].between(0, 1, inclusive="right").all():
            raise ValueError("an inclusion outside 0 to 1")
        if answers.duplicated(["batch_date", "record_id"]).any():
            raise ValueError("two verdicts for one record")
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            "The file of verdicts is invalid; none of it was stored.",
            where=str(source) if isinstance(source, Path) else "",
            got=str(error),
            expected=f"the file that nightjar review wrote, with each verdict {', '.join(VERDICTS)} or empty",
            todo="correct the file and use --take again",
        ) from error
    return answers


def _read_date(text: str) -> date:
    """A date as ISO 8601 writes it, or as 20.11.2026."""
    parts = text.split(".")
    return date(*map(int, reversed(parts))) if len(parts) == 3 else date.fromisoformat(text)


def check_records(site: Site, answers: pd.DataFrame) -> None:
    """Raise SourceInvalid if a verdict is about a record that no published night holds. Pruned nights are trusted.

    A verdict on an earlier attempt counts as long as the newest still holds the record.
    """
    nights = {night.batch_date: night for night in site.warehouse.read_nights(site.detector)}
    judged = answers.dropna(subset="attempt").set_index(RECORD)["attempt"]
    strange: list[str] = []
    for day in sorted(answers["batch_date"].unique()):
        asked = pa.array(answers.loc[answers["batch_date"] == day, "record_id"], pa.string())
        found: set[str] = set()
        if night := nights.get(day):
            scores = site.lake.find("scores", site.detector, day, night.scores)
            if scores is None:
                continue
            for part in scores.parts:
                for table in site.lake.slices(part, ["record_id"]):
                    found.update(table["record_id"].filter(pc.is_in(table["record_id"], asked)).to_pylist())
        for record in asked.to_pylist():
            given, published = judged.get((day, record)), night.attempt if night else 0
            newer = given is not None and published > 0 and given > published
            if record not in found or newer:
                differs = f" of attempt {given:.0f}; published is {published}" if given not in (None, published) else ""
                strange.append(f"{day} {record or 'without an id'}{differs if night else ''}")
    if strange:
        raise SourceInvalid(
            "Some verdicts are about records that no published night holds; none was stored.",
            where=f"reviews of {site.detector}",
            got="; ".join(strange[:5]) + (f" and {len(strange) - 5:,} more" if len(strange) > 5 else ""),
            expected="the batch_date and record_id that nightjar review wrote",
            todo="correct these lines, or take them out, and use --take again",
        )


def keep_verdicts(site: Site, answers: pd.DataFrame, reviewer: str, now: datetime) -> int:
    """Add verdicts to the warehouse; returns how many are new or changed. Raises SourceInvalid.

    The same verdict of the same reviewer with the same note, or with none, is not new; nor is withdrawing what is not
    there. A changed verdict replaces the note too. A case whose every flag has a verdict now is closed.
    """
    check_records(site, answers)
    word = answers["verdict"]
    attempts = {night.batch_date: night.attempt for night in site.warehouse.read_nights(site.detector)}
    given = answers.loc[word != "", [*RECORD, "note", "inclusion"]].assign(
        verdict=word.map(MEANING).fillna(word),
        said=word.where(word.isin(MEANING), ""),
        attempt=answers["attempt"].fillna(answers["batch_date"].map(attempts)),
    )
    known = site.warehouse.read_reviews(site.detector, learnt=False)[[*RECORD, "reviewer", "verdict", "note", "said"]]
    before = given.merge(known, "left", RECORD, suffixes=("", "_before")).set_index(given.index)
    before = before.astype(object).fillna("")
    is_same = (before["reviewer"] == reviewer) & (before["verdict"] == before["verdict_before"])
    is_same &= (given["note"] == "") | (given["note"] == before["note_before"])
    is_same &= (given["said"] == "") | (given["said"] == before["said_before"])
    is_same |= (given["verdict"] == WITHDRAWN) & (before["verdict_before"] == "")
    new = given[~is_same].assign(reviewer=reviewer, reviewed_at=pd.Timestamp(now))
    words = dict(zip(zip(new["batch_date"], new["record_id"], strict=True), word[new.index], strict=True))
    return site.warehouse.add_reviews(
        site.detector,
        new.assign(note=new["note"].replace("", None), said=new["said"].replace("", None)),
        lambda connection: follow_verdicts(connection, site.detector, words, reviewer, now),
    )
