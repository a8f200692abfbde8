"""Preloaded by the Dask workers of tests: a part takes half a second, so that a kill can fall into one."""

import time
from collections.abc import Iterator
from typing import Any

import flows.nightly  # noqa: F401 - what a task's pickle names is imported before the first one comes
from tasks.stores.lake import Lake


def dask_setup(worker: object) -> None:
    """Dask loads a preload twice, and calls this once."""
    read_slices = Lake.slices

    def read_slowly(lake: Lake, *arguments: Any, **options: Any) -> Iterator[Any]:
        time.sleep(0.5)
        yield from read_slices(lake, *arguments, **options)

    Lake.slices = read_slowly  # type: ignore[method-assign]
