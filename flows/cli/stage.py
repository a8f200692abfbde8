"""`nightjar stage`."""

from typing import Annotated, Literal

import typer

from flows.cli.options import Name
from flows.cli.screen import showing_progress

EXAMPLE = "nightjar stage train payments"


Step = Literal["ingest", "validate", "filter", "train", "calibrate", "evaluate"]


def stage(
    step: Annotated[
        Step, typer.Argument(help="ingest, validate, filter, train, calibrate or evaluate.", metavar="STEP")
    ],
    name: Name,
) -> None:
    """Run one stage of dvc.yaml in experiments/NAME. `dvc repro` runs all that are due."""
    from flows.experiment import STAGES

    with showing_progress():
        STAGES[step](name)
