"""Keep other libraries' last words and notes off stderr."""

import atexit
import logging
import os
import sys
from functools import cache


@cache
def hush_at_exit() -> None:
    """Keep the interpreter's last moments off stderr.

    DuckDB's bindings call what Great Expectations and torch keep alive until then a leak, in dozens of lines.
    """

    @atexit.register  # the first one registered runs last
    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def hush_great_expectations() -> None:
    """Keep its note about a temporary folder off stderr. A filter, not a level: it sets its own when imported."""
    logging.getLogger("great_expectations.data_context.types.base").addFilter(
        lambda record: record.levelno > logging.INFO
    )
