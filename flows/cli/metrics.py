"""`nightjar metrics`."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "nightjar metrics --textfile /var/lib/node_exporter/nightjar.prom; nightjar metrics --port 9808"


def metrics(
    textfile: Annotated[
        Path | None, typer.Option(metavar="FILE.prom", help="Write this file, whole, for node_exporter to pick up.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Serve /metrics and /health; 0: any port.")] = None,
    host: Annotated[str, typer.Option(help="The address that --port listens on.")] = "127.0.0.1",
) -> None:
    """Tell the state of every detector in Prometheus' format; exit code 1 where one of them cannot be read."""
    if textfile and port is not None:
        raise typer.BadParameter("--textfile and --port exclude each other")
    from prometheus_client import generate_latest

    from flows.cli.screen import stderr
    from flows.config.settings import load_settings
    from flows.team.exporter import make_registry, serve, write_textfile

    registry, found = make_registry(load_settings().project)
    if port is not None:
        serve(registry, host, port, lambda told: typer.echo(told))
        return
    if textfile:
        write_textfile(registry, textfile)
    else:
        typer.echo(generate_latest(registry), nl=False)
    for reading in found.failed:
        stderr.print(f"{reading.detector}: {reading.error}", style="red", markup=False, highlight=False)
    if found.failed:
        raise typer.Exit(1)
