"""What people do with a case: take, judge, note, snooze, reopen, merge and close it, and undo that.

Each is one transaction.

All raise CaseMissing if the detector has no such case, and CaseRefused if its state does not allow it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import sqlalchemy as sa

from tasks.errors import CaseMissing, CaseRefused
from tasks.follow_up.cases import (
    AWAKE,
    BY_RULE,
    BY_SEVERITY,
    CLOSED,
    MEANING,
    OPEN,
    SNOOZED,
    WORTH,
    Log,
    change,
    change_all,
    closing,
    key_of,
    raise_severity,
    read_cases,
    read_events,
)
from tasks.rows.params import SEVERITIES, CasesParams
from tasks.stores.bulk import in_chunks, load_rows
from tasks.stores.tables import Case, case_events, case_flags, cases, reviews
from tasks.stores.warehouse import LOCK_TIMEOUT_S, WITHDRAWN, Warehouse, lock_cases

SILENT = ("note", WORTH)  # kinds of events that are no steps: they change nothing of the case
KEPT = ("state", "assignee", "due_at", "snoozed_until", "closed_at", "verdict")  # of a case, by each step


@dataclass(frozen=True)
class Desk:
    """Who acts on the cases of a detector, when, and by which params."""

    warehouse: Warehouse
    detector: str
    params: CasesParams
    actor: str
    now: datetime
    wait_s: float = LOCK_TIMEOUT_S  # for nights and other people, before ServiceUnreachable is raised


@contextmanager
def _hold(desk: Desk, number: int) -> Iterator[tuple[sa.Connection, Case, Log]]:
    """A case, locked against nights and other people; what is logged is written at the end."""
    with desk.warehouse.begin(desk.wait_s) as connection:
        log = _lock(connection, desk)
        yield connection, _get_case(connection, desk, number), log
        log.write(connection)


def _lock(connection: sa.Connection, desk: Desk) -> Log:
    """Lock the detector's cases. What is done now is later than all that people did before."""
    lock_cases(connection, desk.detector)
    c = case_events.c
    by_people = sa.select(sa.func.max(c.happened_at)).where(c.detector == desk.detector, c.actor != BY_RULE)
    [newest] = connection.scalars(by_people).all()
    now = desk.now if newest is None else max(desk.now, newest + timedelta(microseconds=1))
    return Log(desk.detector, now)


def _get_case(connection: sa.Connection, desk: Desk, number: int) -> Case:
    found = read_cases(connection, cases.c.detector == desk.detector, cases.c.case_id == number)
    if not found:
        raise _missing(desk, number)
    return found[0]


def _missing(desk: Desk, number: int) -> CaseMissing:
    return CaseMissing(
        f"{desk.detector} has no case {number}; nothing was changed.",
        where=f"cases in {desk.warehouse.place}",
        todo=f"nightjar cases {desk.detector} --all lists all",
    )


def take_case(desk: Desk, number: int, note: str | None = None, to: str | None = None) -> None:
    """Make the actor, or the person `to`, the one who works on the case."""
    with _hold(desk, number) as (connection, case, log):
        _check_open(case)
        change(connection, case, {"assignee": to or desk.actor})
        log.add(number, "taken", desk.actor, note, before=case.assignee, to=to, was=_keep(case))


def lock_case(desk: Desk, number: int, minutes: float) -> Case:
    """Lock an open case for the actor, unless another person has it locked; returns it as it is then.

    A lock shows others that somebody is reading the case; it does not stop them from acting on it.
    """
    with _hold(desk, number) as (connection, case, log):
        if not case.is_open or is_locked(case, desk.actor, log.now):
            return case
        change(connection, case, _make_lock(desk, log, minutes))
        return replace(case, **_make_lock(desk, log, minutes))


def lock_next(desk: Desk, minutes: float, after: Collection[int] = ()) -> Case | None:
    """Lock the next case for the actor: open, not snoozed, not locked by others, and the actor's own or nobody's.

    The most severe come first, then those due first; those that the actor has open already come last. after: cases to
    leave out. None: all are done.
    """
    c = cases.c
    with desk.warehouse.begin(desk.wait_s) as connection:
        log = _lock(connection, desk)
        is_unlocked = sa.or_(c.locked_until.is_(None), c.locked_until <= log.now)
        found = sa.select(c.case_id).where(
            c.detector == desk.detector,
            c.closed_at.is_(None),
            sa.or_(c.state == OPEN, c.snoozed_until <= log.now),
            sa.or_(is_unlocked, c.locked_by == desk.actor),
            sa.or_(c.assignee.is_(None), c.assignee == desk.actor),
            c.case_id.not_in(list(after)),
        )
        order = (sa.case((is_unlocked, 0), else_=1), BY_SEVERITY.desc(), c.due_at, c.case_id)
        numbers = connection.scalars(found.order_by(*order).limit(1)).all()
        if not numbers:
            return None
        case = _get_case(connection, desk, numbers[0])
        change(connection, case, _make_lock(desk, log, minutes))
        return case


def _make_lock(desk: Desk, log: Log, minutes: float) -> dict[str, Any]:
    return {"locked_by": desk.actor, "locked_until": log.now + timedelta(minutes=minutes)}


def is_locked(case: Case, actor: str, now: datetime) -> bool:
    """Whether a person other than the actor has the case locked."""
    return case.locked_until is not None and case.locked_until > now and case.locked_by != actor


def judge_case(desk: Desk, number: int, verdict: str, note: str | None = None, flags: int | None = None) -> int:
    """Give the verdict on every flag of the case and close it; returns their number. A closed case is judged anew.

    flags: how many the actor has seen; CaseRefused if there are more or fewer now.
    """
    with _hold(desk, number) as (connection, case, log):
        _check_not_merged(case)
        return _judge(connection, desk, [case], log, verdict, note, None if flags is None else {number: flags})


def judge_cases(desk: Desk, numbers: Collection[int], verdict: str, note: str | None = None) -> int:
    """Give the verdict on every flag of several cases and close them, or change nothing; returns the number of flags.

    Raises CaseMissing, and CaseRefused if one of them is closed already: somebody else was faster.
    """
    with desk.warehouse.begin(desk.wait_s) as connection:
        return judge_all(connection, desk, numbers, verdict, note)


def judge_all(
    connection: sa.Connection, desk: Desk, numbers: Collection[int], verdict: str, note: str | None,
    flags: Mapping[int, int] | None = None,
) -> int:  # fmt: skip
    """The same in a transaction, with the number of flags of each case that was seen, as in judge_case."""
    log = _lock(connection, desk)
    found = _judge(connection, desk, get_open(connection, desk, numbers), log, verdict, note, flags)
    log.write(connection)
    return found


def get_open(connection: sa.Connection, desk: Desk, numbers: Collection[int]) -> list[Case]:
    """Some cases, which must be open. Raises CaseMissing, CaseRefused."""
    found: dict[int, Case] = {}
    for chunk in in_chunks(sorted(set(numbers))):
        some = read_cases(connection, cases.c.detector == desk.detector, cases.c.case_id.in_(chunk))
        found |= {case.case_id: case for case in some}
    for number in sorted(set(numbers)):
        if number not in found:
            raise _missing(desk, number)
        _check_open(found[number])
    return list(found.values())


def count_flags(connection: sa.Connection, detector: str, numbers: Collection[int]) -> dict[int, int]:
    """The flags of some cases, by number; a case without flags has 0."""
    found = dict.fromkeys(numbers, 0)
    m = case_flags.c
    for chunk in in_chunks(sorted(set(numbers))):
        counted = sa.select(m.case_id, sa.func.count()).where(m.detector == detector, m.case_id.in_(chunk))
        found |= {row[0]: row[1] for row in connection.execute(counted.group_by(m.case_id)).all()}
    return found


def _judge(
    connection: sa.Connection, desk: Desk, some: Sequence[Case], log: Log, verdict: str, note: str | None,
    seen: Mapping[int, int] | None,
) -> int:  # fmt: skip
    counts = count_flags(connection, desk.detector, [case.case_id for case in some])
    for number, flags in (seen or {}).items():
        if counts[number] != flags:
            raise CaseRefused(
                f"Case {number} has changed meanwhile; nothing was judged.",
                where=f"cases of {desk.detector}",
                got=f"{counts[number]} flags",
                expected=f"{flags} flags, as when the verdict was asked for",
                todo="look at the case again",
            )
    for case in some:
        flags = counts[case.case_id]
        log.add(case.case_id, "verdict", desk.actor, note, verdict=verdict, flags=flags, was=_keep(case))
        if case.is_open:
            log.add(case.case_id, "closed", desk.actor, verdict=verdict)
    for is_open, changes in ((True, closing(log.now, verdict)), (False, {"verdict": verdict})):
        change_all(connection, desk.detector, [case.case_id for case in some if case.is_open is is_open], changes)
    given = _read_records(connection, desk.detector, [case.case_id for case in some])
    if len(given):
        said: dict[str, Any] = {"verdict": MEANING[verdict], "said": verdict, "note": note, "inclusion": 1.0}
        load_rows(connection, reviews, given.assign(**said, **_by(desk, log)))
    return len(given)


def _read_records(connection: sa.Connection, detector: str, numbers: Sequence[int]) -> pd.DataFrame:
    """The records of some cases: batch_date, record_id and attempt."""
    m = case_flags.c
    found: list[Any] = []
    for chunk in in_chunks(numbers):
        flags = sa.select(m.batch_date, m.record_id, m.attempt).where(m.detector == detector, m.case_id.in_(chunk))
        found += connection.execute(flags).mappings().all()
    return pd.DataFrame(found)


def _by(desk: Desk, log: Log) -> dict[str, Any]:
    return {"detector": desk.detector, "reviewer": desk.actor, "reviewed_at": pd.Timestamp(log.now)}


def _keep(case: Case) -> dict[str, Any]:
    """What undoing a step gives back."""
    return {name: getattr(case, name) for name in KEPT}


def undo_case(desk: Desk, number: int) -> str:
    """Take back what the actor did last with the case; returns what it was, as the kind of its event.

    The case is as it was before, and verdicts that its records had before count again. Raises CaseRefused if somebody
    else, or a night, changed the case since, or if what was done cannot be undone.
    """
    with _hold(desk, number) as (connection, case, log):
        what = _find_last(read_events(connection, desk.detector, number), desk.actor)
        if what is None:
            raise _refused(case, "has no last step of yours that can be undone", "read its history")
        was = _read_kept(what["was"])
        if was["closed_at"] is None and not case.is_open and (other := _find_open(connection, case)):
            why = f"cannot be reopened: case {other} is open for the same flags"
            raise _refused(case, why, f"nightjar case {case.detector} {number} --merge {other}")
        if what["kind"] == "verdict":
            _take_back_verdicts(connection, desk, case, log, what["happened_at"])
        change(connection, case, was)
        log.add(number, "undone", desk.actor, what=what["kind"])
    return str(what["kind"])


def _read_kept(was: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: datetime.fromisoformat(value) if value and name in ("due_at", "snoozed_until", "closed_at") else value
        for name, value in was.items()
    }


def _find_last(events: Sequence[dict[str, Any]], actor: str) -> dict[str, Any] | None:
    """The last step of a case, if it is the actor's and can be undone. Notes and opinions do not count."""
    steps = [one for one in events if one["kind"] not in SILENT]
    if len(steps) > 1 and steps[-1]["kind"] == "closed" and steps[-2]["kind"] == "verdict":
        steps = steps[:-1]  # a verdict closes its case
    last = steps[-1] if steps else None
    return last if last and last["was"] and last["actor"] == actor else None


def _take_back_verdicts(connection: sa.Connection, desk: Desk, case: Case, log: Log, since: datetime) -> None:
    """Let the verdicts count again that the records of a case had before an instant, or none."""
    given = _read_records(connection, desk.detector, [case.case_id])
    if given.empty:
        return
    r, m = reviews.c, case_flags.c
    same = sa.and_(*(r[name] == m[name] for name in ("detector", "batch_date", "record_id")))
    earlier = sa.select(reviews).select_from(sa.join(reviews, case_flags, same)).where(
        m.detector == desk.detector, m.case_id == case.case_id, r.reviewed_at < since
    )  # fmt: skip
    ordered = connection.execute(earlier.order_by(r.reviewed_at, r.reviewer.desc())).mappings().all()
    was = {(row["batch_date"], row["record_id"]): row for row in ordered}  # the latest
    none = {"verdict": WITHDRAWN, "said": None, "note": "undone", "inclusion": 1.0}
    rows = []
    for row in given.to_dict("records"):
        before = was.get((row["batch_date"], row["record_id"]))
        if before is None or before["verdict"] == WITHDRAWN:
            rows.append(row | none)
        else:
            again = {name: before[name] for name in ("verdict", "said", "inclusion")}
            rows.append(row | again | {"note": f"as {before['reviewer']} said before"})
    load_rows(connection, reviews, pd.DataFrame(rows).assign(**_by(desk, log)))


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
        if until <= log.now:
            raise CaseRefused(
                f"Case {number} cannot be snoozed until a time that has passed; nothing was changed.",
                got=f"{until:%Y-%m-%d %H:%M %Z}",
                expected="a date after today, in the detector's time zone",
            )
        change(connection, case, {"state": SNOOZED, "snoozed_until": until})
        log.add(number, "snoozed", desk.actor, note, until=until.isoformat(), was=_keep(case))


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
        due = desk.params.find_due(case.severity, log.now)
        change(connection, case, AWAKE | {"closed_at": None, "verdict": None, "due_at": due})
        log.add(number, "reopened", desk.actor, note, before=case.verdict, was=_keep(case))


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
        change(connection, case, AWAKE | {"state": CLOSED, "closed_at": log.now, "verdict": None, "merged_into": into})
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
        change(connection, case, closing(log.now, None))
        log.add(number, "closed", desk.actor, note, was=_keep(case))


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
