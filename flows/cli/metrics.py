"""`nightjar metrics`."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "nightjar metrics --textfile /var/lib/node_exporter/nightjar.prom; nightjar metrics --port 9808"


def metrics(
    textfile: Annotated[
        Path | None, typer.Option(metavar="FILE.prom", help="Write this file for node_exporter, atomically.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics and /health here; 0: any free port.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve on.")] = "127.0.0.1",
) -> None:
    """Report the state of every detector to Prometheus. Exit code 1 if one cannot be read."""
    if textfile and port is not None:
        raise typer.BadParameter("use --textfile or --port, not both")
    from prometheus_client import generate_latest

    from flows.cli.screen import stderr
    from flows.config.settings import load_settings
    from flows.team.exporter import make_registry, serve, write_textfile

    registry, found = make_registry(load_settings().project)
    if port is not None:
        serve(registry, host, port, lambda line: typer.echo(line))
        return
    if textfile:
        write_textfile(registry, textfile)
    else:
        typer.echo(generate_latest(registry), nl=False)
    for reading in found.failed:
        stderr.print(f"{reading.detector}: {reading.error}", style="red", markup=False, highlight=False)
    if found.failed:
        raise typer.Exit(1)
