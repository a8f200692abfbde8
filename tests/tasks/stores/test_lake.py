import gc
import json
import pickle
import weakref
from contextlib import suppress
from datetime import date
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import BatchMissing, ServiceUnreachable, SourceInvalid
from tasks.stores.lake import Lake, Manifest, quote

DAY = date(2026, 3, 1)
ROWS = pa.table({"record_id": ["a", "b", "c"], "amount": [1.0, None, 3.5]})


@pytest.fixture(params=["folder", "memory", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "s3":
        return Lake(f"s3://{request.getfixturevalue('object_store').make_bucket()}/some/where")
    return Lake(str(tmp_path / "lake") if request.param == "folder" else f"memory://{tmp_path.name}/lake")


def write(lake: Lake, *tables: pa.Table, day: date = DAY, keep=(), **origin: str) -> Manifest:
    """Commit a landing partition of one part a table."""
    partition = lake.write("landing", "toy", day)
    for number, table in enumerate(tables):
        with partition.part(f"part-{number}", **origin) as part:
            part.append(table)
    return partition.commit({}, keep=keep)


def read(lake: Lake, manifest: Manifest) -> pa.Table:
    return pa.concat_tables([piece for part in manifest.parts for piece in lake.slices(part)])


def test_what_is_written_is_read_back(lake):
    written = write(lake, ROWS, ROWS.slice(1), source="feed", version="7", arrived_at="2026-03-02T02:00:00+00:00")
    found = lake.get("landing", "toy", DAY)
    assert found == written
    assert (found.rows, found.attempt, found.parts[0].source, found.parts[0].version) == (5, 1, "feed", "7")
    assert read(lake, found).equals(pa.concat_tables([ROWS, ROWS.slice(1)]))


def test_a_partition_without_a_manifest_is_invisible(lake):
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(ROWS)
    assert lake.find("landing", "toy", DAY) is None
    assert lake.dates("landing", "toy") == []
    with pytest.raises(BatchMissing, match="no landing rows for 2026-03-01") as caught:
        lake.get("landing", "toy", DAY)
    assert all(word in str(caught.value) for word in ("where:", "got:", "expected:", "to do:"))


def test_a_dead_attempt_leaves_the_old_partition_and_its_number_is_not_used_again(lake):
    old = write(lake, ROWS)
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(ROWS.slice(0, 1))
    with pytest.raises(KeyboardInterrupt), partition.part("part-1") as part:
        part.append(ROWS.slice(1))
        raise KeyboardInterrupt
    assert lake.get("landing", "toy", DAY) == old
    assert write(lake, ROWS.slice(0, 2)).attempt == 3
    assert lake.get("landing", "toy", DAY).rows == 2


def test_a_reader_keeps_the_attempt_it_began_with(lake):
    old = write(lake, ROWS)
    new = write(lake, ROWS.slice(0, 1))
    assert (old.attempt, new.attempt) == (1, 2)
    assert read(lake, old).equals(ROWS)
    assert read(lake, lake.get("landing", "toy", DAY)).num_rows == 1


def test_a_lake_that_reads_once_sees_what_it_writes_itself_and_nothing_else(lake):
    old = write(lake, ROWS)
    once = lake.reading_once()
    assert (once.find("landing", "toy", DAY), once.dates("landing", "toy")) == (old, [DAY])
    new, another = write(lake, ROWS.slice(0, 1)), date(2026, 3, 2)
    write(lake, ROWS, day=another)
    assert (once.get("landing", "toy", DAY), once.dates("landing", "toy")) == (old, [DAY])
    assert (lake.get("landing", "toy", DAY), lake.dates("landing", "toy")) == (new, [DAY, another])
    newest = write(once, ROWS.slice(1))
    assert once.get("landing", "toy", DAY) == lake.get("landing", "toy", DAY) == newest


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path))
    old = write(lake, ROWS)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ServiceUnreachable, match="disk full"):
        write(lake, ROWS.slice(1))
    assert lake.get("landing", "toy", DAY) == old


def test_a_part_whose_rows_end_in_an_error_leaves_no_file(tmp_path):
    lake = Lake(str(tmp_path))
    partition = lake.write("landing", "toy", DAY)
    with pytest.raises(OSError, match="the source is gone"), partition.part("part-0") as part:
        part.append(ROWS)
        assert [path.suffix for path in tmp_path.rglob("part-*")] == [".new"]
        raise OSError("the source is gone")
    assert not list(tmp_path.rglob("part-*"))
    assert not partition.parts


@pytest.mark.parametrize("fails", [False, True])
def test_a_lake_that_has_written_leaves_memory_with_its_last_user(tmp_path, fails):
    def use() -> weakref.ref[Lake]:
        lake = Lake(str(tmp_path))
        with suppress(OSError), lake.write("landing", "toy", DAY).part("part-0") as part:
            part.append(ROWS)
            if fails:
                raise OSError
        return weakref.ref(lake)

    used = use()
    gc.collect()
    assert used() is None


def test_partitions_with_different_inputs_exist_side_by_side(lake):
    for inputs, rows in (("one", ROWS), ("two", ROWS.slice(1)), ("two", ROWS.slice(1))):
        partition = lake.write("scores", "toy", DAY, inputs)
        with partition.part("part-0") as part:
            part.append(rows)
        partition.commit({})
    assert [lake.get("scores", "toy", DAY, inputs).rows for inputs in ("one", "two")] == [3, 2]
    assert lake.get("scores", "toy", DAY, "two").parts[0].path.endswith("inputs=two/part-0.parquet")
    assert lake.find("scores", "toy", DAY) is None


def test_parts_of_earlier_attempts_can_be_kept(lake):
    old = write(lake, ROWS)
    new = write(lake, ROWS.slice(2), keep=old.parts)
    assert [part.path.split("/")[-2] for part in new.parts] == ["attempt=1", "attempt=2"]
    assert read(lake, new)["record_id"].to_pylist() == ["a", "b", "c", "c"]


def test_a_part_without_rows_is_not_kept(lake):
    manifest = write(lake, ROWS.slice(0, 0), ROWS)
    assert [part.path.rsplit("/", 1)[-1].rpartition("-")[0] for part in manifest.parts] == ["part-1"]


def test_the_hash_depends_on_the_content_of_the_parts_and_on_nothing_else(lake):
    first, second = ROWS.slice(0, 1), ROWS.slice(1)
    known = write(lake, first, second).hash
    assert write(lake, first, second, day=date(2026, 3, 2)).hash == known
    assert write(lake, first, second, source="other", version="2").hash == known
    assert write(lake, second, first).hash == known
    others = [(first,), (ROWS,), (first, second.set_column(1, "amount", pa.array([None, 3.6])))]
    assert len({known} | {write(lake, *tables).hash for tables in others}) == 4


def test_the_hash_of_a_part_is_that_of_its_bytes(lake):
    import hashlib

    (part,) = write(lake, ROWS).parts
    assert part.sha256 == hashlib.sha256(lake.read(part.path)).hexdigest()


def test_dates_are_listed_in_order_for_their_own_zone_and_detector(lake):
    days = [date(2026, 3, 2), date(2025, 12, 31), DAY]
    for day in days:
        write(lake, ROWS, day=day)
    assert lake.dates("landing", "toy") == sorted(days)
    assert lake.dates("validated", "toy") == lake.dates("landing", "to") == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda rows: rows, True),
        (lambda rows: rows.take([2, 0, 3, 1]), True),
        (lambda rows: rows.select(["amount", "record_id"]), True),
        (lambda rows: rows.take([0, 1, 2, 2]), False),  # as many rows, one twice
        (lambda rows: rows.take([0, 1, 2]), False),
        (lambda rows: rows.set_column(1, "amount", pa.array([1.0, 0.0, 3.5, float("nan")])), False),
        (lambda rows: rows.set_column(1, "amount", pa.array([1, None, 3, 4])), False),
        (lambda rows: rows.rename_columns(["record_id", "total"]), False),
    ],
)
def test_parts_have_the_same_rows_whatever_their_order(lake, change, same):
    rows = pa.table({"record_id": ["a", "b", "c", "d"], "amount": [1.0, None, 3.5, float("nan")]})
    one = write(lake, rows.slice(0, 1), rows.slice(1)).parts
    other = write(lake, change(rows)).parts
    assert lake.have_same_rows(one, other) is same
    assert lake.have_same_rows(other, one) is same


def test_a_query_sees_all_parts_by_column_name(lake):
    wider = ROWS.append_column("country", pa.array(["DE", "FR", None])).select(["country", "amount", "record_id"])
    manifest = write(lake, ROWS, wider)
    found = lake.query("select count(*) as n, sum(amount) as total, max(country) as last from parts", manifest.parts)
    assert found.to_pylist() == [{"n": 6, "total": 9.0, "last": "FR"}]
    assert lake.columns(manifest.parts[1]) == ["country", "amount", "record_id"]


def test_slices_read_the_requested_columns_and_may_be_dictionary_encoded(lake):
    (part,) = write(lake, ROWS).parts
    (piece,) = lake.slices(part, ["record_id"], ("record_id",))
    assert piece.column_names == ["record_id"]
    assert pa.types.is_dictionary(piece["record_id"].type)


def test_parts_are_read_in_slices_of_bounded_size(lake, monkeypatch):
    monkeypatch.setattr("tasks.stores.lake.SLICE_ROWS", 2)
    (part,) = write(lake, ROWS).parts
    assert [piece.num_rows for piece in lake.slices(part)] == [2, 1]


def test_slices_of_wide_rows_have_fewer_rows_and_are_as_they_were_written(lake, monkeypatch):
    monkeypatch.setattr("tasks.stores.lake.SLICE_BYTES", 10_000)
    narrow = pa.table({"record_id": ["a", "b"], "text": ["x", "y"]})
    wide = pa.table({"record_id": list("cdefgh"), "text": ["z" * 4_000] * 6})
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(narrow)
        part.append(wide)
    (part,) = partition.commit({}).parts
    pieces = list(lake.slices(part))
    assert all(piece.nbytes <= 10_000 for piece in pieces)
    assert all(piece.schema.equals(wide.schema, check_metadata=True) for piece in pieces)
    assert lake.schema(part).equals(wide.schema, check_metadata=True)
    assert pa.concat_tables(pieces).equals(pa.concat_tables([narrow, wide]))


@pytest.mark.parametrize("table", [ROWS, pa.table({"record_id": list("abc"), "text": ["z" * 50_000] * 3})])
def test_the_bytes_of_a_part_of_one_slice_do_not_depend_on_the_budget(lake, monkeypatch, table):
    (before,) = write(lake, table).parts
    monkeypatch.setattr("tasks.stores.lake.SLICE_BYTES", table.nbytes * 1_000_000)
    (after,) = write(lake, table).parts
    assert before.sha256 == after.sha256


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PAR1" * 9, None]
)
def test_a_damaged_or_missing_part_says_which_and_what_to_do(lake, damage):
    (part,) = write(lake, ROWS).parts
    if damage:
        lake.replace(part.path, damage(lake.read(part.path)))
    else:
        fs, path = fsspec.core.url_to_fs(f"{lake.root}/{part.path}")
        fs.rm(path)
    for look in (
        lambda: list(lake.slices(part)),
        lambda: lake.columns(part),
        lambda: lake.query("select count(amount) from parts", (part,)),
    ):
        with pytest.raises(SourceInvalid) as caught:
            look()
        message = str(caught.value)
        assert part.path in message
        assert all(word in message for word in ("where:", "got:", "expected:", "to do:"))


def test_a_root_that_cannot_be_written_is_a_service_that_does_not_answer(tmp_path):
    (tmp_path / "lake").write_text("a file where a folder should be")
    with pytest.raises(ServiceUnreachable, match="NIGHTJAR_LAKE"):
        write(Lake(str(tmp_path / "lake")), ROWS)


def test_a_lake_travels_to_other_processes(lake):
    manifest = write(lake, ROWS)
    lake.query("select 1 as one from parts", manifest.parts)
    assert read(pickle.loads(pickle.dumps(lake)), manifest).equals(ROWS)


def test_the_manifest_is_json_for_people_too(tmp_path):
    manifest = write(Lake(str(tmp_path)), ROWS)
    document = json.loads((tmp_path / "landing/toy/batch_date=2026-03-01/manifest.json").read_bytes())
    assert (document["hash"], document["batch_date"]) == (manifest.hash, "2026-03-01")
    assert pq.read_table(tmp_path / document["parts"][0]["path"]).equals(ROWS)


def test_quoted_names_are_safe_in_sql(lake):
    name = 'a"; drop table x --'
    manifest = write(lake, pa.table({name: [1, 2]}))
    assert lake.query(f"select sum({quote(name)})::int as s from parts", manifest.parts)["s"].to_pylist() == [3]


VALUES = st.tuples(
    st.one_of(st.none(), st.text(max_size=8)),
    st.one_of(st.none(), st.floats(allow_nan=False)),
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slices=st.lists(st.lists(VALUES, max_size=6), min_size=1, max_size=4))
def test_any_table_written_in_slices_comes_back_whole(tmp_path, slices):
    schema = pa.schema({"text": pa.string(), "number": pa.float64(), "whole": pa.int64()})
    tables = [
        pa.table([pa.array([row[i] for row in rows], kind) for i, kind in enumerate(schema.types)], schema=schema)
        for rows in slices
    ]
    lake = Lake(str(tmp_path))
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        for table in tables:
            part.append(table)
    manifest = partition.commit({})
    whole = pa.concat_tables(tables)
    assert manifest.rows == whole.num_rows
    assert pa.concat_tables([schema.empty_table(), *(p for part in manifest.parts for p in lake.slices(part))]).equals(
        whole
    )


def test_one_flipped_bit_in_a_part_is_noticed_when_it_is_read(tmp_path):
    lake = Lake(str(tmp_path))
    [part] = write(lake, pa.table({"score": np.random.default_rng(0).normal(size=1000)})).parts
    path = tmp_path / part.path
    sound = path.read_bytes()
    path.write_bytes(sound[:3000] + bytes([sound[3000] ^ 1]) + sound[3001:])
    with pytest.raises(SourceInvalid, match="missing or damaged"):
        list(lake.slices(part))
