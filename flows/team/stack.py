"""`nightjar up` and `nightjar down`: the team's servers and workers on one machine, without containers, on loopback.

supervisord runs what infra/supervisord.conf lists: PostgreSQL, Prefect and MLflow servers on it, a worker for each
pool, and the desk. All they write lies below HOME/stack, their passwords in files that only their owner reads; a
restart finds it again.
"""

import getpass
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import psycopg

from flows.config.settings import Settings
from flows.team.waiting import answers, wait_until
from tasks.errors import ParamsInvalid, ServiceUnreachable

CONFIG = "infra/supervisord.conf"
AS_ROOT = "postgres"  # whom PostgreSQL's server runs as if the other programs run as root: it refuses root
PORTS_FILE = "ports.json"
HOST = "127.0.0.1"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
PASSWORDS = {"PREFECT_API_AUTH_STRING": "prefect_auth", "MLFLOW_TRACKING_PASSWORD": "tracking_password"}
PORTS = {"postgres": 5433, "prefect": 4200, "mlflow": 5000, "desk": 8890}  # unless others were asked for


@dataclass(frozen=True)
class Stack:
    """The folders and ports of a stack."""

    project: Path
    home: Path
    ports: Mapping[str, int]  # of PORTS' servers
    user: str = ""  # of all programs; empty: the caller's, but PostgreSQL's is postgres if that is root

    @property
    def folder(self) -> Path:
        """Data, logs, secrets and the socket of supervisord."""
        return self.home / "stack"

    @property
    def pages(self) -> dict[str, str]:
        """The address of each page."""
        return {name: f"http://{HOST}:{self.ports[name.lower()]}" for name in ("Prefect", "MLflow", "Desk")}

    @property
    def client_environment(self) -> dict[str, str]:
        """The environment variables that commands and workers need to use this stack."""
        return {
            "NIGHTJAR_PROJECT": str(self.project),
            "NIGHTJAR_HOME": str(self.home),
            "NIGHTJAR_SECRETS": str(self.folder / "secrets"),
            "NIGHTJAR_MLFLOW": self.pages["MLflow"],
            "MLFLOW_TRACKING_URI": self.pages["MLflow"],
            "MLFLOW_TRACKING_USERNAME": "nightjar",
            "PREFECT_API_URL": f"{self.pages['Prefect']}/api",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that infra/supervisord.conf reads."""
        return self.client_environment | {
            "STACK": str(self.folder),
            "BIN": str(Path(sys.executable).parent),
            "POSTGRES_BIN": str(find_postgres()),
            "AS_POSTGRES": f"setpriv --reuid={AS_ROOT} --regid={AS_ROOT} --clear-groups" if self.is_root else "",
            **{f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
        }

    @property
    def is_root(self) -> bool:
        """Whether the programs run as root."""
        return os.getuid() == 0 and not self.user

    @property
    def login(self) -> dict[str, Any]:
        """The user of the programs as arguments for a subprocess, which also gets files of its own."""
        if not self.user:
            return {}
        known = pwd.getpwnam(self.user)
        groups = os.getgrouplist(self.user, known.pw_gid)
        return {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": groups}

    @property
    def login_environment(self) -> dict[str, str]:
        """Where that user may write: the caller's folders are not its own."""
        if not self.user:
            return {}
        home = Path(pwd.getpwnam(self.user).pw_dir)
        has_home = home.is_dir() and home.owner() == self.user
        return {
            "HOME": str(home if has_home else self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "USER": self.user,
            "LOGNAME": self.user,
        }

    def read_secret(self, name: str) -> str:
        """The content of a secret file."""
        return (self.folder / "secrets" / name).read_text()

    def connect(self) -> psycopg.Connection:
        """An autocommit connection to the server as its superuser."""
        return psycopg.connect(
            host=HOST, port=self.ports["postgres"], user="postgres", password=self.read_secret("postgres_password"),
            dbname="postgres", autocommit=True, connect_timeout=5,
        )  # fmt: skip


def describe_stack(settings: Settings, asked: Mapping[str, int | None] | None = None) -> Stack:
    """The stack of a project, on the requested ports, else on those of the last start, else on PORTS.

    Raises ParamsInvalid where its folder cannot hold one.
    """
    known = read_ports(settings.home_path / "stack")
    given = {name: port for name, port in (asked or {}).items() if port is not None}
    stack = Stack(settings.project.resolve(), settings.home_path, PORTS | known | given)
    if len(str(stack.folder / "sock")) > 100:
        raise ParamsInvalid(
            "The home folder's path is too long for a socket.",
            where=str(stack.folder),
            expected="at most 95 characters",
            todo="set NIGHTJAR_HOME to a shorter path",
        )
    return stack


def find_postgres() -> Path:
    """The folder of PostgreSQL's server binaries. Raises ServiceUnreachable if they are missing."""
    config = shutil.which("pg_config")
    asked = [config, "--bindir"] if config else ["true"]
    folder = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() or "/nowhere")  # noqa: S603
    if not (folder / "initdb").exists():
        raise ServiceUnreachable(
            "PostgreSQL's server is not installed.",
            where=str(folder),
            expected="initdb and postgres",
            todo="Debian: apt-get install postgresql libpq-dev",
        )
    return folder


def start_stack(stack: Stack, tell: Callable[[str], None], asked_user: str = "") -> None:
    """Start the servers that are not running, in order, each once the one before it is healthy.

    The caller deploys between servers and workers: see `start_workers`. Raises ParamsInvalid, ServiceUnreachable.
    """
    running = find_supervisor(stack)
    (check_ports_are_its_own if running else check_ports_are_free)(stack)
    stack = replace(stack, user=choose_user(stack, asked_user, running, tell))
    if not running:
        give_home(stack)
    make_secrets(stack)
    make_database(stack)
    if not running:
        call(stack, "supervisord")
    start(stack, "postgres")
    wait_for(lambda: can_connect(stack), "PostgreSQL", stack)
    make_roles(stack)
    tell("PostgreSQL is up")
    for name in ("prefect", "mlflow"):
        start(stack, name)
    wait_for(lambda: answers(f"{stack.pages['Prefect']}/api/health"), "Prefect", stack)
    tell(f"Prefect is up: {stack.pages['Prefect']}")
    wait_for(lambda: answers(f"{stack.pages['MLflow']}/health"), "MLflow", stack)
    tell(f"MLflow is up: {stack.pages['MLflow']}")


def start_workers(stack: Stack, tell: Callable[[str], None]) -> None:
    """Start a worker for each pool and wait until Prefect sees them."""
    for pool in ("cpu", "gpu"):
        start(stack, f"worker-{pool}")
    for pool in ("cpu", "gpu"):
        wait_for(lambda pool=pool: has_worker(pool), f"the worker of the {pool} pool", stack)  # type: ignore[misc]
        tell(f"the worker of the {pool} pool is up")


def start_desk(stack: Stack, tell: Callable[[str], None]) -> None:
    """Start the desk. The caller has migrated the warehouse."""
    start(stack, "desk")
    wait_for(lambda: answers(f"{stack.pages['Desk']}/-/health"), "the desk", stack)
    tell(f"the desk is up: {stack.pages['Desk']} (sign in with the token in {stack.folder / 'secrets' / 'desk_token'})")


def stop_stack(stack: Stack) -> list[str]:
    """Stop what was started here, and nothing else; return the names of what ran."""
    if not stack.folder.exists():
        return []
    running = [line.split()[0] for line in control(stack, "status").splitlines() if " RUNNING " in f"{line} "]
    control(stack, "shutdown")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while find_processes(stack) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in find_processes(stack):  # of a supervisord that was killed
        process.terminate()
    psutil.wait_procs(find_processes(stack), timeout=STOP_TIMEOUT_S)
    return running


def choose_user(stack: Stack, asked: str, running: psutil.Process | None, tell: Callable[[str], None]) -> str:
    """The user of the programs of a stack that root starts; empty for the caller.

    NIGHTJAR_STACK_USER, else the owner of the project's folder, else nobody; root only if that user cannot run them.
    Raises ParamsInvalid if the user that was asked for cannot run them.
    """
    if os.getuid() != 0:
        if asked not in ("", getpass.getuser()):
            raise ParamsInvalid(
                "Only root can start the stack as another user.",
                where="NIGHTJAR_STACK_USER",
                got=asked,
                todo="unset it, or start the stack as root",
            )
        return ""
    user = running.username() if running else asked or find_owner(stack.project)
    if user == "root":
        return ""
    if not running and (problem := find_obstacle(replace(stack, user=user))):
        if asked:
            raise ParamsInvalid(
                f"The user {user} cannot run the stack.",
                where="NIGHTJAR_STACK_USER",
                got=problem,
                expected="a user who may read the project's folder and the Python that runs this command",
                todo="let the user read them, choose another, or NIGHTJAR_STACK_USER=root",
            )
        tell(
            f"warning: servers and workers run as root: the user {user} cannot run them, see infra/README.md: {problem}"
        )
        return ""
    return user


def find_owner(folder: Path) -> str:
    """The owner of a folder; nobody if that is root or has no name here."""
    try:
        owner = folder.owner()
    except KeyError:
        return "nobody"
    return "nobody" if owner == "root" else owner


def find_obstacle(stack: Stack) -> str:
    """Why the stack's user cannot run its programs; empty if it can."""
    try:
        pwd.getpwnam(stack.user)
    except KeyError:
        return "this user does not exist"
    tried = f"import os, flows.cli.main, supervisor; open('params.yaml').close(); os.stat({str(stack.home)!r})"
    try:
        done = run_as_user(stack, [sys.executable, "-c", tried], stack.project)
    except OSError as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def give_home(stack: Stack) -> None:
    """Let root's commands and the stack's user write to the same home folder; before any program of the stack runs.

    All of it belongs to that user and its group, which new files inherit. What the stack itself stores is only its own.
    """
    stack.folder.mkdir(exist_ok=True)
    data = stack.folder / "postgres"
    if not stack.user:
        if stack.is_root and data.exists():
            for path in (data, *data.rglob("*")):
                shutil.chown(path, AS_ROOT, AS_ROOT)
        return
    (stack.folder / "tmp").mkdir(exist_ok=True)
    known = pwd.getpwnam(stack.user)
    for path in (stack.home, *stack.home.rglob("*")):
        os.chown(path, known.pw_uid, known.pw_gid, follow_symlinks=False)
        if not path.is_symlink() and not path.is_relative_to(stack.folder):
            is_folder = path.is_dir()
            bits = stat.S_IRWXG | stat.S_ISGID if is_folder else stat.S_IRGRP | stat.S_IWGRP
            path.chmod(path.stat().st_mode | bits)
    os.umask(0o002)


def make_secrets(stack: Stack) -> None:
    """A password for every login, once, and the URLs that contain them, in files that only their owner reads."""
    folder = stack.folder / "secrets"
    if (folder / "postgres").exists():  # its name until secrets.sh wrote these files
        (folder / "postgres").rename(folder / "postgres_password")
    place = f"{HOST}:{stack.ports['postgres']}"
    run_script(stack, "infra/secrets.sh", {"SECRETS": str(folder), "PLACE": place, "MODE": "600"})
    lines = [f"export {name}='{value}'\n" for name, value in stack.client_environment.items()]
    lines += [f"export {name}=\"$(cat '{folder}/{file}')\"\n" for name, file in PASSWORDS.items()]
    (stack.folder / "env").write_text("".join(lines))
    (stack.folder / PORTS_FILE).write_text(json.dumps(dict(stack.ports)))


def write_secret(path: Path, text: str) -> None:
    """Write a file that was never readable by others."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def make_database(stack: Stack) -> None:
    """Create PostgreSQL's data folder, once. It never belongs to root, which the server refuses."""
    data, password = stack.folder / "postgres", stack.folder / "password"
    if stack.is_root and not stack.home.stat().st_mode & 0o001:  # the server passes through, and lists nothing
        shutil.chown(stack.home, group=AS_ROOT)
        stack.home.chmod(0o710)
    server = replace(stack, user=AS_ROOT) if stack.is_root else stack
    if (data / "PG_VERSION").exists():
        return
    data.mkdir(exist_ok=True)
    write_secret(password, stack.read_secret("postgres_password"))
    if server.user:
        for path in (data, password):
            shutil.chown(path, server.user)
    command = [str(find_postgres() / "initdb"), "-D", ".", "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"]
    done = run_as_user(server, [*command, "--pwfile=../password"], data)
    password.unlink()
    if done.returncode:
        shutil.rmtree(data)
        raise ServiceUnreachable(
            "PostgreSQL's data folder cannot be created.",
            where=str(data),
            got=done.stderr.strip(),
            todo="under root, the user postgres must be able to enter the home folder; or set another NIGHTJAR_HOME",
        )


def make_roles(stack: Stack) -> None:
    """Create the logins, databases and roles that are missing, as in the containers. Raises ServiceUnreachable."""
    folder = stack.folder / "secrets"
    server = {"PGHOST": HOST, "PGPORT": str(stack.ports["postgres"]), "PGUSER": "postgres", "SECRETS": str(folder)}
    run_script(stack, "infra/postgres/databases.sh", server)


def run_script(stack: Stack, script: str, variables: dict[str, str]) -> None:
    """Run one of the project's shell scripts, with PostgreSQL's programs on its path."""
    path = f"{find_postgres()}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    command = ["sh", str(stack.project / script)]
    done = run_as_user(stack, command, stack.project, {"PATH": path} | variables)
    if done.returncode:
        raise ServiceUnreachable(
            "The stack's secrets, logins or databases cannot be created.",
            where=str(stack.folder),
            got=done.stderr.strip(),
            todo="read the message of the script; then nightjar up again",
        )


def read_ports(folder: Path) -> dict[str, int]:
    """The ports of the stack in a folder; empty if it was never started."""
    file = folder / PORTS_FILE
    return dict(json.loads(file.read_text())) if file.exists() else {}


def check_ports_are_its_own(stack: Stack) -> None:
    """Raise ParamsInvalid if the running stack has other ports."""
    if (known := read_ports(stack.folder)) != stack.ports:
        raise ParamsInvalid(
            "The stack runs already, on other ports; nothing was changed.",
            got=_format_ports(stack.ports),
            expected=_format_ports(known),
            todo="leave out the ports; or make down first, then start it on these",
        )


def check_ports_are_free(stack: Stack) -> None:
    """Raise ParamsInvalid if another program already listens on a port."""
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    for name, port in stack.ports.items():
        if port in taken:
            raise ParamsInvalid(
                "A port of the stack is taken by another program.",
                where=f"{HOST}:{port}, for {name}",
                todo=f"end that program, or choose another: nightjar up --{name}-port PORT",
            )


def find_supervisor(stack: Stack) -> psutil.Process | None:
    """The running supervisord of this stack."""
    found = [process for process in find_processes(stack) if "supervisord" in " ".join(process.cmdline())]
    return found[0] if found else None


def find_processes(stack: Stack) -> list[psutil.Process]:
    """Every process that this stack has started: its environment says so."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STACK") == str(stack.folder):
                found.append(process)
        except psutil.Error:  # it has ended, or is not ours to look at
            continue
    return found


def start(stack: Stack, program: str) -> None:
    """Ask supervisord to start a program; one that is running stays as it is."""
    answer = control(stack, "start", program)
    if "ERROR (already started)" not in answer and "started" not in answer:
        raise _not_started(program, answer.strip(), stack)


def control(stack: Stack, *arguments: str) -> str:
    """Send supervisord a command and return its answer, good or bad."""
    return call(stack, "supervisorctl", *arguments)


def call(stack: Stack, tool: str, *arguments: str) -> str:
    """Run one of supervisor's own commands with the stack's environment."""
    command = [str(Path(sys.executable).parent / tool), "-c", str(stack.project / CONFIG), *arguments]
    done = run_as_user(stack, command, stack.folder, stack.environment)
    return done.stdout + done.stderr


def run_as_user(
    stack: Stack, command: Sequence[str], folder: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run a command as the user of the stack's programs, with more environment variables."""
    env = os.environ | stack.login_environment | dict(variables)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, **stack.login)  # noqa: S603


def wait_for(is_healthy: Callable[[], bool], what: str, stack: Stack) -> None:
    """Return once it is healthy. Raises ServiceUnreachable when it takes too long."""
    if not wait_until(is_healthy, START_TIMEOUT_S):
        raise _not_started(what, f"not healthy after {START_TIMEOUT_S} s", stack)


def can_connect(stack: Stack) -> bool:
    """Whether PostgreSQL accepts connections."""
    try:
        stack.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def has_worker(pool: str) -> bool:
    """Whether Prefect has recently seen a worker of a pool."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return any(str(worker.status).endswith("ONLINE") for worker in client.read_workers_for_work_pool(pool))


def _format_ports(ports: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {port}" for name, port in ports.items())


def _not_started(what: str, got: str, stack: Stack) -> ServiceUnreachable:
    return ServiceUnreachable(
        f"{what} did not start.", where=str(stack.folder), got=got, todo="read the .log files there; then make down"
    )
