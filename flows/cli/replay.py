"""`nightjar replay`."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_csv, print_json, running, stdout
from flows.config.quiet import hush_great_expectations

EXAMPLE = "nightjar replay payments --date D > bad.csv; nightjar replay payments --date D --take bad.csv"


def replay(
    name: Name,
    date: Annotated[datetime, date_option("The batch date.")],
    take: Annotated[Path | None, typer.Option(help="A file written by this command, with its rows fixed.")] = None,
    as_json: Json = False,
) -> None:
    """List a batch's quarantined rows as CSV, or land the repaired rows and score the night again."""
    from flows.config.setup import prepare, prepare_reading
    from tasks.upkeep.replay import find_reason_not_to_score, list_bad_rows, take_repairs

    hush_great_expectations()
    day, setup = date.date(), (prepare if take else prepare_reading)(name)
    site, contract, params = setup.site, setup.configured.contract, setup.configured.detector
    facts = {"detector": name, "batch_date": day}
    if take is None:
        bad = list_bad_rows(site, contract, params.validate_, day)
        if as_json:
            print_json(facts | {"rows": bad.to_pylist()})
        else:
            print_csv(bad.to_pandas())
        return
    with running():
        taken = take_repairs(site, contract, params.ingest, params.validate_, day, take, datetime.now(UTC))
        why_not_scored, night = find_reason_not_to_score(site, day), None
        if not why_not_scored:
            from flows.nightly import nightly

            night = nightly(name, day)
    if as_json:
        facts |= {"taken": asdict(taken), "night": night and asdict(night), "why_not_scored": why_not_scored}
        print_json(facts)
        return
    stdout.print(f"{taken.rows:,} repaired rows {'landed' if taken.is_new else 'had already landed'}")
    if night is None:
        stdout.print(f"{day}: not scored, {why_not_scored}", highlight=False)
        return
    counts = f"{night.scored:,} rows scored, {night.flagged:,} flagged, {night.quarantined:,} still quarantined"
    stdout.print(f"{day}: {counts}", highlight=False)
