"""Who works on the parts of a batch: threads of this process, or the workers of a Dask cluster.

Prefect's task runners hand the parts out; what stands here is how one is chosen, watched and told about. Parts are
idempotent, so a part whose worker died is simply given to another.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.futures import PrefectWrappedFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.errors import ParamsInvalid, RunFailed, ServiceUnreachable

CONNECT_S = 10  # for a scheduler to answer
PATIENCE_S = 60.0  # for a cluster without a single worker to get one
WATCH_S = 1.0

Future = PrefectWrappedFuture[Any, Any]


@dataclass(frozen=True)
class Workers:
    """`scheduler`: the address of a Dask cluster's, such as tcp://host:8786; None: so many threads of this process."""

    scheduler: str | None = None
    threads: int = 1

    def run(self, task: Task[..., Any], pieces: Sequence[dict[str, Any]], on_done: Callable[[int], None]) -> list[Any]:
        """Run a task once for each piece (its arguments) and return what they gave, in order.

        on_done gets the number of a piece that is finished. All pieces are tried; then the failures are raised as one:
        themselves where they are the same, else RunFailed. Raises ParamsInvalid, ServiceUnreachable.
        """
        if not pieces:
            return []
        with self._start() as runner:
            futures = [runner.submit(task, piece) for piece in pieces]
            outcomes = []
            for number, future in enumerate(futures):
                self._wait(runner, future)
                outcomes.append(self._read(future))
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
                "Dask is not installed here.",
                where="NIGHTJAR_TASK_RUNNER",
                got=self.scheduler,
                todo="pip install 'nightjar[dask]', on this machine and on the workers, or set it to threads",
            ) from error
        if not PREFECT_API_URL.value():
            raise ParamsInvalid(
                "Dask's workers have no Prefect server to tell of their work; each would start one of its own.",
                where="PREFECT_API_URL",
                expected="the URL of a Prefect server that this machine and the workers reach",
                todo="start one (prefect server start) and set it, or set NIGHTJAR_TASK_RUNNER to threads",
            )
        with DaskTaskRunner(address=self.scheduler, client_kwargs={"timeout": CONNECT_S}) as runner:
            try:
                runner.client  # noqa: B018 - connects
            except (OSError, ValueError) as error:
                raise self._unreachable("Dask's scheduler does not answer.", str(error)) from error
            yield runner

    def _wait(self, runner: Any, future: Future) -> None:
        """Wait for a piece. Raises ServiceUnreachable when a cluster has had no worker for too long."""
        seen = time.monotonic()
        while not future.wrapped_future.done():
            future.wait(timeout=WATCH_S)
            if self.scheduler is None or self._count(runner):
                seen = time.monotonic()
            elif time.monotonic() > seen + PATIENCE_S:
                raise self._unreachable("The Dask cluster has no workers.", f"none for {PATIENCE_S:g} s")

    def _read(self, future: Future) -> Any:
        """What a finished piece gave, or the exception that it ended with."""
        if future.wrapped_future.cancelled():
            return self._unreachable("The Dask cluster was lost.", "its scheduler has ended, or is out of reach")
        if error := future.wrapped_future.exception():  # not the task's own: it never came to an end
            return self._unreachable("The Dask cluster could not finish a part.", f"{type(error).__name__}: {error}")
        return future.result(raise_on_failure=False)

    def _count(self, runner: Any) -> int:
        try:
            return len(runner.client.scheduler_info()["workers"])
        except (OSError, KeyError):  # a scheduler that has just died is told of without its workers
            return 0

    def _unreachable(self, what: str, got: str) -> ServiceUnreachable:
        return ServiceUnreachable(
            what,
            where=f"NIGHTJAR_TASK_RUNNER, {self.scheduler}",
            got=got,
            expected="a scheduler and workers with this version of Nightjar",
            todo="look at the workers' logs and memory, start them again, then run it again: finished parts are kept",
        )


def raise_failures(failures: Sequence[BaseException], pieces: int) -> None:
    """Raise what went wrong, once. Raises RunFailed where it is not all the same."""
    causes = {f"{type(failure).__name__}: {failure}": failure for failure in failures}
    if len(causes) == 1:
        raise failures[0]
    if causes:
        raise RunFailed(
            f"{len(failures)} of {pieces} tasks failed; what the others finished is kept.",
            got="\n".join(causes),
            todo="put the causes right and run it again: only unfinished parts are computed",
        )
