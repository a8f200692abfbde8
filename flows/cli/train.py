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
    """Train on all batches before a cut-off and register the version: champion if first, else challenger."""
    from flows.config.setup import prepare

    setup = prepare(name)
    from flows.training import training
    from tasks.register import describe_challenge

    day = cutoff.date() if cutoff else setup.newest_cutoff()
    with running():
        registered = training(name, day)
    note = describe_challenge(setup.site, registered.version)
    if as_json:
        print_json({"detector": name, "cutoff": day, **asdict(registered), "note": note})
    else:
        state = f"is the {registered.alias}" if registered.is_new else "already holds exactly this bundle"
        stdout.print(f"version {registered.version} of {setup.site.registry.model_name} {state}")
        if note:
            print_note(note)
