import functools
import math
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import NightjarError, TooFewRows, TrainingDiverged
from models.fitting import (
    EpochLog,
    Network,
    Share,
    Watched,
    build_network,
    fit_network,
    measure_loss,
    pin_arithmetic,
    resolve_device,
)
from models.params import AutoencoderParams, FitParams, VariationalParams

CPU = torch.device("cpu")
NETWORKS = [AutoencoderParams(layers=(3,)), VariationalParams(hidden=(4,), latent=2, kl_weight=0.01)]


def make_rows(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(n, 1, generator=generator)
    return torch.cat([line, -line, 2 * line, 0.1 * torch.randn(n, 1, generator=generator)], dim=1)  # (n, 4)


def weigh(network: Network) -> list[Tensor]:
    return [weight.clone() for weight in network.state_dict().values()]


@pytest.mark.parametrize("params", NETWORKS)
@pytest.mark.slow
def test_the_loss_falls(params: AutoencoderParams | VariationalParams) -> None:
    network = build_network(params, 4, seed=0)
    before = measure_loss(network, make_rows(40, 2))
    result = fit_network(
        network, make_rows(200, 1), make_rows(40, 2), FitParams(learning_rate=0.02, batch_size=32, epochs=30), CPU
    )
    assert result.best_loss < 0.7 * before


@pytest.mark.parametrize("params", NETWORKS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    params: AutoencoderParams | VariationalParams,
) -> None:
    def run(seed: int) -> list[Tensor]:
        network = build_network(params, 4, seed)
        fit_network(network, make_rows(64, 1), make_rows(16, 2), FitParams(epochs=2, seed=seed, noise=0.1), CPU)
        return weigh(network)

    first, again, other = run(5), run(5), run(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("params", NETWORKS)
def test_the_weights_are_those_of_torchs_adamw_to_the_bit(params: AutoencoderParams | VariationalParams) -> None:
    fit = FitParams(epochs=3, batch_size=16, learning_rate=0.02, weight_decay=0.1, min_improvement=0.0)
    network, theirs = build_network(params, 4, seed=0), build_network(params, 4, seed=0)
    result = fit_network(network, make_rows(40, 1), make_rows(16, 2), fit, CPU)
    assert result.best_epoch == 3  # whose weights are kept
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.1, fused=True)
    shuffle, chance = torch.Generator().manual_seed(fit.seed), torch.Generator().manual_seed(fit.seed)
    for _ in range(3):
        for batch in torch.split(torch.randperm(40, generator=shuffle), 16):
            rows = make_rows(40, 1)[batch]
            optimizer.zero_grad()
            theirs.loss(rows, rows, chance).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weigh(network), weigh(theirs), strict=True))


@pytest.mark.slow
def test_a_fit_does_not_import_torchs_compiler() -> None:
    code = """
import sys, torch
from models.fitting import build_network, fit_network
from models.params import AutoencoderParams, FitParams
rows = torch.ones(8, 4)
fit_network(build_network(AutoencoderParams(layers=(3,)), 4, 0), rows, rows, FitParams(epochs=1), torch.device("cpu"))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    network = build_network(NETWORKS[1], 4, seed=0)
    fit_network(network, make_rows(64, 1), make_rows(16, 2), FitParams(epochs=2, noise=0.1), CPU)
    assert torch.equal(before, torch.random.get_rng_state())


def test_fitting_stops_when_the_stopping_loss_no_longer_falls_and_keeps_the_best_weights() -> None:
    network = build_network(NETWORKS[0], 4, seed=0)
    kept: list[list[Tensor]] = []
    logs: list[EpochLog] = []

    def remember(log: EpochLog) -> None:
        logs.append(log)
        kept.append(weigh(network))

    params = FitParams(epochs=200, batch_size=8, learning_rate=0.05, patience_epochs=3, min_improvement=0.0)
    result = fit_network(network, make_rows(64, 1), make_rows(16, 2), params, CPU, remember)
    losses = [log.stopping_loss for log in logs]
    assert len(logs) < 200 and result.epochs == tuple(logs)
    assert result.best_epoch == losses.index(min(losses)) + 1 == len(logs) - 3
    assert all(torch.equal(a, b) for a, b in zip(weigh(network), kept[result.best_epoch - 1], strict=True))
    assert result.best_loss == min(losses)
    assert math.isclose(measure_loss(network, make_rows(16, 2)), result.best_loss, rel_tol=1e-5)


def test_too_small_an_improvement_does_not_count() -> None:
    params = FitParams(epochs=50, patience_epochs=2, min_improvement=0.9)
    result = fit_network(build_network(NETWORKS[0], 4, 0), make_rows(64, 1), make_rows(16, 2), params, CPU)
    assert result.best_epoch == 1 and len(result.epochs) == 3


def test_the_stopping_loss_weighs_every_row_alike_across_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = build_network(NETWORKS[0], 4, seed=0), make_rows(10, 1)
    whole = measure_loss(network, rows)
    monkeypatch.setattr("models.fitting.EVALUATED_ROWS", 7)
    assert math.isclose(measure_loss(network, rows), whole, rel_tol=1e-6)


def test_watched_rows_are_measured_at_each_epoch_and_change_nothing_that_is_learnt() -> None:
    params = FitParams(epochs=3, batch_size=16, noise=0.1)
    fit, stopping, labelled = make_rows(64, 1), make_rows(40, 2), make_rows(30, 3)
    is_anomaly = torch.arange(30) % 10 == 0
    labelled[is_anomaly] *= 20
    watched = Watched.sample(stopping, labelled, is_anomaly)
    for layout in NETWORKS:
        alone, beside = (build_network(layout, 4, seed=0) for _ in range(2))
        fit_network(alone, fit, stopping, params, CPU)
        logs: list[EpochLog] = []
        expected: list[tuple[float, float]] = []

        def count(log: EpochLog, network: Network = beside) -> None:
            logs.append(log)  # noqa: B023
            clean, own = (
                np.square((network(rows) - rows).detach().double().numpy()).mean(axis=1)
                for rows in (stopping, labelled)
            )
            flagged = own > np.sort(clean)[39]  # the 99th percentile of forty rows, or the next higher
            hits = (flagged & is_anomaly.numpy()).sum()
            expected.append((hits / max(flagged.sum(), 1), hits / 3))  # noqa: B023

        fit_network(beside, fit, stopping, params, CPU, count, watched=watched)
        assert all(torch.equal(a, b) for a, b in zip(weigh(alone), weigh(beside), strict=True))
        assert [(one.tuning_precision, one.tuning_recall) for one in logs] == expected
        assert max(recall for _, recall in expected) > 0


def test_rows_to_watch_are_sampled_evenly_and_need_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, truth = torch.arange(10.0)[:, None], torch.arange(10) == 4
    assert Watched.sample(rows, rows, ~truth & truth) is None and Watched.sample(rows, rows, truth | ~truth) is None
    monkeypatch.setattr("models.fitting.WATCHED_ROWS", 5)
    found = Watched.sample(rows, rows, truth)
    assert found and found.labelled.ravel().tolist() == [0, 2, 4, 6, 8] and found.is_anomaly.tolist()[2]
    assert found.clean.ravel().tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_raises(value: float) -> None:
    rows = make_rows(20, 1)
    rows[3, 2] = value
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        fit_network(build_network(NETWORKS[0], 4, 0), rows, make_rows(5, 2), FitParams(), CPU)


def test_no_fit_or_no_stopping_rows_are_refused() -> None:
    for fit, stopping in ((0, 5), (5, 0)):
        with pytest.raises(TooFewRows, match=f"{fit} fit rows, {stopping} stopping rows"):
            network = build_network(NETWORKS[0], 4, 0)
            fit_network(network, make_rows(fit, 1), make_rows(stopping, 2), FitParams(), CPU)


def test_fewer_rows_than_processes_are_refused() -> None:
    network = build_network(NETWORKS[0], 4, 0)
    with pytest.raises(TooFewRows, match=r"(?s)3 fit rows, 1 stopping rows.*at least 2 of each"):
        fit_network(network, make_rows(3, 1), make_rows(1, 2), FitParams(), CPU, share=Share(rank=1, size=2))


@pytest.mark.parametrize("params", NETWORKS)
@pytest.mark.slow
def test_mixed_precision_learns_as_much(params: AutoencoderParams | VariationalParams) -> None:
    def run(precision: Literal["float32", "bfloat16"]) -> tuple[Network, float]:
        network, learn = build_network(params, 4, seed=0), FitParams(epochs=10, batch_size=32, precision=precision)
        return network, fit_network(network, make_rows(200, 1), make_rows(40, 2), learn, CPU).best_loss

    (exact, loss), (mixed, their_loss) = run("float32"), run("bfloat16")
    assert math.isclose(loss, their_loss, rel_tol=0.05) and loss != their_loss
    assert all(weight.dtype == torch.float32 for weight in mixed.parameters())
    assert not torch.equal(next(exact.parameters()), next(mixed.parameters()))


@pytest.mark.slow
def test_a_compiled_fit_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is traced runs as it is: the C++ or CUDA that it would become takes half a minute to build.
    compiled = []
    trace = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or trace(module))

    def run(is_compiled: bool) -> list[float]:
        learn = FitParams(epochs=3, batch_size=48, noise=0.1, compile=is_compiled)
        result = fit_network(build_network(NETWORKS[1], 4, 0), make_rows(200, 1), make_rows(40, 2), learn, CPU)
        return [loss for epoch in result.epochs for loss in (epoch.fit_loss, epoch.stopping_loss)]

    assert run(True) == pytest.approx(run(False), rel=1e-4)
    assert len(compiled) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU was found")
@pytest.mark.parametrize("params", NETWORKS)
def test_a_gpu_learns_what_the_cpu_learns_wherever_the_rows_lie(
    params: AutoencoderParams | VariationalParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(device: str) -> tuple[list[float], list[Tensor]]:
        network, learn = build_network(params, 4, seed=0), FitParams(epochs=5, batch_size=32)
        result = fit_network(network, make_rows(200, 1), make_rows(40, 2), learn, torch.device(device))
        return [epoch.stopping_loss for epoch in result.epochs], weigh(network.cpu())

    losses, weights = run("cuda")
    # Random numbers are the device's own, so only what is fitted without them is the same.
    assert losses == pytest.approx(run("cpu")[0], rel=1e-3 if isinstance(params, AutoencoderParams) else 0.2)
    monkeypatch.setattr("models.fitting.SHARE_OF_GPU", 0.0)  # now the batches travel
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(run("cuda")[1], weights, strict=True))


def test_settings_of_speed_leave_the_hash_of_older_params_alone() -> None:
    assert FitParams().model_dump().keys().isdisjoint({"precision", "compile"})
    faster = FitParams(precision="bfloat16", compile=True)
    assert FitParams.model_validate(faster.model_dump()) == faster


def test_devices_are_resolved_and_missing_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == resolve_device("cpu") == resolve_device("cpu", devices=2) == CPU
    for asked in (("cuda", 1), ("auto", 2)):
        with pytest.raises(NightjarError, match="No GPU"):
            resolve_device(*asked)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda", 2) == torch.device("cuda") and resolve_device("cpu") == CPU
    with pytest.raises(NightjarError, match=r"(?s)fewer GPUs than requested.*torch finds 2.*expected: 3"):
        resolve_device("auto", 3)


def test_the_thread_count_is_pinned_and_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), pin_arithmetic(before + 1):
        assert torch.get_num_threads() == before + 1
        _ = 1 / 0
    assert torch.get_num_threads() == before
