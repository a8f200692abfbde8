"""How a CSV file is written: its encoding, separator, lines above the header and escaped quotation marks.

`nightjar init` finds it once and writes it to params.yaml, so that every later file is read the same.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import charset_normalizer

SEPARATORS = ",;\t|"
SHOWN = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
MARKS = {  # of byte order, which say the encoding whatever params say; UTF-32 first, because it begins like UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# In the order of trust: most bytes are text in each of them.
LIKELY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "shift_jis", "gb18030", "big5", "euc_kr", "euc_jp"]
SIGNS = (
    "\u20ac\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u2122\xa3\xa7\xa9\xab\xae\xb0\xbb"  # of cp1252, common in tables
)
MOST_RECORDS = 1_000  # looked at
MOST_SKIPPED = 50  # lines above a header


@dataclass(frozen=True)
class Dialect:
    """How the text of a CSV file is read."""

    separator: str = ","
    encoding: str = "utf-8"
    skip_lines: int = 0
    escape: str | None = None


PLAIN = Dialect()


def find_encoding(head: bytes) -> str:
    """The encoding of a text by its byte order mark, its zero bytes or, if it is not UTF-8, its likeliest language."""
    if marked := read_mark(head):
        return marked
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 8 and min(even, odd) < max(even, odd) // 8:
        return "utf-16-le" if odd > even else "utf-16-be"
    if is_text(head, "utf-8"):
        return "utf-8"
    # Only lines with other than ASCII characters say anything.
    lines = b"\n".join(line for line in re.split(rb"[\r\n]+", head) if not line.isascii())[: 1 << 16]
    if is_text(lines, "cp1252") and _is_western(lines):
        return "cp1252"
    best = charset_normalizer.from_bytes(lines, cp_isolation=LIKELY).best()
    found = best.encoding if best else "cp1252"
    return found if is_text(head, found) else "latin-1"


def _is_western(lines: bytes) -> bool:
    """Whether bytes read as cp1252 look like Western European text: the few other characters are letters or signs."""
    letters = [
        character for character in lines.decode("cp1252", errors="replace") if character.isalpha() or character > "\x7f"
    ]
    others = [character for character in letters if character > "\x7f"]
    known = sum(1 for character in others if character.isalpha() or character in SIGNS)
    return known >= 0.9 * len(others) and (len(others) < 8 or len(others) < len(letters) / 3)


def read_mark(head: bytes) -> str | None:
    """The encoding that a byte order mark says."""
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), None)


def is_text(head: bytes, encoding: str) -> bool:
    """Whether bytes, whose last character may be cut off, are text in an encoding."""
    try:
        decode(head, encoding)
    except UnicodeDecodeError:
        return False
    return True


def decode(head: bytes, encoding: str, errors: str = "strict") -> str:
    """The text of bytes whose last character may be cut off. Raises UnicodeDecodeError unless errors is "replace"."""
    return codecs.getincrementaldecoder(encoding)(errors).decode(head)


def find_dialect(text: str, encoding: str = "utf-8") -> Dialect:
    """The dialect of the beginning of a CSV file's text: commas, unless another separator gives more even rows."""
    escapes = (None, "\\") if '\\"' in text else (None,)
    best, most = Dialect(encoding=encoding), 0.5
    for separator in SEPARATORS:
        for escape in escapes:
            dialect = Dialect(separator, encoding, 0, escape)
            records = read_records(text, dialect)
            widths = Counter(len(record) for _, record in records if len(record) > 1)
            if not widths:
                continue
            width, count = max(widths.items(), key=lambda pair: (pair[1], pair[0]))
            evenness = count / len(records)
            if evenness > most:
                best, most = replace(dialect, skip_lines=count_skipped(records, width)), evenness
    return best


def read_records(text: str, dialect: Dialect) -> list[tuple[int, list[str]]]:
    """The first records of a text that are not empty, with the number of lines above each; not the one cut off."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=dialect.separator, escapechar=dialect.escape,
        doublequote=dialect.escape is None,
    )  # fmt: skip
    found: list[tuple[int, list[str]]] = []
    above = 0
    try:
        for record in reader:
            if any(record):
                found.append((above, record))
            above = reader.line_num
            if len(found) > MOST_RECORDS:
                break
    except csv.Error:  # a field of more than 128 kB
        pass
    is_whole = text.endswith(("\n", "\r")) or len(found) > MOST_RECORDS
    return found if is_whole or len(found) < 3 else found[:-1]


def count_skipped(records: Sequence[tuple[int, list[str]]], width: int) -> int:
    """The lines above the header: comments, and a few records of at most half the usual width."""
    for place, (above, record) in enumerate(records[:MOST_SKIPPED]):
        if not record[0].startswith(("# ", "##", "//")) and (2 * len(record) > width or 2 * place > len(records)):
            return above if place else 0
    return 0


NUMBER = re.compile(r"\s*[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?\s*")
MOMENT = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?")


def has_header(records: Sequence[Sequence[str]]) -> bool:
    """Whether the first of these records names the columns, unlike the values below it.

    A number above numbers, a date above dates or a word that its column repeats is a value. Numbers that rise from
    left to right, such as 0, 1, 2 or years, are names.
    """
    first, rest = records[0], records[1:]
    if not rest:
        return True
    seen = [_is_value(name, [row[place] for row in rest if len(row) > place]) for place, name in enumerate(first)]
    numbers = [float(name.replace(",", ".")) for name in first if NUMBER.fullmatch(name)]
    rises = len(numbers) > 1 and all(left < right and left.is_integer() for left, right in pairwise(numbers))
    return False in seen or True not in seen or rises


def _is_value(name: str, values: Iterable[str]) -> bool | None:
    """Whether the first text of a column is one of its values; None if it might be either."""
    filled = [value for value in values if value.strip()]
    if not filled or not name.strip():
        return None
    for form in (NUMBER, MOMENT):
        if sum(1 for value in filled if form.fullmatch(value)) > 0.9 * len(filled):
            return form.fullmatch(name) is not None
    return True if filled.count(name) > 1 else None
