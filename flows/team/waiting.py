"""Wait for a server until it answers, has ended, or takes too long."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable

POLL_S = 0.3


def wait_until(is_healthy: Callable[[], bool], timeout_s: float, has_ended: Callable[[], bool] = lambda: False) -> bool:
    """Whether it became healthy before it ended and before the time was over."""
    deadline = time.monotonic() + timeout_s
    while not is_healthy():
        if has_ended() or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def answers(url: str) -> bool:
    """Whether a page answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own http address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
