"""`nightjar promote`."""

from typing import Annotated

import typer

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar promote payments 3"


def promote(
    name: Name,
    version: Annotated[int | None, typer.Argument(help="The version (default: the challenger).")] = None,
    as_json: Json = False,
) -> None:
    """Make a version the champion, which scores from the next night on."""
    from flows.config.setup import prepare_reading
    from tasks import register

    champion, before = register.promote(prepare_reading(name).site, version)
    print_alias(name, champion, before, as_json)


def print_alias(name: str, champion: int, before: int | None, as_json: bool) -> None:
    """Show which version is the champion now, and which was before."""
    if as_json:
        print_json({"detector": name, "champion": champion, "before": before})
    else:
        stdout.print(
            f"version {champion} of {name} is the champion" + (f"; version {before} was before" if before else "")
        )
