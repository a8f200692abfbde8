"""What an analyst does in a morning: look at the night, judge cases, undo, pass on, find, and take tables away."""

import dataclasses
import math
import re
from collections.abc import Callable
from datetime import date, timedelta
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import pandas as pd
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from people import NIGHT, Browser

from flows.config.settings import Settings
from flows.config.setup import Setup, load_setup
from flows.desk.access import Access
from flows.desk.app import create_app
from tasks.rows.contract import Contract
from tasks.stores.registry import Registry
from tasks.stores.tables import flagged_anomalies
from tasks.stores.warehouse import Warehouse

DAY = f"/orders/{NIGHT}"


def verdicts(settings: Settings) -> dict[str, str]:
    """The verdicts that count, by record."""
    found = Warehouse(settings.warehouse_url).read_reviews("orders", learnt=False)
    return dict(zip(found["record_id"], found["said"].fillna(found["verdict"]), strict=True))


def list_shown(page: str) -> list[int]:
    """The numbers of the cases in a page's table."""
    return [int(number) for number in re.findall(r'<tr data-row.*?<a href="/orders/case/(\d+)', page)]


def test_the_newest_night_is_the_first_page_with_its_counts_and_cases_worst_first(ann: Browser) -> None:
    answer = ann.get("/")
    assert answer.url.path == DAY  # one detector, one newest night
    page = ann.read(DAY)
    assert "<b>0 of 4</b><span>cases done</span>" in page
    assert list_shown(page) == [1, 2, 3, 4]
    assert '1 <span class="soft">of 2</span>' in page  # of case 1, one flag of this night
    assert "shop north, items 9" in page
    assert f'<a href="/orders/{NIGHT - timedelta(days=1)}" rel="prev">' in page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("severity=critical", [1]),
        ("cause=items", [2]),
        ("value=items=4", [2]),
        ("value=ITEMS=9", []),  # columns have their own spelling
        ("value=items=9", [1]),
        ("value=shop=SOUTH", [2]),
        ("search=customer-2", [2]),
        ("search=SOUTH", [2]),
        ("search=r5", [4]),
        ("search=%25", []),  # no pattern
        ("value=north", [1]),
        ("value=nowhere", []),
        ("value==", []),
        ("state=closed", []),
        ("assignee=nobody", [1, 2, 3, 4]),
        ("assignee=ann", []),
        ("state=all&severity=critical&search=south", []),
        ("page=99", [1, 2, 3, 4]),
        ("page=x", [1, 2, 3, 4]),
    ],
)
def test_filters_leave_what_they_name(ann: Browser, query: str, expected: list[int]) -> None:
    assert list_shown(ann.read(f"{DAY}?{query}")) == expected


def test_a_table_holds_what_the_page_shows_and_no_formula(ann: Browser) -> None:
    ann.post("/orders/case/4/assign", to="=cmd()")
    ann.post("/orders/case/3/assign", to="{=cmd()}")
    ann.post("/orders/case/2/assign", to="external:\\\\evil\\share")
    ann.post("/orders/case/1/assign", to="https://evil.example")
    table = pd.read_csv(BytesIO(ann.get(f"{DAY}/cases.csv?severity=critical").content))
    assert table["case"].tolist() == [1]
    assert table.loc[0, ["entity", "flags", "worst_record", "record.shop"]].tolist() == ["customer-1", 1, "r1", "north"]
    book = ann.get(f"{DAY}/cases.xlsx").content
    with ZipFile(BytesIO(book)) as parts:
        sheet = parts.read("xl/worksheets/sheet1.xml").decode()
        assert "<f" not in sheet and "hyperlink" not in sheet
    everything = pd.read_excel(BytesIO(book), engine="calamine")
    assert everything["case"].tolist() == [1, 2, 3, 4]
    assert everything["assignee"].tolist()[3] == "'=cmd()"
    assert ann.get(f"{DAY}/cases.pdf").status_code == 404


def test_a_case_says_in_a_sentence_what_happened_and_who_did_what(ann: Browser) -> None:
    page = ann.read("/orders/case/2")
    assert "2 flags, worst first" in page
    assert "<dt>shop</dt><dd>south</dd>" in page
    assert [bar.split(" %")[0] for bar in page.split('class="percent">')[1:]] == ["50", "25", "25"]
    text = ann.get("/orders/case/2/text").text
    assert "http://testserver/orders/case/2" in text and "r2: 3.0 x the threshold; items 50 %" in text
    assert ann.get("/orders/case/99").status_code == 404


def test_the_text_of_a_case_is_as_it_is_and_its_link_as_people_reach_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access({}, local="kim", is_https=True, hostnames=("Desk.example",))

    def read(host: str) -> str:
        return TestClient(create_app(settings, access)).get("/orders/case/3/text", headers={"host": host}).text

    text = read("10.0.0.7:8890")
    assert "https://Desk.example/orders/case/3" in text and "entity: <b>customer</b>" in text
    assert "https://desk.example:9/orders/case/3" in read("desk.example:9")
    assert re.search(r"^2026-0\d-\d\d \d\d:\d\d r4: ", text, re.MULTILINE)

    def load_timeless(*given: Any) -> Setup:
        setup = load_setup(*given)
        return dataclasses.replace(setup, site=dataclasses.replace(setup.site, has_times=False))

    monkeypatch.setattr("flows.desk.view.load_setup", load_timeless)
    assert f"\n{NIGHT} r4: " in read("desk.example")


def test_what_is_usual_of_a_hidden_column_is_not_shown(ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = dict.fromkeys(("items", "customer", "spend"), (41.5, 97.5))
    monkeypatch.setattr("flows.desk.case.read_usual", lambda *_: usual)
    monkeypatch.setattr(Registry, "get_version", lambda *_: None)
    monkeypatch.setattr(Contract, "masked", {"spend"})
    assert '<dt>items</dt><dd>2 <span class="soft">usually 41.5 to 97.5</span>' in ann.read("/orders/case/2")
    facts = ann.get("/orders/case/2", headers={"accept": "application/json"}).json()
    assert facts["usual"] == {"items": [41.5, 97.5]}


def test_programs_get_null_for_an_infinite_score(ann: Browser, settings: Settings) -> None:
    with Warehouse(settings.warehouse_url).begin() as connection:
        connection.execute(sa.update(flagged_anomalies).values(score=math.inf))
    facts = ann.get("/orders/case/2", headers={"accept": "application/json"})
    assert facts.status_code == 200 and facts.json()["flags"][0]["score"] is None


@pytest.mark.parametrize("number", [10**9, 2**31, 10**40, 0, -1, "x", "+1"])
def test_a_number_that_no_database_holds_is_no_page(ann: Browser, number: object) -> None:
    for path in (f"case/{number}", f"case/{number}/text", f"case/{number}/similar", f"model/promote/{number}"):
        assert ann.get(f"/orders/{path}").status_code == 404
    assert ann.post(f"/orders/approval/{number}", decision="approved").status_code == 404


def test_a_nul_is_no_part_of_an_address_and_is_replaced_in_a_note(ann: Browser) -> None:
    assert [ann.get(f"/orders/{path}").status_code for path in ("entity/a%00", "find?q=%00", "queue?%00=1")] == [
        404
    ] * 3
    ann.post("/orders/case/1/note", note="a\0b")
    assert "a\ufffdb" in ann.read("/orders/case/1")


def test_a_verdict_closes_the_case_and_undoing_it_opens_it_again(ann: Browser, settings: Settings) -> None:
    assert ann.say("/orders/case/2/judge", verdict="confirmed", note="stolen") == "Case 2: confirmed, for 2 flags."
    assert verdicts(settings) == {"r2": "confirmed", "r3": "confirmed"}
    assert "<b>1 of 4</b>" in ann.read(DAY)
    assert ann.say("/orders/case/2/undo") == "Undone: verdict."
    assert verdicts(settings) == {}
    assert "<b>0 of 4</b>" in ann.read(DAY)
    assert "stolen" in ann.read("/orders/case/2")  # the history keeps it
    assert ann.post("/orders/case/2/undo").status_code == 409


@pytest.mark.parametrize("verdict", ["", "guilty", "withdrawn"])
def test_only_a_known_verdict_is_taken(ann: Browser, settings: Settings, verdict: str) -> None:
    assert ann.post("/orders/case/2/judge", verdict=verdict).status_code == 400
    assert verdicts(settings) == {}


def test_undo_never_takes_back_what_somebody_else_did(ann: Browser, ben: Browser) -> None:
    ann.post("/orders/case/1/take")
    answer = ben.post("/orders/case/1/undo")
    assert answer.status_code == 409 and "no last step of yours" in answer.text


def test_next_goes_from_case_to_case_and_leaves_out_what_others_have_open(ann: Browser, ben: Browser) -> None:
    first = ann.post("/orders/next")
    assert first.url.path == "/orders/case/1" and '<p class="message' not in first.text
    assert ben.post("/orders/next").url.path == "/orders/case/2"
    locked = ben.client.post("/orders/case/1/lock", headers={"x-form-key": ben.key()})
    assert "ann is working on this case" in locked.text
    assert "locked by ann" in ben.read(DAY)
    after = ann.post("/orders/case/1/judge", verdict="expected", then="next")
    assert after.url.path == "/orders/case/3"
    ann.post("/orders/case/3/judge", verdict="expected", then="next")
    done = ann.post("/orders/case/4/snooze", days="3", then="next")
    assert done.url.path == "/orders/queue" and "No other case is waiting." in done.text


def test_after_a_verdict_the_page_asks_whether_the_case_was_worth_a_look(ann: Browser, ben: Browser) -> None:
    assert "worth a look?" not in ann.read("/orders/case/1")
    assert "has no verdict yet" in ann.post("/orders/case/1/worth", worth="yes").text
    page = " ".join(ann.post("/orders/case/1/judge", verdict="confirmed").text.split())
    assert "Was this case worth a look?" in page and 'data-key="y" aria-keyshortcuts="y" aria-pressed="false"' in page
    assert ann.post("/orders/case/1/worth", worth="maybe").status_code == 400
    said = ann.say("/orders/case/1/worth", worth="yes", back="/orders/case/1")
    assert said == "Case 1 was worth a look."
    page = ann.read("/orders/case/1")
    assert 'aria-keyshortcuts="y" aria-pressed="true"' in page and "<strong>worth a look</strong> by ann" in page
    assert 'aria-pressed="true"' not in ben.read("/orders/case/1")  # what ann said is not what ben says
    after = ann.post("/orders/case/2/judge", verdict="expected", then="next")
    assert after.url.path == "/orders/case/3" and "Was case 2 worth a look?" in after.text
    back = ann.post("/orders/case/2/worth", worth="no", back="/orders/case/3?then=next")
    assert back.url.path == "/orders/case/3" and "Case 2 was not worth a look." in back.text
    assert "Was case 2" not in back.text
    assert "Undone: verdict" in ann.say("/orders/case/2/undo")


def test_the_queue_shows_why_cases_wait(ann: Browser, ben: Browser) -> None:
    ann.post("/orders/case/2/take")
    ann.post("/orders/case/3/judge", verdict="confirmed")
    ben.post("/orders/case/3/judge", verdict="false_alarm")
    assert list_shown(ann.read("/orders/queue")) == [2]
    assert list_shown(ann.read("/orders/queue?view=unassigned")) == [1, 4]
    assert list_shown(ann.read("/orders/queue?view=conflicting")) == [3]
    assert list_shown(ann.read("/orders/queue?view=due")) == []
    assert "Conflicting verdicts: ann: confirmed; ben: false_alarm (1 record)" in ann.read("/orders/case/3")
    assert ann.get("/orders/queue?view=mood").status_code == 404


def test_a_verdict_on_several_cases_is_asked_for_twice_and_above_the_limit_by_two_people(
    ann: Browser, ben: Browser, settings: Settings
) -> None:
    asked = ann.post("/orders/verdicts", case=["3", "4"], verdict="false_alarm")
    assert "False alarm for 2 cases?" in asked.text and verdicts(settings) == {}
    ann.post("/orders/verdicts", case=["3", "4"], verdict="false_alarm", is_sure="1")
    assert verdicts(settings) == {"r4": "false_alarm", "r5": "false_alarm"}
    for number in (3, 4):
        ann.post(f"/orders/case/{number}/undo")
    many = ann.post("/orders/verdicts", case=["1", "2", "3", "4"], verdict="expected", note="a sale", is_sure="1")
    assert "Approval 1 was requested" in many.text and verdicts(settings) == {}
    assert ann.post("/orders/approval/1", decision="approved").status_code == 409
    assert "requested by ann" in ben.read("/orders/queue")
    ben.post("/orders/approval/1", decision="approved")
    assert verdicts(settings) == dict.fromkeys(["r0", "r1", "r2", "r3", "r4", "r5"], "expected")
    found = Warehouse(settings.warehouse_url).read_reviews("orders", learnt=False)
    assert set(found["reviewer"]) == {"ann"} and set(found["note"]) == {"a sale; approved by ben"}
    assert ben.post("/orders/approval/1", decision="refused").status_code == 409


def test_all_cases_that_match_a_filter_can_be_judged_at_once(ann: Browser, settings: Settings) -> None:
    ann.post("/orders/verdicts", all="1", day=str(NIGHT), cause="items", verdict="expected", is_sure="1")
    assert verdicts(settings) == {"r2": "expected", "r3": "expected"}


def test_a_bulk_verdict_changes_nothing_when_somebody_was_faster(
    ann: Browser, ben: Browser, settings: Settings
) -> None:
    ben.post("/orders/case/3/judge", verdict="confirmed")
    answer = ann.post("/orders/verdicts", case=["3", "4"], verdict="expected", is_sure="1")
    assert answer.status_code == 409
    assert verdicts(settings) == {"r4": "confirmed"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{day}", "Case 1 is snoozed until {day} 00:00."),
        ("2020-01-01", "cannot be snoozed until a time that has passed"),
        ("soon", "Give a date, such as 2026-12-24."),
    ],
)
def test_a_case_is_snoozed_until_a_date_to_come(ann: Browser, text: str, expected: str) -> None:
    day = date.today() + timedelta(days=9)
    answer = ann.post("/orders/case/1/snooze", until=text.format(day=day))
    assert expected.format(day=day) in answer.text


def test_cases_are_merged_closed_and_reopened(ann: Browser) -> None:
    answer = ann.post("/orders/case/3/merge", into="1")
    assert answer.url.path == "/orders/case/1" and "Case 3 was merged into case 1." in answer.text
    assert 'merged into <a href="/orders/case/1">' in ann.read("/orders/case/3")
    assert ann.say("/orders/case/4/close") == "Case 4 was closed without a verdict."
    assert ann.say("/orders/case/4/reopen") == "Case 4 is open again."


def test_one_word_finds_a_case_an_entity_or_a_record(ann: Browser) -> None:
    def lead(word: str) -> str:
        return ann.get(f"/orders/find?q={word}", follow_redirects=False).headers.get("location", "nowhere")

    assert [lead(word) for word in ("2", "%232", "r3")] == ["/orders/case/2"] * 3
    assert lead("customer-2") == "/orders/entity/customer-2"
    assert [lead(word) for word in ("r9", "999", "")] == ["nowhere"] * 3


def test_notes_and_filters_are_kept(ann: Browser, ben: Browser) -> None:
    ann.post(f"{DAY}/note", note="<i>sale</i> in all shops")
    assert "&lt;i&gt;sale&lt;/i&gt; in all shops" in ben.read(DAY)
    ann.post("/orders/filters", name="south", search="south")
    assert f'<a href="{DAY}?search=south">south</a>' in ann.read(DAY)
    assert ">south</a>" not in ben.read(DAY)  # each their own
    ann.post("/orders/filters", name="south", drop="1")
    assert ">south</a>" not in ann.read(DAY)


def test_verdicts_come_from_a_file_as_a_spreadsheet_writes_it(ann: Browser, settings: Settings) -> None:
    table = "\ufeffVerdict;note;record_id;batch_date;inclusion\r\nConfirmed;für Ann;r1;01.07.2026;1,0\r\n"
    table += ";;r2;01.07.2026;1,0\r\n"
    headers = {"x-form-key": ann.key(), "content-type": "text/csv"}
    answer = ann.client.post("/orders/verdicts.csv", content=table.encode(), headers=headers)
    assert answer.status_code == 409 or "1 verdicts read, 1 of them new." in answer.text
    assert verdicts(settings) == {"r1": "confirmed"}
    assert "no column" in ann.post("/orders/verdicts.csv", table="a,b\n1,2\n").text


def test_what_the_pages_show_is_what_programs_get(ann: Browser) -> None:
    facts = ann.get(DAY, headers={"accept": "application/json"}).json()
    assert [case["case"] for case in facts["cases"]] == [1, 2, 3, 4]
    assert facts["batch"]["flagged"] == 5


@pytest.mark.parametrize(
    "path", ["/orders/2020-01-01", "/orders/nonsense", "/nobody", "/nobody/2026-07-01", "/orders/case/x"]
)
def test_an_unknown_address_is_a_page_that_says_so(ann: Browser, path: str) -> None:
    answer = ann.get(path)
    assert answer.status_code == 404
    assert "That did not work" in answer.text


def test_markup_in_names_and_values_stays_text(open_browser: Callable[[str], Browser]) -> None:
    page = open_browser("rex").read("/orders/case/3")
    assert "<b>customer</b>" not in page and "&lt;b&gt;customer&lt;/b&gt;" in page
    assert "<script>x" not in page
    assert 'id="judge"' not in page  # rex only reads
