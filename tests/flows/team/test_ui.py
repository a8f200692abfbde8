"""The servers that `make ui` starts."""

from pathlib import Path
from typing import Any

import pytest

from flows.config.settings import load_settings
from flows.team import ui


def test_the_servers_answer_no_scripts_of_other_web_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[str, dict[str, str]]] = []

    def start(command: list[str], env: dict[str, str], **_: Any) -> None:
        started.append((" ".join(command), env))

    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path))
    monkeypatch.setattr(ui.subprocess, "Popen", start)
    ui.start_servers(load_settings())
    [(prefect, environment), (mlflow, _)] = started
    assert "--host 127.0.0.1 --port 4200" in prefect and "--host 127.0.0.1 --port 5000" in mlflow
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
