"""The `nightjar` command: results on stdout, everything else on stderr, one readable message for what goes wrong.

Heavy imports happen inside the commands, so that --help answers at once.
"""

import sys
import traceback

import typer

from flows.commands import flags, nights, past, start, stores, team, versions
from flows.screen import hush_at_exit, stderr
from models.errors import NightjarError

app = typer.Typer(
    epilog="First night: nightjar run payments. Your own data: nightjar init NAME --source FILE",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
PANELS = {
    "Nights": nights,
    "Past nights": past,
    "Flags": flags,
    "Versions": versions,
    "Stores": stores,
    "Detectors": start,
    "Team": team,
}
for panel, commands in PANELS.items():
    for command in commands.app.registered_commands:
        command.rich_help_panel = panel
        app.registered_commands.append(command)


@app.callback()
def begin() -> None:
    """Learn what normal looks like and, every night, write what does not to a warehouse table."""
    from flows.settings import load_settings, prepare_environment

    prepare_environment(load_settings())  # Prefect reads its settings when it is imported


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 1 with one readable message on stderr, or 2 for wrong usage."""
    try:
        app(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as caught:  # noqa: BLE001 - the edge: nobody gets a traceback who did not ask
        if "--debug" in arguments:
            traceback.print_exc()
            return 1
        from flows.settings import prefect_is_away

        is_away = str(caught).startswith("Failed to reach API at")  # Prefect's own words for it
        error = prefect_is_away(str(caught)) if is_away else caught
        told = f"{type(error).__name__}: {error}"
        if not isinstance(error, NightjarError):
            told = f"unexpected {told}\n  to do: run again with --debug and report it"
        stderr.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def main() -> None:
    """Run the command line."""
    hush_at_exit()
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
