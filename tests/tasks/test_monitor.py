import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from steps import TrainingSteps, load, migrate
from tiny import make_tiny_detector
from toy import CUTOFF, FIRST, Project, make_project, make_rows

from flows.config.setup import Setup
from models.calibration import expect_false_alarms
from models.detector import Detector
from tasks.ingest import ingest_arrivals
from tasks.monitor import Watch, draw_rows, measure_categories, measure_flags, monitor_night, summarise_finding
from tasks.on_demand.findings import describe_finding, read_watched
from tasks.publish import Begun, publish_scored
from tasks.rows.params import MonitorParams
from tasks.rows.record import RecordRule
from tasks.score import score_night
from tasks.stores.lake import Lake
from tasks.stores.tables import Drift, Finding
from tasks.validate import validate_batches

DAY = CUTOFF


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained project without a published night; tests use copies."""
    folder = tmp_path_factory.mktemp("learnt")
    make_project(folder)
    setup = load(folder)
    migrate(setup)
    TrainingSteps(setup).run_all()
    return folder


@pytest.fixture
def project(learnt: Path, tmp_path: Path) -> Iterator[Project]:
    shutil.copytree(learnt, tmp_path / "project")
    yield Project(tmp_path / "project")


def run_night(project: Project, day: date = DAY, frame: pd.DataFrame | None = None) -> tuple[list[Drift], Finding]:
    """Deliver, score, publish and watch one night."""
    if frame is not None:
        project.write_day(day, frame)
    setup = load(project.folder)
    site, params, contract = setup.site, setup.configured.detector, setup.configured.contract
    now = datetime.now(UTC)
    begun = Begun(site.warehouse.begin_attempt("orders", day, "begin", now, None), now)
    ingest_arrivals(site, setup.ingest_params, setup.window(last=day))
    [validation] = validate_batches(site, contract, [day], params.validate_)
    assert not validation.failures
    version = site.registry.get_champion()
    bundle = site.registry.fetch_bundle(version)
    night = publish_scored(site, begun, score_night(site, contract, validation, version, bundle, params.score, now))
    watched = (setup.record_rule, params.monitor, params.filter.exclude_dates)
    return monitor_night(site, contract, night, bundle, *watched, version.night_spread, params.ingest.has_labels)


def reopen(project: Project) -> Setup:
    return load(project.folder)


def find(drift: list[Drift], column: str, statistic: str) -> Drift:
    [found] = [one for one in drift if (one.column, one.statistic) == (column, statistic)]
    return found


def test_an_ordinary_night_has_no_finding_and_every_column_its_statistics(project):
    drift, finding = run_night(project)
    assert (finding.finding, finding.todo) == ("nothing", "")
    for column in ("items", "spend", "shop"):
        for statistic in ("psi", "p_value", "null_share"):
            assert np.isfinite(find(drift, column, statistic).value)
    assert find(drift, "", "rows").value == 300
    assert find(drift, "shop", "unseen_share").value == 0
    assert {one.column for one in drift if one.statistic == "canary_recall"} >= {"shift spend", "swap items and spend"}
    site = reopen(project).site
    assert sorted(site.warehouse.read_drift("orders", DAY, DAY)[DAY], key=repr) == sorted(drift, key=repr)
    assert site.warehouse.read_findings("orders") == [finding]


def test_a_repeated_night_replaces_its_finding_and_an_older_attempt_does_not(project):
    run_night(project)
    _, second = run_night(project)
    site = reopen(project).site
    assert [one.attempt for one in site.warehouse.read_findings("orders")] == [2]
    site.warehouse.replace_drift(replace(second, attempt=1, finding="attack"), [])
    assert site.warehouse.read_findings("orders") == [second]
    assert site.warehouse.read_drift("orders", DAY, DAY)


def in_cents(frame):
    return frame.assign(spend=frame["spend"] * 100)


def half(frame):
    return frame.iloc[::2]


def swapped(frame):
    return frame.assign(items=frame["spend"].round().astype(int), spend=frame["items"].astype(float))


def stuck(frame):
    return frame.assign(spend=21.5)


def renamed(frame):
    return frame.assign(shop=frame["shop"].replace("north", "NORTH"))


@pytest.mark.parametrize("change", [in_cents, half, swapped, stuck, renamed])
def test_broken_data_are_named(project, change):
    frame = make_rows(DAY)
    if change is in_cents:
        project.change("contracts/orders.yaml", "expectations", value=[])
    _, finding = run_night(project, frame=change(frame))
    assert finding.finding == "data_broke", finding
    assert f"nightjar score orders --date {DAY}" in finding.todo


def test_a_changed_mix_of_all_rows_is_a_changed_world(project):
    frame = make_rows(DAY)
    rng = np.random.default_rng(1)
    is_larger = (frame["fraud"] == 0) & (rng.random(len(frame)) < 0.5)
    items = np.where(is_larger, rng.integers(5, 9, len(frame)), frame["items"])
    frame = frame.assign(items=items, spend=(items * frame["spend"] / frame["items"]).round(4))
    _, finding = run_night(project, frame=frame)
    assert finding.finding == "world_changed", finding
    assert "nightjar run orders --retrain" in finding.todo


def test_many_similar_flags_among_ordinary_rows_are_an_attack(project):
    frame = make_rows(DAY)
    struck = frame.index % 10 == 0
    frame.loc[struck, "spend"] = frame.loc[struck, "items"] * 200.0
    _, finding = run_night(project, frame=frame)
    assert finding.finding == "attack", finding
    assert f"nightjar flags orders --date {DAY}" in finding.todo


def test_flags_and_false_alarms_are_compared_with_what_the_calibration_expects(project):
    first, _ = run_night(project)
    assert not any(one.statistic == "week_flags_lacking" for one in first)  # there is one night
    day = DAY + timedelta(days=1)
    drift, _ = run_night(project, day, make_rows(day))
    site = reopen(project).site
    version = site.registry.get_champion()
    threshold = Detector.load(site.registry.fetch_bundle(version)).threshold
    nights = site.warehouse.get_nights("orders")
    flags, rows = sum(night.flagged for night in nights), sum(night.scored for night in nights)
    expected = expect_false_alarms(threshold, rows, version.night_spread)
    assert find(drift, "", "week_flags_lacking").value == max(0, 1 - flags / expected.expected)
    assert find(drift, "", "flags_lacking").bound == 1  # none of three is no wonder
    labels = site.warehouse.read_labels("orders", datetime.now(UTC)).set_index("record_id")["label"]
    flagged = site.warehouse.read_flags("orders", DAY, day)["record_id"]
    false_alarms = int((flagged.map(labels).fillna(0) == 0).sum())
    assert 0 < false_alarms < flags
    found = find(drift, "", "false_alarms_in_excess").value
    assert found == pytest.approx(max(0, false_alarms / expected.expected - 1))


def test_a_night_without_rows_is_watched(project):
    project.change("contracts/orders.yaml", "expectations", value=[])
    run_night(project, DAY)
    setup = reopen(project)
    site = setup.site
    frame = make_rows(DAY).assign(
        placed_at=lambda f: f["placed_at"].str.replace(str(DAY), str(DAY + timedelta(days=1)))
    )
    frame["order_id"] += "-moved"
    _, finding = run_night(project, DAY, frame)
    assert finding.finding == "data_broke"
    assert site.warehouse.get_nights("orders", DAY)[0].scored == 0


def test_a_version_whose_training_rows_are_gone_says_so_and_is_watched_otherwise(project):
    lake = reopen(project).site.lake
    for path in lake.files("clean/orders"):
        lake.remove(path)
    drift, finding = run_night(project, frame=half(make_rows(DAY)))
    assert finding.finding == "data_broke"
    assert any("has no training reference" in sentence and "--retrain" in sentence for sentence in finding.evidence)
    assert not any(one.statistic == "psi" for one in drift)


def test_a_version_older_than_the_lineage_of_its_rows_has_no_reference(project):
    setup = reopen(project)
    watch = Watch(setup.site, make_tiny_detector(), setup.configured.contract, RecordRule(), MonitorParams())
    assert (watch.read_reference(), watch.cutoff) == ({}, date(2026, 3, 1))


def test_flags_are_counted_by_the_commonest_value_and_by_each_category_and_all_together():
    flags = pa.table({"card": ["a", "b", "a", None], "shop": ["x", "x", "x", "y"], "channel": ["p", "q", "p", None]})
    assert measure_flags(flags, ["card"]) == ({("card", "flags_of_one_value"): 2.0}, {"card": "a"})
    assert measure_flags(flags.slice(0, 0), ["card"]) == ({("card", "flags_of_one_value"): 0.0}, {"card": ""})
    assert measure_categories(flags, ["shop", "channel"]) == {
        ("shop", "flags_counted"): 4,
        ("shop", "flags_of_one_category x"): 3,
        ("shop", "flags_of_one_category y"): 1,
        ("channel", "flags_counted"): 3,
        ("channel", "flags_of_one_category p"): 2,
        ("channel", "flags_of_one_category q"): 1,
        ("all categories", "flags_counted"): 4,
        ("all categories", "flags_of_one_category x, p"): 2,
        ("all categories", "flags_of_one_category x, q"): 1,
        ("all categories", "flags_of_one_category y, None"): 1,
    }
    assert measure_categories(flags.slice(0, 0), ["shop"]) == {("shop", "flags_counted"): 0}


def test_of_many_categories_the_commonest_are_counted_by_names_that_tables_can_hold():
    values = ["b", "b", *(f"v{n:03}" for n in range(200)), " a\nb\0 ", "x" * 100]
    found = measure_categories(pa.table({"code": values}), ["code"])
    assert len(found) == 101
    assert found["code", "flags_counted"] == 204
    assert found["code", "flags_of_one_category b"] == 2
    assert found["code", "flags_of_one_category a b\ufffd"] == 1
    assert ("code", "flags_of_one_category v096") in found and ("code", "flags_of_one_category v098") not in found
    assert (
        measure_categories(pa.table({"code": ["x" * 100]}), ["code"])["code", f"flags_of_one_category {'x' * 60}"] == 1
    )


def test_rows_of_a_large_batch_are_drawn_with_their_own_scores(tmp_path):
    lake, day = Lake(str(tmp_path)), date(2026, 3, 1)
    parts = {}
    for zone, name in (("validated", "amount"), ("scores", "score")):
        partition = lake.write(zone, "toy", day)
        for number in range(3):
            with partition.part(f"part-{number}") as part:
                part.append(pa.table({name: np.arange(1000.0) + 1000 * number}))
        parts[zone] = partition.commit({}).parts
    rows, scores = draw_rows(lake, parts["validated"], ["amount"], seed=1, most=300, scores=parts["scores"])
    assert 200 < rows.num_rows < 400
    assert rows["amount"].to_pylist() == scores.tolist()
    again, _ = draw_rows(lake, parts["validated"], ["amount"], seed=1, most=300)
    assert again == rows


def test_canaries_of_the_params_are_made_and_never_published(project):
    canaries = [
        {"kind": "shift", "column": "spend", "spreads": 50},
        {"kind": "category", "column": "shop", "segment": "items"},
    ]
    project.change("params.yaml", "detectors", "orders", "monitor", value={"canaries": canaries, "ignore": ["items"]})
    drift, _ = run_night(project)
    recall = {one.column: one.value for one in drift if one.statistic == "canary_recall"}
    assert recall.keys() == {"shift spend", "category shop"}
    assert recall["shift spend"] > 0.9
    assert not any(one.column == "items" for one in drift)
    site = reopen(project).site
    assert len(site.warehouse.read_flags("orders", DAY)) == site.warehouse.get_nights("orders")[0].flagged < 30


def test_what_is_known_of_a_version_has_no_values_of_masked_columns(project):
    run_night(project)
    lake = reopen(project).site.lake
    [path] = lake.files("references/orders")
    assert b"customer-" not in lake.read(path)
    assert b"order" not in lake.read(path)


def test_a_category_that_was_masked_after_it_was_learnt_is_in_no_evidence(project, monkeypatch):
    monkeypatch.setattr(Watch, "categories", ("shop", "customer"))
    drift, _ = run_night(project)
    assert find(drift, "shop", "flags_counted").value > 0
    assert not any(one.column == "all categories" for one in drift)
    assert not any("customer-" in one.statistic for one in drift)


def test_what_was_kept_of_a_version_before_categories_were_counted_is_measured_again(project):
    run_night(project)
    lake = reopen(project).site.lake
    [path] = lake.files("references/orders")
    kept = lake.read(path)
    document = json.loads(kept)
    values = [[day["values"].pop() for _ in range(3)] for day in document["practice"]]
    assert values and document.pop("format") == 2
    lake.replace(path, json.dumps(document).encode())
    run_night(project)
    assert json.loads(lake.read(path)) == json.loads(kept)


@pytest.mark.parametrize("change", ["missing", "text"])
def test_days_that_another_contract_validated_are_left_out_and_said(project, change):
    lake = reopen(project).site.lake
    for day in lake.dates("validated", "orders"):
        batch = lake.get("validated", "orders", day)
        rows = pa.concat_tables([table for part in batch.parts for table in lake.slices(part)])
        place = rows.schema.get_field_index("spend")
        old = rows.remove_column(place)
        if change == "text":
            old = old.add_column(place, "spend", rows["spend"].cast(pa.string()))
        partition = lake.write("validated", "orders", day)
        with partition.part("part-0") as part:
            part.append(old)
        partition.commit(batch.facts)
    drift, finding = run_night(project)
    assert finding.finding == "nothing"
    assert any("were validated by another contract" in sentence for sentence in finding.evidence)
    assert find(drift, "spend", "psi").value >= 0
    _, again = run_night(project)  # from what is kept of the version
    assert any("were validated by another contract" in sentence for sentence in again.evidence)


def test_few_rows_on_a_holiday_are_said_and_no_fault(project):
    frame = half(make_rows(DAY))
    _, finding = run_night(project, frame=frame)
    assert finding.finding == "data_broke"
    assert "if it was a holiday, add the date to monitor.holidays" in finding.todo
    project.change("params.yaml", "detectors", "orders", "monitor", value={"holidays": [f"{DAY:%m-%d}"]})
    _, finding = run_night(project, frame=frame)
    assert (finding.finding, finding.todo) == ("nothing", "")
    assert finding.evidence[0].startswith("A holiday: 150 rows, 50% fewer than usual on this weekday")


def test_of_a_column_in_another_unit_little_has_changed_once_it_is_scaled_back(project):
    drift, _ = run_night(project, frame=make_rows(DAY).assign(spend=lambda f: f["spend"] * 1.609))
    assert find(drift, "spend", "median_ratio").value == pytest.approx(1.6, abs=0.2)
    assert find(drift, "spend", "psi_rescaled").value < 0.3 * find(drift, "spend", "psi").value


def test_status_and_monitor_read_what_was_found(project):
    _, finding = run_night(project, frame=half(make_rows(DAY)))
    site = reopen(project).site
    night = read_watched(site)
    assert (night.finding, night.note) == (finding, "")
    assert night.facts["version"].startswith("1, trained through")
    assert describe_finding([finding], DAY).startswith("data broke. 150 rows, 50% fewer than usual")
    assert describe_finding([finding], FIRST) == ""
    assert r"| the night | rows\_lacking | 0.5 |" in summarise_finding(finding, night.statistics, {})


def test_a_published_night_that_was_not_monitored_says_what_to_do(project):
    run_night(project)
    site = reopen(project).site
    [finding] = site.warehouse.read_findings("orders")
    with site.warehouse.begin() as connection:
        connection.exec_driver_sql("delete from findings")
    assert f"nightjar score orders --date {DAY}" in read_watched(site).note
    site.warehouse.replace_drift(replace(finding, attempt=0), [])
    assert "the finding is of attempt 0" in read_watched(site).note
