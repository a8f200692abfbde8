"""What takes long to read and may be some seconds old: states of nights, versions, what rules would have sent.

The warehouse is read anew for every page; the registry and the lake may be far away, so they are not.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from flows.desk.view import Page

Found = TypeVar("Found")
SECONDS = 15


@dataclass
class Recent:
    """What was read lately, by key, and when."""

    _known: dict[Hashable, tuple[datetime, Hashable, Any]] = field(default_factory=dict)
    _locks: dict[Hashable, threading.Lock] = field(default_factory=dict)

    def get(
        self, key: Hashable, read: Callable[[], Found], seconds: float = SECONDS, stamp: Hashable = None
    ) -> tuple[Found, datetime]:
        """What `read` gave at most `seconds` ago, and when. While one caller reads, others get what was known before.

        stamp: what it depends on: with another one it is read anew.
        """
        at, before, found = self._known.get(key, (datetime.min.replace(tzinfo=UTC), None, None))
        is_known, lock = key in self._known and before == stamp, self._locks.setdefault(key, threading.Lock())
        if lock.acquire(blocking=not is_known):
            try:
                now = datetime.now(UTC)
                at, before, found = self._known.get(key, (datetime.min.replace(tzinfo=UTC), None, None))
                if now - at > timedelta(seconds=seconds) or before != stamp:
                    found, at = read(), now
                    self._known[key] = at, stamp, found
            finally:
                lock.release()
        known: Found = found
        return known, at

    def forget(self) -> None:
        """Read everything anew."""
        self._known.clear()


def recent_of(page: Page) -> Recent:
    """The one of the desk."""
    return page.room.remember("recent", Recent)
