"""How a source writes numbers and times: the `format` of a contract's column and of ingest.event_time.

A number's format is 1234.56 as the source writes it, with its sign of currency or percent: "1.234,56 €". A time's is
the order of its date, DD.MM.YYYY; a time of day, AM or PM, UTC or an offset may follow. EPOCHS count from 1970. In:
texts (N,). Out: the same values as every reader knows them, 1234.56 or ISO 8601; null if they do not have the format.
"""

import re
import unicodedata
from functools import cache
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = "pa.ChunkedArray | pa.Array"

EPOCHS = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1, "nanoseconds": 0.001}  # in microseconds
SPACE = " \u00a0\u2009\u202f"
NUMBER = re.compile(
    rf"(?P<before>[^\d]*?)\s*1(?P<thousands>[.,'\u2019{SPACE}]?)234((?P<decimal>[.,])56?)?\s*(?P<after>[^\d]*)"
)
UNIT = "(YYYY|YY|MMM|MM|DD)"
DATE = re.compile(rf"{UNIT}([-/. ]?){UNIT}(|, |[-/. ]){UNIT}")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
PIVOT = 69  # two-digit years from here on are of the 20th century, as in POSIX
SPACES = r"[\s\x{a0}\x{2009}\x{202f}]"
PARTS = {
    "YYYY": r"(?P<year>\d{4})", "YY": r"(?P<year>\d{2})", "MM": r"(?P<month>\d{1,2})", "DD": r"(?P<day>\d{1,2})",
    "MMM": r"(?P<month>[A-Za-z]{3,9})\.?",
}  # fmt: skip
CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
COMPACT_CLOCK = r"(?P<hour>\d{2}):?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
HALF = rf"{SPACES}*(?P<half>[AaPp])\.?[Mm]\.?"
ZONE = rf"{SPACES}*(?P<zone>(?i:Z|UTC|GMT)|[+-]\d{{2}}:?(?:\d{{2}})?)"
EXPECTED = (
    "for numbers 1234.56 as the source writes it, such as '1.234,56', '1,234.56', '$1,234.56' or '1234,56 %'; for "
    f"times the order of the date, such as DD.MM.YYYY, MM/DD/YYYY, YYYYMMDD or DD-MMM-YY, or {', '.join(EPOCHS)} "
    "since 1970"
)


def is_number_format(text: str) -> bool:
    """Whether a format is that of a number."""
    found = NUMBER.fullmatch(text)
    return found is not None and (not found["decimal"] or found["decimal"] != found["thousands"])


def is_time_format(text: str) -> bool:
    """Whether a format is that of a time."""
    found = DATE.fullmatch(text.upper())
    units = sorted(part[0] for part in found.group(1, 3, 5)) if found else []
    return text in EPOCHS or units == ["D", "M", "Y"]


def check_time_format(text: str) -> str:
    """The format. Raises ValueError if it is not that of a time."""
    if not is_time_format(text):
        raise ValueError(f"{text!r} is not a format of times; give {EXPECTED.partition('; for times ')[2]}")
    return text


def rewrite(texts: Texts, form: str) -> Texts:
    """Values of a format, except EPOCHS, as numbers or times in the usual form; null for any other text."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return _rewrite_numbers(trimmed, form) if is_number_format(form) else _rewrite_times(trimmed, form)


def _rewrite_numbers(texts: Texts, form: str) -> Texts:
    texts = pc.replace_substring_regex(texts, "[\u2212\u2013]", "-")
    texts = pc.replace_substring_regex(texts, r"^\((.*)\)$", r"-\1")  # how accountants write negative numbers
    found = pc.extract_regex(texts, _number_pattern(form))
    parts = {name: pc.struct_field(found, name) for name in ("sign", "inner", "whole", "fraction", "power", "trailing")}
    whole = pc.replace_substring_regex(parts["whole"], r"[^\d]", "")
    signs = pc.binary_join_element_wise(parts["sign"], parts["inner"], parts["trailing"], "")
    is_one = pc.and_(
        pc.less_equal(pc.utf8_length(signs), 1),
        pc.greater(pc.utf8_length(pc.binary_join_element_wise(whole, parts["fraction"], "")), 0),
    )
    has_power = pc.greater(pc.utf8_length(parts["power"]), 0)  # nobody separates thousands before one: 3,121E+01
    is_one = pc.and_(is_one, pc.invert(pc.and_(has_power, pc.not_equal(whole, parts["whole"]))))
    number = pc.binary_join_element_wise(signs, whole, ".", parts["fraction"], parts["power"], "")
    return pc.if_else(is_one, number, pa.scalar(None, pa.string()))


@cache
def _number_pattern(form: str) -> str:
    found = NUMBER.fullmatch(form)
    if found is None:
        raise ValueError(form)
    thousands, decimal, unit = found["thousands"], found["decimal"], (found["before"] + found["after"]).strip()
    decimal = decimal or ("," if thousands == "." else ".")
    between = {"'": "['\u2019]", "\u2019": "['\u2019]"}.get(thousands, re.escape(thousands))
    between = SPACES if thousands.isspace() else between
    inner = r"\d{2,3}" if thousands == "," else r"\d{3}"  # India writes 12,34,567
    whole = rf"[1-9]\d{{0,2}}(?:{between}{inner})*{between}\d{{3}}|\d*" if thousands else r"\d*"
    unit = re.escape(unit)
    before, after = (rf"(?:{unit}{SPACES}*)?", rf"(?:{SPACES}*{unit})?") if unit else ("", "")
    if "%" in unit:  # 5 is not 5 %
        before, after = "", rf"{SPACES}*{unit}"
    number = rf"(?P<whole>{whole})(?:{re.escape(decimal)}(?P<fraction>\d*))?(?P<power>(?:[eE][+-]?\d{{1,3}})?)"
    return rf"^(?P<sign>[+-]?){SPACES}*{before}(?P<inner>[+-]?){number}{after}(?P<trailing>-?)$"


def _rewrite_times(texts: Texts, form: str) -> Texts:
    form = form.upper()
    found = pc.extract_regex(texts, _time_pattern(form))
    names = ("year", "month", "day", "hour", "minute", "second", "fraction", "half", "zone")
    part = {name: pc.struct_field(found, name) for name in names}
    if "MMM" in form:
        place = pc.index_in(pc.utf8_slice_codeunits(pc.utf8_lower(part["month"]), 0, 3), pa.array(MONTHS))
        part["month"] = pc.add(place, 1).cast(pa.string())
    if "YYYY" not in form:
        is_last = pc.greater_equal(part["year"].cast(pa.int8()), PIVOT)
        part["year"] = pc.binary_join_element_wise(pc.if_else(is_last, "19", "20"), part["year"], "")
    part["hour"] = _read_hours(part["hour"], part["half"])
    part["minute"], part["second"] = (_or_zero(part[name]) for name in ("minute", "second"))
    padded = {name: pc.utf8_lpad(part[name], 2, "0") for name in names[1:6]}
    day = pc.binary_join_element_wise(part["year"], padded["month"], padded["day"], "-")
    clock = pc.binary_join_element_wise(padded["hour"], padded["minute"], padded["second"], ":")
    fraction = pc.binary_join_element_wise(".", _or_zero(part["fraction"]), "")
    zone = pc.replace_substring_regex(pc.utf8_upper(part["zone"]), "UTC|GMT", "Z")
    return pc.binary_join_element_wise(pc.binary_join_element_wise(day, clock, "T"), fraction, zone, "")


def _read_hours(hours: Texts, halves: Texts) -> Texts:
    """Hours of the day; null for an hour beyond twelve with AM or PM."""
    number = _or_zero(hours).cast(pa.int8())
    is_half = pc.greater(pc.utf8_length(halves), 0)
    twelfth = pc.if_else(pc.equal(number, 12), pa.scalar(0, pa.int8()), number)
    is_late = pc.equal(pc.utf8_lower(halves), "p")
    whole = pc.if_else(is_late, pc.add(twelfth, pa.scalar(12, pa.int8())), twelfth)
    whole = pc.if_else(
        pc.and_(pc.greater_equal(number, 1), pc.less_equal(number, 12)), whole, pa.scalar(None, pa.int8())
    )
    return pc.if_else(is_half, whole, number).cast(pa.string())


def _or_zero(texts: Texts) -> Texts:
    return pc.if_else(pc.equal(texts, ""), "0", texts)


@cache
def _time_pattern(form: str) -> str:
    found = DATE.fullmatch(form)
    if found is None:
        raise ValueError(form)
    first, between, second, after, third = found.groups()
    pieces = [PARTS[name] for name in (first, second, third)]
    if not between and not after:
        pieces = [piece.replace("{1,2}", "{2}") for piece in pieces]
        return rf"^{''.join(pieces)}(?:\.0+)?(?:[T ]?{COMPACT_CLOCK}(?:{HALF})?(?:{ZONE})?)?$"
    date = pieces[0] + _literal(between) + pieces[1] + _literal(after) + pieces[2]
    return rf"^(?:[A-Za-z]{{2,9}}\.?,?{SPACES}+)?{date}(?:[T,:]?{SPACES}*{CLOCK}(?:{HALF})?)?(?:{ZONE})?$"


def _literal(mark: str) -> str:
    """The pattern of a separator; a space or comma may be any number of them."""
    return rf"(?:,|{SPACES})+" if mark.strip(", ") == "" and mark else re.escape(mark)


def tidy_name(name: str) -> str:
    """A column's name in which line breaks, tabs and no-break spaces are one blank, and invisible marks are gone."""
    if name.isprintable():
        return name
    return " ".join("".join(character for character in name if unicodedata.category(character) != "Cf").split())
