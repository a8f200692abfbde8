"""Great Expectations behind one verb, judge: it checks the rows of a slice, or the summaries of batches.

Slices are pandas frames with only the columns that expectations name. Expectations of single values see witnesses only
(witnesses.py), the others all rows. A first pass checks success; the failing rows are then fetched for the failed
expectations, which is several times cheaper than always fetching them.
Great Expectations is imported when first used: that takes a second and 90 MB.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.errors import BatchRejected, ParamsInvalid
from tasks.rows.contract import FLOAT_LIMIT, ContractExpectation
from tasks.rows.lean import importing_less
from tasks.rows.witnesses import find_witnesses, is_of_one_value, show

Mask = npt.NDArray[np.bool_]
LIST = re.compile(r"\$\w+_\d+(?: \$\w+_\d+)+")  # several values in Great Expectations' words

# What Great Expectations imports if it is installed, to read from there itself.
CLOUDS = ("boto3", "botocore", "google.api_core", "google.auth", "google.cloud", "google.oauth2", "snowflake",
          "sqlalchemy_bigquery")  # fmt: skip
FEW_NEED = ("altair", "scipy.stats")  # used by its comparisons of distributions


@dataclass(frozen=True)
class Outcome:
    """The result of one expectation for one batch. `unexpected` counts rows; `observed` is the summary's value."""

    type: str
    column: str
    text: str
    level: str
    severity: str
    success: bool
    observed: str
    unexpected: int


class Suite:
    """The expectations of one level, ready to run on frames."""

    def __init__(self, expectations: Sequence[ContractExpectation], masked: Collection[str] = ()) -> None:
        self.expectations, self._masked = tuple(expectations), set(masked)
        self.columns = list(dict.fromkeys(name for e in self.expectations for name in e.columns))

    def judge(self, frame: pd.DataFrame) -> dict[ContractExpectation, Mask]:
        """For each broken expectation, the mask (N,) of the rows that break it.

        A frame's rows are the records of a slice or, for batch-level expectations, one summary per batch.
        """
        _ = self._validator  # checks the arguments, also of expectations that no row leaves in doubt
        masks = self._judge(frame, [e for e in self.expectations if not is_of_one_value(e)])
        doubtful, witnesses = find_witnesses(frame, filter(is_of_one_value, self.expectations))
        if doubtful:
            for expectation, mask in self._judge(show(frame, witnesses), doubtful).items():
                masks[expectation] = witnesses[str(expectation.kwargs["column"])].expand(mask)
        return {e: masks[e] for e in self.expectations if e in masks}  # the first that a row broke is its reason

    def _judge(
        self, frame: pd.DataFrame, expectations: Sequence[ContractExpectation]
    ) -> dict[ContractExpectation, Mask]:
        """The masks of the broken ones, as Great Expectations judges each row of the frame."""
        if not expectations:
            return {}
        validator = self._validator
        validator.execution_engine.load_batch_data("slice", frame)
        failed = [e for e, r in self._run(validator, expectations, "BOOLEAN_ONLY") if not r.success]
        masks = {}
        for expectation, result in self._run(validator, failed, "COMPLETE"):
            if (rows := result.result.get("unexpected_index_list")) is None:
                raise _invalid_expectation(expectation, "it reports only whether all rows meet it, not which do not")
            mask = np.zeros(len(frame), bool)
            mask[np.asarray(rows, dtype=np.int64)] = True
            masks[expectation] = mask
        return masks

    def _run(
        self, validator: Any, chosen: Sequence[ContractExpectation], result_format: str
    ) -> list[tuple[ContractExpectation, Any]]:
        configured = [configure(e, n) for n, e in enumerate(chosen)]
        results = validator.graph_validate(configured, {"result_format": {"result_format": result_format}})
        # Great Expectations returns results in its own order, so each expectation carries its position.
        by_position = sorted(results, key=lambda result: int(result.expectation_config.meta["position"]))
        for expectation, result in zip(chosen, by_position, strict=True):
            if result.exception_info and (raised := _raised(result.exception_info)):
                # The exception may quote a value.
                is_masked = not self._masked.isdisjoint(expectation.columns)
                raise BatchRejected(
                    f"The expectation {expectation.text!r} could not be evaluated.",
                    where="the contract",
                    got="an error that is not shown because the column is masked" if is_masked else raised,
                    todo="correct its arguments",
                )
        return list(zip(chosen, by_position, strict=True))

    @cached_property
    def _validator(self) -> Any:
        # A validator directly, because a data source would first hash every value of the frame. One validator for all
        # frames, because a used one keeps its frame alive until the next garbage collection.
        load_great_expectations()
        import great_expectations as gx
        from great_expectations.execution_engine import PandasExecutionEngine
        from great_expectations.validator.validator import Validator

        check_arguments(self.expectations)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        return Validator(execution_engine=PandasExecutionEngine(), data_context=context)


@cache
def load_great_expectations() -> None:
    """Import it without what only other users need, which is more than half of its time and memory."""
    with importing_less(absent=CLOUDS, deferred=FEW_NEED):
        import great_expectations  # noqa: F401


def check_arguments(expectations: Sequence[ContractExpectation]) -> None:
    """Raise ParamsInvalid for an expectation that Great Expectations does not know, or for wrong arguments."""
    load_great_expectations()
    from great_expectations.exceptions import GreatExpectationsError

    for expectation in expectations:
        try:
            configure(expectation).to_domain_obj()
        except (GreatExpectationsError, ValueError, TypeError) as error:
            raise _invalid_expectation(expectation, " ".join(str(error).split())) from error


def _invalid_expectation(expectation: ContractExpectation, got: str) -> ParamsInvalid:
    return ParamsInvalid(
        f"Great Expectations cannot evaluate {expectation.type}.",
        where=f"the contract, expectation {expectation.text!r}",
        got=got,
        expected="the registered name of one of its expectations, with valid arguments",
        todo="correct the expectation",
    )


def configure(expectation: ContractExpectation, position: int = 0) -> Any:
    """The Great Expectations object for a contract's expectation."""
    load_great_expectations()
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    return ExpectationConfiguration(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        meta={"level": expectation.level, "position": position},
    )


@cache  # takes up to five milliseconds
def describe_in_words(expectation: ContractExpectation) -> str:
    """An expectation as Great Expectations words it for people; as in the contract where it has no words for it."""
    load_great_expectations()
    from great_expectations.expectations.registry import get_renderer_impl

    limits = [expectation.kwargs.get(name) for name in ("min_value", "max_value")]
    if limits == [-FLOAT_LIMIT, FLOAT_LIMIT]:
        return f"{expectation.kwargs['column']} values must be finite."
    try:
        _, render = get_renderer_impl(expectation.type, "atomic.prescriptive.summary")
        words = render(configuration=configure(expectation)).value
        values = {name: param.get("value") for name, param in (words.params or {}).items()}
    except Exception:  # noqa: BLE001 - a batch is more important than its page
        return expectation.text
    template = LIST.sub(lambda found: found[0].replace(" ", ", "), words.template)
    if expectation.level == "batch":
        template = template.replace("$column values ", "$column ")
    return Template(template).safe_substitute(values)


def describe_rows(expectation: ContractExpectation, unexpected: int) -> Outcome:
    """A row-level expectation and the number of rows in a batch that broke it, as one flat record."""
    return _describe(expectation, unexpected == 0, f"{unexpected} rows", unexpected)


def describe_batch(expectation: ContractExpectation, success: bool, observed: float) -> Outcome:
    """A batch-level expectation and the summary's value, as one flat record."""
    return _describe(expectation, success, f"{observed:.6g}", int(not success))


def _describe(expectation: ContractExpectation, success: bool, observed: str, unexpected: int) -> Outcome:
    return Outcome(
        type=expectation.type,
        column=str(expectation.kwargs.get("column", "")),
        text=expectation.text,
        level=expectation.level,
        severity=expectation.severity,
        success=bool(success),
        observed=observed,
        unexpected=unexpected,
    )


def _raised(info: dict[str, Any]) -> str:
    if "exception_message" in info:
        return str(info["exception_message"]) if info.get("raised_exception") else ""
    raised = [str(v["exception_message"]) for v in info.values() if isinstance(v, dict) and v.get("raised_exception")]
    return "; ".join(raised)
