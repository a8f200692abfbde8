"""What every flow and command starts with: a detector's params and its stores."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import TypeVar
from urllib.parse import quote

from pydantic import JsonValue

from flows.config.params import Configured, load_detector
from flows.config.quiet import clean_logs, hush_at_exit, hush_lost_connections
from flows.config.settings import Settings, load_settings
from tasks.errors import BatchMissing, ParamsInvalid
from tasks.rows.params import IngestParams
from tasks.rows.record import RecordRule
from tasks.sources.codes import CodesSource
from tasks.sources.files import FilesSource
from tasks.sources.kinds import Window, find_first_date
from tasks.sources.payments import PaymentsSource
from tasks.sources.sql import SqlSource
from tasks.stores.lake import Lake
from tasks.stores.registry import COLUMN_TYPES, THRESHOLD_POLICY, Registry, Version
from tasks.stores.site import Site
from tasks.stores.warehouse import Warehouse

NAMES = {
    "params_hash": "the params (time zone, label delay, ingest, validate, filter or train)",
    "contract_hash": "the contract",
    THRESHOLD_POLICY: "the threshold policy",
}
AnyUrl = TypeVar("AnyUrl", SqlSource, FilesSource, SqlSource | FilesSource)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


@dataclass(frozen=True)
class Setup:
    """One detector, ready to run."""

    configured: Configured
    site: Site
    scheduler: str | None  # address of the Dask cluster that scores the parts; None: threads in this process
    workers: int  # number of threads
    settings: Settings

    @property
    def ingest_params(self) -> IngestParams:
        """The ingest section, with `${NAME}` in the source's URL replaced from the environment."""
        params = self.configured.detector.ingest
        if isinstance(params.source, PaymentsSource | CodesSource):
            return params
        return params.model_copy(update={"source": fill_url(params.source)})

    @property
    def record_rule(self) -> RecordRule:
        """What is published of a flagged record. Raises ParamsInvalid if it needs a key and has none."""
        entity, publish = self.configured.detector.entity, self.configured.detector.publish
        key = self.settings.read_pseudonym_key() if publish.pseudonymise else b""
        return RecordRule(entity, publish.show, frozenset(publish.pseudonymise), key)

    @property
    def hashes(self) -> dict[str, JsonValue]:
        """What the lineage records of params and contract: hashes, formats, and the columns of `tasks.serving`'s rules.

        Those are columns that allow null, those that allow infinity, and history columns.
        """
        columns, names = self.configured.contract.columns, self.configured.detector.reads
        read = {name: columns[name] for name in names if name in columns}
        history = [name for name in names if name in self.configured.detector.history]  # none without an entity
        gaps: dict[str, JsonValue] = {
            "nullable": [*(name for name, column in read.items() if column.nullable), *history],
            "infinite": [name for name, column in read.items() if column.infinite],
            "history": [*history],
        }
        hashes = {"params_hash": self.configured.params_hash, "contract_hash": self.configured.contract.hash}
        formats: dict[str, JsonValue] = {name: column.format for name, column in read.items() if column.format}
        return {**hashes, **{kind: found for kind, found in (gaps | {"formats": formats}).items() if found}}

    @property
    def tags(self) -> dict[str, str]:
        """What a version's tags record of the params and the contract in addition to its lineage."""
        columns, names = self.configured.contract.columns, self.configured.detector.reads
        types: dict[str, str] = {name: columns[name].type for name in names if name in columns}
        types |= {name: what for name, what in self.configured.detector.history.items() if name in names}
        calibrate = self.configured.detector.calibrate
        policy = (calibrate if calibrate.by else calibrate.threshold).model_dump_json()
        return {COLUMN_TYPES: json.dumps(types), THRESHOLD_POLICY: policy}

    def changes_since(self, version: Version) -> str:
        """What of params and contract has changed since a version was trained, as one sentence; "" if nothing has."""
        learnt = {"params_hash": self.configured.params_hash, "contract_hash": self.configured.contract.hash}
        now = {**learnt, THRESHOLD_POLICY: self.tags[THRESHOLD_POLICY]}
        changed = [NAMES[key] for key, value in now.items() if version.tags.get(key, value) != value]
        if not changed:
            return ""
        detector = self.site.detector
        return (
            f"{' and '.join(changed)} changed after version {version.version} was trained: "
            f"nightjar run {detector} --retrain"
        )

    def window(self, first: date | None = None, last: date | None = None) -> Window:
        """The dates to read from the source; by default from its first date to yesterday."""
        now = datetime.now(UTC)
        begin = find_first_date(self.configured.detector.ingest.source)
        return Window(max(first or begin, begin), last or self.yesterday(now), now)

    def today(self, now: datetime | None = None) -> date:
        """Today's date in the detector's time zone."""
        return (now or datetime.now(UTC)).astimezone(self.site.zone).date()

    def yesterday(self, now: datetime | None = None) -> date:
        """The newest batch date that is complete."""
        return self.today(now) - timedelta(days=1)

    def newest_cutoff(self) -> date:
        """The cut-off that includes all data: today, or the day after the last date of data that has ended."""
        run = self.configured.detector.run
        return self.today() if run.every_night or run.last_date is None else run.last_date + timedelta(days=1)

    def landed_before(self, cutoff: date, most: int | None = None) -> list[date]:
        """The batch dates with landed rows before a cut-off, without filter.exclude_dates: all, or the latest `most`.

        A date that all rows have left, such as after a change of the rule for their times, is not one of them. Raises
        BatchMissing without any.
        """
        excluded, lake, name = self.configured.detector.filter.exclude_dates, self.site.lake, self.site.detector
        known = [day for day in lake.dates("landing", name) if day < cutoff and day not in excluded]
        landed = (day for day in reversed(known) if lake.get("landing", name, day).parts)
        dates = [*islice(landed, most)][::-1]
        if not dates:
            raise BatchMissing(
                f"{self.site.detector} has no batches before {cutoff}.",
                where=self.site.lake.root,
                todo=f"run nightjar ingest {self.site.detector}, or choose a later cut-off",
            )
        return dates

    def nights(self) -> list[date]:
        """The dates that `nightjar run` scores: the last `run.nights` landed, up to `run.last_date` or yesterday."""
        run = self.configured.detector.run
        last = run.last_date or self.yesterday()
        return self.landed_before(last + timedelta(days=1), run.nights)


def fill_url(source: AnyUrl) -> AnyUrl:
    """A source with `${NAME}` in its URL replaced from the environment. Raises ParamsInvalid if one is not set."""
    key = "url" if isinstance(source, SqlSource) else "path"
    url = str(getattr(source, key))
    return source.model_copy(update={key: fill_in(url, os.environ)}) if "://" in url or key == "url" else source


def fill_in(url: str, environment: Mapping[str, str]) -> str:
    """A URL with `${NAME}` and `$NAME` replaced. A login or a parameter is escaped, unless it already is."""
    begin, end = url.find("://") + 3, url.rfind("@")

    def fill(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in environment:
            raise ParamsInvalid(
                f"A URL needs the variable {name}, which is not set.",
                where=url,
                todo=f"export {name}=VALUE, for workers too",
            )
        value = environment[name]
        is_login, is_parameter = begin > 2 and begin <= found.start() < end, "?" in url[: found.start()]
        if (is_login or is_parameter) and re.search(r"[^\w.~%+-]", value):
            is_both = is_login and found.start() == begin and found.end() == end  # user:password in one variable
            return quote(value, safe=":" if is_both else "")
        return value

    return VARIABLE.sub(fill, url)


def prepare(name: str) -> Setup:
    """Load a detector, migrate its warehouse and mark attempts of dead processes as failed.

    If the project was copied, MLflow's file is made to name the copy's artifacts. Raises ParamsInvalid,
    ServiceUnreachable.
    """
    setup = prepare_reading(name)
    setup.site.warehouse.end_dead_attempts(name, datetime.now(UTC))
    setup.site.registry.follow_copy()
    return setup


def prepare_reading(name: str) -> Setup:
    """The same for what writes nothing to the warehouse: it changes only a missing or an older one."""
    hush_at_exit()  # it would clutter a worker's log
    clean_logs()
    hush_lost_connections()
    setup = load_setup(name)
    setup.site.warehouse.migrate()
    return setup


def load_setup(name: str, settings: Settings | None = None, sole_writer: bool = False) -> Setup:
    """Load a detector without touching any store. Raises ParamsInvalid.

    settings: by default from the environment. sole_writer: nothing else writes to the lake, so file names are fixed;
    experiments need this.
    """
    settings = settings or load_settings()
    configured = load_detector(settings.project, name)
    enrich = configured.detector.enrich
    site = Site(
        detector=name,
        time_zone=configured.detector.time_zone,
        label_delay=configured.label_delay,
        sources=settings.sources,
        lake=Lake(settings.lake_root, sole_writer),
        warehouse=Warehouse(settings.warehouse_url, settings.lost_after_s),
        registry=Registry(settings.mlflow_uri, name, settings.home_path / "bundles" / name, settings.artifact_root),
        home=settings.home_path,
        device=settings.device,
        threads=settings.threads,
        devices=settings.devices,
        commit=read_commit(settings),
        reach=enrich.reach if enrich else timedelta(),
        counts_reports=bool(enrich and enrich.counts_reports),
        has_times=configured.detector.ingest.event_time.column is not None,
        entity=configured.detector.entity,
    )
    scheduler = None if settings.task_runner == "threads" else settings.task_runner
    return Setup(configured, site, scheduler, settings.workers, settings)


def read_commit(settings: Settings) -> str:
    """The Git commit of the project's folder, or "unknown"."""
    command = ["git", "-C", str(settings.project), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
