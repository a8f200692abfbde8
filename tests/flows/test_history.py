"""A detector with history columns, by its commands: trained, scored, asked about, corrected and changed."""

import json
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from steps import load
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute

LAST = FIRST + timedelta(days=DAYS - 1)
ENRICH: dict[str, Any] = {
    "entity": "customer",
    "windows": ["1d", "3d"],
    "columns": {
        "orders_{window}": {"count": "*"},
        "spend_{window}": {"sum": "spend"},
        "spend_to_mean": {"ratio": "spend"},
        "since_s": {"seconds_since": "previous"},
        "new_shop": {"first_seen": "shop"},
        "frauds_3d": {"count": "reports"},
    },
}
COLUMNS = {
    "numeric": ["items", "spend", "orders_3d", "spend_to_mean"],
    "log_numeric": ["spend_1d", "spend_3d", "since_s"],
    "categorical": ["shop", "new_shop"],
}


def ask(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert execute([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("prefect_server")
def test_a_detector_with_history_columns(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.change("params.yaml", "detectors", "orders", "enrich", value=ENRICH)
    project.change("params.yaml", "detectors", "orders", "train", "columns", value=COLUMNS)
    project.change("params.yaml", "detectors", "orders", "score", value={"causes": 20})
    assert execute(["run", "orders"]) == 0
    assert {night["state"] for night in list_nights(capsys)[-2:]} == {"fresh"}

    fraud = make_rows(LAST).iloc[-1]
    record = fraud["order_id"]
    explained = ask(capsys, "explain", "orders", record)
    names = {"spend_to_mean", "spend_1d", "spend_3d", "since_s", "orders_3d", "new_shop"}
    assert names <= {cause["column"] for cause in explained["causes"]}
    loose = ask(capsys, "score", "orders", "--source", f"orders/orders-{LAST}.csv")
    scores = {row["record_id"]: row["score"] for row in loose["records"]}
    assert scores[record] == explained["score"]
    given = {"customer": fraud["customer"], "event_time": fraud["placed_at"], "shop": fraud["shop"]}
    values = {name: str(value) for name, value in (given | {"items": fraud["items"], "spend": fraud["spend"]}).items()}
    ranked = ask(capsys, "rank", "orders", *(part for pair in values.items() for part in ("--value", "=".join(pair))))
    known, again = ({c["column"]: c.get("actual") for c in found["causes"]} for found in (explained, ranked))
    assert again["orders_3d"] == known["orders_3d"] + 1  # the same order a second time: tonight's is in the history
    assert execute(["verify", "orders"]) == 0  # computes scores again, history included
    assert execute(["rank", "orders", "--value", "spend=3"]) == 1
    assert "required but missing: customer, event_time, items, shop" in capsys.readouterr().err

    late = make_rows(LAST - timedelta(days=2)).head(5).assign(order_id=[f"late-{n}" for n in range(5)])
    late.to_csv(project.orders / "orders-late.csv", index=False)
    assert execute(["ingest", "orders"]) == 0
    nights = list_nights(capsys)[-2:]
    assert [(night["state"], night["why"]) for night in nights] == [("stale", "its input has changed")] * 2
    first = str(LAST - timedelta(days=1))
    assert execute(["backfill", "orders", "--from", first, "--to", str(LAST), "--only", "stale"]) == 0
    assert {night["state"] for night in list_nights(capsys)[-2:]} == {"fresh"}

    site = load(project.folder).site
    known_at = pd.Timestamp(site.start_of(LAST)).tz_convert("UTC") + timedelta(hours=1)
    told = pd.DataFrame({"record_id": [make_rows(LAST - timedelta(days=1))["order_id"][0]], "label": 1})
    site.warehouse.add_labels("orders", told.assign(known_at=known_at))
    assert [(night["state"], night["why"]) for night in list_nights(capsys)[-2:]] == [
        ("fresh", ""),
        ("stale", "its input has changed"),
    ]
    assert {check["detail"] for check in ask(capsys, "verify", "orders", "--date", str(LAST))["checks"]} >= {
        "its input has changed since"
    }
    assert execute(["backfill", "orders", "--from", first, "--to", str(LAST), "--only", "stale"]) == 0
    assert {night["state"] for night in list_nights(capsys)[-2:]} == {"fresh"}
    assert execute(["verify", "orders"]) == 0

    columns = ENRICH["columns"] | {"orders_{window}": {"count": "*", "by": "shop"}}
    project.change("params.yaml", "detectors", "orders", "enrich", "columns", value=columns)
    assert execute(["score", "orders", "--date", str(LAST)]) == 1
    error = capsys.readouterr().err
    assert "The type of orders_3d has changed after version 1 was trained." in error
    assert "nightjar run NAME --retrain" in error
    assert execute(["run", "orders", "--retrain"]) == 0
    assert {night["state"] for night in list_nights(capsys)[-2:]} == {"fresh"}


def list_nights(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found = ask(capsys, "status", "orders")
    nights: list[dict[str, Any]] = found["nights"] if isinstance(found, dict) else found[0]["nights"]
    return nights
