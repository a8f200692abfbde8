"""Keep noise from other libraries off stderr."""

import atexit
import logging
import os
import sys
from functools import cache


@cache
def hush_at_exit() -> None:
    """Silence stderr while the interpreter exits.

    DuckDB's bindings report objects that Great Expectations and torch still hold as leaks, in dozens of lines.
    """

    @atexit.register  # the first one registered runs last
    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def hush_great_expectations() -> None:
    """Suppress its note about a temporary folder. By a filter, because importing it resets the level."""
    logging.getLogger("great_expectations.data_context.types.base").addFilter(
        lambda record: record.levelno > logging.INFO
    )
