"""Every error a user of Nightjar can meet.

NightjarError                anything a user can fix
├── ParamsInvalid             params.yaml, a contract or a setting: unknown key, bad value, unknown detector
├── SourceInvalid             a file or query is missing, empty, truncated or has the wrong columns
├── BatchMissing              no rows for the batch date
├── BatchRejected             a batch broke its contract: nothing of it is scored
├── ChampionMissing           no version is registered, or none carries the alias
├── BundleInvalid             a saved detector is altered or unreadable
├── TooFewRows                too few rows to fit or to calibrate
├── TrainingDiverged          the loss became NaN or infinite
├── MemoryExhausted           the computer, or its GPU, has not enough memory for a fit or a batch
├── ProcessLost              a process died without a word: of a night, or of a fit on several devices
├── ReducerRefused           the second stage would lose more recall than it may
├── RecordInvalid             a record given by hand lacks columns, or breaks the contract
├── RecordMissing             no such record in the published nights
├── PublishConflict           a newer attempt, or newer input, overtook this one
├── ReconciliationFailed      rows in differ from scored + quarantined + excluded
├── LeakageFound              two sets share records, or a label was used before it was known
├── BackupInvalid             a backup is incomplete, altered, or of stores that it cannot hold
├── StoreNotEmpty             a restore would mix with what a store already holds
├── SchemaMismatch            the warehouse's tables are of another version than the code
├── RunFailed                 at least one part of a run failed; lists them all
└── ServiceUnreachable        the warehouse, the lake or MLflow does not answer
"""

import re

from models.errors import (
    BundleInvalid,
    Failure,
    MemoryExhausted,
    NightjarError,
    ProcessLost,
    ReducerRefused,
    TooFewRows,
    TrainingDiverged,
    describe_failure,
)

__all__ = [
    "BundleInvalid",
    "Failure",
    "MemoryExhausted",
    "NightjarError",
    "ProcessLost",
    "ReducerRefused",
    "TooFewRows",
    "TrainingDiverged",
    "describe_failure",
]

# The names say the state a user is in, as the runbook's headings do; hence no "Error" at their ends.
# ruff: noqa: N818


class ParamsInvalid(NightjarError):
    """params.yaml, a contract or a setting has an unknown key or a bad value."""


class SourceInvalid(NightjarError):
    """A source file or query is missing, empty, truncated or has the wrong columns."""


class BatchMissing(NightjarError):
    """There are no rows for a batch date."""


class BatchRejected(NightjarError):
    """A batch broke its contract; nothing of it is scored."""


class ChampionMissing(NightjarError):
    """No model version is registered, or none carries the asked alias."""


class RecordInvalid(NightjarError):
    """A record given by hand lacks columns that the detector reads, or breaks the contract."""


class RecordMissing(NightjarError):
    """No published night holds the record."""


class PublishConflict(NightjarError):
    """A newer attempt or newer input overtook this one; the published rows are untouched."""


class ReconciliationFailed(NightjarError):
    """Rows in differ from scored + quarantined + excluded."""


class LeakageFound(NightjarError):
    """Two sets of rows that must be disjoint share records, or a label was used before it was known."""


class BackupInvalid(NightjarError):
    """A backup is incomplete, altered or of another format, or cannot be made of these stores."""


class StoreNotEmpty(NightjarError):
    """A restore or a backup would mix with what is there already."""


class SchemaMismatch(NightjarError):
    """The warehouse's tables are of a newer Nightjar, or of an older one and this login may not migrate them."""


class RunFailed(NightjarError):
    """At least one part of a run failed; the message lists them all."""


class ServiceUnreachable(NightjarError):
    """The warehouse, the lake or MLflow does not answer."""


def hide_password(text: str) -> str:
    """A text without the user and password of the URLs in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)
