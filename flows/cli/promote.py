"""`nightjar promote`."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Json, Name, Reason, sign_reason
from flows.cli.screen import print_json, print_note, running, stdout

if TYPE_CHECKING:
    from tasks.stores.site import Site

EXAMPLE = "nightjar promote payments 3 --reason 'half the false alarms'"


def promote(
    name: Name,
    version: Annotated[int | None, typer.Argument(help="The version (default: the challenger).")] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although it is refused; a tag of the version says so."),
    ] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Make a version the champion, which scores from the next night on."""
    from flows.config.setup import prepare_reading

    site = prepare_reading(name).site  # before the flow, whose start takes seconds
    from flows.promotion import promotion

    with running():
        champion, before = promotion(name, version, force, sign_reason(reason))
    print_change(site, champion, before, as_json)


def print_change(site: "Site", champion: int, before: int | None, as_json: bool) -> None:
    """Show which version is the champion now, which was before, and what the new one lacks."""
    from tasks.register import describe_lost_reducer

    old = site.registry.get_version(before) if before else None
    note = describe_lost_reducer(old, site.registry.get_version(champion)) if old else ""
    if as_json:
        print_json({"detector": site.detector, "champion": champion, "before": before, "note": note})
        return
    replaced = f"; version {before} was before" if before else ""
    stdout.print(f"version {champion} of {site.detector} is the champion{replaced}")
    if note:
        print_note(note)
