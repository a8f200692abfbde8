"""All MLflow calls: register a bundle as a model version, move aliases, fetch the champion.

MLflow is imported when first used; it costs seconds. A version holds exactly the bundle folder, and is loaded by
tasks.serving: no code and no pickle. Aliases are `champion` (scores tonight) and `challenger` (wants to).
"""

import logging
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa

from models.bundle import read_bundle
from tasks.errors import BundleInvalid, ChampionMissing, ServiceUnreachable
from tasks.owner import is_dead, name_process
from tasks.site import Site, hide_password, writing

CHAMPION, CHALLENGER = "champion", "challenger"
HASH_TAG, PREVIOUS_TAG, OWNER_TAG = "bundle_hash", "previous_champion", "process"
LOADER = "tasks.serving"
SHOWN = 500  # characters of an error of MLflow, which may list every file


@dataclass(frozen=True)
class Version:
    """A registered model version and the aliases it carries."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


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
    except (MlflowException, OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        raise ServiceUnreachable(
            "MLflow does not answer as it should.",
            where=hide_password(site.mlflow_uri),
            got=hide_password(" ".join(str(error).split())[:SHOWN]),
            expected="a tracking server or an SQLite file that this process may write to",
            todo="check NIGHTJAR_MLFLOW and that the server runs",
        ) from error


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
        versions = [Version(v.name, int(v.version), tuple(aliases.get(str(v.version), ())), v.tags) for v in found]
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


def fetch_bundle(site: Site, version: Version) -> Path:
    """A version's bundle on this machine, downloaded once; loading it checks every byte. Raises BundleInvalid."""
    folder = site.bundles / f"version-{version.version}-{version.tags.get(HASH_TAG, 'unknown')[:12]}"
    if folder.exists() and not _is_whole(folder):
        shutil.rmtree(folder)  # the registry has it as it was
    if not folder.exists():
        import mlflow

        downloading = site.bundles / f"downloading-{time.time_ns()}"
        with writing(downloading):
            downloading.mkdir(parents=True)
        with _client(site):
            uri = f"models:/{version.name}/{version.version}"
            model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(downloading)))
        flavor = mlflow.models.Model.load(str(model)).flavors.get("python_function", {})
        if flavor.get("loader_module") != LOADER or flavor.get("code") or "python_model" in flavor:
            raise BundleInvalid(
                f"Version {version.version} of {version.name} is not a Nightjar bundle.",
                got=f"loader {flavor.get('loader_module')!r}",
                expected=f"loader {LOADER!r} and no code",
                todo="register it with nightjar train",
            )
        with writing(folder):
            if not folder.exists():  # another process may have fetched it meanwhile
                (model / flavor["data"]).replace(folder)
            shutil.rmtree(downloading)
    return folder


def _is_whole(bundle: Path) -> bool:
    try:
        read_bundle(bundle)
    except BundleInvalid:
        return False
    return True


def set_alias(site: Site, alias: str, version: int, remember: bool = True) -> None:
    """Point an alias at a version; the version it leaves is remembered as the previous champion, on request."""
    before = find_version(site, alias)
    with _client(site) as client:
        if remember and alias == CHAMPION and before and before.version != version:
            client.set_model_version_tag(site.model_name, str(version), PREVIOUS_TAG, str(before.version))
        client.set_registered_model_alias(site.model_name, alias, str(version))


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
            location = Path(site.artifacts).joinpath(site.detector).as_uri() if site.artifacts else None
            client.create_experiment(site.model_name, artifact_location=location)
        experiment = mlflow.set_experiment(site.model_name)
        _end_dead_runs(client, experiment.experiment_id)
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


def _end_dead_runs(client: Any, experiment_id: str) -> None:
    """Mark as killed the runs whose process died before it had registered anything."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags.get(OWNER_TAG)):
            client.set_terminated(run.info.run_id, "KILLED")
