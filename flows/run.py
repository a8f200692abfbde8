"""The main job behind `nightjar run`: ingest, a first champion if there is none, every night that is not fresh."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flows.setup import Setup, prepare
from tasks import tracking
from tasks.evaluate import evaluate_nights
from tasks.ingest import ingest_arrivals
from tasks.ledger import read_ledger
from tasks.progress import progress_of


def run_detector(name: str, wait_for_prefect: Callable[[], None]) -> dict[str, Any]:
    """Do what is left to do and summarise the nights. Typed again, it finds nothing to do."""
    setup = prepare(name)
    window = setup.window(last=setup.configured.detector.run.last_date)
    ingest_arrivals(setup.site, setup.ingest_params, window, progress_of("ingest"))
    nights = setup.nights()
    champion = tracking.find_version(setup.site)
    wait_for_prefect()
    if champion is None:
        from flows.training import training

        training(name, nights[0])
    champion = tracking.get_champion(setup.site)
    unlearnt = [day for day in nights if day.isoformat() > champion.tags["trained_through"]]
    todo = [night.batch_date for night in read_ledger(setup.site, unlearnt, champion) if night.state != "fresh"]
    if todo:
        from flows.backfill import backfill

        backfill(name, todo)
    return summarise(setup, champion)


def find_pages(mlflow_uri: str) -> dict[str, str]:
    """Where Prefect and MLflow show the runs: their servers, or else what `make ui` starts."""
    prefect_url = os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")
    return {
        "Prefect": prefect_url or "make ui, then http://127.0.0.1:4200",
        "MLflow": mlflow_uri if mlflow_uri.startswith("http") else "make ui, then http://127.0.0.1:5000",
    }


def summarise(setup: Setup, champion: tracking.Version) -> dict[str, Any]:
    """The nights as published, the metrics over them where labels exist, and where to look."""
    site, nights = setup.site, setup.nights()
    batches = [night.batch for night in read_ledger(site, nights, champion) if night.batch]
    published = [batch.batch_date for batch in batches]
    evaluation = evaluate_nights(site, setup.ingest_params, published, setup.window().now) if published else None
    return {
        "detector": site.detector,
        "model": champion.name,
        "version": champion.version,
        "split": champion.tags.get("split", ""),
        "nights": [asdict(batch) for batch in batches],
        "metrics": asdict(evaluation.metrics) if evaluation else {},
        "recall_by_kind": evaluation.recall_by_kind if evaluation else {},
        "rows_by_kind": evaluation.rows_by_kind if evaluation else {},
        "where": {
            "report": str(site.reports / f"{nights[-1]}.html"),
            "Data Docs": str(site.docs / "gx/uncommitted/data_docs/local_site/index.html"),
            "table": f"flagged_anomalies in {site.warehouse_label}",
            **find_pages(site.mlflow_uri),
        },
    }
