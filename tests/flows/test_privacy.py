"""Masked values stay in the lake: one project runs everything, then all files and all output are searched."""

import contextlib
import io
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from toy import CONTRACT, CUTOFF, DAYS, FIRST, Project, make_rows

from flows.cli.main import execute

SENTINEL = b"sentinel-7f3a"
LAST = FIRST + timedelta(days=DAYS - 1)
MASKED = {
    "customer": {"type": "text", "masked": True},
    "pin": {"type": "int", "masked": True, "nullable": True},
    "phone": {"type": "int", "masked": True},
    "born": {"type": "timestamp", "masked": True},
}


def spoil(project: Project) -> None:
    """Masked values everywhere: valid, unreadable or breaking an expectation, and a night that has nothing else."""
    text = SENTINEL.decode()
    for offset in range(DAYS):
        day = FIRST + timedelta(days=offset)
        frame = make_rows(day).assign(pin="1", phone="2", born="2000-01-01T00:00:00Z").astype({"phone": object})
        frame["customer"] = text + "-" + frame["order_id"]
        frame.loc[:4, "pin"] = text
        frame.loc[5, "phone"] = text
        frame.loc[6, "born"] = text
        frame.loc[7, "customer"] = f"{text}<script>"
        if day == LAST:
            frame[["phone", "born"]] = text
        project.write_day(day, frame)
    project.change("contracts/orders.yaml", "columns", value=CONTRACT["columns"] | MASKED)
    kinds = {"customer": "expect_column_values_to_not_match_regex", "phone": "expect_column_values_to_be_in_set"}
    limits = {"customer": {"regex": "<script>"}, "phone": {"value_set": [2]}}
    judged = [
        {"level": "row", "severity": severity, "type": kinds[name], "kwargs": {"column": name} | limits[name]}
        for name, severity in (("customer", "critical"), ("phone", "warning"))
    ]
    project.change("contracts/orders.yaml", "expectations", value=[*CONTRACT["expectations"], *judged])


def find_sentinels(folder: Path, left_out: tuple[str, ...] = ()) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    searched = [path for path in files if not str(path.relative_to(folder)).startswith(left_out)]
    assert len(searched) > 3
    return [str(path.relative_to(folder)) for path in searched if SENTINEL in path.read_bytes()]


def test_masked_values_are_found_nowhere_outside_the_lake(
    prefect_server: None, project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(project)
    caplog.set_level(logging.DEBUG)
    night = str(CUTOFF)
    record = make_rows(CUTOFF)["order_id"].iloc[-1]
    loose = str(project.orders / f"orders-{LAST}.csv")
    commands = [
        (["ingest", "orders"], 0),
        (["train", "orders", "--cutoff", night], 0),
        (["score", "orders", "--date", night], 0),
        (["score", "orders", "--date", str(LAST)], 1),  # a rejected night
        (["status", "orders"], 0),
        (["explain", "orders", record], 0),
        (["review", "orders", "--date", night], 0),
        (["score", "orders", "--source", loose, "--output", str(tmp_path / "loose.parquet")], 0),
        (["rank", "orders", "--value", f"phone={SENTINEL.decode()}", "--value", "items=1", "--value", "spend=1"], 1),
        (["doctor", "orders"], 0),
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        codes = [execute(arguments) for arguments, _ in commands]
    assert codes == [code for _, code in commands], said.getvalue()
    assert SENTINEL in (project.orders / f"orders-{night}.csv").read_bytes()
    assert find_sentinels(tmp_path / ".nightjar" / "lake")
    assert find_sentinels(tmp_path, (".nightjar/lake", "sources")) == []
    words = said.getvalue() + caplog.text
    assert "not readable as int" in words
    assert SENTINEL.decode() not in words
    assert find_in_prefect() == []


def find_in_prefect() -> list[str]:
    """The files of the flow runs' database that hold a masked value."""
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    assert url is not None
    path = Path(url.get_secret_value().split("///")[1].split("?")[0])
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal")]
    assert path.stat().st_size > 100_000
    return [file.name for file in files if file.exists() and SENTINEL in file.read_bytes()]
