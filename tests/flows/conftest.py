"""One Prefect server for all flow tests, and small projects to run them on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from once import make_once
from toy import Project, make_project, point_to

from flows.cli.main import execute


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The server that a run starts for itself, here for all tests of this process."""
    from flows.config.settings import Settings, prepare_environment

    folder = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, folder)
    with patch.dict("os.environ", PREFECT_HOME=str(folder)):
        prepare_environment(Settings(project=folder))
        from prefect.context import _temporary_global_settings_context, get_settings_context
        from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        from flows.team.temporary import temporary_server

        with (
            temporary_settings({PREFECT_API_URL: None, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
            temporary_server(),
            # For threads that a test starts, as in Prefect's own test harness.
            _temporary_global_settings_context(get_settings_context()),
        ):
            yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A new project, without any runs."""
    point_to(monkeypatch, tmp_path)
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def trained_folder(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first `nightjar run`, shared by all xdist workers; tests use copies of it."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            make_project(folder)
            point_to(monkeypatch, folder)
            assert execute(["run", "orders", "--debug"]) == 0

    return make_once(tmp_path_factory, "trained", make)


@pytest.fixture
def trained(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project after its first run; paths in MLflow's database still point to the original."""
    shutil.copytree(trained_folder, tmp_path / "project")
    point_to(monkeypatch, tmp_path / "project")
    return Project(tmp_path / "project")
