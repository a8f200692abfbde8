"""Screen 1, Tonight: one night's counts and its cases, worst first; verdicts on several of them; tables out and in."""

from http import HTTPStatus
from io import BytesIO
from typing import Any

import pandas as pd
from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import RedirectResponse

from flows.desk.nights import is_known
from flows.desk.view import Judge, Look, Read, read_day, read_number
from tasks.errors import BatchMissing, CaseRefused
from tasks.follow_up.actions import judge_cases
from tasks.follow_up.approvals import ask_approval
from tasks.follow_up.keeping import annotate, drop_filter, keep_filter, read_filters
from tasks.on_demand.night import Wanted, find_newest, list_cases_of_night, list_numbers, show_night
from tasks.on_demand.queue import count_cases_of, count_waiting
from tasks.review import keep_verdicts, read_answers
from tasks.rows.escaping import without_formulas

router = APIRouter()
FILTERS = ("state", "severity", "cause", "value", "search", "assignee")


def describe_detectors(look: Look) -> list[dict[str, Any]]:
    """Each detector's newest night and open cases; a broken one does not hide the others."""
    with look.room.snapshot.latest().begin_reading() as connection:
        return [
            {"name": name, "newest": find_newest(connection, name), **count_waiting(connection, name, look.now)}
            for name in look.room.detectors
        ]


def read_wanted(query: dict[str, str]) -> Wanted:
    """The filters of an address."""
    chosen = {name: query[name].strip() for name in FILTERS if query.get(name)}
    return Wanted(**chosen, page=read_number(query.get("page", "")))


@router.get("/{detector}")
def show_newest(look: Look) -> Response:
    """The newest night."""
    with look.site.warehouse.begin_reading() as connection:
        newest = find_newest(connection, look.detector)
    if newest is None:
        return look.render("empty.html")
    return RedirectResponse(look.url(newest), HTTPStatus.SEE_OTHER)


@router.get("/{detector}/{day}")
def show(look: Look, day: str) -> Response:
    """A night."""
    found, wanted = read_day(day), read_wanted(look.query)
    try:
        facts = show_night(look.site, found, wanted, look.now)
    except BatchMissing:
        if not is_known(look, found):
            raise
        return RedirectResponse(look.url("nights", found), HTTPStatus.SEE_OTHER)
    with look.site.warehouse.begin_reading() as connection:
        filters = read_filters(connection, look.detector, look.person.name)
    kept = {name: getattr(wanted, name) for name in FILTERS if getattr(wanted, name) != getattr(Wanted(), name)}
    return look.render("tonight.html", day=found, wanted=wanted, kept=kept, filters=filters, **facts)


@router.get("/{detector}/{day}/cases.{kind}")
def export(look: Look, day: str, kind: str) -> Response:
    """The cases that the page shows, all pages of them, as a table: csv or xlsx."""
    rows = list_cases_of_night(look.site, read_day(day), read_wanted(look.query), look.now)
    found = pd.DataFrame(rows or {"case": []})
    name = f"{look.detector}-{day}-cases.{kind}"
    disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
    if kind == "csv":
        return Response(without_formulas(found).to_csv(index=False), media_type="text/csv", headers=disposition)
    if kind == "xlsx":
        book = BytesIO()
        texts_stay = {"options": {"strings_to_formulas": False, "strings_to_urls": False}}
        with pd.ExcelWriter(book, engine="xlsxwriter", engine_kwargs=texts_stay) as writer:
            without_formulas(found).to_excel(writer, index=False, sheet_name="cases")
        media = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
        return Response(book.getvalue(), media_type=media, headers=disposition)
    raise HTTPException(HTTPStatus.NOT_FOUND, "Not Found")


@router.post("/{detector}/verdicts")
def judge(act: Judge) -> Response:
    """A verdict on several cases: asks once more first, and a second person if they are many."""
    verdict, numbers = act.verdict, sorted({read_number(text, 0) for text in act.chosen("case")} - {0})
    if act.form.get("all") and (day := act.form.get("day")):
        wanted = {name: value for name, value in act.form.items() if name in FILTERS}
        numbers = list_numbers(act.site, read_day(day), read_wanted(wanted), act.now)
    if not numbers:
        return act.go(act.back, "problem", "Select at least one case first.")
    note = act.form.get("note", "").strip() or None
    is_many = len(numbers) > act.params.cases.bulk_limit
    if not act.form.get("is_sure"):
        return act.render(
            "confirm.html", numbers=numbers, verdict=verdict, note=note, is_many=is_many, back=act.back,
            limit=act.params.cases.bulk_limit,
        )  # fmt: skip
    if is_many:
        number = ask_approval(act.desk, numbers, verdict, note)
        return act.done(act.back, f"Approval {number} was requested: a second person finds it in the queue.")
    flags, said = judge_cases(act.desk, numbers, verdict, note), verdict.replace("_", " ").capitalize()
    return act.done(act.back, f"{said} for {len(numbers):,} cases with {flags:,} flags.")


@router.post("/{detector}/{day}/note")
def note(act: Judge, day: str) -> Response:
    """A note on a night."""
    text = act.form.get("note", "").strip()
    if not text:
        return act.go(act.url(day), "problem", "The note is empty.")
    annotate(act.desk, read_day(day), text)
    return act.done(act.url(day), "The note was saved.")


@router.post("/{detector}/filters")
def save_filter(act: Read) -> Response:
    """Keep the filters of a page under a name, or forget them."""
    name = act.form.get("name", "").strip()
    if not name:
        return act.go(act.back, "problem", "Give the filter a name.")
    if act.form.get("drop"):
        drop_filter(act.desk, name)
        return act.done(act.back, f"The filter {name} was removed.")
    query = {key: value for key, value in act.form.items() if key in FILTERS and value}
    keep_filter(act.desk, name, query)
    return act.done(act.back, f"The filter was saved as {name}.")


@router.post("/{detector}/verdicts.csv")
def take_verdicts(act: Judge) -> Response:
    """The verdicts of a file that `nightjar review` or this desk wrote: all of them or none."""
    answers = read_answers(act.form["table"].encode() if "table" in act.form else act.body)
    closed, most = count_cases_of(act.site, answers), act.params.cases.bulk_limit
    if closed > most and not act.person.may("promote"):
        raise CaseRefused(
            "The file has verdicts on too many cases at once; none was stored.",
            got=f"{closed:,} cases",
            expected=f"at most {most:,}, by cases.bulk_limit in params.yaml",
            todo="give several files, or ask somebody with the role promote",
        )
    new = keep_verdicts(act.site, answers, act.person.name, act.now)
    return act.done(act.url("queue"), f"{len(answers):,} verdicts read, {new:,} of them new.")
