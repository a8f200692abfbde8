"""Flags with their entity, values, causes and verdicts, from params to the table, the page, and `nightjar flags`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)
CUSTOMER = "customer-297@example.org"  # the first fraud of every day
PUBLISH = {"show": ["customer", "shop", "spend", "fraud"], "pseudonymise": ["customer"]}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def watched(trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """A detector whose newest night was published with the customer as entity."""
    monkeypatch.setenv("NIGHTJAR_PSEUDONYM_KEY", "secret")
    trained.change("params.yaml", "detectors", "orders", "entity", value="customer")
    trained.change("params.yaml", "detectors", "orders", "publish", value=PUBLISH)
    trained.write_day(NEW)
    answer(capsys, "score", "orders", "--date", str(NEW))
    return trained


def test_a_flag_carries_its_entity_and_values_wherever_people_read_it(
    watched: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = answer(capsys, "flags", "orders")["flags"]
    truth = make_rows(NEW).set_index("order_id")
    assert [flag["record"]["fraud"] for flag in flags[:3]] == [1, 1, 1]
    for flag in flags:
        row = truth.loc[flag["record_id"]]
        assert flag["record"] | {"customer": ""} == {
            "customer": "", "shop": row["shop"], "spend": row["spend"], "fraud": row["fraud"],
        }  # fmt: skip
        assert flag["record"]["customer"] == flag["entity"] != row["customer"]
        assert pd.Timestamp(flag["event_time"]) == pd.Timestamp(row["placed_at"])
        assert flag["event_time"].endswith("+02:00")
    [worst, *_] = [flag for flag in flags if truth["customer"][flag["record_id"]] == CUSTOMER]

    # Every night of this customer: the older ones were published without an entity.
    for name in (CUSTOMER, worst["entity"]):
        assert [flag["record_id"] for flag in answer(capsys, "flags", "orders", "--entity", name)["flags"]] == [
            worst["record_id"]
        ]
    assert answer(capsys, "flags", "orders", "--entity", "nobody")["flags"] == []

    explained = answer(capsys, "explain", "orders", worst["record_id"])
    assert (explained["entity"], explained["record"]) == (worst["entity"], worst["record"])
    assert execute(["explain", "orders", worst["record_id"]]) == 0
    assert f"entity {worst['entity']}, customer {worst['entity']}, shop " in capsys.readouterr().out

    page = (watched.folder / f".nightjar/reports/orders/{NEW}.html").read_text()
    assert worst["entity"] in page
    assert "event time (Europe/Berlin)" in page
    assert execute(["flags", "orders"]) == 0
    assert f"{len(flags)} flags of {NEW}" in capsys.readouterr().out
    for file in watched.folder.glob(".nightjar/reports/orders/*.html"):
        assert "@example.org" not in file.read_text()
    engine = Warehouse(f"duckdb:///{watched.folder}/.nightjar/warehouse.duckdb")
    assert "@example.org" not in engine.read_flags("orders", FIRST, NEW).to_csv()


def test_flags_of_several_nights_come_with_verdicts_into_a_spreadsheet(
    watched: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert execute(["review", "orders", "--date", str(NEW), "--sample", "0"]) == 0
    asked = tmp_path / "asked.csv"
    asked.write_text(capsys.readouterr().out)
    questions = pd.read_csv(asked)
    questions.assign(verdict="anomaly", note="=stolen()").head(1).to_csv(asked, index=False)
    answer(capsys, "review", "orders", "--take", str(asked))

    span = ("--from", str(LAST), "--to", str(NEW))
    flags = answer(capsys, "flags", "orders", *span)["flags"]
    assert {flag["batch_date"] for flag in flags} == {str(LAST), str(NEW)}
    assert {flag["record_id"]: flag["verdict"] for flag in flags if flag["verdict"]} == {
        questions["record_id"][0]: "anomaly"
    }
    assert execute(["flags", "orders", *span, "--csv"]) == 0
    (tmp_path / "printed.csv").write_text(capsys.readouterr().out)
    assert execute(["flags", "orders", *span, "--output", str(tmp_path / "flags.csv")]) == 0
    capsys.readouterr()
    for name in ("printed.csv", "flags.csv"):
        table = pd.read_csv(tmp_path / name)
        assert table["record_id"].tolist() == [flag["record_id"] for flag in flags]
        assert table["spend"].dropna().tolist() == [flag["record"]["spend"] for flag in flags if flag["record"]]
        assert table["note"].dropna().tolist() == ["'=stolen()"]
        assert table["causes"].str.match(r"(spend|items|shop) \d+% \(").all()


def test_a_range_without_nights_and_contradictory_options_are_refused(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["flags", "orders", "--from", "2020-01-01", "--to", "2020-02-01"]) != 0
    assert "no published night in these dates" in capsys.readouterr().err
    assert execute(["flags", "orders", "--csv", "--json"]) != 0
    assert execute(["flags", "orders", "--date", str(LAST), "--from", str(LAST)]) != 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"entity": "nobody"}, "nobody is not in the contract"),
        ({"entity": "customer"}, "customer is masked by the contract"),
        ({"publish": {"show": ["customer"]}}, "customer is masked by the contract"),
        ({"publish": {"show": ["shop"], "pseudonymise": ["shop"]}}, "shop is not masked"),
        ({"publish": {"pseudonymise": ["customer"]}}, "customer is neither the entity nor shown"),
    ],
)
def test_a_record_that_may_not_be_published_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], section: dict[str, Any], message: str
) -> None:
    for key, value in section.items():
        project.change("params.yaml", "detectors", "orders", key, value=value)
    assert execute(["status", "orders"]) != 0
    assert message in capsys.readouterr().err
