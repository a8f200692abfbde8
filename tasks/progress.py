"""How far long work has come, told through the standard logging module; whoever runs it decides how to show it."""

import logging
from collections.abc import Callable

LOGGER = logging.getLogger("nightjar.progress")


def progress_of(step: str) -> Callable[[int, int], None]:
    """A function that tells how many of how many units of `step` are done."""

    def tell(done: int, total: int) -> None:
        LOGGER.info("%s %d of %d", step, done, total, extra={"step": step, "done": done, "total": total})

    return tell
