"""`nightjar reduce`."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, showing_progress, stdout

EXAMPLE = "nightjar reduce payments; nightjar reduce payments --version 3"


def reduce(
    name: Name,
    version: Annotated[int | None, typer.Option(help="Learn it for this version (default: the champion).")] = None,
    as_json: Json = False,
) -> None:
    """Fit the reducer on all verdicts so far, and register the version with it as a challenger."""
    from flows.config.setup import prepare_reading
    from tasks.upkeep.reduce import register_reducer

    setup = prepare_reading(name)
    with showing_progress():
        reduced = register_reducer(setup.site, setup.configured.detector.review, version)
    if as_json:
        print_json({"detector": name, **asdict(reduced)})
        return
    gain, registered = reduced.gain, reduced.registered
    stdout.print(f"learnt from {gain.verdicts:,} verdicts, {gain.flags:,} on flags, {gain.confirmed:,} confirmed")
    stdout.print(
        f"precision {gain.precision_before:.1%} -> {gain.precision_after:.1%} at {gain.recall_kept:.1%} of the flagged "
        f"anomalies kept; the threshold finds about {gain.first_stage_recall:.0%} of all",
        soft_wrap=True,
    )
    flags, alerts = reduced.flags_per_night, reduced.alerts_per_night
    if flags is None or alerts is None:
        stdout.print(f"{gain.alerts_share:.0%} of its flags stay alerts")
    else:
        stdout.print(f"flags per night {flags:,.0f} -> alerts per night {alerts:,.0f}")
    state = f"is the {registered.alias}" if registered.is_new else "already holds exactly this bundle"
    stdout.print(f"version {registered.version} of {setup.site.registry.model_name} {state}")
