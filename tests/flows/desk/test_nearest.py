"""Normal records beside a case, through the web application; no other page loads the model."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
from models.detector import Detector


@pytest.fixture(scope="module")
def settings(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Orders after their first run."""
    folder = tmp_path_factory.mktemp("desk") / "project"
    shutil.copytree(trained_folder, folder)
    return Settings(project=folder, sources=str(folder / "sources"))


def test_the_worst_flag_stands_above_its_nearest_normal_records(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    load = Detector.load
    monkeypatch.setattr(Detector, "load", lambda folder: (loaded.append(folder), load(folder))[1])
    with TestClient(create_app(settings, Access({}, local="kim"))) as desk:
        assert '<a href="/orders/case/1/nearest"' in desk.get("/orders/case/1").text
        part = desk.get("/orders/case/1/nearest", headers={"HX-Request": "true"}).text
        assert part.strip().startswith("<section") and "<strong>the flag</strong>" in part
        assert len(re.findall(r'<td data-label="distance" class="n">\d', part)) == 5
        assert re.search(r"spend \d+ % <span class=\"soft\">\([\d.]+ lower\)", part)  # frauds spend far more
        assert "@example.org" not in part  # masked
        whole = desk.get("/orders/case/2/nearest").text
        assert "<!doctype html>" in whole and " style=" not in whole
        assert desk.get("/orders/case/99/nearest").status_code == 404
    assert len(loaded) == 1  # and then remembered


def test_no_other_page_loads_torch(settings: Settings) -> None:
    code = f"""
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app
settings = Settings(project=Path({str(settings.project)!r}), sources={settings.sources!r})
with TestClient(create_app(settings, Access({{}}, local="kim"))) as desk:
    pages = ["", "/queue", "/model", "/nights", "/rules", "/explorer", "/case/1", "/case/1/history", "/case/1/similar"]
    print([desk.get("/orders" + page).status_code for page in pages], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[200] * 9} False", done.stdout + done.stderr
