"""The step on a small project of real files, without Prefect."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pytest
from steps import load
from toy import DAYS, FIRST, Project, make_project, make_rows, point_to

from flows.config.setup import Setup
from tasks.enrich import enrich_batches
from tasks.errors import BatchRejected
from tasks.ingest import ingest_arrivals
from tasks.rows.derive import History
from tasks.stores.files import Files
from tasks.stores.lake import Manifest
from tasks.validate import validate_batches

T = TypeVar("T")
LAST = FIRST + timedelta(days=DAYS - 1)
DATES = [FIRST + timedelta(days=n) for n in range(DAYS)]
ENRICH: dict[str, Any] = {
    "entity": "customer",
    "windows": ["3d"],
    "columns": {
        "orders_{window}": {"count": "*"},
        "spend_{window}": {"sum": "spend"},
        "frauds_{window}": {"count": "reports"},
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    point_to(monkeypatch, tmp_path)
    project = make_project(tmp_path)
    project.change("params.yaml", "detectors", "orders", "enrich", value=ENRICH)
    return project


def land(project: Project) -> Setup:
    setup = load(project.folder)
    setup.site.warehouse.migrate()
    ingest_arrivals(setup.site, setup.ingest_params, setup.window())
    return setup


def enrich(setup: Setup, days: list[date]) -> list[Manifest]:
    params = setup.configured.detector
    assert params.enrich
    enrich_batches(setup.site, setup.configured.contract, days, params.validate_, params.enrich)
    return [setup.site.lake.get("validated", "orders", day) for day in days]


def read(setup: Setup, day: date) -> pd.DataFrame:
    parts = setup.site.lake.get("validated", "orders", day).parts
    return pa.concat_tables([piece for part in parts for piece in setup.site.lake.slices(part)]).to_pandas()


def test_rows_get_what_their_entity_did_before(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES)
    rows = pd.concat([read(setup, day) for day in DATES], ignore_index=True)
    frauds = rows.loc[rows["fraud"] == 1, "record_id"]
    labels = setup.site.warehouse.list_labels("orders").set_index("record_id")["known_at"]
    for row in rows.iloc[::97].to_dict("records"):
        now = row["event_time"]
        is_before = (rows["event_time"] < now) & (rows["event_time"] > now - timedelta(days=3))
        before = rows[is_before & (rows["customer"] == row["customer"])]
        assert row["orders_3d"] == len(before)
        assert row["spend_3d"] == pytest.approx(before["spend"].sum(), rel=1e-12)
        told = before[before["record_id"].isin(frauds)]["record_id"]
        assert row["frauds_3d"] == sum(labels[record] <= now for record in told)
    assert rows["orders_3d"].max() == 3
    assert rows["frauds_3d"].max() > 0
    assert {*rows.columns[-3:]} == {"orders_3d", "spend_3d", "frauds_3d"}


def test_one_batch_alone_gets_the_same_bytes_as_all_together(project: Project, tmp_path_factory: Any) -> None:
    setup = land(project)
    together = [manifest.hash for manifest in enrich(setup, DATES)]
    again = enrich(setup, DATES)
    assert [(one.hash, one.attempt) for one in again] == [(hash_, 2) for hash_ in together]  # nothing is written twice
    other = make_project(tmp_path_factory.mktemp("other"))
    other.change("params.yaml", "detectors", "orders", "enrich", value=ENRICH)
    alone = land(other)
    assert [enrich(alone, [day])[0].hash for day in reversed(DATES)] == together[::-1]


def test_rows_that_come_late_change_the_input_of_the_nights_that_reach_them(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES)
    before, attempts = setup.site.hash_inputs(DATES), [one.attempt for one in enrich(setup, DATES)]
    late = DATES[5]
    project.write_day(late, make_rows(late).head(1).assign(order_id="late", spend=77.0))
    (project.orders / f"orders-{late}.csv").rename(project.orders / f"orders-{late}-late.csv")
    project.write_day(late)
    land(project)
    after = setup.site.hash_inputs(DATES)
    assert [day for day in DATES if before[day] != after[day]] == DATES[5:9]  # three days back: four dates
    again = [one.attempt for one in enrich(setup, DATES)]
    assert [day for day, old, new in zip(DATES, attempts, again, strict=True) if old != new] == DATES[5:9]
    customer = make_rows(late)["customer"][0]
    rows = pd.concat([read(setup, day) for day in DATES[3:7]])
    own = rows[rows["customer"] == customer].set_index("record_id").sort_values("event_time")
    assert own.index[2:].tolist() in (["0325-0000", "late", "0326-0000"], ["late", "0325-0000", "0326-0000"])
    since = own["event_time"].iloc[-1] - timedelta(days=3)
    assert own["orders_3d"].iloc[-1] == (own["event_time"].iloc[:-1] > since).sum()


def test_a_report_that_comes_late_changes_the_input_of_the_nights_that_count_it(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES)
    before, attempts = setup.site.hash_inputs(DATES), [one.attempt for one in enrich(setup, DATES)]
    told = make_rows(DATES[3])["order_id"][0]
    known_at = [setup.site.start_of(DATES[5]) + timedelta(hours=hours) for hours in (-1, 0)]
    labels = pd.DataFrame({"record_id": [told, told], "label": [0, 1], "known_at": pd.to_datetime(known_at, utc=True)})
    setup.site.warehouse.add_labels("orders", labels.head(1))
    assert setup.site.hash_inputs(DATES) == before  # no anomaly
    setup.site.warehouse.add_labels("orders", labels)
    after = setup.site.hash_inputs(DATES)
    assert [day for day in DATES if before[day] != after[day]] == DATES[5:9]
    again = [one.attempt for one in enrich(setup, DATES)]
    assert [day for day, old, new in zip(DATES, attempts, again, strict=True) if old != new] == DATES[5:9]
    rows = read(setup, DATES[5])
    own = rows[rows["customer"] == make_rows(DATES[3])["customer"][0]]
    assert own["frauds_3d"].tolist() == [1]


def test_without_reports_labels_change_no_input(project: Project) -> None:
    project.change("params.yaml", "detectors", "orders", "enrich", "columns", value={"n": {"count": "*"}})
    setup = land(project)
    before = setup.site.hash_inputs(DATES)
    told = pd.DataFrame({"record_id": ["x"], "label": 1, "known_at": [pd.Timestamp(DATES[6], tz="UTC")]})
    setup.site.warehouse.add_labels("orders", told)
    assert setup.site.hash_inputs(DATES) == before


def test_other_params_give_other_columns_and_none_give_none(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES[:4])
    columns = {"n": {"count": "*", "window": "1d"}}
    project.change("params.yaml", "detectors", "orders", "enrich", "columns", value=columns)
    changed = load(project.folder)
    enrich(changed, DATES[:4])
    assert {*read(changed, DATES[3]).columns} == {*changed.configured.contract.schema.names, "n"}
    project.change("params.yaml", "detectors", "orders", "enrich", value=None)
    plain = load(project.folder)
    validate_batches(plain.site, plain.configured.contract, DATES[:4], plain.configured.detector.validate_)
    assert {*read(plain, DATES[3]).columns} == {*plain.configured.contract.schema.names}
    assert plain.site.lake.get("validated", "orders", DATES[3]).input_hash == plain.site.hash_input(DATES[3])


def test_a_rejected_batch_is_in_no_history(project: Project) -> None:
    project.write_day(DATES[1], make_rows(DATES[1]).head(20))  # fewer rows than the contract asks for
    setup = land(project)
    [manifest] = enrich(setup, [DATES[2]])
    assert manifest.rows == 300
    assert set(read(setup, DATES[2])["orders_3d"]) == {1}  # those of the first day
    contract, params = setup.configured.contract, setup.configured.detector
    assert params.enrich
    [rejected] = enrich_batches(setup.site, contract, [DATES[1]], params.validate_, params.enrich)
    assert rejected.failures
    assert setup.site.lake.find("validated", "orders", DATES[1]) is None


def test_a_batch_whose_history_was_pruned_keeps_its_columns(project: Project) -> None:
    setup = land(project)
    [*_, manifest] = enrich(setup, DATES[:6])
    for zone in ("landing", "validated"):
        prune(setup, zone, DATES[3])
        assert setup.site.hash_input(DATES[5]) == manifest.input_hash  # its parts are remembered
        assert enrich(setup, [DATES[5]]) == [manifest]
    assert setup.site.hash_input(DATES[3]) is None
    columns = {"n": {"count": "*"}}
    project.change("params.yaml", "detectors", "orders", "enrich", "columns", value=columns)
    enrich(load(project.folder), [DATES[5]])
    assert read(setup, DATES[5])["n"].max() == 2  # other columns are computed from what is left of three days


def test_batches_that_another_contract_validates_again_keep_their_history(project: Project) -> None:
    enrich(land(project), DATES[:6])
    project.change("contracts/orders.yaml", "columns", "shop", "nullable", value=True)
    setup = load(project.folder)
    before = setup.site.lake.get("validated", "orders", DATES[4])
    enrich(setup, [DATES[5]])
    after = setup.site.lake.get("validated", "orders", DATES[4])
    assert after.attempt > before.attempt
    assert (after.hash, after.input_hash) == (before.hash, before.input_hash)


def test_a_batch_that_is_rejected_later_leaves_the_history_of_loose_rows(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES[:4])
    params = setup.configured.detector
    assert params.enrich
    rows = pa.Table.from_pandas(read(setup, DATES[3]).drop(columns=["orders_3d", "spend_3d", "frauds_3d"]))
    assert History(setup.site, params.enrich).derive(rows)["orders_3d"].to_pylist().count(3) > 0
    project.write_day(DATES[1], make_rows(DATES[1]).head(20))
    setup = land(project)
    [night] = enrich(setup, [DATES[3]])
    found = History(setup.site, params.enrich).derive(rows)["orders_3d"].to_pylist()
    assert found == read(setup, DATES[3])["orders_3d"].tolist()
    assert night.rows == len(found)


def test_rows_that_come_late_for_a_pruned_batch_are_in_no_history_of_nights_and_loose_rows(project: Project) -> None:
    setup = land(project)
    enrich(setup, DATES[:4])
    prune(setup, "landing", DATES[2])
    make_rows(DATES[2]).head(5).assign(order_id=list("vwxyz")).to_csv(project.orders / "orders-late.csv", index=False)
    setup = land(project)
    assert setup.site.lake.get("landing", "orders", DATES[2]).rows == 5
    enrich(setup, [DATES[4]])
    night = read(setup, DATES[4])
    rows = pa.Table.from_pandas(night.drop(columns=["orders_3d", "spend_3d", "frauds_3d"]))
    params = setup.configured.detector.enrich
    assert params
    found = History(setup.site, params).derive(rows).to_pandas()
    assert found["orders_3d"].max() == 3
    assert found.to_dict("list") == night[found.columns].to_dict("list")


def test_a_night_reads_each_manifest_of_its_reach_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = land(project)
    enrich(setup, DATES[:6])
    prune(setup, "landing", DATES[3])
    asked: list[str] = []
    for name in ("find_file", "glob"):
        monkeypatch.setattr(Files, name, listen(asked, getattr(Files, name)))
    params = setup.configured.detector
    assert params.enrich
    enrich_batches(setup.site, setup.configured.contract, [DATES[5]], params.validate_, params.enrich)
    assert len(asked) == len({*asked})
    monkeypatch.undo()
    project.write_day(DATES[4], make_rows(DATES[4]).head(200))  # one that is validated again
    land(project)
    asked.clear()
    monkeypatch.setattr(Files, "find_file", listen(asked, Files.find_file))
    enrich_batches(setup.site, setup.configured.contract, [DATES[5]], params.validate_, params.enrich)
    assert len(asked) == len({*asked})
    monkeypatch.undo()
    assert read(setup, DATES[4]).shape[0] == 200
    assert "orders_3d" in read(setup, DATES[4])


def listen(asked: list[str], read: Callable[[Files, str], T]) -> Callable[[Files, str], T]:
    def read_and_note(files: Files, path: str) -> T:
        asked.append(path)
        return read(files, path)

    return read_and_note


def prune(setup: Setup, zone: Any, day: date) -> None:
    lake = setup.site.lake
    path = lake.manifest_path(zone, "orders", day)
    if zone == "landing":
        lake.remember_landing(path)
    lake.remove(path)


def test_clocks_that_change_do_not_shorten_the_reach(project: Project) -> None:
    project.change("params.yaml", "detectors", "orders", "enrich", "windows", value=["24h"])
    site = load(project.folder).site
    assert site.zone.key == "Europe/Berlin"
    assert site.list_reached(date(2026, 3, 28)) == [date(2026, 3, 27), date(2026, 3, 28)]
    # The 29th has 23 hours: 24 hours before midnight it is still the 28th, 23:00.
    assert site.list_reached(date(2026, 3, 30)) == [date(2026, 3, 28), date(2026, 3, 29), date(2026, 3, 30)]


def test_a_batch_whose_rows_mostly_lack_the_entity_is_refused(project: Project) -> None:
    project.change("contracts/orders.yaml", "columns", "customer", "nullable", value=True)
    frame = make_rows(DATES[1])
    frame.loc[frame.index[:151], "customer"] = None
    project.write_day(DATES[1], frame)
    setup = land(project)
    with pytest.raises(BatchRejected, match="do not say whose history") as caught:
        enrich(setup, [DATES[1]])
    assert caught.value.parts["got"] == "151 of 300 rows without customer"
    frame.loc[frame.index[150], "customer"] = "somebody"
    project.write_day(DATES[1], frame)
    enrich(land(project), [DATES[1]])
    assert read(setup, DATES[1])["orders_3d"].isna().sum() == 150
