"""The share of judged cases that were worth a look, counted by hand."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from published import make_flag, publish_flags
from sites import open_site

from tasks.follow_up import actions
from tasks.on_demand.worth import Worth, count_worth
from tasks.rows.params import CasesParams
from tasks.rows.shares import estimate_share
from tasks.stores.warehouse import Warehouse

DAY = date(2026, 7, 1)
SUNDAY = datetime(2026, 7, 5, 21, tzinfo=UTC)  # 23:00 in Berlin


def test_of_each_person_the_newest_answer_on_a_judged_case_counts_by_week(engine: Warehouse, tmp_path: Path) -> None:
    site = replace(open_site(tmp_path, warehouse=engine), time_zone="Europe/Berlin")
    assert count_worth(site) == Worth(estimate_share(0, 0), (), 0)
    publish_flags(engine, DAY, [make_flag(name, name, 9.0 - n) for n, name in enumerate("abcdef")], SUNDAY)
    desk = actions.Desk(engine, "toy", CasesParams(), "kim", SUNDAY)
    monday = replace(desk, now=SUNDAY + timedelta(hours=2))
    ada = replace(monday, actor="ada")
    for number in (1, 2, 3):
        actions.judge_case(desk, number, "confirmed")
    for number in (4, 5):
        actions.judge_case(monday, number, "false_alarm")
    actions.rate_case(monday, 1, True)
    actions.rate_case(monday, 2, True)
    actions.rate_case(monday, 2, False)  # changed their mind
    actions.rate_case(monday, 3, False)
    actions.rate_case(ada, 3, True)  # somebody found it worth a look
    actions.rate_case(ada, 4, False)
    actions.judge_case(monday, 6, "expected")
    actions.rate_case(monday, 6, True)
    actions.rate_case(ada, 6, True)
    actions.reopen_case(ada, 6)  # no verdict any more
    found = count_worth(site)
    assert found.whole == estimate_share(2, 4)
    assert found.weeks == ((date(2026, 6, 29), estimate_share(2, 3)), (date(2026, 7, 6), estimate_share(0, 1)))
    assert found.judged == 5
