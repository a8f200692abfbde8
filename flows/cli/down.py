"""`nightjar down`."""

from flows.cli.up import tell

EXAMPLE = "make down; make up finds everything as it was"


def down() -> None:
    """Stop what `nightjar up` has started, and nothing else; what it has written stays."""
    from flows.config.settings import load_settings
    from flows.team.stack import describe_stack, stop_stack

    stopped = stop_stack(describe_stack(load_settings()))
    tell(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
