"""Output of the commands: tables and JSON on stdout, progress and everything else on stderr."""

import csv
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.config.quiet import hush_great_expectations
from models.errors import NightjarError

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 10  # of a file's rows; --json has everything
# What a terminal would obey: control characters but tabs and line ends, and marks that turn the direction of writing.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


def make_printable(text: str) -> str:
    """A text in which a terminal obeys nothing: an escape character is shown as \\x1b."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class _Screen(Console):
    """A console that prints data as it is: no markup, and no control characters."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print texts, made printable, and tables."""
        super().print(*(make_printable(one) if isinstance(one, str) else one for one in objects), **how)


stdout = _Screen(width=None if sys.stdout.isatty() else 100, markup=False)
stderr = _Screen(stderr=True, markup=False)


def print_json(document: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, default=_plain, indent=2, allow_nan=False) + "\n")


def print_note(text: str) -> None:
    """Print what people should know before they read on."""
    stdout.print(f"note       {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_csv(frame: "pd.DataFrame") -> None:
    """Print rows as CSV for a spreadsheet: no formulas, and on a terminal no control characters."""
    from tasks.rows.escaping import without_formulas

    frame = without_formulas(frame)
    text = frame.to_csv(index=False)
    if "\r" in text:  # pandas would leave it unquoted
        text = frame.to_csv(index=False, quoting=csv.QUOTE_ALL)
    sys.stdout.write(make_printable(text) if sys.stdout.isatty() else text)


def print_rows(table: Table, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print dicts as a table, with numbers right-aligned."""
    table.title = make_printable(str(table.title))
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for column in columns:
        cells = [show_cell(row[column]) for row in rows]
        numeric = any(isinstance(row[column], int | float) for row in rows)
        # A number or a date that is cut or wrapped misleads: its column is never narrower, and a heading is folded.
        whole = max(map(len, cells), default=0) if numeric or column.endswith(("date", "night")) else None
        heading = column.replace("_", " ")
        table.add_column(heading, justify="right" if numeric else "left", min_width=whole, overflow="fold")
    for row in rows:
        table.add_row(*(show_cell(row[column]) for column in columns))
    stdout.print(table, markup=False, crop=False)


def print_causes(causes: list[dict[str, Any]], zone: ZoneInfo) -> None:
    """Print the causes of one record, with their parts if they have any."""
    from tasks.rows.describe import localise_causes

    rows = [{"part": "", "actual": "", "expected": ""} | cause for cause in localise_causes(causes, zone)]
    parts = ("part",) if any(row["part"] for row in rows) else ()
    columns = ("column", *parts, "share", "actual", "expected")
    print_rows(Table(title="causes: shares of the score", title_justify="left"), rows, columns)


def describe_suppressed(by: str | None) -> str:
    """What suppresses a flag; None: the second stage, which older nights do not name."""
    return f"suppressed by suppression {by}" if by and by.isdigit() else "suppressed by the second stage"


def describe_flag(is_flagged: bool, is_suppressed: bool, suppressed_by: str | None = None) -> str:
    """Whether a record is flagged, and what suppresses the flag."""
    if is_suppressed or suppressed_by:
        return f"flagged, {describe_suppressed(suppressed_by)}"
    return "flagged" if is_flagged else "not flagged"


def describe_probabilities(p_value: float, second_stage: float | None) -> str:
    """The p-value, and the second stage's probability if there is one."""
    more = "" if second_stage is None else f", second-stage probability {second_stage:.2g}"
    return f"p-value {p_value:.2g}{more}"


def show_cell(value: object) -> str:
    """A value as text in a table, on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else make_printable(" ".join(str(value).split("\n")))


@contextmanager
def running() -> Iterator[None]:
    """Run flows in this process, with progress on stderr."""
    from flows.team.temporary import temporary_server

    with showing_progress(), temporary_server():
        yield


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show the progress of steps on stderr.

    Heartbeats are off: their thread delays the end of each flow by a second.
    """
    from prefect.logging.configuration import ensure_logging_setup
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    ensure_logging_setup()  # otherwise done by the first flow, too late for the filter
    hush_great_expectations()
    consoles = list(logging.getLogger().handlers)  # Prefect's among them
    for console in consoles:
        console.addFilter(_is_news)
    logger, handler = logging.getLogger("nightjar.progress"), _Bars()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        # What libraries print, such as MLflow the address of a run, must not mix with the result.
        with handler.bars, redirect_stdout(sys.stderr), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
    finally:
        logger.removeHandler(handler)
        for console in consoles:
            console.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop log records that repeat the final error message. Prefect's pages still show them."""
    is_known = record.exc_info is not None and isinstance(record.exc_info[1], NightjarError)
    return not is_known and not (record.name.startswith("prefect.") and "in state Failed(" in record.getMessage())


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


class _Bars(logging.Handler):
    """Shows the progress records of tasks/policy.py: as bars on a terminal, else as one line per finished step."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=stderr, disable=not stderr.is_terminal)
        self.steps: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        step, done, total = (record.__dict__[key] for key in ("step", "done", "total"))
        if not stderr.is_terminal:
            if done == total and self.steps.setdefault(step, done) == done:
                self.steps[step] = -1  # printed once
                stderr.print(f"{step}: {total:,} done", highlight=False)
            return
        if step not in self.steps:
            self.steps[step] = self.bars.add_task(step)
        self.bars.update(self.steps[step], completed=done, total=total)


def print_scored(
    found: dict[str, Any], title: str, columns: tuple[str, ...], output: Path | None, zone: ZoneInfo
) -> None:
    """Print the worst rows of a file, its counts and its bad rows."""
    from tasks.rows.describe import describe_causes

    rows = [
        row
        | {
            "rank": f"{row['percentile_rank']:.2f}",
            "flag": describe_flag(True, row["is_suppressed"]) if row["is_flagged"] else "",
            "causes": "; ".join(describe_causes(row["causes"], zone)[:2]),
        }
        for row in found["records"]
    ]
    print_rows(Table(title=title, title_justify="left"), rows, columns)
    bad = found["rows"] - found["scored"]
    suppressed = f" ({found['suppressed']:,} suppressed by the second stage)" if found["suppressed"] else ""
    stdout.print(
        f"{found['rows']:,} rows: {found['scored']:,} scored, {found['flagged']:,} of them flagged{suppressed}; "
        f"{bad:,} bad, not scored",
        soft_wrap=True,
        highlight=False,
    )
    for row in found["bad_rows"]:
        stdout.print(f"bad row    {row['record_id']}: {row['reason']}", soft_wrap=True, markup=False, highlight=False)
    if bad > len(found["bad_rows"]):
        stdout.print(f"           and {bad - len(found['bad_rows']):,} more: --output FILE.parquet lists every row")
    if output:
        stdout.print(f"wrote      {output}", soft_wrap=True, markup=False, highlight=False)
