"""Beside a case: what its entity did before, and judged cases like it. Its page loads both after itself.

Without JavaScript each is a page of its own, behind a link.
"""

from fastapi import APIRouter, Response

from flows.desk.view import Look
from tasks.on_demand.history import read_case_history
from tasks.on_demand.similar import find_similar

router = APIRouter()


@router.get("/{detector}/case/{number}/history")
def show_history(look: Look, number: int) -> Response:
    """The records of the case's entity, flagged or not, up to its newest flag."""
    found = read_case_history(look.site, look.setup.record_rule, number)
    return look.render("history.html", number=number, history=found)


@router.get("/{detector}/case/{number}/similar")
def show_similar(look: Look, number: int) -> Response:
    """Judged cases whose worst flag has nearly the same causes."""
    found = find_similar(look.site, number)
    return look.render("similar.html", number=number, similar=found)
