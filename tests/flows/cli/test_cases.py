"""Cases from the night to `nightjar cases` and `nightjar case`: as people list, read, judge and close them."""

import csv
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy import DAYS, FIRST, Project

from flows.cli.main import execute
from flows.config.setup import load_setup
from tasks.filter import read_known

LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    assert execute(list(arguments)) == code
    captured = capsys.readouterr()
    assert (captured.out, "Traceback" in captured.err) == ("", False)
    return captured.err


@pytest.fixture
def watched(trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """A detector whose entity is the customer, with one night published since."""
    monkeypatch.setenv("NIGHTJAR_PSEUDONYM_KEY", "secret")
    monkeypatch.setenv("LOGNAME", "kim")
    trained.change("params.yaml", "detectors", "orders", "entity", value="customer")
    publish = {"show": ["shop", "spend"], "pseudonymise": ["customer"]}
    trained.change("params.yaml", "detectors", "orders", "publish", value=publish)
    due = {"due_hours": dict.fromkeys(("low", "medium", "high", "critical"), 1)}
    trained.change("params.yaml", "detectors", "orders", "cases", value=due)
    trained.write_day(NEW)
    answer(capsys, "score", "orders", "--date", str(NEW))
    return trained


def test_a_case_is_found_read_taken_judged_and_learnt_from(
    watched: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = answer(capsys, "cases", "orders")["cases"]
    flags = answer(capsys, "flags", "orders")["flags"]
    of_night = [case for case in listed if case["last_night"] == str(NEW)]
    assert sum(case["flags"] for case in of_night) == len(flags)
    assert {flag["case"] for flag in flags} == {case["case"] for case in of_night}
    ranks = [(["low", "medium", "high", "critical"].index(case["severity"]), case["worst_rank"]) for case in listed]
    assert ranks == sorted(ranks, reverse=True)
    site, dues = load_setup("orders").site, [datetime.fromisoformat(case["due_at"]) for case in of_night]
    assert [due.utcoffset() for due in dues] == [due.astimezone(site.zone).utcoffset() for due in dues]
    opened = [datetime.fromisoformat(case["opened_at"]) for case in of_night]
    assert [due - at for due, at in zip(dues, opened, strict=True)] == [timedelta(hours=1)] * len(of_night)
    number = str(of_night[0]["case"])

    assert answer(capsys, "case", "orders", number, "--take")["assignee"] == "kim"
    assert answer(capsys, "case", "orders", number, "--take", "--by", "ada")["assignee"] == "ada"
    judged = answer(capsys, "case", "orders", number, "--verdict", "false_alarm", "--note", "a school trip")
    assert (judged["state"], judged["verdict"]) == ("closed", "false_alarm")
    assert {(flag["verdict"], flag["note"]) for flag in judged["records"]} == {("false_alarm", "a school trip")}
    assert [event["kind"] for event in judged["history"]] == ["opened", "taken", "taken", "verdict", "closed"]
    assert int(number) not in [case["case"] for case in answer(capsys, "cases", "orders")["cases"]]
    closed = answer(capsys, "cases", "orders", "--state", "closed")["cases"]
    assert [case["case"] for case in closed] == [int(number)]
    for name in {judged["entity"]}:
        found = answer(capsys, "cases", "orders", "--entity", name)["cases"]
        assert int(number) in [case["case"] for case in found]

    # What training reads.
    known = read_known(site, NEW + timedelta(days=400))
    judged_ids = {flag["record_id"] for flag in judged["records"]}
    assert set(known.loc[known["record_id"].isin(judged_ids), "label"]) <= {0, 1}
    reviews = site.warehouse.read_reviews("orders").set_index("record_id")
    assert set(reviews.loc[sorted(judged_ids), "verdict"]) == {"normal"}
    assert set(reviews["attempt"]) == {1}

    assert execute(["case", "orders", number]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"orders case {number}: false_alarm")
    assert "verdict by kim: verdict false_alarm" in shown
    assert "a school trip" in shown
    assert execute(["cases", "orders", "--all"]) == 0
    assert f"orders: {len(listed)} cases" in capsys.readouterr().out


def test_reviewing_all_flags_of_a_case_closes_it_and_the_words_are_kept(
    watched: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert execute(["review", "orders", "--sample", "0"]) == 0
    asked = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype=str, keep_default_na=False)
    assert set(asked["attempt"]) == {"1"}
    asked["verdict"] = ["expected"] + ["confirmed"] * (len(asked) - 1)
    asked.to_csv(tmp_path / "asked.csv", index=False)
    before = answer(capsys, "cases", "orders")["cases"]
    answer(capsys, "review", "orders", "--take", str(tmp_path / "asked.csv"), "--by", "ada")
    assert answer(capsys, "review", "orders", "--take", str(tmp_path / "asked.csv"), "--by", "ada")["new"] == 0
    closed = answer(capsys, "cases", "orders", "--state", "closed")["cases"]
    of_night = [case for case in before if case["first_night"] == str(NEW)]
    assert {case["case"] for case in closed} >= {case["case"] for case in of_night}
    assert {case["verdict"] for case in closed} <= {"confirmed", "expected"}
    flags = {flag["record_id"]: flag["verdict"] for flag in answer(capsys, "flags", "orders")["flags"]}
    assert flags == dict(zip(asked["record_id"], asked["verdict"], strict=True))
    history = answer(capsys, "case", "orders", str(closed[0]["case"]))["history"]
    assert [(event["kind"], event["actor"]) for event in history][-2:] == [("verdict", "ada"), ("closed", "nightjar")]


def test_a_verdict_on_an_older_attempt_counts_while_the_night_holds_its_record(
    watched: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert execute(["review", "orders", "--sample", "0"]) == 0
    asked = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype=str, keep_default_na=False).head(2)
    answer(capsys, "score", "orders", "--date", str(NEW))
    asked.assign(verdict="confirmed").to_csv(tmp_path / "asked.csv", index=False)
    assert answer(capsys, "review", "orders", "--take", str(tmp_path / "asked.csv"))["new"] == 2
    reviews = load_setup("orders").site.warehouse.read_reviews("orders")
    assert set(reviews["attempt"]) == {1}
    for record, attempt in (("gone", "1"), (asked["record_id"][0], "9")):
        strange = asked.assign(verdict="confirmed", record_id=record, attempt=attempt).head(1)
        strange.to_csv(tmp_path / "strange.csv", index=False)
        said = refuse(capsys, "review", "orders", "--take", str(tmp_path / "strange.csv"))
        assert f"{NEW} {record} of attempt {attempt}; published is 2" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("cases", "orders", "--all", "--state", "open"), 2, "give one of --all and --state"),
        (("cases", "orders", "--csv", "--json"), 2, "give one of --csv and --json"),
        (("cases", "orders", "--state", "shut"), 2, "shut"),
        (("case", "orders", "999"), 1, "CaseMissing: orders has no case 999"),
        (("case", "orders", "999", "--take"), 1, "CaseMissing: orders has no case 999"),
        (("case", "orders", "1", "--take", "--close"), 2, "give one of --take"),
        (("case", "orders", "1", "--verdict", "perhaps"), 2, "perhaps"),
        (("case", "orders", "1", "--note", " "), 2, "the note is empty"),
        (("case", "orders", "1", "--snooze", "2026-01-01"), 1, "CaseRefused: Case 1 cannot be snoozed until a time"),
        (("case", "orders", "1", "--snooze", "tomorrow"), 2, "tomorrow"),
        (("case", "orders", "1", "--take", "--by", "nightjar"), 2, "is not a person's name"),
        (("case", "orders", "1", "--merge", "1"), 1, "into itself"),
    ],
)
def test_wrong_use_of_cases_is_refused(
    trained: Project, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert message in " ".join(refuse(capsys, *arguments, code=code).replace("│", " ").split())


def test_cases_go_into_a_spreadsheet_without_formulas(watched: Project, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "case", "orders", "1", "--take", "--by", "=1+1")
    assert execute(["cases", "orders", "--csv"]) == 0
    rows = {row["case"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["1"]["assignee"] == "'=1+1"
