"""The page of a validated batch: each expectation in words with its result, and the quarantined rows by reason.

One file that loads nothing else. It shows counts of rows and a batch's own figures, never a row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.rows.contract import Contract
from tasks.rows.expectations import Outcome, describe_in_words

ENVIRONMENT = Environment(loader=PackageLoader("tasks.pages"), autoescape=True, undefined=StrictUndefined)


def render_validations(detector: str, contract: Contract, validations: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The pages of batches as HTML. validations: the fields of each Validation by this contract."""
    expectations = (*contract.row_expectations, *contract.batch_expectations)
    words_of = {one.text: describe_in_words(one) for one in expectations}  # takes five milliseconds each
    page = ENVIRONMENT.get_template("validation.html")
    for validation in validations:
        results: Sequence[Outcome] = validation["results"]
        rows = [(words_of[outcome.text], outcome) for outcome in results]
        rows.sort(key=lambda row: (row[1].success, row[1].severity != "critical"))
        yield page.render(detector=detector, validation=validation, rows=rows, words_of=words_of)
