"""`nightjar reduce`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_rows, showing_progress, stdout

if TYPE_CHECKING:
    from models.reducer import Gain
    from tasks.upkeep.preview import Preview

EXAMPLE = "nightjar reduce payments --dry-run; nightjar reduce payments; nightjar reduce payments --version 3"


def reduce(
    name: Name,
    version: Annotated[int | None, typer.Option(help="Learn it for this version (default: the champion).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would change in the last 30 nights; register nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit the reducer on all verdicts so far, and register the version with it as a challenger."""
    from flows.config.setup import prepare_reading
    from tasks.upkeep.preview import preview_reducer
    from tasks.upkeep.reduce import register_reducer

    setup = prepare_reading(name)
    params = setup.configured.detector.review
    with showing_progress():
        if dry_run:
            preview = preview_reducer(setup.site, params, version)
        else:
            reduced = register_reducer(setup.site, params, version)
    if as_json:
        print_json({"detector": name, **asdict(preview if dry_run else reduced)})
        return
    if dry_run:
        show_preview(preview)
        return
    gain, registered = reduced.gain, reduced.registered
    show_gain(gain)
    flags, alerts = reduced.flags_per_night, reduced.alerts_per_night
    if flags is None or alerts is None:
        stdout.print(f"{gain.alerts_share:.0%} of its flags stay alerts")
    else:
        stdout.print(f"flags per night {flags:,.0f} -> alerts per night {alerts:,.0f}")
    state = f"is the {registered.alias}" if registered.is_new else "already holds exactly this bundle"
    stdout.print(f"version {registered.version} of {setup.site.registry.model_name} {state}")


def show_gain(gain: "Gain") -> None:
    """How good it is on flags that it has not seen."""
    stdout.print(f"learnt from {gain.verdicts:,} verdicts, {gain.flags:,} on flags, {gain.confirmed:,} confirmed")
    stdout.print(
        f"precision {gain.precision_before:.1%} -> {gain.precision_after:.1%} at {gain.recall_kept:.1%} of the flagged "
        f"anomalies kept; the threshold finds about {gain.first_stage_recall:.0%} of all",
        soft_wrap=True,
    )


def show_preview(found: "Preview") -> None:
    """What a second stage learnt now would do, beside the one in use, and by first cause."""
    from tasks.rows.shares import describe_share

    show_gain(found.gain)
    stdout.print(
        f"{found.flags:,} flags of version {found.version} in {found.nights} nights, {found.first} to {found.last}"
        + (f"; {found.left_out:,} others left out" if found.left_out else ""),
        soft_wrap=True,
    )
    for label, stage in (("now", found.now), ("learnt now", found.then)):
        if stage is None:
            stdout.print(f"{label}: no second stage, {found.flags:,} alerts")
            continue
        seen = f"; it has learnt from {stage.learnt:,} of them, so it may lose more of new ones" if stage.learnt else ""
        stdout.print(
            f"{label}: {stage.alerts:,} alerts, {stage.suppressed:,} suppressed; confirmed anomalies lost: "
            f"{describe_share(stage.lost)}{seen}",
            soft_wrap=True,
        )
    stdout.print(f"{found.going:,} alerts would be suppressed, {found.returning:,} suppressed flags would be alerts")
    if rows := [asdict(one) for one in found.causes]:
        print_rows(Table(title="by first cause", title_justify="left"), rows, tuple(rows[0]))
    stdout.print(f"nightjar reduce would refuse: {found.refusal}" if found.refusal else "nothing was registered")
