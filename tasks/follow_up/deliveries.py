"""The table `deliveries`: the messages that were sent, are still to be sent, or were held back, and why.

A message is claimed before it is sent, so that two processes do not both send it; one whose process dies in between is
sent again by the next. A failed one is tried again, at growing intervals, for a week.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from tasks.follow_up.alerts import Planned, write_message
from tasks.stores.bulk import NO_NUL, in_chunks
from tasks.stores.tables import deliveries
from tasks.stores.warehouse import Warehouse, lock_key

LEASE = timedelta(minutes=10)  # to send one message, for which a channel takes a minute or two at most
FIRST_RETRY, LAST_RETRY = timedelta(minutes=10), timedelta(hours=6)
GIVE_UP_AFTER = timedelta(days=7)
Clock = Callable[[], datetime]
Send = Callable[[str, str, str], str]  # channel, title, body; returns why it failed, "" if it did not


@dataclass(frozen=True)
class Delivery:
    """One row of `deliveries`."""

    delivery_id: str
    rule: str
    channel: str
    detector: str
    about: str
    raised_at: datetime
    status: str
    reason: str | None
    title: str
    body: str
    tries: int
    due_at: datetime | None
    sent_at: datetime | None


def name_delivery(planned: Planned) -> str:
    """The key of a message: a rule notifies a channel about a fact once."""
    key = "\x1f".join((planned.rule, planned.channel, planned.fact.about))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def keep_messages(warehouse: Warehouse, planned: Sequence[Planned]) -> int:
    """Add the messages that are not known yet, to be sent when they are due; returns how many."""
    rows: dict[str, dict[str, object]] = {
        name_delivery(one): {
            "rule": one.rule,
            "channel": one.channel,
            "detector": one.fact.detector,
            "about": one.fact.about,
            "raised_at": one.fact.at,
            "status": "held",
            "reason": one.reason or None,
            "title": one.fact.title.replace("\0", NO_NUL),
            "body": one.fact.body.replace("\0", NO_NUL),
            "tries": 0,
            "due_at": one.due_at,
        }
        for one in planned
    }
    if not rows:
        return 0
    with warehouse.begin() as connection:
        lock_key(connection, "deliveries")
        there = set[str]()
        for ids in in_chunks(list(rows)):
            known = sa.select(deliveries.c.delivery_id).where(deliveries.c.delivery_id.in_(ids))
            there |= set(connection.scalars(known))
        new = [row | {"delivery_id": key} for key, row in rows.items() if key not in there]
        if new:
            connection.execute(sa.insert(deliveries), new)
    return len(new)


def send_due(warehouse: Warehouse, send: Send, clock: Clock, is_retry: bool = False) -> tuple[int, list[str]]:
    """Send what is due, one message per rule and channel; returns how many were sent, and which failed and why.

    Each message is claimed just before it is sent, so that the claim holds while it is sent however many go before it.
    is_retry: also what failed before, although its next try is not due yet.
    """
    sent, failed, due = 0, [], _is_due(clock(), is_retry)
    for rule, channel in _list_due(warehouse, due):
        claimed = _claim(warehouse, sa.and_(due, deliveries.c.rule == rule, deliveries.c.channel == channel), clock())
        if not claimed:  # by another process meanwhile
            continue
        title, body = write_message(rule, [(one.title, one.body) for one in claimed])
        reason = send(channel, title, body)
        _finish(warehouse, claimed, reason, clock())
        sent += not reason
        failed += [f"channel {channel}: {reason}"] if reason else []
    return sent, failed


def _is_due(now: datetime, is_retry: bool) -> sa.ColumnElement[bool]:
    due = deliveries.c.due_at <= now
    if is_retry:
        due = sa.or_(due, sa.and_(deliveries.c.status == "failed", deliveries.c.due_at.is_not(None)))
    return due


def _list_due(warehouse: Warehouse, due: sa.ColumnElement[bool]) -> list[tuple[str, str]]:
    """The rules and channels with messages that are due, in order."""
    pair = deliveries.c.rule, deliveries.c.channel
    with warehouse.begin_reading() as connection:
        rows = connection.execute(sa.select(*pair).where(due).distinct().order_by(*pair))
        return [(row[0], row[1]) for row in rows]


def _claim(warehouse: Warehouse, due: sa.ColumnElement[bool], now: datetime) -> list[Delivery]:
    """The messages that are due, oldest first; nobody else is given them for a while."""
    with warehouse.begin() as connection:
        lock_key(connection, "deliveries")
        order = (deliveries.c.raised_at, deliveries.c.delivery_id)
        found = connection.execute(sa.select(deliveries).where(due).order_by(*order)).mappings()
        claimed = [Delivery(**row) for row in found]
        claim = {"status": "held", "reason": "being sent", "due_at": now + LEASE, "tries": deliveries.c.tries + 1}
        connection.execute(sa.update(deliveries).where(due).values(claim))
    return claimed


def _finish(warehouse: Warehouse, claimed: Sequence[Delivery], reason: str, now: datetime) -> None:
    with warehouse.begin() as connection:
        for one in claimed:
            # Only if nobody else has sent it meanwhile, after this process took longer than its claim.
            row = sa.and_(deliveries.c.delivery_id == one.delivery_id, deliveries.c.status != "sent")
            outcome: dict[str, object] = {"status": "sent", "reason": None, "due_at": None, "sent_at": now}
            if reason:
                again = None if now - one.raised_at > GIVE_UP_AFTER else now + find_delay(one.tries)
                outcome = {"status": "failed", "reason": reason, "due_at": again}
            connection.execute(sa.update(deliveries).where(row).values(outcome))


def find_delay(tries: int) -> timedelta:
    """How long after this many earlier tries the next one may follow."""
    return min(FIRST_RETRY * (1 << min(tries, 10)), LAST_RETRY)


def list_deliveries(warehouse: Warehouse, most: int | None = None, detector: str | None = None) -> list[Delivery]:
    """The deliveries, newest first."""
    found = sa.select(deliveries).order_by(deliveries.c.raised_at.desc(), deliveries.c.delivery_id)
    if detector is not None:
        found = found.where(deliveries.c.detector == detector)
    with warehouse.begin_reading() as connection:
        return [Delivery(**row) for row in connection.execute(found.limit(most)).mappings()]


def count_failed(warehouse: Warehouse, detector: str) -> int:
    """The number of a detector's messages that a channel did not take, and that are tried again."""
    failed = (deliveries.c.detector == detector, deliveries.c.status == "failed", deliveries.c.due_at.is_not(None))
    with warehouse.begin_reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(deliveries).where(*failed)) or 0


def find_failing(warehouse: Warehouse) -> list[str]:
    """One sentence per channel that did not take its last messages: how many, why, and since when."""
    failed = sa.select(deliveries).where(deliveries.c.status == "failed")
    with warehouse.begin_reading() as connection:
        rows = [Delivery(**row) for row in connection.execute(failed).mappings()]
    by_channel: dict[str, list[Delivery]] = {}
    for row in sorted(rows, key=lambda row: row.raised_at):
        by_channel.setdefault(row.channel, []).append(row)
    return [
        f"channel {channel} did not take {len(group):,} {'message' if len(group) == 1 else 'messages'} "
        f"since {group[0].raised_at:%Y-%m-%d %H:%M} UTC: {group[-1].reason}"
        for channel, group in by_channel.items()
    ]
