"""`nightjar reduce`."""

from dataclasses import asdict

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, showing_progress, stdout

EXAMPLE = "nightjar reduce payments"


def reduce(name: Name, as_json: Json = False) -> None:
    """Fit the reducer on all verdicts so far, and register the champion with it as a challenger."""
    from flows.config.setup import prepare_reading
    from tasks.upkeep.reduce import register_reducer

    setup = prepare_reading(name)
    with showing_progress():
        reduced = register_reducer(setup.site, setup.configured.detector.review)
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
    stdout.print(f"flags per night {reduced.flags_per_night:,.0f} -> alerts per night {reduced.alerts_per_night:,.0f}")
    state = f"is the {registered.alias}" if registered.is_new else "already holds exactly this bundle"
    stdout.print(f"version {registered.version} of {setup.site.registry.model_name} {state}")
