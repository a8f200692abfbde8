"""Every error that a user of Nightjar can get.

NightjarError                anything a user can fix
├── ParamsInvalid             params.yaml, a contract or a setting: unknown key, bad value, unknown detector
├── SourceInvalid             a file or query is missing, empty, truncated or has the wrong columns
├── BatchMissing              no rows for the batch date
├── BatchRejected             a batch broke its contract; none of it is scored
├── ChampionMissing           no version is registered, or none has the alias
├── BundleInvalid             a saved detector is altered or unreadable
├── TooFewRows                too few rows to fit or to calibrate
├── TrainingDiverged          the loss became NaN or infinite
├── MemoryExhausted           the machine or its GPU has too little memory for a fit or a batch
├── ProcessLost              a process of a night, or of a fit on several devices, died without a message
├── ReducerRefused           the second stage would lose too much recall
├── PromotionRefused         a version may not become champion: it would lose what the champion has
├── RecordInvalid             a record given by hand lacks columns, or breaks the contract
├── RecordMissing             the record is not in the published nights
├── CaseMissing               the detector has no case of this number
├── CaseRefused               the state of a case does not allow what was asked
├── PublishConflict           a newer attempt, or newer input, overtook this one
├── ReconciliationFailed      rows in differ from scored + quarantined + excluded
├── LeakageFound              two sets share records, or a label was used before it was known
├── BackupInvalid             a backup is incomplete or altered, or the stores cannot be backed up
├── StoreNotEmpty             a restore or a backup would mix with existing data
├── SchemaMismatch            the warehouse's tables and the code have different versions
├── RunFailed                 at least one part of a run failed; lists them all
└── ServiceUnreachable        the warehouse, the lake or MLflow does not answer
"""

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
    hide_password,
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
    "hide_password",
]

# Names describe the state, like the headings of the runbook, so they do not end in "Error".
# ruff: noqa: N818


class ParamsInvalid(NightjarError):
    """params.yaml, a contract or a setting has an unknown key or a bad value."""


class SourceInvalid(NightjarError):
    """A source file or query is missing, empty, truncated or has the wrong columns."""


class BatchMissing(NightjarError):
    """There are no rows for a batch date."""


class BatchRejected(NightjarError):
    """A batch broke its contract; none of it is scored."""


class ChampionMissing(NightjarError):
    """No model version is registered, or none has the requested alias."""


class PromotionRefused(NightjarError):
    """A version may not become champion without --force: it would lose what the champion has."""


class RecordInvalid(NightjarError):
    """A record given by hand lacks columns that the detector reads, or breaks the contract."""


class RecordMissing(NightjarError):
    """No published night has the record."""


class CaseMissing(NightjarError):
    """The detector has no case of this number."""


class CaseRefused(NightjarError):
    """The state of a case does not allow what was asked; nothing was changed."""


class PublishConflict(NightjarError):
    """A newer attempt or newer input overtook this one; the published rows are untouched."""


class ReconciliationFailed(NightjarError):
    """Rows in differ from scored + quarantined + excluded."""


class LeakageFound(NightjarError):
    """Two sets of rows that must be disjoint share records, or a label was used before it was known."""


class BackupInvalid(NightjarError):
    """A backup is incomplete, altered or in another format, or these stores cannot be backed up."""


class StoreNotEmpty(NightjarError):
    """A restore or a backup would mix with existing data."""


class SchemaMismatch(NightjarError):
    """The warehouse's tables are newer than this Nightjar, or older and this login may not migrate them."""


class RunFailed(NightjarError):
    """At least one part of a run failed; the message lists them all."""


class ServiceUnreachable(NightjarError):
    """The warehouse, the lake, MLflow or the database of a source does not answer."""
