"""The command line on a small project, with real files, Prefect, MLflow and DuckDB."""

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import date, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tiny import add_reducer
from toy import CUTOFF, DAYS, FIRST, ROWS, Project, make_project, make_rows, point_to

from flows.cli.main import execute
from flows.config.setup import load_setup
from models.detector import Detector
from tasks.register import register_bundle
from tasks.stores import registry
from tasks.stores.lake import Lake
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one readable message and no traceback; return the message."""
    assert execute(list(arguments)) == 1
    captured = capsys.readouterr()
    assert "error: " in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err[captured.err.index("error: ") :]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command with --json and return the one document it prints."""
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def partitions(project: Project, zone: str) -> list[date]:
    return Lake(str(project.folder / ".nightjar" / "lake")).dates(zone, "orders")  # type: ignore[arg-type]


def published(project: Project) -> list[Any]:
    return Warehouse(f"duckdb:///{project.folder}/.nightjar/warehouse.duckdb").read_nights("orders")


# --- the main job ---


def test_a_first_run_publishes_the_nights_and_a_second_run_changes_nothing(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = published(trained)
    assert [batch.batch_date for batch in before] == [LAST - timedelta(days=1), LAST]
    assert all(b.rows_in == ROWS == b.scored + b.quarantined + b.excluded for b in before)
    summary = answer(capsys, "run", "orders")
    assert published(trained) == before
    assert summary["version"] == 1
    assert "by_date" in summary["split"]
    assert summary["metrics"]["recall"] == 1.0
    searched = summary["searched"]  # it may miss anomalies for the sake of fewer false alarms, and here it does
    assert searched["precision"] == 1.0 > searched["now"][0]
    assert searched["recall"] <= searched["now"][1] == 1.0
    assert searched["threshold"] > summary["nights"][0]["threshold"]
    assert summary["metrics"].keys() >= {"precision", "recall", "f1", "auroc", "average_precision", "false_alarm_rate"}


def test_the_flags_are_the_frauds_with_spend_as_their_worst_cause(trained: Project) -> None:
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    flags = engine.read_flags("orders", LAST)
    frauds = set(make_rows(LAST).query("fraud == 1")["order_id"])
    assert frauds <= set(flags["record_id"])
    for row in flags.to_dict("records"):
        causes = json.loads(row["causes"])
        assert sum(cause["share"] for cause in causes) == pytest.approx(row["score"], rel=1e-6)
    worst = json.loads(flags.iloc[0]["causes"])[0]
    assert worst["column"] in ("spend", "items")


def test_a_masked_column_appears_in_no_table_report_or_page(trained: Project) -> None:
    home = trained.folder / ".nightjar"
    pages = [*home.glob("reports/**/*.html"), *home.glob("validation/**/*.html"), *home.glob("validation/**/*.json")]
    assert pages
    assert not [page for page in pages if "@example.org" in page.read_text(encoding="utf-8")]
    assert b"@example.org" not in (home / "warehouse.duckdb").read_bytes()


def test_explain_agrees_with_the_published_flag_and_names_versions(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    flag = engine.read_flags("orders", LAST).iloc[0]
    explained = answer(capsys, "explain", "orders", str(flag["record_id"]))
    assert explained["score"] == flag["score"]
    assert explained["percentile_rank"] == flag["percentile_rank"]
    assert sum(cause["share"] for cause in explained["causes"]) == pytest.approx(explained["score"], rel=1e-6)
    assert explained["model_version"] == 1
    assert len(explained["data_hash"]) == len(explained["input_hash"]) == 64


def test_rank_and_explain_agree_on_the_same_record(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    row = make_rows(LAST).iloc[-1]
    values = [text for name in ("items", "spend", "shop") for text in ("--value", f"{name}={row[name]}")]
    found, explained = (
        answer(capsys, "rank", "orders", *values),
        answer(capsys, "explain", "orders", str(row["order_id"])),
    )
    assert found["is_flagged"]
    same = ("score", "percentile_rank", "p_value", "band", "threshold", "model_version")
    assert {key: found[key] for key in same} == {key: explained[key] for key in same}
    assert execute(["rank", "orders", *values]) == 0
    assert capsys.readouterr().out.startswith(f"score {found['score']:.4g}, rank 100, band critical\n")


def test_rank_reports_what_is_wrong_with_a_record(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert "required but missing: shop, spend" in refuse(capsys, "rank", "orders", "--value", "items=1")
    for bad in (["--value", "items"], ["--value", "items=1", "--value", "items=2"]):
        assert execute(["rank", "orders", *bad]) == 2
        assert "--value" in capsys.readouterr().err


def test_groups_are_published_with_the_night_and_shown_in_its_report(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    groupings = [{"by": "shop", "weight": "items", "q": 0.5}, {"by": "hour"}]
    trained.change("params.yaml", "detectors", "orders", "score", value={"groups": groupings})
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    days = (LAST - timedelta(days=1), LAST)
    for day in days:
        answer(capsys, "score", "orders", "--date", str(day))
    first, second = (engine.read_groups("orders", day).set_index("grouping").sort_values("group") for day in days)
    for groups in (first, second):
        assert groups.loc["shop", "group"].tolist() == ["north", "south"]
        assert groups.loc["shop", "records"].sum() == groups.loc["hour", "records"].sum() == ROWS
    assert first["rank"].isna().all() and first["threshold"].isna().all() and not first["flagged"].any()
    shops = first.loc["shop", "score"].tolist()
    assert set(second.loc["shop", "rank"]) <= {0.0, 50.0, 100.0}
    assert second.loc["shop", "threshold"].tolist() == [max(shops)] * 2  # of two, the ceil(3 x 0.5)th
    assert second.loc["shop", "flagged"].tolist() == [score > max(shops) for score in second.loc["shop", "score"]]
    assert second.loc["hour", "threshold"].isna().all()  # the 99th percentile needs 99 groups
    page = (trained.folder / ".nightjar" / "reports" / "orders" / f"{LAST}.html").read_text(encoding="utf-8")
    assert "Groups by shop, worst first" in page and "Groups by hour, worst first" in page


def test_the_groups_of_a_loose_file_are_compared_with_those_of_published_nights(
    trained: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_rows(LAST).to_csv(tmp_path / "loose.csv", index=False)
    loose = ("score", "orders", "--source", str(tmp_path / "loose.csv"), "--groups")
    assert "orders has no groups" in refuse(capsys, *loose)
    trained.change("params.yaml", "detectors", "orders", "score", value={"groups": {"by": "shop", "q": 0.5}})
    days = (LAST - timedelta(days=1), LAST)
    for day in days:
        answer(capsys, "score", "orders", "--date", str(day))
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    past = sorted(score for day in days for score in engine.read_groups("orders", day)["score"])
    night = engine.read_groups("orders", LAST).set_index("group")
    groups = answer(capsys, *loose)["groups"]
    assert [(one["grouping"], one["group"]) for one in groups] == [("shop", "north"), ("shop", "south")]
    for one in groups:
        assert one["score"] == pytest.approx(night["score"][one["group"]]) and one["threshold"] == past[2]
        assert one["flagged"] == (one["score"] > past[2])
    assert execute(list(loose)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "by shop: 2 groups, " in shown and " flagged; worst first" in shown
    assert execute(["score", "orders", "--groups"]) == 2


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"by": "shpo"}, "shpo is not in the contract"),
        ({"by": "customer"}, "customer is masked"),
        ({"by": "hour", "weight": "shop"}, "shop is not a number"),
        ([{"by": "shop"}, {"by": "customer"}], "customer is masked"),
        ([{"by": "shop"}, {"by": "shop"}], "two groupings by shop"),
    ],
)
def test_groups_that_cannot_be_formed_are_refused(
    project: Project, capsys: pytest.CaptureFixture[str], groups: object, expected: str
) -> None:
    project.change("params.yaml", "detectors", "orders", "score", value={"groups": groups})
    assert expected in refuse(capsys, "ingest", "orders")


def test_explain_shows_the_flag_when_its_version_was_deleted(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(trained.folder / ".nightjar/mlflow.db") as connection:
        connection.executescript("delete from registered_model_aliases; delete from model_versions")
    fraud, normal = (make_rows(LAST)["order_id"].iloc[number] for number in (-1, 0))
    message = refuse(capsys, "explain", "orders", fraud)
    for part in ("Version 1 of orders, which scored this record, was deleted.", "rank 100.00, causes: ", "spend"):
        assert part in message
    assert "no flag, so a score of at most" in refuse(capsys, "explain", "orders", normal)


def test_explain_says_when_no_night_scored_the_record(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nobody" in refuse(capsys, "explain", "orders", "nobody")


def test_status_shows_a_night_as_stale_when_a_late_file_lands_and_run_scores_it_again(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    late = make_rows(LAST, 20).assign(order_id=lambda f: "late-" + f["order_id"], fraud=0)
    late.to_csv(trained.orders / "orders-late.csv", index=False)
    assert answer(capsys, "ingest", "orders")["rows"] == 20
    states = {n["batch_date"]: n["state"] for n in answer(capsys, "status", "orders")["nights"]}
    assert states[LAST.isoformat()] == "stale"
    plan = answer(capsys, "backfill", "orders", "--from", str(FIRST), "--to", str(LAST), "--only", "stale", "--dry-run")
    assert plan["dates"] == [LAST.isoformat()]
    summary = answer(capsys, "run", "orders")
    assert summary["nights"][-1]["rows_in"] == ROWS + 20
    assert summary["nights"][-1]["attempt"] == 2
    states = {n["batch_date"]: n["state"] for n in answer(capsys, "status", "orders")["nights"]}
    assert states[LAST.isoformat()] == "fresh"


def test_one_detector_that_fails_does_not_stop_the_night_of_another(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load((trained.folder / "params.yaml").read_text())["detectors"]
    # In this order: one with a misspelt key, the working one, one that is not trained yet.
    both = {"broken": document["orders"] | {"trian": {}}, "orders": document["orders"], "untrained": document["orders"]}
    (trained.folder / "params.yaml").write_text(yaml.safe_dump({"detectors": both}, sort_keys=False))
    for name in ("broken", "untrained"):
        shutil.copy(trained.folder / "contracts/orders.yaml", trained.folder / f"contracts/{name}.yaml")
    assert execute(["score", "--all", "--date", str(LAST), "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    failed, done = json.loads(captured.out)["nights"]
    assert (failed["detector"], failed["flagged"]) == ("broken", None)
    assert "unknown key (did you mean 'train'?)" in failed["cause"]
    assert (done["detector"], done["batch_date"], done["cause"]) == ("orders", str(LAST), "")
    assert published(trained)[-1].attempt == 2
    assert execute(["score", "--all", "--date", str(LAST)]) == 1
    table = capsys.readouterr().out
    assert all(word in table for word in ("broken", "FAILED", "published", "unknown key"))
    assert execute(["score", "orders", "--all"]) == 2
    assert execute(["score"]) == 2


def test_a_second_training_makes_a_challenger_that_can_be_promoted_and_rolled_back(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    trained_again = answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert trained_again["alias"] == "challenger"
    assert "false alarms are expected in a night of" in trained_again["threshold"]
    again = answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert (again["version"], again["is_new"]) == (2, False)
    assert answer(capsys, "promote", "orders") == {"detector": "orders", "champion": 2, "before": 1, "note": ""}
    assert answer(capsys, "status", "orders")["nights"][-1]["state"] == "stale"
    assert answer(capsys, "rollback", "orders") == {"detector": "orders", "champion": 1, "before": 2, "note": ""}
    assert "challenger" in refuse(capsys, "promote", "orders")
    assert "nothing to go back to" in refuse(capsys, "rollback", "orders")


def test_a_champion_that_learnt_from_published_nights_does_not_change_them(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = published(trained)
    assert answer(capsys, "train", "orders", "--cutoff", str(LAST + timedelta(days=2)))["version"] == 2
    answer(capsys, "promote", "orders")
    assert answer(capsys, "run", "orders")["version"] == 2
    assert published(trained) == before


def test_run_does_not_score_a_batch_that_is_not_complete(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained.write_day(date(2199, 1, 1))
    assert answer(capsys, "run", "orders")["nights"][-1]["batch_date"] == LAST.isoformat()


def test_doctor_passes_and_names_what_is_broken(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(check["ok"] for check in answer(capsys, "doctor", "orders")["checks"])
    for path in trained.orders.iterdir():
        path.unlink()
    assert execute(["doctor", "orders", "--json"]) == 1
    checks = {check["check"]: check["ok"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["source"] is False
    assert checks["champion"] is True


def test_doctor_names_other_broken_detectors_and_passes(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained.change("params.yaml", "detectors", "other", value={"trian": {}})
    *needed, other = answer(capsys, "doctor", "orders")["checks"]
    assert all(check["ok"] and check["needed"] for check in needed)
    assert (other["check"], other["ok"], other["needed"]) == ("detector other", False, False)
    assert "trian" in other["detail"]


def test_a_night_publishes_to_postgresql_given_only_a_url(
    trained: Project, postgres_warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_WAREHOUSE", postgres_warehouse_url)
    night = answer(capsys, "score", "orders", "--date", str(LAST))
    flags = Warehouse(postgres_warehouse_url).read_flags("orders", LAST)
    assert len(flags) == night["flagged"] > 0


# --- the second stage ---


def test_verdicts_make_a_second_stage_that_suppresses_flags_of_later_nights(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"min_verdicts": 10, "min_confirmed": 5, "max_recall_loss": 0.5}
    review = {"sample": 10, "reducer": {"kind": "forest", "trees": 20}, "limits": limits}
    trained.change("params.yaml", "detectors", "orders", "review", value=review)
    assert "has no verdicts that it can learn from" in refuse(capsys, "reduce", "orders")

    assert execute(["review", "orders", "--date", str(LAST)]) == 0
    asked = tmp_path / "asked.csv"
    asked.write_text(capsys.readouterr().out)
    questions = pd.read_csv(asked)
    frauds = {record for offset in range(DAYS) for record in make_rows(FIRST + timedelta(days=offset))["order_id"][-3:]}
    verdicts = questions["record_id"].isin(frauds).map({True: "anomaly", False: "normal"})
    questions.assign(verdict=verdicts).to_csv(asked, index=False)
    taken = answer(capsys, "review", "orders", "--take", str(asked), "--by", "ada")
    assert taken["new"] == len(questions)
    assert taken["given"] == {"anomaly": 3, "normal": len(questions) - 3, "withdrawn": 0}
    assert "are missing" in refuse(capsys, "reduce", "orders")
    assert answer(capsys, "review", "orders", "--from-labels")["given"]["anomaly"] == 6

    reduced = answer(capsys, "reduce", "orders")
    assert reduced["registered"] == {"version": 2, "alias": "challenger", "is_new": True}
    assert reduced["gain"]["confirmed"] == 6
    assert reduced["alerts_per_night"] <= reduced["flags_per_night"]
    answer(capsys, "promote", "orders")
    new = LAST + timedelta(days=1)
    trained.write_day(new)
    assert answer(capsys, "score", "orders", "--date", str(new))["model_version"] == 2
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    flags = engine.read_flags("orders", new)
    assert flags["second_stage_probability"].between(0, 1).all()
    suppressed = int(flags["suppressed"].sum())
    page = (trained.folder / ".nightjar" / "reports" / "orders" / f"{new}.html").read_text()
    assert f"<b>{suppressed}</b><span>suppressed</span>" in page
    assert f'<b class="alarm">{len(flags) - suppressed}</b><span>alerts</span>' in page
    assert "was trained on" in refuse(capsys, "score", "orders", "--date", str(LAST))


def test_explain_rank_and_score_source_show_a_suppressed_flag(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, new = load_setup("orders").site, LAST + timedelta(days=1)
    fraud = f"{new:%m%d}-{ROWS - 1:04d}"
    add_reducer(Detector.load(site.registry.fetch_bundle(site.registry.get_champion())), cut=1.1).save(tmp_path / "new")
    site.registry.set_alias(registry.CHAMPION, register_bundle(site, tmp_path / "new", None).version)
    path = trained.write_day(new)
    answer(capsys, "score", "orders", "--date", str(new))
    row = make_rows(new).set_index("order_id").loc[fraud]
    values = [f"--value={name}={row[name]}" for name in ("items", "spend", "shop")]
    explain, rank = ("explain", "orders", fraud), ("rank", "orders", *values)
    loose = ("score", "orders", "--source", str(path), "--limit", "1")
    explained, ranked, file = (answer(capsys, *command) for command in (explain, rank, loose))
    assert file["suppressed"] == file["flagged"] > 0
    [record] = file["records"]
    for one in (explained, ranked, record):
        assert one["is_flagged"] and one["is_suppressed"] and 0 < one["second_stage_probability"] < 1
    for command in (explain, rank):
        assert execute(list(command)) == 0
        shown = capsys.readouterr().out
        assert "flagged, suppressed by the second stage;" in shown
        assert f"second-stage probability {explained['second_stage_probability']:.2g}\n" in shown
    assert execute(list(loose)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{file['flagged']} of them flagged ({file['flagged']} suppressed by the second stage); 0 bad," in shown


# --- bad input ---


def test_an_unknown_detector_is_refused_with_the_nearest_name(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean orders?" in refuse(capsys, "status", "order")


def test_a_misspelt_params_key_is_refused_with_file_and_key(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.change("params.yaml", "detectors", "orders", "train", "fit", "epoch", value=3)
    message = refuse(capsys, "run", "orders")
    assert "params.yaml" in message
    assert "detectors.orders.train.fit.epoch: unknown key (did you mean 'epochs'?)" in message


def test_a_value_out_of_range_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.change(
        "params.yaml", "detectors", "orders", "calibrate", value={"threshold": {"kind": "quantile", "q": 1.5}}
    )
    assert "less than 1, got 1.5" in refuse(capsys, "run", "orders")


def test_a_detector_may_read_neither_the_label_nor_masked_nor_unknown_columns(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"numeric": ["items", "fraud", "spent"], "categorical": ["customer"]}
    project.change("params.yaml", "detectors", "orders", "train", "columns", value=columns)
    message = refuse(capsys, "run", "orders")
    for problem in (
        "fraud is the label",
        "spent is neither in the contract nor in enrich.columns",
        "customer is masked",
    ):
        assert problem in message


def test_a_bad_setting_is_refused_with_the_name_of_its_variable(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_DEVICE", "abacus")
    assert "NIGHTJAR_DEVICE" in refuse(capsys, "status", "orders")


def test_a_missing_source_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for path in project.orders.iterdir():
        path.unlink()
    assert "NIGHTJAR_SOURCES" in refuse(capsys, "ingest", "orders")
    assert partitions(project, "landing") == []


@pytest.mark.parametrize(
    "content", [b"", b"order_id,placed_at,items\n", b"order_id,placed_at,items,spend,shop,customer,fraud\n1,2026-"]
)
def test_an_empty_or_truncated_file_is_named_and_the_others_land(
    project: Project, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (project.orders / "orders-0000.csv").write_bytes(content)
    assert "orders-0000.csv" in refuse(capsys, "ingest", "orders")
    assert len(partitions(project, "landing")) == DAYS


def test_a_damaged_file_of_the_past_stops_neither_the_first_training_nor_the_nights(
    prefect_server: None, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.orders / "orders-0000.csv").write_bytes(gzip.compress(make_rows(FIRST).to_csv().encode())[:500])
    assert execute(["run", "orders"]) == 1
    shown = capsys.readouterr()
    assert "orders-0000.csv" in shown.err
    assert "unexpected" not in shown.err
    assert "it has not learnt from what did not land" in shown.err + shown.out
    assert published(project)


def test_a_file_without_the_needed_columns_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_day(FIRST, make_rows(FIRST).drop(columns="placed_at"))
    assert "lacks placed_at" in refuse(capsys, "ingest", "orders")


def test_scoring_before_any_champion_is_refused(
    prefect_server: None, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refuse(capsys, "score", "orders", "--date", str(LAST))
    assert "no champion" in message
    assert "nightjar train orders" in message
    assert partitions(project, "scores") == []
    status = answer(capsys, "status", "orders")
    assert {n["batch_date"]: n["state"] for n in status["nights"]}[LAST.isoformat()] == "failed"


def test_a_date_without_rows_is_refused(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no landing rows for 2026-05-01" in refuse(capsys, "score", "orders", "--date", "2026-05-01")


def test_a_day_the_champion_was_trained_on_is_not_scored(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert "was trained on" in refuse(capsys, "score", "orders", "--date", str(FIRST))


def test_a_bad_batch_is_rejected_and_does_not_change_the_published_night(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = published(trained)
    bad = make_rows(LAST).assign(spend="many", order_id=lambda f: "bad-" + f["order_id"])
    bad.to_csv(trained.orders / "orders-bad.csv", index=False)
    message = refuse(capsys, "score", "orders", "--date", str(LAST))
    assert "max_quarantined_fraction" in message
    assert published(trained) == before


def test_one_rejected_night_does_not_stop_the_others_but_the_run_fails(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    new = LAST + timedelta(days=1)
    project_days = [new, new + timedelta(days=1)]
    trained.write_day(project_days[0], make_rows(project_days[0]).drop(columns="spend"))
    trained.write_day(project_days[1])
    assert answer(capsys, "ingest", "orders")["arrivals"] == 2
    message = refuse(capsys, "backfill", "orders", "--from", str(project_days[0]), "--to", str(project_days[1]))
    assert "1 of 2 nights" in message
    assert "columns missing: spend" in message
    assert [b.batch_date for b in published(trained)][-1] == project_days[1]


def test_an_altered_bundle_is_refused_before_anything_is_scored(
    trained: Project, trained_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [weights] = (trained.folder / ".nightjar" / "bundles").glob("orders/version-1-*/weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    before = published(trained)
    assert "weights.safetensors" in refuse(capsys, "score", "orders", "--date", str(LAST))
    assert published(trained) == before


def test_too_few_calibration_rows_say_how_many_are_missing(
    prefect_server: None, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.change(
        "params.yaml", "detectors", "orders", "calibrate", value={"threshold": {"kind": "quantile", "q": 0.9999}}
    )
    message = refuse(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    assert "9,999" in message or "9999" in message
    assert answer(capsys, "status", "orders")["champion"] is None


def test_an_unreachable_warehouse_is_refused_without_its_password(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_WAREHOUSE", "postgresql+psycopg://user:secret@127.0.0.1:9/none")
    message = refuse(capsys, "ingest", "orders")
    assert "warehouse" in message
    assert "secret" not in message


def test_an_mlflow_that_cannot_be_reached_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_MLFLOW", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = refuse(capsys, "status", "orders")
    assert "MLflow does not answer" in message
    assert "secret" not in message


# --- the command as a separate process ---


def test_help_answers_without_the_heavy_imports() -> None:
    heavy = "{'torch', 'prefect', 'mlflow', 'pandas', 'duckdb'}"
    show = f"print(sorted({heavy} & set(sys.modules)))"
    code = f"import sys; from flows.cli.main import execute; execute(['--help']); {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "backfill" in done.stdout


def test_a_command_searches_for_garbage_less_often_than_python_would() -> None:
    show = "atexit.register(lambda: print(gc.get_threshold()[0]))"
    code = f"import atexit, gc; from flows.cli.main import main; {show}; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["50000"]


@pytest.mark.parametrize("arguments", [["status", "orders"], ["status"], ["metrics"], ["review", "orders"]])
def test_verbs_that_only_look_do_without_the_heavy_libraries(trained: Project, arguments: list[str]) -> None:
    heavy = "{'torch', 'mlflow', 'prefect', 'great_expectations'}"
    show = f"print(code, sorted({heavy} & set(sys.modules)))"
    code = f"import sys; from flows.cli.main import execute; code = execute({arguments!r}); {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("0 []"), done.stdout + done.stderr


def test_only_json_goes_to_stdout_and_everything_else_to_stderr(trained: Project) -> None:
    command = [str(Path(sys.executable).parent / "nightjar"), "status", "orders", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout)["champion"] == 1
    assert "leaked" not in done.stderr


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["nightjar", metadata.version("nightjar")]


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run"]) == 2
    assert execute(["backfill", "orders", "--from", "2026-01-01", "--to", "2026-01-02", "--only", "some"]) == 2
    capsys.readouterr()


def test_debug_shows_the_traceback(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["status", "order", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_quarantined_rows_are_counted_and_kept_with_their_reason(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    new = LAST + timedelta(days=1)
    rows = make_rows(new)
    rows.loc[0, "spend"], rows.loc[1, "spend"], rows.loc[2, "shop"] = float("nan"), float("inf"), "west"
    twice = pd.concat([rows, rows.iloc[[5]], rows.iloc[[6]].assign(spend=1.0)], ignore_index=True)
    trained.write_day(new, twice)
    night = answer(capsys, "score", "orders", "--date", str(new))
    assert (night["rows_in"], night["quarantined"], night["excluded"]) == (ROWS + 2, 4, 1)
    assert night["unseen"] == 1
    lake = Lake(str(trained.folder / ".nightjar" / "lake"))
    reasons = lake.query("select quarantine_reason from parts", lake.get("quarantine", "orders", new).parts)
    assert len(set(reasons["quarantine_reason"].to_pylist())) == 3


def test_the_registered_version_serves_the_published_score(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    flag = engine.read_flags("orders", LAST).iloc[0]
    row = make_rows(LAST).set_index("order_id").loc[[flag["record_id"]]]
    mlflow.set_tracking_uri(f"sqlite:///{trained.folder}/.nightjar/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/nightjar-orders@champion")
    served = model.predict(row.astype({"items": float}))
    assert served["score"].iloc[0] == flag["score"]
    assert served["percentile_rank"].iloc[0] == flag["percentile_rank"]
    assert bool(served["is_flagged"].iloc[0])


# --- a second project from scratch ---


def test_the_same_data_params_and_seed_give_the_same_bundle_and_the_same_flags_in_another_home(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look() -> tuple[str, list[object]]:
        site = load_setup("orders").site
        engine = site.warehouse
        dates = [batch.batch_date for batch in engine.read_nights("orders")]
        assert len(dates) == 2
        learnt = ["record_id", "score", "percentile_rank", "p_value", "threshold", "causes"]
        flags = pd.concat([engine.read_flags("orders", day)[learnt] for day in dates])
        return site.registry.get_champion().tags["bundle_hash"], flags.to_numpy().tolist()

    first = look()
    again = make_project(tmp_path / "again")
    point_to(monkeypatch, again.folder)
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "another-home"))
    answer(capsys, "run", "orders")
    assert look() == first
