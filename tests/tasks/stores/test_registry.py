"""A version's bundle is fetched whole or refused: tampered, forged, half downloaded, by two processes at once."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from sites import at_home, open_site
from tiny import make_tiny_detector, save_tiny_detector

from models.bundle import FILES, HEADER, MANIFEST, WEIGHTS, check_bundle
from models.detector import Detector
from tasks.errors import BundleInvalid, ServiceUnreachable
from tasks.register import register_bundle
from tasks.stores.owner import name_process
from tasks.stores.registry import (
    COLUMN_TYPES,
    HASH_TAG,
    MOST_FALSE_ALARMS,
    OWNER_TAG,
    Version,
    _ask_curves,
    _ask_server,
)
from tasks.stores.site import Site


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Version]:
    """One version in a separate registry, and the site it belongs to."""
    folder = tmp_path_factory.mktemp("registry")
    site = open_site(folder, artifacts=folder / "artifacts")
    content_hash = save_tiny_detector(folder / "bundle")
    example = pd.DataFrame({"amount": [1.0]})
    answer = pd.DataFrame({"score": [1.0]})
    return site, site.registry.log_version(
        folder / "bundle", content_hash, example, answer, {}, {}, {"cutoff": "2026-03-01"}
    )


@pytest.fixture
def site(registered: tuple[Site, Version], tmp_path: Path) -> Site:
    """A machine that has fetched nothing yet."""
    return at_home(registered[0], tmp_path / "home")


@pytest.fixture
def version(registered: tuple[Site, Version]) -> Version:
    return registered[1]


@pytest.fixture
def stored(registered: tuple[Site, Version], tmp_path: Path) -> Iterator[Path]:
    """The version's files as the registry keeps them: what a test does to them is undone."""
    [mlmodel] = Path(str(registered[0].registry.artifacts)).rglob("MLmodel")
    shutil.copytree(mlmodel.parent, tmp_path / "kept")
    yield mlmodel.parent
    shutil.rmtree(mlmodel.parent)
    shutil.copytree(tmp_path / "kept", mlmodel.parent)


def bundle_of(stored: Path) -> Path:
    [manifest] = stored.rglob(MANIFEST)
    return manifest.parent


def test_a_version_is_fetched_once_and_loads(site: Site, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site.registry.fetch_bundle(version)
    assert Detector.load(folder).lineage["trained_through"] == "2026-02-28"
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", None)  # it is not used again
    assert site.registry.fetch_bundle(version) == folder
    assert [path.name for path in site.registry.bundles.iterdir()] == [folder.name]


@pytest.mark.slow
def test_runs_of_dead_processes_are_ended_by_the_next_registration(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site, bundle = make_site(), tmp_path / "bundle"
    site = dataclasses.replace(site, registry=dataclasses.replace(site.registry, artifacts=str(tmp_path / "artifacts")))
    make_tiny_detector().with_lineage({"cutoff": "2026-03-01", "trained_through": "2026-02-28"}).save(bundle)
    register_bundle(site, bundle, None)
    with subprocess.Popen("true") as ended:
        dead = {OWNER_TAG: f"{socket.gethostname()} {ended.pid} 1.0"}
    client = MlflowClient(site.registry.uri)
    [registering] = client.search_runs(["1"])
    assert registering.data.tags["commit"] == site.commit
    client.update_run(registering.info.run_id, "RUNNING")  # its process died when the version stood
    client.set_tag(registering.info.run_id, OWNER_TAG, dead[OWNER_TAG])
    earlier, alive = (client.create_run("1", tags=tags) for tags in (dead, {OWNER_TAG: name_process()}))
    other = {OWNER_TAG: "another-host 1 1.00"}
    lost, busy, foreign = (
        client.create_run("1", start_time=begun, tags=tags) for begun, tags in ((1, other), (None, other), (1, {}))
    )
    assert not register_bundle(site, bundle, None).is_new
    runs = (registering, earlier, lost, alive, busy, foreign)
    states = ["FINISHED", "KILLED", "KILLED", "RUNNING", "RUNNING", "RUNNING"]
    assert [client.get_run(run.info.run_id).info.status for run in runs] == states


def test_a_file_is_read_as_mlflow_reads_it(tmp_path: Path) -> None:
    """Versions with and without aliases, changed and deleted tags, a deleted version, and another model next to it."""
    registry = open_site(tmp_path, artifacts=tmp_path / "artifacts").registry
    assert (registry.list_versions(), registry.read_champions()) == ([], [])
    content_hash = save_tiny_detector(tmp_path / "bundle")
    frames = (pd.DataFrame({"amount": [1.0]}), pd.DataFrame({"score": [1.0]}))
    other = dataclasses.replace(registry, detector="toy2")
    for number, one in enumerate((registry, registry, other, registry), start=1):
        one.log_version(tmp_path / "bundle", content_hash, *frames, {}, {}, {"cutoff": f"2026-03-0{number}"})
    registry.set_alias("champion", 1)
    registry.set_alias("champion", 2)
    registry.set_alias("challenger", 3)
    client = MlflowClient(registry.uri)
    client.set_model_version_tag(registry.model_name, "1", "note", 'it\'s "ours"')
    client.delete_model_version(registry.model_name, "3")
    asked = _ask_server(client, registry.model_name)
    assert registry._read() == asked
    assert [(v.version, v.aliases) for v in asked.versions] == [(1, ()), (2, ("champion",))]
    assert [number for _, number in registry.read_champions()] == [1, 2]


def test_the_losses_of_a_run_are_read_from_a_file_as_mlflow_gives_them(site: Site, version: Version) -> None:
    client = MlflowClient(site.registry.uri)
    run = client.get_model_version(version.name, str(version.version)).run_id
    for step in (2, 3, 1):  # as after a run that was continued
        client.log_metric(run, "fit_loss", 1 / step, step=step)
    client.log_metric(run, "test_recall", float("nan"))
    client.log_metric(run, "test_recall", 0.5, step=1)
    asked = _ask_curves(client, version)
    assert site.registry.read_curves(version) == asked == {"fit_loss": [1.0, 1 / 2, 1 / 3], "test_recall": [0.5]}
    assert site.registry.read_curves(dataclasses.replace(version, version=99)) == {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    copy = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(copy)
    path.symlink_to(copy)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a link": link,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "beside an extra file": lambda path: (path.parent / "extra.py").write_text("print('run')"),
    "beside a folder": lambda path: (path.parent / "code").mkdir(),
    "renamed": lambda path: path.rename(path.with_name("other")),
}


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_of_a_bundle_is_seen(version: Version, stored: Path, name: str, damage: str) -> None:
    folder = bundle_of(stored)
    check_bundle(folder, version.tags[HASH_TAG])
    DAMAGES[damage](folder / name)
    with pytest.raises(BundleInvalid, match="to do"):
        check_bundle(folder, version.tags[HASH_TAG])


@pytest.mark.parametrize("where", ["registry", "cache"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tampered_bundle_is_refused(site: Site, version: Version, stored: Path, where: str, damage: str) -> None:
    folder = bundle_of(stored) if where == "registry" else site.registry.fetch_bundle(version)
    DAMAGES[damage](folder / WEIGHTS)
    if where == "registry" and damage == "a link":
        # MLflow follows links when it copies: what arrives is the file itself, and whole.
        Detector.load(site.registry.fetch_bundle(version))
        return
    with pytest.raises(BundleInvalid, match="to do"):
        site.registry.fetch_bundle(version)
    if where == "registry":
        assert not list(site.registry.bundles.iterdir())


@pytest.mark.parametrize("where", ["registry", "cache"])
def test_a_sound_bundle_that_is_not_the_registered_one_is_refused(
    site: Site, version: Version, stored: Path, where: str
) -> None:
    folder = bundle_of(stored) if where == "registry" else site.registry.fetch_bundle(version)
    save_tiny_detector(folder, seed=7)
    Detector.load(folder)  # it is consistent: only its hash differs
    with pytest.raises(BundleInvalid, match="is a different bundle"):
        site.registry.fetch_bundle(version)


def test_a_forged_manifest_with_the_registered_hash_is_refused(site: Site, version: Version, stored: Path) -> None:
    folder = bundle_of(stored)
    save_tiny_detector(folder, seed=7)
    manifest = json.loads((folder / MANIFEST).read_text()) | {"content_hash": version.tags[HASH_TAG]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="was altered"):
        site.registry.fetch_bundle(version)


@pytest.mark.parametrize("tag", [None, "", "unknown", "../../etc", "A" * 64, "0" * 63])
def test_a_version_without_a_hash_is_refused(site: Site, version: Version, tag: str | None) -> None:
    tags = {} if tag is None else {HASH_TAG: tag}
    with pytest.raises(BundleInvalid, match=HASH_TAG):
        site.registry.fetch_bundle(dataclasses.replace(version, tags=tags))


FLAVORS: dict[str, dict[str, object]] = {
    "another loader": {"loader_module": "mlflow.sklearn"},
    "a loader of ours that is not the one": {"loader_module": "tasks.serving.other"},
    "code": {"code": "code"},
    "a python model": {"python_model": "model.pkl"},
    "data elsewhere": {"data": "../../home"},
    "data at an absolute path": {"data": "/etc"},
    "data that is all": {"data": "."},
    "data above": {"data": ".."},
    "no data": {"data": None},
    "data of another type": {"data": ["bundle"]},
}


@pytest.mark.parametrize("what", [*FLAVORS, "another flavor", "no flavor", "no mapping", "no YAML", "no file", "a tag"])
def test_a_version_that_could_run_code_or_lead_elsewhere_is_refused(
    site: Site, version: Version, stored: Path, what: str
) -> None:
    path = stored / "MLmodel"
    document = yaml.safe_load(path.read_text())
    document["flavors"]["python_function"].update(FLAVORS.get(what, {}))
    if what == "another flavor":
        document["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}
    if what == "no flavor":
        document["flavors"] = {}
    text = {"no mapping": "[1]", "no YAML": "a: [", "a tag": "!!python/object/apply:os.system [true]"}.get(what)
    path.write_text(text or yaml.safe_dump(document))
    if what == "no file":
        path.unlink()
    with pytest.raises(BundleInvalid, match=f"Version {version.version}"):
        site.registry.fetch_bundle(version)
    assert not list(site.registry.bundles.iterdir())


def test_the_remains_of_a_killed_download_do_no_harm_and_are_removed_when_old(site: Site, version: Version) -> None:
    old, young = (site.registry.bundles / f"downloading-{name}" for name in ("old", "young"))
    for folder in (old, young):
        (folder / "bundle").mkdir(parents=True)
        (folder / "bundle" / WEIGHTS).write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Detector.load(site.registry.fetch_bundle(version))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_kill_before_the_rename_leaves_no_version(
    site: Site, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, content_hash: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.stores.registry.check_bundle", die)
        with pytest.raises(KeyboardInterrupt):
            site.registry.fetch_bundle(version)
    assert not list(site.registry.bundles.iterdir())
    Detector.load(site.registry.fetch_bundle(version))


def test_two_at_once_both_get_a_whole_bundle(site: Site, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    both, found = threading.Barrier(2, timeout=60), []
    download = mlflow.artifacts.download_artifacts

    def wait_for_the_other(*args: object, **kwargs: object) -> str:
        both.wait()
        return str(download(*args, **kwargs))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", wait_for_the_other)
    threads = [threading.Thread(target=lambda: found.append(site.registry.fetch_bundle(version))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert [path.name for path in site.registry.bundles.iterdir()] == [found[0].name]
    assert (found[0] / HEADER).exists()


@pytest.mark.parametrize("text", ["garbage", "", "[1]", '{"a": 1}', "null", "\x1b[31m", "nan", "-1", "1e999"])
def test_a_foreign_value_of_a_tag_is_no_value(text: str) -> None:
    version = Version("nightjar-orders", 1, (), {COLUMN_TYPES: text, MOST_FALSE_ALARMS: text})
    assert version.most_false_alarms is None
    with pytest.raises(BundleInvalid, match="is not a Nightjar bundle"):
        _ = version.column_types
    assert Version("nightjar-orders", 1, (), {}).column_types == {}


class Refusing(BaseHTTPRequestHandler):
    """An MLflow server that wants another login."""

    status = 401

    def do_POST(self) -> None:
        self.send_error(self.status)

    def do_GET(self) -> None:
        self.send_error(self.status)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_another_login_says_so(
    registered: tuple[Site, Version], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "nightjar")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-hunter2")
    monkeypatch.setattr(Refusing, "status", status)
    before = mlflow.get_tracking_uri()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site, version = registered
        away = dataclasses.replace(site.registry, uri=f"http://127.0.0.1:{server.server_port}", bundles=tmp_path)
        calls: list[Callable[[], object]] = [away.list_versions, lambda: away.fetch_bundle(version)]
        for call in calls:
            with pytest.raises(ServiceUnreachable, match="refuses this command") as refused:
                call()
            assert "MLFLOW_TRACKING_PASSWORD" in refused.value.todo
            assert "hunter2" not in str(refused.value)
        server.shutdown()
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("how", ["copied", "moved", "without its artifacts"])
def test_a_copied_project_keeps_its_versions_and_writes_new_ones_beside_them(
    registered: tuple[Site, Version], tmp_path: Path, how: str
) -> None:
    from_folder, folder = Path(str(registered[0].registry.artifacts)).parent, tmp_path / "copy of it"
    original = tmp_path / "original"
    shutil.copytree(from_folder, original)
    first = open_site(original, artifacts=original / "artifacts")
    first.registry.follow_copy()
    if how == "moved":
        original.rename(folder)
    else:
        shutil.copytree(original, folder)
    if how == "without its artifacts":
        shutil.rmtree(folder / "artifacts")
    site = open_site(folder, artifacts=folder / "artifacts")
    site.registry.follow_copy()
    uri = f"sqlite:///{folder}/mlflow.db"
    location = MlflowClient(uri).get_experiment_by_name(site.registry.model_name).artifact_location
    if how == "without its artifacts":
        assert location == f"file://{original}/artifacts/toy"  # where the files still are
        return
    if how == "copied":
        shutil.rmtree(original)
    [version] = at_home(site, tmp_path / "home").registry.list_versions()
    bundle = at_home(site, tmp_path / "home").registry.fetch_bundle(version)
    check_bundle(bundle, version.tags[HASH_TAG])
    example, answer = pd.DataFrame({"amount": [1.0]}), pd.DataFrame({"score": [1.0]})
    made = site.registry.log_version(bundle, version.tags[HASH_TAG], example, answer, {}, {}, {"cutoff": "2026-03-02"})
    assert made.version == 2
    assert not original.exists()  # nothing was written there
    assert all("copy%20of%20it" in path.read_text() for path in folder.rglob("MLmodel"))
