"""Current code reads what earlier versions wrote: a bundle of format 1 and a warehouse of the first schema."""

import base64
import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from tiny import make_tiny_records

from models.bundle import MANIFEST, read_bundle_manifest
from models.detector import Detector
from tasks.errors import BundleInvalid
from tasks.stores.warehouse import (
    SCHEMA_VERSION,
    Warehouse,
)

BUNDLE = json.loads((Path(__file__).parent / "data" / "bundle-format-1.json").read_text())
DAY = date(2026, 3, 1)


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    for name, lines in BUNDLE["files"].items():
        (tmp_path / name).write_bytes(base64.b64decode("".join(lines)))
    return tmp_path


def test_a_bundle_of_format_1_loads_and_gives_the_scores_it_gave(old_bundle: Path) -> None:
    detector = Detector.load(old_bundle)
    scores = detector.score(make_tiny_records(5, seed=9))
    np.testing.assert_allclose(scores, BUNDLE["scores"], rtol=1e-5)
    np.testing.assert_allclose(
        detector.rank(scores), BUNDLE["ranks"], atol=0.51
    )  # with 200 rows, a rank may move by one
    assert detector.threshold.value == BUNDLE["threshold"]
    assert read_bundle_manifest(old_bundle).content_hash == BUNDLE["content_hash"]


def test_a_bundle_of_format_1_is_rewritten_byte_for_byte(old_bundle: Path, tmp_path: Path) -> None:
    assert Detector.load(old_bundle).save(tmp_path / "again") == BUNDLE["content_hash"]


def test_a_bundle_of_a_later_format_is_refused(old_bundle: Path) -> None:
    later = json.loads((old_bundle / MANIFEST).read_text()) | {"format_version": 2}
    (old_bundle / MANIFEST).write_text(json.dumps(later))
    with pytest.raises(BundleInvalid, match=r"format_version 2(.|\n)*install the version of Nightjar"):
        Detector.load(old_bundle)


# One row per table of schema 0001, as that version wrote it.
OLD_ROWS = {
    "flagged_anomalies": """insert into flagged_anomalies values ('cards', '2026-03-01', 'r1', 1,
        '2026-03-01 12:00:00+00', 4.5, 99.5, 0.01, 2.5, '[]', 'nightjar-cards', 3,
        '2026-03-02 02:00:00+00', null, false)""",
    "superseded_anomalies": """insert into superseded_anomalies values ('cards', '2026-03-01', 'r0', 0,
        '2026-03-01 12:00:00+00', 4.5, 99.5, 0.01, 2.5, '[]', 'nightjar-cards', 2,
        '2026-03-02 02:00:00+00', null, false, '2026-03-02 02:00:00+00', 1)""",
    "scoring_batches": """insert into scoring_batches values ('cards', '2026-03-01', 1, 'abc', 100, 1, 2, 97, 1, 1, 0,
        2.5, 'nightjar-cards', 3, '2026-03-02 02:00:00+00', 1.5)""",
    "attempts": """insert into attempts values ('cards', '2026-03-01', 1, 'publish', 'published', null,
        '2026-03-02 02:00:00+00', '2026-03-02 02:00:02+00', 'run-1')""",
    "group_scores": "insert into group_scores values ('cards', '2026-03-01', '12', 1.25, null)",
    "labels": "insert into labels values ('cards', 'r1', '2026-03-03 00:00:00+00', 1)",
    "reviews": """insert into reviews values ('cards', '2026-03-01', 'r1', 'kim', '2026-03-02 09:00:00+00', 'anomaly',
        null)""",
    "drift": "insert into drift values ('cards', '2026-03-01', 'amount', 'mean', 12.5)",
}


def read_everything(engine: Warehouse) -> dict[str, list[dict[str, object]]]:
    found = {}
    with engine.begin() as connection:
        for table in OLD_ROWS:
            rows = connection.execute(sa.select(sa.text("*")).select_from(sa.table(table)))
            found[table] = [dict(row._mapping) for row in rows]
    return found


def test_a_warehouse_of_the_first_schema_is_migrated_with_every_row(warehouse_url: str) -> None:
    engine = Warehouse(warehouse_url)
    engine.migrate("0001")
    with engine.begin() as connection:
        for statement in OLD_ROWS.values():
            connection.execute(sa.text(statement))
    before = read_everything(engine)
    assert [len(rows) for rows in before.values()] == [1] * len(OLD_ROWS)
    engine.migrate()
    after = read_everything(engine)
    for table, [old] in before.items():
        [new] = after[table]
        assert {name: new[name] for name in old} == old, table
    with engine.begin() as connection:
        version = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table("alembic_version")))
    assert version == SCHEMA_VERSION
    check_reading(engine)


def check_reading(engine: Warehouse) -> None:
    known = datetime(2026, 4, 1, tzinfo=UTC)
    [batch] = engine.read_nights("cards")
    assert (batch.batch_date, batch.attempt, batch.rows_in, batch.published) == (DAY, 1, 100, 1)
    assert [attempt.status for attempt in engine.read_attempts("cards")] == ["published"]
    assert engine.read_flags("cards", DAY)["record_id"].tolist() == ["r1"]
    assert engine.read_groups("cards", DAY)["score"].tolist() == [1.25]
    assert engine.read_labels("cards", known)["label"].tolist() == [1]
    assert engine.read_reviews("cards")["verdict"].tolist() == ["anomaly"]
