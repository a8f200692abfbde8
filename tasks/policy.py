"""The two policies of tasks: PURE for work that is never retried, IO for work that uses a service.

Only an unreachable service is retried: a bad batch is not flaky. Prefect's own result caching is off; the lake's
manifests are the truth.
"""

import logging
from collections.abc import Callable
from typing import Any

from prefect.cache_policies import NO_CACHE

from tasks.errors import ServiceUnreachable


def is_unreachable(_task: object, _run: object, state: Any) -> bool:
    """Whether a task failed because a service was unreachable."""
    return isinstance(state.result(raise_on_failure=False), ServiceUnreachable)


PURE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
IO: dict[str, Any] = PURE | {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": is_unreachable}


LOGGER = logging.getLogger("nightjar.progress")


def progress_of(step: str) -> Callable[[int, int], None]:
    """A function that logs how many units of `step` are done, and of how many."""

    def report(done: int, total: int) -> None:
        LOGGER.info("%s %d of %d", step, done, total, extra={"step": step, "done": done, "total": total})

    return report
