import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save as dump_tensors

from models.autoencoder import AutoencoderParams
from models.bundle import CALIBRATION, HEADER, WEIGHTS, read_bundle, write_bundle
from models.calibration import BestFBetaPolicy, QuantilePolicy
from models.detector import Detector, DetectorParams, calibrate_detector, fit_detector
from models.encoders import encode_records
from models.errors import BundleInvalid, NightjarError
from models.fitting import EpochLog, FitParams, NetworkParams
from models.records import BLOCK, Column, Records, Tokens, make_records
from models.scoring import ScoreParams
from models.variational import VariationalParams

KINDS = get_args(ScoreParams.model_fields["kind"].annotation)
COLUMNS = (
    Column("amount", "log_numeric"),
    Column("country", "categorical", ("DE", "FR", "Côte d'Ivoire")),
    Column("age", "numeric"),
    Column("at", "datetime"),
)
NETWORKS: list[NetworkParams] = [AutoencoderParams(layers=(8, 3, 8)), VariationalParams(hidden=(8,), latent=3)]
LINEAGE = {"data_hash": "ab12", "params_hash": "cd34", "rows": 300, "contract": {"passed": True}}


def make_batch(n: int, seed: int) -> Records:
    rng = np.random.default_rng(seed)
    age = rng.normal(size=n)
    numbers = np.stack([np.exp(age + 0.1 * rng.normal(size=n)), age], axis=1)
    return make_records(numbers, rng.integers(0, 4, (n, 1)), rng.integers(0, 2**51, (n, 1)))


def fit(network: NetworkParams = NETWORKS[0], seed: int = 0, threads: int = 1) -> Detector:
    params = DetectorParams(network=network, fit=FitParams(epochs=3, batch_size=64, seed=seed), threads=threads)
    fitted = fit_detector(COLUMNS, make_batch(300, 1), make_batch(60, 2), params, torch.device("cpu"))
    return replace(calibrate_detector(fitted, make_batch(120, 3), QuantilePolicy(q=0.95)), lineage=LINEAGE)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda params: params.kind)
def detector(request: pytest.FixtureRequest) -> Detector:
    return fit(request.param)


def test_scores_agree_with_numpy(detector: Detector) -> None:
    records = make_batch(50, 4)
    with torch.no_grad():
        encoded = encode_records(detector.encoder, records)
        residual = (detector.network(encoded) - encoded).double().numpy()
    slots, spreads = detector.encoder.slots.numpy(), detector.spreads.numpy()
    expected = np.mean([(residual[:, slots == i] ** 2).sum(axis=1) / spreads[i] for i in range(4)], axis=0)
    assert np.allclose(detector.score(records), expected, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_score_does_not_depend_on_neighbours_order_or_slicing(detector: Detector, threads: int) -> None:
    detector = replace(detector, threads=threads)
    records = make_batch(2 * BLOCK + 77, 5)
    scores = detector.score(records)
    for size in (1, 7, 500, BLOCK, BLOCK + 1):
        rows = slice(size, min(3 * size, len(records)))
        assert np.array_equal(detector.score(records[rows]), scores[rows])
    order = np.random.default_rng(0).permutation(len(records))
    assert np.array_equal(detector.score(records[torch.from_numpy(order)]), scores[order])
    by_column = make_records(np.asfortranarray(records.numbers), records.codes.numpy(), records.times.numpy())
    assert np.array_equal(detector.score(by_column), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_add_up_to_the_scores(detector: Detector, kind: str) -> None:
    detector, records = replace(detector, score_params=ScoreParams(kind=kind)), make_batch(30, 6)
    explanation = detector.explain(records)
    assert explanation.contributions.shape == explanation.expected.shape == (30, 4)
    assert np.allclose(explanation.contributions.sum(axis=1), detector.score(records), rtol=1e-12, atol=0)


def test_an_image_is_explained_by_patch_and_a_text_by_token() -> None:
    rng = np.random.default_rng(0)
    columns = [Column("text", "sequence", ("a", "b"), tokens=Tokens(" ", 1, 2, "multi_hot"))]
    columns += [Column("photo", "image", shape=(14, 7))]
    pixels = np.repeat(rng.integers(0, 256, (200, 1)), 98, axis=1)
    rows = make_records(pixels=pixels, tokens=np.repeat(rng.integers(0, 2, (200, 1)), 2, axis=1))
    params = DetectorParams(network=AutoencoderParams(layers=(4,), output="sigmoid"), fit=FitParams(epochs=40))
    fitted = fit_detector(columns, rows[:150], rows[150:], params, torch.device("cpu"))
    pixels, tokens = rows.pixels[:2].numpy().copy(), np.array([[0, 0], [2, 2]])
    pixels[0, 49:] = 255 - pixels[0, 49:]
    explanation = fitted.explain(make_records(pixels=pixels, tokens=tokens))
    assert [unit.part for unit in fitted.encoder.units] == ["a", "b", "<unseen>", "rows 0-6, columns 0-6",
                                                            "rows 7-13, columns 0-6"]  # fmt: skip
    assert explanation.contributions[0].argmax() == 4 and explanation.contributions[1].argmax() == 2
    assert np.allclose(explanation.contributions.sum(axis=1), fitted.score(make_records(pixels=pixels, tokens=tokens)))
    assert explanation.actual[1, :3].tolist() == [0, 0, 1] and explanation.expected[1, 2] < 0.5
    assert explanation.actual[0, 4] == pytest.approx(pixels[0, 49:].mean(), abs=1e-3)


def test_the_broken_column_is_the_cause_and_its_expected_value_is_near_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    columns = [Column(name, "numeric") for name in "abc"]
    line = rng.normal(size=(600, 1))
    rows = make_records(100 + 10 * (line @ np.ones((1, 3))))
    params = DetectorParams(network=AutoencoderParams(layers=(1,)), fit=FitParams(learning_rate=0.02, batch_size=64))
    fitted = fit_detector(columns, rows[:500], rows[500:], params, torch.device("cpu"))
    explanation = fitted.explain(make_records(np.array([[100.0, 160.0, 100.0], [100.0, 100.0, 100.0]])))
    assert explanation.contributions[0].argmax() == 1
    assert explanation.contributions[0].sum() > 100 * explanation.contributions[1].sum()
    assert np.allclose(explanation.expected[1], 100, atol=2)
    assert explanation.expected[0, 1] < 140


def test_extreme_values_still_score_finite_and_high(detector: Detector) -> None:
    records = make_batch(4, 7)
    numbers = np.array([[1.7e308, -1.7e308], [np.inf, -np.inf], [-5.0, 1e300], [1e300, np.nan]])
    scores = detector.score(make_records(numbers, records.codes.numpy(), records.times.numpy()))
    assert np.isfinite(scores).all() and scores.min() > detector.threshold.value


def test_scoring_leaves_the_thread_count_and_the_random_state_alone(detector: Detector) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    replace(detector, threads=before[0] + 1).score(make_batch(3, 8))
    assert torch.get_num_threads() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])


def test_no_rows_give_no_scores(detector: Detector) -> None:
    assert detector.score(make_batch(0, 0)).shape == (0,)
    assert detector.explain(make_batch(0, 0)).contributions.shape == (0, 4)


def test_calibration_ranks_and_flags_as_its_rows_say(detector: Detector) -> None:
    scores = np.sort(detector.score(make_batch(120, 3)))
    assert detector.threshold.value == scores[114]  # k = ceil(121 * 0.95) = 115
    assert detector.rank(scores[[0, 60]]).tolist() == [0, 50]
    assert np.allclose(detector.p_value(scores[[0, 119]]), [1, 2 / 121])


def test_calibrating_again_keeps_the_weights_and_reads_tuning_rows(detector: Detector) -> None:
    tuning = make_batch(40, 9)
    is_anomaly = detector.score(tuning) > np.median(detector.score(tuning))
    again = calibrate_detector(detector, make_batch(50, 10), BestFBetaPolicy(), (tuning, is_anomaly))
    assert again.network is detector.network and again.lineage == LINEAGE
    assert np.array_equal(detector.score(tuning) > again.threshold.value, is_anomaly)
    assert detector.threshold.n == 120 and again.threshold.n == 50


def test_every_epoch_is_reported() -> None:
    logs: list[EpochLog] = []
    params = DetectorParams(network=NETWORKS[0], fit=FitParams(epochs=2))
    fit_detector(COLUMNS, make_batch(30, 1), make_batch(9, 2), params, torch.device("cpu"), logs.append)
    assert [log.epoch for log in logs] == [1, 2]


def test_a_saved_detector_loads_with_the_same_bits(detector: Detector, tmp_path: Path) -> None:
    content_hash, records = detector.save(tmp_path), make_batch(99, 11)
    loaded = Detector.load(tmp_path)
    assert np.array_equal(loaded.score(records), detector.score(records))
    assert np.array_equal(loaded.explain(records).contributions, detector.explain(records).contributions)
    assert np.array_equal(loaded.p_value(np.arange(9.0)), detector.p_value(np.arange(9.0)))
    assert loaded.threshold == detector.threshold and loaded.columns == COLUMNS
    assert loaded.lineage == LINEAGE and loaded.threads == 1
    assert loaded.save(tmp_path / "again") == content_hash


def test_the_same_data_params_and_seed_give_the_same_hash(tmp_path: Path) -> None:
    hashes = [fit(seed=seed).save(tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert hashes[0] == hashes[1] != hashes[2]
    assert replace(fit(), lineage={}).save(tmp_path / "other") != hashes[0]


def test_another_process_loads_and_saves_the_same_hash(tmp_path: Path) -> None:
    code = "import sys, pathlib; from models.detector import Detector; p = pathlib.Path(sys.argv[1])\n"
    code += "sys.stdout.write(Detector.load(p).save(p / '..' / 'again'))"
    content_hash = fit().save(tmp_path / "bundle")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "bundle")]
    assert subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout == content_hash


def test_a_detector_without_calibration_scores_saves_and_loads_but_does_not_rank(tmp_path: Path) -> None:
    replace(fit(), calibration=None).save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert len(loaded.score(make_batch(3, 1))) == 3
    with pytest.raises(NightjarError, match="not calibrated"):
        loaded.rank(np.ones(1))


def test_files_that_do_not_fit_together_are_refused_though_their_hashes_hold(
    detector: Detector, tmp_path: Path
) -> None:
    detector.save(tmp_path)
    contents = read_bundle(tmp_path)
    wider = contents[HEADER].replace(b'"FR",', b'"FR", "GB",')
    for changed in (
        {HEADER: b"{}"},
        {HEADER: wider},
        {WEIGHTS: b"no tensors"},
        {WEIGHTS: dump_tensors({"spreads": torch.ones(4)})},
        {CALIBRATION: dump_tensors({"other": torch.ones(4)})},
    ):
        write_bundle(tmp_path, {**contents, **changed})
        with pytest.raises(BundleInvalid, match="do not fit together"):
            Detector.load(tmp_path)


def test_params_choose_the_network_by_kind() -> None:
    params = DetectorParams.model_validate({"network": {"kind": "variational", "hidden": [9], "latent": 2}})
    assert params.network == VariationalParams(hidden=(9,), latent=2)


def test_detectors_that_score_at_the_same_time_keep_their_own_thread_counts(detector: Detector) -> None:
    records = make_batch(4 * BLOCK, 12)
    detectors = [replace(detector, threads=1 + i % 2) for i in range(8)]
    alone = [one.score(records) for one in detectors]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: one.score(records), detectors))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
