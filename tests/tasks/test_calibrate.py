from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import betabinom

from models.calibration import expect_false_alarms, fit_threshold
from models.columns import Column
from models.detector import Detector, ModelParams, fit_detector
from models.params import AutoencoderParams, FitParams, FixedPolicy, QuantilePolicy, ResidualParams
from models.segments import fit_segments
from tasks.calibrate import SHOWN_SEGMENTS, Calibrated, calibrate_bundle, list_segments
from tasks.filter import prepare_rows
from tasks.rows.columns import to_records
from tasks.rows.measures import Metrics
from tasks.rows.params import CalibrateParams, FilterParams, LeadingFraction

DAY, N, HIDDEN = date(2026, 3, 1), 3000, 45
COLUMNS = (Column("a", "numeric"), Column("b", "numeric"), Column("c", "numeric"))
SPLITS = LeadingFraction(kind="leading_fraction", fit=0.3, stopping=0.1, tuning=0.0, test=0.1)


@pytest.fixture
def calibrate(site, put_validated):
    """Calibrate on 1,500 rows, of which 45 break the rule of the others."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    rng = np.random.default_rng(1)
    numbers = rng.normal(size=(N, 1)) @ np.array([[1.0, 0.5, -1.0]]) + rng.normal(0, 0.2, (N, 3))
    numbers[1300 : 1300 + HIDDEN, 0] += rng.uniform(4, 8, HIDDEN)
    table = pa.table(
        {
            "record_id": [str(n) for n in range(N)],
            "event_time": pa.array([start + timedelta(minutes=5 * n) for n in range(N)], pa.timestamp("us", tz="UTC")),
            **dict(zip("abc", numbers.T, strict=True)),
        }
    )
    put_validated(DAY, table)
    rows = prepare_rows(site, DAY + timedelta(days=1), FilterParams(splits=SPLITS), list("abc"))
    network = AutoencoderParams(layers=(8, 1, 8))
    params = ModelParams(
        networks=(network,),
        fit=FitParams(epochs=60, learning_rate=0.01, batch_size=64),
        score=ResidualParams(kind="mean_squared"),
    )
    fit, stopping = (to_records(table[start:end], COLUMNS)[0] for start, end in ((0, 900), (900, 1200)))
    bundle = site.fitted(rows.cutoff)
    fit_detector(COLUMNS, fit, stopping, params, torch.device("cpu")).save(bundle)

    def run(has_labels, policy):
        found = calibrate_bundle(site, rows, bundle, CalibrateParams(threshold=policy), has_labels)
        return (found.bundle / "detector.json").read_text(), Detector.load(found.bundle), found

    return run


def test_without_labels_hidden_anomalies_are_left_out_of_the_calibration(calibrate):
    header, known, with_labels = calibrate(True, QuantilePolicy())
    labelled = with_labels.threshold
    assert (labelled.n, labelled.trimmed) == (1500, 0) and '"trimmed"' not in header
    header, found, without_labels = calibrate(False, QuantilePolicy())
    unlabelled = without_labels.threshold
    assert unlabelled.n + unlabelled.trimmed == 1500 and HIDDEN / 2 < unlabelled.trimmed <= 1.5 * HIDDEN
    assert '"trimmed"' in header and found.threshold == unlabelled
    assert len(found.calibration.scores) == unlabelled.n and len(known.calibration.scores) == 1500
    assert unlabelled.value < labelled.value
    assert f"(without {unlabelled.trimmed} suspected anomalies)" in str(without_labels)
    assert "suspected" not in str(with_labels)


def test_the_rate_of_a_fixed_threshold_does_not_count_suspects_but_its_interval_may(calibrate):
    labelled, unlabelled = (calibrate(has_labels, FixedPolicy(value=1.0))[2].threshold for has_labels in (True, False))
    assert unlabelled.trimmed > 0
    assert unlabelled.false_alarm_rate < labelled.false_alarm_rate <= unlabelled.interval_high


def test_the_segments_with_the_most_rows_are_listed_with_their_thresholds():
    names = np.array([f"a|{n:02}" for n in range(25) for _ in range(200 + n)], dtype=object)
    segments = fit_segments(np.arange(len(names), dtype=float), "country", names, QuantilePolicy())
    text = list_segments(segments)
    assert text.count("| 224 |") == 1 and "a\\|24" in text and "| 200 |" not in text
    assert text.count("\n| a") == SHOWN_SEGMENTS and "and 5 more" in text


def test_how_much_the_days_of_the_calibration_vary_is_measured_and_said(calibrate):
    found = calibrate(True, QuantilePolicy(q=0.9))[2]
    assert found.spread > 1.05  # the anomalies lie on one day of six
    assert found.tags == {"rows_per_night": str(N), "night_spread": f"{found.spread:.3g}"}
    expected = expect_false_alarms(found.threshold, N, found.spread)
    assert str(found).endswith(str(expected)) and f"between days is {found.spread:.1f} times" in str(found)
    kept = calibrate(False, QuantilePolicy(q=0.9))[2]
    assert 1 <= kept.spread < found.spread  # without the suspects


def test_a_calibration_that_does_not_fit_the_test_rows_is_doubted():
    threshold = fit_threshold(np.arange(9999.0), QuantilePolicy(q=0.99))
    calibrated = Calibrated(Path("bundle"), threshold, 5000, 1.0)
    most = int(betabinom.ppf(1 - 1e-5, 20_000, 100, 9900))
    metrics = Metrics(0.5, 0.5, 0.5, 0.9, 0.5, most / 20_000, 20_040, 40)
    assert calibrated.doubt(metrics) == calibrated.doubt(replace(metrics, false_alarm_rate=None)) == ""
    assert calibrated.doubt(None) == ""
    doubt = calibrated.doubt(replace(metrics, false_alarm_rate=0.208))
    assert f"4,160 of 20,000 normal ones are flagged (20.8%), where up to {most} could be chance" in doubt
    assert replace(calibrated, spread=1e3).doubt(replace(metrics, false_alarm_rate=0.03)) == ""
