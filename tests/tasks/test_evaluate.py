import ast
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import tasks
from tasks.evaluate import evaluate_nights
from tasks.on_demand.examine import find_repeats
from tasks.publish import FLAG_COLUMNS, Night, publish_night
from tasks.rows.measures import measure, recall_by_kind, trace_thresholds
from tasks.rows.params import EventTime, IngestParams, LabelColumn
from tasks.sources import payments
from tasks.sources.files import FilesSource

NOW = datetime(2026, 3, 20, tzinfo=UTC)
DAYS = [date(2026, 3, 1), date(2026, 3, 2)]


def test_metrics_agree_with_numbers_by_hand():
    scores = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    truth = np.array([True, False, True, False, False, True, False, False])
    found = measure(scores, truth, threshold=6.0)  # flags 9, 8 and 7: equal to the threshold is no flag
    assert (found.rows, found.anomalies) == (8, 3)
    assert found.precision == 2 / 3
    assert found.recall == 2 / 3
    assert found.f1 == 2 / 3
    assert found.false_alarm_rate == 1 / 5
    assert found.auroc == pytest.approx((5 + 4 + 2) / 15)  # normal rows below each anomaly, of 3 x 5 pairs
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_tied_scores_count_half_in_auroc():
    assert measure(np.array([1.0, 1.0, 0.0]), np.array([True, False, False]), 2.0).auroc == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("scores", "truth", "none"),
    [
        ([1.0, 2.0], [False, False], {"recall", "auroc", "average_precision"}),
        ([1.0, 2.0], [True, True], {"auroc", "false_alarm_rate"}),
        ([0.0, 0.1], [True, False], {"precision"}),
        ([], [], {"precision", "recall", "f1", "auroc", "average_precision", "false_alarm_rate"}),
    ],
)
def test_what_cannot_be_computed_is_none(scores, truth, none):
    found = vars(measure(np.array(scores, float), np.array(truth, bool), 0.5))
    assert {name for name, value in found.items() if value is None} == none


def test_only_evaluation_asks_the_simulator_for_its_truth():
    root = Path(str(tasks.__file__)).parent.parent
    askers = []
    for path in sorted(p for room in ("flows", "tasks", "models") for p in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = (
                isinstance(node, ast.Attribute) and node.attr == "read_truth" and ast.unparse(node.value) == "payments"
            )
            imported = isinstance(node, ast.ImportFrom) and "read_truth" in [alias.name for alias in node.names]
            if named or (imported and node.module == "tasks.sources.payments"):
                askers.append(path.relative_to(root).as_posix())
    assert set(askers) == {"tasks/evaluate.py"}


@pytest.fixture
def publish(site):
    """Publish a night of scores with a threshold, without flags."""

    def publish_scores(day: date, scores: dict[str, float], threshold: float) -> None:
        partition = site.lake.write("scores", site.detector, day)
        with partition.part("part-0") as part:
            part.append(pa.table({"record_id": list(scores), "score": list(scores.values())}))
        partition.commit({})
        engine = site.warehouse
        night = Night(
            detector="toy", batch_date=day, attempt=engine.begin_attempt("toy", day, "score", NOW), input_hash="h",
            rows_in=len(scores), quarantined=0, excluded=0, scored=len(scores), flagged=0, unseen=0,
            threshold=threshold, model_name="nightjar-toy", model_version=1, scored_at=NOW, seconds=1.0, scores=None,
        )  # fmt: skip
        flags = pd.DataFrame({name: [] for name in FLAG_COLUMNS})
        publish_night(engine, night, flags, NOW, lambda: "h")

    return publish_scores


def configure(**fields) -> IngestParams:
    defaults = {"source": FilesSource(kind="files", path="unread"), "event_time": EventTime(column="at")}
    return IngestParams(**defaults | fields)


def test_nights_are_held_against_the_labels_each_by_its_own_threshold(site, publish):
    publish(DAYS[0], {"a": 5.0, "b": 1.0, "c": 0.5}, threshold=2.0)
    publish(DAYS[1], {"d": 5.0, "e": 7.0, "f": 0.5}, threshold=6.0)
    known = pd.DataFrame(
        {"record_id": ["a", "d", "e", "f"], "label": [1, 1, 0, 0], "known_at": datetime(2026, 3, 5, tzinfo=UTC)}
    )
    site.warehouse.add_labels("toy", known)
    params = configure(labels=LabelColumn(column="fraud", anomalous=("1",)))
    found = evaluate_nights(site, params, DAYS, NOW)
    assert (found.metrics.rows, found.metrics.anomalies) == (6, 2)
    assert (found.metrics.precision, found.metrics.recall, found.metrics.false_alarm_rate) == (0.5, 0.5, 0.25)
    assert (found.recall_by_kind, found.rows_by_kind) == ({"labelled": 0.5}, {"labelled": 2})
    before = evaluate_nights(site, params, DAYS, datetime(2026, 3, 4, tzinfo=UTC))
    assert (before.metrics.anomalies, before.recall_by_kind) == (0, {})


def test_nights_of_the_simulator_are_held_against_what_it_planted(site, publish):
    source = payments.PaymentsSource(kind="payments", seed=1, rows_per_day=2_000, first_date=DAYS[0])
    truth = payments.read_truth(source, "UTC", DAYS[0])
    caught = truth["kind"] == truth["kind"].iloc[0]
    scores = dict(zip(truth["record_id"], np.where(caught, 9.0, 1.0), strict=True)) | {"honest": 9.0, "other": 0.0}
    publish(DAYS[0], scores, threshold=5.0)
    found = evaluate_nights(site, configure(source=source), DAYS[:1], NOW)
    assert found.metrics.anomalies == len(truth)
    assert found.metrics.precision == pytest.approx(caught.sum() / (caught.sum() + 1))
    assert found.rows_by_kind == truth["kind"].value_counts().to_dict()
    assert found.recall_by_kind == {kind: float(kind == truth["kind"].iloc[0]) for kind in set(truth["kind"])}


def test_a_detector_without_labels_is_not_evaluated(site):
    assert evaluate_nights(site, configure(), DAYS, NOW) is None


def test_a_night_without_rows_has_no_metrics_but_does_not_fail(site, publish):
    publish(DAYS[0], {}, threshold=1.0)
    publish(DAYS[1], {"a": 1.0}, threshold=2.0)
    params = configure(labels=LabelColumn(column="fraud", anomalous=("1",)))
    assert evaluate_nights(site, params, DAYS, NOW).metrics.rows == 1
    assert evaluate_nights(site, params, DAYS[:1], NOW).metrics.rows == 0


def test_the_threshold_curve_agrees_with_counting_row_by_row() -> None:
    scores = np.array([5.0, 4.0, 4.0, 3.0, 1.0])
    is_anomaly = np.array([True, True, False, False, True])
    curve = trace_thresholds(scores, is_anomaly, 4.5)
    assert len(curve) == 4  # the tie at 4 is flagged whole
    for row in curve.itertuples():
        found = measure(scores, is_anomaly, row.threshold)
        assert (row.precision, row.recall) == pytest.approx((found.precision, found.recall))
        assert row.f1 == pytest.approx(found.f1)


def test_the_threshold_curve_has_its_points_where_the_threshold_is_chosen() -> None:
    rng = np.random.default_rng(0)
    is_anomaly = np.arange(50_000) < 60
    scores = rng.normal(size=50_000) + 4 * is_anomaly
    threshold = float(np.quantile(scores, 0.998))
    curve = trace_thresholds(scores, is_anomaly, threshold)
    assert 300 < len(curve) <= 400
    assert (np.diff(curve["threshold"]) < 0).all()
    assert (curve["threshold"] > threshold).sum() > 70  # of 100 rows
    for row in curve.iloc[::17].itertuples():
        found = measure(scores, is_anomaly, row.threshold)
        assert (row.precision, row.recall, row.f1) == pytest.approx((found.precision, found.recall, found.f1))
    assert (curve["recall"].iloc[0], curve["recall"].iloc[-1]) == (pytest.approx(0, abs=0.02), 1)
    assert curve["recall"].diff().max() < 0.04  # no jump over many anomalous rows
    none = trace_thresholds(scores, np.zeros(50_000, dtype=bool), 99.0)
    assert len(none) > 190


def test_recall_is_counted_by_kind_of_anomaly_commonest_first() -> None:
    kinds = pd.Series(["normal", "smurf", "back", "smurf", "smurf"])
    flagged = np.array([True, True, False, True, False])
    found = recall_by_kind(flagged, kinds.to_numpy() != "normal", kinds)
    assert found.to_dict("list") == {"kind": ["smurf", "back"], "rows": [3, 1], "recall": [pytest.approx(2 / 3), 0.0]}


def test_repeats_are_the_later_rows_that_equal_an_earlier_one_in_every_slot() -> None:
    encoded = np.array([[1, 2], [1, 3], [1, 2], [2, 1], [1, 2]], dtype=np.float32)
    assert find_repeats(encoded).tolist() == [False, False, True, False, True]
