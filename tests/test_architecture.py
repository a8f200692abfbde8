"""The code follows its design: imports point down, every params key is read, each step has one name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
BELOW = {"flows": {"flows", "tasks", "models"}, "tasks": {"tasks", "models"}, "models": {"models"}}
STEPS = (
    "ingest",
    "validate",
    "enrich",
    "filter",
    "train",
    "calibrate",
    "evaluate",
    "register",
    "score",
    "publish",
    "report",
    "monitor",
    "review",
)


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_down_only(room: str) -> None:
    rooms = set(BELOW)
    for path in modules(room):
        upward = {name.split(".")[0] for name in imported(path)} & rooms - BELOW[room]
        assert not upward, f"{path} imports {upward}"


def test_models_do_not_import_frames_registries_or_flows() -> None:
    for path in modules("models"):
        assert not {name.split(".")[0] for name in imported(path)} & {
            "pandas",
            "mlflow",
            "prefect",
            "pyarrow",
            "duckdb",
        }


# From the top down: each may import what comes after it, never what comes before.
FLOORS = (
    ("spread",),
    ("score", "report", "monitor", "upkeep"),
    ("enrich",),
    ("validate",),
    ("on_demand",),
    ("train", "calibrate", "register", "evaluate", "onboarding"),
    ("ingest", "filter", "publish", "review", "serving"),
    ("pages", "follow_up"),
    ("rows",),
    ("sources",),
    ("stores", "policy"),
    ("errors",),
)
NAMED = ("spread", "serving", "errors", "policy")  # files of tasks/ that are no steps


def rooms_of_tasks() -> dict[str, set[str]]:
    """What each file and folder directly below tasks/ imports of the others."""
    found: dict[str, set[str]] = {}
    for path in modules("tasks"):
        room = path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
        targets = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tasks":
                parts = node.module.split(".")
                targets |= {parts[1]} if len(parts) > 1 else {name.name for name in node.names}
        targets.discard(room)
    found.pop("__init__")
    return found


def test_files_of_tasks_are_the_steps_and_four_named_ones() -> None:
    files = {path.stem for path in (ROOT / "tasks").glob("*.py")} - {"__init__"}
    assert files == {*STEPS, *NAMED}


def test_rooms_of_tasks_import_downward_only_and_stay_few() -> None:
    rooms = rooms_of_tasks()
    floor = {room: number for number, names in enumerate(FLOORS) for room in names}
    assert set(rooms) == set(floor)
    upward = {(room, other) for room, others in rooms.items() for other in others if floor[other] <= floor[room]}
    assert not upward
    assert len(rooms) <= 25
    assert sum(map(len, rooms.values())) <= 100


def test_each_verb_has_a_file_of_its_own_name() -> None:
    from flows.cli.main import app

    shared = {"__init__", "main", "options", "screen"}
    verbs = {command.name for command in app.registered_commands}
    assert {path.stem for path in (ROOT / "flows" / "cli").glob("*.py")} - shared == verbs


def test_each_folder_says_in_one_sentence_what_is_in_it() -> None:
    for path in [*(ROOT / "flows").rglob("__init__.py"), *(ROOT / "tasks").rglob("__init__.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert docstring.endswith(".") and "\n" not in docstring, path


def test_each_error_message_starts_with_a_capital_and_ends_with_a_period() -> None:
    from tasks import errors

    names = {name for name in dir(errors) if isinstance(getattr(errors, name), type)} - {"Failure"}
    for path in [path for room in BELOW for path in modules(room)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                start, end = ends_of(node.args[0])
                assert not start.islower(), f"{path}:{node.lineno}"
                assert end in ("", ".", "?"), f"{path}:{node.lineno}"


def ends_of(text: ast.expr) -> tuple[str, str]:
    """The first and last character of a text, as far as they are written in the source."""
    if isinstance(text, ast.Constant):
        return str(text.value)[:1], str(text.value)[-1:]
    if isinstance(text, ast.JoinedStr):
        return ends_of(text.values[0])[0], ends_of(text.values[-1])[1]
    return "", ""


def test_every_step_has_its_file_and_its_test_file() -> None:
    for step in STEPS:
        assert (ROOT / "tasks" / f"{step}.py").exists(), step
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    untested = set(STEPS) - tested
    # These three are thin wrappers of models/ and MLflow; the flow tests run them.
    assert untested <= {"train", "calibrate", "register"}


def test_only_the_evaluation_reads_the_simulators_truth() -> None:
    readers = {path.name for path in modules("tasks") + modules("flows") if "payments.read_truth" in path.read_text()}
    assert readers == {"evaluate.py"}


def test_only_the_judge_runs_the_second_stage_and_names_causes() -> None:
    for call in (".reduce(", ".explain(", "name_causes(detector", "name_causes(self.detector"):
        users = {path.name for path in modules("tasks") + modules("flows") if call in path.read_text()}
        assert users <= {"judge.py"}, call


@pytest.mark.parametrize("room", ["tasks", "models"])
def test_no_environment_is_read_below_flows(room: str) -> None:
    for path in modules(room):
        assert not re.search(r"os\.(environ|getenv)", path.read_text()), path


def test_no_pickle_and_no_code_loading_anywhere() -> None:
    for path in [path for room in BELOW for path in modules(room)]:
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}, path


def sections(kind: Any, seen: set[type]) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in seen:
            seen.add(kind)
            yield kind
            for field in kind.model_fields.values():
                yield from sections(field.annotation, seen)
    else:
        for argument in get_args(kind):
            yield from sections(argument, seen)


def test_every_params_key_is_read_somewhere() -> None:
    from flows.config.settings import Settings
    from tasks.rows.params import DetectorParams

    code = "\n".join(path.read_text() for room in BELOW for path in modules(room))
    found = list(sections(DetectorParams, set()))
    assert len(found) > 10
    for section in [*found, Settings]:
        for name in section.model_fields:
            if name != "kind":  # chooses the section itself
                assert re.search(rf"\.{name}\b", code), f"{section.__name__}.{name} is read nowhere"


def test_every_detector_of_params_yaml_loads_with_its_contract() -> None:
    from flows.config.params import detector_names, load_detector

    for name in detector_names(ROOT):
        assert load_detector(ROOT, name).name == name


def test_the_names_in_params_yaml_are_in_the_contracts() -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, detector in document["detectors"].items():
        contract = yaml.safe_load((ROOT / "contracts" / f"{name}.yaml").read_text())
        columns = detector["train"]["columns"]
        kinds = ("numeric", "log_numeric", "categorical", "datetime", "image", "sequence")
        used = {column for kind in kinds for column in columns.get(kind, [])}
        assert used <= set(contract["columns"]), name


def test_the_runbook_has_an_entry_for_every_error_and_no_other() -> None:
    from tasks import errors

    kinds = (getattr(errors, name) for name in dir(errors))
    names = {kind.__name__ for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)}
    entries = set(re.findall(r"^## ([A-Z][A-Za-z]+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE))
    assert entries == names - {"NightjarError"}
