"""Keep noise from other libraries off stderr, and passwords and repetitions out of logs."""

import atexit
import logging
import os
import re
import sys
from functools import cache
from typing import Any

from models.errors import NightjarError, hide_password

LOGGED = "_nightjar_logged"  # an attribute of an error that Prefect has logged
# The last record of a run that an error ended: the record before it has the error.
REPEATED = re.compile(r"^(Finished in state \w+\()['\"](?:Task|Flow) run encountered an exception.*", re.DOTALL)


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
def clean_logs() -> None:
    """Hide the passwords of URLs in every log record and its traceback, and shorten Prefect's records of errors."""
    make = logging.getLogRecordFactory()

    def make_clean(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.exc_info and record.exc_info[1]:
            record.exc_text = hide_password(_describe(record, record.exc_info[1]))  # formatters use it
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports wrong arguments
            return record
        hidden = hide_password(text)
        if record.name.startswith("prefect."):
            hidden = REPEATED.sub(r"\1)", hidden)
        if hidden != text:
            record.msg, record.args = hidden, None
        return record

    logging.setLogRecordFactory(make_clean)


def _describe(record: logging.LogRecord, error: BaseException) -> str:
    """What follows the message of a record of an error: our own need no traceback.

    Prefect logs an error with the task and again with the flow; the second record refers to the first.
    """
    if record.name.startswith("prefect."):
        if getattr(error, LOGGED, False):
            return "The details are above."
        setattr(error, LOGGED, True)
        if isinstance(error, NightjarError):
            return str(error).partition("\n")[2] or str(error)
    return logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]  # of this error


def hush_lost_connections() -> None:
    """Suppress the tracebacks of closing what a lost database has already closed; the error itself is reported."""
    for name in ("sqlalchemy.pool", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def hush_great_expectations() -> None:
    """Suppress its note about a temporary folder. By a filter, because importing it resets the level."""
    logging.getLogger("great_expectations.data_context.types.base").addFilter(
        lambda record: record.levelno > logging.INFO
    )
