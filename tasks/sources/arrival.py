"""One delivery of a source: its name, its version, and how its rows are read."""

import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from tasks.errors import SourceInvalid


@dataclass(frozen=True)
class Arrival:
    """One file, query or feed delivery. `version` changes when its content may have.

    is_whole: what the name brought before and does not bring now is gone. A query may ask for the latest days only.
    """

    name: str
    version: str
    arrived_at: datetime
    read: Callable[[], Iterable[pa.Table]]
    is_whole: bool = True


UNPACKING = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what damaged archives raise


def damaged_file(path: str, error: Exception) -> SourceInvalid:
    """The error for a file of which not everything can be read."""
    return SourceInvalid(
        "The file is truncated or damaged.",
        where=path,
        got=re.sub(r"(got \d+):.*", r"\1", str(error).splitlines()[0]),  # Arrow goes on with the row itself
        expected="whole rows up to the end of the file",
        todo="deliver the file again; nothing of it has landed",
    )
