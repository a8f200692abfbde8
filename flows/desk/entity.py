"""Screen 3, Entity: what one entity did, who shares its values, and a cause that is suppressed for it."""

from datetime import UTC, date, timedelta

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from flows.desk.view import Judge, Look, read_date, read_number
from tasks.errors import ParamsInvalid
from tasks.follow_up.suppressions import LONGEST, suppress_cause
from tasks.on_demand.entity import read_others, show_entity

router = APIRouter()


@router.get("/{detector}/entity/{entity:path}")
def show(look: Look, entity: str) -> Response:
    """An entity; one that is given by its own name goes to the page of its pseudonym."""
    page, night = read_number(look.query.get("page", "")), read_date(look.query.get("night", ""))
    found = show_entity(look.site, look.params, look.setup.record_rule, entity, look.now, page, night)
    if found.entity != entity:
        return RedirectResponse(look.url("entity", found.entity), 303)
    often = [name for name, _ in found.causes]
    names = look.params.train.columns.names
    today = look.now.astimezone(look.site.zone).date()
    return look.render(
        "entity.html",
        entity=found,
        causes=[*often, *(name for name in names if name not in often)],
        today=today,
        latest=today + LONGEST - timedelta(days=1),
    )


@router.get("/{detector}/others/{entity:path}")
def show_others(look: Look, entity: str) -> Response:
    """The entities that share values with one: a part of its page, or a page where there is no JavaScript."""
    found = read_others(look.site, look.setup.record_rule, entity)
    return look.render("others.html", entity=entity, others=found)


@router.post("/{detector}/suppress/{entity:path}")
def suppress(act: Judge, entity: str) -> Response:
    """Suppress a cause for an entity, for nights published from now on."""
    cause, until = act.form.get("cause", ""), read_date(act.form.get("until", ""))
    names, page = act.params.train.columns.names, act.url("entity", entity)
    if cause not in names:
        raise ParamsInvalid(
            f"{cause!r} is never a cause: {act.detector} does not read this column.",
            where="train.columns in params.yaml",
            expected=", ".join(names),
        )
    if until is None or until == date.max:
        return act.go(page, "problem", "Choose the last day on which the cause is suppressed.")
    end = act.site.start_of(until + timedelta(days=1)).astimezone(UTC)
    reason = act.form.get("reason", "")
    one = suppress_cause(act.site.warehouse, act.detector, entity, cause, reason, act.person.name, act.now, end)
    said = f"Suppression {one.suppression_id}: {cause} does not count as an alert for this entity until {until}"
    return act.done(page, f"{said}, in nights published from now on.")
