"""What monitor finds, from the nightly flow to `nightjar monitor` and `nightjar status`."""

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from toy import DAYS, FIRST, Project, make_rows

import tasks.monitor
from flows.cli.main import execute
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)
NEW = LAST + timedelta(days=1)
BY_KEY = {"artifacts": {"key": {"any_": ["monitor-orders"]}}}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_published_night_is_monitored_and_shown(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "monitor", "orders")
    assert (found["batch_date"], found["finding"]["finding"], found["note"]) == (str(LAST), "nothing", "")
    assert {row["statistic"] for row in found["statistics"]} >= {"psi", "null_share", "rows", "flag_rate"}
    assert answer(capsys, "monitor", "orders", "--date", str(LAST - timedelta(days=1)))["finding"]
    assert execute(["monitor", "orders", "--all"]) == 0
    assert "canary recall" in capsys.readouterr().out.replace("_", " ")
    assert answer(capsys, "status", "orders")["finding"] == f"{LAST}: nothing."


def test_a_night_with_half_of_its_rows_says_stop(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    trained.write_day(NEW, make_rows(NEW).iloc[::2])
    assert execute(["score", "orders", "--date", str(NEW)]) == 0
    assert "note data broke. 150 rows, 50% fewer than usual" in " ".join(capsys.readouterr().out.split())
    assert execute(["status", "orders"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"monitor, {NEW}: data broke. 150 rows, 50% fewer than usual" in shown
    assert execute(["monitor", "orders"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "orders, " in shown and "rows_lacking" in shown and f"nightjar score orders --date {NEW}" in shown
    with get_client(sync_client=True) as client:
        [artifact] = client.request("POST", "/artifacts/latest/filter", json={"limit": 1, **BY_KEY}).json()
    assert artifact["data"].startswith(f"**orders {NEW}: data broke**")
    assert "150 rows, 50% fewer than usual" in artifact["data"]


def test_a_monitor_that_fails_leaves_the_night_published_and_the_run_red(
    trained: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("monitor is broken")

    monkeypatch.setattr(tasks.monitor, "monitor_night", fail)
    trained.write_day(NEW)
    assert execute(["score", "orders", "--date", str(NEW)]) == 1
    assert "monitor is broken" in capsys.readouterr().err
    warehouse = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    assert warehouse.get_nights("orders", NEW)
    assert warehouse.read_attempts("orders", NEW)[-1].status == "published"
    assert "was not monitored, or monitor failed" in answer(capsys, "monitor", "orders")["note"]
    reports = trained.folder / ".nightjar" / "reports" / "orders"
    assert "This night was not monitored." in (reports / f"{NEW}.html").read_text()
    assert "Finding: " in (reports / f"{LAST}.html").read_text()


def test_what_only_reads_imports_no_torch() -> None:
    code = "import flows.cli.monitor, flows.status, tasks.on_demand.findings, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_canaries_of_columns_that_the_detector_does_not_read_are_refused(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    canaries = [{"kind": "shift", "column": "shop"}, {"kind": "category", "column": "shop", "segment": "nowhere"}]
    trained.change("params.yaml", "detectors", "orders", "monitor", value={"canaries": canaries, "ignore": ["gone"]})
    assert execute(["status", "orders"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    for problem in ("shop is no number of train.columns", "nowhere is not in the contract", "gone is not in"):
        assert problem in shown
