"""Keep noise from other libraries off stderr, and passwords out of logs."""

import atexit
import logging
import os
import sys
from functools import cache
from typing import Any

from models.errors import hide_password


@cache
def hush_at_exit() -> None:
    """Silence stderr while the interpreter exits.

    DuckDB's bindings report objects that Great Expectations and torch still hold as leaks, in dozens of lines.
    """

    @atexit.register  # the first one registered runs last
    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@cache
def hide_passwords_in_logs() -> None:
    """Hide the passwords of URLs in every log record and its traceback, which shows other libraries' errors too."""
    make = logging.getLogRecordFactory()

    def make_hidden(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.exc_info and record.exc_info[1]:
            record.exc_text = hide_password(logging.Formatter().formatException(record.exc_info))  # formatters use it
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports wrong arguments
            return record
        if (hidden := hide_password(text)) != text:
            record.msg, record.args = hidden, None
        return record

    logging.setLogRecordFactory(make_hidden)


def hush_lost_connections() -> None:
    """Suppress the tracebacks of closing what a lost database has already closed; the error itself is reported."""
    for name in ("sqlalchemy.pool", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def hush_great_expectations() -> None:
    """Suppress its note about a temporary folder. By a filter, because importing it resets the level."""
    logging.getLogger("great_expectations.data_context.types.base").addFilter(
        lambda record: record.levelno > logging.INFO
    )
