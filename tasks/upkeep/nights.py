"""The calendar of a detector's nights, and all that is known of one date, as people read them.

In: the ledger's states, attempts, manifests and findings. Out: a Cell per date (what it is, why, and the command that
puts it right) and the facts of one date. Nothing is changed. Times are in the detector's time zone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import sqlalchemy as sa

from tasks.stores.site import Site
from tasks.stores.tables import NOTHING, Attempt, PublishedNight, flagged_anomalies, superseded_anomalies
from tasks.upkeep.ledger import NOT_LANDED, BatchState

Kind = Literal["fresh", "stale", "failed", "rejected", "missing", "not_delivered", "early", "running", "learnt"]
REJECTED, NO_ROWS = "BatchRejected", "BatchMissing"
# The letter in the calendar, and what it means. The first five are nights that somebody has to put right.
KINDS: Mapping[Kind, tuple[str, str]] = {
    "failed": ("F", "failed"),
    "rejected": ("R", "rejected by its contract"),
    "not_delivered": ("N", "not delivered"),
    "missing": ("M", "landed, never scored"),
    "stale": ("S", "stale: its data or the champion changed since"),
    "running": ("\u2026", "running now"),
    "fresh": ("\u2713", "fresh"),
    "early": ("E", "in the label delay of the first training, never scored"),
    "learnt": ("L", "before the end of the champion's training data"),
}
WRONG: tuple[Kind, ...] = ("failed", "rejected", "not_delivered", "missing", "stale")


@dataclass(frozen=True)
class Cell:
    """One date. todo: what puts it right, `command` if a command does; both empty if nothing has to be done.

    flagged, version: of what is published. bad_rows: in quarantine. attempt, run_id: the newest attempt's.
    labels_due: when its labels will have arrived; None if they have. finding: monitor's; "" if it found nothing.
    """

    batch_date: date
    kind: Kind
    why: str
    todo: str = ""
    command: str = ""
    flagged: int | None = None
    version: int | None = None
    bad_rows: int | None = None
    attempt: int | None = None
    run_id: str | None = None
    labels_due: datetime | None = None
    finding: str = ""

    @property
    def letter(self) -> str:
        """What the calendar shows of its kind, so that colour is not needed."""
        return KINDS[self.kind][0]

    @property
    def label(self) -> str:
        """Its kind in words."""
        return KINDS[self.kind][1]

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to put it right."""
        return self.kind in WRONG

    @property
    def title(self) -> str:
        """The cell in one line."""
        counts = f"{self.flagged:,} flags" if self.flagged is not None else ""
        labels = f"labels until {self.labels_due:%Y-%m-%d}" if self.labels_due and self.flagged is not None else ""
        parts = (self.label, self.why, counts, self.finding.replace("_", " "), labels)
        return f"{self.batch_date}: {'; '.join(part for part in parts if part)}"


def list_cells(
    site: Site, ledger: Sequence[BatchState], landed: Sequence[date], learnt: date | None, now: datetime
) -> list[Cell]:
    """A cell per date that has landed, is published or is due, in order.

    ledger: the due dates. landed: all dates that have. learnt: through which date the champion has learnt.
    """
    due = {state.batch_date: state for state in ledger}
    published = {night.batch_date: night for night in site.warehouse.read_nights(site.detector)}
    newest = {attempt.batch_date: attempt for attempt in site.warehouse.read_attempts(site.detector)}
    found = {one.batch_date: one.finding for one in site.warehouse.read_findings(site.detector)}
    earlier = {day for day in landed if learnt and day <= learnt}
    return [
        _make_cell(site, day, due.get(day), published.get(day), newest.get(day), found.get(day, NOTHING), learnt, now)
        for day in sorted({*due, *earlier, *published})
    ]


def _make_cell(
    site: Site,
    day: date,
    state: BatchState | None,
    night: PublishedNight | None,
    newest: Attempt | None,
    finding: str,
    learnt: date | None,
    now: datetime,
) -> Cell:
    kind = _find_kind(state, newest, is_learnt=learnt is not None and day <= learnt)
    why = state.why if state else ""
    if newest and newest.failure and kind in ("failed", "rejected"):
        why = newest.failure.parts.get("what", why)
    todo, command = find_remedy(site.detector, day, kind, newest)
    due = site.start_of(day + timedelta(days=1)) + site.label_delay
    return Cell(
        batch_date=day,
        kind=kind,
        why=why,
        todo=todo,
        command=command,
        flagged=night.flagged if night else None,
        version=night.model_version if night else None,
        bad_rows=night.quarantined if night else _count_bad_rows(site, day) if kind in ("failed", "rejected") else None,
        attempt=newest.attempt if newest else None,
        run_id=newest.run_id if newest else None,
        labels_due=due if due > now else None,
        finding="" if finding == NOTHING else finding,
    )


def _find_kind(state: BatchState | None, newest: Attempt | None, is_learnt: bool) -> Kind:
    if newest and newest.status == "running":
        return "running"
    if state is None:
        return "learnt" if is_learnt else "fresh"
    error = newest.error if newest and state.state == "failed" else None
    if error == REJECTED:
        return "rejected"
    if error == NO_ROWS or (state.state == "missing" and state.why == NOT_LANDED):
        return "not_delivered"
    return state.state


def find_remedy(detector: str, day: date, kind: Kind, newest: Attempt | None = None) -> tuple[str, str]:
    """What puts a night right, and the command that does; both empty if nothing has to be done."""
    score = f"nightjar score {detector} --date {day}"
    told = newest.failure.parts.get("todo", "") if newest and newest.failure else ""
    remedies: dict[Kind, tuple[str, str]] = {
        "failed": (told or "remove the cause, then score it again", score),
        "rejected": (told or "have the batch delivered again, or change the contract", score),
        "not_delivered": ("have the batch delivered, then score it", score),
        "missing": ("score it", score),
        "stale": ("score it again", score),
        "early": ("nothing; it can be scored if its flags are wanted", score),
        "running": ("wait until it ends", f"nightjar status {detector}"),
    }
    return remedies.get(kind, ("", ""))


def _count_bad_rows(site: Site, day: date) -> int | None:
    found = site.lake.find("quarantine", site.detector, day)
    return found.rows if found else None


@dataclass(frozen=True)
class Month:
    """A month as weeks of seven days, Monday first; None for a day of another month or without a cell."""

    first: date
    weeks: tuple[tuple[tuple[date | None, Cell | None], ...], ...]


def lay_out_months(cells: Iterable[Cell]) -> list[Month]:
    """The months of the cells, newest first."""
    by_month = groupby(sorted(cells, key=lambda cell: cell.batch_date), lambda cell: cell.batch_date.replace(day=1))
    return [_lay_out_month(first, list(group)) for first, group in by_month][::-1]


def _lay_out_month(first: date, cells: Sequence[Cell]) -> Month:
    by_day = {cell.batch_date: cell for cell in cells}
    monday = first - timedelta(days=first.weekday())
    days = [monday + timedelta(days=n) for n in range(42)]
    own = [(day, by_day.get(day)) if day.month == first.month else (None, None) for day in days]
    weeks = (tuple(own[n : n + 7]) for n in range(0, 42, 7))
    return Month(first, tuple(week for week in weeks if any(day for day, _ in week)))


def describe_night(site: Site, day: date) -> dict[str, Any]:
    """All that is known of a date: attempts (newest first), validation, deliveries, what is published, finding.

    validation: None if it was never validated or that was pruned; is_current: false if rows arrived after it.
    """
    landing, checked = (site.lake.find(zone, site.detector, day) for zone in ("landing", "quarantine"))
    validation = dict(checked.facts["validation"]) if checked and "rows_in" in checked.facts["validation"] else None
    if validation:
        # What broke first; of that, the critical ones.
        validation["results"] = sorted(
            validation["results"], key=lambda one: (one["success"], one["severity"] != "critical")
        )
        validation["is_current"] = landing is None or landing.hash == validation["input_hash"]
    attempts = site.warehouse.read_attempts(site.detector, day)
    nights, findings = site.warehouse.read_nights(site.detector, day), site.warehouse.read_findings(site.detector, day)
    published = next((night for night in nights if night.batch_date == day), None)
    return {
        "day": day,
        "attempts": [_describe_attempt(site, attempt) for attempt in reversed(attempts)],
        "validation": validation,
        "deliveries": [
            {
                "source": part.source,
                "rows": part.rows,
                "arrived_at": _show_time(site, part.arrived_at),
                "hash": part.sha256[:12],
                "replaces": len(part.replaces),
            }
            for part in (landing.parts if landing else ())
        ],
        "is_pruned": landing is None and day in site.lake.pruned_dates(site.detector),
        "night": published,
        "scored_at": published and _show_time(site, published.scored_at),
        "finding": next((one for one in findings if one.batch_date == day), None),
        "suppressed": _count_suppressed(site, day) if published else 0,
        "superseded": _count_superseded(site, day),
    }


def _describe_attempt(site: Site, attempt: Attempt) -> dict[str, Any]:
    ended = attempt.finished_at
    failure = attempt.failure
    return {
        "attempt": attempt.attempt,
        "status": "rejected" if attempt.error == REJECTED else attempt.status,
        "step": attempt.step,
        "started_at": _show_time(site, attempt.started_at),
        "seconds": (ended - attempt.started_at).total_seconds() if ended else None,
        "run_id": attempt.run_id,
        "error": failure.error if failure else None,
        "parts": dict(failure.parts) if failure else {},
    }


def _show_time(site: Site, instant: datetime | str | None) -> str:
    """An instant in the detector's time zone; "" without one."""
    if isinstance(instant, str):
        instant = datetime.fromisoformat(instant) if instant else None
    return f"{instant.astimezone(site.zone):%Y-%m-%d %H:%M}" if instant else ""


def _count_suppressed(site: Site, day: date) -> int:
    flags = flagged_anomalies.c
    of_night = (flags.detector == site.detector, flags.batch_date == day, flags.suppressed)
    with site.warehouse.begin_reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).where(*of_night)) or 0


def _count_superseded(site: Site, day: date) -> list[tuple[int, int]]:
    """The attempts whose flags a later one replaced, and the number of these flags."""
    flags = superseded_anomalies.c
    of_night = (flags.detector == site.detector, flags.batch_date == day)
    counted = sa.select(flags.attempt, sa.func.count()).where(*of_night).group_by(flags.attempt)
    with site.warehouse.begin_reading() as connection:
        return [(row[0], row[1]) for row in connection.execute(counted.order_by(flags.attempt))]
