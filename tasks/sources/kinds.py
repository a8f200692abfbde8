"""All kinds of source, and how to list their arrivals.

A new kind is a new file here, with its params section and its arrivals, and one line in each of the places below.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from tasks.sources import codes, payments
from tasks.sources.arrival import Arrival
from tasks.sources.codes import CodesSource
from tasks.sources.files import FilesSource, list_files
from tasks.sources.payments import PaymentsSource
from tasks.sources.sql import SqlSource, read_query

Source = Annotated[FilesSource | SqlSource | PaymentsSource | CodesSource, Field(discriminator="kind")]


@dataclass(frozen=True)
class Window:
    """The batch dates to request from a feed, and the instant of the request. Files ignore the dates."""

    first: date
    last: date
    now: datetime


def list_arrivals(source: Source, root: str, zone: ZoneInfo, window: Window) -> list[Arrival]:
    """Everything the source has delivered by `window.now`; a file that is there has been delivered, whatever its date.

    root: folder or URL that relative paths start from.
    """
    if isinstance(source, FilesSource):
        return list(list_files(source, root))
    if isinstance(source, SqlSource):
        found: Iterable[Arrival] = [read_query(source, window.now, window.first)]
    elif isinstance(source, CodesSource):
        found = codes.list_arrivals(source, zone, window.first, window.last)
    else:
        found = payments.list_arrivals(source, zone.key, window.first, window.last)
    return [arrival for arrival in found if arrival.arrived_at <= window.now]


def find_first_date(source: Source) -> date:
    """The first batch date of a generated source; date.min for any other source."""
    return source.first_date if isinstance(source, PaymentsSource | CodesSource) else date.min
