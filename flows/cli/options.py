"""The arguments and options that verbs share."""

import getpass
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="The detector's name in params.yaml.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]

By = Annotated[str | None, typer.Option(help="Who it is by (default: the login name).", metavar="WHO")]
Reason = Annotated[str, typer.Option(help="Why; a tag of the version keeps it, with your name.", metavar="WHY")]
RESERVED = ("nightjar", "labels")  # what happens by rule, and verdicts from labels


def name_person(by: str | None) -> str:
    """Who acts: by default the login name, or "analyst" where the system knows none."""
    if by in RESERVED or by == "":
        raise typer.BadParameter(f"{by!r} is not a person's name", param_hint="--by")
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "analyst"


def sign_reason(reason: str) -> str:
    """A reason with the name of who gives it; "" without one."""
    return f"{name_person(None)}: {reason.strip()}" if reason.strip() else ""


def date_option(text: str, *flags: str) -> Any:
    """An option that takes a date; `text` is its help."""
    return typer.Option(*flags, formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help=text)
