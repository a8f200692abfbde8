"""`nightjar down`."""

from flows.cli.up import show_line

EXAMPLE = "nightjar down"


def down() -> None:
    """Stop everything that `nightjar up` started. All data is kept."""
    from flows.config.settings import load_settings
    from flows.team.stack import describe_stack, stop_stack

    stopped = stop_stack(describe_stack(load_settings()))
    show_line(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
