"""The calendar of nights, and what is known of one: each kind with its cause, its bad rows and its command."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pytest
from published import make_flag, publish_flags

from tasks.errors import Failure
from tasks.stores.site import Site
from tasks.stores.tables import Finding
from tasks.upkeep.ledger import BatchState
from tasks.upkeep.nights import Cell, Kind, describe_night, lay_out_months, list_cells

FIRST = date(2026, 3, 30)  # a Monday
DAYS = [FIRST + timedelta(days=n) for n in range(9)]
NOW = datetime(2026, 4, 9, 4, tzinfo=UTC)
LEARNT, EARLY, FRESH, STALE, FAILED, REJECTED, MISSING, GONE, RUNNING = DAYS
BROKEN = {"what": "The batch broke the contract: rows <b>.", "got": "2 of 3 rows", "todo": "deliver it again"}


def publish(site: Site, day: date, number: int = 3) -> None:
    by = ["second_stage", *[None] * number]
    flags = [make_flag(f"{day}-{n}", None, suppressed_by=by[n]) for n in range(number)]
    publish_flags(site.warehouse, day, flags, NOW)


def fail(site: Site, day: date, error: str, run_id: str | None = None) -> None:
    number = site.warehouse.begin_attempt("toy", day, "validate", NOW, run_id)
    site.warehouse.fail_attempt("toy", day, number, Failure(error, BROKEN), NOW + timedelta(seconds=5))


@pytest.fixture
def toy(make_site: Callable[..., Site], land_rows: Callable[..., dict[date, int]]) -> Site:
    """A site with a night of each kind."""
    site = make_site(label_delay_days=10)
    for day in (LEARNT, FRESH, STALE):
        publish(site, day)
    fail(site, FAILED, "ServiceUnreachable")
    fail(site, REJECTED, "BatchRejected", "run-7")
    site.warehouse.begin_attempt("toy", RUNNING, "score", NOW)
    rows = pd.DataFrame({"record_id": ["a", "b", "c"], "event_time": f"{REJECTED}T12:00:00Z"})
    land_rows(rows, name="orders.csv")
    quarantine = site.lake.write("quarantine", "toy", REJECTED)
    with quarantine.part("part-0") as part:
        part.append(pa.table({"record_id": ["a", "b"], "quarantine_reason": ["too dear", "too dear"]}))
    outcomes = [
        {"text": text, "level": "row", "severity": severity, "success": is_met, "observed": f"{rows} rows"}
        for text, severity, is_met, rows in (
            ("met", "critical", True, 0), ("a warning", "warning", False, 1), ("too dear", "critical", False, 2),
        )
    ]  # fmt: skip
    validation = {
        "input_hash": site.lake.get("landing", "toy", REJECTED).hash, "rows_in": 3, "validated": 1, "quarantined": 2,
        "excluded": 0, "reasons": {"too dear": 2}, "warnings": [], "failures": ["2 of 3 rows"], "results": outcomes,
    }  # fmt: skip
    quarantine.commit({"contract_hash": "c", "validation": validation})
    return site


def list_toy_cells(site: Site) -> dict[date, Cell]:
    states = {EARLY: "early", FRESH: "fresh", STALE: "stale", FAILED: "failed", REJECTED: "failed", RUNNING: "missing"}
    whys = {STALE: "its input has changed", MISSING: "never scored", GONE: "nothing has landed"}
    ledger = [
        BatchState(day, states.get(day, "missing"), whys.get(day, ""), None, 4)  # type: ignore[arg-type]
        for day in DAYS[1:]
    ]
    return {cell.batch_date: cell for cell in list_cells(site, ledger, [LEARNT, REJECTED], LEARNT, NOW)}


def test_each_night_is_of_one_kind_with_a_letter_of_its_own(toy: Site) -> None:
    cells = list_toy_cells(toy)
    kinds: list[Kind] = [
        "learnt", "early", "fresh", "stale", "failed", "rejected", "missing", "not_delivered", "running",
    ]  # fmt: skip
    assert {day: cell.kind for day, cell in cells.items()} == dict(zip(DAYS, kinds, strict=True))
    assert len({cell.letter for cell in cells.values()}) == len(kinds)
    assert [day for day, cell in cells.items() if cell.is_wrong] == [STALE, FAILED, REJECTED, MISSING, GONE]


def test_a_night_to_put_right_names_its_cause_its_bad_rows_its_run_and_the_command(toy: Site) -> None:
    cell = list_toy_cells(toy)[REJECTED]
    assert (cell.why, cell.bad_rows, cell.run_id) == (BROKEN["what"], 2, "run-7")
    assert cell.command == f"nightjar score toy --date {REJECTED}"
    failed, fresh = list_toy_cells(toy)[FAILED], list_toy_cells(toy)[FRESH]
    assert (failed.todo, failed.command) == (BROKEN["todo"], f"nightjar score toy --date {FAILED}")
    assert (fresh.todo, fresh.command, fresh.flagged, fresh.version) == ("", "", 3, 1)


def test_a_night_whose_source_had_no_rows_was_not_delivered(toy: Site) -> None:
    fail(toy, GONE, "BatchMissing")
    cells = list_cells(toy, [BatchState(GONE, "failed", "no rows", None, 4)], [], None, NOW)
    # Without a champion there is nothing that a published night should be scored with again.
    kinds = {LEARNT: "fresh", FRESH: "fresh", STALE: "fresh", GONE: "not_delivered"}
    assert {cell.batch_date: cell.kind for cell in cells} == kinds


def test_a_published_night_says_until_when_its_labels_arrive_and_what_monitor_found(toy: Site) -> None:
    toy.warehouse.replace_drift(Finding("toy", FRESH, 1, "data_broke", ("half the rows",), "stop", NOW), [])
    cell = list_toy_cells(toy)[FRESH]
    assert cell.labels_due == datetime(2026, 4, 12, tzinfo=UTC)  # ten days after its end
    assert cell.title == f"{FRESH}: fresh; 3 flags; data broke; labels until 2026-04-12"


def test_months_are_weeks_from_monday_newest_first() -> None:
    april, march = lay_out_months(Cell(day, "fresh", "") for day in DAYS)
    assert (april.first, march.first) == (date(2026, 4, 1), date(2026, 3, 1))
    assert len(march.weeks) == 6  # its first is a Sunday, its last a Tuesday
    last = march.weeks[-1]
    assert [day for day, _ in last] == [FIRST, FIRST + timedelta(days=1), *[None] * 5]
    assert [cell is not None for _, cell in last] == [True, True, *[False] * 5]
    assert all(len(week) == 7 for month in (april, march) for week in month.weeks)
    assert [cell is not None for _, cell in april.weeks[1]] == [True, True, *[False] * 5]  # 6 and 7 April


def test_a_rejected_night_shows_its_attempts_what_it_broke_and_what_landed(toy: Site) -> None:
    fail(toy, REJECTED, "BatchRejected")
    found = describe_night(toy, REJECTED)
    newest, first = found["attempts"]
    assert (newest["attempt"], newest["status"], newest["step"], newest["seconds"]) == (2, "rejected", "validate", 5.0)
    assert (first["run_id"], first["parts"]) == ("run-7", BROKEN)
    checked = found["validation"]
    assert [one["text"] for one in checked["results"]] == ["too dear", "a warning", "met"]
    assert (checked["reasons"], checked["is_current"]) == ({"too dear": 2}, True)
    [delivery] = found["deliveries"]
    assert (delivery["source"], delivery["rows"]) == ("orders.csv", 3)
    assert found["night"] is None


def test_a_published_night_shows_what_is_published_and_what_was_replaced(toy: Site) -> None:
    publish(toy, FRESH, 2)
    found = describe_night(toy, FRESH)
    assert (found["night"].published, found["suppressed"], found["superseded"]) == (2, 1, [(1, 3)])
    assert (found["validation"], found["deliveries"], found["finding"]) == (None, [], None)
    assert found["scored_at"] == "2026-04-09 04:00"
