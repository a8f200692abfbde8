"""`nightjar rank`."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.options import Json, Name
from flows.cli.screen import describe_flag, describe_probabilities, print_causes, print_json, stdout
from flows.config.quiet import hush_great_expectations

EXAMPLE = 'nightjar rank codes --value "code=AB 21 XR GB132"'


def rank(
    name: Name,
    value: Annotated[list[str], typer.Option(help="A column's value; repeat for each column.", metavar="COLUMN=TEXT")],
    as_json: Json = False,
) -> None:
    """Score one record with the champion: rank, severity and causes. Nothing is stored."""
    from flows.config.setup import load_setup
    from tasks.on_demand.rank import rank_by_champion

    if bad := [pair for pair in value if "=" not in pair]:
        raise typer.BadParameter(f"{bad[0]!r} is not COLUMN=TEXT", param_hint="--value")
    values = dict(pair.split("=", 1) for pair in value)
    if len(values) < len(value):
        raise typer.BadParameter("a column appears twice", param_hint="--value")
    setup = load_setup(name)
    hush_great_expectations()
    params = setup.configured.detector
    found = rank_by_champion(setup.site, setup.configured.contract, values, params.score, params.enrich)
    if as_json:
        print_json(asdict(found))
        return
    stdout.print(f"score {found.score:.4g}, rank {round(found.percentile_rank, 2):g}, band {found.band}", markup=False)
    flag = describe_flag(found.is_flagged, found.is_suppressed)
    probabilities = describe_probabilities(found.p_value, found.second_stage_probability)
    stdout.print(f"threshold {found.threshold:.4g}: {flag}; {probabilities}", soft_wrap=True)
    print_causes(found.causes, setup.site.zone)
    stdout.print(f"{found.model} version {found.model_version}")
