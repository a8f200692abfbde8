"""Commands that make model versions and choose the champion: train, promote, rollback, reduce."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.commands.options import Day, Debug, Json, Name
from flows.screen import print_json, running, stdout

app = typer.Typer()


@app.command(epilog="nightjar train payments --cutoff 2026-11-14")
def train(name: Name, cutoff: Day = None, as_json: Json = False, debug: Debug = False) -> None:
    """Train on all before a cut-off (today, unless named) and register: champion if first, else challenger."""
    from flows.setup import prepare

    setup = prepare(name)
    from flows.training import training

    day = cutoff.date() if cutoff else setup.newest_cutoff()
    with running():
        registered = training(name, day)
    if as_json:
        print_json({"detector": name, "cutoff": day, **asdict(registered)})
    else:
        told = f"is the {registered.alias}" if registered.is_new else "holds exactly this bundle already"
        stdout.print(f"version {registered.version} of {setup.site.model_name} {told}")


@app.command(epilog="nightjar promote payments 3")
def promote(
    name: Name,
    version: Annotated[int | None, typer.Argument(help="A version; the challenger unless named.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a version the champion: it scores from the next night on."""
    from flows.setup import prepare
    from tasks import register

    champion, before = register.promote(prepare(name).site, version)
    print_alias(name, champion, before, as_json)


@app.command(epilog="nightjar rollback payments")
def rollback(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Give the alias back to the champion before this one."""
    from flows.setup import prepare
    from tasks import register

    champion, before = register.rollback(prepare(name).site)
    print_alias(name, champion, before, as_json)


@app.command(epilog="nightjar reduce payments")
def reduce(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Learn the second stage from all verdicts so far, and register the champion with it as a challenger."""
    from flows.setup import prepare
    from tasks.review import register_reducer

    setup = prepare(name)
    with running():
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
    stdout.print(f"flags a night {reduced.flags_per_night:,.0f} -> alerts a night {reduced.alerts_per_night:,.0f}")
    told = f"is the {registered.alias}" if registered.is_new else "holds exactly this bundle already"
    stdout.print(f"version {registered.version} of {setup.site.model_name} {told}")


def print_alias(name: str, champion: int, before: int | None, as_json: bool) -> None:
    """What promote and rollback did."""
    if as_json:
        print_json({"detector": name, "champion": champion, "before": before})
    else:
        stdout.print(
            f"version {champion} of {name} is the champion" + (f", before it version {before}" if before else "")
        )
