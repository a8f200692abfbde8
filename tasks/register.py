"""Register a calibrated bundle in MLflow: the first version becomes the champion, a later one the challenger.

A bundle is registered only once; its content hash identifies the version.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from prefect import get_run_logger, task
from pydantic import JsonValue

from models.bundle import read_bundle_manifest
from models.calibration import expect_false_alarms
from models.columns import Column
from models.detector import Detector
from models.params import FitParams, NetworkParams, VariationalParams
from tasks.errors import ChampionMissing, PromotionRefused
from tasks.policy import IO
from tasks.rows.escaping import escape_markdown
from tasks.rows.kinds import KINDS
from tasks.rows.measures import Metrics
from tasks.serving import ServedDetector
from tasks.stores import registry
from tasks.stores.site import Site

REDUCER = "reducer"  # the key in the lineage, and so the tag, of a version with a second stage
LONGEST_TAG = 250  # characters
SHOWN_COLUMNS = 50
USUAL = 0.01  # of a night's rows may be flagged, where a false-discovery rate lets the number follow the anomalies
BY_EPOCH = ("fit_loss", "stopping_loss", "tuning_precision", "tuning_recall")


@dataclass(frozen=True)
class Trained:
    """The training of a bundle: its cut-off, its begin, how it was fitted, and a folder of pictures."""

    cutoff: date
    begun: datetime
    fit: FitParams
    pictures: Path


@dataclass(frozen=True)
class Registered:
    """The version of a bundle, its alias, and whether it is new."""

    version: int
    alias: str
    is_new: bool


def make_example(columns: tuple[Column, ...]) -> pd.DataFrame:
    """A synthetic input row with the right types, so that no real record leaves the lake."""
    values = {column.name: KINDS[column.kind].make_example(column) for column in columns}
    return pd.DataFrame([values])


def name_tags(lineage: Mapping[str, JsonValue], commit: str) -> dict[str, str]:
    """A version's tags: the lineage of its bundle, and the commit that registered it.

    The commit is not part of the bundle: the same data, params and seed give the same bundle whatever else a commit
    changed. Older bundles contain the commit that fitted them, which is kept.
    """
    tags = {"commit": commit, **lineage}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in tags.items()}


def drop_long(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that a page shows on a line or that a night reads; the others are in the run's lineage.json."""
    return {key: value for key, value in tags.items() if len(value) <= LONGEST_TAG or key == registry.COLUMN_TYPES}


def name_params(detector: Detector, fit: FitParams | None) -> dict[str, str]:
    """What a version's run shows of its training, one param each; without `fit`, the weights are another version's."""
    networks = [network.model_dump(mode="json") for network in detector.network_params]
    fitted = fit.model_dump(mode="json") if fit else {}
    return {key: str(value) for key, value in fitted.items()} | {
        "layers": ", ".join(map(describe_layers, detector.network_params)),
        "columns": list_columns(detector.columns),
        "networks": json.dumps(networks),
        "score": detector.score_params.model_dump_json(),
        "threads": str(detector.threads),
        "threshold_policy": detector.threshold.policy.model_dump_json(),
    }


def describe_layers(network: NetworkParams) -> str:
    """The widths of a network's layers, such as 20-8-20."""
    if isinstance(network, VariationalParams):
        widths = (*network.hidden, network.latent, *reversed(network.hidden))
    else:
        widths = network.layers
    return "-".join(map(str, widths))


def list_columns(columns: Sequence[Column]) -> str:
    """The names of the columns; of more than SHOWN_COLUMNS only the first, and the number."""
    names = [column.name for column in columns]
    more = f" and {len(names) - SHOWN_COLUMNS:,} more" if len(names) > SHOWN_COLUMNS else ""
    return f"{', '.join(names[:SHOWN_COLUMNS])}{more}"


def describe_version(
    detector: Detector, metrics: Metrics | None, tags: Mapping[str, str] = MappingProxyType({})
) -> str:
    """A version in words, as Markdown: network, columns, training data, threshold and metrics.

    tags: may say how many rows a night has, and how much nights vary.
    """
    lineage, threshold, columns, own = detector.lineage, detector.threshold, detector.columns, detector.segments
    rows_per_night, spread = (registry.read_number(tags, name) for name in registry.NIGHT_TAGS)
    expected = expect_false_alarms(threshold, round(rows_per_night), max(1.0, spread)) if rows_per_night else ""
    networks = ", ".join(f"{network.kind} {describe_layers(network)}" for network in detector.network_params)
    rows = lineage.get("rows")
    fitted = f", {rows['fit']:,} rows to fit on" if isinstance(rows, dict) and isinstance(rows.get("fit"), int) else ""
    parts = [
        f"Network: {networks}.",
        f"Columns ({len(columns):,}): {escape_markdown(list_columns(columns))}.",
        f"Trained on: {escape_markdown(str(lineage.get('split', 'unknown rows')))}{fitted}.",
        f"Threshold: {threshold.value:.4g}, which {threshold.false_alarm_rate:.2%} of normal rows exceed "
        f"({threshold.interval_low:.2%} to {threshold.interval_high:.2%})"
        + (f"; {expected}." if expected else ".")
        + (f" {len(own.thresholds):,} values of {escape_markdown(own.column)} have their own." if own else ""),
    ]
    if detector.reducer:
        parts.append("A second stage suppresses false alarms.")
    if metrics:
        found = {name.replace("_", " "): value for name, value in asdict(metrics).items()}
        shown = [f", {name} {value:.4g}" for name, value in found.items() if isinstance(value, float)]
        parts.append(f"Test rows: {metrics.rows:,}, {metrics.anomalies:,} of them anomalies{''.join(shown)}.")
    return "\n\n".join(parts)


def describe_training(site: Site, trained: Trained) -> registry.TrainingRun:
    """What the version's run shows of the training: values per network and epoch, and the sets in the lake."""
    epochs = pd.read_csv(site.epochs(trained.cutoff))
    losses: dict[str, list[float]] = {}
    for network, found in epochs.groupby("network"):
        prefix = f"network_{int(str(network)) + 1}/" if epochs["network"].max() else ""
        losses |= {prefix + name: found[name].tolist() for name in BY_EPOCH if name in found}
    clean = site.lake.get("clean", site.detector, trained.cutoff)
    url = f"{site.lake.root}/{site.lake.partition('clean', site.detector, trained.cutoff)}"
    names = dict.fromkeys(part.source for part in clean.parts)
    own = {name: replace(clean, parts=tuple(part for part in clean.parts if part.source == name)) for name in names}
    sets = [registry.RowSet(name, one.rows, one.hash, url) for name, one in own.items() if one.rows]
    return registry.TrainingRun(trained.begun, losses, sets, trained.pictures)


def register_bundle(
    site: Site,
    bundle: Path,
    metrics: Metrics | None,
    tags: Mapping[str, str] = MappingProxyType({}),
    trained: Trained | None = None,
) -> Registered:
    """Log a bundle as a model version with these tags, unless a version already has it.

    Without `trained`, the weights are another version's.
    """
    content_hash = read_bundle_manifest(bundle).content_hash
    site.registry.end_dead_runs()
    versions = site.registry.list_versions()
    alias = registry.CHALLENGER if any(registry.CHAMPION in v.aliases for v in versions) else registry.CHAMPION
    if known := next((v for v in versions if v.tags.get(registry.HASH_TAG) == content_hash), None):
        if not known.aliases or alias == registry.CHAMPION:  # an earlier registration may have been killed before this
            site.registry.set_alias(alias, known.version)
            return Registered(known.version, alias, is_new=False)
        return Registered(known.version, ", ".join(known.aliases), is_new=False)
    detector = Detector.load(bundle)
    example = make_example(detector.columns)
    measured = {k: v for k, v in asdict(metrics).items() if v is not None} if metrics else {}
    threshold = detector.threshold
    most = threshold.interval_high if detector.discovery_rate is None else USUAL
    named = name_tags(detector.lineage, site.commit) | {**tags, registry.MOST_FALSE_ALARMS: f"{most:.6g}"}
    version = site.registry.log_version(
        bundle,
        content_hash,
        example,
        ServedDetector(detector).predict(example),
        name_params(detector, trained.fit if trained else None),
        {f"{registry.TEST}{k}": float(v) for k, v in measured.items()}
        | {"threshold": threshold.value, "expected_false_alarm_rate": threshold.false_alarm_rate}
        | ({"suspected_calibration_rows": threshold.trimmed} if threshold.trimmed else {}),
        drop_long(named),
        describe_version(detector, metrics, tags),
        {"lineage.json": {"tags": named, "columns": {column.name: column.kind for column in detector.columns}}},
        describe_training(site, trained) if trained else None,
    )
    site.registry.set_alias(alias, version.version)
    return Registered(version.version, alias, is_new=True)


def describe_lost_reducer(champion: registry.Version, version: registry.Version) -> str:
    """A note if the champion has a second stage and the version lacks one, with the command to type; else ""."""
    if REDUCER not in champion.tags or REDUCER in version.tags:
        return ""
    return (
        f"version {champion.version} has a second stage, which version {version.version} lacks: "
        f"nightjar reduce {champion.name.removeprefix('nightjar-')} --version {version.version} learns it again"
    )


def promote(
    site: Site, version: int | None = None, force: bool = False, refusals: Sequence[str] = (), note: str = ""
) -> tuple[int, int | None]:
    """Make a version (default: the challenger) the champion. Returns the new champion and the one it replaces.

    refusals: why the gate refuses it. note: who wants it, and why. A tag of the version, registry.DECISION, says what
    was decided and why. Raises ChampionMissing, BundleInvalid for a version that cannot be loaded, and PromotionRefused
    if, without `force`, the gate refuses or the champion's second stage would be lost.
    """
    versions = {v.version: v for v in site.registry.list_versions()}
    challenger = next((v for v in versions.values() if registry.CHALLENGER in v.aliases), None)
    champion = next((v for v in versions.values() if registry.CHAMPION in v.aliases), None)
    chosen = version if version is not None else challenger.version if challenger else None
    if chosen is None or chosen not in versions:
        raise ChampionMissing(
            f"The {'version ' + str(version) if version is not None else 'challenger'} to promote does not exist.",
            where=f"registered model {site.registry.model_name}",
            got=f"versions {', '.join(map(str, versions)) or 'none'}",
            todo=f"nightjar train {site.detector} registers a challenger",
        )
    Detector.load(site.registry.fetch_bundle(versions[chosen]))
    lost = describe_lost_reducer(champion, versions[chosen]) if champion else ""
    reasons = [*([lost] if lost else []), *refusals]
    if reasons and not force:
        site.registry.tag_version(chosen, {registry.DECISION: describe_decision("refused", reasons)})
        raise PromotionRefused(
            f"Version {chosen} may not become champion"
            + (": every flag that the second stage suppresses would be an alert again." if lost else "."),
            where=f"registered model {site.registry.model_name}",
            got="; ".join(reasons),
            todo=(f"learn it again, then nightjar promote {site.detector}" if lost else "wait, or train another")
            + f"; or nightjar promote {site.detector} {chosen} --force, which a tag records",
        )
    site.registry.set_alias(registry.CHAMPION, chosen)
    if not champion or champion.version != chosen:
        what = "promoted by force" if reasons else "promoted"
        decision = describe_decision(what, [*([note] if note else []), *reasons])
        site.registry.tag_version(chosen, {registry.DECISION: decision})
    if challenger and challenger.version == chosen:
        site.registry.clear_alias(registry.CHALLENGER)
    return chosen, champion.version if champion else None


def describe_decision(what: str, reasons: Sequence[str]) -> str:
    """What was decided of a promotion now, and why, in one line."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {'; '.join([what, *reasons])}"


def rollback(site: Site, note: str = "") -> tuple[int, int]:
    """Give the champion's alias back to the version that had it before. Returns the new and the old champion.

    note: who wants it, and why. registry.DECISION of the old champion says so. Raises ChampionMissing.
    """
    champion = site.registry.get_champion()
    before = champion.previous
    if before is None:
        raise ChampionMissing(
            f"Version {champion.version} replaced no other champion; there is nothing to go back to.",
            where=f"registered model {site.registry.model_name}",
            todo=f"choose a version with nightjar promote {site.detector} VERSION",
        )
    site.registry.set_alias(registry.CHAMPION, before, remember=False)
    decision = describe_decision(f"rolled back to version {before}", [note] if note else [])
    site.registry.tag_version(champion.version, {registry.DECISION: decision})
    return before, champion.version


@task(task_run_name="register {site.detector}", **IO)
def register(
    site: Site, bundle: Path, metrics: Metrics | None, tags: Mapping[str, str], trained: Trained
) -> Registered:
    """Register the bundle and give it its alias."""
    registered = register_bundle(site, bundle, metrics, tags, trained)
    get_run_logger().info("version %d is %s", registered.version, registered.alias)
    return registered


@task(task_run_name="resolve champion of {site.detector}", **IO)
def resolve_champion(site: Site, version: int | None = None) -> tuple[registry.Version, Path]:
    """The version that scores this night (default: the champion), and its local bundle."""
    found = site.registry.get_champion() if version is None else site.registry.get_version(version)
    return found, site.registry.fetch_bundle(found)
