"""Beside a case: what its entity did before, judged cases like it, and normal records near its worst flag.

Its page loads the first two after itself, the third on request, since that needs the model. Without JavaScript each is
a page of its own, behind a link.
"""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Response

from flows.desk.view import Look
from tasks.on_demand.history import read_case_history
from tasks.on_demand.similar import find_similar
from tasks.stores.registry import Version

if TYPE_CHECKING:
    from models.detector import Detector

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


@router.get("/{detector}/case/{number}/nearest")
def show_nearest(look: Look, number: int) -> Response:
    """The records most like the case's worst flag that were not flagged."""
    from tasks.on_demand.nearest import find_nearest  # loads torch

    masked = look.setup.configured.contract.masked
    found = find_nearest(look.site, look.setup.record_rule, masked, number, lambda one: load_version(look, one))
    return look.render("nearest.html", number=number, nearest=found)


def load_version(look: Look, version: Version) -> "Detector":
    """A version's detector, read once."""
    from models.detector import Detector  # loads torch

    registry = look.site.registry
    key = ("version", look.detector, registry.check_tags(version))
    return look.room.remember(key, lambda: Detector.load(registry.fetch_bundle(version)))
