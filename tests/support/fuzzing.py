"""What the fuzzing tests share: how many cases, and how documents and bytes are spoilt."""

import copy
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Texts that have made trouble in some system or other.
HOSTILE = [
    "", " ", "'", '"', "';drop table labels;--", "../../etc/passwd", "-rf", "--help", "a\nb", "a\x00b", "\u202egnp.exe",
    "<script>alert(1)</script>", "${HOME}", "{{7*7}}", "%s%n", "\ufeffa", "a/b", "a\\b", "NaN", "null", "x" * 300,
    "1e999", "record_id", "event_time", "_label", "quarantine_reason", "A", "a", "é", "\U0001f600", "batch_date",
    "count(*)",
]  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(0, 3), inner, max_size=3),
    max_leaves=5,
)


def cases(share: float) -> settings:
    """A share of the profile's cases: of 100, or of 1,000 with --hypothesis-profile=torture, which draws new ones."""
    most = settings().max_examples
    return settings(
        max_examples=round(share * most),
        deadline=timedelta(seconds=20),
        derandomize=most <= 100,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def spoilt(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three of its values replaced, left out, renamed or joined by others."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = document
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
                _spoil(draw, node, key)
                break
            node = node[key]
    return document


def _spoil(draw: st.DrawFn, node: Any, key: Any) -> None:
    how = draw(st.sampled_from(["replace", "replace", "replace", "leave out", "add"]))
    if how == "leave out":
        del node[key]
    elif how == "add" and isinstance(node, dict):
        node[draw(TEXTS)] = draw(JUNK)
    else:
        node[key] = draw(JUNK)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, cut off, duplicated, inserted or overwritten with zeros."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.integers(1, 9))
        how = draw(st.sampled_from(["flip", "cut", "double", "insert", "zero"]))
        if how == "flip" and found:
            found[place] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del found[place : None if draw(st.booleans()) else place + length]
        elif how == "double":
            found[place:place] = found[place : place + length]
        elif how == "insert":
            found[place:place] = draw(st.binary(max_size=6))
        else:
            found[place : place + length] = bytes(len(found[place : place + length]))
    return bytes(found)
