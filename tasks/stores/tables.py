"""The warehouse's tables, and their rows as records.

Published results (flagged_anomalies, scoring_batches, group_scores), attempts, replaced results
(superseded_anomalies), knowledge gained (labels, reviews), and what follows a night: monitoring (drift, findings),
cases and their events, suppressions, messages (deliveries), and what people at the desk keep (approvals, annotations,
saved_filters, samples).
A change here needs a migration in migrations/versions; a test compares the two.
"""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa

from models.errors import Failure


class Instant(sa.types.TypeDecorator[datetime]):
    """An instant with a time zone, always read back in UTC. Naive datetimes are rejected."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Reject a naive datetime: it would mean another instant on a server in another time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; the warehouse keeps UTC")
        return value.astimezone(UTC)  # some engines drop the zone

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert from the session's time zone to UTC, or restore the zone that the engine dropped."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


SECOND_STAGE = "second_stage"  # what suppresses a flag, in place of a suppression's number
MOST_KEY_BYTES = 2000  # of a text in a key: PostgreSQL's indexes hold 2,700 bytes in a row


def _key(name: str, kind: type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]], nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=nullable)


def _flag_values() -> list[sa.Column[Any]]:
    return [
        _value("event_time", Instant),
        _value("score", sa.Double),
        _value("percentile_rank", sa.Double),
        _value("p_value", sa.Double),
        _value("threshold", sa.Double),
        _value("causes", sa.Text),  # JSON
        _value("model_name", sa.Text),
        _value("model_version", sa.Integer),
        _value("scored_at", Instant),
        _value("second_stage_probability", sa.Double, nullable=True),
        _value("suppressed", sa.Boolean),
        _value("entity", sa.Text, nullable=True),  # whom the record is about; null: unknown
        _value("record", sa.Text, nullable=True),  # JSON: the record's values that publish.show names
        _value("suppressed_by", sa.Text, nullable=True),  # second_stage, or the number of a suppression
    ]


def _night_key() -> list[sa.Column[Any]]:
    return [_key("detector", sa.Text), _key("batch_date", sa.Date)]


metadata = sa.MetaData()
flagged_anomalies = sa.Table(
    "flagged_anomalies",
    metadata,
    *_night_key(),
    _key("record_id", sa.Text),
    _value("attempt", sa.Integer),
    *_flag_values(),
    sa.Index("flagged_anomalies_record", "detector", "record_id"),  # PostgreSQL only
    sa.Index("flagged_anomalies_entity", "detector", "entity"),  # PostgreSQL only
)
superseded_anomalies = sa.Table(
    "superseded_anomalies",
    metadata,
    *_night_key(),
    _key("record_id", sa.Text),
    _key("attempt", sa.Integer),
    *_flag_values(),
    _value("superseded_at", Instant),
    _value("superseded_by", sa.Integer),  # the attempt that replaced the row
)
scoring_batches = sa.Table(
    "scoring_batches",
    metadata,
    *_night_key(),
    _value("attempt", sa.Integer),
    _value("input_hash", sa.Text),
    _value("rows_in", sa.BigInteger),
    _value("quarantined", sa.BigInteger),
    _value("excluded", sa.BigInteger),
    _value("scored", sa.BigInteger),
    _value("flagged", sa.BigInteger),
    _value("published", sa.BigInteger),
    _value("unseen", sa.BigInteger),
    _value("threshold", sa.Double),
    _value("model_name", sa.Text),
    _value("model_version", sa.Integer),
    _value("scored_at", Instant),
    _value("seconds", sa.Double),
    _value("scores", sa.Text, nullable=True),  # where the scores are in the lake: Lake.find's `inputs`
)
attempts = sa.Table(
    "attempts",
    metadata,
    *_night_key(),
    _key("attempt", sa.Integer),
    _value("step", sa.Text),  # the current or the last one
    _value("status", sa.Text),  # running, published or failed
    _value("cause", sa.Text, nullable=True),  # the error in one line
    _value("error", sa.Text, nullable=True),  # its name
    _value("parts", sa.Text, nullable=True),  # of the error, as JSON: what, where, got, expected, todo
    _value("started_at", Instant),
    _value("finished_at", Instant, nullable=True),
    _value("run_id", sa.Text, nullable=True),
    _value("owner", sa.Text, nullable=True),  # the process: see tasks/stores/owner.py
    _value("heartbeat_at", Instant, nullable=True),  # its last sign of life, by the warehouse's clock
)
group_scores = sa.Table(
    "group_scores",
    metadata,
    *_night_key(),
    _key("grouping", sa.Text),  # hour, or a column; "" before schema 0011
    _key("group", sa.Text),
    _value("score", sa.Double),
    _value("rank", sa.Double, nullable=True),  # among earlier nights' groups; null without any, or of too few records
    _value("records", sa.BigInteger),
    _value("threshold", sa.Double, nullable=True),  # null if earlier nights have too few groups, or likewise
    _value("flagged", sa.Boolean),  # the score is above the threshold
)
labels = sa.Table(
    "labels",
    metadata,
    _key("detector", sa.Text),
    _key("record_id", sa.Text),
    _key("known_at", Instant),
    _value("label", sa.Integer),
)
reviews = sa.Table(
    "reviews",
    metadata,
    *_night_key(),
    _key("record_id", sa.Text),
    _key("reviewer", sa.Text),
    _key("reviewed_at", Instant),
    _value("verdict", sa.Text),  # anomaly, normal, unresolved, or withdrawn
    _value("note", sa.Text, nullable=True),
    _value("inclusion", sa.Double),  # the probability with which such a record was selected for review
    _value("attempt", sa.Integer, nullable=True),  # the published one that was judged; null: given before schema 0009
    _value("said", sa.Text, nullable=True),  # the reviewer's word, if it says more than `verdict`
)
drift = sa.Table(
    "drift",
    metadata,
    *_night_key(),
    _key("column", sa.Text),
    _key("statistic", sa.Text),
    _value("value", sa.Double),
    _value("bound", sa.Double, nullable=True),  # beyond it the statistic counts as changed; null: it has none
)
findings = sa.Table(
    "findings",
    metadata,
    *_night_key(),
    _value("attempt", sa.Integer),
    _value("finding", sa.Text),
    _value("evidence", sa.Text),  # JSON: sentences
    _value("todo", sa.Text),
    _value("found_at", Instant),
)
cases = sa.Table(
    "cases",
    metadata,
    _key("detector", sa.Text),
    _key("case_id", sa.Integer),  # from 1 on
    _value("entity", sa.Text, nullable=True),
    _value("batch_date", sa.Date, nullable=True),  # of the one flag, if its entity is unknown
    _value("record_id", sa.Text, nullable=True),
    _value("state", sa.Text),  # open, snoozed or closed
    _value("assignee", sa.Text, nullable=True),
    _value("severity", sa.Text),
    _value("opened_at", Instant),
    _value("due_at", Instant),
    _value("snoozed_until", Instant, nullable=True),
    _value("closed_at", Instant, nullable=True),
    _value("verdict", sa.Text, nullable=True),  # with which it was closed
    _value("merged_into", sa.Integer, nullable=True),  # the case that has its flags now
    _value("locked_by", sa.Text, nullable=True),  # who has it open on the desk
    _value("locked_until", Instant, nullable=True),
)
case_flags = sa.Table(
    "case_flags",
    metadata,
    *_night_key(),
    _key("record_id", sa.Text),
    _value("case_id", sa.Integer),
    _value("attempt", sa.Integer),  # the newest that flagged the record
    sa.Index("case_flags_case", "detector", "case_id"),  # PostgreSQL only
)
case_events = sa.Table(
    "case_events",
    metadata,
    _key("detector", sa.Text),
    _key("case_id", sa.Integer),
    _key("number", sa.Integer),  # in order, among all events of the detector
    _value("happened_at", Instant),
    _value("kind", sa.Text),  # opened, joined, left, raised, taken, verdict, note, snoozed, reopened, merged or closed
    _value("actor", sa.Text),  # a person, or nightjar by rule
    _value("note", sa.Text, nullable=True),
    _value("details", sa.Text, nullable=True),  # JSON, without ids of records
)
deliveries = sa.Table(
    "deliveries",
    metadata,
    _key("delivery_id", sa.Text),  # of rule, channel and about: each message goes out once
    _value("rule", sa.Text),
    _value("channel", sa.Text),
    _value("detector", sa.Text),
    _value("about", sa.Text),
    _value("raised_at", Instant),  # when what it is about became known
    _value("status", sa.Text),  # sent, failed or held
    _value("reason", sa.Text, nullable=True),  # why it failed or is held
    _value("title", sa.Text),
    _value("body", sa.Text),
    _value("tries", sa.Integer),
    _value("due_at", Instant, nullable=True),  # when it is sent, or tried again; null: sent, or never
    _value("sent_at", Instant, nullable=True),
)
suppressions = sa.Table(
    "suppressions",
    metadata,
    _key("detector", sa.Text),
    _key("suppression_id", sa.Integer),  # from 1 on
    _value("entity", sa.Text, nullable=True),  # null: any
    _value("cause", sa.Text, nullable=True),  # the first cause's column; null: any
    _value("reason", sa.Text),
    _value("author", sa.Text),
    _value("added_at", Instant),
    _value("expires_at", Instant),
    _value("ended_at", Instant, nullable=True),  # ended earlier than it expired
)
approvals = sa.Table(
    "approvals",
    metadata,
    _key("detector", sa.Text),
    _key("approval_id", sa.Integer),  # from 1 on
    _value("cases", sa.Text),  # JSON: pairs of a case and its number of flags when it was asked for
    _value("verdict", sa.Text),
    _value("note", sa.Text, nullable=True),
    _value("asked_by", sa.Text),
    _value("asked_at", Instant),
    _value("decision", sa.Text, nullable=True),  # approved, refused or withdrawn; null: it waits
    _value("decided_by", sa.Text, nullable=True),
    _value("decided_at", Instant, nullable=True),
)
annotations = sa.Table(
    "annotations",
    metadata,
    *_night_key(),
    _key("author", sa.Text),
    _key("written_at", Instant),
    _value("note", sa.Text),
)
saved_filters = sa.Table(
    "saved_filters",
    metadata,
    _key("detector", sa.Text),
    _key("person", sa.Text),
    _key("name", sa.Text),
    _value("query", sa.Text),  # of the page's address
)
samples = sa.Table(
    "samples",
    metadata,
    *_night_key(),
    _key("record_id", sa.Text),
    _value("attempt", sa.Integer),
    _value("inclusion", sa.Double),  # as in reviews
    _value("event_time", Instant),
    _value("entity", sa.Text, nullable=True),
    _value("record", sa.Text, nullable=True),  # as in flagged_anomalies
    _value("drawn_at", Instant),
)


@dataclass(frozen=True)
class Scored:
    """A scored batch. rows_in = quarantined + excluded + scored.

    `flagged` counts records above the threshold, `unseen` scored rows with an unseen category. `scores` is where the
    scores are in the lake; None: the place that Nightjar used before schema 0004.
    """

    detector: str
    batch_date: date
    input_hash: str
    rows_in: int
    quarantined: int
    excluded: int
    scored: int
    flagged: int
    unseen: int
    threshold: float
    model_name: str
    model_version: int
    scored_at: datetime
    scores: str | None


@dataclass(frozen=True)
class Night(Scored):
    """One attempt's result for one batch, ready to publish; `seconds` is the time since the attempt began."""

    attempt: int
    seconds: float


@dataclass(frozen=True)
class PublishedNight(Night):
    """A published night. `published` rows were written; a cap on alerts may make them fewer than `flagged`."""

    published: int


@dataclass(frozen=True)
class Case:
    """One case; see tasks/follow_up/cases.py."""

    detector: str
    case_id: int
    entity: str | None
    batch_date: date | None
    record_id: str | None
    state: str
    assignee: str | None
    severity: str
    opened_at: datetime
    due_at: datetime
    snoozed_until: datetime | None
    closed_at: datetime | None
    verdict: str | None
    merged_into: int | None
    locked_by: str | None
    locked_until: datetime | None

    @property
    def is_open(self) -> bool:
        """Whether it waits for a person, now or once it is no longer snoozed."""
        return self.closed_at is None


@dataclass(frozen=True)
class Attempt:
    """One attempt at a batch; `step` is its current or last step. `parts` is JSON."""

    detector: str
    batch_date: date
    attempt: int
    step: str
    status: str
    cause: str | None
    error: str | None
    parts: str | None
    started_at: datetime
    finished_at: datetime | None
    run_id: str | None
    owner: str | None
    heartbeat_at: datetime | None

    @property
    def failure(self) -> Failure | None:
        """Why it failed; None if it did not."""
        return Failure(self.error, json.loads(self.parts or "{}")) if self.error else None


DATA_BROKE, WORLD_CHANGED, ATTACK, NOTHING = "data_broke", "world_changed", "attack", "nothing"
FINDINGS = (DATA_BROKE, WORLD_CHANGED, ATTACK, NOTHING)
BOUNDED_BELOW = ("canary_recall",)  # statistics that are beyond their bound when they are below it


@dataclass(frozen=True)
class Drift:
    """One statistic of a night. `column` is "" for the whole night; `bound`: see the table."""

    column: str
    statistic: str
    value: float
    bound: float | None

    @property
    def is_beyond(self) -> bool:
        """Whether it counts as changed."""
        if self.bound is None:
            return False
        return self.value < self.bound if self.statistic in BOUNDED_BELOW else self.value > self.bound


@dataclass(frozen=True)
class Finding:
    """What monitor says of a published night: DATA_BROKE, WORLD_CHANGED, ATTACK or NOTHING. evidence: sentences."""

    detector: str
    batch_date: date
    attempt: int
    finding: str
    evidence: tuple[str, ...]
    todo: str
    found_at: datetime
