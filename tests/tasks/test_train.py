"""Training with scales for each entity, on real files."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from steps import TrainingSteps, load, migrate
from toy import CUTOFF, FIRST, PARAMS, Project, make_project, make_rows

from models.detector import Detector
from tasks.errors import ParamsInvalid
from tasks.rows.columns import hash_entities


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Orders whose spending is scaled for each customer."""
    project = make_project(tmp_path / "project")
    entity = {"type": "text", "nullable": True, "required": False}
    project.change("contracts/orders.yaml", "columns", "customer", value=entity)
    project.change("params.yaml", "detectors", "orders", "entity", value="customer")
    train = PARAMS["train"] | {"per_entity": {"scale": ["spend"]}}
    project.change("params.yaml", "detectors", "orders", "train", value=train)
    return project


def run(project: Project, last: str) -> TrainingSteps:
    steps = TrainingSteps(load(project.folder))
    migrate(steps.setup)
    for name in steps.steps:
        steps.run(name, steps.setup.site)
        if name == last:
            return steps
    raise AssertionError(last)


def test_a_bundle_has_the_scales_of_the_customers_of_its_fit_rows_under_their_hashes(project: Project) -> None:
    steps = run(project, "train")
    detector = Detector.load(steps.done["train"])
    fit_days = [FIRST + timedelta(days=offset) for offset in range((CUTOFF - FIRST).days)][:-6]  # 1 + 1 + 1 + 2, and 1
    customers = np.unique(np.concatenate([make_rows(day)["customer"] for day in fit_days])).tolist()
    hashes = detector.encoder.scales.hashes.tolist()
    assert hashes == sorted(hashes) and set(hashes) <= set(hash_entities(pa.chunked_array([customers])).tolist())
    assert len(hashes) >= 297  # all but those of the frauds
    assert [column.name for column in detector.columns] == ["items", "spend", "shop", "customer"]
    assert "customer-" not in (steps.done["train"] / "detector.json").read_text()
    assert detector.lineage["nullable"] == ["customer"]


@pytest.mark.parametrize("share", [0.6, 1.0], ids=["mostly null", "absent"])
def test_a_training_whose_rows_mostly_have_no_entity_is_refused(project: Project, share: float) -> None:
    for offset in range((CUTOFF - FIRST).days):
        day = FIRST + timedelta(days=offset)
        rows = make_rows(day)
        rows.loc[np.arange(len(rows)) < share * len(rows), "customer"] = None
        project.write_day(day, rows if share < 1 else rows.drop(columns="customer"))
    with pytest.raises(ParamsInvalid) as caught:
        run(project, "train")
    message = str(caught.value)
    assert "most fit rows have none" in message and "detectors.orders.entity, column customer" in message
