"""Late, corrected and repaired data, and nights that are scored again, from the command line."""

import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from toy import CUTOFF, DAYS, FIRST, ROWS, Project, make_rows

from flows.cli.main import execute
from flows.config.setup import load_setup
from tasks.errors import ChampionMissing, Failure
from tasks.stores.lake import Lake, Zone
from tasks.stores.tables import case_flags, flagged_anomalies, scoring_batches
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)
TICK = timedelta(microseconds=1)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """Run a command with --json and return the one document it prints."""
    assert execute([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one readable message; return the message."""
    assert execute(list(arguments)) == 1
    return capsys.readouterr().err


def read_states(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    return {n["batch_date"]: (n["state"], n["why"]) for n in answer(capsys, "status", "orders")["nights"]}


def published(project: Project) -> dict[date, Any]:
    engine = Warehouse(f"duckdb:///{project.folder}/.nightjar/warehouse.duckdb")
    return {batch.batch_date: batch for batch in engine.read_nights("orders")}


def test_status_shows_dates_that_never_landed_and_how_far_behind_the_source_is(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.write_day(LAST + timedelta(days=3))
    answer(capsys, "ingest", "orders")
    states = read_states(capsys)
    assert [states[str(LAST + timedelta(days=n))] for n in range(4)] == [
        ("fresh", ""),
        ("missing", "nothing has landed"),
        ("missing", "nothing has landed"),
        ("missing", "never scored"),
    ]
    yesterday = load_setup("orders").yesterday(datetime.now(UTC))
    assert answer(capsys, "status", "orders")["days_behind"] == (yesterday - LAST).days - 3
    plan = answer(
        capsys, "backfill", "orders", "--from", str(NEW), "--to", "2026-12-31", "--only", "missing", "--dry-run"
    )
    assert plan["dates"] == [str(LAST + timedelta(days=3))]
    assert plan["not_landed"] == [str(NEW), str(NEW + timedelta(days=1))]
    trained.change("params.yaml", "detectors", "orders", "run", "last_date", value=str(LAST))
    assert answer(capsys, "status", "orders")["days_behind"] is None


def test_the_backfill_form_scores_missing_and_failed_nights_and_leaves_the_published_ones(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.backfill import backfill_range

    for day in (NEW, NEW + timedelta(days=1)):
        trained.write_day(day)
    answer(capsys, "ingest", "orders")
    warehouse, now = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb"), datetime.now(UTC)
    killed = warehouse.begin_attempt("orders", NEW, "score", now)
    warehouse.fail_attempt("orders", NEW, killed, Failure("ProcessLost", {"what": "killed"}), now)
    before = published(trained)
    backfill_range("orders", min(before), NEW + timedelta(days=1))
    after = published(trained)
    assert {day: after[day].attempt for day in before} == {day: night.attempt for day, night in before.items()}
    assert {day: night.attempt for day, night in after.items() if day not in before} == {
        NEW: 2,
        NEW + timedelta(days=1): 1,
    }


def test_a_night_that_nobody_has_labelled_yet_is_scored(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    label = {"type": "int", "required": False, "nullable": True}
    trained.change("contracts/orders.yaml", "columns", "fraud", value=label)
    trained.write_day(NEW, make_rows(NEW).drop(columns="fraud"))
    done = answer(capsys, "ingest", "orders")
    assert (done["rows"], done["labels"]) == (ROWS, 0)
    assert "lack the label column fraud" in done["notes"][0]
    assert answer(capsys, "score", "orders", "--date", str(NEW))["scored"] == ROWS


def test_a_correction_of_the_params_is_shown_and_retraining_makes_it_take_effect(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "status", "orders")["outdated"] == ""
    assert answer(capsys, "run", "orders")["notes"] == []
    trained.change(
        "params.yaml", "detectors", "orders", "calibrate", value={"threshold": {"kind": "quantile", "q": 0.98}}
    )
    expected = "the threshold policy changed after version 1 was trained: nightjar run orders --retrain"
    assert answer(capsys, "status", "orders")["outdated"] == expected
    assert answer(capsys, "run", "orders")["notes"] == [expected]
    assert execute(["score", "orders", "--date", str(LAST)]) == 0
    assert expected in capsys.readouterr().out
    before = published(trained)[LAST].threshold
    again = answer(capsys, "run", "orders", "--retrain")
    assert (again["version"], again["notes"]) == (2, [])
    assert {night["model_version"] for night in again["nights"]} == {2}
    assert published(trained)[LAST].threshold < before
    assert answer(capsys, "status", "orders")["outdated"] == ""


@pytest.mark.parametrize(
    ("steps", "value", "named"),
    [
        (("params.yaml", "detectors", "orders", "time_zone"), "UTC", "the params (time zone"),
        (
            ("params.yaml", "detectors", "orders", "ingest", "labels"),
            {"column": "fraud", "normal": ["0"]},
            "the params",
        ),
        (("contracts/orders.yaml", "columns", "items", "nullable"), True, "the contract changed"),
    ],
)
def test_what_changed_since_the_training_is_named(
    trained: Project, capsys: pytest.CaptureFixture[str], steps: tuple[str, ...], value: object, named: str
) -> None:
    trained.change(*steps, value=value)
    assert answer(capsys, "status", "orders")["outdated"].startswith(named)


def test_a_contract_with_another_type_than_was_learnt_scores_nothing(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("contracts/orders.yaml", "columns", "items", "type", value="bool")
    for command in (
        ("score", "orders", "--date", str(LAST)),
        ("score", "orders", "--source", str(trained.folder / "sources")),
        ("rank", "orders", "--value", "spend=3", "--value", "items=2", "--value", "shop=north"),
    ):
        message = refuse(capsys, *command)
        assert "error: ParamsInvalid: The type of items has changed after version 1" in message, command
        assert "items: int, as learnt" in message


def test_a_night_with_most_rows_flagged_says_so_first(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained.write_day(NEW, make_rows(NEW).assign(spend=lambda frame: frame["spend"] * 7))
    answer(capsys, "ingest", "orders")
    assert execute(["score", "orders", "--date", str(NEW)]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("note       100.0% of the rows are flagged, where normal rows are at most")
    assert read_states(capsys)[str(NEW)][0] == "fresh"
    assert read_states(capsys)[str(NEW)][1].startswith("100.0% of the rows are flagged")
    report = (trained.folder / f".nightjar/reports/orders/{NEW}.html").read_text()
    assert "100.0% of the rows are flagged" in report
    assert "of their scores come from spend (usually " in report
    assert "of their scores come from spend (usually " in first


def test_status_shows_one_line_per_detector_and_fails_if_one_is_broken(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.write_day(NEW)
    answer(capsys, "ingest", "orders")
    [line] = answer(capsys, "status")["detectors"]
    assert (line["champion"], line["newest_night"], line["error"]) == (1, str(LAST), None)
    assert {state: line[state] for state in ("fresh", "stale", "failed", "missing", "early")} == {
        "fresh": 2,
        "stale": 0,
        "failed": 0,
        "missing": 1,  # NEW
        "early": 1,  # the day before the two that `run` covers
    }
    assert execute(["status"]) == 0
    assert "orders" in capsys.readouterr().out
    assert execute(["status", "--check"]) == 0
    warehouse, now = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb"), datetime.now(UTC)
    attempt = warehouse.begin_attempt("orders", NEW, "score", now)
    warehouse.fail_attempt("orders", NEW, attempt, Failure("ProcessLost", {"what": "killed"}), now)
    for command in (["status"], ["status", "orders"]):
        assert [execute([*command, *check]) for check in ([], ["--check"], ["--check", "--json"])] == [0, 1, 1]
    capsys.readouterr()
    params = trained.folder / "params.yaml"  # a second detector, without a contract
    params.write_text(params.read_text() + params.read_text().partition("\n")[2].replace("  orders:", "  returns:", 1))
    first, second = answer(capsys, "status", code=1)["detectors"]
    assert (first["fresh"], first["error"]) == (2, None)
    assert "returns.yaml" in second["error"]


def test_a_corrected_file_whose_rows_moved_leaves_a_stale_night_that_can_be_published_empty(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.write_day(LAST, make_rows(LAST).assign(placed_at=make_rows(NEW)["placed_at"]))
    answer(capsys, "ingest", "orders")
    assert read_states(capsys)[str(LAST)] == ("stale", "its input has changed")
    assert "rows column values to be between" in refuse(capsys, "score", "orders", "--date", str(LAST))
    assert published(trained)[LAST].rows_in == ROWS
    state, why = read_states(capsys)[str(LAST)]
    assert state == "stale"
    assert why.startswith("its input has changed; the newest attempt failed: ")
    trained.change("contracts/orders.yaml", "expectations", value=[])
    night = answer(capsys, "score", "orders", "--date", str(LAST))
    assert (night["rows_in"], night["scored"], night["flagged"]) == (0, 0, 0)
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    assert engine.read_flags("orders", LAST).empty
    assert read_states(capsys)[str(LAST)][0] == "fresh"


def test_backfill_as_of_scores_each_night_with_the_champion_of_that_date(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "train", "fit", "seed", value=2)
    answer(capsys, "train", "orders", "--cutoff", str(CUTOFF))
    answer(capsys, "promote", "orders")
    site = load_setup("orders").site
    assert [version for _, version in site.registry.read_champions()] == [1, 2]
    span = ("--from", str(LAST - timedelta(days=1)), "--to", str(LAST), "--as-of")
    message = refuse(capsys, "backfill", "orders", *span)
    assert f"got: {LAST - timedelta(days=1)}, {LAST}" in message
    moved = [
        (datetime(2026, 3, 1, tzinfo=UTC), 1),
        (datetime.combine(LAST, datetime.min.time(), UTC) + timedelta(hours=6), 2),
    ]
    site.registry.record_champions(moved)
    plan = answer(capsys, "backfill", "orders", *span, "--only", "stale", "--dry-run")
    assert plan["nights"] == [
        {"batch_date": str(LAST), "state": "stale", "why": "scored by version 1 instead of 2", "version": 2}
    ]
    assert execute(["backfill", "orders", *span, "--only", "stale", "--dry-run"]) == 0
    assert "scored by version 1 instead of 2" in capsys.readouterr().out
    answer(capsys, "promote", "orders", "1")
    answer(capsys, "backfill", "orders", *span)
    assert [batch.model_version for batch in published(trained).values()] == [1, 2]
    assert answer(capsys, "status", "orders")["champion"] == 1
    with pytest.raises(ChampionMissing, match="no version 9"):
        site.registry.get_version(9)


def test_status_and_backfill_agree_on_the_due_nights_after_a_promotion(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "label_delay_days", value=0)
    answer(capsys, "train", "orders", "--cutoff", str(LAST))
    answer(capsys, "promote", "orders")
    span = ("--from", str(FIRST), "--to", str(LAST))
    plan = answer(capsys, "backfill", "orders", *span, "--dry-run")
    assert [night["batch_date"] for night in plan["nights"]] == list(read_states(capsys)) == [str(LAST)]
    assert plan["learnt"] == [str(FIRST + timedelta(days=n)) for n in range(DAYS - 1)]
    assert execute(["backfill", "orders", *span]) == 0
    learnt = f"the champion has learnt from {FIRST} to {LAST - timedelta(days=1)}, so it does not score them"
    assert learnt in capsys.readouterr().out
    assert read_states(capsys)[str(LAST)] == ("fresh", "")


def test_repaired_rows_are_replayed_into_their_night(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(NEW).astype({"spend": object})
    rows.loc[[0, 7, 9], "spend"] = ["1,50", "free", None]
    trained.write_day(NEW, rows)
    assert answer(capsys, "score", "orders", "--date", str(NEW))["quarantined"] == 3
    assert execute(["replay", "orders", "--date", str(NEW)]) == 0
    text = capsys.readouterr().out
    assert "@example.org" not in text
    bad = pd.read_csv(io.StringIO(text), dtype=str)
    assert bad["record_id"].tolist() == rows.loc[[0, 7, 9], "order_id"].tolist()
    path = tmp_path / "bad.csv"
    bad.assign(spend=["1.50", "10.5", "none"]).to_csv(path, index=False)
    done = answer(capsys, "replay", "orders", "--date", str(NEW), "--take", str(path))
    night = published(trained)[NEW]
    assert done["night"]["attempt"] == night.attempt == 2
    assert (night.rows_in, night.scored, night.quarantined, night.excluded) == (ROWS + 3, ROWS - 1, 1, 3)
    again = answer(capsys, "replay", "orders", "--date", str(NEW), "--take", str(path))
    assert (again["taken"]["is_new"], again["night"]) == (False, None)
    assert published(trained)[NEW] == night
    assert read_states(capsys)[str(NEW)] == ("fresh", "")
    [left] = answer(capsys, "replay", "orders", "--date", str(NEW))["rows"]
    assert (left["record_id"], left["spend"]) == (rows.loc[9, "order_id"], "none")
    checks = answer(capsys, "verify", "orders", "--date", str(NEW))[
        "checks"
    ]  # replaced rows do not count as differences
    assert {check["result"] for check in checks} == {"ok"}
    bad.assign(record_id="nobody").to_csv(path, index=False)
    assert "nobody" in refuse(capsys, "replay", "orders", "--date", str(NEW), "--take", str(path))


def test_no_row_is_lost_or_duplicated_on_a_day_of_25_hours_or_a_leap_day(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    site = load_setup("orders").site
    days = [date(2026, 10, 25), date(2026, 10, 26), date(2028, 2, 29), date(2028, 3, 1)]
    frames = []
    for day in days:  # one row every seven minutes of the local day, from its first to its last microsecond
        start, end = (site.start_of(d).astimezone(UTC) for d in (day, day + timedelta(days=1)))
        times = pd.date_range(start, end, freq="7min", inclusive="left").append(pd.DatetimeIndex([end - TICK]))
        frames.append(make_rows(day, len(times)).assign(placed_at=times.strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
    for place in (0, 2):  # a leap day is still to come: a file of nothing but future dates lands as it is
        trained.write_day(days[place], pd.concat(frames[place : place + 2]))
    ingested = answer(capsys, "ingest", "orders")
    assert (ingested["dates"], ingested["rows"]) == ([str(day) for day in days], sum(map(len, frames)))
    states = read_states(capsys)
    assert [states[str(day)][0] for day in days] == ["missing"] * 4
    answer(capsys, "backfill", "orders", "--from", str(days[0]), "--to", str(days[-1]))
    nights = published(trained)
    assert [nights[day].scored for day in days] == [len(frame) for frame in frames]
    assert len(frames[0]) > len(frames[1]) == len(frames[2])
    assert [read_states(capsys)[str(day)][0] for day in days] == ["fresh"] * 4


def verify(capsys: pytest.CaptureFixture[str], code: int = 0, *arguments: str) -> dict[str, tuple[str, str]]:
    """The checks of LAST, by name: result and detail."""
    found = answer(capsys, "verify", "orders", "--date", str(LAST), *arguments, code=code)
    return {check["check"]: (check["result"], check["detail"]) for check in found["checks"]}


def change_table(project: Project, table: sa.Table, **values: object) -> None:
    """Alter rows of LAST directly in the database: the worst flag, or the batch's counts."""
    engine = Warehouse(f"duckdb:///{project.folder}/.nightjar/warehouse.duckdb")
    of_night = table.c.batch_date == LAST
    with engine.begin() as connection:
        if table is flagged_anomalies:
            worst = sa.select(sa.func.max(table.c.score)).where(of_night).scalar_subquery()
            of_night &= table.c.score == worst
        connection.execute(sa.update(table).where(of_night).values(values))


def rewrite_part(project: Project, path: str, column: str, change: Callable[[Any], Any], row: int = -1) -> None:
    """Rewrite a part's file with one value changed; its manifest still describes the old bytes."""
    file = project.folder / ".nightjar" / "lake" / path
    frame = pd.read_parquet(file)
    frame.loc[frame.index[row], column] = change(frame[column].iloc[row])
    frame.to_parquet(file, index=False)


def test_a_published_night_verifies_and_each_alteration_is_found(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = verify(capsys)
    assert {name: result for name, (result, _) in sound.items()} == dict.fromkeys(
        ("input", "files", "counts", "flags", "scores", "cases"), "ok"
    )
    assert sound["scores"][1] == f"{ROWS} rows from landing by version 1, largest relative difference 0"
    assert execute(["verify", "orders"]) == 0
    assert capsys.readouterr().out.count(" ok ") == 12

    flag = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb").read_flags("orders", LAST).iloc[0]
    for altered, fine, expected in (
        ({"score": float(flag["score"]) * 1.001}, {"score": float(flag["score"])}, "a score that differs"),
        ({"p_value": 0.5}, {"p_value": float(flag["p_value"])}, "different p-value"),
        ({"record_id": "nobody"}, {"record_id": flag["record_id"]}, "nobody not above the threshold"),
    ):
        change_table(trained, flagged_anomalies, **altered)
        found = verify(capsys, 1)
        assert any(result == "failed" and expected in detail for result, detail in found.values()), found
        change_table(trained, flagged_anomalies, **fine)
    change_table(trained, scoring_batches, scored=ROWS + 1)
    assert verify(capsys, 1)["counts"][0] == "failed"
    change_table(trained, scoring_batches, scored=ROWS)
    assert verify(capsys)["counts"][0] == "ok"
    with Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb").begin() as connection:
        connection.execute(sa.delete(case_flags).where(case_flags.c.record_id == flag["record_id"]))
    assert verify(capsys, 1)["cases"] == ("failed", f"{flag['record_id']} in no case")


@pytest.mark.parametrize(
    ("zone", "column", "failing"),
    [("scores", "score", {"files", "flags", "scores"}), ("landing", "spend", {"files", "scores"})],
)
def test_an_altered_part_is_found_by_its_bytes_and_by_its_scores(
    trained: Project, capsys: pytest.CaptureFixture[str], zone: Zone, column: str, failing: set[str]
) -> None:
    lake = Lake(str(trained.folder / ".nightjar" / "lake"))
    inputs = published(trained)[LAST].scores if zone == "scores" else None
    [part] = lake.get(zone, "orders", LAST, inputs).parts
    rewrite_part(trained, part.path, column, lambda value: value * 1.01 if zone == "scores" else "1.5")
    found = verify(capsys, 1)
    assert {name for name, (result, _) in found.items() if result == "failed"} == failing
    assert part.path in found["files"][1]


def test_scores_far_below_the_threshold_may_differ_by_rounding(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    night = published(trained)[LAST]
    [part] = Lake(str(trained.folder / ".nightjar" / "lake")).get("scores", "orders", LAST, night.scores).parts
    scores = pd.read_parquet(trained.folder / ".nightjar" / "lake" / part.path)["score"]
    row = int(scores.argmin())
    assert scores.iloc[row] < night.threshold / 4
    for change, result in ((5e-6, "ok"), (1e-5, "failed")):  # in total 5e-6, then 1.5e-5 of the threshold
        rewrite_part(trained, part.path, "score", lambda score, by=change * night.threshold: score + by, row)
        assert verify(capsys, 1)["scores"][0] == result


def test_verify_reports_a_changed_input_as_stale_and_names_a_missing_part(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    make_rows(LAST).iloc[:5].assign(order_id=lambda f: "late-" + f["order_id"]).to_csv(
        trained.orders / "late.csv", index=False
    )
    answer(capsys, "ingest", "orders")
    found = verify(capsys)
    assert {name: found[name][0] for name in ("input", "files", "counts", "flags", "scores")} == {
        "input": "stale",
        "files": "ok",
        "counts": "ok",
        "flags": "ok",
        "scores": "stale",
    }
    lake = Lake(str(trained.folder / ".nightjar" / "lake"))
    [part] = lake.get("validated", "orders", LAST).parts
    (trained.folder / ".nightjar" / "lake" / part.path).unlink()
    assert verify(capsys, 1)["files"] == ("failed", f"{part.path}: missing")
    assert "no published night for 2026-01-01" in refuse(capsys, "verify", "orders", "--date", "2026-01-01")


def test_a_night_on_postgresql_verifies_to_the_last_bit(
    trained: Project, postgres_warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_WAREHOUSE", postgres_warehouse_url)
    answer(capsys, "score", "orders", "--date", str(LAST))
    assert {result for result, _ in verify(capsys).values()} == {"ok"}


def test_data_removed_by_retention_is_reported_as_pruned_not_lost(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "retention", value={"landing_days": 1, "scores_days": 1})
    assert execute(["prune", "orders"]) == 0
    capsys.readouterr()
    found = verify(capsys)
    assert {name: result for name, (result, _) in found.items()} == {
        "input": "stale",
        "files": "ok",
        "counts": "ok",
        "flags": "stale",
        "scores": "stale",
        "cases": "ok",
    }
    assert found["files"][1].endswith("pruned: landing, scores")
    assert read_states(capsys)[str(LAST)] == ("fresh", "")
    span = ("--from", str(LAST), "--to", str(LAST))
    assert answer(capsys, "backfill", "orders", *span, "--dry-run")["not_landed"] == []
    trained.change("params.yaml", "detectors", "orders", "retention", value={})
    assert verify(capsys, 1)["files"][1].startswith("the landing partition is missing")


def test_only_the_lowest_flags_of_a_capped_night_may_be_missing(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.change("params.yaml", "detectors", "orders", "score", value={"max_alerts": 3})
    flagged = answer(capsys, "score", "orders", "--date", str(LAST))["flagged"]
    assert verify(capsys)["flags"] == (
        "ok",
        f"3 flags, their scores as in the scores zone, {flagged - 3} left out by the cap",
    )
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    worst = engine.read_flags("orders", LAST)["record_id"].iloc[0]
    with engine.begin() as connection:
        connection.execute(sa.delete(flagged_anomalies).where(flagged_anomalies.c.record_id == worst))
    change_table(trained, scoring_batches, published=2)
    assert verify(capsys, 1)["flags"] == ("failed", f"{worst} above the threshold but not in the table")
    assert len(verify(capsys, 1, "--sample", "2")["scores"][1].split("2 rows from landing")) == 2
