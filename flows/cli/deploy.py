"""`nightjar deploy`."""

from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_rows

EXAMPLE = "PREFECT_API_URL=http://prefect.example:4200/api nightjar deploy"


def deploy(as_json: Json = False) -> None:
    """Create or update pools, limits, deployments and automations on the Prefect server."""
    from flows.config.settings import load_settings
    from flows.team.deploy import deploy as make

    made = make(load_settings())
    if as_json:
        print_json({"deployments": made})
    else:
        print_rows(Table(title="deployments", title_justify="left"), made, ("deployment", "pool", "schedule"))
