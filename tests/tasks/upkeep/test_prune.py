"""What prune removes, and what it leaves alone: live attempts, what is in use, what nothing has become of yet."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from tasks.errors import BatchMissing, Failure
from tasks.follow_up.alerts import Fact, Planned
from tasks.follow_up.deliveries import keep_messages, list_deliveries
from tasks.ingest import ingest_arrivals
from tasks.rows.params import EventTime, IngestParams, RetentionParams
from tasks.sources.files import FilesSource
from tasks.sources.kinds import Window
from tasks.stores.lake import Zone
from tasks.stores.site import Site
from tasks.stores.tables import scoring_batches
from tasks.stores.warehouse import Warehouse
from tasks.upkeep import prune
from tasks.upkeep.prune import Kept, Removed, prune_detector, prune_tables
from tasks.validate import check_whole

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
OLD, NEW = date(2026, 3, 1), date(2026, 3, 30)
FOREVER = RetentionParams()
TWO_DAYS_AGO = (NOW - timedelta(days=2)).timestamp()


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both nights are published, as they have landed; the champion's cut-off is the old one."""

    def read_kept(site: Site) -> Kept:
        landed = {day: site.lake.get("landing", "toy", day).hash for day in site.lake.dates("landing", "toy")}
        return Kept(dict.fromkeys((OLD, NEW)), landed, None, frozenset({OLD}), frozenset({1}))

    monkeypatch.setattr(prune, "read_kept", read_kept)


def put(site: Site, zone: Zone, day: date) -> None:
    partition = site.lake.write(zone, site.detector, day)
    with partition.part("part-0", source=f"{day}.csv", version="1") as part:
        part.append(pa.table({"record_id": ["a", "b"]}))
    partition.commit({})


def leave_orphan(site: Site, path: str, age_days: float) -> Path:
    site.lake.replace(path, b"12345")
    full = Path(site.lake.full(path))
    moment = (NOW - timedelta(days=age_days)).timestamp()
    os.utime(full, (moment, moment))
    return full


def zones(site: Site) -> dict[str, list[date]]:
    names: tuple[Zone, ...] = ("landing", "validated", "quarantine", "clean", "scores")
    return {zone: site.lake.dates(zone, site.detector) for zone in names}


def test_only_files_that_nothing_names_and_no_live_attempt_may_be_writing_go(site: Site) -> None:
    put(site, "landing", NEW)
    before = site.lake.files("")
    folder = f"landing/toy/batch_date={NEW}/attempt=2"
    old, young = (
        leave_orphan(site, f"{folder}/part-0-dead.parquet", 2),
        leave_orphan(site, f"{folder}/new.parquet", 0.5),
    )
    planned = prune_detector(site, FOREVER, NOW, dry_run=True)
    assert planned == [Removed("orphans in landing", 1, 5, 0)]
    assert old.exists()
    assert prune_detector(site, FOREVER, NOW) == planned
    assert not old.exists()
    assert young.exists()
    assert before.items() <= site.lake.files("").items()
    assert prune_detector(site, FOREVER, NOW) == []


def test_a_batch_that_an_attempt_is_working_on_is_left_alone(site: Site) -> None:
    orphan = leave_orphan(site, f"scores/toy/batch_date={NEW}/inputs=ab/part-0.parquet", 2)
    engine = site.warehouse
    number = engine.begin_attempt("toy", NEW, "score", NOW - timedelta(hours=1), "run")
    assert prune_detector(site, FOREVER, NOW) == []
    assert orphan.exists()
    engine.fail_attempt("toy", NEW, number, Failure("OSError", {"what": "stopped"}), NOW)
    assert prune_detector(site, FOREVER, NOW) == [Removed("orphans in scores", 1, 5, 0)]


def test_unfinished_scores_go_as_a_whole_and_receipts_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"scores/toy/batch_date={NEW}/inputs=ab"
    old = [leave_orphan(site, f"{folder}/{name}", 2) for name in ("part-0-flags.parquet", "part-0.json")]
    young = leave_orphan(site, f"{folder}/part-1.parquet", 0.1)
    assert prune_detector(site, FOREVER, NOW) == []
    young.unlink()
    gone: list[str] = []
    monkeypatch.setattr("tasks.stores.lake.Lake.remove", lambda lake, path: gone.append(path.rsplit("/", 1)[1]))
    prune_detector(site, FOREVER, NOW)
    assert gone == ["part-0.json", "part-0-flags.parquet"]
    assert all(path.exists() for path in old)


def test_scores_that_no_night_was_published_from_go_after_a_day(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs in ("aa", "bb"):
        partition = site.lake.write("scores", "toy", NEW, inputs)
        with partition.part("part-0") as part:
            part.append(pa.table({"record_id": ["a", "b"]}))
        site.lake.replace(partition.path("part-0.json"), b"{}")
        partition.commit({})
    kept = Kept({NEW: "bb"}, {}, None, frozenset(), frozenset())
    monkeypatch.setattr(prune, "read_kept", lambda site: kept)
    now = datetime.now(UTC)
    assert prune_detector(site, FOREVER, now) == []
    [removed] = prune_detector(site, FOREVER, now + timedelta(days=2))
    assert (removed.what, removed.files, removed.rows) == ("superseded scores", 3, 2)
    assert not site.lake.find("scores", "toy", NEW, "aa")
    assert site.lake.find("scores", "toy", NEW, "bb")


def test_retention_goes_by_batch_date_and_zone_and_spares_the_training_sets_in_use(site: Site) -> None:
    names: tuple[Zone, ...] = ("landing", "validated", "quarantine", "clean", "scores")
    for zone in names:
        for day in (OLD, NEW):
            put(site, zone, day)
    put(site, "clean", OLD - timedelta(days=1))
    days = dict.fromkeys(("landing_days", "validated_days", "quarantine_days", "clean_days", "scores_days"), 10)
    removed = {r.what: (r.files, r.rows) for r in prune_detector(site, RetentionParams(**days), NOW)}
    assert removed == dict.fromkeys(names, (2, 2))
    assert zones(site) == {zone: [OLD, NEW] if zone == "clean" else [NEW] for zone in names}


def test_landing_of_which_nothing_has_become_yet_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, "landing", OLD)
    put(site, "landing", OLD + timedelta(days=1))
    kept = Kept({}, {}, OLD, frozenset(), frozenset())
    monkeypatch.setattr(prune, "read_kept", lambda site: kept)
    prune_detector(site, RetentionParams(landing_days=1), NOW)
    assert zones(site)["landing"] == [OLD + timedelta(days=1)]


def write_source(site: Site, name: str, rows: int) -> None:
    times = [f"{OLD}T12:00:{row:02d}Z" for row in range(rows)]
    frame = pd.DataFrame({"record_id": [f"{name}-{row}" for row in range(rows)], "event_time": times, "x": 1.0})
    frame.to_csv(Path(site.sources) / f"{name}.csv", index=False)


def test_pruned_landing_does_not_land_again_and_late_rows_alone_are_not_a_batch(site: Site) -> None:
    params = IngestParams(
        source=FilesSource(kind="files", path="*.csv"), record_id="record_id", event_time=EventTime(column="event_time")
    )
    write_source(site, "first", 3)
    window = Window(OLD, NEW, datetime.now(UTC))
    ingest_arrivals(site, params, window)
    assert prune_detector(site, RetentionParams(landing_days=1), NOW)[0].rows == 3
    assert ingest_arrivals(site, params, window).rows == 0
    assert prune_detector(site, RetentionParams(landing_days=1), NOW) == []
    write_source(site, "late", 1)
    assert ingest_arrivals(site, params, replace(window, now=datetime.now(UTC))).rows == 1
    with pytest.raises(BatchMissing, match=r"first.csv"):
        check_whole(site.lake, [site.lake.get("landing", "toy", OLD)])
    prune_detector(site, RetentionParams(landing_days=1), NOW)
    assert {part.rows for part in site.lake.pruned("toy")[OLD]} == {1, 3}
    assert ingest_arrivals(site, params, replace(window, now=datetime.now(UTC))).rows == 0


def test_a_prune_that_was_killed_is_finished_by_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, "landing", OLD)
    remove = type(site.lake).remove

    def remove_then_die(lake: object, path: str) -> None:
        remove(lake, path)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.stores.lake.Lake.remove", remove_then_die)
    with pytest.raises(KeyboardInterrupt):
        prune_detector(site, RetentionParams(landing_days=1), NOW)
    monkeypatch.setattr("tasks.stores.lake.Lake.remove", remove)
    assert zones(site)["landing"] == []
    later = datetime.now(UTC) + timedelta(days=2)
    assert prune_detector(site, RetentionParams(landing_days=1), later)[0].what == "orphans in landing"
    assert [path.rsplit("/", 1)[1] for path in site.lake.files("")] == ["pruned.json"]


def test_bundles_that_carry_an_alias_stay_and_downloads_that_were_cut_short_go(site: Site) -> None:
    for name in ("version-1-aa", "version-2-bb", "downloading-7", "fitted/2026-03-01"):
        folder = site.registry.bundles / name
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"123")
        os.utime(folder, (TWO_DAYS_AGO, TWO_DAYS_AGO))
    assert prune_detector(site, FOREVER, NOW) == [Removed("bundles", 1, 3, 0)]
    assert prune_detector(site, RetentionParams(bundles_days=1), NOW) == [Removed("bundles", 2, 6, 0)]
    assert [path.name for path in site.registry.bundles.glob("version-*")] == ["version-1-aa"]


def test_pages_of_old_nights_go(site: Site) -> None:
    for folder in (site.reports, site.validations):
        folder.mkdir(parents=True)
        for day in (OLD, NEW):
            (folder / f"{day}.html").write_text("page")
    (site.reports / f"{NEW}.html").write_text(f"<!--links-->{OLD}<!--/links-->")
    data_docs = site.validations / "gx/uncommitted"  # of an earlier version
    data_docs.mkdir(parents=True)
    (data_docs / "page.html").write_text("page")
    assert prune_detector(site, RetentionParams(reports_days=7), NOW) == [Removed("pages", 2, 8, 0)]
    assert [path.stem for path in site.reports.glob("*.html")] == [str(NEW)]
    assert f"{OLD}" not in (site.reports / f"{NEW}.html").read_text()
    os.utime(site.validations / "gx", (0, 0))
    assert prune_detector(site, RetentionParams(reports_days=7), NOW) == [Removed("pages", 1, 4, 0)]
    assert [path.stem for path in site.validations.iterdir()] == [str(NEW)]


def test_of_old_attempts_the_newest_and_the_published_one_stay(
    engine: Warehouse, site: Site, make_site: Callable[..., Site]
) -> None:
    site = replace(site, warehouse=engine)
    for _ in range(4):
        engine.begin_attempt("toy", OLD, "score", NOW - timedelta(days=9), None)
    engine.begin_attempt("other", OLD, "score", NOW - timedelta(days=9), None)
    with engine.begin() as connection:
        columns = {c.name: 0 for c in scoring_batches.c} | {"detector": "toy", "batch_date": OLD, "attempt": 2}
        texts = dict.fromkeys(("input_hash", "model_name"), "x")
        connection.execute(sa.insert(scoring_batches).values(columns | texts | {"scored_at": NOW}))
    old = Fact("night_failed", "toy", "a", OLD, NOW - timedelta(days=9), "title", "body")
    facts = [(old, None), (replace(old, about="b"), NOW), (replace(old, about="c", at=NOW), None)]
    keep_messages(engine, [Planned("rule", "mail", fact, due) for fact, due in facts])
    retention = RetentionParams(attempts_days=3, superseded_days=3)
    assert prune_tables(site, retention, NOW, dry_run=True) == {
        "attempts": 2,
        "deliveries": 1,
        "superseded_anomalies": 0,
    }
    assert len(engine.read_attempts("toy")) == 4
    prune_tables(site, retention, NOW, dry_run=False)
    assert [attempt.attempt for attempt in engine.read_attempts("toy")] == [2, 4]
    assert len(engine.read_attempts("other")) == 1
    assert {one.about for one in list_deliveries(engine)} == {"b", "c"}


def test_prune_works_on_an_object_store(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(lake_root=f"memory://{tmp_path.name}/lake")
    site.lake.replace(f"landing/toy/batch_date={OLD}/attempt=1/part.parquet", b"123")
    assert prune_detector(site, FOREVER, datetime.now(UTC)) == []
    assert prune_detector(site, FOREVER, datetime.now(UTC) + timedelta(days=2))[0].files == 1


def test_rows_that_landed_after_their_night_was_published_stay_until_it_is_scored_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site, "landing", OLD)
    published = site.lake.get("landing", "toy", OLD).hash
    kept = Kept({OLD: None}, {OLD: published}, None, frozenset(), frozenset())
    monkeypatch.setattr(prune, "read_kept", lambda site: kept)
    newest = site.lake.write("landing", "toy", OLD)
    with newest.part("part-1", source="late.csv", version="1") as part:
        part.append(pa.table({"record_id": ["c"]}))
    newest.commit({}, keep=site.lake.get("landing", "toy", OLD).parts)
    prune_detector(site, RetentionParams(landing_days=1), NOW)
    assert site.lake.get("landing", "toy", OLD).rows == 3


def test_scores_that_are_finished_between_plan_and_removal_stay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"scores/toy/batch_date={NEW}/inputs=ab"
    part = leave_orphan(site, f"{folder}/part-0.parquet", 2)
    never = leave_orphan(site, f"{folder}/part-0.json.0badf00d.new", 2)
    hold = prune.hold_batch

    def finish_first(site: Site, *arguments: Any) -> Any:
        site.lake.replace(f"{folder}/manifest.json", b"{}")
        return hold(site, *arguments)

    monkeypatch.setattr(prune, "hold_batch", finish_first)
    prune_detector(site, FOREVER, NOW)
    assert part.exists()
    assert not never.exists()
