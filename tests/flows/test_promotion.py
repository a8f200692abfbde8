"""A challenger beside the champion: its nights in shadow, what the gate asks of it, and what was decided."""

import json
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from toy import CUTOFF, DAYS, FIRST, Project, point_to

from flows.cli.main import execute
from flows.config.setup import load_setup
from models.columns import Column
from models.detector import Detector
from tasks.errors import BatchMissing, BundleInvalid
from tasks.on_demand.compare import find_nights
from tasks.on_demand.standing import find_comparison
from tasks.stores.registry import Registry, Version
from tasks.upkeep.prune import GRACE, plan_superseded, read_kept, take_inventory

LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert execute(list(arguments)) == 1
    return " ".join(capsys.readouterr().err.split())


def read_artifacts(key: str) -> Iterator[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter

    wanted = ArtifactFilter.model_validate({"key": {"any_": [key]}})
    with get_client(sync_client=True) as client:
        yield from client.read_artifacts(artifact_filter=wanted)


@pytest.fixture(scope="module")
def challenged_folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is the champion, version 2 the challenger, and a new day has arrived; tests use copies of it."""
    folder = tmp_path_factory.mktemp("challenged") / "project"
    project = Project(shutil.copytree(trained_folder, folder))
    project.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_to(monkeypatch, folder)
        assert execute(["train", "orders", "--cutoff", str(CUTOFF), "--json"]) == 0
    project.write_day(NEW)
    return folder


@pytest.fixture
def challenged(challenged_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    point_to(monkeypatch, shutil.copytree(challenged_folder, tmp_path / "project"))
    return Project(tmp_path / "project")


def score(capsys: pytest.CaptureFixture[str], day: date) -> Any:
    return answer(capsys, "score", "orders", "--date", str(day))


def test_a_night_is_scored_in_shadow_by_the_challenger_and_published_by_the_champion_only(
    challenged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "status", "orders")["challenger"] == {
        "version": 2, "nights": [], "flags_per_night": None, "champions_flags_per_night": None, "decision": "",
    }  # fmt: skip
    night = score(capsys, NEW)
    assert night["model_version"] == 1
    waiting = answer(capsys, "status", "orders")["challenger"]
    assert (waiting["version"], waiting["nights"]) == (2, [str(NEW)])
    assert waiting["champions_flags_per_night"] == night["flagged"]
    assert execute(["status", "orders"]) == 0
    shown = capsys.readouterr().out
    assert "challenger: version 2, 1 night scored in shadow, " in shown
    found = answer(capsys, "status", "orders")["cases"]
    assert len(answer(capsys, "cases", "orders")["cases"]) == found["open"] > 0 == found["overdue"]
    assert f"cases: {found['open']} open" in shown

    compared = answer(capsys, "compare", "orders")["canaries"]
    assert compared
    assert all(0 <= share <= 1 for shares in compared.values() for share in shares)
    assert execute(["compare", "orders"]) == 0
    assert "canary, shift spend" in capsys.readouterr().out

    # Old enough to be pruned, the scores stay while the version is the challenger.
    site = load_setup("orders").site
    inventory, later = take_inventory(site.lake, "orders"), load_setup("orders").window().now + 2 * GRACE
    assert not list(plan_superseded(site.lake, inventory, later, read_kept(site)))
    [shadow] = site.lake.scored_by("orders", site.registry.get_version(2).tags["bundle_hash"], LAST)
    assert shadow.facts["flagged"] == waiting["flags_per_night"]

    # The promoted version publishes exactly what it scored in shadow.
    answer(capsys, "promote", "orders")
    assert not list(plan_superseded(site.lake, inventory, later, read_kept(site)))[1:]
    after = score(capsys, NEW)
    assert (after["model_version"], after["flagged"]) == (2, shadow.facts["flagged"])
    assert answer(capsys, "status", "orders")["challenger"] is None


def test_a_canary_whose_segment_no_version_has_learnt_is_compared(
    challenged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = {"kind": "category", "column": "shop", "segment": "customer"}
    challenged.change("params.yaml", "detectors", "orders", "monitor", value={"canaries": [canary]})
    assert answer(capsys, "compare", "orders")["canaries"].keys() == {"category shop"}


def test_training_ends_with_the_comparison_which_prefect_shows_too(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    found = answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert (found["version"], found["alias"], found["notes"]) == (2, "challenger", [])
    assert found["comparison"] | {"note": "", "refusals": []} == answer(capsys, "compare", "orders")
    shown = [artifact.data for artifact in read_artifacts("comparison-orders")]
    assert any(
        f"| alerts per night | {found['comparison']['first']['alerts_per_night']:,.1f} |" in text for text in shown
    )
    later = answer(capsys, "train", "orders", "--cutoff", str(NEW + timedelta(days=1)))
    assert later["comparison"] is None
    assert later["notes"] == [
        "no published night is new to the version and the champion; later: nightjar compare orders",
    ]


def test_a_challenger_that_cannot_be_loaded_costs_its_shadow_and_not_the_night(
    challenged: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Registry.fetch_bundle

    def fail(registry: Registry, version: Version) -> Path:
        bundle = fetch(registry, version)
        if version.version == 2:
            (bundle / "weights.safetensors").write_bytes(b"")
        return bundle

    monkeypatch.setattr(Registry, "fetch_bundle", fail)
    night = score(capsys, NEW)
    assert (night["model_version"], night["scored"] > 0) == (1, True)
    assert answer(capsys, "status", "orders")["challenger"]["nights"] == []
    assert "BundleInvalid" in refuse(capsys, "promote", "orders")


def test_the_gate_asks_for_nights_in_shadow_and_the_decision_is_shown(
    challenged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    challenged.change("params.yaml", "detectors", "orders", "promote", value={"gate": {"min_shadow_nights": 1}})
    reason = "version 2 has scored 0 nights in shadow, and promote.gate.min_shadow_nights is 1"
    assert reason in refuse(capsys, "promote", "orders")
    assert answer(capsys, "status", "orders")["challenger"]["decision"].endswith(f" UTC: refused; {reason}")
    score(capsys, NEW)
    assert answer(capsys, "promote", "orders")["champion"] == 2
    shown = [artifact.data for artifact in read_artifacts("promotion-orders")]
    assert any("PromotionRefused" in text for text in shown)
    assert any(text.startswith("version 2 of orders, ") and text.endswith("promoted") for text in shown)


def test_the_gate_refuses_a_version_that_misses_known_anomalies(
    challenged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = load_setup("orders").site.warehouse.read_flags("orders", LAST)["record_id"].tolist()
    answers = challenged.folder / "answers.csv"
    verdicts = {"batch_date": str(LAST), "record_id": flags, "inclusion": 1.0, "verdict": "anomaly"}
    pd.DataFrame(verdicts).to_csv(answers, index=False)
    answer(capsys, "review", "orders", "--take", str(answers), "--by", "ada")
    found = answer(capsys, "compare", "orders")
    first, second = (found[side]["recall"] for side in ("first", "second"))
    assert len(flags) <= first["hits"] == first["total"]
    lost = first["hits"] - second["hits"]
    assert lost > 0.05 * first["total"]
    challenged.change("params.yaml", "detectors", "orders", "promote", value={"gate": {}})
    message = refuse(capsys, "promote", "orders")
    assert f"of {first['total']} known anomalies, version 2 alerts on {second['hits']} and version 1" in message
    gate = {"gate": {"max_recall_loss": lost / first["total"]}}
    challenged.change("params.yaml", "detectors", "orders", "promote", value=gate)
    assert answer(capsys, "promote", "orders")["champion"] == 2


def test_a_version_whose_metrics_are_zero_gives_them_again(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change(
        "params.yaml", "detectors", "orders", "calibrate", value={"threshold": {"kind": "fixed", "value": 1e9}}
    )
    trained.change("params.yaml", "detectors", "orders", "promote", value={"gate": {"max_recall_loss": 1}})
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    registry = load_setup("orders").site.registry
    assert registry.read_metrics(registry.get_version(2))["test_recall"] == 0
    assert answer(capsys, "promote", "orders")["champion"] == 2


def test_a_training_stays_registered_if_it_cannot_be_compared(
    trained: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise BundleInvalid("The bundle was altered.")

    monkeypatch.setattr("flows.training.compare_versions", fail)
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    found = answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert (found["version"], found["comparison"]) == (2, None)
    assert found["notes"][0].startswith("version 2 could not be compared with the champion: BundleInvalid")


def test_nights_validated_without_a_column_that_was_learnt_are_not_compared(trained: Project) -> None:
    site = load_setup("orders").site
    champion = site.registry.get_champion()
    detector = Detector.load(site.registry.fetch_bundle(champion))
    assert len(find_nights(site, (champion, champion), [detector, detector])) == 2
    wider = cast(Detector, SimpleNamespace(columns=(*detector.columns, Column("new", "numeric"))))
    with pytest.raises(BatchMissing, match="2 later nights lack a column that one has learnt"):
        find_nights(site, (champion, champion), [detector, wider])


def test_the_gate_refuses_a_version_that_does_not_give_its_own_metrics_again(
    challenged: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    challenged.change("params.yaml", "detectors", "orders", "promote", value={"gate": {}})
    recorded = load_setup("orders").site.registry.read_metrics(load_setup("orders").site.registry.get_version(2))
    assert recorded["test_auroc"] > 0.5
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "read_metrics", lambda *_: recorded | {"test_auroc": 0.5})
        message = refuse(capsys, "promote", "orders")
    assert "version 2 does not give its own metrics again: test_auroc is " in message
    assert answer(capsys, "promote", "orders")["champion"] == 2


def test_the_reason_of_a_promotion_and_of_a_rollback_is_kept_with_who_gave_it(
    challenged: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    registry = load_setup("orders").site.registry
    assert answer(capsys, "promote", "orders", "--reason", "half the false alarms")["champion"] == 2
    assert registry.get_version(2).tags["promotion"].endswith(" UTC: promoted; ada: half the false alarms")
    assert answer(capsys, "rollback", "orders", "--reason", "too many flags")["champion"] == 1
    assert registry.get_version(2).tags["promotion"].endswith(" UTC: rolled back to version 1; ada: too many flags")


def test_the_last_comparison_of_two_versions_is_kept_for_those_who_only_look(
    challenged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    site = load_setup("orders").site
    pair = site.registry.get_version(1), site.registry.get_version(2)
    first = find_comparison(site, pair)  # of the training
    assert first is not None
    found = answer(capsys, "compare", "orders")
    again = find_comparison(site, pair)
    assert again is not None
    assert again["compared_at"] >= first["compared_at"]
    assert {name: found[name] for name in ("rows", "alerts", "second")} == {
        name: again[name] for name in ("rows", "alerts", "second")
    }
    assert "changed" not in again
