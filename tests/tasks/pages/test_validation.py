import re
from datetime import date
from typing import Any

import pytest

from tasks.pages.validation import render_validations
from tasks.rows.contract import Contract, ContractExpectation
from tasks.rows.expectations import describe_batch, describe_in_words, describe_rows

DAYS = {name: date(2026, 3, n) for n, name in enumerate(("perfect", "warned", "quarantined", "rejected"), 1)}
LIMITS = "expect_column_values_to_be_between"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of four batches of one contract."""
    contract = Contract.model_validate(
        {
            "columns": {"spend": {"type": "float"}},
            "expectations": (
                {"level": "row", "type": LIMITS, "kwargs": {"column": "spend", "min_value": 0}, "severity": "warning"},
                {"level": "batch", "type": LIMITS, "kwargs": {"column": "rows", "min_value": 100}},
            ),
        }
    )
    *implied, limits = contract.row_expectations
    [count] = contract.batch_expectations

    def judge(day: date, missing: int = 0, negative: int = 0, rows: int = 200) -> dict[str, Any]:
        found = [describe_rows(each, missing) for each in implied]
        found += [describe_rows(limits, negative), describe_batch(count, rows >= 100, rows)]
        return {
            "batch_date": day, "input_hash": "c0ffee" * 10, "rows_in": rows, "validated": rows - missing,
            "quarantined": missing, "excluded": 0, "results": tuple(found),
            "reasons": {implied[0].text: missing, EVIL: 1} if missing else {},
            "warnings": (f"columns ignored: {EVIL}",) if negative else (), "failures": () if rows >= 100 else ("few",),
        }  # fmt: skip

    changes: list[dict[str, int]] = [{}, {"negative": 9}, {"missing": 1}, {"rows": 20}]
    batches = [judge(day, **change) for day, change in zip(DAYS.values(), changes, strict=True)]
    return dict(zip(DAYS, render_validations("toy", contract, batches), strict=True))


@pytest.mark.parametrize(("batch", "met"), [("perfect", 6), ("warned", 5), ("quarantined", 2), ("rejected", 5)])
def test_a_page_says_rejected_only_of_a_batch_that_was(pages: dict[str, str], batch: str, met: int) -> None:
    status = "rejected" if batch == "rejected" else "accepted"
    page = pages[batch]
    assert re.search(rf"<h1>toy, {DAYS[batch]}: <span class=\"\w+\">{status}</span></h1>", page)
    assert f"{met} of 6 expectations met" in page
    assert ("Rejected because" in page) == (status == "rejected")


def test_a_page_needs_no_network_and_cannot_be_made_to_run_a_script(pages: dict[str, str]) -> None:
    for page in pages.values():
        assert not re.search(r"https?:|src=|<link|@import|url\(|<script", page)
    assert "&lt;script&gt;" in pages["warned"]
    assert "&lt;script&gt;" in pages["quarantined"]


def test_a_page_says_what_was_expected_what_was_found_and_what_follows(pages: dict[str, str]) -> None:
    assert "9 rows broke it (4.5 %)" in pages["warned"]
    assert "1 row broke it (0.5 %)" in pages["quarantined"]
    assert '<td>record_id values must never be null.</td><td class="n" data-label="rows">1</td>' in pages["quarantined"]
    assert "nightjar replay toy --date 2026-03-03 lists the rows" in pages["quarantined"]
    assert "No row was quarantined." in pages["perfect"]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", pages["rejected"], re.DOTALL)[:4]
    assert cells == ["broken", "rows must be greater than or equal to 100.", "20", "the batch is rejected"]


@pytest.mark.parametrize(
    ("level", "kind", "kwargs", "words"),
    [
        ("row", LIMITS, {"column": "a", "min_value": 0, "strict_min": True}, "a values must be greater than 0."),
        ("batch", LIMITS, {"column": "a.mean", "max_value": 5}, "a.mean must be less than or equal to 5."),
        (
            "row",
            "expect_column_values_to_be_in_set",
            {"column": "$a", "value_set": ["DE", "$x", EVIL]},
            f"$a values must belong to this set: DE, $x, {EVIL}.",
        ),
        (
            "row",
            "expect_compound_columns_to_be_unique",
            {"column_list": ["a", "b"]},
            "Values for given compound columns must be unique together: a, b",
        ),
        ("row", "expect_nothing_known", {"column": "a", "x": 1}, "a nothing known x=1"),
    ],
)
def test_expectations_have_words(level: Any, kind: str, kwargs: dict[str, Any], words: str) -> None:
    assert describe_in_words(ContractExpectation(level=level, type=kind, kwargs=kwargs)) == words


def test_values_that_must_only_be_finite_are_described_so() -> None:
    contract = Contract.model_validate({"columns": {"spend": {"type": "float"}}})
    words = [describe_in_words(each) for each in contract.row_expectations]
    assert words[-1] == "spend values must be finite."
    assert not any("e+308" in text for text in words)
