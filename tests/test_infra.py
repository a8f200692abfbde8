"""infra/ offline: every file against its validator, the other files, the code and real programs."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from flows.desk.access import Access, read_users

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
KUBERNETES = "1.34"
MANIFESTS = sorted(path for path in (INFRA / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
ENTRYPOINT = INFRA / "entrypoint.sh"
# User and password in a URL, except placeholders and values from the shell.
CREDENTIALS = re.compile(r"://[^/\s:@]*:(?!\$\(|PASSWORD)[^/\s:@]+@")


def find_tool(name: str) -> str:
    """A validator of the test packages."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is missing: install requirements.lock"
    return found


def check(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def check_compose(path: Path) -> tuple[int, str]:
    return check(find_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path)


def check_manifests(*paths: Path) -> tuple[int, str]:
    code, output = check(find_tool("kubernetes-validate"), "--strict", "-k", KUBERNETES, *paths)
    return code or int("WARN" in output), output  # for a kind or version without a schema it only warns


def check_dockerfile(path: Path) -> tuple[int, str]:
    return check(find_tool("hadolint"), path)


COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OBJECTS: list[dict[str, Any]] = [doc for path in MANIFESTS for doc in yaml.safe_load_all(path.read_text())]
WORKLOADS = {o["metadata"]["name"]: o for o in OBJECTS if o["kind"] in ("Deployment", "StatefulSet", "Job")}


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = WORKLOADS[name]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    [only] = pod(name)["containers"]
    found: dict[str, Any] = only
    return found


def settings() -> dict[str, str]:
    [data] = [o["data"] for o in OBJECTS if o["kind"] == "ConfigMap"]
    found: dict[str, str] = data
    return found


def pod_environment(name: str) -> dict[str, str]:
    given = {variable["name"]: variable["value"] for variable in container(name).get("env", [])}
    return (settings() if "envFrom" in container(name) else {}) | given


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(?:ENV|^ +)\s*([A-Z_]+)=(\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE))


def pod_secrets(name: str) -> set[tuple[str, str]]:
    """Each secret with the name of its file in the pod."""
    volumes = [volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume]
    assert all(volume["secretName"] == "nightjar" for volume in volumes)
    projected = [source["secret"] for volume in pod(name)["volumes"] for source in list_sources(volume)]
    volumes += [source for source in projected if source["name"] != "nightjar-channels"]
    return {(item["key"], item["path"]) for volume in volumes for item in volume["items"]}


def list_sources(volume: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = volume.get("projected", {}).get("sources", [])
    return found


def service_secrets(name: str) -> set[tuple[str, str]]:
    """The same for a service."""
    given = SERVICES[name].get("secrets", [])
    return {(one, one) if isinstance(one, str) else (one["source"], one["target"]) for one in given}


# --- each file through its own validator ---


def test_the_compose_file_is_valid() -> None:
    assert check_compose(INFRA / "compose.yaml")[0] == 0


def test_the_manifests_are_valid() -> None:
    code, output = check_manifests(*MANIFESTS)
    assert code == 0, output
    assert output.count("passed for resource") == len(OBJECTS)


def test_the_dockerfile_is_valid() -> None:
    code, output = check_dockerfile(INFRA / "Dockerfile")
    assert code == 0, output


def test_the_kustomization_names_every_manifest_and_builds() -> None:
    kustomization = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == sorted(["../postgres", *(path.name for path in MANIFESTS)])
    images = {image["name"] for image in kustomization["images"]}
    assert {container(name)["image"] for name in WORKLOADS if ":" not in container(name)["image"]} == images
    if kubectl := shutil.which("kubectl"):  # the rest of this test does not need it
        code, output = check(kubectl, "kustomize", INFRA / "kubernetes")
        assert code == 0, output
        built = {(o["kind"], o["metadata"]["name"]) for o in yaml.safe_load_all(output)}
        assert built == {(o["kind"], o["metadata"]["name"]) for o in OBJECTS} | {("ConfigMap", "databases")}


# --- the files against each other and the code ---


def list_commands() -> dict[str, list[str]]:
    """Every command that is run in our image, by its place."""
    [shown] = re.findall(r"^CMD (\[.*\])$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    found = {"Dockerfile": yaml.safe_load(shown)}
    found |= {f"compose {name}": one["command"] for name, one in SERVICES.items() if "command" in one}
    return found | {f"kubernetes {name}": container(name)["args"] for name in WORKLOADS if "args" in container(name)}


def parse_command(command: list[str]) -> None:
    """Parse arguments with the program's own parser, which raises on errors. Nothing is run."""
    program, *arguments = command
    if program == "prefect":
        from prefect.cli import _app

        _app._app.parse_args(arguments, exit_on_error=False, print_error=False)
    else:
        import typer
        from mlflow.cli import cli

        from flows.cli.main import app

        group: Any = {"mlflow": cli, "nightjar": typer.main.get_command(app)}[program]
        group.get_command(None, arguments[0]).make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("place", list_commands())
def test_every_program_accepts_its_command(place: str) -> None:
    parse_command(list_commands()[place])


def test_compose_and_kubernetes_run_the_same() -> None:
    # A cluster has its own Prometheus, and a GPU.
    assert set(SERVICES) - {"prometheus", "grafana", "gpu-stand-in"} == set(WORKLOADS)
    for name in WORKLOADS:
        ours = {"nightjar:cpu": "nightjar-cpu", "nightjar:gpu": "nightjar-gpu"}
        image = SERVICES[name]["image"]
        assert container(name)["image"] == ours.get(image, image), name
        assert container(name).get("args", []) == SERVICES[name].get("command", []), name
        assert pod_secrets(name) == service_secrets(name), name
        different = {"PGDATA", "NIGHTJAR_SOURCES"}  # a volume's root in a cluster; a folder of this machine in compose
        environment = {key: value for key, value in pod_environment(name).items() if key not in different}
        given = {key: value for key, value in SERVICES[name]["environment"].items() if key not in different}
        assert environment == given, name


def test_every_variable_is_known_to_the_program_that_reads_it() -> None:
    import prefect.settings

    documented = (ROOT / "docs" / "settings.md").read_text() + (ROOT / "flows" / "config" / "settings.py").read_text()
    places = [image_environment(), *(one.get("environment", {}) for one in SERVICES.values())]
    for environment in [*places, *map(pod_environment, WORKLOADS)]:
        for name in environment:
            bare = name.removesuffix("_FILE")
            if bare.startswith("NIGHTJAR_"):
                assert name in documented, name
            if bare.startswith("PREFECT_"):
                getattr(prefect.settings, bare)  # raises for an unknown name
            if bare != name and bare.startswith(("PREFECT_", "MLFLOW_")):
                assert bare in ENTRYPOINT.read_text(), name


def test_prefect_asks_for_a_password_and_only_what_runs_flows_knows_it() -> None:
    server = SERVICES["prefect"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING_FILE"] == "/run/secrets/prefect_auth"
    assert server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    knowing = {name for name in SERVICES if ("prefect_auth", "prefect_auth") in service_secrets(name)}
    assert knowing == {"prefect", "deploy", "cpu", "gpu", "gpu-stand-in"}
    for name in knowing - {"prefect"}:
        assert SERVICES[name]["environment"]["PREFECT_API_AUTH_STRING_FILE"] == "/run/secrets/prefect_auth"


def test_mlflow_asks_for_a_password_and_every_nightjar_command_knows_it() -> None:
    server = SERVICES["mlflow"]
    command = server["command"]
    assert command[command.index("--app-name") + 1] == "basic-auth"
    assert server["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == "/run/secrets/mlflow_auth"
    assert {("mlflow_auth", "mlflow_auth"), ("mlflow_key", "mlflow_key")} <= service_secrets("mlflow")
    knowing = {name for name in SERVICES if ("tracking_password", "tracking_password") in service_secrets(name)}
    assert knowing == {name for name in SERVICES if "NIGHTJAR_MLFLOW" in SERVICES[name].get("environment", {})}
    for name in knowing:
        login = SERVICES[name]["environment"]
        assert login["MLFLOW_TRACKING_USERNAME"] == "nightjar"
        assert login["MLFLOW_TRACKING_PASSWORD_FILE"] == "/run/secrets/tracking_password"


def test_what_runs_nights_and_deploys_is_given_the_addresses_of_channels() -> None:
    mount = "./secrets/channels:/run/secrets/channels:ro"
    assert {name for name, one in SERVICES.items() if mount in one.get("volumes", [])} == {
        "deploy", "cpu", "gpu", "gpu-stand-in",
    }  # fmt: skip
    optional = {"secret": {"name": "nightjar-channels", "optional": True}}
    given = {name for name in WORKLOADS for volume in pod(name)["volumes"] if optional in list_sources(volume)}
    assert given == {"deploy", "cpu", "gpu"}
    assert settings()["NIGHTJAR_SECRETS"] == "/run/secrets"


def test_telemetry_is_off_in_the_image() -> None:
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    assert image_environment().items() >= quiet.items()


def test_images_are_pinned_and_ports_are_open_on_loopback_only() -> None:
    images = re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    images += [one["image"] for one in SERVICES.values() if "build" not in one]
    assert all(re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z-]+)?$", image) for image in images), images
    assert all(port.startswith("127.0.0.1:") for one in SERVICES.values() for port in one.get("ports", []))
    assert not [o for o in OBJECTS if o["kind"] == "Service" and o["spec"].get("type", "ClusterIP") != "ClusterIP"]


def test_files_the_dockerfile_copies_exist_and_pass_dockerignore() -> None:
    passing = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert copied == passing
    mounted = [v.split(":")[0] for one in SERVICES.values() for v in one.get("volumes", []) if v.startswith("./")]
    assert mounted
    assert all((INFRA / path).exists() for path in mounted if path != "./secrets/channels")  # secrets.sh makes that


def test_services_wait_for_one_shot_services() -> None:
    """Otherwise `up --wait` treats their exit as a failure."""
    conditions = {
        (name, after["condition"]) for one in SERVICES.values() for name, after in one.get("depends_on", {}).items()
    }
    for name, one in SERVICES.items():
        once = one["restart"] == "no"
        assert once == ((name, "service_completed_successfully") in conditions), name
        assert once == (WORKLOADS[name]["kind"] == "Job" if name in WORKLOADS else False), name


def test_health_checks_use_paths_that_the_programs_serve() -> None:
    for name in ("prefect", "mlflow", "metrics", "desk"):
        [asked] = re.findall(r"http://127\.0\.0\.1:(\d+)(/[a-z/-]+)", " ".join(SERVICES[name]["healthcheck"]["test"]))
        command = SERVICES[name]["command"]
        assert asked[0] == command[command.index("--port") + 1]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container(name)[probe]["httpGet"] == {"path": asked[1], "port": int(asked[0])}
        [service] = [o for o in OBJECTS if o["kind"] == "Service" and o["metadata"]["name"] == name]
        assert [(p["port"], p["targetPort"]) for p in service["spec"]["ports"]] == [(int(asked[0]),) * 2]


def test_worker_health_checks_use_the_port_of_prefects_health_server() -> None:
    from prefect.settings import PREFECT_WORKER_WEBSERVER_PORT

    port = PREFECT_WORKER_WEBSERVER_PORT.value()
    assert f"http://127.0.0.1:{port}/health" in (INFRA / "Dockerfile").read_text()
    for name in ("cpu", "gpu"):
        assert "--with-healthcheck" in container(name)["args"]
        assert container(name)["livenessProbe"]["httpGet"] == {"path": "/health", "port": port}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod_has_limits_and_no_privileges(name: str) -> None:
    spec, one = pod(name), container(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    assert one["securityContext"]["readOnlyRootFilesystem"]
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= one["resources"]["requests"].keys() & one["resources"]["limits"].keys()
    is_served = WORKLOADS[name]["kind"] != "Job"
    assert is_served == bool({"startupProbe", "livenessProbe", "readinessProbe"} <= one.keys())


def test_only_the_gpu_worker_asks_for_a_gpu_and_its_node() -> None:
    limits = {name: container(name)["resources"]["limits"].get("nvidia.com/gpu") for name in WORKLOADS}
    assert {name for name, count in limits.items() if count == 1} == {"gpu"} == {n for n in limits if limits[n]}
    assert pod("gpu")["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [toleration["key"] for toleration in pod("gpu")["tolerations"]] == ["nvidia.com/gpu"]
    assert SERVICES["gpu"]["profiles"] == ["gpu"]


# --- secrets ---


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()]


def test_no_file_in_infra_contains_a_secret() -> None:
    files = [path for path in committed() if path.is_relative_to(INFRA)] + [ROOT / ".dockerignore"]
    assert INFRA / "compose.yaml" in files
    for path in files:
        assert not CREDENTIALS.search(path.read_text()), path
    assert not [o for o in OBJECTS if o["kind"] == "Secret"]
    environments = [*(one.get("environment", {}) for one in SERVICES.values()), *map(pod_environment, WORKLOADS)]
    for environment in [*environments, image_environment()]:
        secret = [
            name for name in environment if re.search("PASSWORD|TOKEN|DATABASE|STORE_URI|WAREHOUSE|SECRET_KEY", name)
        ]
        assert all(name.endswith("_FILE") for name in secret), secret


def test_a_password_in_a_url_is_found() -> None:
    assert CREDENTIALS.search("postgresql+psycopg://mlflow:hunter2@postgres:5432/mlflow")
    assert not CREDENTIALS.search("postgresql+psycopg://USER:PASSWORD@HOST/DATABASE")


def test_the_secrets_folder_is_ignored_by_git_and_docker() -> None:
    assert check("git", "-C", ROOT, "check-ignore", "infra/secrets/postgres_password")[0] == 0
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


URLS = {
    "prefect_database": ("prefect", "prefect"), "mlflow_database": ("mlflow", "mlflow"),
    "warehouse_owner": ("nightjar", "nightjar"), "warehouse_reader": ("analyst", "nightjar"),
    "nightjar_warehouse": ("nightly", "nightjar"),
}  # fmt: skip


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets that a copy of infra/secrets.sh creates next to it."""
    shutil.copy(INFRA / "secrets.sh", tmp_path)
    assert check("sh", tmp_path / "secrets.sh") == (0, "")
    return tmp_path / "secrets"


def test_secrets_are_created_once_and_match_each_other(secrets: Path) -> None:
    channels = secrets / "channels"  # filled by hand, and entered by the containers' user
    assert (list(channels.iterdir()), stat.S_IMODE(channels.stat().st_mode)) == ([], 0o755)
    (channels / "nightjar_channel_mail").write_text("mailto://kept")
    made = {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()}
    token = made.pop("desk_token")  # for a person
    assert set(made) == set(COMPOSE["secrets"])
    assert {f"./secrets/{name}" for name in made} == {one["file"] for one in COMPOSE["secrets"].values()}
    assert {source for name in SERVICES for source, _ in service_secrets(name)} == set(made)
    passwords = {text for name, text in made.items() if name.endswith("_password")}
    assert len(passwords) == 8
    assert all(re.fullmatch(r"[0-9a-f]{48}", text) for text in passwords)
    mlflow = configparser.ConfigParser()
    mlflow.read(secrets / "mlflow_auth")
    assert dict(mlflow["mlflow"]) == {
        "default_permission": "READ",
        "database_uri": made["mlflow_database"],
        "admin_username": "nightjar",
        "admin_password": made["tracking_password"],
    }
    for name, (login, database) in URLS.items():
        assert made[name].endswith(f"://{login}:{made[f'{login}_password']}@postgres:5432/{database}")
    admin = Access(read_users(secrets / "desk_users"))
    assert (admin.find_token(token), admin.users["admin"].role) == ("admin", "promote")
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir() if path.is_file()} == {0o444}
    assert check("sh", secrets.parent / "secrets.sh") == (0, "")
    after = {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()}
    assert after == made | {"desk_token": token}
    assert (channels / "nightjar_channel_mail").read_text() == "mailto://kept"


def test_the_entrypoint_exports_files_and_execs_the_command(secrets: Path) -> None:
    environment = {"PREFECT_API_DATABASE_CONNECTION_URL_FILE": str(secrets / "prefect_database")}
    shown = "import os; print(os.environ['PREFECT_API_DATABASE_CONNECTION_URL'], os.getpid())"
    command = ["sh", str(ENTRYPOINT), sys.executable, "-c", shown]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as entered:
        assert entered.stdout
        assert entered.stdout.read().split() == [(secrets / "prefect_database").read_text(), str(entered.pid)]


@pytest.mark.parametrize("content", [None, ""])
def test_a_missing_or_empty_secret_stops_the_entrypoint(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "mlflow_database"
    if content is not None:
        path.write_text(content)
    environment = {"MLFLOW_BACKEND_STORE_URI_FILE": str(path)}
    done = subprocess.run(["sh", ENTRYPOINT, "echo", "started"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"MLFLOW_BACKEND_STORE_URI_FILE={path}" in done.stderr


def test_without_files_the_entrypoint_leaves_the_environment_alone() -> None:
    given = {"MLFLOW_BACKEND_STORE_URI": "sqlite:///m.db"}
    done = subprocess.run(["sh", ENTRYPOINT, "env"], env=given, capture_output=True, text=True, check=True)
    assert "MLFLOW_BACKEND_STORE_URI=sqlite:///m.db" in done.stdout.splitlines()


LOGINS = {
    "prefect": "prefect",
    "mlflow": "mlflow",
    "nightjar": "nightjar",
    "nightly": "nightjar",
    "analyst": "nightjar",
}
ROLES = ("nightjar_writer", "nightjar_reader")


@pytest.fixture
def server(postgres_url: str, secrets: Path) -> Iterator[dict[str, str]]:
    """An environment for databases.sh with server and secrets; what it creates is dropped at the end."""
    parts = psycopg.conninfo.conninfo_to_dict(postgres_url.replace("+psycopg", ""))
    (secrets / "postgres_password").chmod(0o600)
    (secrets / "postgres_password").write_text(str(parts["password"]))
    address = {"PGHOST": str(parts["host"]), "PGPORT": str(parts["port"]), "PGUSER": str(parts["user"])}
    yield address | {"SECRETS": str(secrets), "PATH": os.environ["PATH"]}
    with psycopg.connect(f"{postgres_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        for database in set(LOGINS.values()):
            connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(database)))
        for role in (*LOGINS, *ROLES):
            with suppress(psycopg.errors.DependentObjectsStillExist):  # another test's warehouse has granted it rights
                connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))


def make_databases(server: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(["sh", INFRA / "postgres" / "databases.sh"], env=server, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def log_in(server: dict[str, str], login: str, database: str) -> psycopg.Connection:
    password = (Path(server["SECRETS"]) / f"{login}_password").read_text()
    return psycopg.connect(host=server["PGHOST"], port=server["PGPORT"], user=login, password=password, dbname=database)


def test_databases_are_created_once_and_each_login_can_use_only_its_own(server: dict[str, str]) -> None:
    assert [make_databases(server), make_databases(server)] == [(0, ""), (0, "")]
    for login, own in LOGINS.items():
        for database in {*LOGINS.values()} - {own}:
            with pytest.raises(psycopg.OperationalError, match="permission denied"):
                log_in(server, login, database)
        with log_in(server, login, own) as connection:
            connection.execute("create temporary table staged (id int)")
            if login == own:
                connection.execute("create table kept (id int)")
                continue
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("create table kept_too (id int)")


def test_a_missing_password_stops_the_databases_script(server: dict[str, str]) -> None:
    (Path(server["SECRETS"]) / "prefect_password").unlink()
    code, output = make_databases(server)
    assert code == 1
    assert "prefect_password is missing or empty" in output


def test_the_alertmanager_example_routes_what_the_rules_raise() -> None:
    example = yaml.safe_load((INFRA / "prometheus" / "alertmanager.yml").read_text())
    rules = yaml.safe_load((INFRA / "prometheus" / "rules.yml").read_text())["groups"][0]["rules"]
    names = {rule["alert"] for rule in rules}
    receivers = {one["name"] for one in example["receivers"]}
    routes = [example["route"], *example["route"]["routes"]]
    assert {route["receiver"] for route in routes} <= receivers
    assert {f'severity="{rule["labels"]["severity"]}"' for rule in rules} == {
        matcher for route in example["route"]["routes"] for matcher in route["matchers"]
    }
    for inhibited in example["inhibit_rules"]:
        for matcher in inhibited["source_matchers"] + inhibited["target_matchers"]:
            label, pattern = re.fullmatch(r'(\w+)(?:=|!=|=~)"(.+)"', matcher).groups()  # type: ignore[union-attr]
            assert label == "alertname"
            assert any(re.fullmatch(pattern, name) for name in names), matcher
    intervals = {one["name"] for one in example["time_intervals"]}
    assert {name for route in routes for name in route.get("mute_time_intervals", [])} == intervals
