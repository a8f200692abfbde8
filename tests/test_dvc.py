"""The deps of a stage in dvc.yaml are the files that its code imports, so that DVC notices every change."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import experiment

ROOT = Path(__file__).parent.parent
ENTRY = ROOT / "flows" / "experiment.py"
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = ("flows/", "models", "tasks/")
NOT_CODE = ("${item.source}", "contracts/", "experiments/")


def find_module(name: str) -> Path | None:
    """The file of one of our modules or packages; None for a library or a name that is not a module."""
    path = ROOT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def list_names(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Every module and name in import statements, including parent packages."""
    for statement in statements:
        whole = []
        if isinstance(statement, ast.Import):
            whole = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            whole = [f"{statement.module}.{alias.name}" for alias in statement.names]
        for name in whole:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def read_imports(statements: Iterable[ast.AST]) -> set[Path]:
    return {path for name in list_names(statements) if (path := find_module(name))}


def close(files: set[Path]) -> set[Path]:
    """The files and everything they import, at the top or inside functions, recursively."""
    seen: set[Path] = set()
    left = set(files)
    while left:
        path = left.pop()
        seen.add(path)
        left |= read_imports(ast.walk(ast.parse(path.read_text()))) - seen
    return seen


def find_code(stage: str) -> set[Path]:
    """What a stage runs: of flows/experiment.py only what its function uses, of all other files everything.

    An `__init__` that holds nothing but its docstring is left out.
    """
    module = ast.parse(ENTRY.read_text())
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    used: set[str] = set()
    left = {experiment.STAGES[stage].__name__}
    while left:
        name = left.pop()
        used.add(name)
        if name in functions:
            left |= {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)} - used
    statements = []
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            wanted = [alias for alias in node.names if (alias.asname or alias.name) in used]
            if wanted and isinstance(node, ast.ImportFrom):
                statements.append(ast.ImportFrom(node.module, wanted, node.level))
            elif wanted:
                statements.append(ast.Import(wanted))
    statements += [
        node
        for name in used & functions.keys()
        for node in ast.walk(functions[name])
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return {path for path in close(read_imports(statements)) | {ENTRY} if not is_empty(path)}


def is_empty(path: Path) -> bool:
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def covers(dep: str, path: Path) -> bool:
    return path.is_relative_to(ROOT / dep)


def code_deps(stage: str) -> list[str]:
    return [dep for dep in STAGES[stage]["do"]["deps"] if not dep.startswith(NOT_CODE)]


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_among_its_deps(stage: str) -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in sorted(find_code(stage))
        if not any(covers(dep, path) for dep in code_deps(stage))
    ]
    assert not missing, f"dvc.yaml: add to the deps of {stage} these files, or their folders: {', '.join(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_dep_of_a_stage_exists_and_is_imported(stage: str) -> None:
    code = find_code(stage)
    unused = [dep for dep in code_deps(stage) if not any(covers(dep, path) for path in code)]
    assert not unused, f"dvc.yaml: nothing of these deps of {stage} is imported: {', '.join(unused)}"
    assert all(dep.startswith(CODE) and (ROOT / dep).exists() for dep in code_deps(stage))


def test_the_stages_of_dvc_are_the_stages_of_the_code() -> None:
    assert list(STAGES) == list(experiment.STAGES)
    for stage, described in STAGES.items():
        assert described["do"]["cmd"] == f"nightjar stage {stage} ${{key}}"


def test_the_closure_follows_imports_inside_functions_and_of_names() -> None:
    names = {str(path.relative_to(ROOT)) for path in find_code("ingest")}
    assert {"flows/experiment.py", "tasks/ingest.py", "tasks/sources/payments.py", "tasks/stores/lake.py"} <= names
    assert not names & {"tasks/train.py", "models/detector.py", "flows/config/write.py"}
    assert "tasks/pages/validation.py" in {str(path.relative_to(ROOT)) for path in find_code("validate")}
