"""`nightjar ingest`."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from flows.cli.options import Json, Name, date_option
from flows.cli.screen import print_json, print_note, showing_progress, stdout

EXAMPLE = "NIGHTJAR_SOURCES=/data nightjar ingest creditcard"


def ingest(
    name: Name,
    until: Annotated[datetime | None, date_option("The last batch date (default: yesterday).")] = None,
    as_json: Json = False,
) -> None:
    """Land what the source has delivered, up to a batch date."""
    from flows.config.setup import prepare
    from tasks.ingest import ingest_arrivals
    from tasks.policy import progress_of

    setup = prepare(name)
    window = setup.window(last=until.date() if until else None)
    with showing_progress():
        done = ingest_arrivals(setup.site, setup.ingest_params, window, progress_of("ingest"))
    if as_json:
        print_json(asdict(done))
    else:
        span = f", {done.dates[0]} to {done.dates[-1]}" if done.dates else ""
        stdout.print(f"{done.arrivals} arrivals, {done.rows:,} rows, {done.labels:,} labels{span}")
        for note in done.notes:
            print_note(note)
