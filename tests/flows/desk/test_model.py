"""Champion and challenger, promoting and rolling back, through the web application."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from toy import ROWS, Project

from flows.config.settings import Settings
from flows.config.setup import load_setup
from flows.desk.access import Access, User, hash_token
from flows.desk.app import create_app
from models.calibration import expect_false_alarms
from models.detector import Detector
from models.reducer import learn
from tasks.register import register_bundle
from tasks.stores.registry import DECISION
from tasks.stores.site import Site
from tasks.upkeep import preview

EVIL = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def settings(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Orders after their first run, with a challenger of the same weights."""
    folder = tmp_path_factory.mktemp("desk") / "project"
    shutil.copytree(trained_folder, folder)
    Project(folder).change("params.yaml", "detectors", "orders", "promote", value={"gate": {"min_nights": 2}})
    settings = Settings(project=folder, sources=str(folder / "sources"))
    site = load_setup("orders", settings).site
    detector = Detector.load(site.registry.fetch_bundle(site.registry.get_champion()))
    detector.with_lineage({**detector.lineage, "split": "another"}).save(folder / "another")
    register_bundle(site, folder / "another", None)
    return settings


@pytest.fixture(scope="module")
def desk(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings, Access({}, local="kim"))) as client:
        yield client


@pytest.fixture
def site(settings: Settings) -> Site:
    return load_setup("orders", settings).site


def read(desk: TestClient, address: str = "/orders/model") -> str:
    answer = desk.get(address)
    assert answer.status_code == 200
    return " ".join(answer.text.split())


def send(desk: TestClient, address: str, **form: str) -> str:
    key = re.search(r'name="form_key" value="(\w+)"', desk.get("/orders/model").text)
    assert key
    answer = desk.post(address, data={"form_key": key[1], **form})
    assert "<script>alert" not in answer.text
    return " ".join(answer.text.split())


def test_champion_and_challenger_are_side_by_side(desk: TestClient, site: Site) -> None:
    page, champion = read(desk), site.registry.get_champion()
    first, second = re.findall(r'<article class="side".*?</article>', page)
    assert "champion" in first and "challenger" in second
    threshold = Detector.load(site.registry.fetch_bundle(champion)).threshold
    assert f"{threshold.value:.4g}" in first
    assert f"{100 * threshold.false_alarm_rate:.2f} %" in first
    assert f"({100 * threshold.interval_low:.2f} to {100 * threshold.interval_high:.2f} %)" in first
    assert str(expect_false_alarms(threshold, champion.rows_per_night, champion.night_spread)) in first
    assert first.count("<polyline") == 2  # fit and stopping losses
    assert "<polyline" not in second and "No training losses are recorded" in second
    assert str(champion.trained_through) in first
    assert "They have not been compared yet" in page and "nightjar compare orders" in page
    assert "It still needs 200 more verdicts on flags" in page


def test_what_the_verdicts_would_change_is_shown_before_anything_is_learnt(
    settings: Settings, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[object] = []
    monkeypatch.setattr(preview, "learn", lambda *given: (counted.append(given), learn(*given))[1])
    app = create_app(settings, Access({}, local="kim"))
    with TestClient(app) as desk:
        assert "/orders/model/verdicts" not in read(desk)  # too few verdicts yet
        assert "has no verdicts that it can learn from" in read(desk, "/orders/model/verdicts")
        limits = {"min_verdicts": 10, "min_confirmed": 5, "max_recall_loss": 0.5}
        review = {"reducer": {"kind": "forest", "trees": 20}, "limits": limits}
        Project(settings.project).change("params.yaml", "detectors", "orders", "review", value=review)
        nights = [night.batch_date for night in site.warehouse.read_nights("orders")]
        flags = pd.concat([site.warehouse.read_flags("orders", night) for night in nights])
        is_fraud = flags["record_id"].str[-4:].astype(int) >= ROWS - 3
        given = flags[["batch_date", "record_id"]].assign(verdict=np.where(is_fraud, "anomaly", "normal"))
        given = given.assign(reviewer="ada", reviewed_at=pd.Timestamp.now("UTC"), inclusion=1.0)
        site.warehouse.add_reviews("orders", given)
        app.state.room.snapshot.refresh()
        tags = [version.tags for version in site.registry.list_versions()]
        assert '<a class="button" href="/orders/model/verdicts"' in read(desk)
        page = read(desk, "/orders/model/verdicts")
        assert f"A second stage trained now, on {len(flags)} verdicts, would suppress" in page
        assert f"of the {is_fraud.sum()} confirmed anomalies among them would be lost" in page
        assert "there is none" in page and "<!doctype html>" in page
        part = desk.get("/orders/model/verdicts", headers={"HX-Request": "true"}).text
        assert part.strip().startswith('<div id="changes">')
        assert len(counted) == 1  # the second time it was remembered
        site.warehouse.add_reviews("orders", given[:1].assign(reviewed_at=pd.Timestamp.now("UTC")))
        app.state.room.snapshot.refresh()
        read(desk, "/orders/model/verdicts")
        assert len(counted) == 2
    assert [version.tags for version in site.registry.list_versions()] == tags


def test_promoting_asks_for_a_reason_and_for_the_champion_that_was_seen(desk: TestClient, site: Site) -> None:
    assert "Promote version 2?" in read(desk, "/orders/model/promote/2")
    assert desk.get("/orders/model/promote/9").status_code == 404
    again = read(desk, "/orders/model/promote/1")
    assert "Version 1 is already the champion." in again and '<button class="main"' not in again
    assert desk.get("/orders/model/rollback").status_code == 404  # the champion replaced no other version
    assert "Give a reason" in send(desk, "/orders/model/promote/2", champion="1", reason=" ")
    assert "look again" in send(desk, "/orders/model/promote/2", champion="7", reason="why")
    assert site.registry.get_champion().version == 1


def test_the_gate_refuses_here_too(desk: TestClient, site: Site, settings: Settings) -> None:
    project = Project(settings.project)
    project.change("params.yaml", "detectors", "orders", "promote", value={"gate": {"min_nights": 9}})
    answer = send(desk, "/orders/model/promote/2", champion="1", reason="why")
    assert "may not become champion" in answer and "promote.gate.min_nights is 9" in answer
    assert site.registry.get_champion().version == 1
    project.change("params.yaml", "detectors", "orders", "promote", value={"gate": {"min_nights": 2}})


def test_a_version_is_promoted_and_rolled_back_with_the_reason_and_the_name(desk: TestClient, site: Site) -> None:
    answer = send(desk, "/orders/model/promote/2", champion="1", reason=f"fewer {EVIL}")
    assert "Version 2 is the champion; version 1 was before." in answer
    assert site.registry.get_champion().version == 2
    assert site.registry.get_version(2).tags[DECISION].endswith(f"promoted; kim: fewer {EVIL}")
    assert "Roll back to version 1?" in read(desk, "/orders/model/rollback")
    answer = send(desk, "/orders/model/rollback", champion="2", reason="more")
    assert "Version 1 is the champion again; version 2 was before." in answer
    assert site.registry.get_champion().version == 1
    assert site.registry.get_version(2).tags[DECISION].endswith("rolled back to version 1; kim: more")


def test_only_the_role_promote_promotes_and_only_by_our_own_form(
    desk: TestClient, settings: Settings, site: Site
) -> None:
    form, addresses = {"champion": "1", "reason": "why"}, ("/orders/model/promote/2", "/orders/model/rollback")
    app = create_app(settings, Access({"ann": User(role="judge", token=hash_token("secret"))}))
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as judge:
        assert "/orders/model/promote/" not in read(judge)
        assert "This needs the role promote" in read(judge, "/orders/model/promote/2")
        assert [judge.post(address, data=form).status_code for address in addresses] == [403, 403]
    assert [desk.post(address, data=form).status_code for address in addresses] == [403, 403]
    assert site.registry.get_champion().version == 1


def test_the_share_of_judged_cases_that_were_worth_a_look_is_shown(desk: TestClient) -> None:
    assert "cases with an answer" not in read(desk)
    send(desk, "/orders/case/1/judge", verdict="confirmed")
    send(desk, "/orders/case/1/worth", worth="yes")
    page = read(desk)
    assert "worth a look (2.5 to 100.0 %): 1 of 1 cases with an answer, of 1 judged" in page
    assert '<td data-label="worth a look">100.0 %' in page  # of its week
