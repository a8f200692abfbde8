"""Cases: which alerts are in which, whatever nights, reruns and people do, and in what order."""

import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from texts import AWKWARD

from tasks.errors import CaseMissing, CaseRefused
from tasks.follow_up import actions
from tasks.follow_up.cases import follow_verdicts, summarise
from tasks.publish import publish_night
from tasks.rows.params import CasesParams
from tasks.stores.tables import Case, Night, case_events, case_flags, cases, flagged_anomalies, reviews
from tasks.stores.warehouse import Warehouse

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, 4, tzinfo=UTC)
NEXT = DAY + timedelta(days=1)
PARAMS = CasesParams()
Alerts = dict[str, str | None]  # the entity of each record


def make_flags(alerts: Alerts, suppressed: Sequence[str] = (), rank: float = 99.5) -> pd.DataFrame:
    """One flag per record, the first the worst."""
    count = len(alerts)
    return pd.DataFrame(
        {
            "record_id": pd.Series(list(alerts), dtype="str"),
            "entity": pd.Series(list(alerts.values()), dtype=object),
            "event_time": pd.date_range("2026-03-01", periods=count, freq="s", tz="UTC"),
            "score": [2.0 + count - number for number in range(count)],
            "percentile_rank": rank,
            "p_value": 0.01,
            "causes": json.dumps([{"column": "amount", "share": 3.0}, {"column": "other", "share": 1.0}]),
            "second_stage_probability": None,
            "suppressed": [record in suppressed for record in alerts],
        }
    )


def make_night(day: date, attempt: int, flags: int, detector: str = "toy") -> Night:
    return Night(
        detector=detector, batch_date=day, input_hash="h", rows_in=flags, quarantined=0, excluded=0, scored=flags,
        flagged=flags, unseen=0, threshold=1.0, model_name="m", model_version=1, scored_at=NOW, scores=None,
        attempt=attempt, seconds=1.0,
    )  # fmt: skip


def publish(
    engine: Warehouse, alerts: Alerts, day: date = DAY, now: datetime = NOW, detector: str = "toy", **how: Any
) -> Night:
    """Begin an attempt and publish it."""
    attempt = engine.begin_attempt(detector, day, "score", now)
    night = make_night(day, attempt, len(alerts), detector)
    publish_night(engine, night, make_flags(alerts, **how), now, lambda: "h", cases=PARAMS)
    return night


def read_cases(engine: Warehouse, detector: str = "toy") -> dict[int, Case]:
    with engine.begin_reading() as connection:
        found = connection.execute(sa.select(cases).where(cases.c.detector == detector)).mappings().all()
    return {row["case_id"]: Case(**row) for row in found}


def read_members(engine: Warehouse, detector: str = "toy") -> dict[int, set[str]]:
    """The records of each case that has some."""
    members: dict[int, set[str]] = {}
    with engine.begin_reading() as connection:
        found = sa.select(case_flags.c.case_id, case_flags.c.record_id).where(case_flags.c.detector == detector)
        for case, record in connection.execute(found).all():
            members.setdefault(case, set()).add(record)
    return members


def read_events(engine: Warehouse, case: int) -> list[tuple[str, str, dict[str, Any]]]:
    with engine.begin_reading() as connection:
        c = case_events.c
        found = sa.select(c.kind, c.actor, c.details).where(c.detector == "toy", c.case_id == case).order_by(c.number)
        rows = [(kind, actor, json.loads(details or "{}")) for kind, actor, details in connection.execute(found).all()]
    for _, _, details in rows:
        details.pop("was", None)  # for undoing: see test_actions
    return rows


def kinds(engine: Warehouse, case: int) -> list[str]:
    return [kind for kind, *_ in read_events(engine, case)]


def read_tables(engine: Warehouse) -> list[Any]:
    with engine.begin_reading() as connection:
        return [
            connection.execute(sa.select(t).order_by(*t.c)).all() for t in (cases, case_flags, case_events, reviews)
        ]


def desk(engine: Warehouse, now: datetime = NOW, actor: str = "kim") -> actions.Desk:
    return actions.Desk(engine, "toy", PARAMS, actor, now)


# --- nights ---


def test_the_alerts_of_an_entity_are_one_case_over_nights_and_each_without_one_a_case_of_its_own(
    engine: Warehouse,
) -> None:
    publish(engine, {"a1": "ann", "b1": "bob", "a2": "ann", "x": None, "y": None})
    publish(engine, {"a3": "ann", "c1": "cid", "x": None}, NEXT)
    assert read_members(engine) == {1: {"a1", "a2", "a3"}, 2: {"b1"}, 3: {"x"}, 4: {"y"}, 5: {"c1"}, 6: {"x"}}
    found = read_cases(engine)
    assert [(case.entity, case.record_id, case.batch_date) for case in found.values()] == [
        ("ann", None, None), ("bob", None, None), (None, "x", DAY), (None, "y", DAY), ("cid", None, None),
        (None, "x", NEXT),
    ]  # fmt: skip
    assert {(case.state, case.assignee) for case in found.values()} == {("open", None)}
    assert {case.severity for case in found.values()} == {"low"}
    assert read_events(engine, 1) == [
        ("opened", "nightjar", {"batch_date": "2026-03-01", "attempt": 1, "flags": 2, "severity": "low"}),
        ("joined", "nightjar", {"batch_date": "2026-03-02", "attempt": 1, "flags": 1}),
    ]


def test_suppressed_flags_are_in_no_case(engine: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(engine, {"a1": "ann", "a2": "ann", "b1": "bob"}, suppressed=["a2", "b1"])
    assert read_members(engine) == {1: {"a1"}}
    loaded = sys.modules["tasks.publish"].build_rows
    monkeypatch.setattr("tasks.publish.build_rows", lambda *given: loaded(*given).assign(suppressed_by="7"))
    publish(engine, {"c1": "cid"}, NEXT)
    assert read_members(engine) == {1: {"a1"}}
    monkeypatch.undo()
    publish(engine, {"a1": "ann", "a2": "ann", "b1": "bob"}, suppressed=["a1", "a2"])  # by a newer second stage
    assert read_members(engine) == {2: {"b1"}}
    assert [case.state for case in read_cases(engine).values()] == ["closed", "open"]


def test_a_rerun_keeps_what_is_flagged_again_and_lets_go_what_is_not(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "a2": "ann", "b1": "bob", "c1": "cid"})
    actions.note_case(desk(engine), 3, "called cid")
    publish(engine, {"a2": "ann", "a3": "ann", "d1": "dan"}, now=NOW + timedelta(hours=1))
    assert read_members(engine) == {1: {"a2", "a3"}, 4: {"d1"}}
    found = read_cases(engine)
    assert [found[number].state for number in (1, 2, 3, 4)] == ["open", "closed", "open", "open"]
    assert found[2].closed_at == NOW + timedelta(hours=1)
    assert [kinds(engine, number) for number in (1, 2, 3, 4)] == [
        ["opened", "left", "joined"],
        ["opened", "left", "closed"],
        ["opened", "note", "left"],
        ["opened"],
    ]
    assert read_events(engine, 2)[-1] == ("closed", "nightjar", {"reason": "no record of it is flagged any more"})
    with engine.begin_reading() as connection:
        assert set(connection.scalars(sa.select(case_flags.c.attempt))) == {2}


def test_publishing_the_same_attempt_again_changes_nothing(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "x": None})
    night = publish(engine, {"a2": "ann", "y": None})
    once = read_tables(engine)
    for later in (0, 5):
        now = NOW + timedelta(hours=later)
        publish_night(engine, night, make_flags({"a2": "ann", "y": None}), now, lambda: "h", cases=PARAMS)
        assert read_tables(engine) == once


def test_any_text_can_be_a_record_or_an_entity(engine: Warehouse) -> None:
    alerts: Alerts = {text: text for text in [*AWKWARD, "a\0b"]}
    for _ in range(2):
        publish(engine, alerts | {"y\0": None})
    publish(engine, {f"{record} again": entity for record, entity in alerts.items()}, NEXT)
    found = read_cases(engine)
    assert [case.state for case in found.values()] == ["open"] * (len(alerts) + 1)
    assert sorted(len(records) for records in read_members(engine).values()) == [1] + [2] * len(alerts)
    assert {case.entity for case in found.values()} == {*AWKWARD, "a\ufffdb", None}


def test_a_record_whose_entity_changed_moves_to_the_case_of_the_new_one(engine: Warehouse) -> None:
    publish(engine, {"a1": None, "b1": None, "c1": "bob"})
    actions.take_case(desk(engine), 2)
    publish(engine, {"a1": "ann", "b1": "bob", "c1": "bob"})  # the params name the entity now
    assert read_members(engine) == {3: {"b1", "c1"}, 4: {"a1"}}
    assert [case.state for case in read_cases(engine).values()] == ["closed", "open", "open", "open"]
    publish(engine, {"a1": None, "b1": "bob", "c1": "bob"})
    assert read_members(engine) == {3: {"b1", "c1"}, 5: {"a1"}}


def test_detectors_have_cases_of_their_own(engine: Warehouse) -> None:
    for detector in ("toy", "other"):
        publish(engine, {"a1": "ann", "x": None}, detector=detector)
    publish(engine, {}, detector="other")
    assert read_members(engine, "other") == {}
    assert read_members(engine) == {1: {"a1"}, 2: {"x"}}
    assert [case.state for case in read_cases(engine).values()] == ["open", "open"]


@pytest.mark.slow
def test_nights_of_two_dates_and_two_detectors_published_at_once_give_each_alert_one_case(engine: Warehouse) -> None:
    days = [DAY + timedelta(days=number) for number in range(4)]
    jobs = [(detector, day) for day in days for detector in ("toy", "other")] * 2
    failed: list[BaseException] = []

    def work(detector: str, day: date) -> None:
        try:
            publish(engine, {f"{day}-{n}": f"card {n}" for n in range(5)} | {f"{day}-x": None}, day, detector=detector)
        except BaseException as error:  # noqa: BLE001 - shown below
            if "newer attempt" not in str(error):
                failed.append(error)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for detector in ("toy", "other"):
        members = read_members(engine, detector)
        assert sorted(members) == list(range(1, 10))
        assert sorted(len(records) for records in members.values()) == [1] * 4 + [4] * 5


# --- severity ---


@pytest.mark.parametrize(
    ("rank", "flags", "expected"),
    [(99.0, 1, "low"), (99.9, 1, "medium"), (99.89, 2, "low"), (99.89, 9, "low"), (99.9, 3, "high"), (99.99, 1, "high"),
     (99.99, 3, "critical"), (99.999, 1, "critical"), (100.0, 50, "critical"), (0.0, 1, "low")],
)  # fmt: skip
def test_severity_goes_by_the_worst_flag_and_rises_with_several(rank: float, flags: int, expected: str) -> None:
    assert PARAMS.find_severity(rank, flags) == expected


def test_severity_and_due_date_only_rise_while_a_case_is_open(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    assert read_cases(engine)[1].due_at == NOW + timedelta(days=7)
    publish(engine, {"a2": "ann"}, NEXT, NOW + timedelta(days=1), rank=99.95)
    case = read_cases(engine)[1]
    assert (case.severity, case.due_at) == ("medium", NOW + timedelta(days=4))
    publish(engine, {}, NEXT, NOW + timedelta(days=2))
    assert read_cases(engine)[1] == case
    publish(engine, {"a2": "ann"}, NEXT, NOW + timedelta(days=3, hours=12), rank=99.995)
    case = read_cases(engine)[1]
    assert (case.severity, case.due_at) == ("high", NOW + timedelta(days=4))  # earlier than a day from now


def test_a_snoozed_case_takes_new_flags_and_opens_when_its_severity_rises(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    actions.snooze_case(desk(engine), 1, NOW + timedelta(days=30))
    publish(engine, {"a2": "ann"}, NEXT)
    case = read_cases(engine)[1]
    assert (case.state, case.severity, read_members(engine)[1]) == ("snoozed", "low", {"a1", "a2"})
    publish(engine, {"a3": "ann"}, NEXT + timedelta(days=1), rank=99.95)
    case = read_cases(engine)[1]
    assert (case.state, case.snoozed_until, case.severity) == ("open", None, "high")  # three flags
    assert read_events(engine, 1)[-2:] == [
        ("raised", "nightjar", {"before": "low", "severity": "high"}),
        ("reopened", "nightjar", {"reason": "its severity rose"}),
    ]


# --- people ---


def read_verdicts(engine: Warehouse) -> dict[str, tuple[str, str | None, int]]:
    found = engine.read_reviews("toy", learnt=False)
    rows = found.astype(object).where(found.notna(), None)[["record_id", "verdict", "said", "attempt"]]
    return {record: (verdict, said, int(attempt)) for record, verdict, said, attempt in rows.to_numpy()}


@pytest.mark.parametrize(
    ("word", "learnt"),
    [("confirmed", "anomaly"), ("expected", "normal"), ("false_alarm", "normal"), ("new_trend", "normal"),
     ("unresolved", None)],
)  # fmt: skip
def test_a_verdict_on_a_case_is_one_on_each_of_its_records_and_closes_it(
    engine: Warehouse, word: str, learnt: str | None
) -> None:
    publish(engine, {"old": "ann"})
    publish(engine, {"a1": "ann", "a2": "ann", "b1": "bob"})
    assert actions.judge_case(desk(engine), 1, word, "seen") == 2
    case = read_cases(engine)[1]
    assert (case.state, case.verdict, case.closed_at) == ("closed", word, NOW)
    assert read_verdicts(engine) == dict.fromkeys(("a1", "a2"), (learnt or "unresolved", word, 2))
    known = engine.read_reviews("toy")
    assert known["verdict"].tolist() == ([learnt] * 2 if learnt else [])
    assert set(known["reviewer"]) == ({"kim"} if learnt else set())
    assert set(known["note"]) == ({"seen"} if learnt else set())
    assert kinds(engine, 1)[-2:] == ["verdict", "closed"]


def test_a_closed_case_keeps_its_records_when_a_night_is_repeated_and_a_new_flag_opens_a_new_case(
    engine: Warehouse,
) -> None:
    publish(engine, {"a1": "ann", "x": None})
    for number in (1, 2):
        actions.judge_case(desk(engine), number, "confirmed")
    publish(engine, {"a1": "ann", "x": None})
    assert read_members(engine) == {1: {"a1"}, 2: {"x"}}
    publish(engine, {"a1": "ann", "a2": "ann"})
    publish(engine, {"a3": "ann"}, NEXT)
    assert read_members(engine) == {1: {"a1"}, 3: {"a2", "a3"}}
    assert read_events(engine, 3)[0][2]["former"] == 1
    assert set(read_verdicts(engine)) == {"a1", "x"}  # x is not flagged any more; what was said of it stays


def test_a_record_that_was_judged_and_is_flagged_again_needs_no_second_look(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    actions.judge_case(desk(engine), 1, "expected")
    publish(engine, {})
    publish(engine, {"a1": "ann", "b1": "bob"})
    found = read_cases(engine)
    assert [(case.state, case.verdict) for case in found.values()] == [
        ("closed", "expected"), ("closed", "expected"), ("open", None),
    ]  # fmt: skip
    assert read_events(engine, 2)[-1] == (
        "closed", "nightjar", {"verdict": "expected", "reason": "every flag has a verdict"},
    )  # fmt: skip


def test_a_case_is_taken_snoozed_noted_closed_and_reopened(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    actions.take_case(desk(engine), 1)
    actions.take_case(desk(engine, actor="ada"), 1, "my turn")
    assert read_cases(engine)[1].assignee == "ada"
    assert read_events(engine, 1)[-1] == ("taken", "ada", {"before": "kim"})
    actions.snooze_case(desk(engine), 1, NOW + timedelta(days=2))
    actions.reopen_case(desk(engine), 1)
    assert (read_cases(engine)[1].state, read_cases(engine)[1].snoozed_until) == ("open", None)
    actions.close_case(desk(engine), 1, "a test card")
    assert (read_cases(engine)[1].state, read_cases(engine)[1].verdict) == ("closed", None)
    later = NOW + timedelta(days=9)
    actions.reopen_case(desk(engine, later), 1)
    case = read_cases(engine)[1]
    assert (case.state, case.closed_at, case.due_at) == ("open", None, later + timedelta(days=7))
    assert kinds(engine, 1) == ["opened", "taken", "taken", "snoozed", "reopened", "closed", "reopened"]
    assert read_verdicts(engine) == {}


def test_only_a_judged_case_was_worth_a_look_or_not_and_that_is_no_step_to_undo(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    with pytest.raises(CaseRefused, match="has no verdict yet"):
        actions.rate_case(desk(engine), 1, True)
    actions.judge_case(desk(engine), 1, "false_alarm")
    actions.rate_case(desk(engine, actor="ada"), 1, False)
    actions.rate_case(desk(engine), 1, True)
    assert [event for event in read_events(engine, 1) if event[0] == "worth"] == [
        ("worth", "ada", {"worth": False}),
        ("worth", "kim", {"worth": True}),
    ]
    assert actions.undo_case(desk(engine, NOW + timedelta(hours=1)), 1) == "verdict"
    assert read_cases(engine)[1].state == "open"


def test_a_closed_case_can_be_judged_anew_and_the_newest_verdict_counts(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    actions.judge_case(desk(engine), 1, "confirmed")
    actions.judge_case(desk(engine, NOW + timedelta(hours=1), "ada"), 1, "false_alarm")
    assert read_cases(engine)[1].verdict == "false_alarm"
    assert read_verdicts(engine) == {"a1": ("normal", "false_alarm", 1)}
    with engine.begin_reading() as connection:
        assert len(connection.execute(sa.select(reviews)).all()) == 2


def test_a_case_that_a_person_reopened_waits_for_a_newer_verdict(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "a2": "ann"})
    actions.judge_case(desk(engine), 1, "expected")
    actions.reopen_case(desk(engine, NOW + timedelta(hours=1)), 1)
    publish(engine, {"a1": "ann"}, now=NOW + timedelta(hours=2))
    assert read_cases(engine)[1].state == "open"
    later = NOW + timedelta(hours=3)
    given = {"batch_date": DAY, "record_id": "a1", "reviewer": "ada", "reviewed_at": pd.Timestamp(later)}
    frame = pd.DataFrame([given | {"verdict": "anomaly", "inclusion": 1.0}])
    said = {(DAY, "a1"): "anomaly"}
    engine.add_reviews("toy", frame, lambda connection: follow_verdicts(connection, "toy", said, "ada", later))
    assert (read_cases(engine)[1].state, read_cases(engine)[1].verdict) == ("closed", "confirmed")


def test_a_rerun_that_ranks_the_same_flags_higher_raises_the_severity(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "b1": "bob"})
    actions.close_case(desk(engine), 2)
    publish(engine, {"a1": "ann", "b1": "bob"}, rank=99.995)
    found = read_cases(engine)
    assert (found[1].severity, found[1].due_at, found[2].severity) == ("high", NOW + timedelta(days=1), "low")
    assert kinds(engine, 1) == ["opened", "raised"]


def test_two_cases_are_merged_and_later_flags_of_both_entities_follow(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "b1": "bob", "x": None, "c1": "cid"}, rank=99.95)
    actions.take_case(desk(engine), 2)
    actions.merge_case(desk(engine), 3, 2)
    actions.merge_case(desk(engine), 2, 1)
    assert read_members(engine) == {1: {"a1", "b1", "x"}, 4: {"c1"}}
    found = read_cases(engine)
    assert [(case.state, case.merged_into) for case in found.values()] == [
        ("open", None), ("closed", 1), ("closed", 1), ("open", None),
    ]  # fmt: skip
    assert (found[1].severity, found[1].assignee) == ("high", "kim")  # three flags now
    publish(engine, {"a1": "ann", "b1": "bob", "x": None, "c1": "cid"})  # a rerun changes nothing
    assert read_cases(engine) == found
    publish(engine, {"b2": "bob"}, NEXT)
    assert read_members(engine)[1] == {"a1", "b1", "x", "b2"}
    actions.judge_case(desk(engine), 1, "confirmed")
    assert set(read_verdicts(engine)) == {"a1", "b1", "x", "b2"}
    publish(engine, {"b3": "bob"}, NEXT + timedelta(days=1))
    assert read_members(engine)[5] == {"b3"}
    assert read_events(engine, 5)[0][2]["former"] == 1


def test_two_cases_without_flags_that_people_took_are_merged(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann", "b1": "bob"})
    for number in (1, 2):
        actions.take_case(desk(engine), number)
    publish(engine, {})
    actions.merge_case(desk(engine), 2, 1)
    assert [(case.state, case.merged_into) for case in read_cases(engine).values()] == [("open", None), ("closed", 1)]


def test_a_closed_case_is_merged_into_the_open_one_of_its_entity(engine: Warehouse) -> None:
    publish(engine, {"a1": "ann"})
    actions.judge_case(desk(engine), 1, "confirmed")
    publish(engine, {"a2": "ann"}, NEXT)
    with pytest.raises(CaseRefused, match=r"two open cases with those of case 2(.|\n)*case toy 1 --merge 2"):
        actions.reopen_case(desk(engine), 1)
    actions.merge_case(desk(engine), 1, 2)
    assert read_members(engine) == {2: {"a1", "a2"}}
    assert set(read_verdicts(engine)) == {"a1"}


Act = Callable[[actions.Desk], object]
REFUSED: dict[str, tuple[Act, str]] = {
    "take closed": (lambda at: actions.take_case(at, 2), "Case 2 is closed"),
    "snooze closed": (lambda at: actions.snooze_case(at, 2, NOW + timedelta(days=1)), "Case 2 is closed"),
    "close closed": (lambda at: actions.close_case(at, 2), "--reopen"),
    "snooze until now": (lambda at: actions.snooze_case(at, 1, NOW), "a time that has passed"),
    "reopen open": (lambda at: actions.reopen_case(at, 1), "is open already"),
    "take merged": (lambda at: actions.take_case(at, 3), "merged into case 1"),
    "judge merged": (lambda at: actions.judge_case(at, 3, "expected"), "merged into case 1"),
    "reopen merged": (lambda at: actions.reopen_case(at, 3), "merged into case 1"),
    "merge merged": (lambda at: actions.merge_case(at, 3, 1), "merged into case 1"),
    "merge into closed": (lambda at: actions.merge_case(at, 1, 2), "Case 2 is closed"),
    "merge into merged": (lambda at: actions.merge_case(at, 1, 3), "merged into case 1"),
    "merge with itself": (lambda at: actions.merge_case(at, 1, 1), "into itself"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_state_of_a_case_does_not_allow_is_refused_and_changes_nothing(engine: Warehouse, what: str) -> None:
    act, message = REFUSED[what]
    publish(engine, {"a1": "ann", "b1": "bob", "c1": "cid"})
    actions.close_case(desk(engine), 2)
    actions.merge_case(desk(engine), 3, 1)
    before = read_tables(engine)
    with pytest.raises(CaseRefused, match=message):
        act(desk(engine))
    assert read_tables(engine) == before


ACTS: tuple[Act, ...] = (
    lambda at: actions.take_case(at, 9),
    lambda at: actions.judge_case(at, 9, "expected"),
    lambda at: actions.note_case(at, 9, "?"),
    lambda at: actions.merge_case(at, 1, 9),
)


@pytest.mark.parametrize("number", range(len(ACTS)))
def test_a_case_that_does_not_exist_is_an_error_that_changes_nothing(engine: Warehouse, number: int) -> None:
    publish(engine, {"a1": "ann"})
    publish(engine, {}, detector="other")
    before = read_tables(engine)
    with pytest.raises(CaseMissing, match="toy has no case 9"):
        ACTS[number](desk(engine))
    assert read_tables(engine) == before


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (["normal", "anomaly"], "confirmed"),
        (["expected", "confirmed"], "confirmed"),
        (["normal"], "false_alarm"),
        (["expected", "expected"], "expected"),
        (["expected", "new_trend"], "false_alarm"),
        (["unresolved"], "unresolved"),
        (["unresolved", "anomaly"], "confirmed"),
    ],
)
def test_the_verdict_on_a_case_follows_from_those_on_its_flags(words: list[str], verdict: str) -> None:
    assert summarise(words) == verdict


# --- anything in any order ---

RECORDS = {f"{entity}{number}": entity for entity in ("ann", "bob") for number in range(3)} | {"x": None, "y": None}
chosen = st.sets(st.sampled_from(sorted(RECORDS)))
number = st.integers(1, 6)


@dataclass
class Said:
    """What was said of each record, newest last."""

    of: dict[tuple[date, str], list[str]] = field(default_factory=dict)


class Nights(RuleBasedStateMachine):
    """Nights, reruns and people in any order, on one warehouse."""

    source: Path  # an empty warehouse
    folder: Path
    names = itertools.count()

    @initialize()
    def begin(self) -> None:
        path = self.folder / f"{next(self.names)}.sqlite"
        shutil.copy(self.source, path)
        self.engine, self.now, self.said = Warehouse(f"sqlite:///{path}"), NOW, Said()

    def desk(self) -> actions.Desk:
        self.now += timedelta(hours=1)
        return desk(self.engine, self.now)

    @rule(records=chosen, day=st.sampled_from([DAY, NEXT]), is_repeated=st.booleans())
    def publish(self, records: set[str], day: date, is_repeated: bool) -> None:
        night = publish(self.engine, {record: RECORDS[record] for record in sorted(records)}, day, self.now)
        if is_repeated:
            once = read_tables(self.engine)
            flags = make_flags({record: RECORDS[record] for record in sorted(records)})
            publish_night(self.engine, night, flags, self.now, lambda: "h", cases=PARAMS)
            assert read_tables(self.engine) == once

    @rule(case=number, word=st.sampled_from(["confirmed", "expected", "unresolved"]))
    def judge(self, case: int, word: str) -> None:
        with self.engine.begin_reading() as connection:
            found = sa.select(case_flags.c.batch_date, case_flags.c.record_id).where(case_flags.c.case_id == case)
            records = [(day, record) for day, record in connection.execute(found).all()]
        self.act(lambda at: actions.judge_case(at, case, word), lambda: self.remember(records, word))

    def remember(self, records: list[tuple[date, str]], word: str) -> None:
        for record in records:
            self.said.of.setdefault(record, []).append(word)

    @rule(record=st.sampled_from(sorted(RECORDS)), day=st.sampled_from([DAY, NEXT]))
    def review(self, record: str, day: date) -> None:
        """A verdict of `nightjar review`, which may be about a record without a flag."""
        at = self.desk()
        given = {"batch_date": day, "record_id": record, "reviewer": "ada", "reviewed_at": pd.Timestamp(at.now)}
        frame = pd.DataFrame([given | {"verdict": "anomaly", "said": "confirmed", "inclusion": 1.0, "attempt": 1}])
        follow = lambda connection: follow_verdicts(connection, "toy", {(day, record): "confirmed"}, "ada", at.now)  # noqa: E731
        assert self.engine.add_reviews("toy", frame, follow) == 1
        self.remember([(day, record)], "confirmed")
        with self.engine.begin_reading() as connection:
            of_record = (case_flags.c.batch_date == day, case_flags.c.record_id == record)
            holder = connection.scalars(sa.select(case_flags.c.case_id).where(*of_record)).all()
        for case in holder:
            assert ("verdict", "ada", {"verdict": "confirmed", "flags": 1}) in read_events(self.engine, case)
            if all(word for word in self.words_of(case)):
                assert not read_cases(self.engine)[case].is_open

    def words_of(self, case: int) -> list[list[str]]:
        with self.engine.begin_reading() as connection:
            found = sa.select(case_flags.c.batch_date, case_flags.c.record_id).where(case_flags.c.case_id == case)
            return [self.said.of.get((day, record), []) for day, record in connection.execute(found).all()]

    @rule(case=number, into=number)
    def merge(self, case: int, into: int) -> None:
        self.act(lambda at: actions.merge_case(at, case, into))

    @rule(case=number)
    def close(self, case: int) -> None:
        self.act(lambda at: actions.close_case(at, case))

    @rule(case=number)
    def reopen(self, case: int) -> None:
        self.act(lambda at: actions.reopen_case(at, case))

    @rule(case=number)
    def snooze(self, case: int) -> None:
        self.act(lambda at: actions.snooze_case(at, case, self.now + timedelta(hours=3)))

    def act(self, act: Act, after: Callable[[], None] = lambda: None) -> None:
        before = read_tables(self.engine)
        try:
            act(self.desk())
        except (CaseRefused, CaseMissing):
            assert read_tables(self.engine) == before
        else:
            after()

    @invariant()
    def each_alert_is_in_exactly_one_case_of_its_own(self) -> None:
        if not hasattr(self, "engine"):
            return
        with self.engine.begin_reading() as connection:
            key = (flagged_anomalies.c.batch_date, flagged_anomalies.c.record_id, flagged_anomalies.c.attempt)
            alerts = connection.execute(sa.select(*key)).all()
            members = (case_flags.c.batch_date, case_flags.c.record_id, case_flags.c.attempt, case_flags.c.case_id)
            held = connection.execute(sa.select(*members)).all()
        assert sorted(tuple(row)[:3] for row in held) == sorted(map(tuple, alerts))
        found = read_cases(self.engine)
        assert sorted(found) == list(range(1, len(found) + 1))
        assert all(found[row.case_id].merged_into is None for row in held)
        open_entities = [case.entity for case in found.values() if case.is_open and case.entity]
        assert len(open_entities) == len(set(open_entities))
        assert all(case.is_open == (case.state != "closed") for case in found.values())

    @invariant()
    def no_verdict_is_lost(self) -> None:
        if not hasattr(self, "engine"):
            return
        with self.engine.begin_reading() as connection:
            given = sa.select(reviews.c.batch_date, reviews.c.record_id, reviews.c.said).order_by(reviews.c.reviewed_at)
            rows = connection.execute(given).all()
        found: dict[tuple[date, str], list[str]] = {}
        for day, record, word in rows:
            found.setdefault((day, record), []).append(word)
        assert found == self.said.of


def test_whatever_happens_each_alert_is_in_one_case_and_no_verdict_is_lost(tmp_path: Path) -> None:
    """On SQLite, whose transactions take the least time."""
    empty = tmp_path / "empty.sqlite"
    Warehouse(f"sqlite:///{empty}").migrate()
    kind = type("Any", (Nights,), {"source": empty, "folder": tmp_path})
    how = settings(max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(kind, settings=how)


def test_params_complete_what_is_not_given_and_refuse_ranks_that_do_not_rise() -> None:
    params = CasesParams(due_hours={"critical": 1.0}, ranks={"medium": 99.5})
    assert (params.due_hours["critical"], params.due_hours["low"]) == (1.0, 168)
    assert params.find_severity(99.6, 1) == "medium"
    with pytest.raises(ValueError, match="must rise"):
        CasesParams(ranks={"medium": 99.995})
