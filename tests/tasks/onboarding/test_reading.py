"""How a stranger's values are read: the type, the format, the words for missing, and what is in doubt."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.onboarding.reading import Reading, find_reading

N = 400
rng = np.random.default_rng(3)
AMOUNTS = rng.lognormal(4, 2, N)
START = datetime(2026, 3, 1, 7, 30)


def find(values: Any, name: str = "x") -> Reading:
    return find_reading(name, pa.chunked_array([pa.array(values)]))


def write(pattern: str, hours: float = 7) -> list[str]:
    return [(START + timedelta(hours=hours * n)).strftime(pattern) for n in range(N)]


def swap(text: str, comma: str, dot: str) -> str:
    return text.translate(str.maketrans({",": comma, ".": dot}))


WRITTEN: dict[str, tuple[Callable[[float], str], str | None]] = {
    "plain": (lambda x: f"{x:.2f}", None),
    "thousands": (lambda x: f"{x:,.2f}", "1,234.56"),
    "German": (lambda x: swap(f"{x:,.2f}", ".", ","), "1.234,56"),
    "decimal commas alone": (lambda x: swap(f"{x:.2f}", ",", ","), "1.234,56"),
    "French": (lambda x: swap(f"{x:,.2f}", "\u202f", ","), "1 234,56"),
    "Swiss": (lambda x: swap(f"{x:,.2f}", "'", "."), "1'234.56"),
    "dollars": (lambda x: f"${x:,.2f}", "$1,234.56"),
    "euros": (lambda x: swap(f"{x:,.2f}", ".", ",") + " €", "1.234,56 €"),
    "a currency's code": (lambda x: f"USD {x:.2f}", "USD1,234.56"),
    "percent": (lambda x: f"{x:.1f}%", "1,234.56 %"),
    "a unit": (lambda x: f"{x:.1f} km/h", "1,234.56 km/h"),
    "negatives in brackets": (lambda x: f"({x:.2f})" if x > 50 else f"{x:.2f}", "1,234.56"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_numbers_are_known_however_they_are_written(case: str) -> None:
    as_text, form = WRITTEN[case]
    found = find([as_text(x) for x in AMOUNTS])
    assert (found.type, found.format, found.missing, found.doubt) == ("float", form, (), "")


def test_a_few_thousands_among_plain_numbers_decide_the_format() -> None:
    assert find([f"{x:.2f}" for x in AMOUNTS] + ["1,933.07"]).format == "1,234.56"


def test_what_could_be_thousands_or_decimals_is_doubtful() -> None:
    found = find([f"{n % 900 + 1},{n % 800 + 100}" for n in range(N)])
    assert found.format == "1,234.56"
    assert "could also be 1.234,56" in found.doubt
    assert find([f"0,{n % 800 + 100}" for n in range(N)]).format == "1.234,56"


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", None), ("%Y-%m-%d %H:%M:%S UTC", None), ("%m/%d/%Y", "MM/DD/YYYY"),
        ("%d/%m/%Y %H:%M", "DD/MM/YYYY"), ("%d-%m-%Y", "DD-MM-YYYY"), ("%d.%m.%Y", "DD.MM.YYYY"),
        ("%d.%m.%y %H:%M", "DD.MM.YY"), ("%Y%m%d", "YYYYMMDD"), ("%m/%d/%Y %I:%M %p", "MM/DD/YYYY"),
        ("%d-%b-%Y", "DD-MMM-YYYY"), ("%B %d, %Y", "MMM DD, YYYY"), ("%Y-%m-%d %I:%M:%S %p", "YYYY-MM-DD"),
        ("%Y/%m/%d", None),
    ],
)  # fmt: skip
def test_times_are_known_however_they_are_written(pattern: str, form: str | None) -> None:
    found = find(write(pattern))
    assert (found.type, found.format, found.doubt) == ("timestamp", form, "")


@pytest.mark.parametrize("pattern", ["%m/%d/%Y", "%d/%m/%Y"])
def test_where_no_day_is_beyond_twelve_the_order_of_the_rows_decides_and_the_doubt_is_said(pattern: str) -> None:
    texts = [(datetime(2026, 3, 1) + timedelta(days=n // 40)).strftime(pattern) for n in range(N)]
    found = find(texts)
    assert found.format == ("MM/DD/YYYY" if pattern.startswith("%m") else "DD/MM/YYYY")
    assert "could also be" in found.doubt


@pytest.mark.parametrize(
    ("unit", "per_second"), [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()], ids=str)
def test_epochs_are_known_by_their_size_in_a_column_named_like_a_time(unit: str, per_second: int, kind: Any) -> None:
    ticks = pa.array(int(START.timestamp()) * per_second + np.arange(N) * 3600 * per_second).cast(kind, safe=False)
    for name in ("timestamp", "created_at", "eventTime", "ts"):
        assert find(ticks, name) == Reading("timestamp", unit)
    assert find(ticks, "phone").type in ("int", "float")


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()], ids=str)
def test_eight_digits_that_are_all_dates_are_dates_and_no_seconds(kind: Any) -> None:
    dates = pa.array([int(text) for text in write("%Y%m%d")]).cast(kind, safe=False)
    assert find(dates) == Reading("timestamp", "YYYYMMDD")
    assert find(rng.integers(19_000_000, 21_000_000, N)).type == "int"


def test_one_odd_value_does_not_change_the_type() -> None:
    numbers = [f"{x:.2f}" for x in AMOUNTS]
    assert find([*numbers, "007"]) == Reading("float")
    assert find([*numbers, "TOTAL"]) == Reading("float")
    assert find([*write("%Y-%m-%dT%H:%M:%SZ"), "TOTAL"]) == Reading("timestamp")
    assert find([*write("%d.%m.%Y"), "-", "l/s"]).format == "DD.MM.YYYY"


def test_codes_keep_their_leading_zeros() -> None:
    assert find([f"{n:05d}" for n in rng.integers(0, 99_999, N)]).type == "text"
    assert find(["09901", *(str(n) for n in rng.integers(10_000, 99_999, N))]).type == "text"


def test_a_word_that_repeats_among_numbers_means_missing() -> None:
    numbers = [f"{x:.2f}" for x in AMOUNTS]
    assert find([*numbers, *["n.v."] * 90]) == Reading("float", missing=("n.v.",))
    assert find([*numbers, *[r"\N"] * 90]) == Reading("float")
    assert find(["1", "2", "3", "A", "B"] * 80).type == "text"  # categories, not numbers
    mixed = find([*numbers, *[f"word {n}" for n in range(90)]])
    assert (mixed.type, mixed.doubt) == ("text", "400 of its 490 values are numbers, others are not, such as 'word 0'")


@pytest.mark.parametrize("texts", [[f"192.168.{n % 7}.{n % 250}" for n in range(N)], [f"A{n}" for n in range(N)],
                                   [f"1.{n}.0" for n in range(N)], [f"{n} {'km'[n % 2]}" for n in range(N)],
                                   [f"{n % 24:02d}:{n % 60:02d}" for n in range(N)]])  # fmt: skip
def test_what_is_no_number_and_no_time_stays_text(texts: list[str]) -> None:
    assert find(texts).type == "text"


@pytest.mark.parametrize("scale", [10, 30, 1e4])
def test_points_before_three_digits_are_thousands_if_smaller_numbers_have_none(scale: float) -> None:
    numbers = [round(x * scale) for x in AMOUNTS]
    found = find([f"{x:,}".replace(",", ".") for x in numbers])
    assert (found.type, found.format) == ("float", "1.234,56")
    assert "could also be 1234.56" in found.doubt or any(x >= 1_000_000 for x in numbers)


@pytest.mark.parametrize(
    "as_text",
    [
        lambda x: f"{x:.3f}",  # always three decimals
        lambda x: f"{x:.3f}".rstrip("0").rstrip("."),
        lambda x: f"{x / 1e3:.3f}",
        lambda x: f"{x * 1e3:.3f}",
        lambda x: f"{round(x)}",
    ],
)
def test_points_before_decimals_stay_decimal(as_text: Callable[[float], str]) -> None:
    assert find([as_text(x) for x in AMOUNTS]) == Reading("float")


def test_a_few_points_before_three_digits_are_doubtful() -> None:
    found = find([f"{n}" for n in range(1, 300)] + ["2.450", "1.200", "17.315"])
    assert (found.format, "could also be 1.234,56" in found.doubt) == (None, True)


@pytest.mark.parametrize(("mark", "form"), [(",", "1.234,56"), (".", None)])
def test_a_number_with_a_power_of_ten_has_no_thousands(mark: str, form: str | None) -> None:
    assert find([f"{x:.3E}".replace(".", mark) for x in AMOUNTS]) == Reading("float", form)


@pytest.mark.parametrize(
    "values",
    [
        write("%Y-%m-%d %H:%M:%S CET"),
        write("%a %b %d %H:%M:%S %Y"),
        write("%d. Okt %Y %H:%M"),
        write("%Y年%m月%d日 %H:%M", hours=1),
        write("%G-W%V-%u", hours=24),
        [f"{text[:10]} 24:00" if n % 9 == 0 else text for n, text in enumerate(write("%Y-%m-%d %H:%M"))],
    ],
)
def test_times_that_are_not_read_are_named(values: list[str]) -> None:
    check_unread("at", values, "times")


def check_unread(name: str, values: list[str], what: str) -> None:
    found = find(values, name)
    assert found.type == "text"
    assert found.doubt.startswith(f"its values look like {what} in a form that is not read, such as")


@pytest.mark.parametrize(
    "values",
    [
        [f"{n // 60:02d}:{n % 60:02d}" for n in range(N)],
        [f"{n // 7}:{n % 60:02d}:{n % 59:02d}" for n in range(N)],
        [f"{n % 24:02d}:{n % 60:02d}:{n % 59:02d}.{n:06d}" for n in range(N)],
        [f"{n % 3} days {n % 24:02d}:{n % 60:02d}:00" for n in range(N)],
        [f"PT{n}M{n % 60}S" for n in range(N)],
        [f"P{n}D" for n in range(N)],
    ],
)
def test_durations_are_named_as_values_that_are_not_read(values: list[str]) -> None:
    check_unread("lasted", values, "durations or times of day")


@pytest.mark.parametrize("values", [[46000 + n for n in range(N)], [f"{46000 + n / 50:.4f}" for n in range(N)]])
def test_days_as_excel_counts_them_are_named(values: list[Any]) -> None:
    found = find(values, "order_date")
    assert found.doubt == (
        "its values look like days as Excel counts them, 46000 for 2025-12-09, which are not read: write dates"
    )
    assert found.type in ("int", "float") and found.format is None
    assert find(values, "price").doubt == ""
    assert find(list(range(19_000, 19_000 + N)), "order_date").doubt == ""


@pytest.mark.parametrize(
    "values",
    [
        [f"${x:.2f}" if n % 2 else f"€{x:.2f}" for n, x in enumerate(AMOUNTS)],
        [f"{x:.2f}".replace(".", "," if n % 2 else ".") for n, x in enumerate(AMOUNTS)],
        [f"{x:.2f} {'lb' if n % 2 else 'kg'}" for n, x in enumerate(AMOUNTS)],
    ],
)
def test_numbers_written_in_two_ways_are_named(values: list[str]) -> None:
    found = find(values)
    assert found.type == "text"
    assert "numbers" in found.doubt


@pytest.mark.parametrize(
    "values",
    [
        [f"r{n}" for n in range(N)],
        [f"order {n} of 2026, sent on day {n % 31}" for n in range(N)],
        [f"192.168.{n % 7}.{n % 250}" for n in range(N)],
        [f"{n:05d}" for n in range(N)],
        [f"+49 30 {n:07d}" for n in range(N)],
        [f"{n % 9}-{n:04d}-X" for n in range(N)],
        [["red", "green"][n % 2] for n in range(N)],
    ],
)
def test_texts_with_digits_are_texts_without_a_doubt(values: list[str]) -> None:
    assert find(values) == Reading("text")


def test_times_of_web_servers_are_read() -> None:
    assert find(write("%d/%b/%Y:%H:%M:%S +0000"), "at") == Reading("timestamp", "DD/MMM/YYYY")
