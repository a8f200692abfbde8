"""Two versions on the same later nights, and what a promotion would lose."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny import add_reducer
from toy import CUTOFF, DAYS, FIRST, ROWS, Project, make_rows

from flows.cli.main import execute
from flows.config.setup import load_setup
from models.detector import Detector
from tasks.on_demand.compare import choose_versions, compare_versions
from tasks.register import register_bundle
from tasks.rows.shares import Share
from tasks.stores import lake
from tasks.stores.tables import DATA_BROKE, WORLD_CHANGED, Finding

LAST = FIRST + timedelta(days=DAYS - 1)
FRAUDS = {
    record for day in (LAST - timedelta(days=1), LAST) for record in make_rows(day).query("fraud == 1")["order_id"]
}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert execute(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err[captured.err.index("error: ") :].split())


def register_reduced(folder: Path, cut: float, version: int | None = None) -> int:
    """Register a version (default: the champion) with an untrained second stage: a cut above 1 suppresses all."""
    site = load_setup("orders").site
    base = site.registry.get_champion() if version is None else site.registry.get_version(version)
    detector = add_reducer(Detector.load(site.registry.fetch_bundle(base)), cut)
    detector.with_lineage({**detector.lineage, "reducer": {"from_version": base.version}}).save(folder)
    return register_bundle(site, folder, None).version


def review(capsys: pytest.CaptureFixture[str], folder: Path, night: date, **verdicts: str) -> None:
    frame = pd.DataFrame(
        {"batch_date": str(night), "record_id": list(verdicts), "inclusion": 1.0, "verdict": verdicts.values()}
    )
    frame.to_csv(folder / "answers.csv", index=False)
    answer(capsys, "review", "orders", "--take", str(folder / "answers.csv"), "--by", "ada")


def test_both_versions_judge_the_same_later_nights_and_nothing_is_published(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    before = load_setup("orders").site.warehouse.read_nights("orders")
    found = answer(capsys, "compare", "orders")
    assert load_setup("orders").site.warehouse.read_nights("orders") == before
    assert found["nights"] == [str(LAST - timedelta(days=1)), str(LAST)]
    assert (found["rows"], found["answers"], found["anomalies"], found["note"]) == (2 * ROWS, 2 * ROWS, 6, "")
    first, second = found["first"], found["second"]
    assert (first["version"], first["aliases"]) == (1, ["champion"])
    assert (second["version"], second["aliases"]) == (2, ["challenger"])
    assert first["flags"] == first["alerts"] == sum(night.flagged for night in before)
    for side in (first, second):
        assert side["alerts_per_night"] == side["alerts"] / 2
        assert (side["recall"]["hits"], side["recall"]["total"]) == (6, 6)
        assert (side["precision"]["hits"], side["precision"]["total"]) == (6, side["alerts"])
        assert 0 < side["precision"]["low"] < side["precision"]["share"] < side["precision"]["high"] < 1
        assert 0 < side["clean_error"] < side["threshold"]
    assert found["flags"] == found["alerts"]
    assert found["flags"]["both"] + found["flags"]["only_first"] == first["flags"]
    assert found["flags"]["both"] + found["flags"]["only_second"] == second["flags"]
    assert len(found["changed"]) == min(20, found["alerts"]["only_first"] + found["alerts"]["only_second"]) > 0
    for record in found["changed"]:
        one, two = record["first"], record["second"]
        assert one["is_alert"] != two["is_alert"]
        assert all(judged["is_alert"] == (judged["times_threshold"] > 1) for judged in (one, two))
        assert (record["entity"], record["answer"]) == (None, "normal")

    # The challenger's figures are those that its nights would have.
    answer(capsys, "promote", "orders")
    answer(capsys, "run", "orders")
    after = load_setup("orders").site.warehouse.read_nights("orders")
    assert second["flags"] == sum(night.flagged for night in after)


def test_the_comparison_does_not_depend_on_slices_and_takes_the_newest_nights(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = str(register_reduced(tmp_path / "reduced", 0.5))
    whole = answer(capsys, "compare", "orders", version)
    monkeypatch.setattr(lake, "SLICE_ROWS", 17)
    pieces = answer(capsys, "compare", "orders", "1", version)
    for side in ("first", "second"):
        assert pieces[side].pop("clean_error") == pytest.approx(whole[side].pop("clean_error"))
    assert pieces == whole
    turned = answer(capsys, "compare", "orders", version, "1", "--nights", "1")
    assert turned["nights"] == [str(LAST)]
    assert [turned[side]["version"] for side in ("first", "second")] == [int(version), 1]


def test_nights_whose_data_broke_are_left_out(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_reduced(tmp_path / "reduced", 0.5)
    warehouse = load_setup("orders").site.warehouse
    for finding, nights in ((WORLD_CHANGED, 2), (DATA_BROKE, 1)):
        warehouse.replace_drift(Finding("orders", LAST, 1, finding, (), "", datetime.now(UTC)), [])
        assert len(answer(capsys, "compare", "orders")["nights"]) == nights


def test_a_second_stage_counts_and_a_verdict_overrules_a_label(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_PSEUDONYM_KEY", "secret")
    trained.change("params.yaml", "detectors", "orders", "entity", value="customer")
    trained.change("params.yaml", "detectors", "orders", "publish", value={"pseudonymise": ["customer"]})
    register_reduced(tmp_path / "reduced", cut=1.1)
    missed, wrong = sorted(FRAUDS)[0], f"{LAST:%m%d}-0000"
    review(capsys, tmp_path, LAST - timedelta(days=1), **{missed: "normal"})
    review(capsys, tmp_path, LAST, **{wrong: "anomaly"})
    found = answer(capsys, "compare", "orders")
    assert found["anomalies"] == 6
    first, second = found["first"], found["second"]
    assert [side["has_second_stage"] for side in (first, second)] == [False, True]
    assert first["flags"] == second["flags"] == first["alerts"] > 0 == second["alerts"]
    assert first["recall"]["hits"] == 5  # not the row below the threshold that a person calls an anomaly
    assert (second["precision"]["total"], second["precision"]["share"]) == (0, None)
    assert (found["flags"]["jaccard"], found["alerts"]["jaccard"]) == (1, 0)
    answers = {record["record_id"]: record["answer"] for record in found["changed"]}
    assert answers[missed] == "normal"
    assert {record for record, known in answers.items() if known == "anomaly"} == FRAUDS - {missed}
    for record in found["changed"]:
        assert record["first"]["times_threshold"] == record["second"]["times_threshold"] > 1
        assert record["second"]["is_suppressed"]
        assert len(record["entity"]) == 16
    scores = [record["first"]["times_threshold"] for record in found["changed"]]
    assert scores == sorted(scores, reverse=True)

    assert execute(["compare", "orders"]) == 0
    shown = capsys.readouterr().out
    assert "600 rows that neither has learnt from" in shown
    assert "alerts     0.0 % in common: 0 of both" in shown
    for part in (f"{len(scores)} of {len(scores)} records that change side", ", alert", ", suppressed", "not known"):
        assert part in shown
    assert execute(["compare", "orders", "2", "1"]) == 0
    assert "nightjar reduce orders --version 1" in " ".join(capsys.readouterr().out.split())


def test_without_labels_only_verdicts_are_answers(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_reduced(tmp_path / "reduced", cut=0)
    review(capsys, tmp_path, LAST, **{sorted(FRAUDS)[-1]: "anomaly"})
    site = load_setup("orders").site
    found = compare_versions(site, load_setup("orders").record_rule, choose_versions(site), False, datetime.now(UTC))
    assert (found.answers, found.anomalies) == (1, 1)
    assert (found.first.precision.hits, found.first.precision.total) == (1, 1)
    assert found.changed == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "orders has no challenger to compare with its champion."),
        (["1"], "Version 1 cannot be compared with itself."),
        (["1", "1"], "Version 1 cannot be compared with itself."),
        (["9"], "orders has no version 9"),
    ],
)
def test_versions_that_cannot_be_compared_are_refused(
    trained: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refuse(capsys, "compare", "orders", *arguments)


def test_versions_without_a_common_later_night_are_refused_with_the_dates(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_reduced(tmp_path / "reduced", cut=0)
    lake_folder = trained.folder / ".nightjar/lake"
    shutil.rmtree(lake_folder / "validated/orders" / f"batch_date={LAST}")
    assert answer(capsys, "compare", "orders")["nights"] == [str(LAST - timedelta(days=1))]
    shutil.rmtree(lake_folder / "validated/orders" / f"batch_date={LAST - timedelta(days=1)}")
    assert "the validated rows of 2 later nights were pruned" in refuse(capsys, "compare", "orders")
    answer(capsys, "train", "orders", "--cutoff", str(LAST + timedelta(days=2)))
    message = refuse(capsys, "compare", "orders", "1", "3")
    assert f"through {LAST}; the newest published night is {LAST}" in message
    assert "nightjar train orders --cutoff DATE" in message


def test_labels_of_a_night_that_has_not_matured_count_for_recall_only(trained: Project, tmp_path: Path) -> None:
    register_reduced(tmp_path / "reduced", cut=0)
    setup = load_setup("orders")
    pair, early = choose_versions(setup.site), datetime.combine(LAST + timedelta(days=1), datetime.min.time(), UTC)
    found = compare_versions(setup.site, setup.record_rule, pair, True, early)
    assert (found.answers, found.anomalies) == (ROWS, 3)  # of the first night; no label of the second has arrived
    assert found.first.precision.total < found.first.flags
    site = replace(setup.site, label_delay=timedelta(days=90))
    found = compare_versions(site, setup.record_rule, pair, True, datetime(2026, 4, 10, tzinfo=UTC))
    assert (found.answers, found.anomalies) == (0, 6)
    assert found.first.precision == Share(0, 0, None, None, None)
    assert found.first.recall.share == 1


# --- promotion and the second stage ---


def version_tags(number: int) -> Any:
    return load_setup("orders").site.registry.get_version(number).tags


def champion() -> int:
    return load_setup("orders").site.registry.get_champion().version


def promote_reduced(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Make version 2, the champion with a second stage that has learnt nothing, the champion."""
    assert register_reduced(folder, cut=0.5) == 2
    answer(capsys, "promote", "orders")


def learn_again(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts that suffice for a second stage."""
    limits = {"min_verdicts": 10, "min_confirmed": 5, "max_recall_loss": 0.5}
    review = {"sample": 10, "reducer": {"kind": "forest", "trees": 20}, "limits": limits}
    trained.change("params.yaml", "detectors", "orders", "review", value=review)
    answer(capsys, "review", "orders", "--from-labels")


def test_a_version_without_the_champions_second_stage_is_refused_and_force_is_recorded(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote_reduced(capsys, tmp_path / "reduced")
    assert execute(["train", "orders", "--cutoff", str(LAST)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    advice = "version 2 has a second stage, which version 3 lacks: nightjar reduce orders --version 3 learns it again"
    missing = "version 3 has no second stage, which version 2 has: orders has no verdicts that it can learn from."
    assert shown.startswith("version 3 of nightjar-orders is the challenger threshold ")
    assert " orders: 2 nights, " in shown
    assert f"note {missing} After more verdicts" in shown
    again = answer(capsys, "train", "orders", "--cutoff", str(LAST))
    assert again["notes"][0].startswith(missing)
    assert (again["comparison"]["first"]["version"], again["comparison"]["second"]["version"]) == (2, 3)
    for arguments in ([], ["3"], ["1"]):
        message = refuse(capsys, "promote", "orders", *arguments)
        number = (*arguments, "3")[0]
        assert f"PromotionRefused: Version {number} may not become champion: every flag that the second" in message
        assert f"nightjar reduce orders --version {number} learns it again" in message
        assert f"nightjar promote orders {number} --force" in message
    assert champion() == 2
    assert version_tags(3)["promotion"].endswith(f" UTC: refused; {advice}")
    assert answer(capsys, "promote", "orders", "--force") == {
        "detector": "orders", "champion": 3, "before": 2, "note": advice,
    }  # fmt: skip
    assert version_tags(3)["promotion"].endswith(f" UTC: promoted by force; {advice}")
    assert answer(capsys, "rollback", "orders")["note"] == ""  # a second stage comes back
    answer(capsys, "promote", "orders", "2", "--force")  # nothing is lost, so nothing is recorded
    assert version_tags(2)["promotion"].endswith(" UTC: promoted")
    assert answer(capsys, "rollback", "orders")["note"].startswith("version 2 has a second stage, which version 1")


def test_the_second_stage_is_learnt_again_for_a_challenger_which_then_is_promoted(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote_reduced(capsys, tmp_path / "reduced")
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert "has no verdicts that it can learn from" in refuse(capsys, "reduce", "orders", "--version", "3")
    assert "has no version 9" in refuse(capsys, "reduce", "orders", "--version", "9")
    learn_again(trained, capsys)
    preview = answer(capsys, "reduce", "orders", "--version", "3", "--dry-run")
    assert (preview["version"], preview["nights"], preview["now"]) == (3, 2, None)
    assert preview["then"]["alerts"] + preview["then"]["suppressed"] == preview["flags"]
    assert execute(["reduce", "orders", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "flags of version 2 in 2 nights" in shown and "nothing was registered" in shown
    reduced = answer(capsys, "reduce", "orders", "--version", "3")
    assert reduced["registered"] == {"version": 4, "alias": "challenger", "is_new": True}
    assert reduced["flags_per_night"] is reduced["alerts_per_night"] is None
    assert json.loads(version_tags(4)["reducer"])["from_version"] == 3
    assert version_tags(4)["cutoff"] == str(CUTOFF)
    assert execute(["reduce", "orders", "--version", "3"]) == 0
    shown = capsys.readouterr().out
    assert "of its flags stay alerts" in shown
    assert "version 4 of nightjar-orders already holds exactly this bundle" in shown
    assert answer(capsys, "promote", "orders") == {"detector": "orders", "champion": 4, "before": 2, "note": ""}


@pytest.mark.parametrize("has_verdicts", [True, False])
def test_run_retrain_learns_the_second_stage_again_or_says_why_not(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], has_verdicts: bool
) -> None:
    promote_reduced(capsys, tmp_path / "reduced")
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    if has_verdicts:
        learn_again(trained, capsys)
    summary = answer(capsys, "run", "orders", "--retrain")
    note = summary["notes"][0]
    registered = load_setup("orders").site.registry
    assert summary["version"] == champion() == (4 if has_verdicts else 3)
    assert registered.find_version("challenger") is None
    if has_verdicts:
        assert note.startswith("the second stage of version 4 was learnt again from ")
        assert note.endswith(f"; nights through {LAST}, which have verdicts, stay as they are")
        assert version_tags(4)["promotion"].endswith(" UTC: promoted")
    else:
        assert note.startswith("version 3 has no second stage, which version 2 has: orders has no verdicts")
        assert "nightjar reduce orders" in note
        assert "version 2 has a second stage" in version_tags(3)["promotion"]
        assert {night["model_version"] for night in summary["nights"]} == {3}


@pytest.mark.parametrize(
    ("gate", "refusal"),
    [
        ({"max_alerts_per_night": 1000, "min_nights": 2}, ""),
        ({"max_alerts_per_night": 0.5}, "alerts per night, and promote.gate.max_alerts_per_night is 0.5"),
        ({"min_nights": 3}, "only 2 published nights are new to both version 2 and the champion, and promote.gate.min"),
    ],
)
def test_the_gate_refuses_by_the_numbers_of_the_comparison_and_force_is_recorded(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: dict[str, float], refusal: str
) -> None:
    register_reduced(tmp_path / "reduced", cut=0)
    trained.change("params.yaml", "detectors", "orders", "promote", value={"gate": gate})
    refusals = answer(capsys, "compare", "orders")["refusals"]
    assert len(refusals) == bool(refusal)
    assert execute(["compare", "orders"]) == 0
    assert f"gate {refusals[0] if refusals else 'passed'}" in " ".join(capsys.readouterr().out.split())
    if refusals:
        assert refusal in refusals[0]
        message = refuse(capsys, "promote", "orders")
        assert (
            f"Version 2 may not become champion. where: registered model nightjar-orders got: {refusals[0]}" in message
        )
        assert champion() == 1
    assert answer(capsys, "promote", "orders", "--force")["champion"] == 2
    forced = ["promoted by force", *refusals] if refusals else ["promoted"]
    assert version_tags(2)["promotion"].endswith(f" UTC: {'; '.join(forced)}")
    answer(capsys, "promote", "orders", "2")  # the champion itself passes any gate
    assert answer(capsys, "rollback", "orders")["champion"] == 1  # so does going back


def test_a_retrained_version_that_the_gate_refuses_stays_the_challenger(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "promote", value={"gate": {"min_nights": 3}})
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    summary = answer(capsys, "run", "orders", "--retrain")
    assert summary["version"] == champion() == 1
    assert summary["notes"][0].startswith("version 2 is registered and not promoted: only 2 published nights")
    challenger = load_setup("orders").site.registry.find_version("challenger")
    assert challenger is not None and challenger.version == 2
    # Nights that it has learnt from do not count.
    answer(capsys, "train", "orders", "--cutoff", str(LAST + timedelta(days=2)))
    assert "only 0 published nights are new to both version 3" in refuse(capsys, "promote", "orders")


def test_a_comparison_that_fails_is_a_refusal_which_force_overrides(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_reduced(tmp_path / "reduced", cut=0)
    trained.change("params.yaml", "detectors", "orders", "promote", value={"gate": {}})
    registered = load_setup("orders").site.registry
    next(registered.fetch_bundle(registered.get_champion()).glob("*.safetensors")).write_bytes(b"")
    assert "version 2 cannot be compared with the champion: BundleInvalid" in refuse(capsys, "promote", "orders")
    assert answer(capsys, "promote", "orders", "--force")["champion"] == 2


def test_a_version_that_cannot_be_loaded_is_not_promoted(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = register_reduced(tmp_path / "reduced", cut=0)
    registered = load_setup("orders").site.registry
    bundle = registered.fetch_bundle(registered.get_version(number))
    next(bundle.glob("*.safetensors")).write_bytes(b"")
    for force in ([], ["--force"]):
        assert "BundleInvalid" in refuse(capsys, "promote", "orders", *force)
    assert champion() == 1
