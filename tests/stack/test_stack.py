"""The whole stack on this machine, started by `make up`: a schedule fires, the GPU pool trains, workers die.

Fixtures start what takes long, and later tests look at the result, so that the tests in between need not wait. The
tests therefore depend on their order.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import psutil
import psycopg
import pytest
from network import find_free_port
from playwright.sync_api import Page, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

from flows.hooks import OWNER

ROOT = Path(__file__).parent.parent.parent
DETECTOR = "payments"
# Settings that shorten the test: a run is marked as crashed after two missed heartbeats, and workers poll often.
QUICK = {"NIGHTJAR_SILENT_AFTER_S": "60", "PREFECT_WORKER_QUERY_SECONDS": "1"}
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Stack:
    """A running stack as a user sees it: command line, pages and tables."""

    home: Path
    ports: dict[str, int]
    python: Path

    @property
    def environment(self) -> dict[str, str]:
        command = ["sh", "-c", f". {self.home}/stack/env; env -0"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(line.split("=", 1) for line in shown.split("\0") if line) | QUICK

    @property
    def auth(self) -> str:
        return (self.home / "stack/secrets/prefect_auth").read_text()

    def nightjar(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-m", "flows.cli.main", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.nightjar("status", DETECTOR, "--json").stdout)
        return status

    def up(self) -> str:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        env = os.environ | QUICK | {"NIGHTJAR_HOME": str(self.home), "NIGHTJAR_PROJECT": str(ROOT)}
        command = [str(self.python), "-m", "flows.cli.main", "up", "--debug", *ports]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(api=f"http://127.0.0.1:{self.ports['prefect']}/api", auth_string=self.auth)

    def begin(self, deployment: str, **parameters: Any) -> FlowRun:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def read(self, run: FlowRun) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(run.id)

    def wait(self, run: FlowRun, timeout_s: float = 300) -> FlowRun:
        until(
            lambda: (state := self.read(run).state) is not None and state.is_final(), timeout_s, run.name + self.logs()
        )
        return self.read(run)

    def has_heartbeat(self, run: FlowRun) -> bool:
        wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
        url = f"http://127.0.0.1:{self.ports['prefect']}/api/events/filter"
        return bool(
            httpx.post(url, json={"filter": wanted}, auth=tuple(self.auth.split(":")))
            .raise_for_status()
            .json()["events"]
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        url = (self.home / "stack/secrets/warehouse_reader").read_text().replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[call-overload]

    def processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                environ = process.environ()
                words = [*process.cmdline(), environ.get("PREFECT__FLOW_RUN_ID", "")]
                if environ.get("STACK") == str(self.home / "stack") and word in " ".join(words):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, word: str) -> None:
        found = self.processes(word)
        assert found, word
        for process in found:
            process.kill()
        psutil.wait_procs(found)

    def hold(self, word: str, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Let processes run a little at a time until something is so, so that they do not end first; then stop them."""
        deadline = time.monotonic() + timeout_s
        held = self.processes(word)
        assert held, word
        while True:
            for process in held:
                process.suspend()
            with suppress(AssertionError):
                until(is_so, 3)
                return
            assert time.monotonic() < deadline, f"not so after {timeout_s} s {self.logs()}"
            for process in held:
                process.resume()
            time.sleep(0.3)

    def logs(self) -> str:
        files = sorted((self.home / "stack").glob("*.log"))
        return "".join(f"\n=== {file.name}\n" + file.read_text()[-1500:] for file in files)


def until(is_so: Callable[[], bool], timeout_s: float, detail: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s {detail}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """A Python that the stack's user may run. Root's own often lies in /root: then a copy, with the same packages."""
    anyone = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "ls", sys.base_prefix]
    if os.getuid() != 0 or subprocess.run(anyone, capture_output=True).returncode == 0:
        yield Path(sys.executable)
        return
    folder = Path(tempfile.mkdtemp(prefix="nightjar-python-"))
    folder.chmod(0o755)
    base, own = folder / "base", folder / "own"
    without = shutil.ignore_patterns("site-packages", "test", "__pycache__", "include", "share", "*.a")
    shutil.copytree(sys.base_prefix, base, ignore=without, symlinks=True)
    (own / "bin").mkdir(parents=True)
    packages = own / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages.mkdir(parents=True)
    (packages / "site-packages").symlink_to(sysconfig.get_path("purelib"))
    (own / "pyvenv.cfg").write_text(f"home = {base}/bin\n")
    (own / "bin/python").symlink_to(base / "bin" / Path(os.path.realpath(sys.executable)).name)
    for tool in ("prefect", "mlflow", "supervisord", "supervisorctl"):
        _, code = (Path(sys.executable).parent / tool).read_text().split("\n", 1)
        (own / "bin" / tool).write_text(f"#!{own}/bin/python\n{code}")
        (own / "bin" / tool).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(base / "lib"))
        yield own / "bin/python"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stack(python: Path) -> Iterator[Stack]:
    home = Path(tempfile.mkdtemp(prefix="nightjar-stack-"))  # the stack's user cannot open pytest's folders
    found = Stack(home, {name: find_free_port() for name in ("postgres", "prefect", "mlflow", "desk")}, python)
    try:
        found.up()
        with found.client() as client:  # no scheduled run during a test
            hourly = client.read_deployment_by_name("freshness/hourly")
            [schedule] = client.read_deployment_schedules(hourly.id)
            client.update_deployment_schedule(hourly.id, schedule.id, active=False)
        yield found
    finally:
        stopped = found.nightjar("down")
        shutil.rmtree(home)
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="module")
def training(stack: Stack) -> FlowRun:
    """The flow run that trains the first champion, just started."""
    return stack.begin("training/one-detector", name=DETECTOR)


@pytest.fixture(scope="module")
def trained(stack: Stack, training: FlowRun) -> FlowRun:
    """The same flow run, ended."""
    run = stack.wait(training)
    assert run.state is not None
    assert run.state.is_completed(), (run.state.message or "") + stack.logs()
    return run


@pytest.fixture(scope="module")
def scheduled(stack: Stack, trained: FlowRun) -> tuple[UUID, UUID]:
    """The nightly deployment and its new schedule, which fires in a few seconds."""
    soon = datetime.now(UTC) + timedelta(seconds=10)
    schedule = IntervalSchedule(interval=timedelta(minutes=2), anchor_date=soon, timezone="UTC")
    with stack.client() as client:
        nightly = client.read_deployment_by_name("every/nightly")
        client.update_deployment(nightly.id, DeploymentUpdate(parameters={"batch_date": str(newest_batch())}))
        [created] = client.create_deployment_schedules(nightly.id, [(schedule, True)])
    return nightly.id, created.id


@pytest.fixture(scope="module")
def span() -> tuple[date, date]:
    """The dates to backfill; earlier dates are training data."""
    last = newest_batch()
    return last - timedelta(days=8), last


@pytest.fixture(scope="module")
def interrupted(stack: Stack, trained: FlowRun, span: tuple[date, date]) -> tuple[FlowRun, FlowRun]:
    """A backfill that was killed halfway with its worker, and the next one, just started."""
    dates = {"first": str(span[0]), "last": str(span[1])}
    before = len(stack.query("select 1 from scoring_batches"))
    killed = stack.begin("backfill-range/backfill", name=DETECTOR, **dates)
    until(lambda: len(stack.query("select 1 from scoring_batches")) >= before + 2, 180, stack.logs())
    stack.kill("--pool cpu")
    stack.kill(str(killed.id))
    return killed, stack.begin("backfill-range/backfill", name=DETECTOR, **dates)


@pytest.fixture(scope="module")
def second_training(stack: Stack, interrupted: tuple[FlowRun, FlowRun]) -> FlowRun:
    """Another training, just started; its own worker survives, but that of its fit will be killed."""
    return stack.begin("training/one-detector", name=DETECTOR, cutoff=str(newest_batch() - timedelta(days=3)))


@pytest.fixture(scope="module")
def silenced(stack: Stack, second_training: FlowRun) -> FlowRun:
    """The fit of the second training, killed with its worker."""
    with stack.client() as client:
        there = client.read_deployment_by_name("train/gpu")
        running = {"deployment_id": {"any_": [there.id]}, "state": {"type": {"any_": ["RUNNING"]}}}
        only = FlowRunFilter.model_validate(running)
        until(lambda: bool(client.read_flow_runs(flow_run_filter=only)), 180, stack.logs())
        [child] = client.read_flow_runs(flow_run_filter=only)
    stack.hold(str(child.id), lambda: stack.has_heartbeat(child) and OWNER in stack.read(child).labels, 120)
    with stack.client() as client:  # as on another machine, whose dead processes are not visible here
        client.update_flow_run_labels(child.id, {OWNER: f"elsewhere {stack.read(child).labels[OWNER]}"})
    stack.kill("--pool gpu")
    stack.kill(str(child.id))
    return child


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as tool:
        # Without a GPU, a run's graph is rendered in software.
        options = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--enable-unsafe-swiftshader"]
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield browser.new_page(viewport={"width": 1100, "height": 640})
        browser.close()


@pytest.fixture
def show(page: Page, stack: Stack, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Open a page, wait until it shows all expected words, and optionally save a screenshot."""
    folder = request.config.getoption("--screenshots")

    password = base64.b64encode(stack.auth.encode()).decode()
    page.add_init_script(f"localStorage.setItem('prefect-password', '{password}')")

    def look(url: str, name: str, *expected: str) -> None:
        page.goto(url)
        until(lambda: all(word in page.inner_text("body") for word in expected), 60, f"{name}: {expected}")
        if folder:
            page.wait_for_timeout(4000)  # graphs and fonts
            page.screenshot(path=Path(folder) / f"{name}.png")

    return look


def test_deploying_again_has_no_prompts_and_creates_no_duplicates(stack: Stack, training: FlowRun) -> None:
    first, second = (json.loads(stack.nightjar("deploy", "--json").stdout) for _ in range(2))
    assert first == second
    assert {row["deployment"]: row["pool"] for row in first["deployments"]} == {
        "backfill-range/backfill": "cpu",
        "promotion/one-version": "cpu",
        "every/nightly": "cpu",
        "freshness/hourly": "cpu",
        "nightly/one-night": "cpu",
        "prune/pruning": "cpu",
        "retrain/weekly": "cpu",
        "train/gpu": "gpu",
        "training/one-detector": "cpu",
    }
    with stack.client() as client:
        assert len([one for one in client.read_automations() if one.name.startswith("nightjar: ")]) == 2
        limits = {limit.name: limit.limit for limit in client.read_global_concurrency_limits(limit=100, offset=0)}
    assert limits[f"nightjar-score-{DETECTOR}"] == limits[f"nightjar-train-{DETECTOR}"] == 1


def test_no_log_and_no_command_line_contains_a_secret(stack: Stack) -> None:
    secrets = [file.read_text() for file in (stack.home / "stack/secrets").glob("*_password")]
    assert len(secrets) == 8  # one per login
    secrets += [stack.auth.split(":")[1], (stack.home / "stack/secrets/mlflow_key").read_text()]
    text = "".join(file.read_text() for file in (stack.home / "stack").glob("*.log"))
    text += "".join(" ".join(process.cmdline()) for process in stack.processes(""))
    assert not [secret for secret in secrets if secret in text]
    modes = {file.stat().st_mode & 0o077 for file in (stack.home / "stack/secrets").iterdir()}
    assert modes == {0}


def test_the_api_asks_for_the_password_and_answers_no_other_page(stack: Stack) -> None:
    api = f"http://127.0.0.1:{stack.ports['prefect']}/api"
    for login in (None, ("nightjar", "wrong"), ("", "")):
        for path in ("flows/filter", "deployments/filter", "work_pools/filter"):
            assert httpx.post(f"{api}/{path}", json={}, auth=login).status_code == 401
    assert httpx.post(f"{api}/flows/filter", json={}, auth=tuple(stack.auth.split(":"))).status_code == 200
    page = httpx.get(api.removesuffix("/api"), follow_redirects=True)
    assert page.status_code == 200  # the page that asks for it
    for asset in re.findall(r'(?:src|href)="(/[^"]*assets/[^"]+)"', page.text):
        assert httpx.get(api.removesuffix("/api") + asset).status_code == 200, asset
    origin = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{api}/flows/filter", headers=origin)
    assert "access-control-allow-origin" not in answer.headers
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "deploy"],
        cwd=ROOT, env=stack.environment | {"PREFECT_API_AUTH_STRING": "nightjar:wrong"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "error: ServiceUnreachable: The Prefect server refuses this command" in done.stderr


def test_mlflow_asks_for_the_password(stack: Stack) -> None:
    pages = f"http://127.0.0.1:{stack.ports['mlflow']}"
    password = (stack.home / "stack/secrets/tracking_password").read_text()
    paths = ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts")
    for login in (None, ("nightjar", "wrong"), ("admin", password), ("admin", "password1234"), ("", "")):
        assert [httpx.get(pages + path, auth=login).status_code for path in paths] == [401] * 3
    assert httpx.get(pages + paths[1], auth=("nightjar", password)).status_code == 200
    assert httpx.get(f"{pages}/health").status_code == 200
    for given in (
        {"MLFLOW_TRACKING_PASSWORD": "wrong"},
        {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
    ):
        done = subprocess.run(
            [str(stack.python), "-m", "flows.cli.main", "status", DETECTOR],
            cwd=ROOT, env=stack.environment | given, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert "error: ServiceUnreachable: The MLflow server refuses this command" in done.stderr
        assert password not in done.stdout + done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start the stack as another user")
def test_nothing_runs_as_root_when_root_starts_the_stack(stack: Stack, trained: FlowRun) -> None:
    users = {process.username() for process in stack.processes("")}
    assert users
    assert "root" not in users
    assert len(users) == 1
    assert stack.home.stat().st_mode & 0o007 == 0
    written = [path for path in (stack.home / "lake").rglob("*") if path.is_file()]
    assert {path.owner() for path in written} <= {*users, "root"}  # root's commands write there too
    assert all(path.stat().st_mode & 0o020 for path in written if path.owner() == "root")


def test_training_runs_its_train_step_on_the_gpu_pool(stack: Stack, trained: FlowRun) -> None:
    assert trained.work_pool_name == "cpu"
    with stack.client() as client:
        there = client.read_deployment_by_name("train/gpu")
        only = FlowRunFilter.model_validate({"deployment_id": {"any_": [there.id]}})
        [child] = client.read_flow_runs(flow_run_filter=only)
    assert child.work_pool_name == "gpu"
    assert child.state is not None
    assert child.state.is_completed()
    assert stack.status()["champion"] == 1
    assert "leaked" not in stack.logs()  # what DuckDB's bindings print when a run's process exits


def test_a_schedule_fires_and_the_night_is_published(stack: Stack, scheduled: tuple[UUID, UUID]) -> None:
    nightly, schedule = scheduled
    with stack.client() as client:
        only = FlowRunFilter.model_validate(
            {"deployment_id": {"any_": [nightly]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
        )
        until(lambda: bool(client.read_flow_runs(flow_run_filter=only)), 240, stack.logs())
        run = client.read_flow_runs(flow_run_filter=only)[0]
        client.delete_deployment_schedule(nightly, schedule)
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter())
    assert run.auto_scheduled
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert {"validation-payments", "calibration-payments"} <= {artifact.key for artifact in artifacts}
    [(published, rows, flags)] = stack.query(
        "select b.batch_date, b.scored, (select count(*) from flagged_anomalies f where f.batch_date = b.batch_date) "
        "from scoring_batches b"
    )
    assert published == newest_batch()
    assert rows > 4000
    assert 0 < flags < 500


def newest_batch() -> date:
    """The newest delivered batch date: yesterday, except in the early hours."""
    return (datetime.now(ZoneInfo("Europe/Berlin")) - timedelta(hours=5)).date() - timedelta(days=1)


def test_up_with_a_running_stack_changes_nothing(stack: Stack, interrupted: tuple[FlowRun, FlowRun]) -> None:
    until(lambda: len(stack.processes("worker start")) == 2, 60)  # supervisord has restarted the dead workers
    before = {process.pid for process in stack.processes("worker start")}
    moved = stack.nightjar("up", "--postgres-port", str(find_free_port()))
    assert moved.returncode == 1
    assert "error: ParamsInvalid: The stack runs already, on other ports; nothing was changed." in moved.stderr
    done = stack.nightjar("up")  # uses the remembered ports
    assert done.returncode == 0, done.stderr + stack.logs()
    assert {process.pid for process in stack.processes("worker start")} == before
    assert len(stack.query("select 1 from scoring_batches")) > 0  # with the same secrets


def test_the_desk_shows_the_night_to_whoever_has_the_token(stack: Stack, scheduled: tuple[UUID, UUID]) -> None:
    desk = f"http://127.0.0.1:{stack.ports['desk']}"
    assert httpx.get(f"{desk}/{DETECTOR}", headers={"Accept": "application/json"}).status_code == 401
    token = (stack.home / "stack/secrets/desk_token").read_text()
    shown = httpx.get(f"{desk}/{DETECTOR}", headers={"Authorization": f"Bearer {token}"}, follow_redirects=True)
    assert (shown.status_code, shown.url.path) == (200, f"/{DETECTOR}/{newest_batch()}")


@pytest.mark.usefixtures("silenced")
def test_the_pages_show_the_runs(stack: Stack, trained: FlowRun, page: Page, show: Callable[..., None]) -> None:
    prefect, mlflow = (f"http://127.0.0.1:{stack.ports[name]}" for name in ("prefect", "mlflow"))
    show(f"{prefect}/deployments", "deployments", "weekly", "one-detector")
    with stack.client() as client:
        found = client.read_deployment_by_name("backfill-range/backfill")
    show(f"{prefect}/deployments/deployment/{found.id}/run", "form", "as_of", "first", "last", "only")
    show(f"{prefect}/runs/flow-run/{trained.id}", "training", "Task Runs", "train")
    password = (stack.home / "stack/secrets/tracking_password").read_text()
    page.goto(
        mlflow.replace("//", f"//nightjar:{password}@")
    )  # the browser keeps it; the page cannot have it in its URL
    show(f"{mlflow}/#/models/nightjar-{DETECTOR}", "registry", "Versions", "champion")


def test_a_training_whose_gpu_worker_dies_fails_when_the_heartbeats_stop(
    stack: Stack, second_training: FlowRun, silenced: FlowRun
) -> None:
    crashed, failed = stack.wait(silenced).state, stack.wait(second_training).state
    assert crashed is not None
    assert failed is not None
    assert crashed.is_crashed()
    assert crashed.message == "no heartbeat for 60 s: its worker died"
    assert failed.is_failed()
    assert crashed.message in (failed.message or "")
    assert stack.status()["champion"] == 1


def test_a_gpu_worker_without_the_package_fails_the_training_with_the_reason(stack: Stack, trained: FlowRun) -> None:
    with stack.client() as client:
        there = client.read_deployment_by_name("train/gpu")
        bare = {"command": f"{stack.python.resolve()} -I -m prefect.flow_engine"}
        client.update_deployment(there.id, DeploymentUpdate(job_variables=bare))
    run = stack.wait(stack.begin("training/one-detector", name=DETECTOR))
    assert run.state is not None
    assert run.state.is_failed()
    assert "train/gpu" in (run.state.message or "")
    assert "Crashed" in (run.state.message or "")
    assert stack.nightjar("deploy").returncode == 0


def test_nights_whose_worker_dies_fail_and_the_next_run_publishes_them(
    stack: Stack, span: tuple[date, date], interrupted: tuple[FlowRun, FlowRun]
) -> None:
    (first, last), (killed, following) = span, interrupted
    again = stack.wait(following).state
    assert again is not None
    assert again.is_completed(), (again.message or "") + stack.logs()
    crashed = stack.wait(killed).state
    assert crashed is not None
    assert crashed.is_crashed()
    published = stack.query("select batch_date, count(*) from scoring_batches group by 1 order by 1")
    assert published == [(first + timedelta(days=day), 1) for day in range(9)]
    doubled = "select batch_date, record_id from flagged_anomalies group by 1, 2 having count(*) > 1"
    assert stack.query(doubled) == []
    checks = json.loads(stack.nightjar("verify", DETECTOR, "--json").stdout)["checks"]
    assert {check["result"] for check in checks} == {"ok"}
    behind = (datetime.now(ZoneInfo("Europe/Berlin")).date() - last).days - 1
    freshness = stack.wait(stack.begin("freshness/hourly", max_days_behind=behind)).state
    assert freshness is not None
    assert freshness.is_completed(), freshness.message


def test_down_stops_what_up_started_and_up_finds_all_data_again(stack: Stack, trained: FlowRun) -> None:
    before = stack.query("select detector, batch_date, scores from scoring_batches order by 2")
    others = subprocess.Popen(["sleep", "3600"])
    assert "postgres" in stack.nightjar("down").stdout
    assert stack.processes("") == []
    assert others.poll() is None
    others.kill()
    others.wait()
    stack.up()
    assert stack.query("select detector, batch_date, scores from scoring_batches order by 2") == before
    assert stack.status()["champion"] == 1
    assert stack.read(trained).state is not None
