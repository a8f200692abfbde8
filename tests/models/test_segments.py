from pathlib import Path

import numpy as np
import pytest
from tiny import make_tiny_detector, make_tiny_records

from models.calibration import fit_threshold
from models.detector import Detector, calibrate_detector
from models.errors import NightjarError, TooFewRows
from models.params import AlarmBudgetPolicy, BestFBetaPolicy, FixedPolicy, QuantilePolicy, ThresholdParams
from models.segments import fit_segments

RNG = np.random.default_rng(1)
NAMES = np.array(["DE"] * 2000 + ["FR"] * 99 + ["AT"] * 98 + [None] * 500, dtype=object)
SCORES = RNG.exponential(size=len(NAMES)) * np.where(NAMES == "DE", 1, 5)


def test_a_segment_with_enough_rows_has_the_threshold_of_its_own_rows_and_the_others_have_none() -> None:
    found = fit_segments(SCORES, "country", NAMES, QuantilePolicy(q=0.99))
    assert found.column == "country" and set(found.thresholds) == {"DE", "FR"}  # 0.99 needs 99 rows
    for name, threshold in found.thresholds.items():
        assert threshold == fit_threshold(SCORES[name == NAMES], QuantilePolicy(q=0.99))
    assert found.thresholds["FR"].value == SCORES[NAMES == "FR"].max()


def test_the_rate_of_false_alarms_is_the_stated_one_in_each_segment() -> None:
    own, pooled = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        names = np.array(["calm"] * 900 + ["wild"] * 300, dtype=object)
        scale = np.where(names == "calm", 1, 4)
        scores, fresh = (rng.exponential(size=len(names)) * scale for _ in range(2))
        found = fit_segments(scores, "s", names, QuantilePolicy(q=0.95))
        limit = fit_threshold(scores, QuantilePolicy(q=0.95)).value
        wild = names == "wild"
        own.append(
            [(fresh[mask] > found.thresholds[name].value).mean() for name, mask in (("calm", ~wild), ("wild", wild))]
        )
        pooled.append([(fresh[mask] > limit).mean() for mask in (~wild, wild)])
    assert np.mean(own, axis=0) == pytest.approx([0.05, 0.05], abs=0.005)
    assert np.mean(pooled, axis=0)[0] < 0.01 < 0.15 < np.mean(pooled, axis=0)[1]


def test_segments_share_an_alarm_budget_by_their_rows() -> None:
    policy = AlarmBudgetPolicy(false_alarms_per_night=20)
    found = fit_segments(SCORES, "country", NAMES, policy, rows_per_night=1000)
    assert {threshold.policy.q for threshold in found.thresholds.values()} == {0.98}


def test_the_accuracy_asked_for_is_one_of_each_segment() -> None:
    found = fit_segments(SCORES, "country", NAMES, QuantilePolicy(q=0.99, max_interval_width=0.02))
    assert set(found.thresholds) == {"DE"}


@pytest.mark.parametrize("policy", [FixedPolicy(value=1.0), BestFBetaPolicy()])
def test_other_policies_are_refused(policy: ThresholdParams) -> None:
    with pytest.raises(NightjarError, match=f"The policy {policy.kind} has no thresholds for segments") as caught:
        fit_segments(SCORES, "country", NAMES, policy)
    assert "calibrate.by country" in str(caught.value)


def test_a_column_of_which_no_value_has_enough_rows_is_refused() -> None:
    names = np.array([str(n % 30) for n in range(len(SCORES))], dtype=object)
    with pytest.raises(TooFewRows, match="No segment has enough calibration rows") as caught:
        fit_segments(SCORES, "terminal", names, QuantilePolicy(q=0.99))
    assert all(words in str(caught.value) for words in ("calibrate.by terminal", "at most 90 rows", "at least 99 rows"))


def test_a_bundle_keeps_the_segments_and_one_without_them_has_no_trace_of_them(tmp_path: Path) -> None:
    plain, records = make_tiny_detector(), make_tiny_records(200, 2)
    names = np.array(["DE", "FR"] * 100, dtype=object)
    detector = calibrate_detector(plain, records, QuantilePolicy(q=0.9), by=("country", names))
    content = detector.save(tmp_path / "a")
    loaded = Detector.load(tmp_path / "a")
    assert loaded.segments == detector.segments and set(loaded.segments.thresholds) == {"DE", "FR"}
    assert loaded.save(tmp_path / "b") == content != plain.save(tmp_path / "c")
    assert detector.threshold == plain.threshold and np.array_equal(
        detector.calibration.scores, plain.calibration.scores
    )
    assert "segments" not in (tmp_path / "c" / "detector.json").read_text()
