"""Erasing one record: from parts, tables and pages; half-way kills; files of dead and of live attempts."""

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from tasks.errors import Failure, RecordMissing
from tasks.follow_up.actions import Desk
from tasks.follow_up.alerts import Fact, Planned
from tasks.follow_up.deliveries import keep_messages, list_deliveries
from tasks.follow_up.keeping import keep_filter, read_filters
from tasks.follow_up.suppressions import add_suppression
from tasks.rows.params import CasesParams
from tasks.stores.bulk import load_rows
from tasks.stores.lake import Lake, Zone
from tasks.stores.site import Site
from tasks.stores.tables import attempts, case_events, case_flags, cases, group_scores, labels, metadata, reviews
from tasks.stores.warehouse import Warehouse
from tasks.upkeep import erase
from tasks.upkeep.erase import ERASED, Erased, Place, erase_record, erase_rows

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 9, tzinfo=UTC)
VICTIM, OTHER = "victim <1>", "other"
ROWS = pa.table({"record_id": [OTHER, VICTIM, None], "x": [1.0, 2.0, 3.0]})


@pytest.fixture(autouse=True)
def no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered: a flow test looks at versions."""
    monkeypatch.setattr("tasks.stores.registry.Registry.list_versions", lambda registry: [])


def put(
    lake: Lake, zone: Zone, *tables: pa.Table, inputs: str | None = None, facts: dict[str, Any] | None = None
) -> None:
    partition = lake.write(zone, "toy", DAY, inputs)
    for number, table in enumerate(tables):
        with partition.part(f"part-{number}", source=f"file-{number}", version="1") as part:
            part.append(table)
    partition.commit(facts or {})


def put_scores(lake: Lake) -> None:
    """Scores as tasks/score.py leaves them."""
    folder = lake.write("scores", "toy", DAY, "key")
    frame = pd.DataFrame({"record_id": [VICTIM, OTHER]})
    names = {name: folder.path(f"{name}.parquet") for name in ("flags", "groups")}
    for name in ("flags.parquet", "part-0-flags.parquet"):
        lake.replace_frame(folder.path(name), frame)
    lake.replace_frame(names["groups"], pd.DataFrame({"group": [VICTIM, "shop"], "score": [1.0, 2.0]}))
    lake.replace(folder.path("part-0.json"), b"{}")
    put(lake, "scores", ROWS, inputs="key", facts=names)


def holding(lake: Lake, record_id: str = VICTIM) -> list[str]:
    """The files of a lake that contain a record's id."""
    paths = [name for name in lake.files("") if name.endswith(".parquet")]
    return [name for name in paths if record_id in str(pq.read_table(lake.full(name)).to_pylist())]


def missing(lake: Lake) -> list[str]:
    """The parts that a manifest names and that are not there."""
    named = [part.path for path in lake.manifests() for part in lake.read_manifest(path).parts]
    return sorted(set(named) - lake.files("").keys())


def test_a_record_goes_from_every_zone_and_the_rest_stays(site: Site) -> None:
    zones: tuple[Zone, ...] = ("landing", "validated", "quarantine", "clean")
    for zone in zones:
        put(site.lake, zone, ROWS, ROWS.slice(0, 1))
    put_scores(site.lake)
    before = site.lake.get("landing", "toy", DAY)
    erased = erase_record(site, VICTIM, NOW)
    assert erased.places == tuple(Place(what, DAY, 1) for what in (*zones, "scores", "unused files in scores"))
    assert holding(site.lake) == []
    assert missing(site.lake) == []
    landing = site.lake.get("landing", "toy", DAY)
    assert [part.rows for part in landing.parts] == [2, 1]
    assert landing.parts[1] == before.parts[1]
    assert (landing.parts[0].source, landing.parts[0].version) == ("file-0", "1")
    assert landing.hash != before.hash
    rows = [row for part in landing.parts for table in site.lake.slices(part) for row in table.to_pylist()]
    assert rows == [{"record_id": OTHER, "x": 1.0}, {"record_id": None, "x": 3.0}, {"record_id": OTHER, "x": 1.0}]
    flags = site.lake.get("scores", "toy", DAY, "key").facts["flags"]
    assert site.lake.read_frame(flags)["record_id"].tolist() == [OTHER]
    with pytest.raises(RecordMissing):
        erase_record(site, VICTIM, NOW)


def test_a_part_that_held_nothing_else_stays_known_and_does_not_land_again(site: Site) -> None:
    put(site.lake, "landing", ROWS.slice(1, 1))
    erase_record(site, VICTIM, NOW)
    [part] = site.lake.get("landing", "toy", DAY).parts
    assert (part.rows, part.source) == (0, "file-0")
    assert missing(site.lake) == []
    assert list(site.lake.slices(part)) == []


def test_a_repair_still_names_the_part_that_it_repairs(site: Site) -> None:
    put(site.lake, "landing", ROWS)
    [broken] = site.lake.get("landing", "toy", DAY).parts
    partition = site.lake.write("landing", "toy", DAY)
    with partition.part("part-0", source="replay") as part:
        part.append(ROWS.slice(0, 2))
    partition.parts = [replace(part, replaces=(broken.sha256,)) for part in partition.parts]
    partition.commit({}, keep=(broken,))
    erase_record(site, VICTIM, NOW)
    original, repair = site.lake.get("landing", "toy", DAY).parts
    assert original.sha256 != broken.sha256
    assert (repair.rows, repair.replaces) == (1, (original.sha256,))


@pytest.mark.parametrize("stop_at", ["commit", "remove", "replace_frame", "erase_rows", "erase_pages"])
def test_a_run_that_was_killed_is_finished_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    for _ in range(2):
        put(site.lake, "landing", ROWS)
    put_scores(site.lake)
    engine = site.warehouse
    engine.add_labels("toy", pd.DataFrame({"record_id": [VICTIM], "label": 1, "known_at": NOW}))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owner = {"commit": "tasks.stores.lake.PartitionWriter.commit", "erase_rows": "tasks.upkeep.erase.erase_rows"}
    where = owner.get(
        stop_at, f"tasks.upkeep.erase.{stop_at}" if stop_at == "erase_pages" else f"tasks.stores.lake.Lake.{stop_at}"
    )
    monkeypatch.setattr(where, die)
    with pytest.raises(KeyboardInterrupt):
        erase_record(site, VICTIM, NOW)
    monkeypatch.undo()
    monkeypatch.setattr("tasks.stores.registry.Registry.list_versions", lambda registry: [])
    assert missing(site.lake) == []
    now = datetime.now(UTC) + timedelta(days=2)  # a live landing might need younger files
    assert erase_record(site, VICTIM, now).left == ()
    assert holding(site.lake) == []
    assert missing(site.lake) == []
    with engine.begin() as connection:
        assert connection.scalars(sa.select(labels.c.record_id)).all() == []


def test_a_file_that_a_live_attempt_may_be_writing_is_left_and_named(site: Site) -> None:
    with site.lake.write("landing", "toy", DAY).part("part-0") as part:
        part.append(ROWS)
    now = datetime.now(UTC)
    erased = erase_record(site, VICTIM, now)
    assert [path.split("/")[0] for path in erased.left] == ["landing"]
    assert holding(site.lake) != []
    erased = erase_record(site, VICTIM, now + timedelta(days=2))
    assert (erased.left, erased.places) == ((), (Place("unused files in landing", DAY, 1),))
    assert holding(site.lake) == []


def test_a_batch_that_a_night_is_at_work_on_is_left_and_named(site: Site) -> None:
    put(site.lake, "landing", ROWS)
    engine = site.warehouse
    number = engine.begin_attempt("toy", DAY, "score", NOW, None)
    assert erase_record(site, VICTIM, NOW).left == ("landing/toy/batch_date=2026-03-01/manifest.json",)
    engine.fail_attempt("toy", DAY, number, Failure("OSError", {"what": f"no {VICTIM}, but {VICTIM}s"}), NOW)
    assert erase_record(site, VICTIM, NOW).left == ()


def test_half_written_files_go_once_they_are_old(site: Site) -> None:
    path = "validated/toy/batch_date=2026-03-01/attempt=1/part-0-dead.parquet"
    site.lake.replace(path, b"PAR1 " + VICTIM.encode())
    moment = (NOW - timedelta(days=2)).timestamp()
    os.utime(site.lake.full(path), (moment, moment))
    put(site.lake, "landing", ROWS)
    assert erase_record(site, VICTIM, NOW).left == ()
    assert path not in site.lake.files("")


def test_a_record_is_erased_from_every_table_and_from_texts_that_mention_it(engine: Warehouse, site: Site) -> None:
    site = replace(site, warehouse=engine)
    engine.add_labels("toy", pd.DataFrame({"record_id": [VICTIM, OTHER], "label": 1, "known_at": NOW}))
    engine.add_labels("elsewhere", pd.DataFrame({"record_id": [VICTIM], "label": 1, "known_at": NOW}))
    verdict = {"batch_date": DAY, "reviewer": "kim", "reviewed_at": NOW, "verdict": "normal", "inclusion": 1.0}
    engine.add_reviews("toy", pd.DataFrame([verdict | {"record_id": VICTIM}, verdict | {"record_id": OTHER}]))
    number = engine.begin_attempt("toy", DAY, "score", NOW, None)
    engine.fail_attempt("toy", DAY, number, Failure("OSError", {"what": f"bad row {VICTIM}, not {VICTIM}2"}), NOW)
    with engine.begin() as connection:
        connection.execute(sa.update(reviews).values(note=f"like {VICTIM}."))
        group = {"detector": ["toy"], "batch_date": [DAY], "group": [VICTIM], "score": [1.0], "records": [1]}
        load_rows(connection, group_scores, pd.DataFrame(group).assign(grouping="card", flagged=False))
    places = {(place.what, place.batch_date): place.rows for place in erase_rows(site, VICTIM)}
    assert places == {
        ("labels", None): 1,
        ("reviews", DAY): 1,
        ("group_scores", DAY): 1,
        ("attempts.cause", DAY): 1,
        ("attempts.parts", DAY): 1,
        ("reviews.note", DAY): 1,
    }
    with engine.begin() as connection:
        parts = json.loads(str(connection.scalar(sa.select(attempts.c.parts))))
        assert parts == {"what": f"bad row {ERASED}, not {VICTIM}2"}
        assert connection.scalars(sa.select(reviews.c.note)).all() == [f"like {ERASED}."]
        assert connection.execute(
            sa.select(labels.c.detector, labels.c.record_id).order_by(labels.c.detector)
        ).all() == [
            ("elsewhere", VICTIM),
            ("toy", OTHER),
        ]
    assert erase_rows(site, VICTIM) == []


CASE = {"detector": "toy", "state": "open", "severity": "low", "opened_at": NOW, "due_at": NOW}


def test_a_case_that_held_nothing_else_goes_with_its_history_and_others_keep_their_flags(
    engine: Warehouse, site: Site
) -> None:
    """Case 1 holds two records, 2 only the victim, 3 was merged into 2, 4 is another's, 5 was opened for the victim."""
    entities, into = {1: None, 2: "victim's", 3: "victim's too", 4: "other's", 5: None}, {3: 2}
    flags = [(1, VICTIM), (1, OTHER), (2, VICTIM), (4, OTHER)]
    with engine.begin() as connection:
        for number, entity in entities.items():
            row = CASE | {"case_id": number, "entity": entity, "merged_into": into.get(number)}
            row["record_id"] = None if entity else VICTIM
            connection.execute(sa.insert(cases).values(row))
            event = {"detector": "toy", "case_id": number, "number": 1, "happened_at": NOW, "kind": "note"}
            connection.execute(sa.insert(case_events).values(**event, actor="kim", note=f"see {VICTIM}"))
        for number, (case, record) in enumerate(flags):
            key = {"detector": "toy", "batch_date": DAY + timedelta(days=number), "record_id": record}
            connection.execute(sa.insert(case_flags).values(**key, case_id=case, attempt=1))
    places = {place.what: place.rows for place in erase_rows(replace(site, warehouse=engine), VICTIM)}
    assert places == {"case_flags": 1, "cases": 3, "case_events": 3, "case_events.note": 2}
    with engine.begin() as connection:
        left = sa.select(cases.c.case_id, cases.c.entity, cases.c.record_id).order_by(cases.c.case_id)
        assert connection.execute(left).all() == [(1, None, ERASED), (4, "other's", None)]
        found = connection.execute(sa.select(case_events.c.case_id, case_events.c.note).order_by(case_events.c.case_id))
        assert found.all() == [(1, f"see {ERASED}"), (4, f"see {ERASED}")]
        assert set(connection.scalars(sa.select(case_flags.c.record_id))) == {OTHER}


def test_messages_and_reasons_that_mention_the_record_forget_it(engine: Warehouse, site: Site) -> None:
    site = replace(site, warehouse=engine)
    fact = Fact("night_failed", "toy", "toy 1", DAY, NOW, f"bad {VICTIM}", f"got: {VICTIM}, {VICTIM}2")
    keep_messages(engine, [Planned("rule", "mail", fact, NOW)])
    add_suppression(engine, "toy", "card", None, f"see {VICTIM}", "kim", NOW, NOW + timedelta(days=1))
    places = {place.what: place.rows for place in erase_rows(site, VICTIM)}
    assert places == {"deliveries.title": 1, "deliveries.body": 1, "suppressions.reason": 1}
    [kept] = list_deliveries(engine)
    assert (kept.title, kept.body) == (f"bad {ERASED}", f"got: {ERASED}, {VICTIM}2")


@pytest.mark.parametrize("record", ["Zürich-1", 'a "b" \\c'])
def test_filters_of_the_desk_forget_the_record_and_those_named_after_it_go(
    engine: Warehouse, site: Site, record: str
) -> None:
    desk = Desk(engine, "toy", CasesParams(), "kim", NOW)
    keep_filter(desk, "mine", {"search": record, "state": "all"})
    keep_filter(desk, f"about {record}", {"state": "all"})
    keep_filter(desk, f"{record}0", {"search": f"{record}0"})
    places = {place.what: place.rows for place in erase_rows(replace(site, warehouse=engine), record)}
    assert places == {"saved_filters": 1, "saved_filters.query": 1}
    with engine.begin_reading() as connection:
        assert read_filters(connection, "toy", "kim") == {
            "mine": {"search": ERASED, "state": "all"},
            f"{record}0": {"search": f"{record}0"},
        }


def test_pages_that_show_the_record_go(site: Site) -> None:
    site.reports.mkdir(parents=True)
    texts = {1: html.escape(VICTIM), 2: f"{html.escape(VICTIM)} and more", 3: OTHER}
    for day, text in texts.items():
        (site.reports / f"2026-03-0{day}.html").write_text(f"<td>{text}</td><!--links-->old<!--/links-->")
    (site.reports / "index.html").write_text('<a href="2026-03-01.html">2026-03-01</a>')
    assert erase.erase_pages(site, VICTIM) == ("reports/toy/2026-03-01.html",)
    pages = sorted(site.reports.glob("*.html"))
    assert [path.stem for path in pages] == ["2026-03-02", "2026-03-03", "index"]
    assert not any("2026-03-01.html" in page.read_text() for page in pages)  # no link to it is left


def test_a_record_that_is_nowhere_is_an_error_that_changes_nothing(site: Site) -> None:
    put(site.lake, "landing", ROWS)
    before = site.lake.files("")
    with pytest.raises(RecordMissing, match="nobody"):
        erase_record(site, "nobody", NOW)
    assert site.lake.files("") == before


def test_a_lake_in_object_storage_is_rewritten_too(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(lake_root=f"memory://{tmp_path.name}/lake")
    put(site.lake, "landing", ROWS)
    erased: Erased = erase_record(site, VICTIM, NOW)
    assert erased.places == (Place("landing", DAY, 1),)
    assert site.lake.get("landing", "toy", DAY).rows == 2
    assert missing(site.lake) == []


def test_every_table_with_a_record_id_is_looked_into() -> None:
    assert {table for table in metadata.sorted_tables if "record_id" in table.c} <= erase.NAMED_BY.keys()


@pytest.mark.parametrize("driver", ["duckdb", "sqlite"])
def test_an_erased_id_is_in_no_free_page_of_the_warehouses_file(site: Site, tmp_path: Path, driver: str) -> None:
    path = tmp_path / f"night's.{driver}"
    engine = Warehouse(f"{driver}:///{path}")
    engine.migrate()
    ids = [f"customer-of-{number:06d}" for number in range(5000)]
    engine.add_labels("toy", pd.DataFrame({"record_id": ids, "label": 1, "known_at": pd.Timestamp(NOW)}))
    victim = ids[4321]
    with engine.begin() as connection:
        connection.execute(sa.delete(labels).where(labels.c.record_id != victim))
    assert victim.encode() in path.read_bytes()
    erase_record(replace(site, warehouse=engine), victim, NOW)
    assert victim.encode() not in path.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir() if "night" in one.name and "lock" not in one.name) == [
        path.name
    ]
    assert engine.read_schema() is not None
    engine.add_labels("toy", pd.DataFrame({"record_id": ids[:2], "label": 1, "known_at": pd.Timestamp(NOW)}))
    assert len(engine.list_labels("toy")) == 2


def test_free_pages_that_a_reader_keeps_are_named(site: Site) -> None:
    labelled = pd.DataFrame({"record_id": [VICTIM], "label": 1, "known_at": pd.Timestamp(NOW)})
    site.warehouse.add_labels("toy", labelled)
    path = str(site.warehouse.engine.url.database)
    code = f"import duckdb, sys; c = duckdb.connect({path!r}, read_only=True); print(flush=True); sys.stdin.read()"
    real = Warehouse.rewrite_file

    def rewrite_beside_a_reader(engine: Warehouse) -> None:
        with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            try:
                real(engine)
            finally:
                reader.communicate()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Warehouse, "rewrite_file", rewrite_beside_a_reader)
        [left] = erase_record(site, VICTIM, NOW).left
    assert "free pages" in left
    assert site.warehouse.read_schema() is not None
