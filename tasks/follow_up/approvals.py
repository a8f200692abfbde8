"""Verdicts on many cases at once, which a second person has to approve."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tasks.errors import CaseMissing, CaseRefused
from tasks.follow_up.actions import Desk, count_flags, get_open, judge_all
from tasks.stores.tables import approvals
from tasks.stores.warehouse import lock_cases

APPROVED, REFUSED, WITHDRAWN = "approved", "refused", "withdrawn"


@dataclass(frozen=True)
class Approval:
    """A verdict on several cases that needs or needed a second person. flags: their number by case, when asked."""

    approval_id: int
    flags: dict[int, int]
    verdict: str
    note: str | None
    asked_by: str
    asked_at: datetime
    decision: str | None
    decided_by: str | None
    decided_at: datetime | None

    @property
    def cases(self) -> list[int]:
        """The numbers of the cases."""
        return list(self.flags)


def ask_approval(desk: Desk, numbers: Collection[int], verdict: str, note: str | None = None) -> int:
    """Ask for a second person's approval of a verdict on several open cases; returns the number of the approval."""
    with desk.warehouse.begin(desk.wait_s) as connection:
        lock_cases(connection, desk.detector)
        get_open(connection, desk, numbers)
        flags = count_flags(connection, desk.detector, numbers)
        newest = sa.select(sa.func.max(approvals.c.approval_id)).where(approvals.c.detector == desk.detector)
        [highest] = connection.scalars(newest).all()
        number = (highest or 0) + 1
        row: dict[str, Any] = {"cases": json.dumps(sorted(flags.items())), "verdict": verdict, "note": note}
        asked = {"asked_by": desk.actor, "asked_at": desk.now}
        connection.execute(sa.insert(approvals).values(detector=desk.detector, approval_id=number, **row, **asked))
    return number


def decide_approval(desk: Desk, number: int, decision: str) -> Approval:
    """Approve, which gives the verdicts in the asker's name, refuse, or withdraw; returns the approval as it was.

    Raises CaseMissing, and CaseRefused if it is decided already, if the asker approves, or if a case has been closed or
    has other flags than when it was asked for.
    """
    with desk.warehouse.begin(desk.wait_s) as connection:
        lock_cases(connection, desk.detector)
        approval = _read(connection, desk, number)
        if approval.decision:
            raise _refused(desk, number, f"was {approval.decision} by {approval.decided_by}")
        if decision == APPROVED and approval.asked_by == desk.actor:
            raise _refused(desk, number, "needs a second person: whoever asked for it cannot approve it")
        if decision == APPROVED:
            note = "; ".join(filter(None, (approval.note, f"approved by {desk.actor}")))
            asker = replace(desk, actor=approval.asked_by)
            judge_all(connection, asker, approval.cases, approval.verdict, note, approval.flags)
        of_approval = (approvals.c.detector == desk.detector, approvals.c.approval_id == number)
        decided = {"decision": decision, "decided_by": desk.actor, "decided_at": desk.now}
        connection.execute(sa.update(approvals).where(*of_approval).values(**decided))
    return approval


def read_approvals(connection: sa.Connection, detector: str, *which: sa.ColumnElement[bool]) -> list[Approval]:
    """The approvals that meet all conditions, by number."""
    columns = [column for column in approvals.c if column.name != "detector"]
    found = sa.select(*columns).where(approvals.c.detector == detector, *which).order_by(approvals.c.approval_id)
    rows = [dict(row) for row in connection.execute(found).mappings()]
    return [Approval(flags=dict(json.loads(row.pop("cases"))), **row) for row in rows]


def _read(connection: sa.Connection, desk: Desk, number: int) -> Approval:
    found = read_approvals(connection, desk.detector, approvals.c.approval_id == number)
    if not found:
        raise CaseMissing(f"{desk.detector} has no approval {number}; nothing was changed.")
    return found[0]


def _refused(desk: Desk, number: int, why: str) -> CaseRefused:
    return CaseRefused(f"Approval {number} {why}; nothing was changed.", where=f"approvals of {desk.detector}")
