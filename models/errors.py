"""The base of Nightjar's errors, and those that a detector can raise; tasks/errors.py shows the whole tree.

An error is data: what happened, where, what was found, what was expected, and what to do next. It becomes text only for
display, and is stored as its name and parts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:|(?<![^\s'\"(=]))//")
TEMPLATE = re.compile(r"(USER:PASSWORD|\w*:?\$\{\w+\})@")  # no secret: our own messages, and names of variables
LOGIN = re.compile(r"[^\s/:@\[\]]+:")
PORT = re.compile(r"(\d*|PORT|\*)(?!\w)")
NAME = (
    r"[\w.-]*(?:passw|passphrase|pwd|secret|token|credential|signature|odbc_connect|auth_string|"
    r"(?:api|access|account|private|shared)[_-]?key)[\w.-]*"
)
VALUE = r"""("[^"\n]*"|'[^'\n]*'|(?:[^\s&;,'")\]}]|&(?![\w.-]+=))+)"""
NAMED = re.compile(
    rf"""((?<![\w.-]){NAME}\s*(?:=|%3D)\s*|["']{NAME}["']\s*[:=]\s*|[?&;](?:sig|key|auth|code|pass)=){VALUE}""",
    re.IGNORECASE,
)


def hide_password(text: str) -> str:
    """A text without the secrets of the URLs in it: user and password, and parameters such as ?password= or ?token=.

    A password may contain any character but a line end, escaped or not. Hides too much rather than too little.
    """
    ends = [0, *(found.end() for found in SCHEME.finditer(text)), len(text)]
    first, *others = (text[start:end] for start, end in pairwise(ends))
    return NAMED.sub(r"\1***", first + "".join(map(_hide_login, others)))


def _hide_login(text: str) -> str:
    """The text after `//` without user and password."""
    if TEMPLATE.match(text):
        return text
    line, word = text.split("\n", 1)[0], re.split(r"\s", text, maxsplit=1)[0]
    if "@" in word:
        return text[word.rindex("@") + 1 :]
    if not (login := LOGIN.match(word)):
        return text
    if "@" in line:  # a password with a space
        return text[line.rindex("@") + 1 :]
    # What follows the colon is a port, or a password that a program has cut off from its @.
    return text if PORT.match(word, login.end()) else f"{login[0]}***{text[len(word) :]}"


class NightjarError(Exception):
    """Anything a user can fix. `str(error)` is the whole message, without passwords; empty parts are left out."""

    def __init__(self, what: str, *, where: str = "", got: str = "", expected: str = "", todo: str = "") -> None:
        what, where, got, expected, todo = map(hide_password, (what, where, got, expected, todo))
        super().__init__(what)
        self.what, self.where, self.got, self.expected, self.todo = what, where, got, expected, todo

    @property
    def parts(self) -> dict[str, str]:
        """The non-empty parts by name: what, where, got, expected, todo."""
        parts = {"what": self.what, "where": self.where, "got": self.got, "expected": self.expected, "todo": self.todo}
        return {name: text for name, text in parts.items() if text}

    @property
    def line(self) -> str:
        """The error in one line: its name and what happened."""
        return Failure(type(self).__name__, self.parts).line

    def __str__(self) -> str:
        """The whole message, one line per part."""
        what, *others = self.parts.items()
        return "\n".join([what[1], *(f"  {'to do' if name == 'todo' else name}: {text}" for name, text in others)])


@dataclass(frozen=True)
class Failure:
    """The stored form of an error: its name, and its parts (what, where, got, expected, todo)."""

    error: str
    parts: Mapping[str, str]

    @property
    def line(self) -> str:
        """The failure in one line: the error's name and what happened."""
        return f"{self.error}: {' '.join(self.parts.get('what', 'no cause was recorded').split())}"


def describe_failure(error: BaseException) -> Failure:
    """The stored form of any error; one that is not Nightjar's has only the part "what"."""
    parts = error.parts if isinstance(error, NightjarError) else {"what": hide_password(str(error)) or "no message"}
    return Failure(type(error).__name__, parts)


class BundleInvalid(NightjarError):  # noqa: N818 - the name says the state, as in the runbook
    """A saved detector is missing, truncated, altered or of an unknown format."""


class TooFewRows(NightjarError):  # noqa: N818
    """Too few rows to fit, or to calibrate to the requested quantile and width."""


class TrainingDiverged(NightjarError):  # noqa: N818
    """The loss became NaN or infinite."""


class MemoryExhausted(NightjarError):  # noqa: N818
    """The machine or its GPU has too little memory for a fit or a batch."""


class ProcessLost(NightjarError):  # noqa: N818
    """A process of a night, or of a fit on several devices, died without a message or hung."""


class ReducerRefused(NightjarError):  # noqa: N818
    """The second stage would lose more recall than the limits allow."""
