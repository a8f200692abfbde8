"""Read and write YAML 1.2, as DVC does: params.yaml, the contracts, and what commands write.

In: a file or its text. Out: plain values, or nodes with their positions in the text. Duplicate keys, deep nesting and
aliases that expand to too many values are errors.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, Node

from tasks.errors import ParamsInvalid

MAX_VALUES = 1_000_000  # in one document
MAX_REPEATED = 100_000  # of them by aliases, of which a few lines can expand to billions
TEXT = 64  # characters that count as one more value
MAX_DEPTH = 100  # the C parser recurses without a limit

# ruamel.yaml does not catch what int(), datetime() and look-ups raise for a value such as 2026-13-45.
BROKEN = (
    YAMLError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)


class _Constructor(SafeConstructor):
    """Reports a duplicate key without its values: one may be a password."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"the key {key!r} is duplicated", key_node.start_mark)
        return True


def read_yaml(path: Path) -> object:
    """The document in a file. Raises ParamsInvalid if the file is missing or is not valid YAML."""
    if (text := read_text(path)) is None:
        todo = "run nightjar in the project's folder, or set NIGHTJAR_PROJECT to that folder"
        raise ParamsInvalid(f"{path.name} does not exist.", where=str(path), todo=todo)
    return parse_yaml(text, path)


def read_text(path: Path) -> str | None:
    """The text of a file, or None if the file is missing. Raises ParamsInvalid if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ParamsInvalid(f"{path.name} cannot be read.", where=str(path), got=str(error)) from error
    except UnicodeDecodeError as error:
        raise refuse_yaml(path, str(error)) from error


def parse_yaml(text: str, path: Path) -> object:
    """The document in a text; `path` is for error messages. Raises ParamsInvalid."""
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        _check_size(text)
        return yaml.load(text)
    except BROKEN as error:
        raise refuse_yaml(path, str(error)) from error


def compose_yaml(text: str, path: Path) -> Node | None:
    """The nodes of a text, each with its position; None if there is no document. Raises ParamsInvalid."""
    try:
        _check_size(text)
        node: Node | None = YAML(typ="safe").compose(text)
        return node
    except BROKEN as error:
        raise refuse_yaml(path, str(error)) from error


def dump_yaml(document: object, width: int, on_one_line: bool = False) -> str:
    """The text of a document. Keys keep their order; inner lists and mappings go on one line."""
    yaml, stream = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style = True if on_one_line else None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = width
    yaml.dump(document, stream)
    return stream.getvalue()


def refuse_yaml(path: Path, got: str) -> ParamsInvalid:
    """The error for a file that is not valid YAML."""
    todo = "correct the file; Nightjar reads the same YAML as DVC"
    return ParamsInvalid(f"{path.name} is not valid YAML.", where=str(path), got=got, todo=todo)


def _check_size(text: str) -> None:
    """Raise YAMLError, before building anything, if a text is nested too deep or expands to too many values."""
    sizes: dict[str, int] = {}  # by anchor: values of its node, with aliases expanded
    repeated = 0
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, values so far
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if event.anchor:
                sizes[event.anchor] = MAX_VALUES  # while it is open: a node that contains itself is infinite
            if len(open_nodes) > MAX_DEPTH:
                raise YAMLError(f"more than {MAX_DEPTH} levels of lists and mappings")
            continue
        values = 1
        if isinstance(event, CollectionEndEvent):
            anchor, values = open_nodes.pop()
            if anchor:
                sizes[anchor] = values
        elif isinstance(event, AliasEvent):
            values = sizes.get(event.anchor, 1)
            repeated += values
            if values < MAX_VALUES and repeated > MAX_REPEATED:
                raise YAMLError(f"aliases that stand for more than {MAX_REPEATED:,} values")
        elif isinstance(event, ScalarEvent):
            values += len(event.value) // TEXT
            if event.anchor:
                sizes[event.anchor] = values
        else:
            continue  # start or end of the stream or document
        anchor, before = open_nodes[-1]
        open_nodes[-1] = (anchor, before + values)
        if before + values > MAX_VALUES:
            raise YAMLError(f"more than {MAX_VALUES:,} values, or a value that contains itself")


def find_entries(node: Node | None) -> dict[str, tuple[Node, Node]]:
    """The keys and values of a mapping, by key; empty for anything else."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return {str(key.value): (key, value) for key, value in pairs}


def write_files(files: Mapping[Path, str]) -> None:
    """Write files: all of them or, if one cannot be written, none."""
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text, encoding="utf-8")
            new.replace(path)
    except OSError as error:
        for path, content in before.items():
            _restore(path, content)
        raise ParamsInvalid(
            "The project's folder cannot be written; nothing was changed.",
            where=str(error.filename),
            got=str(error.strerror),
            todo="check permissions and free space, or point NIGHTJAR_PROJECT to another folder",
        ) from error


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        path.write_bytes(content)
