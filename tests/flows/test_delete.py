"""`nightjar delete`, as a user types it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from toy import Project

from flows.cli.main import execute
from flows.config.setup import load_setup
from tasks.stores.tables import metadata, scoring_batches


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert execute([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_deleted_detector_leaves_nothing_but_its_params_and_can_begin_again(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    site = load_setup("orders").site
    with site.warehouse.begin() as connection:  # of another detector
        night = connection.execute(sa.select(scoring_batches)).mappings().first()
        assert night
        connection.execute(sa.insert(scoring_batches).values(dict(night) | {"detector": "returns"}))
    planned = answer(capsys, "delete", "orders", "--dry-run")["removed"]
    assert {"rows of scoring_batches", "files of landing", "files of reports", "versions of nightjar-orders"} <= {
        one["what"] for one in planned
    }
    assert answer(capsys, "status", "orders")["champion"] == 1  # a dry run changes nothing
    assert answer(capsys, "delete", "orders", "--yes")["removed"] == planned
    with site.warehouse.begin() as connection:
        for table in metadata.sorted_tables:
            if "detector" in table.c:
                found = set(connection.scalars(sa.select(table.c.detector)))
                assert found == ({"returns"} if table is scoring_batches else set())
    assert not [path for path in (trained.folder / ".nightjar").rglob("*") if path.is_file() and "orders" in path.parts]
    assert answer(capsys, "status", "orders")["champion"] is None
    assert answer(capsys, "delete", "orders", "--yes")["removed"] == []
    assert len(answer(capsys, "run", "orders")["nights"]) == 2


def test_versions_are_kept_if_asked(trained: Project, capsys: pytest.CaptureFixture[str]) -> None:
    removed = answer(capsys, "delete", "orders", "--yes", "--keep-versions")["removed"]
    assert not [one for one in removed if "versions" in one["what"] or "bundles" in one["what"]]
    assert answer(capsys, "status", "orders")["champion"] == 1


def test_nothing_is_removed_while_a_night_runs_or_without_a_word(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["delete", "orders"]) == 2
    assert "--yes" in capsys.readouterr().err
    site = load_setup("orders").site
    [day, _] = [night.batch_date for night in site.warehouse.read_nights("orders")]
    site.warehouse.begin_attempt("orders", day, "score", datetime.now(UTC))
    assert execute(["delete", "orders", "--yes"]) == 1
    assert "is being scored; nothing was removed" in capsys.readouterr().err
    assert len(site.warehouse.read_nights("orders")) == 2
