"""The `nightjar` command: results on stdout, everything else on stderr, one readable message for an error."""

import sys
import traceback
from importlib.metadata import version
from types import ModuleType
from typing import Annotated

import typer

from flows.cli import (
    alerts,
    backfill,
    backup,
    case,
    cases,
    compare,
    delete,
    deploy,
    desk,
    doctor,
    down,
    erase,
    explain,
    export,
    fetch,
    flags,
    ingest,
    init,
    latent,
    metrics,
    migrate,
    monitor,
    promote,
    prune,
    rank,
    reduce,
    replay,
    restore,
    review,
    rollback,
    run,
    score,
    stage,
    status,
    suppress,
    train,
    up,
    verify,
)
from flows.cli.screen import stderr
from flows.config.garbage import collect_less_often
from flows.config.quiet import hush_at_exit
from models.errors import NightjarError, hide_password

# A verb is the name of its file and of the function in it. --help ends with that file's EXAMPLE.
VERBS: dict[str, tuple[ModuleType, ...]] = {
    "Nights": (run, ingest, score, status, monitor, alerts, metrics),
    "Past nights": (backfill, replay, verify),
    "Flags": (flags, explain, review, suppress, rank, latent),
    "Cases": (desk, cases, case),
    "Versions": (train, compare, promote, rollback, reduce),
    "Stores": (migrate, export, backup, restore, prune, erase),
    "Detectors": (init, fetch, doctor, stage, delete),
    "Team": (deploy, up, down),
}
app = typer.Typer(
    epilog="First night: nightjar run payments. Your own data: nightjar init NAME --source FILE",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for panel, modules in VERBS.items():
    for module in modules:
        verb = module.__name__.rpartition(".")[2]
        app.command(verb, epilog=f"Example: {module.EXAMPLE}", rich_help_panel=panel)(getattr(module, verb))


def show_version(is_asked: bool) -> None:
    """Print the version and exit."""
    if is_asked:
        typer.echo(f"nightjar {version('nightjar')}")
        raise typer.Exit


@app.callback()
def begin(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Learn what normal looks like and, every night, write what does not look normal to a warehouse table."""
    from flows.config.settings import load_settings, prepare_environment

    prepare_environment(load_settings())  # Prefect reads its settings when it is imported


command = typer.main.get_command(app)  # once: it reads the options of all verbs


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 1 with one readable message on stderr, or 2 for wrong usage."""
    is_debug = "--debug" in arguments
    try:
        command(["--debug"] * is_debug + [argument for argument in arguments if argument != "--debug"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as caught:  # noqa: BLE001 - the edge: a traceback only with --debug
        if is_debug:
            sys.stderr.write(hide_password(traceback.format_exc()))
            return 1
        from flows.config.settings import explain_prefect

        error = caught if isinstance(caught, NightjarError) else explain_prefect(caught) or caught
        message = f"{type(error).__name__}: {hide_password(str(error))}"
        if not isinstance(error, NightjarError):
            message = f"unexpected {message}\n  to do: run again with --debug and report it"
        stderr.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def main() -> None:
    """Run the command line."""
    collect_less_often()
    hush_at_exit()
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
