"""`nightjar train`."""

from dataclasses import asdict

from flows.cli.options import Day, Json, Name
from flows.cli.screen import print_json, running, stdout

EXAMPLE = "nightjar train payments --cutoff 2026-11-14"


def train(name: Name, cutoff: Day = None, as_json: Json = False) -> None:
    """Train on all before a cut-off (today, unless named) and register: champion if first, else challenger."""
    from flows.config.setup import prepare

    setup = prepare(name)
    from flows.training import training

    day = cutoff.date() if cutoff else setup.newest_cutoff()
    with running():
        registered = training(name, day)
    if as_json:
        print_json({"detector": name, "cutoff": day, **asdict(registered)})
    else:
        told = f"is the {registered.alias}" if registered.is_new else "holds exactly this bundle already"
        stdout.print(f"version {registered.version} of {setup.site.registry.model_name} {told}")
