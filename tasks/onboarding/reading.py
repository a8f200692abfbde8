"""How the values of a new column are to be read: as which type, in which format, and which words mean missing.

In: a column of a sample (n rows). Out: a Reading, which `init` writes into the contract, so that validation reads the
same. Of the formats that read most values the first in the list is chosen, and none where plain reading does as well.
"""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.rows.contract import TYPES
from tasks.rows.schema import MISSING_WORDS, cast_column, is_text, shorten
from tasks.sources.formats import EPOCHS

Type = Literal["float", "int", "text", "bool", "timestamp"]

Counts = npt.NDArray[np.int64]
MAX_UNREADABLE = 0.05  # largest share of unreadable values in a text column of numbers or date-times
MAX_OTHER = 0.5  # largest share of words that mean missing among the values of a column of numbers
MAX_WORDS = 3  # such words
MIN_NUMBERS = 20  # different numbers next to such a word: fewer may be categories
CODES = 0.01  # share of values with a leading zero from which a column holds codes
OTHER_WAY = "and could also be"  # in a doubt about values that are read
TRIED = 500  # values on which all formats are tried first
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # or numbers with three decimals
SURE_THOUSANDS = 50  # such numbers, if none has one or two decimals and smaller ones have no point: decimals vary
NUMBERS = ("1,234.56", "1.234,56", "1 234,56", "1 234.56", "1'234.56")
DAYS_FIRST = ("DD-MM-YYYY", "MM-DD-YYYY", "YYYY-MM-DD", "DD-MM-YY", "MM-DD-YY")
DATES = (
    "MM/DD/YYYY", "DD/MM/YYYY", "YYYY/MM/DD", "MM/DD/YY", "DD/MM/YY",  # the first is taken where nothing decides
    *DAYS_FIRST, *(form.replace("-", ".") for form in DAYS_FIRST),
    "DD-MMM-YYYY", "DD MMM YYYY", "MMM DD, YYYY", "DD-MMM-YY", "DD/MMM/YYYY", "YYYYMMDD",
)  # fmt: skip
TIME_LIKE = re.compile(  # a year with a month, a day or a time of day, in whatever order; a week of a year
    r"(?i)(?=.*\b(19|20)\d{2})(?=.*(\d{1,2}:\d{2}|\d[-/.年]\s?\d{1,2}|\d[.\s/-]+[^\W\d]{3,9}\b)).{8,40}|\d{4}-?W\d{2}.{0,30}"
)
DURATION = re.compile(  # 07:45, 1:02:03.5, 2 days 00:12:33, PT1H30M
    r"-?(\d+ days?,? )?\d{1,4}:[0-5]\d(:[0-5]\d([.,]\d+)?)?|-?P(?=.)(\d+([.,]\d+)?[YMWD])*(T(\d+([.,]\d+)?[HMS])+)?"
)
ANY_NUMBER = re.compile(r"([+\-(]*)(\D{0,4}?)[+-]?\d+([.,' ]\d{3})*([.,]\d+)?([eE][+-]?\d+)?\s?(\D{0,5})\)?")
SIGN = re.compile(
    r"[$€£¥₹₽₩₪₫₴₺₱฿¢%]|(?i:USD|EUR|GBP|JPY|CNY|CHF|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|RON|TRY|RUB|UAH|INR|BRL|MXN|ZAR|"
    r"SGD|HKD|KRW|THB|ILS|AED|SAR|[RACSU]{1,2}\$|kr\.?|kč|zł|fr\.?|lei|ft|rs\.?)"
)
UNIT = re.compile(r"[^\W\d_]{1,5}([/·][^\W\d_]{1,5})?|°[CFKcfk]?")  # after a number: kg, km/h, °C
AFFIX = re.compile(r"[+\-\u2212(]*([^\d.,'+\-\u2212()]*)[+\-\u2212(]*[\d.,'\u2019\s]*\d[.,]?([^\d]*?)[)\-\u2212]?")
TIME_NAME = re.compile(
    r"(^|[^A-Za-z])(?i:time|date|datetime|timestamp|ts|epoch|at|on)([^A-Za-z]|$)|[a-z](Time|Date|At|On|TS)$|time(stamp)?$"
)
EPOCH_S = (5e8, 5e9)  # seconds since 1970, for the years 1985 to 2128
YEARS = (1800, 2200)  # of eight-digit dates
EXCEL_DAYS, FIRST_EXCEL_DAY = (20_000, 80_000), date(1899, 12, 30)  # for the years 1954 to 2119


@dataclass(frozen=True)
class Reading:
    """How a column is read. `doubt`: what else its values could mean, in words, if nothing in the data decides it."""

    type: Type | None
    format: str | None = None
    missing: tuple[str, ...] = ()
    doubt: str = ""


def find_reading(name: str, column: pa.ChunkedArray) -> Reading:
    """The contract's type for a column and how it is written; no type if Nightjar does not read it.

    Numbers in text are `float`, also whole ones: a later 2.5 is unusual, but not a bad row.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return find_reading(name, column.cast(kind.value_type))
    if isinstance(kind, pa.UuidType) or pa.types.is_null(kind):
        return Reading("text")
    if isinstance(kind, pa.BaseExtensionType):
        return find_reading(name, column.cast(kind.storage_type))
    if pa.types.is_boolean(kind):
        return Reading("bool")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        plain: Type = "int" if pa.types.is_integer(kind) and kind != pa.uint64() else "float"
        numbers = cast_column(column, pa.float64())
        return _find_numeric_time(name, numbers) or Reading(plain, doubt=_describe_days(name, numbers))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Reading("timestamp")
    return _find_reading_of_text(name, column.cast(pa.string())) if is_text(kind) else Reading(None)


def _find_reading_of_text(name: str, column: pa.ChunkedArray) -> Reading:
    trimmed = pc.utf8_trim_whitespace(column.drop_null())
    values = trimmed.filter(pc.invert(pc.is_in(pc.utf8_lower(trimmed), pa.array(MISSING_WORDS))))
    if not len(values):
        return Reading("text")
    if pc.all(pc.is_in(pc.utf8_lower(values), pa.array(["true", "false"]))).as_py():
        return Reading("bool")
    if _holds_codes(values):
        return Reading("text")
    numbers = _find_numbers(name, values)
    if numbers.type != "text":
        return numbers
    return _find_times(values) or (numbers if numbers.doubt else Reading("text", doubt=_describe_unread(values)))


def _describe_unread(values: pa.ChunkedArray) -> str:
    """What texts look like that are read neither as times nor as numbers; "" if they look like texts."""
    some = values[:TRIED].to_pylist()
    numbers = [text for text in some if (parts := ANY_NUMBER.fullmatch(text)) and _is_sign(parts[2], parts[6])]
    times, durations = ([text for text in some if form.fullmatch(text)] for form in (TIME_LIKE, DURATION))
    for found, what in ((times, "times"), (durations, "durations or times of day"), (numbers, "numbers")):
        if len(found) > (1 - MAX_UNREADABLE) * len(some) and len(set(found)) > MIN_NUMBERS:
            ways = {re.sub(r"\d+", "0", text): text for text in reversed(found)}
            listed = " and ".join(map(shorten, [*ways.values()][-2:]))
            return f"its values look like {what} in a form that is not read, such as {listed}"
    return ""


def _holds_codes(values: pa.ChunkedArray) -> bool:
    """Whether numbers are codes, which would lose their leading zeros; one such value among many is a slip."""
    share = pc.mean(pc.match_substring_regex(values, r"^[+-]?0[0-9]+$").cast(pa.float64())).as_py()
    widths = pc.count_distinct(pc.utf8_length(values)).as_py()
    return bool(share > CODES or (share and widths == 1))


def _find_numbers(name: str, values: pa.ChunkedArray) -> Reading:
    """The reading as numbers, or as text if too many values are no numbers."""
    counted = values.value_counts()
    texts, counts = counted.field("values"), counted.field("counts").to_numpy()
    formats = [None, *_formats_of_numbers(texts)]
    read = {form: cast_column(texts, TYPES["float"], form) for form in formats}
    totals = {form: int(counts[found.is_valid().to_numpy()].sum()) for form, found in read.items()}
    best = max(formats, key=lambda form: totals[form])  # the first of equals
    points = _count_thousands(texts) if best is None else 0
    if points >= SURE_THOUSANDS:
        best = "1.234,56"
    is_lost = read[best].is_null().to_numpy()
    words = _find_words(texts.filter(pa.array(is_lost)), counts[is_lost], read[best], len(values))
    means_missing = pc.is_in(texts, pa.array(words, pa.string())).to_numpy(zero_copy_only=False)
    there, lost = int(counts[~means_missing].sum()), int(counts[is_lost & ~means_missing].sum())
    if not there or lost > MAX_UNREADABLE * there:
        is_close = len(values) - lost > MAX_OTHER * len(values) and totals[best] > MIN_NUMBERS
        odd = shorten(texts.filter(pa.array(is_lost & ~means_missing))[0].as_py()) if lost else ""
        told = f"{totals[best]:,} of its {len(values):,} values are numbers, others are not, such as {odd}"
        return Reading("text", doubt=told if is_close and odd else "")
    if best is None and (found := _find_numeric_time(name, read[None].filter(pa.array(~is_lost)))):
        return found
    others = [form for form in formats if form and best and form != best and totals[form] == totals[best]]
    others = [form for form in others if not read[form].equals(read[best])]
    example = next(iter(texts.to_pylist()))
    doubt = f"values such as {example!r} are read as {best} {OTHER_WAY} {others[0]}" if others else ""
    doubt = doubt or _describe_days(name, read[best])
    if points:
        example = next(text for text in texts.to_pylist() if "." in text)
        read_as, other = ("1.234,56", "1234.56") if best else ("1234.56", "1.234,56")
        doubt = f"values such as {example!r} are read as {read_as} {OTHER_WAY} {other}"
    return Reading("float", best, words, doubt)


def _count_thousands(texts: pa.Array) -> int:
    """The number of different texts with points, if these may separate thousands; else 0.

    They may if three digits follow each of them, and numbers below a thousand have none.
    """
    known = texts.to_pylist()
    pointed = [text for text in known if "." in text]
    is_likely = 0 < len(pointed) < len(known) and all(THOUSANDS.fullmatch(text) for text in pointed)
    others = [text.lstrip("+-") for text in known if "." not in text]
    return len(pointed) if is_likely and all(len(text) <= 3 or not text.isdigit() for text in others) else 0


def _formats_of_numbers(texts: pa.Array) -> list[str]:
    """The formats to try, with the sign of currency, percent or unit that most values have."""
    affixes = [match.groups() for text in texts.to_pylist()[:TRIED] if (match := AFFIX.fullmatch(text))]
    affixes = [(before.strip(), after.strip()) for before, after in affixes]
    signs = sorted({pair for pair in affixes if any(pair) and _is_sign(*pair)}, key=affixes.count, reverse=True)
    if not signs:
        return list(NUMBERS)
    before, after = signs[0]
    return [f"{before}{form}{' ' + after if after else ''}" for form in NUMBERS]


def _is_sign(before: str, after: str) -> bool:
    """Whether the text next to a number is a currency, percent, a unit or nothing."""
    text = (before + after).strip()
    return not text or bool(SIGN.fullmatch(text) or (UNIT.fullmatch(text) and not before.strip()))


def _find_words(lost: pa.Array, counts: Counts, read: pa.ChunkedArray, n: int) -> tuple[str, ...]:
    """Words without digits that repeat in a column of numbers: they mean missing. At most MAX_WORDS, or none."""
    pairs = zip(lost.to_pylist(), counts.tolist(), strict=True)
    repeated = {text: count for text, count in pairs if count > 2 and not re.search(r"\d", text)}
    numbers = pc.count_distinct(read, mode="only_valid").as_py()
    if not 0 < len(repeated) <= MAX_WORDS or numbers < MIN_NUMBERS or sum(repeated.values()) > MAX_OTHER * n:
        return ()
    return tuple(sorted(repeated))


def _find_numeric_time(name: str, numbers: pa.ChunkedArray) -> Reading | None:
    """Numbers that are times: dates of eight digits, or an epoch's seconds in a column named like a time."""
    values = numbers.drop_null()
    values = values.filter(pc.is_finite(values))
    if not len(values):
        return None
    low, high = pc.min(values).as_py(), pc.max(values).as_py()
    is_long = YEARS[0] * 10_000 <= low <= high < YEARS[1] * 10_000
    if is_long and cast_column(values, TYPES["timestamp"], "YYYYMMDD").null_count == 0:
        return Reading("timestamp", "YYYYMMDD")
    unit = find_epoch(low, high) if TIME_NAME.search(name) else None
    return Reading("timestamp", unit) if unit else None


def _describe_days(name: str, numbers: pa.ChunkedArray) -> str:
    """That numbers in a column named like a time could be days as a spreadsheet counts them; "" if they could not."""
    found = numbers.filter(pc.is_finite(numbers))
    if not len(found) or not TIME_NAME.search(name):
        return ""
    low, high = pc.min(found).as_py(), pc.max(found).as_py()
    if not EXCEL_DAYS[0] <= low < high <= EXCEL_DAYS[1]:
        return ""
    first = FIRST_EXCEL_DAY + timedelta(days=int(low))
    return f"its values look like days as Excel counts them, {low:g} for {first}, which are not read: write dates"


def find_epoch(low: float, high: float) -> str | None:
    """The unit in which these numbers count from 1970, judged by their size: one of EPOCHS."""
    sizes = {unit: 1_000_000 / EPOCHS[unit] for unit in EPOCHS}
    return next((unit for unit, size in sizes.items() if EPOCH_S[0] * size <= low <= high <= EPOCH_S[1] * size), None)


def _find_times(values: pa.ChunkedArray) -> Reading | None:
    some = values.take(pa.array(np.linspace(0, len(values) - 1, min(TRIED, len(values))).astype(np.int64)))
    formats = [form for form in (None, *DATES) if _count_times(some, form) >= 0.5 * len(some)]
    totals = {form: _count_times(values, form) for form in formats}
    if not totals or max(totals.values()) < (1 - MAX_UNREADABLE) * len(values):
        return None
    if None in totals and totals[None] == max(totals.values()):
        return Reading("timestamp")
    best = [form for form in formats if totals[form] == max(totals.values())]
    ranked = sorted(best, key=lambda form: _measure_order(values, form))
    doubt = ""
    if len(best) > 1:
        doubt = f"values such as {values[0].as_py()!r} are read as {ranked[0]} {OTHER_WAY} {ranked[1]}"
    return Reading("timestamp", ranked[0], doubt=doubt)


def _count_times(values: pa.ChunkedArray, form: str | None) -> int:
    found = cast_column(values, TYPES["timestamp"], form)
    return int(pc.count(found).as_py())


def _measure_order(values: pa.ChunkedArray, form: str | None) -> tuple[bool, int]:
    """Times in the order of the rows come first, then those within a short span."""
    ticks = cast_column(values, TYPES["timestamp"], form).drop_null().cast(pa.int64()).to_numpy()
    return bool((np.diff(ticks) < 0).any()), int(ticks.max() - ticks.min())
