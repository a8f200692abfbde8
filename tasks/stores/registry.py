"""All MLflow calls: register a bundle as a model version, move aliases, fetch the champion.

MLflow is imported when first used; it costs seconds. A version holds exactly the bundle folder, and is loaded by
tasks.serving: no code and no pickle. Aliases are `champion` (scores tonight) and `challenger` (wants to). Since when
which version was champion stands in tags of the registered model, one a change.
"""

import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import sqlalchemy as sa
import yaml

from models.bundle import check_bundle
from tasks.errors import BundleInvalid, ChampionMissing, ServiceUnreachable, hide_password
from tasks.stores.faults import list_faults, writing
from tasks.stores.owner import is_dead, name_process
from tasks.stores.site import Site

CHAMPION, CHALLENGER = "champion", "challenger"
HASH_TAG, PREVIOUS_TAG, OWNER_TAG = "bundle_hash", "previous_champion", "process"
SINCE_TAG = "champion_since."  # and the instant -> the version that became champion then
LOADER = "tasks.serving"
SHOWN = 500  # characters of an error of MLflow, which may list every file
DOWNLOADING, STALE_S = "downloading-", 3600


@dataclass(frozen=True)
class Version:
    """A registered model version and the aliases it carries."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    registered_at: datetime | None = None


@contextmanager
def _client(site: Site) -> Iterator[Any]:
    """An MLflow client; whatever goes wrong on the way to the server becomes ServiceUnreachable."""
    import mlflow
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs with a traceback is raised too
    try:
        _open_file(site.mlflow_uri)
        mlflow.set_tracking_uri(site.mlflow_uri)
        yield mlflow.MlflowClient(site.mlflow_uri)
    except (MlflowException, *list_faults(), sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        raise ServiceUnreachable(
            "MLflow does not answer as it should.",
            where=hide_password(site.mlflow_uri),
            got=hide_password(" ".join(str(error).split())[:SHOWN]),
            expected="a tracking server or an SQLite file that this process may write to",
            todo="check NIGHTJAR_MLFLOW and that the server runs; of files in an object store its keys and endpoint",
        ) from error


def locate_artifacts(root: str, detector: str) -> str:
    """The URL of the files of a detector's versions, below a folder or URL."""
    return f"{root.rstrip('/')}/{detector}" if "://" in root else Path(root).joinpath(detector).as_uri()


def _open_file(uri: str) -> None:
    """Open an SQLite file once before MLflow does, which tries for 100 s where that fails. Raises sqlite3.Error."""
    path = sa.make_url(uri).database if uri.startswith("sqlite:") else None
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma schema_version")


def list_versions(site: Site) -> list[Version]:
    """The registered versions, oldest first."""
    with _client(site) as client:
        models = client.search_registered_models(f"name = '{site.model_name}'")
        if not models:
            return []
        aliases: dict[str, list[str]] = {}
        for alias, version in models[0].aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        found = client.search_model_versions(f"name = '{site.model_name}'")
    versions = [
        Version(
            v.name,
            int(v.version),
            tuple(aliases.get(str(v.version), ())),
            v.tags,
            datetime.fromtimestamp(v.creation_timestamp / 1000, UTC),
        )
        for v in found
    ]
    return sorted(versions, key=lambda version: version.version)


def find_version(site: Site, alias: str = CHAMPION) -> Version | None:
    """The version that carries an alias."""
    return next((v for v in list_versions(site) if alias in v.aliases), None)


def get_champion(site: Site) -> Version:
    """The version that scores tonight. Raises ChampionMissing."""
    if (found := find_version(site)) is None:
        raise ChampionMissing(
            f"{site.detector} has no champion to score with.",
            where=f"registered model {site.model_name}",
            got=f"{len(list_versions(site))} versions, none with the alias champion",
            todo=f"nightjar train {site.detector}, or nightjar promote {site.detector} VERSION",
        )
    return found


def get_version(site: Site, number: int) -> Version:
    """One registered version. Raises ChampionMissing where there is none of this number."""
    versions = {version.version: version for version in list_versions(site)}
    if number not in versions:
        raise ChampionMissing(
            f"{site.detector} has no version {number} to score with.",
            where=f"registered model {site.model_name}",
            got=f"versions {', '.join(map(str, versions)) or 'none'}",
            todo="name one of these versions, or none for the champion",
        )
    return versions[number]


def fetch_bundle(site: Site, version: Version) -> Path:
    """A version's bundle on this machine: whole, and the one that was registered. Downloaded once, checked every time.

    It appears in one rename, so neither a kill half-way nor two processes at once leave half a bundle behind. Raises
    BundleInvalid.
    """
    expected = version.tags.get(HASH_TAG, "")
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise _refuse(version, f"the tag {HASH_TAG} {expected!r}", f"the tag {HASH_TAG} with a SHA-256")
    folder = site.bundles / f"version-{version.version}-{expected[:12]}"
    if not folder.exists():
        with writing(site.bundles):
            _fetch(site, version, folder)
    check_bundle(folder, expected)
    return folder


def _fetch(site: Site, version: Version, folder: Path) -> None:
    site.bundles.mkdir(parents=True, exist_ok=True)
    _clear_downloads(site.bundles)
    with TemporaryDirectory(prefix=DOWNLOADING, dir=site.bundles) as downloading:
        data = _download(site, version, Path(downloading))
        check_bundle(data, version.tags[HASH_TAG])
        try:
            data.rename(folder)
        except OSError:  # another process has fetched it meanwhile
            if not folder.exists():
                raise


def _download(site: Site, version: Version, folder: Path) -> Path:
    """Download a version's files and find the bundle among them; nothing of them is run. Raises BundleInvalid."""
    import mlflow

    with _client(site):
        uri = f"models:/{version.name}/{version.version}"
        model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    try:
        document = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
        flavors = dict(document["flavors"])
        flavor = dict(flavors.pop("python_function"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise _refuse(
            version, f"an MLmodel that cannot be read: {error}", "one with the flavor python_function"
        ) from error
    runs_code = flavor.get("loader_module") != LOADER or flavor.get("code") or "python_model" in flavor or flavors
    data = (model / str(flavor.get("data"))).resolve()
    # It will be moved: it must be one of the folders that came, and no link or path to another one of this machine.
    if runs_code or not data.is_dir() or model.resolve() not in data.parents:
        got = f"loader {flavor.get('loader_module')!r}, data {flavor.get('data')!r}, further flavors {sorted(flavors)}"
        raise _refuse(version, got, f"loader {LOADER!r}, a folder of data below it, and no code")
    return data


def _clear_downloads(folder: Path) -> None:
    """Remove what downloads have left that were killed half-way; one of the last hour may still be running."""
    for stale in folder.glob(f"{DOWNLOADING}*"):
        with suppress(FileNotFoundError):  # its process, or another one, has removed it meanwhile
            if stale.stat().st_mtime < time.time() - STALE_S:
                shutil.rmtree(stale, ignore_errors=True)


def _refuse(version: Version, got: str, expected: str) -> BundleInvalid:
    return BundleInvalid(
        f"Version {version.version} of {version.name} is not a Nightjar bundle.",
        where=f"models:/{version.name}/{version.version}",
        got=got,
        expected=expected,
        todo="register it with nightjar train, or go back with nightjar rollback",
    )


def set_alias(site: Site, alias: str, version: int, remember: bool = True) -> None:
    """Point an alias at a version; the version it leaves is remembered as the previous champion, on request."""
    before = find_version(site, alias)
    history = read_champions(site) if alias == CHAMPION else []
    with _client(site) as client:
        if remember and alias == CHAMPION and before and before.version != version:
            client.set_model_version_tag(site.model_name, str(version), PREVIOUS_TAG, str(before.version))
        client.set_registered_model_alias(site.model_name, alias, str(version))
    if alias == CHAMPION and [number for _, number in history][-1:] != [version]:
        record_champions(site, [*history, (datetime.now(UTC), version)])


def record_champions(site: Site, champions: Sequence[tuple[datetime, int]]) -> None:
    """Keep since when (with a zone) which version was champion; what is kept already stays as it is."""
    with _client(site) as client:
        for since, version in champions:
            instant = since.astimezone(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")  # MLflow's tag names hold no colon
            client.set_registered_model_tag(site.model_name, SINCE_TAG + instant, str(version))


def read_champions(site: Site) -> list[tuple[datetime, int]]:
    """Since when (UTC) which version was champion, oldest first.

    Of a model that was registered before this was kept it is what its versions imply.
    """
    with _client(site) as client:
        models = client.search_registered_models(f"name = '{site.model_name}'")
        tags = models[0].tags if models else {}
    kept = [(name.removeprefix(SINCE_TAG), int(text)) for name, text in tags.items() if name.startswith(SINCE_TAG)]
    recorded = [
        (datetime.strptime(instant, "%Y-%m-%dT%H.%M.%S.%f").replace(tzinfo=UTC), version) for instant, version in kept
    ]
    return sorted(recorded) or imply_champions(list_versions(site))


def imply_champions(versions: Sequence[Version]) -> list[tuple[datetime, int]]:
    """The champion and those before it, as far as each one's tag names one, each since it was registered."""
    by_number = {version.version: version for version in versions}
    version = next((v for v in versions if CHAMPION in v.aliases), None)
    found: dict[int, datetime] = {}
    while version and version.registered_at and version.version not in found:
        found[version.version] = version.registered_at
        version = by_number.get(int(version.tags.get(PREVIOUS_TAG, 0)))
    return sorted((since, number) for number, since in found.items())


def clear_alias(site: Site, alias: str) -> None:
    """Take an alias away, if some version carries it."""
    if find_version(site, alias):
        with _client(site) as client:
            client.delete_registered_model_alias(site.model_name, alias)


def log_version(
    site: Site,
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
    with _client(site) as client:
        if client.get_experiment_by_name(site.model_name) is None:
            location = locate_artifacts(site.artifacts, site.detector) if site.artifacts else None
            client.create_experiment(site.model_name, artifact_location=location)
        mlflow.set_experiment(site.model_name)
        with mlflow.start_run(
            run_name=f"train {site.detector} {tags['cutoff']}", tags=named | {OWNER_TAG: name_process()}
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
            version = mlflow.register_model(model.model_uri, site.model_name, tags=named)
    return Version(site.model_name, int(version.version), (), named)


def end_dead_runs(site: Site) -> None:
    """End the runs whose process died: as finished where their version stands, else as killed."""
    with _client(site) as client:
        experiment = client.get_experiment_by_name(site.model_name)
        found = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'") if experiment else []
        for run in found:
            if is_dead(run.data.tags.get(OWNER_TAG)):
                has_version = client.search_model_versions(f"run_id = '{run.info.run_id}'")
                client.set_terminated(run.info.run_id, "FINISHED" if has_version else "KILLED")
