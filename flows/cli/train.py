"""`nightjar train`."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_note, running, stdout

EXAMPLE = "nightjar train payments --cutoff 2026-11-14"


def train(
    name: Name,
    cutoff: Annotated[datetime | None, date_option("Learn from batches before this date (default: today).")] = None,
    as_json: Json = False,
) -> None:
    """Train on all batches before a cut-off and register the version: champion if first, else challenger.

    A challenger gets the champion's second stage, learnt again, and both are compared on later nights.
    """
    from flows.config.setup import prepare

    setup = prepare(name)
    from flows.cli.compare import show_comparison
    from flows.training import training

    day = cutoff.date() if cutoff else setup.newest_cutoff()
    with running():
        trained = training(name, day)
    if as_json:
        print_json({"detector": name, "cutoff": day, **asdict(trained)})
        return
    state = f"is the {trained.alias}" if trained.is_new else "already holds exactly this bundle"
    stdout.print(f"version {trained.version} of {setup.site.registry.model_name} {state}")
    stdout.print(trained.threshold, soft_wrap=True, highlight=False)
    if trained.comparison:
        show_comparison(trained.comparison)
    for note in trained.notes:
        print_note(note)
