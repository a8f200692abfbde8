"""Screen 5, Queue: what waits for a person, one after the other; approvals, and records to judge blind."""

from http import HTTPStatus
from typing import Any

import pandas as pd
from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import RedirectResponse

from flows.desk.view import Judge, Look, read_date
from tasks.follow_up.approvals import APPROVED, REFUSED, decide_approval
from tasks.follow_up.approvals import WITHDRAWN as TAKEN_BACK
from tasks.follow_up.cases import MEANING
from tasks.on_demand.find import find
from tasks.on_demand.night import find_newest
from tasks.on_demand.queue import MINE, VIEWS, next_sample, read_inclusion, show_queue
from tasks.on_demand.recall import estimate_recall
from tasks.review import draw_sample, keep_verdicts

router = APIRouter()
DECISIONS = (APPROVED, REFUSED, TAKEN_BACK)
SAMPLED = 20  # alerts, and as many rows below the threshold


@router.get("/{detector}/queue")
def show(look: Look) -> Response:
    """The cases that wait, by why they wait."""
    view = look.query.get("view", MINE)
    if view not in VIEWS:
        raise HTTPException(HTTPStatus.NOT_FOUND, "Not Found")
    facts = show_queue(look.site, look.person.name, view, look.now)
    with look.site.warehouse.begin_reading() as connection:
        newest = find_newest(connection, look.detector)
    return look.render("queue.html", views=VIEWS, newest=newest, recall=estimate_recall(look.site), **facts)


@router.post("/{detector}/approval/{number}")
def decide(act: Judge, number: int) -> Response:
    """Approve, refuse or take back a verdict on many cases."""
    decision = act.form.get("decision", "")
    if decision not in DECISIONS:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Approve, refuse or withdraw.")
    approval = decide_approval(act.desk, number, decision)
    return act.done(act.url("queue"), f"Approval {number} for {len(approval.cases):,} cases: {decision}.")


@router.post("/{detector}/sample")
def draw(act: Judge) -> Response:
    """Draw records of a night to be judged blind."""
    if (day := read_date(act.form.get("day", ""))) is None:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Give a date, such as 2026-12-24.")
    drawn = draw_sample(act.site, act.setup.record_rule, day, SAMPLED, act.now)
    return act.done(act.url("blind"), f"{drawn:,} records of {day} are waiting to be judged.")


@router.get("/{detector}/blind")
def show_blind(look: Look) -> Response:
    """The next sampled record, without its score."""
    facts: dict[str, Any] = {"sample": next_sample(look.site, look.person.name), "words": list(MEANING)}
    return look.render("blind.html", **facts)


@router.post("/{detector}/blind")
def judge_blind(act: Judge) -> Response:
    """A verdict on a sampled record; then the next one."""
    verdict, sample = act.verdict, next_sample(act.site, act.person.name)
    if sample is None or sample["record_id"] != act.form.get("record_id"):
        return act.go(act.url("blind"), "problem", "That record has already been judged.")
    answer = {name: sample[name] for name in ("batch_date", "record_id", "attempt")}
    answer["inclusion"] = read_inclusion(act.site, sample)
    note = act.form.get("note", "").strip()
    keep_verdicts(act.site, pd.DataFrame([{**answer, "verdict": verdict, "note": note}]), act.person.name, act.now)
    return act.done(act.url("blind"), f"{sample['record_id']}: {verdict.replace('_', ' ')}.")


@router.get("/{detector}/find")
def search(look: Look) -> Response:
    """Go to the case, the entity or the record's case that somebody looks for."""
    text = look.query.get("q", "").strip()
    found = find(look.site, look.setup.record_rule, text) if text else None
    if found is None:
        return look.render("nothing.html", HTTPStatus.NOT_FOUND, text=text)
    return RedirectResponse(look.url(*found), HTTPStatus.SEE_OTHER)
