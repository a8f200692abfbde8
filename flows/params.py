"""params.yaml, loaded once into frozen typed sections: what to learn. Where to run is settings.

A section's type lives beside the code that reads it; here they are assembled into a detector. Unknown and misspelt
keys, and values out of range, are errors that name the file and the key.
"""

import difflib
import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args
from zoneinfo import available_timezones

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from models.params import Section
from tasks.calibrate import CalibrateParams
from tasks.contract import Contract
from tasks.errors import ParamsInvalid
from tasks.filter import FilterParams
from tasks.ingest import IngestParams
from tasks.prune import RetentionParams
from tasks.review import ReviewParams
from tasks.score import ScoreParams
from tasks.train import TrainParams
from tasks.validate import ValidateParams

S = TypeVar("S", bound=BaseModel)
# The sections that a fitted bundle depends on; the DVC stage `train` lists the same.
LEARNT = {"time_zone", "label_delay_days", "ingest", "validate_", "filter", "train"}


def _known_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"{name!r} is not a time zone of the IANA database, such as Europe/Berlin")
    return name


class RunParams(Section):
    """What `nightjar run` covers: `nights` scored batches that end at `last_date`."""

    nights: int = Field(ge=1, le=366)
    last_date: date | None = None  # None: the newest batch date that the source has


class Detector(Section):
    """One configured anomaly-detection job."""

    time_zone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    label_delay_days: int = Field(default=0, ge=0, le=365)
    run: RunParams
    ingest: IngestParams
    validate_: ValidateParams = Field(default=ValidateParams(), alias="validate")
    filter: FilterParams
    train: TrainParams
    calibrate: CalibrateParams = CalibrateParams()
    score: ScoreParams = ScoreParams()
    review: ReviewParams = ReviewParams()
    retention: RetentionParams = RetentionParams()


NAME = r"^[a-z][a-z0-9_]{0,39}$"


class _Params(Section):
    detectors: dict[Annotated[str, Field(pattern=NAME)], Detector]


class Configured(Section):
    """A detector with its name and its contract: everything the flows need to know about it."""

    name: str
    detector: Detector
    contract: Contract
    params_hash: str

    @property
    def label_delay(self) -> timedelta:
        """How long after its event a record's label may still arrive."""
        return timedelta(days=self.detector.label_delay_days)


def load_detector(project: Path, name: str) -> Configured:
    """Read params.yaml and contracts/NAME.yaml of a project folder; ParamsInvalid says what is wrong and where."""
    path = project / "params.yaml"
    detector = parse_detector(read_yaml(path), path, name)
    contract_path = project / "contracts" / f"{name}.yaml"
    return combine(name, detector, path, parse_section(Contract, read_yaml(contract_path), contract_path))


def parse_detector(document: object, path: Path, name: str) -> Detector:
    """One detector of the document of params.yaml; every other one is checked as well."""
    params = parse_section(_Params, document, path)
    if name not in params.detectors:
        near = difflib.get_close_matches(name, params.detectors, n=1)
        raise ParamsInvalid(
            f"There is no detector {name!r}.",
            where=str(path),
            expected=", ".join(sorted(params.detectors)),
            todo=f"did you mean {near[0]}?"
            if near
            else f"use one of these names, or nightjar init {name} --source FILE",
        )
    return params.detectors[name]


def combine(name: str, detector: Detector, path: Path, contract: Contract) -> Configured:
    """A detector with its contract, which must fit together."""
    _check_columns(detector, contract, path)
    _check_groups(detector, contract, path)
    learnt = detector.model_dump(mode="json", include=LEARNT, by_alias=True)
    digest = hashlib.sha256(json.dumps(learnt, sort_keys=True).encode()).hexdigest()
    return Configured(name=name, detector=detector, contract=contract, params_hash=digest)


def _check_columns(detector: Detector, contract: Contract, path: Path) -> None:
    """Refuse columns that the contract lacks or masks, and the label, among those that the detector reads."""
    names, label = detector.train.columns.names, detector.ingest.labels
    bad = [f"{n} is not in the contract" for n in names if n not in contract.columns and n != "event_time"]
    bad += [f"{n} is masked by the contract" for n in names if n in contract.columns and contract.columns[n].masked]
    bad += [f"{label.column} is the label"] if label and label.column in names else []
    if bad:
        raise ParamsInvalid(
            "The detector cannot read some of train.columns.",
            where=str(path),
            got="; ".join(bad),
            expected="columns that the contract keeps, unmasked, and that do not give the answer away",
            todo="correct train.columns, or the contract",
        )


def _check_groups(detector: Detector, contract: Contract, path: Path) -> None:
    """Refuse groups that cannot be formed, and names of groups that nobody may see."""
    groups = detector.score.groups
    if groups is None:
        return
    bad = [f"{name} is not in the contract" for name in groups.names if name not in contract.columns]
    if groups.by in contract.columns and (contract.columns[groups.by].masked or contract.columns[groups.by].shape):
        bad.append(f"{groups.by} is masked by the contract, or an image")
    if groups.weight in contract.columns and contract.columns[groups.weight].type not in ("int", "float"):
        bad.append(f"{groups.weight} is no number")
    if bad:
        raise ParamsInvalid(
            "The detector cannot form its groups.",
            where=str(path),
            got="; ".join(bad),
            expected="by: hour or a column that may be shown; weight: a column of numbers",
            todo="correct score.groups, or the contract",
        )


def detector_names(project: Path) -> list[str]:
    """The detectors that params.yaml configures, in its order."""
    path = project / "params.yaml"
    return list(parse_section(_Params, read_yaml(path), path).detectors)


def parse_section(kind: type[S], document: object, path: Path) -> S:
    """Turn a YAML document into a typed section. Raises ParamsInvalid that lists every bad key."""
    try:
        # By way of JSON: strict types then still take a list for a tuple and text for a date.
        return kind.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        problems = [_explain(kind, dict(problem)) for problem in error.errors()]
        raise ParamsInvalid(
            f"{path.name} has {len(problems)} bad {'key' if len(problems) == 1 else 'keys'}.",
            where=str(path),
            got="; ".join(problems),
            todo="correct the key; docs/params.md lists all of them",
        ) from error


def read_yaml(path: Path) -> object:
    """A YAML document. Raises ParamsInvalid where there is none, or it is broken."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        todo = "run nightjar from the project's folder, or set NIGHTJAR_PROJECT to it"
        raise ParamsInvalid(f"There is no {path.name}.", where=str(path), todo=todo) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsInvalid(f"{path.name} is not valid YAML.", where=str(path), got=str(error)) from error


def _explain(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    steps = [str(step) for step in problem["loc"]]
    text = f"{'.'.join(steps)}: {problem['msg']}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(steps[-1], _all_keys(kind), n=1)
        text = f"{'.'.join(steps)}: unknown key" + (f" (did you mean {near[0]!r}?)" if near else "")
    elif problem["type"] != "missing":
        text += f", got {problem['input']!r}"
    return text


def _all_keys(kind: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        fields = kind.model_fields
        below = [_all_keys(info.annotation, seen | {kind}) for info in fields.values()]
        return {info.alias or name for name, info in fields.items()}.union(*below)
    return set[str]().union(*(_all_keys(argument, seen) for argument in get_args(kind)))
