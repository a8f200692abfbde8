"""Numbers and times as sources write them: every format reads its own values, and nothing else."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rows.contract import TYPES, ContractColumn
from tasks.rows.schema import cast_column
from tasks.sources.formats import is_number_format, is_time_format

NUMBERS = {
    "1.234,56": {
        "1.234,56": 1234.56,
        "-83,35": -83.35,
        ",5": 0.5,
        "1.234.567": 1234567,
        "1,5e3": 1500,
        "12.34,5": None,
    },
    "1,234.56": {"1,933.07": 1933.07, "4946.37": 4946.37, "12,34,567.8": 1234567.8, "12,34": None, "0,123": None},
    "1 234,56": {"1 234,56": 1234.56, "1\u00a0234\u202f567,1": 1234567.1, "12": 12, "1 23": None},
    "1'234.56": {"1'234.5": 1234.5, "1\u2019234": 1234},
    "1234,56": {"1234,56": 1234.56, "1.234,56": None},
    "1234.56": {"(12.5)": -12.5, "12.5-": -12.5, "\u221212.5": -12.5, "--5": None, "5 5": None, "": None},
    "$1,234.56": {"$83.35": 83.35, "-$5": -5, "$-5": -5, "($1,000.50)": -1000.5, "5": 5, "$ 5": 5, "€5": None},
    "1.234,56 €": {"1.234,56 €": 1234.56, "5\u00a0€": 5, "€ 5": 5, "5 EUR": None},
    "1234.56 %": {"5%": 5, "5.5 %": 5.5, "-0.5%": -0.5, "5": None},
}
TIMES = {
    "DD.MM.YYYY": {
        "01.02.2013": "2013-02-01", "1.2.2013 5:06": "2013-02-01T05:06",
        "1.2.2013 10:00:05.25": "2013-02-01T10:00:05.25",
        "01/02/2013": None, "32.01.2013": None, "01.13.2013": None, "01.02.2013 25:00": None,
    },
    "MM/DD/YYYY": {
        "11/08/2026 12:02 AM": "2026-11-08T00:02", "11/8/2026 12:02:03 p.m.": "2026-11-08T12:02:03",
        "11/08/2026 13:02 PM": None, "11/08/2026 0:02 AM": None, "11/08/2026, 13:02 -0500": "2026-11-08T18:02",
        "Sun 11/08/2026": "2026-11-08",
    },
    "YYYYMMDD": {
        "20010526": "2001-05-26", "20010526.0": "2001-05-26", "20010526120001": "2001-05-26T12:00:01",
        "20010526T1200Z": "2001-05-26T12:00", "2001526": None, "20011326": None,
    },
    "DD-MMM-YYYY": {"17-Aug-1984": "1984-08-17", "7-august-1984": "1984-08-07", "17-Xyz-1984": None},
    "DD MMM YYYY": {"Mon, 05 Jan 2026 12:00:00 GMT": "2026-01-05T12:00", "5 Jan. 2026": "2026-01-05"},
    "MMM DD, YYYY": {"August 17, 1984 5:00 PM": "1984-08-17T17:00", "Aug 17 1984": "1984-08-17"},
    "MM/DD/YY": {"05/20/87": "1987-05-20", "05/20/05": "2005-05-20", "05/20/1987": None},
    "YYYY-MM-DD": {"2026-11-08 12:02 AM": "2026-11-08T00:02", "2026-11-08 00:02:08 UTC": "2026-11-08T00:02:08"},
}  # fmt: skip
EPOCHS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
INSTANT = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)


def read(kind: str, form: str | None, *values: object) -> list[object]:
    return cast_column(pa.chunked_array([pa.array(values)]), TYPES[kind], form).to_pylist()


@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_of_a_format_are_read_alone_and_together(form: str) -> None:
    assert is_number_format(form)
    expected = NUMBERS[form]
    assert read("float", form, *expected) == list(expected.values())
    assert [read("float", form, text)[0] for text in expected] == list(expected.values())


@pytest.mark.parametrize("form", TIMES)
def test_times_of_a_format_are_read_alone_and_together(form: str) -> None:
    assert is_time_format(form)
    expected = [
        None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC) for text in TIMES[form].values()
    ]
    assert read("timestamp", form, *TIMES[form]) == expected
    assert [read("timestamp", form, text)[0] for text in TIMES[form]] == expected


@pytest.mark.parametrize("unit", EPOCHS)
def test_a_count_from_1970_is_read_from_numbers_and_texts(unit: str) -> None:
    number = int(INSTANT.timestamp()) * EPOCHS[unit]
    assert read("timestamp", unit, number, None) == [INSTANT, None]
    assert read("timestamp", unit, float(number)) == [INSTANT]
    assert read("timestamp", unit, str(number), "soon", "1e300") == [INSTANT, None, None]


def test_dates_written_as_numbers_are_read() -> None:
    assert read("timestamp", "YYYYMMDD", 20260301, 99, None) == [datetime(2026, 3, 1, tzinfo=UTC), None, None]
    assert read("timestamp", "YYYYMMDD", 20260301.0, float("nan")) == [datetime(2026, 3, 1, tzinfo=UTC), None]


def test_columns_that_arrive_typed_need_no_format() -> None:
    assert read("float", "1.234,56", 1.5, 2.0) == [1.5, 2.0]
    assert read("timestamp", "DD.MM.YYYY", INSTANT) == [INSTANT]


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e15, 1e15), st.sampled_from([(",", "."), (".", ","), (" ", ","), ("'", ".")]))
def test_any_number_is_read_as_it_was_written(number: float, marks: tuple[str, str]) -> None:
    plain = f"{number:,.4f}"
    text = plain.translate(str.maketrans({",": marks[0], ".": marks[1]}))
    assert read("float", f"1{marks[0]}234{marks[1]}56", text) == [float(plain.replace(",", ""))]


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(1969, 1, 1), datetime(2068, 12, 31)), st.sampled_from([*TIMES]))
def test_any_time_is_read_as_it_was_written(at: datetime, form: str) -> None:
    directives = {"YYYY": "%Y", "YY": "%y", "MMM": "%b", "MM": "%m", "DD": "%d"}
    pattern = form
    for part, directive in directives.items():
        pattern = pattern.replace(part, directive)
    for clock in ("%H:%M:%S", "%I:%M:%S %p"):
        at = at.replace(microsecond=0)
        assert read("timestamp", form, at.strftime(f"{pattern} {clock}")) == [at.replace(tzinfo=UTC)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12) | st.none(), min_size=1), st.sampled_from([*NUMBERS, *TIMES, *EPOCHS]))
def test_any_text_is_read_or_null(texts: list[str | None], form: str) -> None:
    found = cast_column(pa.array(texts, pa.string()), TYPES["float" if is_number_format(form) else "timestamp"], form)
    assert len(found) == len(texts)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("float", "1,234,56"), ("float", "DD.MM.YYYY"), ("float", "money"), ("float", ""), ("timestamp", "1,234.56"),
        ("timestamp", "%d.%m.%Y"), ("timestamp", "DD.MM"), ("timestamp", "DD/DD/YYYY"), ("timestamp", "second"),
        ("text", "1,234.56"), ("bool", "YYYYMMDD"),
    ],
)  # fmt: skip
def test_an_unknown_format_is_refused_with_examples(kind: str, form: str) -> None:
    with pytest.raises(ValueError, match=r"DD\.MM\.YYYY|needs type"):
        ContractColumn.model_validate({"type": kind, "format": form})
