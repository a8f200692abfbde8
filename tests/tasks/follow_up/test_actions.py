"""What people do with cases can be undone exactly, is refused when the case has changed, and waits for nobody long."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import fuzzing
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from published import make_flag, publish_flags

from tasks.errors import CaseMissing, CaseRefused, ServiceUnreachable
from tasks.follow_up import actions
from tasks.follow_up.approvals import APPROVED, REFUSED, ask_approval, decide_approval
from tasks.follow_up.cases import read_cases
from tasks.rows.params import CasesParams
from tasks.stores.site import Site
from tasks.stores.tables import Case, cases

DAY, NOW = date(2026, 7, 1), datetime(2026, 7, 2, 4, tzinfo=UTC)
STEPS: dict[str, Callable[[actions.Desk], object]] = {
    "take": lambda desk: actions.take_case(desk, 1),
    "assign": lambda desk: actions.take_case(desk, 1, to="zoe"),
    "snooze": lambda desk: actions.snooze_case(desk, 1, desk.now + timedelta(days=3)),
    "reopen": lambda desk: actions.reopen_case(desk, 1),
    "close": lambda desk: actions.close_case(desk, 1),
    "confirm": lambda desk: actions.judge_case(desk, 1, "confirmed"),
    "dismiss": lambda desk: actions.judge_case(desk, 1, "false_alarm"),
    "bulk": lambda desk: actions.judge_cases(desk, [1, 2], "expected"),
}


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site("UTC")


def at(site: Site, minute: float, actor: str = "ann", **others: Any) -> actions.Desk:
    return actions.Desk(site.warehouse, "toy", CasesParams(), actor, NOW + timedelta(minutes=minute), **others)


def read(site: Site, number: int = 1) -> Case:
    with site.warehouse.begin_reading() as connection:
        return read_cases(connection, cases.c.case_id == number)[0]


def verdicts(site: Site) -> dict[str, str]:
    found = site.warehouse.read_reviews("toy", learnt=False)
    return dict(zip(found["record_id"], found["said"], strict=True))


def empty(site: Site) -> None:
    """A new warehouse in place of the old one, with three cases: of two, one and one flags."""
    site.warehouse.migrate()
    with site.warehouse.begin() as connection:
        for table in reversed(cases.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    flags = [make_flag("a", "x"), make_flag("b", "x"), make_flag("c", "y", 1.5), make_flag("d", None, 1.2)]
    publish_flags(site.warehouse, DAY, flags, NOW)


def strip(case: Case) -> dict[str, Any]:
    return {name: value for name, value in vars(case).items() if not name.startswith("locked")}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
@settings(fuzzing.cases(0.1), deadline=None, derandomize=False)
def test_undo_gives_back_the_case_and_its_verdicts_as_they_were_before_the_last_step(
    site: Site, names: list[str]
) -> None:
    empty(site)
    last, before = "", (strip(read(site)), verdicts(site))
    for minute, name in enumerate(names, 1):
        now = (strip(read(site)), verdicts(site))
        try:
            STEPS[name](at(site, minute))
        except CaseRefused:
            assert (strip(read(site)), verdicts(site)) == now
        else:
            last, before = name, now
    if not last:
        return
    actions.undo_case(at(site, 9), 1)
    assert strip(read(site)) == before[0]
    said = verdicts(site)
    assert {record: said.get(record) for record in "ab"} == {record: before[1].get(record) for record in "ab"}
    with pytest.raises(CaseRefused, match="no last step of yours"):
        actions.undo_case(at(site, 10), 1)


def test_whoever_asked_first_but_came_second_is_the_later(site: Site) -> None:
    empty(site)
    actions.judge_case(at(site, 2, "ben"), 1, "confirmed")
    actions.judge_case(at(site, 1, "ann"), 1, "false_alarm")  # waited for ben
    assert read(site).verdict == "false_alarm"
    assert verdicts(site) == {"a": "false_alarm", "b": "false_alarm"}


def test_a_verdict_is_about_the_flags_that_were_seen(site: Site) -> None:
    empty(site)
    with pytest.raises(CaseRefused, match="has changed meanwhile"):
        actions.judge_case(at(site, 1), 1, "confirmed", flags=1)
    assert verdicts(site) == {}
    assert actions.judge_case(at(site, 1), 1, "confirmed", flags=2) == 2


def test_an_approval_holds_for_the_flags_that_the_cases_had(site: Site) -> None:
    empty(site)
    number = ask_approval(at(site, 1), [1, 2], "expected")
    flags = [make_flag("e", "y")]
    publish_flags(site.warehouse, DAY + timedelta(days=1), flags, NOW)
    with pytest.raises(CaseRefused, match="Case 2 has changed meanwhile"):
        decide_approval(at(site, 3, "ben"), number, APPROVED)
    assert verdicts(site) == {}
    assert decide_approval(at(site, 4, "ben"), number, REFUSED).cases == [1, 2]
    for wrong, error in (([1, 99], CaseMissing), ([], None)):
        if error:
            with pytest.raises(error):
                ask_approval(at(site, 5), wrong, "expected")
    actions.close_case(at(site, 6), 3)
    with pytest.raises(CaseRefused, match="is closed"):
        ask_approval(at(site, 7), [3], "expected")


def test_next_shows_each_case_once_before_it_starts_again(site: Site) -> None:
    empty(site)
    seen: list[int] = []
    for minute in range(4):
        case = actions.lock_next(at(site, minute), 15, after=seen[-1:])
        assert case is not None
        seen.append(case.case_id)
    assert sorted(seen[:3]) == [1, 2, 3] and seen[3] == seen[0]


def test_a_lock_does_not_wait_for_a_night(site: Site) -> None:
    empty(site)
    with site.warehouse.begin(), pytest.raises(ServiceUnreachable):
        actions.lock_case(at(site, 1, wait_s=0.01), 1, 15)
