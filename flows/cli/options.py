"""The arguments and options that verbs share."""

from datetime import datetime
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The detector, as params.yaml names it.", metavar="NAME")]
MaybeName = Annotated[str | None, typer.Argument(help="The detector; all of them if left out.", metavar="[NAME]")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")]
