"""Screen 4, Explorer: entities, and causes, by night, coloured by their worst flag."""

from datetime import timedelta

from fastapi import APIRouter, Response

from flows.desk.view import Look, read_date, read_number
from tasks.on_demand.explorer import NIGHTS, draw_causes, draw_entities

router = APIRouter()


@router.get("/{detector}/explorer")
def show(look: Look) -> Response:
    """A lane for each entity, or for each cause: ?by=cause, which is all there is where records name no entity."""
    nights = look.query.get("nights", "")
    chosen = int(nights) if nights in map(str, NIGHTS) else 30
    last = read_date(look.query.get("last", ""))
    by = "cause" if look.query.get("by") == "cause" or look.params.entity is None else "entity"
    if by == "cause":
        drawn = draw_causes(look.site, look.params, chosen, last)
    else:
        drawn = draw_entities(look.site, look.params, chosen, read_number(look.query.get("page", "")), last)
    before = drawn.nights[0] - timedelta(days=1) if drawn.nights else None
    return look.render("explorer.html", drawn=drawn, by=by, chosen=chosen, choices=NIGHTS, last=last, before=before)
