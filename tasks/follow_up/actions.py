"""What people do with a case: take, judge, note, snooze, reopen, merge and close it. Each is one transaction.

All raise CaseMissing if the detector has no such case, and CaseRefused if its state does not allow it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
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
    Log,
    change,
    close,
    key_of,
    raise_severity,
    read_cases,
)
from tasks.rows.params import SEVERITIES, CasesParams
from tasks.stores.bulk import load_rows
from tasks.stores.tables import Case, case_flags, cases, reviews
from tasks.stores.warehouse import Warehouse, lock_cases


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


def take_case(desk: Desk, number: int, note: str | None = None) -> None:
    """Make the actor the one who works on the case."""
    with _hold(desk, number) as (connection, case, log):
        _check_open(case)
        change(connection, case, {"assignee": desk.actor})
        log.add(number, "taken", desk.actor, note, before=case.assignee)


def judge_case(desk: Desk, number: int, verdict: str, note: str | None = None) -> int:
    """Give the verdict on every flag of the case and close it; returns their number. A closed case is judged anew."""
    with _hold(desk, number) as (connection, case, log):
        _check_not_merged(case)
        flags = sa.select(case_flags.c.batch_date, case_flags.c.record_id, case_flags.c.attempt)
        of_case = (case_flags.c.detector == desk.detector, case_flags.c.case_id == number)
        given = pd.DataFrame(connection.execute(flags.where(*of_case)).mappings().all())
        if len(given):
            said: dict[str, Any] = {"verdict": MEANING[verdict], "said": verdict, "note": note, "inclusion": 1.0}
            by: dict[str, Any] = {
                "detector": desk.detector,
                "reviewer": desk.actor,
                "reviewed_at": pd.Timestamp(desk.now),
            }
            load_rows(connection, reviews, given.assign(**said, **by))
        log.add(number, "verdict", desk.actor, note, verdict=verdict, flags=len(given))
        if case.is_open:
            close(connection, case, log, desk.actor, verdict)
        else:
            change(connection, case, {"verdict": verdict})
    return len(given)


def note_case(desk: Desk, number: int, note: str) -> None:
    """Add a note."""
    with _hold(desk, number) as (_, __, log):
        log.add(number, "note", desk.actor, note)


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
