"""Screen 6, Nights: a calendar with one cell per date, and a page per date, also of nights that were rejected."""

from datetime import date, datetime

from fastapi import APIRouter, Response

from flows.desk.recent import recent_of
from flows.desk.view import Look, read_day
from flows.status import read_calendar
from tasks.upkeep.nights import KINDS, Cell, describe_night, lay_out_months

router = APIRouter()
MOST_STANDING = 5  # banners on a page


def read_cells(look: Look) -> tuple[list[Cell], datetime]:
    """The calendar's cells, and when they were read."""
    return recent_of(look).get(("nights", look.detector), lambda: read_calendar(look.setup, look.now))


@router.get("/{detector}/nights")
def show_calendar(look: Look) -> Response:
    """The calendar, and a table of the nights that have to be put right."""
    cells, read_at = read_cells(look)
    counts = {kind: sum(cell.kind == kind for cell in cells) for kind in KINDS}
    wrong = [cell for cell in reversed(cells) if cell.is_wrong]
    months = lay_out_months(cells)
    return look.render("nights.html", months=months, wrong=wrong, kinds=KINDS, counts=counts, read_at=read_at)


@router.get("/{detector}/nights/{day}/standing")
def show_standing(look: Look, day: str) -> Response:
    """What is wrong with a night and, if it is the newest published one, with later dates: a part of its page."""
    found, (cells, _) = read_day(day), read_cells(look)
    is_newest = all(cell.flagged is None for cell in cells if cell.batch_date > found)
    shown = [
        cell
        for cell in cells
        if (cell.batch_date == found and (cell.is_wrong or cell.why))
        or (is_newest and cell.batch_date > found and (cell.is_wrong or cell.kind == "running"))
    ]
    return look.render("standing.html", cells=shown[-MOST_STANDING:], day=found)


def is_known(look: Look, day: date) -> bool:
    """Whether the calendar has the date, published or not."""
    return any(cell.batch_date == day for cell in read_cells(look)[0])


@router.get("/{detector}/nights/{day}")
def show_night(look: Look, day: str) -> Response:
    """All that is known of a date."""
    found = read_day(day)
    cells, read_at = read_cells(look)
    days = [cell.batch_date for cell in cells]
    return look.render(
        "night.html",
        cell=next((cell for cell in cells if cell.batch_date == found), None),
        before=max((one for one in days if one < found), default=None),
        after=min((one for one in days if one > found), default=None),
        read_at=read_at,
        **describe_night(look.site, found),
    )
