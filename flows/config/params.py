"""params.yaml (what to learn), loaded once into frozen types. Where to run is in settings.

A section's type lives next to the code that reads it; this module assembles them into a detector. Unknown keys and
values out of range are errors that name the file and the key. Only a detector's own section and contract are checked:
an error in another detector must not stop its night.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from flows.config.documents import read_yaml, refuse_yaml
from models.params import Section
from tasks.errors import ParamsInvalid, hide_password
from tasks.rows.contract import Contract
from tasks.rows.params import CategoryCanary, DetectorParams

S = TypeVar("S", bound=BaseModel)
# The sections that a fitted bundle depends on; the DVC stage `train` lists them too.
LEARNT = {"time_zone", "label_delay_days", "ingest", "validate_", "enrich", "filter", "train"}
SHOWN = 120  # characters of a bad value in an error
SHOWN_KEYS = 50


NAME = r"^[a-z][a-z0-9_]{0,39}$"


class _Params(Section):
    detectors: dict[Annotated[str, Field(pattern=NAME)], DetectorParams]


class Configured(Section):
    """A detector's params, name and contract."""

    name: str
    detector: DetectorParams
    contract: Contract
    params_hash: str

    @property
    def label_delay(self) -> timedelta:
        """How long after the event a label may still arrive."""
        return timedelta(days=self.detector.label_delay_days)


def load_detector(project: Path, name: str) -> Configured:
    """Read NAME's section of params.yaml and contracts/NAME.yaml. Raises ParamsInvalid.

    Other detectors' sections and contracts are not checked.
    """
    path = project / "params.yaml"
    return _configure(read_yaml(path), path, name)


def find_broken(project: Path) -> dict[str, str]:
    """The detectors of params.yaml that cannot be loaded, and why. Raises ParamsInvalid if the file cannot be read."""
    path = project / "params.yaml"
    document, broken = read_yaml(path), {}
    for name in map(str, read_sections(document, path)):
        try:
            _configure(document, path, name)
        except ParamsInvalid as error:
            broken[name] = str(error)
    return broken


def _configure(document: object, path: Path, name: str) -> Configured:
    detector = parse_detector(document, path, name)
    contract_path = path.parent / "contracts" / f"{name}.yaml"
    return combine(name, detector, path, parse_section(Contract, read_yaml(contract_path), contract_path))


def parse_detector(document: object, path: Path, name: str) -> DetectorParams:
    """One detector of a parsed params.yaml; errors in others are ignored. Raises ParamsInvalid."""
    sections = {str(key): section for key, section in read_sections(document, path).items()}
    check_name(name, list(sections), path)
    return parse_section(_Params, {"detectors": {name: sections[name]}}, path).detectors[name]


def check_name(name: str, names: Sequence[str], path: Path) -> None:
    """Raise ParamsInvalid, with the nearest name, if a detector is not among those of params.yaml."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ParamsInvalid(
            f"The detector {name!r} does not exist.",
            where=str(path),
            expected=", ".join(sorted(names)),
            todo=f"did you mean {near[0]}?"
            if near
            else f"use one of these names, or create it: nightjar init {name} --source FILE",
        )


def read_sections(document: object, path: Path) -> dict[Any, object]:
    """The sections of a parsed params.yaml by detector, not validated yet. Raises ParamsInvalid."""
    keys = list(document) if isinstance(document, dict) else []
    sections = document["detectors"] if isinstance(document, dict) and keys == ["detectors"] else None
    if not isinstance(sections, dict):
        raise ParamsInvalid(
            f"{path.name} does not contain detectors.",
            where=str(path),
            got=f"the keys {', '.join(map(repr, keys))}" if keys else type(document).__name__,
            expected="one key, detectors, and below it one section per detector",
            todo="correct the file, or start with nightjar init NAME --source FILE",
        )
    return sections


def combine(name: str, detector: DetectorParams, path: Path, contract: Contract) -> Configured:
    """A detector with its contract. Raises ParamsInvalid if they do not match."""
    _check_history(detector, contract, path)
    _check_columns(detector, contract, path)
    _check_groups(detector, contract, path)
    _check_record(detector, contract, path)
    _check_monitor(detector, contract, path)
    _check_entities(detector, path)
    _check_segments(detector, contract, path)
    keys = {"entity"} if detector.train.per_entity else set()
    learnt = detector.model_dump(mode="json", include=LEARNT | keys, by_alias=True)
    digest = hashlib.sha256(json.dumps(learnt, sort_keys=True).encode()).hexdigest()
    return Configured(name=name, detector=detector, contract=contract, params_hash=digest)


def _check_history(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse history columns that the contract's columns cannot give, and batches that are not kept long enough."""
    if (enrich := detector.enrich) is None:
        return
    columns, numbers = contract.columns, {"int", "float"}
    bad = [f"{name} is not in the contract" for name in enrich.reads if name not in columns]
    taken = {*columns, "record_id", "event_time", "_batch_date", "_label"}
    bad += [f"{name} is a column of the contract" for name in enrich.history if name in taken]
    labels = detector.ingest.labels.column if detector.ingest.labels else None
    bad += [f"{name} is the label" for name in enrich.reads if name == labels]
    same = {name: [other for other in columns if other != name and other.casefold() == name.casefold()]
            for name in enrich.reads}  # fmt: skip
    bad += [f"{name} differs from {', '.join(others)} in case only" for name, others in same.items() if others]
    bad += [f"{name} is an image" for name in enrich.reads if name in columns and columns[name].shape]
    summed = dict.fromkeys(name for column in enrich.history.values() for name in column.numbers)
    bad += [f"{name} is masked, and would be shown" for name in summed if name in contract.masked]
    bad += [f"{name} is not a number" for name in summed if name in columns and columns[name].type not in numbers]
    if detector.ingest.event_time.column is None:
        bad.append("the rows have no event time")
    reports = [name for name, column in enrich.history.items() if column.is_reports]
    if reports and not detector.ingest.has_labels:
        bad.append(f"{', '.join(reports)}: no labels ever arrive")
    days = -(-enrich.reach // timedelta(days=1)) + 1  # a window that ends within a day begins within another
    kept = {name: getattr(detector.retention, f"{name}_days") for name in ("landing", "validated")}
    short = {name: limit for name, limit in kept.items() if limit is not None and limit < days}
    bad += [f"retention.{name}_days is {limit}, the windows need {days}" for name, limit in short.items()]
    if bad:
        raise ParamsInvalid(
            "The history columns cannot be computed.",
            where=f"{path}, enrich",
            got="; ".join(bad),
            expected="an entity and values from the contract, new names, numbers where numbers are added, event times, "
            "and batches that are kept as long as the longest window",
            todo="correct enrich or retention in params.yaml, or the contract",
        )


def _check_columns(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse train.columns that the contract lacks or masks, and the label column."""
    names, label = detector.train.columns.names, detector.ingest.labels
    known = {*contract.columns, *detector.history, "event_time"}
    bad = [f"{n} is neither in the contract nor in enrich.columns" for n in names if n not in known]
    bad += [f"{n} is masked by the contract" for n in names if n in contract.columns and contract.columns[n].masked]
    bad += [f"{label.column} is the label"] if label and label.column in names else []
    if bad:
        raise ParamsInvalid(
            "The detector cannot read some of train.columns.",
            where=str(path),
            got="; ".join(bad),
            expected="unmasked columns of the contract and history columns, without the label",
            todo="correct train.columns, or the contract",
        )


def _check_groups(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse score.groups with missing columns, masked names or a weight that is not a number."""
    bad: list[str] = []
    for groups in detector.score.groups:
        bad += [f"{name} is not in the contract" for name in groups.names if name not in contract.columns]
        if groups.by in contract.columns and (contract.columns[groups.by].masked or contract.columns[groups.by].shape):
            bad.append(f"{groups.by} is masked by the contract, or an image")
        if groups.weight in contract.columns and contract.columns[groups.weight].type not in ("int", "float"):
            bad.append(f"{groups.weight} is not a number")
    if bad:
        raise ParamsInvalid(
            "The detector cannot form its groups.",
            where=str(path),
            got="; ".join(bad),
            expected="by: hour or an unmasked column; weight: a numeric column",
            todo="correct score.groups, or the contract",
        )


def _check_record(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse an entity or published columns that the contract lacks, masks, or holds as images."""
    entity, publish = detector.entity, detector.publish
    hashed, columns = set(publish.pseudonymise), contract.columns
    named = dict.fromkeys([*([entity] if entity else []), *publish.show])
    known = {*columns, *detector.history}
    bad = [f"{name} is not in the contract" for name in {**named, **dict.fromkeys(hashed)} if name not in known]
    bad += [f"{name} is masked by the contract" for name in named if name in contract.masked - hashed]
    bad += [f"{name} is an image" for name in named if name in columns and columns[name].shape]
    bad += [f"{name} is not masked" for name in publish.pseudonymise if name in columns and not columns[name].masked]
    bad += [f"{name} is neither the entity nor shown" for name in publish.pseudonymise if name not in named]
    if bad:
        raise ParamsInvalid(
            "The detector cannot publish the records of its flags.",
            where=str(path),
            got="; ".join(bad),
            expected="entity and publish.show: columns of the contract; those that it masks also in "
            "publish.pseudonymise, and no others there, since causes and pages show unmasked values",
            todo="correct entity and publish, or the contract",
        )


def _check_monitor(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse canaries and ignored columns that the detector does not read, or that are of another kind."""
    columns, watched = detector.train.columns, detector.monitor
    bad = [f"{name} is not in train.columns" for name in watched.ignore if name not in columns.names]
    for canary in watched.canaries or ():
        is_category = isinstance(canary, CategoryCanary)
        fitting, kind = (columns.categorical, "category") if is_category else (columns.numbers, "number")
        bad += [f"{name} is no {kind} of train.columns" for name in canary.changes if name not in fitting]
        segment = canary.segment if isinstance(canary, CategoryCanary) else None
        if segment is not None and (segment not in contract.columns or contract.columns[segment].shape):
            bad.append(f"{segment} is not in the contract, or is an image")
    if bad:
        raise ParamsInvalid(
            "The detector cannot be monitored as its params say.",
            where=str(path),
            got="; ".join(bad),
            expected="columns of train.columns: numbers to shift and to swap, categories for category",
            todo="correct monitor in params.yaml",
        )


def _check_entities(detector: DetectorParams, path: Path) -> None:
    """Refuse scales for each entity without an entity, or of what is no number of train.columns."""
    per_entity, columns = detector.train.per_entity, detector.train.columns
    if per_entity is None:
        return
    bad = [f"{name} is not in train.columns" for name in per_entity.scale if name not in columns.names]
    wrong = [name for name in per_entity.scale if name in columns.names and name not in columns.numbers]
    bad += [f"{name} is not a number" for name in wrong]
    bad += [] if detector.entity else ["the detector has no entity"]
    bad += [f"{detector.entity} is the entity itself"] if detector.entity in per_entity.scale else []
    if bad:
        raise ParamsInvalid(
            "The detector cannot scale its columns for each entity.",
            where=f"{path}, train.per_entity",
            got="; ".join(bad),
            expected="scale: numeric or log_numeric columns of train.columns; and entity, beside train, a column of "
            "the contract",
            todo="correct train.per_entity, or name the entity",
        )


def _check_segments(detector: DetectorParams, contract: Contract, path: Path) -> None:
    """Refuse thresholds by a column that the contract lacks, masks, or holds as images, and by the label."""
    by, label = detector.calibrate.by, detector.ingest.labels
    if by is None:
        return
    column = contract.columns.get(by)
    bad = [f"{by} is not in the contract"] if column is None else []
    bad += [f"{by} is an image"] if column and column.shape else []
    bad += [f"{by} is masked by the contract"] if column and column.masked else []
    bad += [f"{by} is the label"] if label and label.column == by else []
    if bad:
        raise ParamsInvalid(
            "The detector cannot have a threshold for each segment.",
            where=f"{path}, calibrate.by",
            got="; ".join(bad),
            expected="an unmasked column of the contract with few values, such as a country; not the label",
            todo="correct calibrate.by, or the contract",
        )


def detector_names(project: Path) -> list[str]:
    """The detectors that params.yaml configures, in its order."""
    path = project / "params.yaml"
    return [str(name) for name in read_sections(read_yaml(path), path)]


def parse_section(kind: type[S], document: object, path: Path) -> S:
    """Turn a YAML document into a typed section. Raises ParamsInvalid, which lists every bad key."""
    try:
        # Through JSON, strict types accept a list as a tuple and text as a date.
        return kind.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        n = error.error_count()
        problems = [_explain(kind, dict(problem)) for problem in error.errors(include_url=False)[:SHOWN_KEYS]]
        raise ParamsInvalid(
            f"{path.name} has {n:,} bad {'key' if n == 1 else 'keys'}.",
            where=str(path),
            got="; ".join(problems) + (f"; and {n - SHOWN_KEYS:,} more" if n > SHOWN_KEYS else ""),
            todo="correct the file; docs/params.md lists all keys",
        ) from error
    except (TypeError, ValueError) as error:
        raise refuse_yaml(path, str(error)) from error  # such as a date as a key, or a number of 5,000 digits


def _explain(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    steps = [str(step) for step in problem["loc"]]
    text = f"{'.'.join(steps)}: {problem['msg']}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(steps[-1], _all_keys(kind), n=1)
        text = f"{'.'.join(steps)}: unknown key" + (f" (did you mean {near[0]!r}?)" if near else "")
    elif problem["type"] != "missing":
        # It may be a whole section, with a database's URL, or very long.
        got = hide_password(repr(problem["input"])[: 20 * SHOWN])
        text += f", got {got if len(got) <= SHOWN else got[:SHOWN] + '...'}"
    return text


def _all_keys(kind: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        fields = kind.model_fields
        below = [_all_keys(info.annotation, seen | {kind}) for info in fields.values()]
        return {info.alias or name for name, info in fields.items()}.union(*below)
    return set[str]().union(*(_all_keys(argument, seen) for argument in get_args(kind)))
