"""The root of Nightjar's errors and the ones a detector itself can raise; tasks/errors.py draws the whole tree.

Every message answers five questions: what, where, got, expected, what to do next.
"""


class NightjarError(Exception):
    """Anything a user can put right. `str(error)` is the whole readable message; empty parts are left out."""

    def __init__(self, what: str, *, where: str = "", got: str = "", expected: str = "", todo: str = "") -> None:
        parts = {"where": where, "got": got, "expected": expected, "to do": todo}
        super().__init__("\n".join([what, *(f"  {name}: {text}" for name, text in parts.items() if text)]))
        self.what = what


class BundleInvalid(NightjarError):  # noqa: N818 - the name says the state, as in the runbook
    """A saved detector is missing, truncated, altered or of an unknown format."""


class TooFewRows(NightjarError):  # noqa: N818
    """Too few rows to fit, or to calibrate to the asked quantile and width."""


class TrainingDiverged(NightjarError):  # noqa: N818
    """The loss became NaN or infinite."""


class MemoryExhausted(NightjarError):  # noqa: N818
    """The computer, or its GPU, has not enough memory for a fit."""


class ProcessLost(NightjarError):  # noqa: N818
    """A process of a fit on several devices died or hung."""


class ReducerRefused(NightjarError):  # noqa: N818
    """The second stage would lose more recall than the params allow."""
