"""YAML 1.2, read as DVC reads it: params.yaml and the contracts, and the sections that `nightjar init` writes.

In: a file or its text. Out: plain values, or the nodes with their places in the text. Two equal keys in one mapping are
an error, and so is a text that is nested too deep or that stands for too many values.
"""

import io
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
from ruamel.yaml.nodes import Node

from tasks.errors import ParamsInvalid

MAX_VALUES = 1_000_000  # in one document; a few lines of aliases can stand for billions
MAX_DEPTH = 100  # the C parser recurses without a limit of its own

# ruamel.yaml lets through what int(), datetime() and look-ups raise of a value such as 2026-13-45.
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
    """Names the key that stands twice, but not its values: one may be a password."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        return True


def read_yaml(path: Path) -> object:
    """The document in a file. Raises ParamsInvalid if the file is missing or is not valid YAML."""
    if (text := read_text(path)) is None:
        todo = "run nightjar from the project's folder, or set NIGHTJAR_PROJECT to it"
        raise ParamsInvalid(f"There is no {path.name}.", where=str(path), todo=todo)
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
    """The document in a text; `path` is named in errors. Raises ParamsInvalid."""
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        _check_size(text)
        return yaml.load(text)
    except BROKEN as error:
        raise refuse_yaml(path, str(error)) from error


def compose_yaml(text: str, path: Path) -> Node | None:
    """The nodes of a text, each with its place; None if the text holds no document. Raises ParamsInvalid."""
    try:
        _check_size(text)
        node: Node | None = YAML(typ="safe").compose(text)
        return node
    except BROKEN as error:
        raise refuse_yaml(path, str(error)) from error


def dump_yaml(document: object, width: int, on_one_line: bool = False) -> str:
    """The text of a document, with keys in their order; inner lists and mappings are written on one line."""
    yaml, stream = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style = True if on_one_line else None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = width
    yaml.dump(document, stream)
    return stream.getvalue()


def refuse_yaml(path: Path, got: str) -> ParamsInvalid:
    """The error for a file that is not valid YAML."""
    todo = "correct the file; what DVC cannot read, Nightjar does not read either"
    return ParamsInvalid(f"{path.name} is not valid YAML.", where=str(path), got=got, todo=todo)


def _check_size(text: str) -> None:
    """Raise YAMLError if a text is nested too deep or stands for too many values, before any of it is built."""
    stands_for: dict[str, int] = {}  # by anchor, the values of its node with aliases followed
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # the anchor and the values so far
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if event.anchor:
                stands_for[event.anchor] = MAX_VALUES  # while it is open: what holds itself has no end
            if len(open_nodes) > MAX_DEPTH:
                raise YAMLError(f"more than {MAX_DEPTH} levels of lists and mappings")
            continue
        values = 1
        if isinstance(event, CollectionEndEvent):
            anchor, values = open_nodes.pop()
            if anchor:
                stands_for[anchor] = values
        elif isinstance(event, AliasEvent):
            values = stands_for.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent):
            if event.anchor:
                stands_for[event.anchor] = 1
        else:
            continue  # where the stream or the document begins or ends
        anchor, before = open_nodes[-1]
        open_nodes[-1] = (anchor, before + values)
        if before + values > MAX_VALUES:
            raise YAMLError(f"more than {MAX_VALUES:,} values, or one that holds itself")
