"""`nightjar explain`."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.table import Table

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import describe_flag, describe_probabilities, print_causes, print_json, print_rows, stdout

if TYPE_CHECKING:
    from flows.config.setup import Setup
    from models.detector import Detector
    from tasks.on_demand.explain import RecordExplanation
    from tasks.on_demand.nearest import Nearest
    from tasks.stores.registry import Version

EXAMPLE = "nightjar explain payments 6f1b0c-000017; nightjar explain payments 6f1b0c-000017 --nearest"


def explain(
    name: Name,
    record_id: Annotated[str, typer.Argument(help="The record's ID in the tables.")],
    date: Annotated[datetime | None, date_option("Its batch date (default: the newest).")] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="Also show the normal records most like it."),
    ] = False,
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
    near = find_near(setup, found) if nearest else None
    if as_json:
        print_json(asdict(found) | {"band": band} | ({"nearest": asdict(near)} if near else {}))
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
    if near:
        print_near(near, setup.site.zone)


def find_near(setup: "Setup", found: "RecordExplanation") -> "Nearest":
    """The normal records nearest to an explained one, as the version that scored it sees them."""
    from tasks.on_demand.nearest import find_near_record
    from tasks.rows.judge import load_detector

    site, masked = setup.site, setup.configured.contract.masked

    def load(version: "Version") -> "Detector":
        return load_detector(site.lake, site.detector, site.registry.fetch_bundle(version))

    of = found.record_id, found.batch_date, found.model_version
    return find_near_record(site, setup.record_rule, masked, *of, load)


def print_near(near: "Nearest", zone: ZoneInfo) -> None:
    """Print the nearest normal records, each with its distance, the columns that differ most, and its values."""
    from tasks.rows.describe import describe_values

    if near.why:
        stdout.print(near.why, markup=False, soft_wrap=True)
        return
    rows = [
        {
            "record_id": one.record_id,
            "batch_date": one.batch_date,
            "distance": one.distance,
            "differs most in": ", ".join(map(str, one.differences)) or "nothing",
            "values": describe_values(one.record, zone),
        }
        for one in near.near
    ]
    title = f"nearest of {near.rows:,} records from {near.first} to {near.last} that were not flagged"
    print_rows(Table(title=title, title_justify="left"), rows, tuple(rows[0]))
    stdout.print("Distances and differences of numbers are in standard deviations of the training rows.")
