"""Commands of a team's servers: deploy to them; start them on one machine, and stop them."""

import os
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.options import Debug, Json
from flows.screen import print_json, print_rows, stdout

app = typer.Typer()
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="As the last time; at first 5433, 4200 and 5000.")]


@app.command(epilog="PREFECT_API_URL=http://prefect.example:4200/api nightjar deploy")
def deploy(as_json: Json = False, debug: Debug = False) -> None:
    """Make pools, limits, deployments and automations on the Prefect server, or bring them up to date."""
    from flows.deploy import deploy as make
    from flows.settings import load_settings

    made = make(load_settings())
    if as_json:
        print_json({"deployments": made})
    else:
        print_rows(Table(title="deployed", title_justify="left"), made, ("deployment", "pool", "schedule"))


@app.command(epilog="make up; . .nightjar/stack/env; nightjar run payments")
def up(
    postgres_port: Port = None,
    prefect_port: Port = None,
    mlflow_port: Port = None,
    debug: Debug = False,
) -> None:
    """Start PostgreSQL, Prefect, MLflow and two workers on this machine, deploy, and print the pages."""
    from flows.settings import load_settings
    from flows.stack import describe_stack, grant_roles, start_stack, start_workers

    asked = {"postgres": postgres_port, "prefect": prefect_port, "mlflow": mlflow_port}
    stack = describe_stack(load_settings(), asked)
    start_stack(stack, tell)
    os.environ.update(stack.client_environment)  # before Prefect is imported
    from flows.deploy import deploy as make
    from tasks.warehouse import migrate, open_engine

    migrate(open_engine(stack.read_secret("warehouse_owner")))
    grant_roles(stack)
    for row in make(load_settings()):
        tell(f"deployed {row['deployment']} on {row['pool']} {row['schedule']}".rstrip())
    start_workers(stack, tell)
    tell(f"to work with it here: . {stack.folder / 'env'}; make down stops it")


@app.command(epilog="make down; make up finds everything as it was")
def down(debug: Debug = False) -> None:
    """Stop what `nightjar up` has started, and nothing else; what it has written stays."""
    from flows.settings import load_settings
    from flows.stack import describe_stack, stop_stack

    stopped = stop_stack(describe_stack(load_settings()))
    tell(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def tell(line: str) -> None:
    """One line of progress, at once."""
    stdout.print(line, soft_wrap=True, markup=False, highlight=False)
