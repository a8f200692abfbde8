"""Screen 2, Case: what happened, why it was flagged, and what people said and do about it."""

from dataclasses import replace
from datetime import datetime, time, timedelta
from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import PlainTextResponse

from flows.desk.view import ENVIRONMENT, Act, Judge, Look, read_number
from tasks.errors import ChampionMissing, ServiceUnreachable
from tasks.follow_up import actions
from tasks.follow_up.cases import WORTH
from tasks.on_demand.case import Usual, read_usual, show_case_page

router = APIRouter()
SNOOZE_DAYS = (1, 3, 7, 30)
LOCKING_S = 0.2  # a page does not wait for its lock
KEYS = {"confirmed": "c", "expected": "e", "false_alarm": "f", "new_trend": "n", "unresolved": "u"}


@router.get("/{detector}/case/{number}")
def show(look: Look, number: int) -> Response:
    """A case, with one page of its flags."""
    facts = show_case_page(
        look.site, look.params.score, number, look.now, lambda version: find_usual(look, version),
        read_number(look.query.get("page", "")),
    )  # fmt: skip
    said = [
        one["details"][WORTH] for one in facts["events"] if (one["kind"], one["actor"]) == (WORTH, look.person.name)
    ]
    judged, then = read_number(look.query.get("judged", ""), 0), look.query.get("then", "")
    shown = facts | {"judged": judged, "worth": said[-1] if said else None, "then": then}
    return look.render("case.html", keys=KEYS, snooze_days=SNOOZE_DAYS, **shown)


def find_usual(look: Look, version: int) -> Usual:
    """Between which values a version's training rows lie; nothing where that cannot be known any more."""
    site = look.site

    def read() -> Usual:
        try:
            return read_usual(site, site.registry.get_version(version))
        except (ChampionMissing, ServiceUnreachable):
            return {}

    hidden = {*look.setup.configured.contract.masked, *look.params.publish.pseudonymise}
    found = look.room.remember(("usual", site.detector, version), read)
    return {name: values for name, values in found.items() if name not in hidden}


@router.get("/{detector}/case/{number}/text")
def copy(look: Look, number: int) -> Response:
    """The case as plain text, for a message or a ticket."""
    facts = show_case_page(look.site, look.params.score, number, look.now, lambda version: find_usual(look, version))
    return PlainTextResponse(ENVIRONMENT.get_template("case.txt").render(
        **facts, detector=look.detector, link=look.link("case", number), zone=look.site.zone,
        has_times=look.site.has_times,
    ))  # fmt: skip


@router.post("/{detector}/case/{number}/lock")
def lock(act: Judge, number: int) -> Response:
    """Lock the case for the person who opened it, or say who else has it open."""
    minutes, desk = act.params.cases.lock_minutes, replace(act.desk, wait_s=LOCKING_S)
    try:
        case = actions.lock_case(desk, number, minutes)
    except ServiceUnreachable:  # a night is being published: the page asks again later
        return Response()
    return act.render("lock.html", case=case, is_others=actions.is_locked(case, act.person.name, act.now))


@router.post("/{detector}/next")
def go_next(act: Judge) -> Response:
    """Open and lock the next case that waits."""
    skipped = [number for text in act.form.get("after", "").split(",") if (number := read_number(text, 0))]
    return open_next(act, skipped, "")


def open_next(act: Act, skipped: list[int], message: str, judged: int = 0) -> Response:
    """Go to the next case, with a message about the last one; if that was judged, the page asks about it."""
    case = actions.lock_next(act.desk, act.params.cases.lock_minutes, skipped)
    if case is None:
        return act.done(act.url("queue"), f"{message} No other case is waiting.".strip())
    return act.done(act.url("case", case.case_id, then="next", judged=judged or None), message)


@router.post("/{detector}/case/{number}/{what}")
def change(act: Judge, number: int, what: str) -> Response:
    """Take, assign, judge, rate, note, snooze, close, reopen, merge or undo."""
    note = act.form.get("note", "").strip() or None
    message = act_on(act, number, what, note)
    if act.form.get("then") == "next" and what in ("judge", "snooze", "close"):
        return open_next(act, [number], message, number if what == "judge" else 0)
    if what == WORTH:
        return act.done(act.back, message)
    return act.done(act.url("case", act.form.get("into", number) if what == "merge" else number), message)


def act_on(act: Act, number: int, what: str, note: str | None) -> str:
    """Do what a form asks for; returns what was done, in a sentence."""
    desk = act.desk
    if what == "take":
        actions.take_case(desk, number, note)
        return f"Case {number} is assigned to you."
    if what == "assign":
        to = act.form.get("to", "").strip()
        if not to:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Name the person.")
        actions.take_case(desk, number, note, to)
        return f"Case {number} was assigned to {to}."
    if what == "judge":
        verdict, seen = act.verdict, act.form.get("flags", "")
        flags = actions.judge_case(desk, number, verdict, note, int(seen) if seen.isdecimal() else None)
        return f"Case {number}: {verdict.replace('_', ' ')}, for {flags:,} flag{'' if flags == 1 else 's'}."
    if what == "note":
        if note is None:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "The note is empty.")
        actions.note_case(desk, number, note)
        return "The note was saved."
    if what == "snooze":
        until = _read_until(act)
        actions.snooze_case(desk, number, until, note)
        return f"Case {number} is snoozed until {until:%Y-%m-%d %H:%M}."
    if what == "close":
        actions.close_case(desk, number, note)
        return f"Case {number} was closed without a verdict."
    if what == "reopen":
        actions.reopen_case(desk, number, note)
        return f"Case {number} is open again."
    if what == "merge":
        into = read_number(act.form.get("into", ""), 0)
        if not into:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Give the number of the other case.")
        actions.merge_case(desk, number, into, note)
        return f"Case {number} was merged into case {into}."
    if what == WORTH:
        answer = act.form.get(WORTH, "")
        if answer not in ("yes", "no"):
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Answer yes or no.")
        actions.rate_case(desk, number, answer == "yes")
        return f"Case {number} was {'' if answer == 'yes' else 'not '}worth a look."
    if what == "undo":
        return f"Undone: {actions.undo_case(desk, number)}."
    raise HTTPException(HTTPStatus.NOT_FOUND, "Not Found")


def _read_until(act: Act) -> datetime:
    """The morning of a day that is given, or some days from today, in the detector's time zone."""
    zone = act.site.zone
    try:
        if given := act.form.get("until", ""):
            return datetime.fromisoformat(given).replace(tzinfo=zone)
        day = act.now.astimezone(zone).date() + timedelta(days=int(act.form.get("days", "")))
    except (ValueError, OverflowError):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Give a date, such as 2026-12-24.") from None
    return datetime.combine(day, time(8), zone)
