"""The registry: a bundle as a model version in MLflow, its aliases, and the bundle of a version on this machine.

A version holds exactly the bundle folder, and is loaded by tasks.serving: no code and no pickle. Aliases are `champion`
(scores tonight) and `challenger` (wants to). Tags of the registered model record since when which version was champion.
MLflow costs two seconds to import, so it is imported when first used; an SQLite file is read without it.
"""

import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import sqlalchemy as sa
import yaml

from models.bundle import check_bundle
from tasks.errors import BundleInvalid, ChampionMissing, hide_password
from tasks.stores.faults import reaching_registry, writing
from tasks.stores.owner import is_dead, name_process

CHAMPION, CHALLENGER = "champion", "challenger"
HASH_TAG, PREVIOUS_TAG, OWNER_TAG = "bundle_hash", "previous_champion", "process"
SINCE_TAG = "champion_since."  # and the instant -> the version that became champion then
LOADER = "tasks.serving"
DOWNLOADING, STALE_S = "downloading-", 3600
DELETED = "Deleted_Internal"  # the stage that MLflow gives a deleted version


@dataclass(frozen=True)
class Version:
    """A registered model version and the aliases it carries."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    registered_at: datetime | None = None


@dataclass(frozen=True)
class _Model:
    """What MLflow holds of one registered model: its tags and its versions, oldest first."""

    tags: Mapping[str, str]
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Registry:
    """The versions of one detector in the MLflow at `uri`, and the folder on this machine that keeps their bundles.

    artifacts: folder or URL of the files of registered models; None lets the tracking server decide.
    """

    uri: str = field(repr=False)
    detector: str
    bundles: Path
    artifacts: str | None = None

    @property
    def model_name(self) -> str:
        """The registered model, and the experiment of its runs."""
        return f"nightjar-{self.detector}"

    def without_password(self) -> "Registry":
        """The registry as it is sent to workers, which bring a login of their own."""
        return replace(self, uri=hide_password(self.uri))

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """An MLflow client. Raises ServiceUnreachable for whatever goes wrong on the way to the server."""
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, it also raises
        with reaching_registry(self.uri):
            _open_file(self.uri)
            mlflow.set_tracking_uri(self.uri)
            yield mlflow.MlflowClient(self.uri)

    def _read(self) -> _Model:
        if (path := find_file(self.uri)) is None:
            with self._client() as client:
                return _ask_server(client, self.model_name)
        with reaching_registry(self.uri):
            _open_file(self.uri)
            with closing(sqlite3.connect(path)) as connection:
                return _read_file(connection, self.model_name)

    def list_versions(self) -> list[Version]:
        """The registered versions, oldest first."""
        return list(self._read().versions)

    def find_version(self, alias: str = CHAMPION) -> Version | None:
        """The version that carries an alias."""
        return next((v for v in self.list_versions() if alias in v.aliases), None)

    def get_champion(self) -> Version:
        """The version that scores tonight. Raises ChampionMissing."""
        if (found := self.find_version()) is None:
            raise ChampionMissing(
                f"{self.detector} has no champion to score with.",
                where=f"registered model {self.model_name}",
                got=f"{len(self.list_versions())} versions, none with the alias champion",
                todo=f"nightjar train {self.detector}, or nightjar promote {self.detector} VERSION",
            )
        return found

    def get_version(self, number: int) -> Version:
        """One registered version. Raises ChampionMissing where there is none of this number."""
        versions = {version.version: version for version in self.list_versions()}
        if number not in versions:
            raise ChampionMissing(
                f"{self.detector} has no version {number} to score with.",
                where=f"registered model {self.model_name}",
                got=f"versions {', '.join(map(str, versions)) or 'none'}",
                todo="name one of these versions, or none for the champion",
            )
        return versions[number]

    def fetch_bundle(self, version: Version) -> Path:
        """A version's bundle on this machine, downloaded once and checked every time. Raises BundleInvalid.

        It appears in one rename, so neither a kill nor two processes at once leave half a bundle behind.
        """
        expected = version.tags.get(HASH_TAG, "")
        if not re.fullmatch(r"[0-9a-f]{64}", expected):
            raise _not_a_bundle(version, f"the tag {HASH_TAG} {expected!r}", f"the tag {HASH_TAG} with a SHA-256")
        folder = self.bundles / f"version-{version.version}-{expected[:12]}"
        if not folder.exists():
            with writing(self.bundles):
                self._fetch(version, folder)
        check_bundle(folder, expected)
        return folder

    def _fetch(self, version: Version, folder: Path) -> None:
        self.bundles.mkdir(parents=True, exist_ok=True)
        _clear_downloads(self.bundles)
        with TemporaryDirectory(prefix=DOWNLOADING, dir=self.bundles) as downloading:
            data = self._download(version, Path(downloading))
            check_bundle(data, version.tags[HASH_TAG])
            try:
                data.rename(folder)
            except OSError:  # another process has fetched it meanwhile
                if not folder.exists():
                    raise

    def _download(self, version: Version, folder: Path) -> Path:
        """Download a version's files and find the bundle among them; nothing of them is run. Raises BundleInvalid."""
        import mlflow

        with self._client():
            uri = f"models:/{version.name}/{version.version}"
            model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        try:
            document = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
            flavors = dict(document["flavors"])
            flavor = dict(flavors.pop("python_function"))
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise _not_a_bundle(
                version, f"an MLmodel that cannot be read: {error}", "one with the flavor python_function"
            ) from error
        runs_code = flavor.get("loader_module") != LOADER or flavor.get("code") or "python_model" in flavor or flavors
        data = (model / str(flavor.get("data"))).resolve()
        # It will be moved: it must be one of the folders that came, and no link or path to another one of this machine.
        if runs_code or not data.is_dir() or model.resolve() not in data.parents:
            named = f"loader {flavor.get('loader_module')!r}, data {flavor.get('data')!r}"
            got = f"{named}, further flavors {sorted(flavors)}"
            raise _not_a_bundle(version, got, f"loader {LOADER!r}, a folder of data below it, and no code")
        return data

    def set_alias(self, alias: str, version: int, remember: bool = True) -> None:
        """Point an alias at a version; the version it leaves is remembered as the previous champion, on request."""
        before = self.find_version(alias)
        history = self.read_champions() if alias == CHAMPION else []
        with self._client() as client:
            if remember and alias == CHAMPION and before and before.version != version:
                client.set_model_version_tag(self.model_name, str(version), PREVIOUS_TAG, str(before.version))
            client.set_registered_model_alias(self.model_name, alias, str(version))
        if alias == CHAMPION and [number for _, number in history][-1:] != [version]:
            self.record_champions([*history, (datetime.now(UTC), version)])

    def record_champions(self, champions: Sequence[tuple[datetime, int]]) -> None:
        """Keep since when (with a zone) which version was champion; what is kept already stays as it is."""
        with self._client() as client:
            for since, version in champions:
                instant = since.astimezone(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")  # MLflow's tag names hold no colon
                client.set_registered_model_tag(self.model_name, SINCE_TAG + instant, str(version))

    def clear_alias(self, alias: str) -> None:
        """Take an alias away, if some version carries it."""
        if self.find_version(alias):
            with self._client() as client:
                client.delete_registered_model_alias(self.model_name, alias)

    def log_version(
        self,
        bundle: Path,
        content_hash: str,
        example: pd.DataFrame,
        answer: pd.DataFrame,
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> Version:
        """Register a bundle as a new version, with a run that holds its params, metrics and tags."""
        import mlflow
        from mlflow.models import infer_signature

        named = dict(tags) | {HASH_TAG: content_hash}
        with self._client() as client:
            if client.get_experiment_by_name(self.model_name) is None:
                location = locate_artifacts(self.artifacts, self.detector) if self.artifacts else None
                client.create_experiment(self.model_name, artifact_location=location)
            mlflow.set_experiment(self.model_name)
            with mlflow.start_run(
                run_name=f"train {self.detector} {tags['cutoff']}", tags=named | {OWNER_TAG: name_process()}
            ):
                mlflow.log_params(dict(params))
                mlflow.log_metrics(dict(metrics))
                model = mlflow.pyfunc.log_model(
                    name="bundle",
                    loader_module=LOADER,
                    data_path=str(bundle),
                    signature=infer_signature(example, answer),
                    input_example=example,
                    pip_requirements=["nightjar"],  # the package brings its own pinned requirements
                )
                # Its tags come with it: a version never stands there without its hash, wherever this process dies.
                version = mlflow.register_model(model.model_uri, self.model_name, tags=named)
        return Version(self.model_name, int(version.version), (), named)

    def end_dead_runs(self) -> None:
        """End the runs whose process died: as finished where their version stands, else as killed."""
        with self._client() as client:
            experiment = client.get_experiment_by_name(self.model_name)
            found = (
                client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'") if experiment else []
            )
            for run in found:
                if is_dead(run.data.tags.get(OWNER_TAG)):
                    has_version = client.search_model_versions(f"run_id = '{run.info.run_id}'")
                    client.set_terminated(run.info.run_id, "FINISHED" if has_version else "KILLED")

    def read_champions(self) -> list[tuple[datetime, int]]:
        """Since when (UTC) which version was champion, oldest first.

        Of a model that was registered before this was recorded, it is what its versions imply.
        """
        model = self._read()
        kept = {name.removeprefix(SINCE_TAG): int(n) for name, n in model.tags.items() if name.startswith(SINCE_TAG)}
        recorded = [
            (datetime.strptime(instant, "%Y-%m-%dT%H.%M.%S.%f").replace(tzinfo=UTC), number)
            for instant, number in kept.items()
        ]
        return sorted(recorded) or imply_champions(model.versions)


def find_file(uri: str) -> Path | None:
    """The file of an MLflow on SQLite; None for any other."""
    path = sa.make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(path) if path else None


def _open_file(uri: str) -> None:
    """Open an SQLite file once before MLflow does, which tries for 100 s where that fails. Raises sqlite3.Error."""
    if path := find_file(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma schema_version")


def _read_file(connection: sqlite3.Connection, name: str) -> _Model:
    """The model from MLflow's own tables, as its client would give it."""
    if not connection.execute("select 1 from sqlite_master where name = 'model_versions'").fetchone():
        return _Model({}, ())
    select = {
        "tags": "select key, value from registered_model_tags where name = ?",
        "aliases": "select version, alias from registered_model_aliases where name = ? order by alias",
        "version_tags": "select version, key, value from model_version_tags where name = ?",
        "versions": "select version, creation_time from model_versions where name = ? and current_stage is not ?",
    }
    tags = dict(connection.execute(select["tags"], (name,)).fetchall())
    aliases, version_tags = dict[int, list[str]](), dict[int, dict[str, str]]()
    for number, alias in connection.execute(select["aliases"], (name,)):
        aliases.setdefault(int(number), []).append(alias)
    for number, key, value in connection.execute(select["version_tags"], (name,)):
        version_tags.setdefault(int(number), {})[key] = value
    rows = connection.execute(select["versions"], (name, DELETED)).fetchall()
    return _Model(
        tags,
        tuple(
            Version(name, number, tuple(aliases.get(number, ())), version_tags.get(number, {}), _to_instant(created))
            for number, created in sorted(rows)
        ),
    )


def _ask_server(client: Any, name: str) -> _Model:
    models = client.search_registered_models(f"name = '{name}'")
    if not models:
        return _Model({}, ())
    aliases: dict[str, list[str]] = {}
    for alias, version in sorted(models[0].aliases.items()):
        aliases.setdefault(str(version), []).append(alias)
    found = client.search_model_versions(f"name = '{name}'")
    versions = [
        Version(
            v.name, int(v.version), tuple(aliases.get(str(v.version), ())), v.tags, _to_instant(v.creation_timestamp)
        )
        for v in found
    ]
    return _Model(models[0].tags, tuple(sorted(versions, key=lambda version: version.version)))


def _to_instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def locate_artifacts(root: str, detector: str) -> str:
    """The URL of the files of a detector's versions, below a folder or URL."""
    return f"{root.rstrip('/')}/{detector}" if "://" in root else Path(root).joinpath(detector).as_uri()


def _clear_downloads(folder: Path) -> None:
    """Remove what downloads have left that were killed half-way; one of the last hour may still be running."""
    for stale in folder.glob(f"{DOWNLOADING}*"):
        with suppress(FileNotFoundError):  # its process, or another one, has removed it meanwhile
            if stale.stat().st_mtime < time.time() - STALE_S:
                shutil.rmtree(stale, ignore_errors=True)


def _not_a_bundle(version: Version, got: str, expected: str) -> BundleInvalid:
    return BundleInvalid(
        f"Version {version.version} of {version.name} is not a Nightjar bundle.",
        where=f"models:/{version.name}/{version.version}",
        got=got,
        expected=expected,
        todo="register it with nightjar train, or go back with nightjar rollback",
    )


def imply_champions(versions: Sequence[Version]) -> list[tuple[datetime, int]]:
    """The champion and those before it, as far as each one's tag names one, each since it was registered."""
    by_number = {version.version: version for version in versions}
    version = next((v for v in versions if CHAMPION in v.aliases), None)
    found: dict[int, datetime] = {}
    while version and version.registered_at and version.version not in found:
        found[version.version] = version.registered_at
        version = by_number.get(int(version.tags.get(PREVIOUS_TAG, 0)))
    return sorted((since, number) for number, since in found.items())
