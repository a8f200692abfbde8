"""A project on the eve of a night: runs that are killed or race start here, and what they leave is held against it.

The night has three deliveries, bad rows, doubled rows, groups and a cap on alerts, so that every column says something.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow.parquet as pq
import sqlalchemy as sa
from objects import ObjectStore
from psycopg import sql
from toy import DAYS, FIRST, make_project, make_rows
from victims import Victim, start

from flows.config.settings import Settings
from flows.config.setup import load_setup
from models.detector import Detector
from tasks.rows.params import RetentionParams
from tasks.stores.lake import Lake
from tasks.stores.tables import flagged_anomalies, group_scores, labels, scoring_batches
from tasks.stores.warehouse import Warehouse
from tasks.upkeep.prune import prune_detector

NIGHT = FIRST + timedelta(days=DAYS)
# What may differ between two runs. The key of the scores follows the order in which parts happened to land; what lies
# there is compared part by part.
PASSING = {"attempt", "scored_at", "seconds", "scores", "superseded_at", "superseded_by"}
TABLES = (flagged_anomalies, scoring_batches, group_scores, labels)
ZONES = ("landing", "validated", "quarantine")


@dataclass
class Scene:
    """A project folder, its warehouse and lake, and how to put all back to the eve."""

    folder: Path
    postgres: str | None  # the server's URL; None: DuckDB
    environment: dict[str, str]
    store: ObjectStore | None = None  # of the lake; None: it lies in the project's folder
    bucket: str = ""
    runs: int = 0

    @property
    def home(self) -> Path:
        return self.folder / ".nightjar"

    @property
    def warehouse_url(self) -> str:
        return f"{self.postgres}/{self.database}" if self.postgres else f"duckdb:///{self.home}/warehouse.duckdb"

    @property
    def database(self) -> str:
        return f"scene_{self.folder.parent.name.replace('-', '_')}"

    @property
    def kind(self) -> str:
        return "PostgreSQL" if self.postgres else "DuckDB, lake on S3" if self.store else "DuckDB"

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.warehouse_url)

    @property
    def lake(self) -> Lake:
        return Lake(self.lake_root)

    @property
    def lake_root(self) -> str:
        return f"s3://{self.bucket}/lake" if self.store else str(self.home / "lake")

    def start(self, *arguments: str, pause_at: str | None = None, **environment: str) -> Victim:
        """Start a command on this project; with `pause_at` it stops itself at that log message."""
        self.runs += 1
        log = self.folder / f"run-{self.runs}.log"
        return start(list(arguments), self.environment | environment, log, pause_at)

    def run(self, *arguments: str, expected: int = 0, **environment: str) -> str:
        """Run a command to its end and return its words."""
        victim = self.start(*arguments, **environment)
        code = victim.end()
        assert code == expected, victim.text
        return victim.text

    def keep(self) -> None:
        """Remember this moment as the eve."""
        shutil.copytree(self.home, self.folder / "eve")
        self._copy_objects("lake", "eve")
        self._copy_database(f"{self.database}_eve", self.database)

    def put_back(self) -> None:
        """Go back to the eve: lake, warehouse, MLflow, reports."""
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / "eve", self.home)
        self._copy_objects("eve", "lake")
        self._copy_database(self.database, f"{self.database}_eve")

    def _copy_objects(self, old: str, new: str) -> None:
        if self.store is None:
            return
        client = self.store.client
        for key in self.store.list_keys(self.bucket, f"{new}/"):
            client.delete_object(Bucket=self.bucket, Key=key)
        for key in self.store.list_keys(self.bucket, f"{old}/"):
            source = {"Bucket": self.bucket, "Key": key}
            client.copy_object(Bucket=self.bucket, Key=key.replace(old, new, 1), CopySource=source)

    def _copy_database(self, name: str, template: str | None) -> None:
        if self.postgres is None:
            return
        with psycopg.connect(f"{self.postgres.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
            of = sql.SQL(" template {}").format(sql.Identifier(template)) if template else sql.SQL("")
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)) + of)

    def list_files(self) -> list[str]:
        """The files of the lake, without the numbers and tokens that distinguish attempts."""
        return sorted(re.sub(r"attempt=\d+|-[0-9a-f]{8}\b", "", name) for name in self.lake.files(""))

    def prune_later(self) -> None:
        """Prune as if two days had gone by, after which no live attempt needs a file any more."""
        if self.store:  # whose files cannot be made older
            site = load_setup("orders", Settings(project=self.folder, lake=self.lake_root)).site
            prune_detector(site, RetentionParams(), datetime.now(UTC) + timedelta(days=2))
            return
        for path in (self.home / "lake").rglob("*"):
            then = path.stat().st_mtime - 2 * 86_400
            os.utime(path, (then, then))
        self.run("prune", "orders")

    def list_finished(self) -> dict[str, datetime]:
        """The parts of scores that are finished, and when they were."""
        receipts = [name for name in self.lake.files("scores/orders") if re.search(r"/part-\d+\.json$", name)]
        return {name: self.lake.modified(name.replace(".json", ".parquet")) for name in receipts}

    def read_table(self, table: sa.Table, day: date | None = None) -> list[tuple[Any, ...]]:
        """A table's rows, of one batch if given, without what may differ between two runs; sorted."""
        columns = [column for column in table.c if column.name not in PASSING]
        query = sa.select(*columns)
        if day is not None:
            query = query.where(table.c.batch_date == day)
        with self.warehouse.begin() as connection:
            return sorted(tuple(map(repr, row)) for row in connection.execute(query))

    def read_all(self) -> dict[str, Any]:
        """Everything published, learnt and stored, without process and time; parts by content hash."""
        tables = {table.name: self.read_table(table) for table in TABLES}
        zones = {zone: self.read_zone(zone) for zone in ZONES}
        scores = {
            str(day): self.read_parts(self.lake.get("scores", "orders", day, inputs).parts)
            for day, inputs in self.read_scores()
        }
        return tables | zones | {"scores": scores}

    def ask_mlflow(self, query: str) -> list[tuple[Any, ...]]:
        """Ask MLflow's database, past MLflow: it would remember the file that `put_back` has replaced."""
        with closing(sqlite3.connect(self.home / "mlflow.db")) as connection:
            return connection.execute(query).fetchall()

    def read_versions(self) -> dict[int, tuple[str, str]]:
        """Of each registered version the bundle's hash, read from its files, and its aliases."""
        aliases = dict(self.ask_mlflow("select version, group_concat(alias) from registered_model_aliases group by 1"))
        places = self.ask_mlflow("select version, storage_location from model_versions order by version")
        tagged = dict(self.ask_mlflow("select version, value from model_version_tags where key = 'bundle_hash'"))
        found = {}
        for version, place in places:
            [manifest] = Path(place.removeprefix("file://")).glob("data/*/manifest.json")
            Detector.load(manifest.parent)  # checks every byte
            found[version] = (json.loads(manifest.read_text())["content_hash"], aliases.get(version, ""))
            assert tagged[version] == found[version][0]
        return found

    def read_scores(self) -> list[tuple[date, str]]:
        with self.warehouse.begin() as connection:
            found = sa.select(scoring_batches.c.batch_date, scoring_batches.c.scores)
            return [(row.batch_date, row.scores) for row in connection.execute(found)]

    def read_zone(self, zone: Any) -> dict[str, Any]:
        return {
            str(day): self.read_parts(self.lake.get(zone, "orders", day).parts)
            for day in self.lake.dates(zone, "orders")
        }

    def read_parts(self, parts: Any) -> list[str]:
        """The content of parts, by hash; each must hold what its manifest says."""
        found = []
        for part in parts:
            assert self.lake.hash_file(part.path) == part.sha256, part.path
            with self.lake.open(part.path) as file:
                assert pq.read_metadata(file).num_rows == part.rows
            found.append(part.sha256)
        return sorted(found)


def make_scene(
    folder: Path, postgres: str | None, environment: Mapping[str, str], store: ObjectStore | None = None
) -> Scene:
    """A project that is trained and has published two nights, with the third one's deliveries waiting."""
    project = make_project(folder)
    project.change("params.yaml", "detectors", "orders", "score", value={"max_alerts": 5, "groups": {"by": "shop"}})
    project.change("params.yaml", "detectors", "orders", "validate", value={"max_quarantined_fraction": 0.2})
    scene = Scene(folder, postgres, {}, store, store.make_bucket() if store else "")
    scene.environment |= {
        "NIGHTJAR_PROJECT": str(folder),
        "NIGHTJAR_SOURCES": str(folder / "sources"),
        "NIGHTJAR_WAREHOUSE": scene.warehouse_url,
        "NIGHTJAR_LAKE": scene.lake_root,
    } | dict(environment)
    scene._copy_database(scene.database, None)
    scene.run("run", "orders")
    rows = make_rows(NIGHT, 600)
    rows.loc[[7, 207, 407], "spend"] = -1.0
    for number in range(3):
        delivery = pd.concat([rows[200 * number : 200 * number + 200], rows[200 * number : 200 * number + 2]])
        delivery.to_csv(project.orders / f"orders-{NIGHT}-{number}.csv", index=False)
    scene.keep()
    return scene
