"""The Data Docs of batches: pages with the result of each expectation."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from tasks.rows.contract import FLOAT_LIMIT, Contract, ContractExpectation
from tasks.rows.expectations import Outcome, configure

BOUNDS = ("min_value", "max_value")


@dataclass(frozen=True)
class DocsBatch:
    """What a batch's page shows: the number of rows, the outcomes, and whether the batch was accepted."""

    rows: int
    outcomes: tuple[Outcome, ...]
    is_accepted: bool


def build_docs(folder: Path, detector: str, contract: Contract, batches: Mapping[date, DocsBatch]) -> None:
    """Add batches to the Data Docs under `folder`, one page each, and rebuild the index.

    A page says "Succeeded" if the batch was accepted, even if some expectations were not met.
    The pages are built from counts, not from values, so masked columns cannot leak into them.
    """
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult, RunIdentifier
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    # Only results and pages are files, each with its own name, so that a file that a killed process left half written,
    # or that another process is writing, is never read as settings or as the suite.
    project = InMemoryStoreBackendDefaults()
    project.stores[project.validation_results_store_name]["store_backend"] = _keep_files(folder, "validations")
    project.data_docs_sites = {
        "local_site": {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": _keep_files(folder, "data_docs/local_site"),
        }
    }
    try:
        context = gx.get_context(
            mode="ephemeral",
            project_config=DataContextConfig(store_backend_defaults=project, progress_bars={"globally": False}),
        )
    except gx.exceptions.GreatExpectationsError as error:  # which contains an OSError only as text
        raise OSError(str(error)) from error
    # Great Expectations does not escape names and arguments in its pages.
    shown = [
        e.model_copy(update={"kwargs": escape(e.kwargs)})
        for e in (*contract.row_expectations, *contract.batch_expectations)
    ]
    context.suites.add_or_update(
        gx.ExpectationSuite(name=detector, expectations=[_configure(e, n) for n, e in enumerate(shown)])
    )
    suite_key = ExpectationSuiteIdentifier(detector)
    keys = []
    for day, batch in batches.items():
        results = [
            ExpectationValidationResult(
                success=outcome.success,
                expectation_config=_configure(expectation, n),
                result=_docs_result(outcome, batch.rows),
                exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
            )
            for n, (expectation, outcome) in enumerate(zip(shown, batch.outcomes, strict=True))
        ]
        evaluated, met = len(results), sum(outcome.success for outcome in batch.outcomes)
        run = RunIdentifier(run_name=f"{detector} {day.isoformat()}", run_time=datetime.now(UTC))
        page = ExpectationSuiteValidationResult(
            success=batch.is_accepted,
            results=results,
            suite_name=detector,
            statistics={
                "evaluated_expectations": evaluated,
                "successful_expectations": met,
                "unsuccessful_expectations": evaluated - met,
                "success_percent": 100 * met / evaluated,
            },
            meta={
                "batch_date": day.isoformat(),
                "run_id": run,
                "great_expectations_version": gx.__version__,
                "active_batch_definition": {"data_asset_name": detector},
                "batch_spec": {"data_asset_name": detector, "batch_date": day.isoformat(), "rows": batch.rows},
            },
        )
        key = ValidationResultIdentifier(suite_key, run, f"{detector}-{day.isoformat()}")
        context.validation_results_store.add(key, page)
        keys.append(key)
    context.build_data_docs(resource_identifiers=[*keys, suite_key])


def _configure(expectation: ContractExpectation, position: int) -> Any:
    """The Great Expectations object to show: limits that only exclude infinity become words."""
    configured = configure(expectation, position)
    limits = [expectation.kwargs.get(name) for name in BOUNDS]
    if limits == [-FLOAT_LIMIT, FLOAT_LIMIT]:
        configured.description = "values must be finite."
    return configured


def _keep_files(folder: Path, name: str) -> dict[str, Any]:
    return {
        "class_name": "TupleFilesystemStoreBackend",
        "base_directory": str(folder / "gx/uncommitted" / name),
        "suppress_store_backend_id": True,
    }


def escape(value: Any) -> Any:
    """A contract's value with all texts in it escaped for HTML."""
    if isinstance(value, dict):
        return {key: escape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escape(one) for one in value]
    return html.escape(value, quote=False) if isinstance(value, str) else value


def _docs_result(outcome: Outcome, rows: int) -> dict[str, Any]:
    if outcome.level == "batch":
        return {"observed_value": outcome.observed}
    percent = 100 * outcome.unexpected / rows if rows else 0.0
    return {"element_count": rows, "unexpected_count": outcome.unexpected, "unexpected_percent": percent}
