"""`nightjar up`."""

import os
from typing import Annotated

import typer

from flows.cli.screen import stdout

EXAMPLE = "nightjar up; . .nightjar/stack/env; nightjar run payments"


Port = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Default: as last time; initially 5433 (PostgreSQL), 4200 (Prefect), 5000 (MLflow), 8890 (desk).",
    ),
]


def up(
    postgres_port: Port = None,
    prefect_port: Port = None,
    mlflow_port: Port = None,
    desk_port: Port = None,
) -> None:
    """Start PostgreSQL, Prefect, MLflow, two workers and the desk on this machine, and deploy the flows."""
    from flows.config.settings import load_settings
    from flows.team.stack import PASSWORDS, describe_stack, start_desk, start_stack, start_workers

    asked = {"postgres": postgres_port, "prefect": prefect_port, "mlflow": mlflow_port, "desk": desk_port}
    settings = load_settings()
    stack = describe_stack(settings, asked)
    start_stack(stack, show_line, settings.stack_user)
    os.environ.update(stack.client_environment)  # before Prefect is imported
    os.environ.update({name: stack.read_secret(file) for name, file in PASSWORDS.items()})
    from flows.team.deploy import deploy as make
    from tasks.stores.warehouse import Warehouse

    Warehouse(stack.read_secret("warehouse_owner")).migrate()
    for row in make(load_settings()):
        show_line(f"deployed {row['deployment']} on {row['pool']} {row['schedule']}".rstrip())
    start_workers(stack, show_line)
    start_desk(stack, show_line)
    show_line(f"to use it in this shell: . {stack.folder / 'env'}; to stop it: make down")


def show_line(line: str) -> None:
    """Print one line of progress."""
    stdout.print(line, soft_wrap=True, markup=False, highlight=False)
