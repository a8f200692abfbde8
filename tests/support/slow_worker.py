"""Preloaded by the Dask workers of tests: a part begins when it is let, so that a kill falls into one."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flows.nightly  # noqa: F401 - what a task's pickle names is imported before the first one comes
from tasks.stores.lake import Lake

LET = "let-part-"  # a file in the workers' temporary folder for each part that may begin


def dask_setup(worker: object) -> None:
    """Dask loads a preload twice, and calls this once."""
    read_slices = Lake.slices

    def read_when_let(lake: Lake, *arguments: Any, **options: Any) -> Iterator[Any]:
        while not take_one(Path(os.environ["TMPDIR"])):
            time.sleep(0.02)
        yield from read_slices(lake, *arguments, **options)

    Lake.slices = read_when_let  # type: ignore[method-assign]


def take_one(folder: Path) -> bool:
    """Whether a part may begin; it uses up the leave."""
    for file in folder.glob(f"{LET}*"):
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            file.unlink()
            return True
    return False
