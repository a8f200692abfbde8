"""Flags of a suppressed entity, or with a suppressed cause, are published and marked, and are no alerts."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from tasks.stores.warehouse import Warehouse

NEW = FIRST + timedelta(days=DAYS)
CUSTOMER = "customer-297@example.org"  # the first fraud of every day
TOMORROW = str((datetime.now(UTC) + timedelta(days=1)).date())


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def list_flags(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[bool, str | None]]:
    found = answer(capsys, "flags", "orders", "--date", str(NEW))["flags"]
    return {flag["record_id"]: (flag["suppressed"], flag["suppressed_by"]) for flag in found}


def test_a_suppressed_entity_is_published_marked_and_no_alert(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_PSEUDONYM_KEY", "secret")
    trained.change("params.yaml", "detectors", "orders", "entity", value="customer")
    trained.change("params.yaml", "detectors", "orders", "publish", value={"pseudonymise": ["customer"]})
    trained.write_day(NEW)
    add = ("suppress", "orders", "--entity", CUSTOMER, "--reason", "a test order", "--until", TOMORROW, "--by", "ann")
    [added] = answer(capsys, *add)["suppressions"]
    assert (added["suppression_id"], added["author"], added["is_active"]) == (1, "ann", True)
    assert "@" not in added["entity"]  # as it is published
    answer(capsys, "score", "orders", "--date", str(NEW))

    flags, rows = list_flags(capsys), make_rows(NEW).set_index("customer")["order_id"]
    assert flags[rows[CUSTOMER]] == (True, "1")
    assert [by for record, by in flags.items() if record != rows[CUSTOMER]] == [(False, None)] * (len(flags) - 1)
    assert execute(["flags", "orders"]) == 0
    assert "suppressed by suppression 1" in capsys.readouterr().out
    assert execute(["explain", "orders", rows[CUSTOMER]]) == 0
    assert "flagged, suppressed by suppression 1" in capsys.readouterr().out
    page = (trained.folder / f".nightjar/reports/orders/{NEW}.html").read_text()
    assert "Suppressions hold back 1 flags" in page
    assert rows[CUSTOMER] not in page
    assert execute(["verify", "orders", "--date", str(NEW)]) == 0
    capsys.readouterr()
    asked = answer(capsys, "review", "orders", "--sample", "0")["questions"]
    assert rows[CUSTOMER] not in {row["record_id"] for row in asked}

    # Ended, and given as its pseudonym: the night, published again, is as without and with it.
    ended = answer(capsys, "suppress", "orders", "--end", "1")["suppressions"]
    assert [one["is_active"] for one in ended] == [False]
    answer(capsys, "score", "orders", "--date", str(NEW))
    assert {by for _, by in list_flags(capsys).values()} == {None}
    again = ("--entity", added["entity"], "--cause", "spend", "--reason", "the same", "--until", TOMORROW)
    assert answer(capsys, "suppress", "orders", *again)["suppressions"][0]["entity"] == added["entity"]
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    assert "@example.org" not in str(engine.read_flags("orders", NEW).to_csv())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--entity", "a"), "needs --reason and --until"),
        (("--entity", "a", "--reason", " ", "--until", TOMORROW), "needs --reason and --until"),
        (("--entity", "a", "--reason", "b", "--until", TOMORROW, "--end", "1"), "not --end"),
        (("--reason", "b"), "need --entity or --cause"),
        (("--cause", "spend", "--reason", "b", "--until", "2020-01-01"), "is over"),
        (("--entity", "a", "--reason", "b", "--until", TOMORROW), "has no entities"),
        (("--cause", "spent", "--reason", "b", "--until", TOMORROW), "does not read this column"),
        (("--cause", "customer", "--reason", "b", "--until", TOMORROW), "does not read this column"),
        (("--end", "7"), "no suppression 7"),
    ],
)
def test_a_suppression_that_could_not_work_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert execute(["suppress", "orders", *arguments]) != 0
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert execute(["suppress", "orders"]) == 0
    assert "no suppressions" in capsys.readouterr().out
