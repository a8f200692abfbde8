"""The arguments and options that verbs share."""

from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="The detector's name in params.yaml.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


def date_option(text: str, *flags: str) -> Any:
    """An option that takes a date; `text` is its help."""
    return typer.Option(*flags, formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help=text)
