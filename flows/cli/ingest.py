"""`nightjar ingest`."""

from dataclasses import asdict

from flows.cli.options import Day, Json, Name
from flows.cli.screen import print_json, running, stdout

EXAMPLE = "NIGHTJAR_SOURCES=/data nightjar ingest creditcard"


def ingest(name: Name, until: Day = None, as_json: Json = False) -> None:
    """Bring in what the source has delivered, up to a batch date (yesterday unless named)."""
    from flows.config.setup import prepare
    from tasks.ingest import ingest_arrivals
    from tasks.policy import progress_of

    setup = prepare(name)
    window = setup.window(last=until.date() if until else None)
    with running():
        done = ingest_arrivals(setup.site, setup.ingest_params, window, progress_of("ingest"))
    if as_json:
        print_json(asdict(done))
    else:
        span = f", {done.dates[0]} to {done.dates[-1]}" if done.dates else ""
        stdout.print(f"{done.arrivals} arrivals, {done.rows:,} rows, {done.labels:,} labels{span}")
