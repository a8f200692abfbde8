"""A trained toy project with a new day to score, without Prefect, and the result of its night."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steps import TONIGHT, NightSteps, TrainingSteps, load, migrate, read_result
from toy import make_project

from flows.config.setup import Setup


@pytest.fixture(autouse=True)
def quick_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off MLflow's retries, which take seconds each."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "project"
    project = make_project(folder)
    setup = load(folder)
    migrate(setup)
    TrainingSteps(setup).run_all()
    project.write_day(TONIGHT)
    return folder


@pytest.fixture
def setup(trained_project: Path, tmp_path: Path) -> Setup:
    """A copy of the trained project; the new day has not landed yet."""
    shutil.copytree(trained_project, tmp_path / "project")
    return load(tmp_path / "project")


@pytest.fixture
def untrained(tmp_path: Path) -> Setup:
    make_project(tmp_path / "untrained")
    setup = load(tmp_path / "untrained")
    migrate(setup)
    return setup


@pytest.fixture(scope="session")
def undisturbed(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    """The counts and flags of an undisturbed night."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(trained_project, folder)
    setup = load(folder)
    NightSteps(setup).run_all()
    return read_result(setup.site)


class SmallDisk:
    """A separate file system that can be filled to the last byte, emptied, and made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int = 4096) -> None:
        free = os.statvfs(self.folder)
        (self.folder / "filler").write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave))

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root and the right to mount")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
