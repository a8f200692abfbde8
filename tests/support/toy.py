"""A small project of real files, made by tests: fourteen days of shop orders with three frauds a day."""

import os
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

FIRST = date(2026, 3, 20)  # ten days on, clocks change in Berlin
DAYS, ROWS = 14, 300
CUTOFF = FIRST + timedelta(days=12)


def make_rows(day: date, rows: int = ROWS) -> pd.DataFrame:
    """A day of orders: `spend` is `items` times about 10, unless the order is a fraud (the last three)."""
    rng = np.random.default_rng(day.toordinal())
    items = rng.integers(1, 9, rows)
    spend = items * rng.lognormal(2.3, 0.1, rows)
    is_fraud = np.arange(rows) >= rows - 3
    spend[is_fraud] = items[is_fraud] * 200.0
    seconds = np.sort(rng.integers(3 * 3600, 20 * 3600, rows))
    return pd.DataFrame(
        {
            "order_id": [f"{day:%m%d}-{row:04d}" for row in range(rows)],
            "placed_at": [f"{day}T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}Z" for s in seconds],
            "items": items,
            "spend": spend.round(4),
            "shop": rng.choice(["north", "south"], rows),
            "customer": [f"customer-{row}@example.org" for row in range(rows)],
            "fraud": is_fraud.astype(int),
        }
    )


PARAMS: dict[str, Any] = {
    "time_zone": "Europe/Berlin",
    "label_delay_days": 1,
    "run": {"nights": 2},
    "ingest": {
        "source": {"kind": "files", "path": "orders/*.csv"},
        "record_id": "order_id",
        "event_time": {"column": "placed_at"},
        "labels": {"column": "fraud", "anomalous": ["1"]},
    },
    "filter": {
        "splits": {"kind": "by_date", "stopping_days": 1, "tuning_days": 1, "test_days": 1, "calibration_days": 2}
    },
    "train": {
        "columns": {"numeric": ["items", "spend"], "categorical": ["shop"]},
        "network": {"kind": "autoencoder", "layers": [8, 2, 8], "activation": "tanh"},
        "fit": {"epochs": 20, "batch_size": 64, "learning_rate": 0.01, "seed": 1},
    },
}
CONTRACT: dict[str, Any] = {
    "columns": {
        "items": {"type": "int"},
        "spend": {"type": "float"},
        "shop": {"type": "text"},
        "customer": {"type": "text", "masked": True},
        "fraud": {"type": "int"},
    },
    "expectations": [
        {
            "level": "row",
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "spend", "min_value": 0, "max_value": 10000},
        },
        {
            "level": "batch",
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "rows", "min_value": 50},
        },
    ],
}


@dataclass(frozen=True)
class Project:
    """A project folder, and how to change what lies in it."""

    folder: Path

    @property
    def orders(self) -> Path:
        return self.folder / "sources" / "orders"

    def write_day(self, day: date, frame: pd.DataFrame | None = None) -> Path:
        path = self.orders / f"orders-{day}.csv"
        (make_rows(day) if frame is None else frame).to_csv(path, index=False)
        return path

    def change(self, path: str, *steps: str, value: object) -> None:
        document = yaml.safe_load((self.folder / path).read_text())
        section = document
        for step in steps[:-1]:
            section = section[step]
        section[steps[-1]] = value
        (self.folder / path).write_text(yaml.safe_dump(document))


def make_project(folder: Path) -> Project:
    """Write params, contract and all days."""
    (folder / "contracts").mkdir(parents=True)
    (folder / "sources" / "orders").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"detectors": {"orders": PARAMS}}))
    (folder / "contracts" / "orders.yaml").write_text(yaml.safe_dump(CONTRACT))
    project = Project(folder)
    for offset in range(DAYS):
        project.write_day(FIRST + timedelta(days=offset))
    return project


def point_to(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let commands find the project and nothing of the user's own."""
    for name in [name for name in os.environ if name.startswith("NIGHTJAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTJAR_PROJECT", str(folder))
    monkeypatch.setenv("NIGHTJAR_SOURCES", str(folder / "sources"))
