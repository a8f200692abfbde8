"""The base of Nightjar's errors, and those that a detector can raise; tasks/errors.py shows the whole tree.

An error is data: what happened, where, what was found, what was expected, and what to do next. It becomes text only for
display, and is stored as its name and parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass


class NightjarError(Exception):
    """Anything a user can fix. `str(error)` is the whole message; empty parts are left out."""

    def __init__(self, what: str, *, where: str = "", got: str = "", expected: str = "", todo: str = "") -> None:
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
    parts = error.parts if isinstance(error, NightjarError) else {"what": str(error) or "no message"}
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
