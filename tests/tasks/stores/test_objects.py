"""The lake on a real S3 server: what a store can do that a folder cannot, and the other way round."""

import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from datetime import date

import pyarrow as pa
import pytest
from objects import SECRET, ObjectStore, forget_stores, make_big_rows, upload_for_ever
from s3fs import S3FileSystem

from tasks.errors import NightjarError, ParamsInvalid, ServiceUnreachable
from tasks.stores.lake import Lake

DAY = date(2026, 3, 1)
ROWS = pa.table({"record_id": ["a", "b", "c"]})


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    return object_store.make_bucket()


def commit(lake: Lake, rows: pa.Table = ROWS) -> None:
    partition = lake.write("landing", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(rows)
    partition.commit({})


def look_everywhere(lake: Lake) -> dict[str, object]:
    return {
        "find": lambda: lake.find("landing", "toy", DAY),
        "dates": lambda: lake.dates("landing", "toy"),
        "manifests": lambda: lake.manifests(),
        "pruned": lambda: lake.pruned("toy"),
        "files": lambda: lake.files("landing"),
        "attempts": lambda: lake.attempts("landing/toy"),
        "hash": lambda: lake.hash_file("landing/x"),
        "remove": lambda: lake.remove("landing/x"),
        "write": lambda: commit(lake),
    }


def test_a_part_of_several_pieces_is_one_object_or_none(object_store: ObjectStore, bucket: str) -> None:
    lake, rows = Lake(f"s3://{bucket}/lake"), make_big_rows()
    with pytest.raises(KeyboardInterrupt), lake.write("landing", "toy", DAY).part("part-0") as part:
        part.append(rows)
        assert object_store.list_uploads(bucket)
        raise KeyboardInterrupt
    assert object_store.list_keys(bucket) == object_store.list_uploads(bucket) == []
    commit(lake, rows)
    assert pa.concat_tables(lake.slices(lake.get("landing", "toy", DAY).parts[0])).equals(rows)
    assert object_store.list_uploads(bucket) == []


@pytest.mark.slow
def test_a_killed_upload_is_invisible_and_left_to_the_buckets_lifecycle_rule(
    object_store: ObjectStore, bucket: str
) -> None:
    root = f"s3://{bucket}/lake"
    # Not from a fork server: that would have the environment of the test that started it first.
    victim = multiprocessing.get_context("spawn").Process(target=upload_for_ever, args=(root, DAY))
    victim.start()
    while not object_store.list_uploads(bucket):
        assert victim.is_alive()
        time.sleep(0.05)
    os.kill(int(victim.pid or 0), signal.SIGKILL)
    victim.join()
    lake = Lake(root)
    assert lake.files("") == {}
    assert lake.attempts(lake.partition("landing", "toy", DAY)) == []
    commit(lake)
    assert lake.get("landing", "toy", DAY).rows == 3
    assert len(object_store.list_uploads(bucket)) == 1  # what docs/settings.md asks a lifecycle rule for


def test_what_another_writer_has_committed_is_seen_at_once(object_store: ObjectStore, bucket: str) -> None:
    lake = Lake(f"s3://{bucket}/lake")
    assert (lake.dates("landing", "toy"), lake.files(""), lake.manifests()) == ([], {}, [])
    manifest = lake.manifest_path("landing", "toy", DAY)
    commit(Lake("memory://aside"))
    data = Lake("memory://aside").read(manifest)
    object_store.client.put_object(Bucket=bucket, Key=f"lake/{manifest}", Body=data)  # past fsspec
    assert (lake.dates("landing", "toy"), list(lake.files("")), lake.manifests()) == ([DAY], [manifest], [manifest])
    object_store.client.delete_object(Bucket=bucket, Key=f"lake/{manifest}")
    assert (lake.find("landing", "toy", DAY), lake.dates("landing", "toy"), lake.files("")) == (None, [], {})


def test_a_mistyped_bucket_is_named_and_not_made(object_store: ObjectStore) -> None:
    before = len(object_store.client.list_buckets()["Buckets"])
    for look in look_everywhere(Lake("s3://no-such-bucket/lake")).values():
        with pytest.raises(ServiceUnreachable, match="bucket does not exist") as refused:
            look()
        assert "s3://no-such-bucket/lake" in str(refused.value)
    assert len(object_store.client.list_buckets()["Buckets"]) == before


@pytest.mark.parametrize("fault", ["away", "no keys", "wrong keys"])
@pytest.mark.slow
def test_an_unreachable_or_refusing_store_gives_a_readable_error_without_the_secret(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    commit(Lake(f"s3://{bucket}/lake"))
    manifest = Lake(f"s3://{bucket}/lake").get("landing", "toy", DAY)
    if fault == "away":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elif fault == "no keys":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_stores()
    lake = Lake(f"s3://{bucket}/lake")
    looks = look_everywhere(lake) | {
        "slices": lambda: list(lake.slices(manifest.parts[0])),
        "query": lambda: lake.query("select count(*) from parts", manifest.parts),
    }
    with object_store.refusing() if fault == "wrong keys" else nullcontext():
        for name, look in looks.items():
            with pytest.raises(NightjarError) as refused:
                look()
            assert isinstance(refused.value, ServiceUnreachable), (name, refused.value)
            assert SECRET not in str(refused.value)
            assert "NIGHTJAR_LAKE" in str(refused.value)


@pytest.mark.parametrize("root", ["nothing://bucket/lake", "gs://bucket/lake"])
def test_a_url_that_nothing_here_can_open_is_refused_as_a_setting(root: str) -> None:
    with pytest.raises(ParamsInvalid, match="NIGHTJAR_LAKE"):
        Lake(root)


def test_a_password_in_the_lakes_url_is_not_repeated() -> None:
    with pytest.raises(ParamsInvalid) as refused:
        Lake("nothing://me:s3cret@host/lake")
    assert "s3cret" not in str(refused.value)
