from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from tasks.follow_up.alerts import Fact, Planned
from tasks.follow_up.deliveries import (
    GIVE_UP_AFTER,
    LEASE,
    Delivery,
    count_failed,
    find_delay,
    find_failing,
    keep_messages,
    list_deliveries,
    send_due,
)
from tasks.stores.warehouse import Warehouse

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def warehouse(warehouse_url: str) -> Warehouse:
    found = Warehouse(warehouse_url)
    found.migrate()
    return found


class Post:
    """Takes messages; a channel that is down does not."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.down: dict[str, str] = {}

    def __call__(self, channel: str, title: str, body: str) -> str:
        if reason := self.down.get(channel, ""):
            return reason
        self.sent.append((channel, title))
        return ""


def plan(about: str, due_at: datetime | None = NOW, channel: str = "mail", rule: str = "rule") -> Planned:
    fact = Fact("night_failed", "toy", about, date(2026, 3, 1), NOW, f"{about} failed", "body")
    return Planned(rule, channel, fact, due_at, "" if due_at == NOW else "quiet hours")


def at(moment: datetime) -> Callable[[], datetime]:
    """A clock that stands still."""
    return lambda: moment


def read(warehouse: Warehouse) -> dict[str, Delivery]:
    return {f"{one.channel} {one.about}": one for one in list_deliveries(warehouse)}


def test_the_same_thing_is_told_once_and_what_is_due_together_is_one_message(warehouse: Warehouse) -> None:
    post, planned = Post(), [plan("a"), plan("b"), plan("a", channel="hook"), plan("c", NOW + HOUR), plan("d", None)]
    assert keep_messages(warehouse, planned) == 5
    assert keep_messages(warehouse, [*planned, plan("a", rule="other")]) == 1
    assert keep_messages(warehouse, []) == 0
    assert send_due(warehouse, post, at(NOW)) == (3, [])
    assert sorted(post.sent) == [("hook", "a failed"), ("mail", "2 messages of rule rule"), ("mail", "a failed")]
    assert send_due(warehouse, post, at(NOW + HOUR / 2)) == (0, [])
    assert send_due(warehouse, post, at(NOW + HOUR)) == (1, [])
    rows = read(warehouse)
    assert (rows["mail c"].status, rows["mail c"].sent_at, rows["mail c"].due_at) == ("sent", NOW + HOUR, None)
    assert (rows["mail d"].status, rows["mail d"].reason, rows["mail d"].tries) == ("held", "quiet hours", 0)
    assert send_due(warehouse, post, at(NOW + 100 * HOUR)) == (0, [])


def test_a_channel_that_is_down_is_tried_again_until_a_week_is_over(warehouse: Warehouse) -> None:
    post = Post()
    post.down["mail"] = "no route"
    keep_messages(warehouse, [plan("a"), plan("a", channel="hook")])
    assert send_due(warehouse, post, at(NOW)) == (1, ["channel mail: no route"])
    assert (count_failed(warehouse, "toy"), count_failed(warehouse, "other")) == (1, 0)
    assert find_failing(warehouse) == ["channel mail did not take 1 message since 2026-03-02 04:00 UTC: no route"]
    now, tries = NOW, 1
    while (row := read(warehouse)["mail a"]).due_at:
        assert send_due(warehouse, post, at(row.due_at - timedelta(seconds=1))) == (0, [])
        now, tries = row.due_at, tries + 1
        send_due(warehouse, post, at(now))
    assert now - NOW > GIVE_UP_AFTER
    assert (row.status, row.tries, row.reason) == ("failed", tries, "no route")
    assert 20 < tries < 50
    assert count_failed(warehouse, "toy") == 0
    post.down.clear()
    assert send_due(warehouse, post, at(now + 100 * HOUR)) == (0, [])
    keep_messages(warehouse, [plan("b")])
    assert send_due(warehouse, post, at(now)) == (1, [])


def test_a_channel_that_works_again_gets_what_it_missed_and_is_no_longer_named(warehouse: Warehouse) -> None:
    post = Post()
    post.down["mail"] = "no route"
    keep_messages(warehouse, [plan("a"), plan("b")])
    send_due(warehouse, post, at(NOW))
    post.down.clear()
    assert send_due(warehouse, post, at(NOW + HOUR / 60)) == (0, [])
    assert send_due(warehouse, post, at(NOW + HOUR / 60), is_retry=True) == (1, [])
    assert post.sent == [("mail", "2 messages of rule rule")]
    assert send_due(warehouse, post, at(NOW + HOUR), is_retry=True) == (0, [])
    assert find_failing(warehouse) == []
    assert read(warehouse)["mail a"].reason is None


def test_two_processes_do_not_both_send_and_a_dead_one_loses_nothing(warehouse: Warehouse) -> None:
    post, inner = Post(), []

    def send_and_meet_another(channel: str, title: str, body: str) -> str:
        inner.append(send_due(warehouse, post, at(NOW), is_retry=True))
        raise KeyboardInterrupt

    keep_messages(warehouse, [plan("a")])
    with pytest.raises(KeyboardInterrupt):
        send_due(warehouse, send_and_meet_another, at(NOW))
    assert (inner, post.sent) == ([(0, [])], [])
    assert send_due(warehouse, post, at(NOW + LEASE)) == (1, [])
    assert read(warehouse)["mail a"].tries == 2


def test_a_message_is_claimed_when_its_turn_comes_so_that_slow_ones_before_it_do_not_make_it_go_twice(
    warehouse: Warehouse,
) -> None:
    post, other, now = Post(), Post(), [NOW]

    def send_slowly(channel: str, title: str, body: str) -> str:
        now[0] += LEASE * 0.9
        send_due(warehouse, other, lambda: now[0])  # as the next night does meanwhile
        now[0] += LEASE * 0.05
        return post(channel, title, body)

    keep_messages(warehouse, [plan("a", rule=rule) for rule in ("one", "two", "three")])
    assert send_due(warehouse, send_slowly, lambda: now[0]) == (1, [])
    assert len(post.sent) + len(other.sent) == 3
    assert [one.status for one in list_deliveries(warehouse)] == ["sent"] * 3


def test_messages_with_any_text_are_kept(warehouse: Warehouse) -> None:
    odd = plan("a\tb\n'\\N\x1f é")
    keep_messages(warehouse, [replace(odd, fact=replace(odd.fact, body="=1+1\x00\n" * 100))])
    assert send_due(warehouse, Post(), at(NOW)) == (1, [])


def test_tries_are_further_and_further_apart() -> None:
    delays = [find_delay(tries) for tries in range(1, 40)]
    assert delays == sorted(delays)
    assert delays[0] == timedelta(minutes=20)
    assert delays[-1] == timedelta(hours=6)
