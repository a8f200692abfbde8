"""The registry: bundles as model versions in MLflow, their aliases, and local copies of their bundles.

A version contains exactly the bundle folder and is loaded by tasks.serving: no code and no pickle. The aliases are
`champion` (scores tonight) and `challenger` (the candidate). Tags of the registered model record when each version
became champion. Importing MLflow takes two seconds, so it is imported when first used; an SQLite file is read directly.
"""

import json
import logging
import math
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import pandas as pd
import sqlalchemy as sa
import yaml

from models.bundle import check_bundle
from tasks.errors import BundleInvalid, ChampionMissing, ParamsInvalid, hide_password
from tasks.stores.faults import reaching_registry, writing
from tasks.stores.files import appear
from tasks.stores.owner import is_dead, is_elsewhere, name_process

CHAMPION, CHALLENGER = "champion", "challenger"
HASH_TAG, PREVIOUS_TAG, OWNER_TAG = "bundle_hash", "previous_champion", "process"
REGISTERING_TAG = "registering_since"  # a run begins with the training, which may be hours earlier
NOTE_TAG = "mlflow.note.content"  # the description of a run
MOST_METRICS, DIGEST = 1000, 12  # of one request; digits of a digest, as shown elsewhere
COLUMN_TYPES, THRESHOLD_POLICY, MOST_FALSE_ALARMS = "column_types", "threshold_policy", "most_false_alarms"
NIGHT_TAGS = ROWS_PER_NIGHT, NIGHT_SPREAD = "rows_per_night", "night_spread"
SEARCHED = "searched_threshold"  # JSON: the threshold with the best F1, and both thresholds' precision and recall
DECISION = "promotion"  # what was decided of it the last time: when, what and why
TEST = "test_"  # begins the names of metrics on test rows
SINCE_TAG = "champion_since."  # followed by the instant; the value is the version that became champion then
LOADER = "tasks.serving"
DOWNLOADING, STALE_S = "downloading-", 3600
DELETED = "Deleted_Internal"  # the stage that MLflow gives a deleted version


def read_number(tags: Mapping[str, str], name: str) -> float:
    """The number in a tag; 0 if there is none."""
    try:
        found = float(tags.get(name, ""))
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


@dataclass(frozen=True)
class Version:
    """A registered model version and the aliases it carries."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    registered_at: datetime | None = None

    @property
    def trained_through(self) -> date:
        """The last batch date it learnt from. Raises BundleInvalid if no tag says so: Nightjar did not register it."""
        return self.read_date("trained_through")

    @property
    def column_types(self) -> dict[str, str]:
        """The contract's types of the columns it learnt; empty if no tag says so. Raises BundleInvalid for garbage."""
        text = self.tags.get(COLUMN_TYPES, "{}")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(kind, str) for kind in found.values()):
            raise _not_a_bundle(
                self, f"the tag {COLUMN_TYPES} {text!r}", f"the tag {COLUMN_TYPES} with a type per column"
            )
        return found

    @property
    def most_false_alarms(self) -> float | None:
        """The upper end of the interval of its false-alarm rate; None if no tag says so."""
        found = read_number(self.tags, MOST_FALSE_ALARMS)
        return found if 0 < found <= 1 else None

    @property
    def rows_per_night(self) -> int:
        """The rows of a usual night before its training; 0 if no tag says so."""
        return round(read_number(self.tags, ROWS_PER_NIGHT))

    @property
    def night_spread(self) -> float:
        """The variance of its false alarms between nights, as a multiple of that of chance; 1 if no tag says so."""
        return max(1.0, read_number(self.tags, NIGHT_SPREAD))

    @property
    def searched(self) -> dict[str, Any] | None:
        """The threshold with the best F1 on tuning rows, its precision and recall on test rows, and `now` the own ones.

        None if no tag says so.
        """
        try:
            found = json.loads(self.tags.get(SEARCHED, ""))
        except ValueError:
            return None
        return (
            found if isinstance(found, dict) and found.keys() >= {"threshold", "precision", "recall", "now"} else None
        )

    def read_date(self, tag: str) -> date:
        """The date in a tag. Raises BundleInvalid."""
        text = self.tags.get(tag)
        try:
            return date.fromisoformat(text or "")
        except ValueError:
            raise _not_a_bundle(self, f"the tag {tag} {text!r}", f"the tag {tag} with a date") from None

    def has_learnt(self, history: Mapping[str, str]) -> bool:
        """Whether history columns, by what they are as text, are those that it has learnt under these names."""
        return all(history.get(name, what) == what for name, what in self.column_types.items() if what.startswith("{"))

    def check_types(self, types: Mapping[str, str]) -> None:
        """Raise ParamsInvalid if a column has another type now, or is another history column, than at the training.

        Versions without the tag are older than it and pass. Raises BundleInvalid for garbage in the tag.
        """
        learnt = self.column_types
        now = {name: types.get(name, "no type") for name in learnt}
        if changed := [name for name in learnt if learnt[name] != now[name]]:
            raise ParamsInvalid(
                f"The type of {', '.join(changed)} has changed after version {self.version} was trained.",
                where=f"the contract and enrich.columns, and registered model {self.name}",
                got=", ".join(f"{name}: {now[name]}" for name in changed),
                expected=", ".join(f"{name}: {learnt[name]}, as learnt" for name in changed),
                todo="train a version with the new types (nightjar run NAME --retrain), or change them back",
            )

    @property
    def previous(self) -> int | None:
        """The version that was champion before it, if a tag says so."""
        text = self.tags.get(PREVIOUS_TAG, "")
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


@dataclass(frozen=True)
class RowSet:
    """A set of rows that a version was made with: how many, the SHA-256 of their parts, and where they lie."""

    name: str
    rows: int
    sha256: str
    url: str


@dataclass(frozen=True)
class TrainingRun:
    """What a run shows of the training before its version: its begin, losses by name (E,), sets and pictures (PNG)."""

    begun: datetime
    losses: Mapping[str, Sequence[float]]
    sets: Sequence[RowSet]
    pictures: Path


@dataclass(frozen=True)
class _Model:
    """One registered model in MLflow: its tags and its versions, oldest first."""

    tags: Mapping[str, str]
    versions: tuple[Version, ...]


LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


@dataclass(frozen=True)
class Registry:
    """The versions of one detector in the MLflow at `uri`, and the local folder with their bundles.

    artifacts: folder or URL for the files of registered models; None lets the tracking server decide.
    """

    uri: str = field(repr=False)
    detector: str
    bundles: Path
    artifacts: str | None = None

    @property
    def model_name(self) -> str:
        """The name of the registered model and of the experiment with its runs."""
        return f"nightjar-{self.detector}"

    def follow_copy(self) -> None:
        """Point an MLflow file that was copied or moved with its artifacts at these; otherwise do nothing.

        MLflow keeps absolute locations: a copy of a project would write its versions into the original's folder.
        """
        path = find_file(self.uri)
        if path is None or self.artifacts is None or "://" in self.artifacts or not path.exists():
            return
        folder = Path(self.artifacts) / self.detector
        new = locate_artifacts(self.artifacts, self.detector)
        with reaching_registry(self.uri), closing(sqlite3.connect(path)) as connection:
            if not connection.execute("select 1 from sqlite_master where name = 'logged_models'").fetchone():
                return
            sql = "select artifact_location from experiments where name = ?"
            old = next((place for (place,) in connection.execute(sql, (self.model_name,))), new)
            sql = "select artifact_location from logged_models where substr(artifact_location, 1, ?) = ?"
            models = [place[len(old) + 1 :] for (place,) in connection.execute(sql, (len(old) + 1, f"{old}/"))]
        is_copied = old.startswith("file://") and folder.is_dir() and all((folder / one).is_dir() for one in models)
        if old == new or not is_copied:
            return
        for file in folder.rglob("MLmodel"):
            with appear(str(file)) as rewritten:
                rewritten.write(file.read_bytes().replace(f"{old}/".encode(), f"{new}/".encode()))
        rewrite_locations(path, {old: new})

    def without_password(self) -> "Registry":
        """A copy for workers, which use their own login."""
        return replace(self, uri=hide_password(self.uri))

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """An MLflow client. Raises ServiceUnreachable for any failure to reach the server."""
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also raises what it logs
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
        """The version that carries an alias, or None."""
        return next((v for v in self.list_versions() if alias in v.aliases), None)

    def get_champion(self) -> Version:
        """The version that scores tonight. Raises ChampionMissing."""
        if (found := self.find_version()) is None:
            raise ChampionMissing(
                f"{self.detector} has no champion to score with.",
                where=f"registered model {self.model_name}",
                got=f"{len(self.list_versions())} versions, none with the alias champion",
                todo=f"run nightjar train {self.detector}, or nightjar promote {self.detector} VERSION",
            )
        return found

    def get_version(self, number: int) -> Version:
        """One registered version. Raises ChampionMissing if it does not exist."""
        versions = {version.version: version for version in self.list_versions()}
        if number not in versions:
            raise ChampionMissing(
                f"{self.detector} has no version {number} to score with.",
                where=f"registered model {self.model_name}",
                got=f"versions {', '.join(map(str, versions)) or 'none'}",
                todo="name one of these versions, or leave out the version to use the champion",
            )
        return versions[number]

    def check_tags(self, version: Version) -> str:
        """The hash of a version's bundle. Raises BundleInvalid if no tag says so: Nightjar did not register it."""
        found = version.tags.get(HASH_TAG, "")
        if not re.fullmatch(r"[0-9a-f]{64}", found):
            raise _not_a_bundle(version, f"the tag {HASH_TAG} {found!r}", f"the tag {HASH_TAG} with a SHA-256")
        return found

    def fetch_bundle(self, version: Version) -> Path:
        """The local copy of a version's bundle, downloaded once and checked every time. Raises BundleInvalid.

        It appears in one rename, so neither a kill nor two concurrent processes leave half a bundle behind.
        """
        expected = self.check_tags(version)
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
            except OSError:  # another process has fetched it in the meantime
                if not folder.exists():
                    raise

    def _download(self, version: Version, folder: Path) -> Path:
        """Download a version's files and find the bundle among them, without running any code. Raises BundleInvalid."""
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
                version, f"an MLmodel that cannot be read: {error}", "an MLmodel with the flavor python_function"
            ) from error
        runs_code = flavor.get("loader_module") != LOADER or flavor.get("code") or "python_model" in flavor or flavors
        data = (model / str(flavor.get("data"))).resolve()
        # The folder will be moved, so it must be one of the downloaded folders, not a link or a path out of them.
        if runs_code or not data.is_dir() or model.resolve() not in data.parents:
            named = f"loader {flavor.get('loader_module')!r}, data {flavor.get('data')!r}"
            got = f"{named}, other flavors {sorted(flavors)}"
            raise _not_a_bundle(version, got, f"loader {LOADER!r}, a data folder below it, and no code")
        return data

    def set_alias(self, alias: str, version: int, remember: bool = True) -> None:
        """Point an alias at a version; with `remember`, record the version that had it as the previous champion."""
        before = self.find_version(alias)
        history = self.read_champions() if alias == CHAMPION else []
        with self._client() as client:
            if remember and alias == CHAMPION and before and before.version != version:
                client.set_model_version_tag(self.model_name, str(version), PREVIOUS_TAG, str(before.version))
            client.set_registered_model_alias(self.model_name, alias, str(version))
        if alias == CHAMPION and [number for _, number in history][-1:] != [version]:
            self.record_champions([*history, (datetime.now(UTC), version)])

    def tag_version(self, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        with self._client() as client:
            for name, value in tags.items():
                client.set_model_version_tag(self.model_name, str(version), name, value)

    def read_metrics(self, version: Version) -> dict[str, float]:
        """The metrics that a version's run shows; {} if Nightjar did not register it from a run."""
        with self._client() as client:
            run = client.get_model_version(version.name, str(version.version)).run_id
            return dict(client.get_run(run).data.metrics) if run else {}

    def read_curves(self, version: Version) -> dict[str, list[float]]:
        """The same with every value of a metric, in the order of its steps, such as the losses per epoch (E,)."""
        if (path := find_file(self.uri)) is None:
            with self._client() as client:
                return _ask_curves(client, version)
        with reaching_registry(self.uri):
            _open_file(self.uri)
            with closing(sqlite3.connect(path)) as connection:
                return _read_curves(connection, version)

    def record_champions(self, champions: Sequence[tuple[datetime, int]]) -> None:
        """Record when (with a time zone) each version became champion; existing records are not changed."""
        with self._client() as client:
            for since, version in champions:
                instant = since.astimezone(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")  # no colons in MLflow's tag names
                client.set_registered_model_tag(self.model_name, SINCE_TAG + instant, str(version))

    def clear_alias(self, alias: str) -> None:
        """Remove an alias, if a version carries it."""
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
        description: str = "",
        documents: Mapping[str, dict[str, Any]] = MappingProxyType({}),
        training: TrainingRun | None = None,
    ) -> Version:
        """Register a bundle as a new version, with a run that records its params, metrics, tags and documents by name.

        description: of the version, in Markdown. The run begins when the training began, and ends now: MLflow may be
        away until here.
        """
        import mlflow
        from mlflow.models import infer_signature
        from mlflow.tracking.context.registry import resolve_tags

        named, now = dict(tags) | {HASH_TAG: content_hash}, datetime.now(UTC)
        begun = training.begun if training else now
        own = {OWNER_TAG: name_process(), REGISTERING_TAG: now.isoformat(timespec="seconds"), NOTE_TAG: description}
        signature = infer_signature(example, answer)
        with self._client() as client:
            if client.get_experiment_by_name(self.model_name) is None:
                location = locate_artifacts(self.artifacts, self.detector) if self.artifacts else None
                client.create_experiment(self.model_name, artifact_location=location)
            run = client.create_run(
                mlflow.set_experiment(self.model_name).experiment_id,
                int(begun.timestamp() * 1000),
                resolve_tags(named | own),
                f"train {self.detector} {tags['cutoff']}",
            )
            with mlflow.start_run(run.info.run_id):
                if training:
                    _log_training(client, run.info.run_id, training, signature)
                mlflow.log_params(dict(params))
                mlflow.log_metrics(dict(metrics))
                for name, document in documents.items():
                    mlflow.log_dict(document, name)
                model = mlflow.pyfunc.log_model(
                    name="bundle",
                    loader_module=LOADER,
                    data_path=str(bundle),
                    signature=signature,
                    input_example=example,
                    pip_requirements=["nightjar"],  # the package pins its own requirements
                )
                # Created together with its tags: wherever this process dies, no version exists without its hash.
                version = mlflow.register_model(model.model_uri, self.model_name, tags=named)
            client.update_model_version(self.model_name, version.version, description)
        return Version(self.model_name, int(version.version), (), named)

    def delete_model(self) -> None:
        """Delete the registered model with all its versions, and mark its runs as deleted.

        The experiment stays: MLflow would refuse a new one of the same name.
        """
        with self._client() as client:
            client.delete_registered_model(self.model_name)
            if experiment := client.get_experiment_by_name(self.model_name):
                while runs := client.search_runs([experiment.experiment_id], max_results=1000):
                    for run in runs:
                        client.delete_run(run.info.run_id)

    def end_dead_runs(self) -> None:
        """End the runs whose process died: as finished if their version exists, otherwise as killed.

        One of another host, which registers within minutes, is dead after an hour.
        """
        with self._client() as client:
            experiment = client.get_experiment_by_name(self.model_name)
            found = (
                client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'") if experiment else []
            )
            for run in found:
                owner, since = run.data.tags.get(OWNER_TAG), _to_instant(run.info.start_time)
                with suppress(KeyError, ValueError):  # of an earlier version, whose run began here
                    since = datetime.fromisoformat(run.data.tags[REGISTERING_TAG]).astimezone(UTC)
                is_stale = datetime.now(UTC) - since > timedelta(seconds=STALE_S)
                if is_dead(owner) or (owner and is_elsewhere(owner) and is_stale):
                    has_version = client.search_model_versions(f"run_id = '{run.info.run_id}'")
                    client.set_terminated(run.info.run_id, "FINISHED" if has_version else "KILLED")

    def read_champions(self) -> list[tuple[datetime, int]]:
        """When (UTC) each version became champion, oldest first.

        For a model registered before this was recorded, it is derived from its versions.
        """
        model = self._read()
        recorded = []
        for name, number in model.tags.items():
            with suppress(ValueError):  # a tag that somebody else has written
                since = datetime.strptime(name, f"{SINCE_TAG}%Y-%m-%dT%H.%M.%S.%f").replace(tzinfo=UTC)
                recorded.append((since, int(number)))
        return sorted(recorded) or imply_champions(model.versions)


def _log_training(client: Any, run_id: str, training: TrainingRun, signature: Any) -> None:
    """Record the losses of each epoch, the sets of rows as datasets, and the pictures. No row is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    now = int(time.time() * 1000)
    losses = [
        Metric(name, loss, now, epoch)
        for name, found in training.losses.items()
        for epoch, loss in enumerate(found, start=1)
    ]
    for first in range(0, len(losses), MOST_METRICS):
        client.log_batch(run_id, losses[first : first + MOST_METRICS])
    schema = json.dumps({"mlflow_colspec": signature.inputs.to_dict()})
    datasets = [
        DatasetInput(
            Dataset(
                name=one.name,
                digest=one.sha256[:DIGEST],
                source_type=one.url.partition("://")[0].replace("file", "local") if "://" in one.url else "local",
                source=json.dumps({"uri": hide_password(one.url)}),
                schema=schema,
                profile=json.dumps({"num_rows": one.rows}),
            ),
            [InputTag("mlflow.data.context", one.name)],
        )
        for one in training.sets
    ]
    client.log_inputs(run_id, datasets)
    client.log_artifacts(run_id, str(training.pictures), "pictures")


def find_file(uri: str) -> Path | None:
    """The file of an MLflow on SQLite; None for any other URI."""
    path = sa.make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(path) if path else None


def _open_file(uri: str) -> None:
    """Open an SQLite file before MLflow does, which retries for 100 s if that fails. Raises sqlite3.Error."""
    if path := find_file(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma schema_version")


def _read_file(connection: sqlite3.Connection, name: str) -> _Model:
    """Read the model from MLflow's own tables, as its client would return it."""
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


def _read_curves(connection: sqlite3.Connection, version: Version) -> dict[str, list[float]]:
    of_run = (
        "select m.key, m.value from metrics m join model_versions v on v.run_id = m.run_uuid "
        "where v.name = ? and v.version = ? and not m.is_nan order by m.step, m.timestamp"
    )
    found: dict[str, list[float]] = {}
    for name, value in connection.execute(of_run, (version.name, version.version)):
        found.setdefault(name, []).append(value)
    return found


def _ask_curves(client: Any, version: Version) -> dict[str, list[float]]:
    run = client.get_model_version(version.name, str(version.version)).run_id
    names = client.get_run(run).data.metrics if run else {}
    curves = {name: sorted(client.get_metric_history(run, name), key=lambda one: (one.step, one.timestamp))
              for name in names}  # fmt: skip
    known = {name: [one.value for one in curve if not math.isnan(one.value)] for name, curve in curves.items()}
    return {name: values for name, values in known.items() if values}


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
    """The URL of the files of a detector's versions, below the folder or URL `root`."""
    return f"{root.rstrip('/')}/{detector}" if "://" in root else Path(root).joinpath(detector).as_uri()


def rewrite_locations(database: Path, moved: Mapping[str, str]) -> None:
    """Replace old locations in a database's texts, where they are the whole text or its beginning."""
    with reaching_registry(str(database)), closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in LOCATIONS.items():
            for column in columns:
                # The names are constants. The slash keeps the location of "cards" from matching that of "cards2".
                sql = f"update {table} set {column} = ? || substr({column}, ?) where substr({column} || '/', 1, ?) = ?"  # noqa: S608
                for old, new in moved.items():
                    connection.execute(sql, (new, len(old) + 1, len(old) + 1, f"{old}/"))


def _clear_downloads(folder: Path) -> None:
    """Remove the remains of killed downloads; one from the last hour may still be running."""
    for stale in folder.glob(f"{DOWNLOADING}*"):
        with suppress(FileNotFoundError):  # its own process, or another one, has just removed it
            if stale.stat().st_mtime < time.time() - STALE_S:
                shutil.rmtree(stale, ignore_errors=True)


def _not_a_bundle(version: Version, got: str, expected: str) -> BundleInvalid:
    detector = version.name.removeprefix("nightjar-")
    return BundleInvalid(
        f"Version {version.version} of {version.name} is not a Nightjar bundle.",
        where=f"models:/{version.name}/{version.version}",
        got=got,
        expected=expected,
        todo=f"nightjar promote {detector} VERSION, with a version that Nightjar registered; nightjar train {detector} "
        "registers one",
    )


def imply_champions(versions: Sequence[Version]) -> list[tuple[datetime, int]]:
    """The champion and its predecessors, as far as their tags name one; each is dated by its registration."""
    by_number = {version.version: version for version in versions}
    version = next((v for v in versions if CHAMPION in v.aliases), None)
    found: dict[int, datetime] = {}
    while version and version.registered_at and version.version not in found:
        found[version.version] = version.registered_at
        version = by_number.get(version.previous or 0)
    return sorted((since, number) for number, since in found.items())
