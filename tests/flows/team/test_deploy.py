"""`nightjar deploy` against a real server: pools, limits, typed deployments and automations; and runs taking turns."""

import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from inboxes import serve_webhook
from prefect import flow
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from toy import CUTOFF, Project

from flows.cli.main import execute
from flows.config.documents import read_yaml
from flows.config.params import detector_names
from flows.team.deploy import (
    FILE,
    TOLD,
    list_deployments,
    list_zones,
    make_deployments,
    remove_schedules,
    schedule_by_zone,
)
from tasks.errors import ParamsInvalid

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def deployed(prefect_server: None) -> list[dict[str, str]]:
    """The deployments of this repository; tests/stack runs the command."""
    from flows.config.settings import Settings
    from flows.team.deploy import deploy

    return deploy(Settings(project=ROOT))


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    from prefect.settings import PREFECT_API_URL

    with SyncPrefectClient(api=str(PREFECT_API_URL.value())) as found:
        yield found


def test_nights_trainings_and_the_watch_have_their_schedules_and_pools(deployed: list[dict[str, str]]) -> None:
    assert {row["deployment"]: (row["pool"], row["schedule"]) for row in deployed} == {
        "backfill-range/backfill": ("cpu", ""),
        "promotion/one-version": ("cpu", ""),
        "every/nightly": ("cpu", "0 4 * * * Europe/Berlin"),
        "freshness/hourly": ("cpu", "0 * * * * UTC"),
        "nightly/one-night": ("cpu", ""),
        "prune/pruning": ("cpu", "0 8 * * 0 Europe/Berlin"),
        "retrain/weekly": ("cpu", "0 6 * * 6 Europe/Berlin"),
        "train/gpu": ("gpu", ""),
        "training/one-detector": ("cpu", ""),
    }


def test_each_time_zone_has_its_nightly_schedule(deployed: list[dict[str, str]], client: SyncPrefectClient) -> None:
    [schedule] = client.read_deployment_by_name("every/nightly").schedules
    assert schedule.parameters == {"time_zone": "Europe/Berlin"}
    document = {"deployments": [{"name": "nightly", "schedules": [{"cron": "0 4 * * *", "timezone": "UTC"}]}]}
    zones = ["America/New_York", "Etc/GMT+5", "Etc/GMT-5", "UTC"]
    schedules = schedule_by_zone(document, zones)["deployments"][0]["schedules"]
    assert [(each["cron"], each["timezone"], each["parameters"]) for each in schedules] == [
        ("0 4 * * *", zone, {"time_zone": zone}) for zone in zones
    ]
    assert [each["slug"] for each in schedules] == ["america-new-york", "etc-gmt-plus-5", "etc-gmt-5", "utc"]
    assert schedule_by_zone(document, []) is document


def test_the_schedule_of_a_zone_that_no_detector_uses_any_more_is_removed(
    deployed: list[dict[str, str]], client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly, zones = client.read_deployment_by_name("every/nightly"), ["America/New_York", "UTC"]
    [old] = nightly.schedules
    monkeypatch.setattr("flows.team.deploy.list_zones", lambda project: zones)
    make_deployments(ROOT, str(client.api_url))
    schedules = client.read_deployment_by_name("every/nightly").schedules
    assert sorted(schedule.parameters["time_zone"] for schedule in schedules) == zones

    # Back to what other tests expect, without deploying again.
    client.create_deployment_schedules(nightly.id, [(old.schedule, True)], parameters=old.parameters, slug=old.slug)
    remove_schedules(schedule_by_zone(read_yaml(ROOT / FILE), ["Europe/Berlin"]))
    assert list_deployments() == deployed


def test_the_zones_are_those_of_detectors_that_run_every_night(project: Project) -> None:
    assert list_zones(project.folder) == ["Europe/Berlin"]
    project.change("params.yaml", "detectors", "orders", "run", "every_night", value=False)
    assert list_zones(project.folder) == []
    project.change("params.yaml", "detectors", "orders", "run", "every_night", value="perhaps")
    assert list_zones(project.folder) == []


def test_parameters_show_as_a_typed_form(deployed: list[dict[str, str]], client: SyncPrefectClient) -> None:
    schema = client.read_deployment_by_name("backfill-range/backfill").parameter_openapi_schema or {}
    fields: dict[str, Any] = schema["properties"]
    assert fields["first"]["format"] == fields["last"]["format"] == "date"
    assert fields["only"]["enum"] == ["all", "unpublished", "missing", "failed", "stale"]
    assert fields["as_of"]["type"] == "boolean"
    assert schema["required"] == ["name", "first", "last"]
    for row in deployed:
        schema = client.read_deployment_by_name(row["deployment"]).parameter_openapi_schema or {}
        fields = schema.get("properties", {})
        assert all(field.get("description") for field in fields.values()), (row["deployment"], fields)


def test_the_detector_is_a_choice_but_where_a_flow_calls_the_deployment(
    deployed: list[dict[str, str]], client: SyncPrefectClient
) -> None:
    names = detector_names(ROOT)
    assert len(names) > 3
    schemas = {row["deployment"]: read_schema(client, row["deployment"]) for row in deployed}
    named = {one: schema["properties"] for one, schema in schemas.items() if "name" in schema["properties"]}
    choices = {one: fields["name"].get("enum") for one, fields in named.items()}
    offered = ["nightly/one-night", "backfill-range/backfill", "training/one-detector", "promotion/one-version"]
    assert choices == {"train/gpu": None, **dict.fromkeys(offered, names)}
    for one in offered:
        assert schemas[one]["properties"]["name"]["type"] == "string"
        assert "name" in schemas[one]["required"]
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            client.create_flow_run_from_deployment(
                client.read_deployment_by_name(one).id,
                parameters={"name": "unknown", "first": "2026-01-01", "last": "2026-01-01"},
            )


def read_schema(client: SyncPrefectClient, deployment: str) -> dict[str, Any]:
    return client.read_deployment_by_name(deployment).parameter_openapi_schema or {}


def test_the_limits_exist_before_anything_queues_behind_them(
    deployed: list[dict[str, str]], client: SyncPrefectClient
) -> None:
    found = {limit.name: limit.limit for limit in client.read_global_concurrency_limits(limit=100, offset=0)}
    assert found["nightjar-score-payments"] == found["nightjar-train-hdfs"] == 1


def test_prefect_tells_the_channels_of_failed_nights_of_runs_that_fail_or_crash(
    project: Project, deployed: list[dict[str, str]], client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.config.settings import Settings
    from flows.team.deploy import NOTICE, make_notices

    def list_notices() -> list[Any]:
        return [one for one in client.read_automations() if one.name.startswith(NOTICE)]

    assert {*TOLD, "freshness", "train", "promotion"} == {row["deployment"].partition("/")[0] for row in deployed}
    settings, file = Settings(project=project.folder), project.folder / "alerts.yaml"
    make_notices(settings)
    assert list_notices() == []
    rule = "rules: {r: {on: night_failed, channels: [on_call]}, late: {on: night_late, channels: [mail]}}"
    file.write_text(f"channels: {{on_call: , mail: }}\n{rule}\n")
    with pytest.raises(ParamsInvalid, match="The address of channel on_call is not set"):
        make_notices(settings)
    monkeypatch.setenv("NIGHTJAR_CHANNEL_ON_CALL", "nonsense://")
    with pytest.raises(ParamsInvalid, match="is not one that Apprise knows"):
        make_notices(settings)
    with serve_webhook() as inbox:
        monkeypatch.setenv("NIGHTJAR_CHANNEL_ON_CALL", inbox.url)
        for _ in range(2):
            make_notices(settings)
        [made] = list_notices()
        assert made.name == f"{NOTICE}on_call"
        assert made.trigger.expect == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
        block = client.read_block_document(made.actions[0].block_document_id, include_secrets=True)
        assert (block.name, block.data["url"]) == ("nightjar-on-call", inbox.url)
        SlackWebhook.load("nightjar-on-call").notify(subject="T", body="B")
        assert inbox.messages == [("T", "B")]
    file.unlink()
    make_notices(settings)
    assert list_notices() == []


def test_automations_mark_runs_without_heartbeats_as_crashed(
    deployed: list[dict[str, str]], client: SyncPrefectClient
) -> None:
    made = {one.name: one for one in client.read_automations()}
    assert sorted(made) == [
        "nightjar: a run that never had a heartbeat has crashed",
        "nightjar: a run without heartbeats has crashed",
    ]
    assert all(one.enabled and one.actions[0].type == "change-flow-run-state" for one in made.values())
    assert [one.description for _, one in sorted(made.items())] == [
        "no heartbeat for 300 s: its worker died",
        "no heartbeat for 90 s: its worker died",
    ]


def test_a_second_deploy_leaves_the_automations_alone(
    deployed: list[dict[str, str]], client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update, even one that changes nothing, would make Prefect forget which runs it is timing."""
    updated: list[str] = []
    monkeypatch.setattr(SyncPrefectClient, "update_automation", lambda self, _, wanted: updated.append(wanted.name))
    before = client.read_automations()
    from flows.team.deploy import make_automations

    make_automations(timedelta(seconds=90))
    assert updated == []
    make_automations(timedelta(seconds=60))
    assert updated == ["nightjar: a run without heartbeats has crashed"]
    assert client.read_automations() == before


def test_without_a_server_the_error_says_what_is_missing(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: None}):
        assert execute(["deploy"]) == 1
    assert capsys.readouterr().err.startswith("error: ParamsInvalid: Deployments need a Prefect server.")
    with server_away(monkeypatch):
        assert execute(["deploy"]) == 1
    error = capsys.readouterr().err
    assert "error: ServiceUnreachable: The Prefect server does not answer." in error
    assert "secret" not in error


@contextmanager
def server_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment in which Prefect's server does not answer, without retries."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = "http://somebody:secret@127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def test_a_night_without_its_prefect_server_says_so(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with server_away(monkeypatch):
        assert execute(["score", "orders", "--date", "2026-04-02"]) == 1
    error = capsys.readouterr().err
    assert "error: ServiceUnreachable: The Prefect server does not answer." in error
    assert "it ends in /api" in error
    assert "secret" not in error


def test_down_without_a_stack_says_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["down"]) == 0
    assert capsys.readouterr().out == "nothing was running\n"


def test_the_ports_of_a_stack_are_remembered(tmp_path: Path) -> None:
    from flows.config.settings import Settings
    from flows.team.stack import PORTS, describe_stack, make_secrets

    (tmp_path / "infra").mkdir()
    shutil.copy(ROOT / "infra/secrets.sh", tmp_path / "infra")
    settings = Settings(project=tmp_path)
    assert describe_stack(settings, {"mlflow": None}).ports == PORTS
    make_secrets(describe_stack(settings, {"mlflow": 5077}))
    assert describe_stack(settings).ports == PORTS | {"mlflow": 5077}
    assert describe_stack(settings, {"prefect": 4277}).pages == {
        "Prefect": "http://127.0.0.1:4277",
        "MLflow": "http://127.0.0.1:5077",
        "Desk": "http://127.0.0.1:8890",
    }


@pytest.mark.parametrize(
    ("uid", "asked", "owner", "obstacle", "expected"),
    [
        (1000, "", "alice", "", ""),
        (0, "", "alice", "", "alice"),
        (0, "", "root", "", "nobody"),
        (0, "", None, "", "nobody"),  # a number without a name
        (0, "daemon", "alice", "", "daemon"),
        (0, "root", "alice", "", ""),
        (0, "", "root", "Permission denied", ""),
    ],
)
def test_the_stack_runs_as_root_only_if_no_other_user_can_run_it(
    uid: int,
    asked: str,
    owner: str | None,
    obstacle: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.team import stack

    def find(_: Path) -> str:
        if owner is None:
            raise KeyError
        return owner

    monkeypatch.setattr("os.getuid", lambda: uid)
    monkeypatch.setattr(Path, "owner", find)
    monkeypatch.setattr(stack, "find_obstacle", lambda _: obstacle)
    told: list[str] = []
    described = stack.Stack(tmp_path, tmp_path / "home", stack.PORTS)
    assert stack.choose_user(described, asked, None, told.append) == expected
    assert [line.startswith("warning: servers and workers run as root") for line in told] == [True] * bool(obstacle)


@pytest.mark.parametrize(
    ("uid", "asked", "what"),
    [
        (0, "no-such-user", "The user no-such-user cannot run the stack."),
        (1000, "no-such-user", "Only root can start the stack as another user."),
    ],
)
def test_a_stack_user_who_cannot_run_it_is_refused(
    uid: int, asked: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.team.stack import PORTS, Stack, choose_user

    monkeypatch.setattr("os.getuid", lambda: uid)
    with pytest.raises(ParamsInvalid, match=what):
        choose_user(Stack(tmp_path, tmp_path / "home", PORTS), asked, None, lambda _: None)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_home_is_shared_by_root_and_the_stacks_user(tmp_path: Path) -> None:
    from flows.team.stack import PORTS, Stack, give_home

    home = tmp_path / "home"
    (home / "lake").mkdir(parents=True, mode=0o755)
    (home / "lake/part").write_text("rows")
    (home / "stack/secrets").mkdir(parents=True, mode=0o700)
    (home / "stack/secrets/password").touch(mode=0o600)
    (tmp_path / "outside").write_text("of root")
    (home / "link").symlink_to(tmp_path / "outside")
    before = os.umask(0o022)
    try:
        give_home(Stack(tmp_path, home, PORTS, "nobody"))
        (home / "lake/new").mkdir()
        (home / "lake/new/part").touch()
    finally:
        os.umask(before)
    modes = {str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode) for path in [home, *home.rglob("*")]}
    assert modes["lake"] == modes["lake/new"] == 0o2775
    assert modes["lake/part"] == modes["lake/new/part"] == 0o664
    assert (modes["stack/secrets"], modes["stack/secrets/password"]) == (0o700, 0o600)
    assert (home / "lake/new/part").group() == (home / "lake").group()
    assert {(home / name).owner() for name in ("lake/part", "stack/secrets/password")} == {"nobody"}
    assert (tmp_path / "outside").owner() == "root"


def test_a_run_on_servers_shows_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.run import find_pages

    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4210/api")
    pages = {"Prefect": "http://prefect.example:4210", "MLflow": "http://mlflow.example:5010"}
    assert find_pages("http://mlflow.example:5010") == pages
    monkeypatch.delenv("PREFECT_API_URL")
    assert find_pages("sqlite:///mlflow.db")["Prefect"].startswith("make ui")


def test_a_second_run_of_a_detector_waits_for_the_first(
    deployed: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.hooks import taking_turns

    monkeypatch.setenv("NIGHTJAR_LIMITS", "true")
    spans: list[tuple[float, float]] = []

    @flow
    @taking_turns("score")
    def hold(name: str) -> None:
        begun = time.monotonic()
        time.sleep(0.5)
        spans.append((begun, time.monotonic()))

    threads = [threading.Thread(target=hold, args=("payments",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert [later[0] >= earlier[1] for earlier, later in pairwise(spans)] == [True, True]


def test_a_missing_limit_stops_the_run(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_LIMITS", "true")
    assert execute(["score", "orders", "--date", "2026-04-02"]) == 1
    error = capsys.readouterr().err
    assert "error: ParamsInvalid: The Prefect limit for this run does not exist" in error
    assert "nightjar-score-orders" in error


def test_a_training_without_its_deployment_or_pool_says_so(
    deployed: list[dict[str, str]],
    trained: Project,
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIGHTJAR_TRAIN_DEPLOYMENT", "train/nowhere")
    assert execute(["train", "orders", "--cutoff", str(CUTOFF)]) == 1
    assert "ParamsInvalid: The deployment that trains, or its work pool, does not exist" in capsys.readouterr().err
    monkeypatch.setenv("NIGHTJAR_TRAIN_DEPLOYMENT", "train/gpu")
    client.delete_work_pool("gpu")
    assert execute(["train", "orders", "--cutoff", str(CUTOFF)]) == 1
    assert "or its work pool, does not exist" in capsys.readouterr().err


def test_a_training_run_that_no_worker_takes_is_cancelled(
    deployed: list[dict[str, str]], client: SyncPrefectClient
) -> None:
    from flows.training import wait_for

    found = client.read_deployment_by_name("train/gpu")
    parameters = {"name": "payments", "cutoff": "2026-11-01", "hashes": {}}
    run: FlowRun = client.create_flow_run_from_deployment(found.id, parameters=parameters)
    ended = wait_for(run, start_timeout_s=1)
    assert ended.state is not None
    assert ended.state.is_cancelled()


def test_a_bundle_travels_through_the_lake_and_leaves_nothing_there(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.config.setup import load_setup
    from models.bundle import read_bundle_manifest
    from tasks.train import send_bundle, take_bundle

    site = load_setup("orders").site
    [cutoff] = [date.fromisoformat(folder.name) for folder in (site.registry.bundles / "fitted").glob("*/")]
    before, epochs = read_bundle_manifest(site.fitted(cutoff)).content_hash, site.epochs(cutoff).read_text()
    files = site.lake.files("clean/orders")
    send_bundle(site, cutoff, "a-run")
    for file in site.fitted(cutoff).iterdir():
        file.unlink()
    site.epochs(cutoff).unlink()
    assert read_bundle_manifest(take_bundle(site, cutoff, "a-run")).content_hash == before
    assert site.epochs(cutoff).read_text() == epochs
    for name in ("manifest.json", "detector.json", "weights.safetensors", "calibration.safetensors"):
        site.lake.replace(
            f"clean/orders/batch_date={cutoff}/fitted-old/{name}", (site.fitted(cutoff) / name).read_bytes()
        )
    assert (
        read_bundle_manifest(take_bundle(site, cutoff, "old")).content_hash == before
    )  # an older worker sends no epochs
    [columns] = site.epochs(cutoff).read_text().splitlines()
    assert epochs.splitlines()[0].startswith(columns)  # those on tuning rows are only there if these have anomalies
    assert site.lake.files("clean/orders") == files


def test_a_worker_with_different_params_refuses_to_train(trained: Project) -> None:
    from flows.training import train_there
    from tasks.errors import ParamsInvalid

    with pytest.raises(ParamsInvalid, match="different params or contracts"):
        train_there("orders", CUTOFF, {"params_hash": "another", "contract_hash": "another"})


def test_the_environment_takes_precedence_over_secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.config.settings import load_settings
    from tasks.errors import ParamsInvalid

    (tmp_path / "nightjar_warehouse").write_text("postgresql+psycopg://nightly:word@db/nightjar\n")
    monkeypatch.setenv("NIGHTJAR_SECRETS", str(tmp_path))
    monkeypatch.delenv("NIGHTJAR_WAREHOUSE", raising=False)
    assert load_settings().warehouse_url == "postgresql+psycopg://nightly:word@db/nightjar"
    monkeypatch.setenv("NIGHTJAR_WAREHOUSE", "duckdb:///other")
    assert load_settings().warehouse_url == "duckdb:///other"
    monkeypatch.setenv("NIGHTJAR_SECRETS", str(tmp_path / "nowhere"))
    with pytest.raises(ParamsInvalid, match="does not point to a folder"):
        load_settings()


@contextmanager
def another_server(status: int, version: str) -> Iterator[str]:
    """A server that answers everything but its version with a status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_version = self.path.endswith("/admin/version") and status != 401
            body = json.dumps(version if is_version else {"detail": "other"}).encode()
            self.send_response(200 if is_version else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "version", "said"),
    [
        (401, "3.8.8", "wrong one"),
        (403, "3.8.8", "PREFECT_API_KEY"),
        (422, "3.0.1", "server Prefect 3.0.1, Prefect 3"),
        (404, "3.99.0", "server Prefect 3.99.0, Prefect 3"),
        (200, "3.99.0", "server Prefect 3.99.0, Prefect 3"),
        (200, "2.19.0", "server Prefect 2.19.0, Prefect 3"),
        (500, "3.8.8", "does not answer"),
        (200, "nonsense", "server Prefect nonsense"),
    ],
)
def test_a_prefect_server_that_refuses_or_is_of_another_version_is_one_message(
    trained: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    version: str,
    said: str,
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with another_server(status, version) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            assert execute(["score", "orders", "--date", "2026-04-02"]) == 1
    error = capsys.readouterr().err
    assert "error: ServiceUnreachable: The Prefect server " in error
    assert said in error
