"""Where Nightjar runs: folders, URLs and device, from NIGHTJAR_* variables. What to learn is in params.yaml.

The defaults need no server and keep everything in `.nightjar/` in the project's folder.
"""

import base64
import json
import os
import re
import stat
import traceback
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from tempfile import NamedTemporaryFile
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.config.quiet import clean_logs, hush_lost_connections
from tasks.errors import ParamsInvalid, ServiceUnreachable

# Prefect's pages show what a run logs, and the terminal only what a person must know.
QUIET_LOGS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
}
SHOWN = 300  # characters of a foreign error
ESCAPE = "in a user or password, @ written as %40, / as %2F, # as %23 and ? as %3F"


def is_cut_short(url: str) -> bool:
    """Whether a program would take a piece of the password in a URL as the host, which messages show."""
    login, at, _ = url.partition("://")[2].rpartition("@")
    return bool(at and re.search("[/?#@]" if url.startswith("http") else "@", login))


class Settings(BaseSettings):
    """One field per variable, e.g. NIGHTJAR_WAREHOUSE=postgresql+psycopg://user:password@host/name."""

    model_config = SettingsConfigDict(env_prefix="NIGHTJAR_", frozen=True, extra="ignore")

    project: Path = Field(default_factory=Path.cwd, description="the folder with params.yaml and contracts/")
    home: Path = Field(default=Path(".nightjar"), description="folder for everything Nightjar writes, unless set below")
    sources: str = Field(default="sources", description="folder or URL to which source paths are relative")
    lake: str = Field(default="", description="folder or fsspec URL of the Parquet zones")
    warehouse: str = Field(default="", description="SQLAlchemy URL; see docs/warehouses.md")
    mlflow: str = Field(default="", description="MLflow tracking URI")
    artifacts: str = Field(default="", description="folder or s3:// URL for the files of registered models")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="device on which networks fit and score")
    devices: int = Field(default=1, ge=1, le=64, description="GPUs (or processes) that fit a network together")
    threads: int = Field(
        default=1, ge=1, le=256, description="CPU threads for fitting and scoring; recorded in the bundle"
    )
    train_deployment: str = Field(
        default="", description="Prefect deployment that trains; empty: train in this process"
    )
    limits: bool = Field(default=False, description="queue a detector's runs behind Prefect's limits (make deploy)")
    silent_after_s: int = Field(
        default=90, ge=60, description="a run with no heartbeat for this long is marked as crashed"
    )

    lost_after_s: int = Field(
        default=600, ge=120, description="a night of another host with no heartbeat for this long is marked as failed"
    )

    stack_user: str = Field(default="", description="user of the stack's programs where root starts it")
    task_runner: str = Field(
        default="threads",
        pattern=r"^(threads|(tcp|tls|ws|wss)://.+)$",
        description="threads, or the address of a Dask scheduler",
    )
    workers: int = Field(default=1, ge=1, le=256, description="threads that score parts of a batch in parallel")

    pseudonym_key: str = Field(
        default="", repr=False, description="secret key of pseudonyms, the same for all that publish"
    )

    @field_validator("mlflow")
    @classmethod
    def _check_login(cls, url: str) -> str:
        if is_cut_short(url):
            raise ValueError(ESCAPE)
        return url

    @property
    def home_path(self) -> Path:
        """The home folder, absolute."""
        return (self.project / self.home).resolve()

    @property
    def lake_root(self) -> str:
        """The lake's root."""
        return self.lake or str(self.home_path / "lake")

    @property
    def warehouse_url(self) -> str:
        """The warehouse's SQLAlchemy URL."""
        return self.warehouse or f"duckdb:///{self.home_path / 'warehouse.duckdb'}"

    @property
    def mlflow_uri(self) -> str:
        """The MLflow tracking URI."""
        return self.mlflow or f"sqlite:///{self.home_path / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str | None:
        """Where MLflow stores model files; None: its server decides."""
        if not self.artifacts:
            return None if self.mlflow else str(self.home_path / "mlflow-artifacts")
        return self.artifacts if "://" in self.artifacts else str((self.project / self.artifacts).resolve())

    def read_pseudonym_key(self) -> bytes:
        """The key of pseudonyms; where the warehouse is a file, a random one that the home folder keeps will do.

        Raises ParamsInvalid where several machines may publish and no key is set: each would make its own pseudonyms.
        """
        if self.pseudonym_key:
            return self.pseudonym_key.encode()
        if not self.warehouse_url.startswith(("duckdb:", "sqlite:")):
            raise ParamsInvalid(
                "A detector publishes pseudonyms, and their key is not set.",
                where="NIGHTJAR_PSEUDONYM_KEY",
                expected="the same secret on every machine that publishes to this warehouse",
                todo="set it, for example to the output of: openssl rand -hex 32",
            )
        path = self.home_path / "pseudonym.key"
        if not path.exists():
            with NamedTemporaryFile("w", dir=self.home_path, prefix="pseudonym-") as file:  # 0600
                file.write(token_hex(32))
                file.flush()
                with suppress(FileExistsError):  # another process made it at the same moment
                    path.hardlink_to(file.name)
        return path.read_bytes()


def load_settings() -> Settings:
    """Read the environment, then files in the folder NIGHTJAR_SECRETS, such as `nightjar_warehouse`.

    The environment takes precedence. Raises ParamsInvalid, naming the bad variable.
    """
    secrets = os.environ.get("NIGHTJAR_SECRETS")
    if secrets and not Path(secrets).is_dir():
        raise ParamsInvalid(
            "NIGHTJAR_SECRETS does not point to a folder.", got=repr(secrets), todo="unset or correct it"
        )
    try:
        return Settings(_secrets_dir=secrets)  # type: ignore[call-arg]  # pydantic's own
    except ValidationError as error:
        problem = error.errors()[0]
        name = f"NIGHTJAR_{str(problem['loc'][0]).upper()}"
        raise ParamsInvalid(
            f"{name} has a bad value.", got=repr(problem["input"]), expected=problem["msg"], todo="unset or correct it"
        ) from error


def prefect_is_away(got: str) -> ServiceUnreachable:
    """The error for a Prefect server that does not answer."""
    if not os.environ.get("PREFECT_API_URL"):
        return ServiceUnreachable(
            "The temporary Prefect server did not start.",
            where=os.environ["PREFECT_HOME"],
            got=got,
            todo="read its log above; move a damaged prefect.db away, or set PREFECT_API_URL to a running server",
        )
    return ServiceUnreachable(
        "The Prefect server does not answer.",
        where=os.environ["PREFECT_API_URL"],
        got=got,
        todo="check that the server is running and that PREFECT_API_URL is right; it ends in /api",
    )


def explain_prefect(error: Exception) -> ServiceUnreachable | None:
    """The error for what Prefect's client raises if its server is away, wants a password or is of another version.

    None for any other error.
    """
    text, names = str(error), {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", 0) if "HTTPStatusError" in names else 0
    if text.startswith("Failed to reach API at") or names & {"TransportError", "InvalidURL"} or status >= 500:
        return prefect_is_away(text)
    if status in (401, 403):
        return ServiceUnreachable(
            "The Prefect server refuses this command, which gave no password or a wrong one.",
            where=os.environ.get("PREFECT_API_URL", ""),
            got=text.splitlines()[0],
            todo="set PREFECT_API_AUTH_STRING as for the server (nightjar up writes it into stack/env of the home "
            "folder), or PREFECT_API_KEY for Prefect Cloud",
        )
    if status or "Found incompatible versions" in text or _is_misread(error):
        return ServiceUnreachable(
            "The Prefect server does not understand this command, or the command not the server.",
            where=os.environ.get("PREFECT_API_URL", ""),
            got=f"server {_ask_version()}, Prefect {version('prefect')} here; {' '.join(text.split())[:SHOWN]}",
            expected="the same version of Prefect on both sides",
            todo="install the same version on both; if PREFECT_API_URL leads to another server, correct it",
        )
    return None


def _is_misread(error: Exception) -> bool:
    """Whether Prefect's client could not read an answer."""
    steps = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_in_client = any("/prefect/client/" in step for step in steps[-6:])
    return is_in_client and (
        isinstance(error, ValidationError | json.JSONDecodeError | KeyError) or type(error).__name__ == "InvalidVersion"
    )


def _ask_version() -> str:
    """The version of the Prefect server, if it says so."""
    try:
        request = urllib.request.Request(f"{os.environ['PREFECT_API_URL'].rstrip('/')}/admin/version")  # noqa: S310
        if login := os.environ.get("PREFECT_API_AUTH_STRING"):
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - the address that Prefect uses
            return f"Prefect {str(json.loads(answer.read(100)))[:20]}"
    except (OSError, ValueError, LookupError):
        return "of an unknown version"


def prepare_environment(settings: Settings) -> None:
    """Create the home folder and set the environment of Prefect, MLflow and DVC, before they are imported.

    Variables that the user has set are kept, but telemetry is always off.
    """
    clean_logs()
    hush_lost_connections()
    if is_cut_short(os.environ.get("PREFECT_API_URL", "")):
        raise ParamsInvalid("PREFECT_API_URL has a bad value.", expected=ESCAPE, todo="correct it")
    try:
        settings.home_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.home_path.stat().st_mode & stat.S_ISGID:  # shared with the stack's user, whose group files inherit
            os.umask(0o002)
    except OSError as error:
        todo = "correct NIGHTJAR_HOME, or the permissions"
        where = str(settings.home_path)
        raise ParamsInvalid("The home folder cannot be created.", where=where, got=str(error), todo=todo) from error
    os.environ.update(
        DO_NOT_TRACK="1",
        MLFLOW_DISABLE_TELEMETRY="true",
        DVC_NO_ANALYTICS="1",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )
    defaults = {
        "PREFECT_HOME": str(settings.home_path / "prefect"),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_API_REQUEST_TIMEOUT": "120",  # the first request waits until the temporary server has started
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    if "PREFECT_LOGGING_LEVEL" not in os.environ:  # else it holds for the terminal and for the pages
        defaults |= QUIET_LOGS
    secrets = Path(os.environ.get("NIGHTJAR_SECRETS", "/nowhere"))
    if os.environ.get("PREFECT_API_URL") and (auth := secrets / "prefect_auth").is_file():
        defaults["PREFECT_API_AUTH_STRING"] = auth.read_text().strip()
    if settings.mlflow.startswith("http") and (password := secrets / "tracking_password").is_file():
        defaults |= {"MLFLOW_TRACKING_USERNAME": "nightjar", "MLFLOW_TRACKING_PASSWORD": password.read_text().strip()}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
