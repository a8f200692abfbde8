"""`nightjar up`."""

import os
from typing import Annotated

import typer

from flows.cli.screen import stdout

EXAMPLE = "make up; . .nightjar/stack/env; nightjar run payments"


Port = Annotated[int | None, typer.Option(min=1, max=65535, help="As the last time; at first 5433, 4200 and 5000.")]


def up(
    postgres_port: Port = None,
    prefect_port: Port = None,
    mlflow_port: Port = None,
) -> None:
    """Start PostgreSQL, Prefect, MLflow and two workers on this machine, deploy, and print the pages."""
    from flows.config.settings import load_settings
    from flows.team.stack import describe_stack, start_stack, start_workers

    asked = {"postgres": postgres_port, "prefect": prefect_port, "mlflow": mlflow_port}
    stack = describe_stack(load_settings(), asked)
    start_stack(stack, tell)
    os.environ.update(stack.client_environment)  # before Prefect is imported
    from flows.team.deploy import deploy as make
    from tasks.stores.warehouse import Warehouse

    Warehouse(stack.read_secret("warehouse_owner")).migrate()
    for row in make(load_settings()):
        tell(f"deployed {row['deployment']} on {row['pool']} {row['schedule']}".rstrip())
    start_workers(stack, tell)
    tell(f"to work with it here: . {stack.folder / 'env'}; make down stops it")


def tell(line: str) -> None:
    """One line of progress, at once."""
    stdout.print(line, soft_wrap=True, markup=False, highlight=False)
