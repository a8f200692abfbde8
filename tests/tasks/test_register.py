"""What MLflow shows of a version: tags that say where it comes from, the params of its training, and a description."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from prefect.logging import disable_run_logger
from tiny import add_reducer, make_tiny_detector

from models.calibration import expect_false_alarms
from models.columns import Column
from models.fitting import EpochLog
from models.params import AutoencoderParams, FitParams, NetworkParams, VariationalParams
from tasks.filter import TrainingSet
from tasks.on_demand.examine import draw_pictures
from tasks.register import (
    Trained,
    describe_layers,
    describe_version,
    drop_long,
    list_columns,
    name_tags,
    register_bundle,
)
from tasks.rows.measures import Metrics
from tasks.stores.registry import OWNER_TAG, REGISTERING_TAG
from tasks.stores.site import Site
from tasks.train import NO_EPOCHS, write_epochs


def test_a_version_is_tagged_with_the_lineage_and_the_commit_that_registered_it() -> None:
    lineage = {"cutoff": "2026-03-01", "rows": {"fit": 10}, "nullable": ["spend"]}
    assert name_tags(lineage, "c0ffee") == {
        "commit": "c0ffee",
        "cutoff": "2026-03-01",
        "rows": '{"fit": 10}',
        "nullable": '["spend"]',
    }


def test_the_commit_that_an_old_bundle_holds_stays() -> None:
    assert name_tags({"commit": "0ddba11"}, "c0ffee") == {"commit": "0ddba11"}


def test_long_tags_are_left_to_the_lineage_but_those_that_a_night_reads_stay() -> None:
    tags = {"rows": "r" * 250, "nullable": "n" * 251, "column_types": "c" * 5000}
    assert drop_long(tags).keys() == {"rows", "column_types"}


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (AutoencoderParams(layers=(8, 2, 8)), "8-2-8"),
        (VariationalParams(hidden=(20, 10), latent=3), "20-10-3-10-20"),
    ],
)
def test_layers_are_widths_from_the_first_to_the_last(network: NetworkParams, layers: str) -> None:
    assert describe_layers(network) == layers


def test_of_many_columns_the_first_are_named() -> None:
    columns = [Column(f"c{n}", "numeric") for n in range(1052)]
    assert list_columns(columns).endswith(", c49 and 1,002 more")
    assert list_columns(columns[:2]) == "c0, c1"


def test_a_version_is_described_in_words() -> None:
    lineage = {"split": "by_date, 2026-03-01 to 2026-03-10", "rows": {"fit": 1200}}
    detector = add_reducer(make_tiny_detector().with_lineage(lineage), 0.5)
    text = describe_version(detector, Metrics(0.5, 0.25, None, None, None, 0.01, 2000, 40))
    network, columns, trained, threshold, second, test = text.split("\n\n")
    assert network == "Network: autoencoder 4-2-4."
    assert columns == "Columns (3): amount, country, at."
    assert trained == "Trained on: by\\_date, 2026-03-01 to 2026-03-10, 1,200 rows to fit on."
    assert threshold.endswith("%).") and "of normal rows exceed (" in threshold
    nights = {"rows_per_night": "400", "night_spread": "2.25"}
    assert str(expect_false_alarms(detector.threshold, 400, 2.25)) in describe_version(detector, None, nights)
    assert second == "A second stage suppresses false alarms."
    assert test == "Test rows: 2,000, 40 of them anomalies, precision 0.5, recall 0.25, false alarm rate 0.01."
    assert "Trained on: unknown rows." in describe_version(make_tiny_detector(), None)


CUTOFF, BEGUN = date(2026, 3, 1), datetime(2026, 3, 1, 4, tzinfo=UTC)


def make_trained(site: Site, folder: Path, networks: int = 1) -> Trained:
    """A training of two epochs on 3 fit rows, 2 calibration rows and no test rows."""
    partition = site.lake.write("clean", "toy", CUTOFF)
    for name, rows in (("fit", 3), ("calibration", 2), ("test", 0)):
        with partition.part(name, source=name) as part:
            part.append(pa.table({"amount": [1.0] * rows}))
    partition.commit({})
    epochs = [
        (network, EpochLog(n, 0.5 / n, 0.75 / n, True, 1.0, 0.0, 0.5)) for network in range(networks) for n in (1, 2)
    ]
    site.epochs(CUTOFF).parent.mkdir(parents=True, exist_ok=True)
    write_epochs(site.epochs(CUTOFF), epochs)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "losses.png").write_bytes(b"a picture")
    return Trained(CUTOFF, BEGUN, FitParams(epochs=2, batch_size=32, seed=7), folder / "pictures")


@pytest.mark.parametrize(
    ("networks", "losses"),
    [
        (1, ["fit_loss", "stopping_loss"]),
        (2, ["network_1/fit_loss", "network_1/stopping_loss", "network_2/fit_loss", "network_2/stopping_loss"]),
    ],
)
def test_the_run_spans_the_training_and_shows_its_losses_sets_and_pictures(
    make_site: Callable[..., Site], tmp_path: Path, networks: int, losses: list[str]
) -> None:
    site = make_site()
    site = replace(site, registry=replace(site.registry, artifacts=str(tmp_path / "artifacts")))
    make_tiny_detector().with_lineage({"cutoff": "2026-03-01"}).save(tmp_path / "bundle")
    registered = register_bundle(site, tmp_path / "bundle", None, trained=make_trained(site, tmp_path, networks))
    client = MlflowClient(site.registry.uri)
    run = client.get_run(client.get_model_version(site.registry.model_name, str(registered.version)).run_id)
    assert run.info.start_time == BEGUN.timestamp() * 1000
    assert run.info.end_time > run.info.start_time + 3600_000
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"].startswith("Network: autoencoder 4-2-4.")
    for name in losses:
        found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert found == [(n, (0.5 if "fit" in name else 0.75) / n) for n in (1, 2)]
    recall = losses[0].replace("fit_loss", "tuning_recall")
    assert [one.value for one in client.get_metric_history(run.info.run_id, recall)] == [0.5, 0.5]
    clean = site.lake.get("clean", "toy", CUTOFF)
    sets = {one.dataset.name: one.dataset for one in run.inputs.dataset_inputs}
    assert {name: json.loads(one.profile) for name, one in sets.items()} == {
        "fit": {"num_rows": 3},
        "calibration": {"num_rows": 2},
    }
    own = replace(clean, parts=tuple(part for part in clean.parts if part.source == "fit"))
    assert own.hash.startswith(sets["fit"].digest)
    assert len(sets["fit"].digest) == 12
    assert "batch_date=2026-03-01" in mlflow.data.get_source(sets["fit"]).uri
    assert [column["name"] for column in json.loads(sets["fit"].schema)["mlflow_colspec"]] == [
        "amount",
        "country",
        "at",
    ]
    assert [one.path for one in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/losses.png"]


def test_a_training_whose_losses_and_pictures_are_missing_is_registered(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site()
    site = replace(site, registry=replace(site.registry, artifacts=str(tmp_path / "artifacts")))
    make_tiny_detector().with_lineage({"cutoff": "2026-03-01"}).save(tmp_path / "bundle")
    trained = make_trained(site, tmp_path)
    site.epochs(CUTOFF).write_bytes(NO_EPOCHS)
    (trained.pictures / "losses.png").unlink()
    with disable_run_logger():
        draw_pictures.fn(site, read_empty_set(), tmp_path / "nowhere", trained.pictures)  # is only logged
    assert register_bundle(site, tmp_path / "bundle", None, trained=trained).is_new


def read_empty_set() -> TrainingSet:
    return TrainingSet(CUTOFF, "", {}, {}, CUTOFF, CUTOFF, "", 0.0)


@pytest.mark.slow
def test_a_registration_that_began_just_now_is_alive_however_long_its_training_took(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site()
    site = replace(site, registry=replace(site.registry, artifacts=str(tmp_path / "artifacts")))
    make_tiny_detector().with_lineage({"cutoff": "2026-03-01"}).save(tmp_path / "bundle")
    register_bundle(site, tmp_path / "bundle", None, trained=make_trained(site, tmp_path))
    client = MlflowClient(site.registry.uri)
    [run] = client.search_runs(["1"])
    client.update_run(run.info.run_id, "RUNNING")
    client.set_tag(run.info.run_id, OWNER_TAG, "another-host 1 1.00")
    site.registry.end_dead_runs()
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    client.set_tag(run.info.run_id, REGISTERING_TAG, BEGUN.isoformat())
    site.registry.end_dead_runs()
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_mlflow_shows_the_training_params_one_by_one_and_the_lineage_in_full(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site, long = make_site(), "x" * 300
    site = replace(site, registry=replace(site.registry, artifacts=str(tmp_path / "artifacts")))
    make_tiny_detector().with_lineage({"cutoff": "2026-03-01", "formats": long}).save(tmp_path / "bundle")
    trained = make_trained(site, tmp_path)
    registered = register_bundle(site, tmp_path / "bundle", None, trained=trained)
    client = MlflowClient(site.registry.uri)
    version = client.get_model_version(site.registry.model_name, str(registered.version))
    assert version.description.startswith("Network: autoencoder 4-2-4.")
    assert "formats" not in version.tags
    params = client.get_run(version.run_id).data.params
    wanted = {"epochs": "2", "batch_size": "32", "learning_rate": "0.003", "seed": "7", "layers": "4-2-4"}
    assert {**params, **wanted, "columns": "amount, country, at"} == params
    path = download_artifacts(run_id=version.run_id, artifact_path="lineage.json", dst_path=str(tmp_path))
    lineage = json.loads(Path(path).read_text())
    assert lineage["tags"]["formats"] == long
    assert lineage["columns"]["amount"] == "numeric"
