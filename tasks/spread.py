"""Run the parts of a batch on threads of this process or on the workers of a Dask cluster.

Prefect's task runners distribute the parts; this module chooses a runner, watches it and reports its failures. Parts
are idempotent, so if a worker dies its part simply goes to another one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from prefect import Task, get_run_logger, task
from prefect.futures import PrefectWrappedFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from models.detector import Detector
from models.fitting import resolve_device
from tasks.errors import ParamsInvalid, RunFailed, ServiceUnreachable
from tasks.policy import IO, progress_of
from tasks.rows.contract import Contract
from tasks.rows.judge import load_detector
from tasks.rows.params import ScoreParams
from tasks.rows.validation import Validation
from tasks.score import Scoring, open_batch
from tasks.stores.lake import Lake, Part
from tasks.stores.registry import Registry, Version
from tasks.stores.site import Site

CONNECT_S = 10  # for a scheduler to answer
PATIENCE_S = 60.0  # wait for a cluster without workers to get one
WATCH_S = 1.0

Future = PrefectWrappedFuture[Any, Any]


@dataclass(frozen=True)
class Workers:
    """`scheduler`: the address of Dask's scheduler, such as tcp://host:8786; None: use threads of this process."""

    scheduler: str | None = None
    threads: int = 1

    def run(self, task: Task[..., Any], pieces: Sequence[dict[str, Any]], on_done: Callable[[int], None]) -> list[Any]:
        """Run a task once per piece (its arguments) and return the results in order.

        on_done gets the number of each finished piece. All pieces run even if some fail; then their common error is
        raised, or RunFailed if the errors differ. Raises ParamsInvalid, ServiceUnreachable.
        """
        if not pieces:
            return []
        with self._start() as runner:
            futures = [runner.submit(task, piece) for piece in pieces]
            outcomes = []
            for number, future in enumerate(futures):
                outcomes.append(self._take(runner, future))
                on_done(number)
        raise_failures([one for one in outcomes if isinstance(one, BaseException)], len(pieces))
        return outcomes

    @contextmanager
    def _start(self) -> Iterator[Any]:
        if self.scheduler is None:
            with ThreadPoolTaskRunner[Any](max_workers=self.threads) as threads:
                yield threads
            return
        try:
            from prefect_dask.task_runners import DaskTaskRunner
        except ModuleNotFoundError as error:
            raise ParamsInvalid(
                "Dask is not installed.",
                where="NIGHTJAR_TASK_RUNNER",
                got=self.scheduler,
                todo="pip install 'nightjar[dask]' on this machine and on the workers, or set it to threads",
            ) from error
        if not PREFECT_API_URL.value():
            raise ParamsInvalid(
                "Dask's workers need a Prefect server; without one, each would start its own.",
                where="PREFECT_API_URL",
                expected="the URL of a Prefect server that this machine and the workers reach",
                todo="start one (prefect server start) and set its URL, or set NIGHTJAR_TASK_RUNNER to threads",
            )
        with DaskTaskRunner(address=self.scheduler, client_kwargs={"timeout": CONNECT_S}) as runner:
            try:
                runner.client  # noqa: B018 - connects
            except (OSError, ValueError) as error:
                raise self._unreachable("Dask's scheduler does not answer.", str(error)) from error
            yield runner

    def _take(self, runner: Any, future: Future) -> Any:
        """The result of a piece once it has finished, or its exception.

        Raises ServiceUnreachable if the cluster has had no workers for too long. A finished piece needs its worker too,
        which holds the result until it is read.
        """
        seen = time.monotonic()
        while True:
            try:
                return future.result(timeout=WATCH_S, raise_on_failure=False)
            except TimeoutError:
                if self.scheduler is None or self._count(runner):
                    seen = time.monotonic()
                elif time.monotonic() > seen + PATIENCE_S:
                    raise self._unreachable("The Dask cluster has no workers.", f"none for {PATIENCE_S:g} s") from None
            except Exception as error:  # noqa: BLE001 - not the task's, which did not finish
                if future.wrapped_future.cancelled():
                    return self._unreachable("The Dask cluster was lost.", "its scheduler has ended or is unreachable")
                got = f"{type(error).__name__}: {error}"
                return self._unreachable("The Dask cluster could not finish a part.", got)

    def _count(self, runner: Any) -> int:
        try:
            return len(runner.client.scheduler_info()["workers"])
        except (OSError, KeyError):  # a scheduler that has just died reports no workers
            return 0

    def _unreachable(self, what: str, got: str) -> ServiceUnreachable:
        return ServiceUnreachable(
            what,
            where=f"NIGHTJAR_TASK_RUNNER, {self.scheduler}",
            got=got,
            expected="a scheduler and workers with this version of Nightjar",
            todo="check the workers' logs and memory, restart them, then run again: finished parts are kept",
        )


def raise_failures(failures: Sequence[BaseException], pieces: int) -> None:
    """Raise the common error, or RunFailed if the errors differ."""
    causes = {f"{type(failure).__name__}: {failure}": failure for failure in failures}
    if len(causes) == 1:
        raise failures[0]
    if causes:
        raise RunFailed(
            f"{len(failures)} of {pieces} tasks failed; the results of the others are kept.",
            got="\n".join(causes),
            todo="fix the causes and run again: only unfinished parts are computed",
        )


MOST_TASKS = 500  # per batch: Prefect handles hundreds well


@dataclass(frozen=True)
class ScoreJob:
    """Everything needed to score parts of a batch: small, sent to workers, which use lake and registry only."""

    detector: str
    zone: ZoneInfo
    lake: Lake
    registry: Registry  # without a password: workers use their own login
    device: Literal["cpu", "cuda"]
    contract: Contract
    params: ScoreParams
    version: Version
    batch_date: date
    inputs: str


@dataclass(frozen=True)
class Unscored:
    """The job of a batch, its parts without a receipt by name, and the number of rows in finished parts."""

    job: ScoreJob
    parts: tuple[tuple[str, Part], ...]
    rows_done: int


def find_unscored(
    site: Site, contract: Contract, validation: Validation, version: Version, bundle: Path, params: ScoreParams
) -> Unscored:
    """The parts of a batch that still have to be scored. Raises LeakageFound, PublishConflict."""
    validated, inputs = open_batch(site, contract, validation, Detector.load(bundle), bundle, params)
    manifest = site.lake.manifest_path("scores", site.detector, validation.batch_date, inputs)
    folder = manifest.rpartition("/")[0]
    there = site.lake.files(folder)
    named = [(f"part-{number}", part) for number, part in enumerate(validated.parts)]
    left = [(name, part) for name, part in named if not {manifest, f"{folder}/{name}.json"} & there.keys()]
    # Scores from a GPU and from a CPU have different keys, so a worker must not choose its own device.
    device: Literal["cpu", "cuda"] = "cpu" if resolve_device(site.device).type == "cpu" else "cuda"
    stores = (site.lake, site.registry.without_password())
    job = ScoreJob(site.detector, site.zone, *stores, device, contract, params, version, validation.batch_date, inputs)
    return Unscored(job, tuple(left), validated.rows - sum(part.rows for _, part in left))


def score_pieces(job: ScoreJob, parts: Sequence[tuple[str, Part]]) -> int:
    """Score those of the parts that have no receipt yet; returns their rows. Fetches the bundle if needed."""
    bundle = job.registry.fetch_bundle(job.version)
    detector = load_detector(job.lake, job.detector, bundle).to(resolve_device(job.device))
    partition = job.lake.write("scores", job.detector, job.batch_date, job.inputs)
    scoring = Scoring(job.lake, job.zone, detector, job.contract, job.params, partition)
    left = [(name, part) for name, part in parts if scoring.find(name) is None]
    return sum(scoring.score(name, part, lambda rows: None).scored for name, part in left)


def share_out(parts: Sequence[tuple[str, Part]], tasks: int) -> list[Sequence[tuple[str, Part]]]:
    """Split the parts into at most `tasks` runs of neighbours of equal length."""
    length = max(1, math.ceil(len(parts) / tasks))
    return [parts[first : first + length] for first in range(0, len(parts), length)]


@task(task_run_name="score {site.detector} {validation.batch_date}: plan", **IO)
def plan_parts(
    site: Site, contract: Contract, validation: Validation, version: Version, bundle: Path, params: ScoreParams
) -> Unscored:
    """Find the parts that no attempt has finished yet."""
    return find_unscored(site, contract, validation, version, bundle, params)


@task(task_run_name="score {job.detector} {job.batch_date}: from {parts[0][0]}", **IO)
def score_parts(job: ScoreJob, parts: Sequence[tuple[str, Part]]) -> int:
    """Score some parts on a worker."""
    rows = score_pieces(job, parts)
    get_run_logger().info("%d rows of %d parts", rows, len(parts))
    return rows


def spread_parts(
    site: Site,
    contract: Contract,
    validation: Validation,
    version: Version,
    bundle: Path,
    params: ScoreParams,
    workers: Workers,
) -> None:
    """Score the unfinished parts of a batch in tasks on `workers`. Raises their common error, or RunFailed.

    A single part is left to the `score` task, unless there is a cluster.
    """
    unscored = plan_parts(site, contract, validation, version, bundle, params)
    shares = share_out(unscored.parts, MOST_TASKS)
    if len(shares) == 1 and workers.scheduler is None:
        return
    rows = [sum(part.rows for _, part in share) for share in shares]
    total, report = unscored.rows_done + sum(rows), progress_of(f"score {validation.batch_date}")
    pieces = [{"job": unscored.job, "parts": share} for share in shares]
    workers.run(score_parts, pieces, lambda done: report(unscored.rows_done + sum(rows[: done + 1]), total))
