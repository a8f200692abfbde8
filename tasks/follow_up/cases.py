"""Cases: the alerts of one entity that are open together. An alert without an entity is a case of its own.

Publishing a night places its alerts, in its own transaction: an alert joins the open case of its entity, or opens one;
flagged again by a rerun, it stays in its case; no longer flagged, it leaves it. All else is done by people, and some by
rule. Events are append-only. A verdict on a case is one on each of its records, in `reviews`.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from tasks.rows.params import SEVERITIES, CasesParams
from tasks.stores.bulk import in_chunks, load_rows, read_frame
from tasks.stores.tables import Case, Night, case_events, case_flags, cases, flagged_anomalies, reviews
from tasks.stores.warehouse import UNRESOLVED, lock_cases, select_verdicts

BY_RULE = "nightjar"  # the actor of what no person did
LABELS = "labels"  # the reviewer whose verdicts are known labels: not a person either
ANOMALY, NORMAL = "anomaly", "normal"
# What is learnt from a verdict.
MEANING = {
    "confirmed": ANOMALY,
    "expected": NORMAL,
    "false_alarm": NORMAL,
    "new_trend": NORMAL,
    UNRESOLVED: UNRESOLVED,
}
OPEN, SNOOZED, CLOSED = "open", "snoozed", "closed"
STATES = (OPEN, SNOOZED, CLOSED)
WORTH = "worth"  # an event: what a person says of whether the case was worth a look
FLAG_KEY = ("detector", "batch_date", "record_id")
FLAGS_OF_CASES = sa.join(
    case_flags, flagged_anomalies, sa.and_(*(case_flags.c[name] == flagged_anomalies.c[name] for name in FLAG_KEY))
)
BY_SEVERITY = sa.case({name: level for level, name in enumerate(SEVERITIES)}, value=cases.c.severity)  # 0: the least
AWAKE: dict[str, Any] = {"state": OPEN, "snoozed_until": None}
UNLOCKED: dict[str, Any] = {"locked_by": None, "locked_until": None}
Key = tuple[Any, ...]


@dataclass
class Log:
    """Events to add in one transaction, in order."""

    detector: str
    now: datetime
    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: int, kind: str, actor: str = BY_RULE, note: str | None = None, **details: Any) -> None:
        """Note an event; details without a value are left out."""
        given = {name: value for name, value in details.items() if value is not None}
        text = json.dumps(given, default=str) if given else None
        self.events.append({"case_id": case, "kind": kind, "actor": actor, "note": note, "details": text})

    def write(self, connection: sa.Connection) -> None:
        """Append the events to case_events. The caller has the detector's cases locked."""
        if not self.events:
            return
        first = _next(connection, case_events.c.number, self.detector)
        numbers = range(first, first + len(self.events))
        frame = pd.DataFrame(self.events).assign(
            detector=self.detector, number=numbers, happened_at=pd.Timestamp(self.now)
        )
        load_rows(connection, case_events, frame)


def place_alerts(connection: sa.Connection, night: Night, params: CasesParams, now: datetime) -> None:
    """Bring the cases up to date with a night's alerts, which are in flagged_anomalies.

    Once that is done, doing it again changes nothing.
    """
    lock_cases(connection, night.detector)
    alerts, held, known = _read_alerts(connection, night), _read_held(connection, night), _read_known(connection, night)
    log = Log(night.detector, now)
    before = {record: case for record, (case, _) in held.items()}
    placed = _find_cases(alerts, before, known, night.batch_date)
    opened = _open_cases(connection, night, alerts, placed, known, params, log)
    if held != {record: (case, night.attempt) for record, case in placed.items()}:
        _replace_members(connection, night, placed)
    moved = {record: case for record, case in placed.items() if before.get(record) != case}
    left = Counter(case for record, case in before.items() if placed.get(record) != case)
    joined = Counter(case for case in moved.values() if case not in opened)
    for kind, changed in (("left", left), ("joined", joined)):
        for case, flags in sorted(changed.items()):
            log.add(case, kind, batch_date=night.batch_date, attempt=night.attempt, flags=flags)
    raise_severity(connection, [known[case] for case in sorted({*placed.values()} - opened)], params, log)
    judged = _read_judged(connection, night)
    close_settled(connection, {*left, *(case for record, case in moved.items() if record in judged)}, log)
    log.write(connection)


def _alerts_of(night: Night) -> tuple[sa.ColumnElement[bool], ...]:
    flags = flagged_anomalies.c
    return (
        flags.detector == night.detector,
        flags.batch_date == night.batch_date,
        ~flags.suppressed,
        flags.suppressed_by.is_(None),
    )


def _read_alerts(connection: sa.Connection, night: Night) -> dict[str, Any]:
    """The night's alerts by record, worst first. As the table has them: it holds no NUL, as a frame may."""
    flags = flagged_anomalies.c
    found = sa.select(flags.record_id, flags.entity, flags.percentile_rank).where(*_alerts_of(night))
    return {row.record_id: row for row in connection.execute(found.order_by(flags.score.desc(), flags.record_id))}


def _read_held(connection: sa.Connection, night: Night) -> dict[str, tuple[int, int]]:
    """The case, and the attempt that flagged it, of each record of the batch that is in a case."""
    found = sa.select(case_flags.c.record_id, case_flags.c.case_id, case_flags.c.attempt).where(*_members_of(night))
    return {row.record_id: (row.case_id, row.attempt) for row in connection.execute(found)}


def _read_judged(connection: sa.Connection, night: Night) -> set[str]:
    """The records of the batch that were ever judged."""
    of_batch = (reviews.c.detector == night.detector, reviews.c.batch_date == night.batch_date)
    return set(connection.scalars(sa.select(reviews.c.record_id).where(*of_batch)).all())


def _members_of(night: Night) -> tuple[sa.ColumnElement[bool], ...]:
    return case_flags.c.detector == night.detector, case_flags.c.batch_date == night.batch_date


def _read_known(connection: sa.Connection, night: Night) -> dict[int, Case]:
    """The cases that may concern the night: of its entities and records, those that hold its flags, and merged ones."""
    c = cases.c
    merged = sa.select(c.merged_into).where(c.detector == night.detector, c.merged_into.is_not(None))
    concerned = sa.or_(
        c.entity.in_(sa.select(flagged_anomalies.c.entity).where(*_alerts_of(night))),
        c.batch_date == night.batch_date,
        c.case_id.in_(sa.select(case_flags.c.case_id).where(*_members_of(night))),
        c.merged_into.is_not(None),
        c.case_id.in_(merged),
    )
    return {case.case_id: case for case in read_cases(connection, c.detector == night.detector, concerned)}


def read_cases(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> list[Case]:
    """The cases that meet all conditions, by number."""
    found = sa.select(cases).where(*which).order_by(cases.c.case_id)
    return [Case(**row) for row in connection.execute(found).mappings().all()]


def _next(connection: sa.Connection, column: sa.Column[Any], detector: str) -> int:
    """One more than the highest number of a detector."""
    [newest] = connection.scalars(sa.select(sa.func.max(column)).where(column.table.c.detector == detector)).all()
    return (newest or 0) + 1


def _find_cases(
    alerts: Mapping[str, Any], held: Mapping[str, int], known: Mapping[int, Case], batch_date: date
) -> dict[str, int]:
    """The case of each alert that has one: that which holds it, unless its entity changed, or the open one of its key.

    A case also has the keys of those that were merged into it.
    """
    keys: dict[int, set[Key]] = {}
    open_of: dict[Key, int] = {}
    for case in sorted(known.values(), key=lambda one: one.merged_into is not None):  # a key's own case comes first
        root = _root(case, known)
        keys.setdefault(root.case_id, set()).add(key_of(case))
        if root.is_open:
            open_of.setdefault(key_of(case), root.case_id)
    placed: dict[str, int] = {}
    for record, alert in alerts.items():
        key = _key_of_alert(alert, batch_date)
        holder = held.get(record)
        if holder is not None and key in keys[holder]:
            placed[record] = holder
        elif key in open_of:
            placed[record] = open_of[key]
    return placed


def key_of(case: Case) -> Key:
    """What all flags of a case share: its entity, or else the batch date and id of its one record."""
    return (case.entity,) if case.entity is not None else (case.batch_date, case.record_id)


def _key_of_alert(alert: Any, batch_date: date) -> Key:
    return (alert.entity,) if alert.entity is not None else (batch_date, alert.record_id)


def _root(case: Case, known: Mapping[int, Case]) -> Case:
    """The case that has the flags of this one: itself, or that into which it was merged."""
    return case if case.merged_into is None else known[case.merged_into]


def _open_cases(
    connection: sa.Connection,
    night: Night,
    alerts: Mapping[str, Any],
    placed: dict[str, int],
    known: Mapping[int, Case],
    params: CasesParams,
    log: Log,
) -> set[int]:
    """Open a case for each key of the alerts that have none, the worst first, and place them; returns the numbers."""
    new: dict[Key, list[Any]] = {}
    for record, alert in alerts.items():
        if record not in placed:
            new.setdefault(_key_of_alert(alert, night.batch_date), []).append(alert)
    if not new:
        return set()
    first = _next(connection, cases.c.case_id, night.detector)
    former = {key_of(case): _root(case, known).case_id for case in known.values()}  # all are closed: see placed
    rows = []
    for number, (key, flags) in enumerate(new.items(), first):
        severity = params.find_severity(max(flag.percentile_rank for flag in flags), len(flags))
        of_record = {} if flags[0].entity is not None else {"batch_date": key[0], "record_id": key[1]}
        due = params.find_due(severity, log.now)
        rows.append({"case_id": number, "entity": flags[0].entity, "severity": severity, "due_at": due, **of_record})
        placed |= {flag.record_id: number for flag in flags}
        log.add(number, "opened", batch_date=night.batch_date, attempt=night.attempt, flags=len(flags),
                severity=severity, former=former.get(key))  # fmt: skip
    frame = pd.DataFrame(rows).assign(detector=night.detector, state=OPEN, opened_at=pd.Timestamp(log.now))
    load_rows(connection, cases, frame)
    return {row["case_id"] for row in rows}


def _replace_members(connection: sa.Connection, night: Night, placed: Mapping[str, int]) -> None:
    connection.execute(sa.delete(case_flags).where(*_members_of(night)))
    members = pd.DataFrame({"record_id": placed.keys(), "case_id": placed.values()}, dtype=object)
    named = members.assign(detector=night.detector, batch_date=night.batch_date, attempt=night.attempt)
    load_rows(connection, case_flags, named)


def raise_severity(connection: sa.Connection, some: Sequence[Case], params: CasesParams, log: Log) -> None:
    """Raise the severity of those that are open, and their due dates; a snoozed case opens. Severity never falls."""
    still = [case for case in some if case.is_open]
    worst = _read_worst(connection, log.detector, [case.case_id for case in still])
    for case in still:
        if case.case_id not in worst:
            continue  # none of its records is flagged any more
        severity = params.find_severity(*worst[case.case_id])
        if SEVERITIES.index(severity) <= SEVERITIES.index(case.severity):
            continue
        changes: dict[str, Any] = {
            "severity": severity,
            "due_at": min(case.due_at, params.find_due(severity, log.now)),
        }
        log.add(case.case_id, "raised", before=case.severity, severity=severity)
        if case.state == SNOOZED:
            changes |= AWAKE
            log.add(case.case_id, "reopened", reason="its severity rose")
        change(connection, case, changes)


def _read_worst(connection: sa.Connection, detector: str, numbers: Sequence[int]) -> dict[int, tuple[float, int]]:
    """The rank of the worst flag, and the number of flags, by case."""
    worst = (sa.func.max(flagged_anomalies.c.percentile_rank), sa.func.count())
    found: dict[int, tuple[float, int]] = {}
    for chunk in in_chunks(numbers):
        rows = (
            sa.select(case_flags.c.case_id, *worst).select_from(FLAGS_OF_CASES).where(*_of(case_flags, detector, chunk))
        )
        found |= {case: (rank, flags) for case, rank, flags in connection.execute(rows.group_by(case_flags.c.case_id))}
    return found


def close_settled(connection: sa.Connection, numbers: Collection[int], log: Log) -> None:
    """Close, by rule, the open ones of some cases: one whose every flag has a verdict, and one without any flag.

    A case without flags stays open if a person did something with it, and one that a person reopened until there is a
    newer verdict. The caller has the detector's cases locked.
    """
    said = select_verdicts(log.detector).subquery()
    verdict = sa.and_(*(case_flags.c[name] == said.c[name] for name in ("batch_date", "record_id")))
    flags = sa.select(case_flags.c.case_id, said.c.verdict, said.c.said, said.c.reviewed_at)
    flags = flags.select_from(sa.outerjoin(case_flags, said, verdict))
    reopened = sa.func.max(sa.case((case_events.c.kind == "reopened", case_events.c.happened_at)))
    acts = sa.select(case_events.c.case_id, reopened.label("reopened_at")).where(
        case_events.c.actor.not_in((BY_RULE, LABELS))
    )
    for chunk in in_chunks(sorted(numbers)):
        judged: dict[int, list[Any]] = {}
        for flag in connection.execute(flags.where(*_of(case_flags, log.detector, chunk))).all():
            judged.setdefault(flag.case_id, []).append(flag)
        of_chunk = acts.where(*_of(case_events, log.detector, chunk)).group_by(case_events.c.case_id)
        acted = {row.case_id: row.reopened_at for row in connection.execute(of_chunk).all()}
        for case in read_cases(connection, *_of(cases, log.detector, chunk), cases.c.closed_at.is_(None)):
            rows, since = judged.get(case.case_id, []), acted.get(case.case_id)
            words = [row.said or row.verdict for row in rows if row.verdict]
            if rows and len(words) == len(rows):
                if since is None or max(row.reviewed_at for row in rows) > since:
                    close(connection, case, log, BY_RULE, summarise(words), reason="every flag has a verdict")
            elif not rows and case.case_id not in acted:
                close(connection, case, log, BY_RULE, None, reason="no record of it is flagged any more")


def follow_verdicts(
    connection: sa.Connection, detector: str, words: Mapping[tuple[date, str], str], reviewer: str, now: datetime
) -> None:
    """Note in the history of cases that some of their flags were judged, and close those whose every flag is.

    words: the verdicts by batch date and record, as they were said; they are in `reviews` already.
    """
    log = Log(detector, now)
    days = sorted({day for day, _ in words})
    members = sa.select(case_flags.c.batch_date, case_flags.c.record_id, case_flags.c.case_id)
    of_days = (case_flags.c.detector == detector, case_flags.c.batch_date.in_(days))
    found = connection.execute(members.where(*of_days)).all()
    judged = Counter((case, words[day, record]) for day, record, case in found if (day, record) in words)
    for (case, word), flags in sorted(judged.items()):
        log.add(case, "verdict", reviewer, verdict=word, flags=flags)
    close_settled(connection, {case for case, _ in judged}, log)
    log.write(connection)


def summarise(words: Collection[str]) -> str:
    """The verdict on a case by those on its flags: confirmed if one is an anomaly, else the one that all have."""
    if {ANOMALY, "confirmed"} & set(words):
        return "confirmed"
    [word, *others] = sorted({"false_alarm" if word == NORMAL else word for word in words})
    return "false_alarm" if others else word


def close(
    connection: sa.Connection, case: Case, log: Log, actor: str, verdict: str | None, note: str | None = None,
    reason: str | None = None,
) -> None:  # fmt: skip
    """Close a case, with a verdict or without."""
    change(connection, case, closing(log.now, verdict))
    log.add(case.case_id, "closed", actor, note, verdict=verdict, reason=reason)


def closing(now: datetime, verdict: str | None) -> dict[str, Any]:
    """The columns of a case that closes."""
    return AWAKE | UNLOCKED | {"state": CLOSED, "closed_at": now, "verdict": verdict}


def _of(table: sa.Table, detector: str, numbers: Sequence[int]) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.detector == detector, table.c.case_id.in_(numbers)


def change(connection: sa.Connection, case: Case, values: Mapping[str, Any]) -> None:
    """Set columns of a case. The caller has the detector's cases locked."""
    of_case = (cases.c.detector == case.detector, cases.c.case_id == case.case_id)
    connection.execute(sa.update(cases).where(*of_case).values(**values))


def change_all(connection: sa.Connection, detector: str, numbers: Sequence[int], values: Mapping[str, Any]) -> None:
    """Set the same columns of several cases."""
    for chunk in in_chunks(numbers):
        connection.execute(sa.update(cases).where(*_of(cases, detector, chunk)).values(**values))


def read_members(connection: sa.Connection, detector: str, *which: sa.ColumnElement[bool]) -> pd.DataFrame:
    """The flags of the cases that meet all conditions: case_id and the columns of flagged_anomalies, worst first."""
    of_case = sa.and_(*(case_flags.c[name] == cases.c[name] for name in ("detector", "case_id")))
    joined = FLAGS_OF_CASES.join(cases, of_case)
    found = sa.select(case_flags.c.case_id, flagged_anomalies).select_from(joined)
    order = (flagged_anomalies.c.score.desc(), flagged_anomalies.c.batch_date, flagged_anomalies.c.record_id)
    return read_frame(connection, found.where(cases.c.detector == detector, *which).order_by(*order))


def read_numbers(connection: sa.Connection, detector: str, days: Collection[date]) -> pd.DataFrame:
    """The case of each record of these batch dates that is in one: batch_date, record_id, case_id."""
    found = sa.select(case_flags.c.batch_date, case_flags.c.record_id, case_flags.c.case_id)
    return read_frame(connection, found.where(case_flags.c.detector == detector, case_flags.c.batch_date.in_(days)))


def read_events(connection: sa.Connection, detector: str, number: int) -> list[dict[str, Any]]:
    """What happened to a case, in order: happened_at, kind, actor, note and details.

    was: what of the case a person's step has changed; None for other events.
    """
    c = case_events.c
    found = sa.select(c.happened_at, c.kind, c.actor, c.note, c.details).where(*_of(case_events, detector, [number]))
    rows = connection.execute(found.order_by(c.number)).mappings().all()
    events = [{**row, "details": json.loads(row["details"] or "{}")} for row in rows]
    return [event | {"was": event["details"].pop("was", None)} for event in events]
