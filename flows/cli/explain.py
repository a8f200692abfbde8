"""`nightjar explain`."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import describe_flag, describe_probabilities, print_causes, print_json, stdout

EXAMPLE = "nightjar explain payments 6f1b0c-000017"


def explain(
    name: Name,
    record_id: Annotated[str, typer.Argument(help="The record's ID in the tables.")],
    date: Annotated[datetime | None, date_option("Its batch date (default: the newest).")] = None,
    as_json: Json = False,
) -> None:
    """Show one record's score, rank and causes, and the model and data versions behind them."""
    from flows.config.setup import prepare_reading
    from tasks.on_demand.explain import explain_record
    from tasks.rows.describe import describe_values

    setup = prepare_reading(name)
    day = date.date() if date else None
    found = explain_record(setup.site, setup.configured.contract, setup.record_rule, record_id, day)
    band = setup.configured.detector.score.name_band(found.percentile_rank)
    if as_json:
        print_json(asdict(found) | {"band": band})
        return
    flag = describe_flag(found.is_flagged, found.is_suppressed, found.suppressed_by)
    probabilities = describe_probabilities(found.p_value, found.second_stage_probability)
    stdout.print(", ".join(filter(None, (record_id, found.event_time, f"batch {found.batch_date}"))), markup=False)
    about = ", ".join(
        filter(None, [found.entity and f"entity {found.entity}", describe_values(found.record, setup.site.zone)])
    )
    if about:
        stdout.print(about, markup=False, soft_wrap=True)
    stdout.print(
        f"score {found.score:.4g}, threshold {found.threshold:.4g}: {flag}; "
        f"rank {found.percentile_rank:.2f}, band {band}, {probabilities}",
        soft_wrap=True,
    )
    print_causes(found.causes, setup.site.zone)
    stdout.print(f"{found.model} version {found.model_version}, trained on data {found.data_hash[:12]}; "
                 f"input {found.input_hash[:12]}")  # fmt: skip
