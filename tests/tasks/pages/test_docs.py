from datetime import date

import pytest

from tasks.pages.docs import DocsBatch, build_docs
from tasks.rows.contract import Contract
from tasks.rows.expectations import describe_batch, describe_rows

DAYS = {name: date(2026, 3, n) for n, name in enumerate(("perfect", "warned", "quarantined", "rejected"), 1)}
LIMITS = "expect_column_values_to_be_between"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of four batches of one contract, and the index."""
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

    def judge(missing: int = 0, negative: int = 0, rows: int = 200) -> DocsBatch:
        found = [describe_rows(each, missing) for each in implied]
        found += [describe_rows(limits, negative), describe_batch(count, rows >= 100, rows)]
        return DocsBatch(rows, tuple(found), is_accepted=rows >= 100)

    batches = dict(zip(DAYS.values(), (judge(), judge(negative=9), judge(missing=1), judge(rows=20)), strict=True))
    folder = tmp_path_factory.mktemp("docs")
    build_docs(folder, "toy", contract, batches)
    found = {path.stem: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    return {name: found[f"toy-{day}"] for name, day in DAYS.items()} | {"index": found["index"], "suite": found["toy"]}


@pytest.mark.parametrize(
    ("batch", "status"),
    [("perfect", "Succeeded"), ("warned", "Succeeded"), ("quarantined", "Succeeded"), ("rejected", "Failed")],
)
def test_a_page_says_failed_only_of_a_batch_that_was_rejected(pages: dict[str, str], batch: str, status: str) -> None:
    header = pages[batch].partition("Status:")[2][:200]
    assert f"</i> {status}" in header
    assert f"toy {DAYS[batch]}" in pages[batch]


def test_pages_name_everything_and_describe_finite_values_in_words(pages: dict[str, str]) -> None:
    assert "values must be finite." in pages["suite"]
    for name, page in pages.items():
        assert not [text for text in ("__none__", "e+308", "Data asset: None") if text in page], name
