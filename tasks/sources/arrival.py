"""One delivery of a source: its name, its version, and how its rows are read."""

import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime

import pyarrow as pa

from tasks.errors import SourceInvalid, hide_password


@dataclass(frozen=True)
class Arrival:
    """One file, query or feed delivery. `version` changes when its content may have.

    is_whole: it replaces everything that this name delivered before. A query may return only the latest days.
    first: the first batch date of which it has all rows; rows of earlier dates do not land.
    content: a hash of what it holds, or "" if that is not cheap to read. It reveals a change that the version hides.
    """

    name: str
    version: str
    arrived_at: datetime
    read: Callable[[], Iterable[pa.Table]]
    is_whole: bool = True
    content: Callable[[], str] = str
    first: date = date.min

    def __post_init__(self) -> None:
        """Names are stored and shown; that of a file behind a URL may end in a token."""
        object.__setattr__(self, "name", hide_password(self.name))


# Names that are not data in a folder or archive: hidden ones, markers such as _SUCCESS, checksums, unfinished files.
PASSED_OVER = re.compile(
    r"(^|/)([_.~]|(README|LICENSE|desktop\.ini|Thumbs\.db)($|[./]))|~$"
    r"|\.(crc|tmp|temp|part|partial|filepart|crdownload|swp|lock|md5|sha1|sha256|md)$",
    re.IGNORECASE,
)
# The only column of a table with the rows of a file that have another number of values than its header: where they
# are, such as "line 7 with 1 of 4 values". They are quarantined.
UNPARSED = "\0unparsed"

# What damaged archives, and those packed in an unknown way, raise.
UNPACKING = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


def damaged_file(path: str, error: Exception) -> SourceInvalid:
    """The error for a file that cannot be read to the end."""
    return SourceInvalid(
        "The file is truncated or damaged.",
        where=path,
        got=re.sub(r"(got \d+):.*", r"\1", str(error).splitlines()[0]),  # Arrow appends the row itself
        expected="complete rows up to the end of the file",
        todo="deliver the file again; nothing of it has landed",
    )
