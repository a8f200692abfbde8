"""`nightjar suppress`."""

import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_rows, stdout

if TYPE_CHECKING:
    from flows.config.setup import Setup
    from tasks.follow_up.suppressions import Suppression

EXAMPLE = (
    "nightjar suppress payments; nightjar suppress payments --entity CARD --reason 'on holiday' --until 2026-12-31; "
    "nightjar suppress payments --end 3"
)


def suppress(
    name: Name,
    entity: Annotated[str | None, typer.Option(help="Suppress the flags of this entity.")] = None,
    cause: Annotated[
        str | None, typer.Option(help="Suppress the flags whose first cause is this column.", metavar="COLUMN")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    until: Annotated[datetime | None, date_option("The last day on which it holds.")] = None,
    by: Annotated[str, typer.Option(help="Who says so (default: you).")] = "",
    end: Annotated[int | None, typer.Option(help="End the suppression of this number now.", metavar="N")] = None,
    as_json: Json = False,
) -> None:
    """List suppressions, add one, or end one. Suppressed flags are published, but count as no alerts.

    A suppression holds for nights that are published from now on, and for those that are published again.
    """
    from flows.config.setup import prepare, prepare_reading
    from tasks.follow_up.suppressions import end_suppression

    is_new = entity is not None or cause is not None
    if is_new and (end is not None or not reason.strip() or until is None):
        raise typer.BadParameter("a new suppression needs --reason and --until, and not --end")
    if not is_new and (reason or until or by):
        raise typer.BadParameter("--reason, --until and --by need --entity or --cause")
    setup = (prepare if is_new or end is not None else prepare_reading)(name)
    if is_new and until:
        found = add(setup, entity, cause, reason.strip(), by or find_user(), until)
        show(setup, [found], as_json)
        return
    if end is not None:
        end_suppression(setup.site.warehouse, name, end, datetime.now(UTC))
    show(setup, None, as_json)


def find_user() -> str:
    """The user's name, or number if it has none, as in some containers."""
    try:
        return getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def add(
    setup: "Setup", entity: str | None, cause: str | None, reason: str, author: str, until: datetime
) -> "Suppression":
    """Add a suppression. Raises ParamsInvalid if the detector has no such cause, or no entities."""
    from tasks.follow_up.suppressions import request_suppression

    site, rule, columns = setup.site, setup.record_rule, setup.configured.detector.train.columns.names
    now = datetime.now(UTC)
    if until.date() < now.astimezone(site.zone).date():
        raise typer.BadParameter(f"{until:%Y-%m-%d} is over", param_hint="--until")
    return request_suppression(site, rule, columns, entity, cause, reason, author, until.date(), now)


def show(setup: "Setup", found: "list[Suppression] | None", as_json: bool) -> None:
    """Show these suppressions, or all."""
    from tasks.follow_up.suppressions import read_suppressions

    site, now = setup.site, datetime.now(UTC)
    listed = read_suppressions(site.warehouse, site.detector) if found is None else found
    if as_json:
        rows: list[dict[str, Any]] = [asdict(one) | {"is_active": one.is_active(now)} for one in listed]
        print_json({"detector": site.detector, "suppressions": rows})
        return
    if not listed:
        stdout.print(f"{site.detector}: no suppressions")
        return
    rows = [
        asdict(one)
        | {
            "number": one.suppression_id,
            "by": one.author,
            "until": f"{one.expires_at.astimezone(site.zone) - timedelta(seconds=1):%Y-%m-%d}",
            "state": "active" if one.is_active(now) else "ended",
        }
        for one in listed
    ]
    columns = ("number", "state", "entity", "cause", "reason", "by", "until")
    print_rows(Table(title=f"{site.detector}: suppressions", title_justify="left"), rows, columns)
