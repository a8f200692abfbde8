import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from models.bundle import CALIBRATION, HEADER, WEIGHTS, read_bundle, write_bundle
from models.columns import Column, Tokens
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import encode_records
from models.errors import BundleInvalid, MemoryExhausted, NightjarError
from models.fitting import EpochLog
from models.params import (
    AutoencoderParams,
    BestFBetaPolicy,
    FitParams,
    NeighboursParams,
    NetworkParams,
    QuantilePolicy,
    RecallPolicy,
    ResidualParams,
    ScoringParams,
    VariationalParams,
)
from models.records import BLOCK, GPU_BLOCK, Records, make_records

KINDS = get_args(ResidualParams.model_fields["kind"].annotation)
COLUMNS = (
    Column("amount", "log_numeric"),
    Column("country", "categorical", ("DE", "FR", "Côte d'Ivoire")),
    Column("age", "numeric"),
    Column("at", "datetime"),
)
NETWORKS: list[NetworkParams] = [AutoencoderParams(layers=(8, 3, 8)), VariationalParams(hidden=(8,), latent=3)]
SETUPS: dict[str, tuple[list[NetworkParams], ScoringParams]] = {
    "autoencoder": (NETWORKS[:1], ResidualParams()),
    "variational": (NETWORKS[1:], ResidualParams()),
    "several networks": (NETWORKS, ResidualParams()),
    "neighbours": ([NETWORKS[0]] * 2, NeighboursParams(references=101, neighbours=3)),
    "spread neighbours": ([NETWORKS[0]], NeighboursParams(references=101, neighbours=3, draw="spread")),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU was found")),
]
LINEAGE = {"data_hash": "ab12", "params_hash": "cd34", "rows": 300, "contract": {"passed": True}}


def make_batch(n: int, seed: int) -> Records:
    rng = np.random.default_rng(seed)
    age = rng.normal(size=n)
    numbers = np.stack([np.exp(age + 0.1 * rng.normal(size=n)), age], axis=1)
    return make_records(numbers, rng.integers(0, 4, (n, 1)), rng.integers(0, 2**51, (n, 1)))


def fit(setup: str = "autoencoder", seed: int = 0, threads: int = 1) -> Detector:
    networks, score = SETUPS[setup]
    fit_params = FitParams(epochs=3, batch_size=64, seed=seed)
    params = ModelParams(networks=tuple(networks), fit=fit_params, score=score, threads=threads)
    fitted = fit_detector(COLUMNS, make_batch(300, 1), make_batch(60, 2), params, torch.device("cpu"))
    return replace(calibrate_detector(fitted, make_batch(120, 3), QuantilePolicy(q=0.95)), lineage=LINEAGE)


@pytest.fixture(scope="module", params=SETUPS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return fit(request.param)


def find_residuals(detector: Detector, encoded: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [(network(encoded) - encoded).double().numpy() for network in detector.networks]


@pytest.mark.parametrize("setup", ["autoencoder", "several networks"])
def test_a_residual_score_agrees_with_numpy_and_is_the_mean_over_the_networks(setup: str) -> None:
    detector, records = fit(setup), make_batch(50, 4)
    slots, spreads = detector.encoder.slots.numpy(), detector.spreads.numpy().reshape(-1, 4)
    residuals = find_residuals(detector, encode_records(detector.encoder, records))
    scores = []
    for residual, own in zip(residuals, spreads, strict=True):
        by_column = np.stack([(residual[:, slots == i] ** 2).sum(axis=1) for i in range(4)], axis=1)
        scores.append((by_column / own).mean(axis=1))
    assert np.allclose(detector.score(records), np.mean(scores, axis=0), rtol=1e-5)


def test_networks_of_one_layout_start_from_seeds_of_their_own() -> None:
    first, last = fit("neighbours").networks
    assert first.state_dict().keys() == last.state_dict().keys()
    assert not torch.equal(next(first.parameters()), next(last.parameters()))


@pytest.mark.parametrize("setup", ["neighbours", "spread neighbours"])
def test_a_neighbours_score_agrees_with_numpy(setup: str) -> None:
    detector, records = fit(setup), make_batch(50, 4)

    def place(rows: Records) -> np.ndarray:
        encoded = encode_records(detector.encoder, rows)
        return np.concatenate([encoded.double().numpy(), *find_residuals(detector, encoded)], axis=1)

    fitted = np.concatenate([place(make_batch(300, 1)), place(make_batch(60, 2))])
    references = detector.references.points.numpy()
    assert references.shape == (101, (1 + len(detector.networks)) * detector.encoder.width)
    assert np.abs(references[:, None] - fitted).max(axis=2).min(axis=1).max() < 1e-5  # each is a fit or stopping row
    distances = np.linalg.norm(place(records)[:, None] - references, axis=2)
    nearest = np.argsort(distances, axis=1)[:, :3]
    spacing = detector.references.spacing.numpy()[nearest].mean(axis=1)
    expected = np.take_along_axis(distances, nearest, axis=1).mean(axis=1) / spacing**0.5
    assert np.allclose(detector.score(records), expected, rtol=1e-5)


def test_under_a_neighbours_score_what_is_expected_are_clean_rows() -> None:
    rng = np.random.default_rng(0)
    line = rng.uniform(size=(400, 1))
    rows = make_records(np.concatenate([100 + 10 * line, 50 - 10 * line], axis=1), (line > 0.5).astype(int))
    columns = [Column("a", "numeric"), Column("b", "numeric"), Column("c", "categorical", ("low", "high"))]
    score = NeighboursParams(references=400)
    params = ModelParams(networks=tuple(NETWORKS[:1]), fit=FitParams(epochs=3), score=score)
    fitted = fit_detector(columns, rows[:300], rows[300:], params, torch.device("cpu"))
    explanation = fitted.explain(make_records(np.array([[102.0, 48.0], [102.0, 40.0]]), np.array([[0], [0]])))
    assert np.allclose(explanation.expected[0], [102, 48, 0], atol=0.2)
    assert np.allclose(explanation.expected[1, :2].sum(), 150, atol=1e-4)  # on the line
    assert explanation.contributions[1].sum() > 5 * explanation.contributions[0].sum()


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


def move(detector: Detector, device: str) -> Detector:
    """The detector on a GPU, or on the CPU with the blocks of one."""
    return replace(detector, block=GPU_BLOCK) if device == "cpu" else detector.to(torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_scores_ranks_and_flags_of_a_gpu_and_its_blocks_agree_with_the_cpus(detector: Detector, device: str) -> None:
    records, moved = make_batch(5000, 5), move(detector, device)
    scores, found = detector.score(records), moved.score(records)
    assert np.allclose(found, scores, rtol=1e-5, atol=0)
    threshold = detector.threshold.value
    differ = (found > threshold) != (scores > threshold)
    assert np.allclose(scores[differ], threshold, rtol=1e-5, atol=0)
    assert (scores > threshold).sum() > 100 and moved.threshold == detector.threshold
    alone, together = moved.score(records[:7]), found[:7]
    assert np.allclose(alone, together, rtol=0 if device == "cpu" else 1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_explanations_and_latent_places_of_a_gpu_agree_with_the_cpus(detector: Detector, device: str) -> None:
    records, moved = make_batch(40, 6), move(detector, device)
    found, expected = moved.explain(records), detector.explain(records)
    assert np.allclose(found.contributions.sum(axis=1), moved.score(records), rtol=1e-12, atol=0)
    for name in ("contributions", "actual", "expected"):
        assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
    assert np.allclose(moved.encode(records), detector.encode(records), rtol=1e-4, atol=1e-6)


def test_a_gpu_that_is_full_is_an_error_that_says_so(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore words.")

    monkeypatch.setattr("models.detector.rebuild", fail)
    with pytest.raises(MemoryExhausted, match=r"(?s)on the GPU to score.*Tried to allocate 20.00 MiB\.\n.*65,536 rows"):
        replace(detector, block=GPU_BLOCK).score(make_batch(3, 1))


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_gpu_has_scored_is_saved_as_the_cpu_would(detector: Detector, device: str, tmp_path: Path) -> None:
    assert move(detector, device).save(tmp_path / "moved") == detector.save(tmp_path / "stayed")


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_scoring_mixes_no_devices(detector: Detector, kind: str | None) -> None:
    # The device that computes nothing but shapes takes no part of another one; at the end there is nothing to read.
    if kind:
        detector = replace(detector, score_params=ResidualParams(kind=kind))
    with pytest.raises(NotImplementedError, match="copy out of meta tensor"):
        detector.to(torch.device("meta")).score(make_batch(30, 6))


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_contributions_add_up_to_the_scores(detector: Detector, kind: str | None) -> None:
    records = make_batch(30, 6)
    if kind:
        detector = replace(detector, score_params=ResidualParams(kind=kind))
    explanation = detector.explain(records)
    assert explanation.contributions.shape == explanation.expected.shape == (30, 4)
    assert explanation.contributions.min() >= 0
    assert np.allclose(explanation.contributions.sum(axis=1), detector.score(records), rtol=1e-12, atol=0)


def test_an_image_is_explained_by_patch_and_a_text_by_token() -> None:
    rng = np.random.default_rng(0)
    columns = [Column("text", "sequence", ("a", "b"), tokens=Tokens(" ", 1, 2, "multi_hot"))]
    columns += [Column("photo", "image", shape=(14, 7))]
    pixels = np.repeat(rng.integers(0, 256, (200, 1)), 98, axis=1)
    rows = make_records(pixels=pixels, tokens=np.repeat(rng.integers(0, 2, (200, 1)), 2, axis=1))
    params = ModelParams(network=AutoencoderParams(layers=(4,), output="sigmoid"), fit=FitParams(epochs=40))
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


@pytest.mark.parametrize("kind", ["standardised", "mean_squared", "mean_absolute", "root_mean_squared", "neighbours"])
def test_a_category_never_seen_scores_higher_than_a_rare_one(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    column = Column("shop", "categorical", tuple(str(n) for n in range(30)), rare="x")
    rare, unseen = 30, column.unseen

    def make(codes: np.ndarray) -> Records:
        return make_records(rng.normal(size=(len(codes), 1)), codes[:, None])

    clean = make(rng.integers(0, rare + 1, 800))
    score = NeighboursParams(references=300) if kind == "neighbours" else ResidualParams(kind=kind)  # type: ignore[arg-type]
    params = ModelParams(networks=(AutoencoderParams(layers=(8, 2, 8)),), fit=FitParams(epochs=10), score=score)
    fitted = fit_detector((Column("x", "numeric"), column), clean, clean[:200], params, torch.device("cpu"))
    fitted.save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert loaded.columns == fitted.columns and loaded.encoder.width == 1 + 32
    numbers = rng.normal(size=(100, 1))
    as_rare, as_unseen = (
        loaded.score(make_records(numbers, np.full((100, 1), code, np.int64))) for code in (rare, unseen)
    )
    assert (as_unseen > as_rare).mean() > 0.9


@pytest.mark.parametrize("form", ["multi_hot", "counts"])
@pytest.mark.parametrize("kind", ["neighbours", "standardised", "mean_squared", "mean_absolute"])
def test_a_token_never_seen_scores_higher_than_a_rare_one(kind: str, form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = Tokens(words=3, form=form)  # type: ignore[arg-type]
    column = Column("log", "sequence", tuple(f"t{n:02}" for n in range(30)), tokens=tokens, rare="x")
    rare, unseen = 30, column.unseen

    def make(codes: np.ndarray) -> Records:
        return make_records(tokens=codes)

    share = np.append(1 / np.arange(1, 31), 0.5)  # a power law; the rare ones together are as common as the second
    clean = make(rng.choice(31, (800, 3), p=share / share.sum()))
    score = NeighboursParams(references=300) if kind == "neighbours" else ResidualParams(kind=kind)  # type: ignore[arg-type]
    params = ModelParams(networks=(AutoencoderParams(layers=(8, 2, 8)),), fit=FitParams(epochs=10), score=score)
    fitted = fit_detector((column,), clean, clean[:200], params, torch.device("cpu"))
    fitted.save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert loaded.columns == fitted.columns and loaded.encoder.width == 32
    others = rng.integers(0, 10, (100, 2))
    as_rare, as_unseen = (
        loaded.score(make(np.column_stack([np.full(100, code, np.int64), others]))) for code in (rare, unseen)
    )
    assert (as_unseen > as_rare).mean() > 0.9


def test_the_broken_column_is_the_cause_and_its_expected_value_is_near_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    columns = [Column(name, "numeric") for name in "abc"]
    line = rng.normal(size=(600, 1))
    rows = make_records(100 + 10 * (line @ np.ones((1, 3))))
    params = ModelParams(networks=(AutoencoderParams(layers=(1,)),), fit=FitParams(learning_rate=0.02, batch_size=64))
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
    assert again.networks is detector.networks and again.lineage == LINEAGE
    assert np.array_equal(detector.score(tuning) > again.threshold.value, is_anomaly)
    assert detector.threshold.n == 120 and again.threshold.n == 50


def test_a_recall_is_kept_in_the_bundle_and_in_no_other(detector: Detector, tmp_path: Path) -> None:
    tuning, policy = make_batch(40, 9), RecallPolicy(at_least=0.9)
    kept = calibrate_detector(detector, make_batch(50, 10), policy, (tuning, np.arange(40) < 12))
    kept.save(tmp_path / "kept")
    assert Detector.load(tmp_path / "kept").threshold == kept.threshold
    assert kept.threshold.recall and kept.threshold.recall.anomalies == 12
    detector.save(tmp_path / "other")
    assert "recall" not in (tmp_path / "other" / "detector.json").read_text()


def test_every_epoch_is_reported() -> None:
    logs: list[tuple[int, int]] = []

    def log(network: int, epoch: EpochLog) -> None:
        logs.append((network, epoch.epoch))

    params = ModelParams(networks=tuple(NETWORKS), fit=FitParams(epochs=2))
    fit_detector(COLUMNS, make_batch(30, 1), make_batch(9, 2), params, torch.device("cpu"), log)
    assert logs == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_saved_detector_loads_with_the_same_bits(detector: Detector, tmp_path: Path) -> None:
    content_hash, records = detector.save(tmp_path), make_batch(99, 11)
    loaded = Detector.load(tmp_path)
    assert np.array_equal(loaded.score(records), detector.score(records))
    assert np.array_equal(loaded.explain(records).contributions, detector.explain(records).contributions)
    assert np.array_equal(loaded.p_value(np.arange(9.0)), detector.p_value(np.arange(9.0)))
    assert loaded.threshold == detector.threshold and loaded.columns == COLUMNS
    assert loaded.lineage == LINEAGE and loaded.threads == 1
    assert loaded.save(tmp_path / "again") == content_hash


def test_a_bundle_of_the_time_of_one_network_still_loads(tmp_path: Path) -> None:
    detector, records = fit(), make_batch(99, 11)
    detector.save(tmp_path)
    contents = read_bundle(tmp_path)
    header = json.loads(contents[HEADER])
    header["network"] = header.pop("networks")[0]  # what detector.json held then; the weights kept their names
    assert {name.split(".")[0] for name in load_tensors(contents[WEIGHTS])} == {"encoder", "network", "spreads"}
    write_bundle(tmp_path, {**contents, HEADER: json.dumps(header).encode()})
    assert np.array_equal(Detector.load(tmp_path).score(records), detector.score(records))


def test_the_same_data_params_and_seed_give_the_same_hash(tmp_path: Path) -> None:
    hashes = [fit(seed=seed).save(tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert hashes[0] == hashes[1] != hashes[2]
    assert fit("neighbours").save(tmp_path / "one") == fit("neighbours").save(tmp_path / "two")
    assert replace(fit(), lineage={}).save(tmp_path / "other") != hashes[0]


@pytest.mark.slow
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
        with pytest.raises(BundleInvalid, match="do not match each other"):
            Detector.load(tmp_path)


def test_a_neighbours_detector_without_its_references_is_refused(tmp_path: Path) -> None:
    fit("neighbours").save(tmp_path)
    contents = read_bundle(tmp_path)
    arrays = {name: array for name, array in load_tensors(contents[WEIGHTS]).items() if name != "references.points"}
    write_bundle(tmp_path, {**contents, WEIGHTS: dump_tensors(arrays)})
    with pytest.raises(BundleInvalid, match=r"references\.points"):
        Detector.load(tmp_path)


def test_params_give_one_network_or_a_list_each_chosen_by_kind() -> None:
    given = {"kind": "variational", "hidden": [9], "latent": 2}
    expected = VariationalParams(hidden=(9,), latent=2)
    assert ModelParams.model_validate({"network": given}).networks == (expected,)
    several = ModelParams.model_validate({"networks": [{"kind": "autoencoder"}, given]})
    assert several.networks == (AutoencoderParams(), expected)
    assert ModelParams.model_validate_json(several.model_dump_json()) == several


@pytest.mark.parametrize("given", [{}, {"networks": []}, {"network": {"kind": "variational"}, "networks": []}])
def test_params_without_a_network_or_with_two_keys_for_it_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="network"):
        ModelParams.model_validate(given)


def test_params_choose_the_score_by_kind() -> None:
    network = {"network": {"kind": "autoencoder"}}
    assert ModelParams.model_validate(network).score == ResidualParams(kind="standardised")
    chosen = ModelParams.model_validate({**network, "score": {"kind": "neighbours", "references": 500}})
    assert chosen.score == NeighboursParams(references=500)
    with pytest.raises(ValidationError, match="references"):
        ModelParams.model_validate({**network, "score": {"kind": "mean_squared", "references": 500}})


def test_detectors_that_score_at_the_same_time_keep_their_own_thread_counts(detector: Detector) -> None:
    records = make_batch(4 * BLOCK, 12)
    detectors = [replace(detector, threads=1 + i % 2) for i in range(8)]
    alone = [one.score(records) for one in detectors]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: one.score(records), detectors))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("setup", ["autoencoder", "neighbours"])
@pytest.mark.slow
def test_another_thread_count_gives_scores_within_one_in_a_hundred_thousand(setup: str) -> None:
    columns = (*(Column(f"x{i}", "numeric") for i in range(200)),)
    rng = np.random.default_rng(3)
    rows = [make_records(rng.normal(size=(n, 200)) @ rng.normal(size=(200, 200))) for n in (600, 200, 1500)]
    score = NeighboursParams(kind="neighbours", references=200) if setup == "neighbours" else ResidualParams()
    network = AutoencoderParams(kind="autoencoder", layers=(300, 30, 300))
    params = ModelParams(networks=(network,), fit=FitParams(epochs=1, batch_size=64), score=score, threads=1)
    one = fit_detector(columns, rows[0], rows[1], params, torch.device("cpu"))
    two = replace(one, threads=2)
    np.testing.assert_allclose(two.score(rows[2]), one.score(rows[2]), rtol=1e-5)
    assert two.score(rows[2]).tolist() == two.score(rows[2]).tolist()
