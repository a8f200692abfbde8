from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.ensemble import RandomForestClassifier

from models.bundle import HEADER, WEIGHTS, read_bundle
from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import encode_records
from models.errors import BundleInvalid, ReducerRefused, TooFewRows
from models.params import (
    AutoencoderParams,
    FitParams,
    ForestReducerParams,
    NetworkReducerParams,
    QuantilePolicy,
    ReducerLimits,
    ReducerParams,
)
from models.records import Records, make_records
from models.reducer import CONFIDENCE, Verdicts, choose_cut, cross_validate, fit_classifier, fit_reducer, predict

NETWORK = NetworkReducerParams(hidden=(8,), epochs=40, learning_rate=0.02)
FOREST = ForestReducerParams(trees=30)
KINDS = pytest.mark.parametrize("params", [NETWORK, FOREST], ids=["network", "forest"])
LIMITS = ReducerLimits(min_verdicts=50, min_confirmed=10, max_recall_loss=0.1)
COLUMNS = (Column("amount", "numeric"), Column("age", "numeric"), Column("shop", "categorical", ("north", "south")))


def make_verdicts(n: int = 600, seed: int = 0, noise: float = 0.5) -> Verdicts:
    """Flags, a quarter of them anomalies, which differ in the difference of two features."""
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(n) < 0.25
    features = rng.normal(size=(n, 4))
    features[:, 1] = features[:, 0] + np.where(is_anomaly, 2.0, 0.0) + noise * rng.normal(size=n)
    everything = np.ones(n)
    return Verdicts(torch.from_numpy(features).float(), is_anomaly, everything > 0, everything, np.arange(n))


@KINDS
def test_a_reducer_finds_the_true_flags_among_later_ones(params: ReducerParams) -> None:
    reducer = fit_reducer(make_verdicts(), params, LIMITS)
    later = make_verdicts(seed=1)
    is_alert = ~reducer.suppresses(reducer.predict(later.features))
    assert later.is_anomaly[is_alert].mean() > 0.75
    assert is_alert[later.is_anomaly].mean() > 0.85


@KINDS
def test_the_same_verdicts_and_seed_give_the_same_bits_and_leave_the_global_seed_alone(params: ReducerParams) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = (fit_classifier(make_verdicts(), params).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = predict(fit_classifier(make_verdicts(), params.model_copy(update={"seed": 9})), make_verdicts().features)
    assert not np.array_equal(other, predict(fit_classifier(make_verdicts(), params), make_verdicts().features))
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
def test_a_probability_does_not_depend_on_the_neighbours(params: ReducerParams) -> None:
    classifier = fit_classifier(make_verdicts(), params)
    features = make_verdicts(1500, seed=2).features
    together = predict(classifier, features)
    assert np.array_equal(predict(classifier, features.flip(0))[::-1], together)
    for start in (0, 7, 1023, 1024, 1499):
        assert np.array_equal(predict(classifier, features[start:][:3]), together[start:][:3])
    assert predict(classifier, features[:0]).shape == (0,)


@KINDS
def test_probabilities_are_true_to_the_share_of_anomalies_although_both_kinds_are_balanced(
    params: ReducerParams,
) -> None:
    later = make_verdicts(2000, seed=1, noise=2.0)
    probabilities = predict(fit_classifier(make_verdicts(2000, noise=2.0), params), later.features)
    assert probabilities.mean() == pytest.approx(later.is_anomaly.mean(), abs=0.06)


def test_a_forest_as_arrays_agrees_with_scikit_learn() -> None:
    verdicts, later = make_verdicts(), make_verdicts(seed=1).features
    classifier = fit_classifier(verdicts, FOREST)
    true = verdicts.is_anomaly
    balanced = np.where(true, 0.5 / true.mean(), 0.5 / (~true).mean())
    theirs = RandomForestClassifier(30, min_samples_leaf=2, random_state=0)
    theirs.fit(verdicts.features.numpy(), true, balanced)
    share = theirs.predict_proba(later.numpy())[:, 1].clip(1e-6, 1 - 1e-6)
    odds = share / (1 - share) * true.mean() / (1 - true.mean())
    assert np.allclose(predict(classifier, later), odds / (1 + odds), atol=1e-9)


def test_a_row_that_represents_ten_weighs_as_much_as_ten_copies() -> None:
    verdicts = make_verdicts(100, noise=2.0)
    tenth = replace(verdicts, inclusion=np.where(np.arange(100) < 20, 0.1, 1.0))
    order = np.concatenate([np.repeat(np.arange(20), 10), np.arange(20, 100)])
    copies = Verdicts(
        verdicts.features[order], verdicts.is_anomaly[order], verdicts.is_flag[order], np.ones(280), order
    )
    # One shift of the log-odds, from the weighted counts alone.
    weighted, copied = (fit_classifier(v, NETWORK).shift for v in (tenth, copies))
    assert float(weighted) == pytest.approx(float(copied))


@pytest.mark.parametrize("n", [22, 30, 100, 400])
def test_the_cut_loses_too_much_with_at_most_ten_percent_chance(n: int) -> None:
    probabilities = np.linspace(0.01, 1, n)
    k = int(np.searchsorted(probabilities, choose_cut(probabilities, 0.1))) + 1
    # More than a tenth lies below the k-th smallest exactly when fewer than k of n fall into that tenth.
    assert binom.cdf(k - 1, n, 0.1) <= 1 - CONFIDENCE < binom.cdf(k, n, 0.1)


def test_too_few_confirmed_anomalies_for_the_allowed_loss_say_how_many_are_missing() -> None:
    with pytest.raises(TooFewRows, match=r"at least 22 .*: 1 are missing"):
        choose_cut(np.linspace(0, 1, 21), 0.1)
    assert choose_cut(np.linspace(0, 1, 22), 0.1) == 0.0


def test_cross_validation_holds_out_whole_stretches_of_time() -> None:
    verdicts = make_verdicts(100)
    shuffled = replace(verdicts, times=np.random.default_rng(3).permutation(100))
    probabilities, folds = cross_validate(shuffled, FOREST)
    assert folds.tolist() == (shuffled.times // 20).tolist()
    own = folds == 2
    alone = predict(fit_classifier(shuffled[~own], FOREST), shuffled.features[torch.from_numpy(own)])
    assert np.array_equal(probabilities[own], alone)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_verdicts": 700}, "700: 100 are missing"),
        ({"min_confirmed": 500}, r"500: 3\d\d are missing"),
    ],
)
def test_a_reducer_refuses_to_learn_from_too_few_verdicts(limits: dict[str, int], message: str) -> None:
    with pytest.raises(TooFewRows, match=message):
        fit_reducer(make_verdicts(), FOREST, LIMITS.model_copy(update=limits))


def test_verdicts_that_all_say_the_same_are_refused() -> None:
    verdicts = make_verdicts()
    with pytest.raises(TooFewRows, match="are the same"):
        fit_classifier(verdicts[verdicts.is_anomaly], NETWORK)


def test_a_reducer_that_loses_more_recall_than_it_may_is_refused() -> None:
    # What makes an anomaly turns over with time: the earlier verdicts mislead about the later ones.
    verdicts = make_verdicts(noise=0.1)
    features = verdicts.features.clone()
    features[480:, 1] = 2 * features[480:, 0] - features[480:, 1]
    with pytest.raises(ReducerRefused, match=r"at most 10\.0%: \d+\.\d% less"):
        fit_reducer(replace(verdicts, features=features), NETWORK, LIMITS)


def test_the_gain_counts_what_the_sample_below_the_threshold_represents() -> None:
    flags, n = make_verdicts(noise=0.2), 40
    below = np.arange(n) < 2  # two anomalies among forty sampled rows, one row in twenty selected
    verdicts = Verdicts(
        features=torch.cat([flags.features, torch.zeros(n, 4)]),
        is_anomaly=np.append(flags.is_anomaly, below),
        is_flag=np.append(flags.is_flag, np.zeros(n, dtype=bool)),
        inclusion=np.append(flags.inclusion, np.full(n, 0.05)),
        times=np.append(flags.times, np.arange(n)),
    )
    gain = fit_reducer(verdicts, FOREST, LIMITS).header.gain
    confirmed = int(flags.is_anomaly.sum())
    assert (gain.verdicts, gain.flags, gain.confirmed) == (640, 600, confirmed)
    assert gain.first_stage_recall == pytest.approx(confirmed / (confirmed + 2 * 20))
    assert gain.precision_before == pytest.approx(confirmed / 600)
    assert gain.precision_after * gain.alerts_share == pytest.approx(gain.recall_kept * gain.precision_before)
    assert gain.precision_after > 0.85


# --- in a detector's bundle ---


def make_batch(n: int, seed: int, wild: float = 0.0) -> Records:
    rng = np.random.default_rng(seed)
    age = rng.normal(size=n)
    return make_records(np.stack([age + wild + 0.1 * rng.normal(size=n), age], axis=1), rng.integers(0, 2, (n, 1)))


@pytest.fixture(scope="module")
def detector() -> Detector:
    params = ModelParams(network=AutoencoderParams(layers=(4, 1, 4)), fit=FitParams(epochs=3, seed=1))
    fitted = fit_detector(COLUMNS, make_batch(300, 0), make_batch(100, 1), params, torch.device("cpu"))
    return calibrate_detector(fitted, make_batch(300, 2), QuantilePolicy(q=0.9))


def stack(detector: Detector, params: ReducerParams) -> Detector:
    features = detector.describe(make_batch(200, 3))
    truth = np.arange(200) % 4 == 0
    everything = np.ones(200)
    verdicts = Verdicts(features + torch.from_numpy(truth).float()[:, None], truth, truth >= 0, everything, truth * 1)
    limits = ReducerLimits(min_verdicts=50, min_confirmed=10, max_recall_loss=0.5)
    return detector.with_reducer(fit_reducer(replace(verdicts, times=np.arange(200)), params, limits))


def test_what_a_reducer_reads_is_the_row_its_shares_its_score_and_its_rank(detector: Detector) -> None:
    records = make_batch(50, 4, wild=3.0)
    described = detector.describe(records).numpy()
    scores, usual = detector.score(records), np.median(detector.calibration.scores)
    width = detector.encoder.width
    assert described.shape == (50, width + 3 + 2)
    assert np.array_equal(described[:, :width], encode_records(detector.encoder, records).numpy())
    assert np.allclose(np.expm1(described[:, width:-2]).sum(axis=1) * usual, scores, rtol=1e-4)
    assert np.allclose(np.expm1(described[:, -2]) * usual, scores, rtol=1e-4)
    assert np.allclose(described[:, -1], detector.rank(scores) / 100)


@KINDS
def test_a_stack_comes_back_from_its_bundle_with_the_same_probabilities(
    detector: Detector, params: ReducerParams, tmp_path
) -> None:
    both = stack(detector, params)
    assert both.save(tmp_path / "one") == both.save(tmp_path / "two")
    loaded = Detector.load(tmp_path / "one")
    records = make_batch(1100, 5, wild=2.0)
    probabilities, is_suppressed = both.reduce(records)
    again, suppressed_again = loaded.reduce(records)
    assert np.array_equal(probabilities, again)
    assert np.array_equal(is_suppressed, suppressed_again)
    assert np.array_equal(is_suppressed, probabilities < both.reducer.header.cut)
    assert loaded.reducer.header == both.reducer.header
    assert np.array_equal(both.score(records), detector.score(records))
    assert np.array_equal(loaded.reduce(records[3:5])[0], probabilities[3:5])


def test_a_bundle_without_a_reducer_does_not_mention_one(detector: Detector, tmp_path) -> None:
    detector.save(tmp_path)
    contents = read_bundle(tmp_path)
    assert b"reducer" not in contents[HEADER] + contents[WEIGHTS]
    probabilities, is_suppressed = Detector.load(tmp_path).reduce(make_batch(3, 6))
    assert np.isnan(probabilities).all()
    assert not is_suppressed.any()


@pytest.mark.parametrize("kind", ["mixed", "missing"])
def test_arrays_that_are_not_the_reducers_own_are_refused(detector: Detector, tmp_path, kind: str) -> None:
    network, forest = stack(detector, NETWORK), stack(detector, FOREST)
    if kind == "mixed":
        mixed = replace(network.reducer, classifier=forest.reducer.classifier)
    else:
        mixed = replace(network.reducer, classifier=torch.nn.Identity())
    network.with_reducer(mixed).save(tmp_path)
    with pytest.raises(BundleInvalid, match="do not match each other"):
        Detector.load(tmp_path)


def test_a_new_threshold_drops_the_reducer(detector: Detector) -> None:
    again = calibrate_detector(stack(detector, FOREST), make_batch(300, 7), QuantilePolicy(q=0.8))
    assert again.reducer is None
