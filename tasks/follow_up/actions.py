"""What people do with a case: take, judge, note, snooze, reopen, merge and close it, and undo that.

Each is one transaction.

All raise CaseMissing if the detector has no such case, and CaseRefused if its state does not allow it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import sqlalchemy as sa

from tasks.errors import CaseMissing, CaseRefused
from tasks.follow_up.cases import (
    AWAKE,
    CLOSED,
    MEANING,
    OPEN,
    SNOOZED,
    WORTH,
    Log,
    change,
    close,
    key_of,
    raise_severity,
    read_cases,
    read_events,
)
from tasks.rows.params import SEVERITIES, CasesParams
from tasks.stores.bulk import load_rows
from tasks.stores.tables import Case, case_flags, cases, reviews
from tasks.stores.warehouse import WITHDRAWN, Warehouse, lock_cases, select_verdicts

SILENT = ("note", WORTH)  # kinds of events that are no steps: they change nothing of the case
UNDOABLE = ("taken", "verdict", "closed", "snoozed", "reopened")


@dataclass(frozen=True)
class Desk:
    """Who acts on the cases of a detector, when, and by which params."""

    warehouse: Warehouse
    detector: str
    params: CasesParams
    actor: str
    now: datetime


@contextmanager
def _hold(desk: Desk, number: int) -> Iterator[tuple[sa.Connection, Case, Log]]:
    """A case, locked against nights and other people; what is logged is written at the end."""
    with desk.warehouse.begin() as connection:
        lock_cases(connection, desk.detector)
        log = Log(desk.detector, desk.now)
        yield connection, _get_case(connection, desk, number), log
        log.write(connection)


def _get_case(connection: sa.Connection, desk: Desk, number: int) -> Case:
    found = read_cases(connection, cases.c.detector == desk.detector, cases.c.case_id == number)
    if not found:
        raise CaseMissing(
            f"{desk.detector} has no case {number}; nothing was changed.",
            where=f"cases in {desk.warehouse.place}",
            todo=f"nightjar cases {desk.detector} --all lists all",
        )
    return found[0]


def take_case(desk: Desk, number: int, note: str | None = None, to: str | None = None) -> None:
    """Make the actor, or the person `to`, the one who works on the case."""
    with _hold(desk, number) as (connection, case, log):
        _check_open(case)
        assignee = to or desk.actor
        change(connection, case, {"assignee": assignee})
        log.add(number, "taken", desk.actor, note, before=case.assignee, to=to)


def lock_case(desk: Desk, number: int, minutes: float) -> Case:
    """Lock an open case for the actor, unless another person has it locked; returns it as it is then.

    A lock tells others that somebody reads the case; it keeps nobody from acting on it.
    """
    with _hold(desk, number) as (connection, case, _):
        if not case.is_open or is_locked(case, desk.actor, desk.now):
            return case
        change(connection, case, _lock(desk, minutes))
        return replace(case, **_lock(desk, minutes))


def lock_next(desk: Desk, minutes: float, after: Collection[int] = ()) -> Case | None:
    """Lock the next case for the actor: open, not snoozed, not locked by others, and the actor's own or nobody's.

    The most severe come first, then those due first. after: cases to leave out. None: all are done.
    """
    c = cases.c
    severity = sa.case({name: level for level, name in enumerate(SEVERITIES)}, value=c.severity)
    is_free = sa.or_(c.locked_until.is_(None), c.locked_until <= desk.now, c.locked_by == desk.actor)
    is_awake = sa.or_(c.state == OPEN, c.snoozed_until <= desk.now)
    found = sa.select(c.case_id).where(
        c.detector == desk.detector,
        c.closed_at.is_(None),
        is_awake,
        is_free,
        sa.or_(c.assignee.is_(None), c.assignee == desk.actor),
        c.case_id.not_in(list(after)),
    )
    with desk.warehouse.begin() as connection:
        lock_cases(connection, desk.detector)
        ordered = found.order_by(severity.desc(), c.due_at, c.case_id).limit(1)
        number = connection.scalar(ordered)
        if number is None:
            return None
        case = _get_case(connection, desk, number)
        change(connection, case, _lock(desk, minutes))
        return case


def _lock(desk: Desk, minutes: float) -> dict[str, Any]:
    return {"locked_by": desk.actor, "locked_until": desk.now + timedelta(minutes=minutes)}


def is_locked(case: Case, actor: str, now: datetime) -> bool:
    """Whether a person other than the actor has the case locked."""
    return case.locked_until is not None and case.locked_until > now and case.locked_by != actor


def judge_case(desk: Desk, number: int, verdict: str, note: str | None = None) -> int:
    """Give the verdict on every flag of the case and close it; returns their number. A closed case is judged anew."""
    with _hold(desk, number) as (connection, case, log):
        return _judge(connection, desk, case, log, verdict, note)


def judge_cases(desk: Desk, numbers: Collection[int], verdict: str, note: str | None = None) -> int:
    """Give the verdict on every flag of several cases and close them, or change nothing; returns the number of flags.

    Raises CaseMissing, and CaseRefused if one of them is closed already: somebody else was faster.
    """
    with desk.warehouse.begin() as connection:
        lock_cases(connection, desk.detector)
        return judge_all(connection, desk, numbers, verdict, note)


def judge_all(connection: sa.Connection, desk: Desk, numbers: Collection[int], verdict: str, note: str | None) -> int:
    """The same in a transaction that has the detector's cases locked."""
    log, flags = Log(desk.detector, desk.now), 0
    for number in sorted(set(numbers)):
        case = _get_case(connection, desk, number)
        _check_open(case)
        flags += _judge(connection, desk, case, log, verdict, note)
    log.write(connection)
    return flags


def _judge(connection: sa.Connection, desk: Desk, case: Case, log: Log, verdict: str, note: str | None) -> int:
    _check_not_merged(case)
    given = _read_records(connection, case)
    if len(given):
        said: dict[str, Any] = {"verdict": MEANING[verdict], "said": verdict, "note": note, "inclusion": 1.0}
        load_rows(connection, reviews, given.assign(**said, **_by(desk)))
    log.add(case.case_id, "verdict", desk.actor, note, verdict=verdict, flags=len(given), before=case.verdict)
    if case.is_open:
        close(connection, case, log, desk.actor, verdict)
    else:
        change(connection, case, {"verdict": verdict})
    return len(given)


def _read_records(connection: sa.Connection, case: Case) -> pd.DataFrame:
    """The records of a case: batch_date, record_id and attempt."""
    flags = sa.select(case_flags.c.batch_date, case_flags.c.record_id, case_flags.c.attempt)
    of_case = (case_flags.c.detector == case.detector, case_flags.c.case_id == case.case_id)
    return pd.DataFrame(connection.execute(flags.where(*of_case)).mappings().all())


def _by(desk: Desk) -> dict[str, Any]:
    return {"detector": desk.detector, "reviewer": desk.actor, "reviewed_at": pd.Timestamp(desk.now)}


def undo_case(desk: Desk, number: int) -> str:
    """Take back what the actor did last with the case; returns what it was, as the kind of its event.

    Verdicts that the case's records had before count again. Raises CaseRefused if somebody else, or a night, changed
    the case since, or if what was done cannot be undone.
    """
    with _hold(desk, number) as (connection, case, log):
        what = _find_last(read_events(connection, desk.detector, number), desk.actor)
        if what is None:
            raise _refused(case, "has no last step of yours that can be undone", "read its history")
        kind, before = what["kind"], what["details"].get("before")
        if kind in ("verdict", "closed") and before is None and (other := _find_open(connection, case)):
            raise _refused(
                case, f"cannot be reopened: case {other} is open for the same flags", f"merge it into {other}"
            )
        if kind == "verdict":
            _take_back_verdicts(connection, desk, case, what["happened_at"])
        changes: dict[str, Any] = {"taken": {"assignee": before}, "snoozed": AWAKE}.get(kind, {})
        if kind in ("verdict", "closed"):
            changes = {"verdict": before} if before else AWAKE | {"closed_at": None, "verdict": None}
        if kind == "reopened":
            changes = {"state": CLOSED, "closed_at": desk.now, "verdict": before}
        change(connection, case, changes)
        log.add(number, "undone", desk.actor, what=kind)
    return str(kind)


def _find_last(events: Sequence[dict[str, Any]], actor: str) -> dict[str, Any] | None:
    """The last step of a case, if it is the actor's and can be undone. Notes and opinions do not count."""
    steps = [one for one in events if one["kind"] not in SILENT]
    if len(steps) > 1 and steps[-1]["kind"] == "closed" and steps[-2]["kind"] == "verdict":
        steps = steps[:-1]  # a verdict closes its case
    last = steps[-1] if steps else None
    return last if last and last["kind"] in UNDOABLE and last["actor"] == actor else None


def _take_back_verdicts(connection: sa.Connection, desk: Desk, case: Case, since: datetime) -> None:
    """Let the verdicts count again that the records of a case had before an instant, or none."""
    given = _read_records(connection, case)
    if given.empty:
        return
    earlier = select_verdicts(desk.detector, since - timedelta(microseconds=1)).subquery()
    of_case = sa.and_(*(case_flags.c[name] == earlier.c[name] for name in ("batch_date", "record_id")))
    known = sa.select(earlier).join(case_flags, of_case)
    found = connection.execute(
        known.where(case_flags.c.detector == desk.detector, case_flags.c.case_id == case.case_id)
    ).mappings()
    was = {(row["batch_date"], row["record_id"]): row for row in found}
    none = {"verdict": WITHDRAWN, "said": None, "note": "undone", "inclusion": 1.0}
    rows = []
    for row in given.to_dict("records"):
        before = was.get((row["batch_date"], row["record_id"]))
        if before is None:
            rows.append(row | none)
        else:
            again = {name: before[name] for name in ("verdict", "said", "inclusion")}
            rows.append(row | again | {"note": f"as {before['reviewer']} said before"})
    load_rows(connection, reviews, pd.DataFrame(rows).assign(**_by(desk)))


def note_case(desk: Desk, number: int, note: str) -> None:
    """Add a note."""
    with _hold(desk, number) as (_, __, log):
        log.add(number, "note", desk.actor, note)


def rate_case(desk: Desk, number: int, is_worth: bool) -> None:
    """Say whether a case that has a verdict was worth a look; of each person, the newest answer counts."""
    with _hold(desk, number) as (_, case, log):
        _check_not_merged(case)
        if case.verdict is None:
            raise _refused(case, "has no verdict yet", "give one first")
        log.add(number, WORTH, desk.actor, worth=is_worth)


def snooze_case(desk: Desk, number: int, until: datetime, note: str | None = None) -> None:
    """Leave the case out of the open ones until an instant, or until its severity rises."""
    with _hold(desk, number) as (connection, case, log):
        _check_open(case)
        if until <= desk.now:
            raise CaseRefused(
                f"Case {number} cannot be snoozed until a time that has passed; nothing was changed.",
                got=f"{until:%Y-%m-%d %H:%M %Z}",
                expected="a date after today, in the detector's time zone",
            )
        change(connection, case, {"state": SNOOZED, "snoozed_until": until})
        log.add(number, "snoozed", desk.actor, note, until=until.isoformat())


def reopen_case(desk: Desk, number: int, note: str | None = None) -> None:
    """Open a closed or snoozed case again, due as if it were new."""
    with _hold(desk, number) as (connection, case, log):
        _check_not_merged(case)
        if case.state == OPEN:
            raise _refused(case, "is open already", "nothing, or --take it")
        if other := _find_open(connection, case):
            raise _refused(
                case,
                f"cannot be reopened: its flags would be in two open cases with those of case {other}",
                f"nightjar case {case.detector} {number} --merge {other}",
            )
        due = desk.params.find_due(case.severity, desk.now)
        change(connection, case, AWAKE | {"closed_at": None, "verdict": None, "due_at": due})
        log.add(number, "reopened", desk.actor, note, before=case.verdict)


def _find_open(connection: sa.Connection, case: Case) -> int | None:
    """Another open case of the same entity or record."""
    name = "record_id" if case.entity is None else "entity"
    which = (cases.c.detector == case.detector, cases.c.closed_at.is_(None), cases.c[name] == getattr(case, name))
    same = [one.case_id for one in read_cases(connection, *which) if key_of(one) == key_of(case)]
    return next((number for number in same if number != case.case_id), None)


def merge_case(desk: Desk, number: int, into: int, note: str | None = None) -> None:
    """Move all flags of a case, open or closed, into another one, which is open; later flags of its entity follow."""
    with _hold(desk, number) as (connection, case, log):
        other = _get_case(connection, desk, into)
        _check_not_merged(case)
        _check_open(other)
        if into == number:
            raise _refused(case, "cannot be merged into itself", "give the number of another case")
        moved = sa.update(case_flags).where(case_flags.c.detector == desk.detector, case_flags.c.case_id == number)
        flags = connection.execute(moved.values(case_id=into)).rowcount
        earlier = sa.update(cases).where(cases.c.detector == desk.detector, cases.c.merged_into == number)
        connection.execute(earlier.values(merged_into=into))
        change(connection, case, AWAKE | {"state": CLOSED, "closed_at": desk.now, "verdict": None, "merged_into": into})
        log.add(number, "merged", desk.actor, note, into=into)
        log.add(into, "merged", desk.actor, note, other=number, flags=flags)
        both: dict[str, Any] = {
            "severity": max(case.severity, other.severity, key=list[str](SEVERITIES).index)
            if case.is_open
            else other.severity,
            "due_at": min(case.due_at, other.due_at) if case.is_open else other.due_at,
            "assignee": other.assignee or case.assignee,
        }
        change(connection, other, both)
        raise_severity(connection, [replace(other, **both)], desk.params, log)


def close_case(desk: Desk, number: int, note: str | None = None) -> None:
    """Close a case without a verdict."""
    with _hold(desk, number) as (connection, case, log):
        _check_open(case)
        close(connection, case, log, desk.actor, None, note)


def _check_open(case: Case) -> None:
    _check_not_merged(case)
    if not case.is_open:
        raise _refused(case, "is closed", f"nightjar case {case.detector} {case.case_id} --reopen")


def _check_not_merged(case: Case) -> None:
    if case.merged_into is not None:
        raise _refused(
            case, f"was merged into case {case.merged_into}", f"nightjar case {case.detector} {case.merged_into}"
        )


def _refused(case: Case, why: str, todo: str) -> CaseRefused:
    return CaseRefused(f"Case {case.case_id} {why}; nothing was changed.", where=f"cases of {case.detector}", todo=todo)
