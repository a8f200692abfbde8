"""A real S3 server over HTTP on loopback (moto's), in a separate process, and buckets on it."""

import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from network import find_free_port

from tasks.stores.files import PIECE_BYTES
from tasks.stores.lake import Lake

SECRET = "s3cret-of-the-object-store"


class ObjectStore:
    """A server that answers; `environment` is what a process needs to reach it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    @property
    def client(self) -> Any:
        """A client that is not ours: boto3's own."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="tests",
            aws_secret_access_key=SECRET,
            region_name="eu-central-1",
        )

    def make_bucket(self) -> str:
        """A new, empty bucket."""
        name = f"nightjar-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        return name

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def list_uploads(self, bucket: str) -> list[str]:
        """Keys of uploads in several pieces that nobody has finished."""
        return [found["Key"] for found in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Meanwhile the server checks keys, and knows none."""
        before = self._let_pass(b"0")
        try:
            yield
        finally:
            self._let_pass(before)

    def _let_pass(self, requests: bytes) -> bytes:
        plain = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{self.url}/moto-api/reset-auth", data=requests, headers=plain)
        with urllib.request.urlopen(asked) as answer:
            return str(json.load(answer)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"]).encode()


@contextmanager
def start_object_store(folder: Path) -> Iterator[ObjectStore]:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "moto.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_up(f"{url}/moto-api/", server)
            yield ObjectStore(url)
        finally:
            server.terminate()
            server.wait()


def make_big_rows() -> pa.Table:
    """Rows that no codec makes small: more than goes up in one piece."""
    return pa.table({"noise": np.random.default_rng(0).normal(size=3 * PIECE_BYTES // 8)})


def upload_for_ever(root: str, day: date) -> None:
    """What a process does that is to be killed with a part half uploaded; here, where a new process finds it."""
    with Lake(root).write("landing", "toy", day).part("part-0") as part:
        part.append(make_big_rows())
        time.sleep(600)


def _wait_until_up(url: str, server: "subprocess.Popen[bytes]", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def forget_stores() -> None:
    """Make fsspec read the environment again: it caches file systems by their arguments."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
