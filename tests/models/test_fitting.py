import math

import pytest
import torch
from torch import Tensor

from models.autoencoder import AutoencoderParams
from models.errors import NightjarError, TooFewRows, TrainingDiverged
from models.fitting import (
    EpochLog,
    FitParams,
    Network,
    build_network,
    fit_network,
    measure_loss,
    pin_threads,
    resolve_device,
)
from models.variational import VariationalParams

CPU = torch.device("cpu")
NETWORKS = [AutoencoderParams(layers=(3,)), VariationalParams(hidden=(4,), latent=2, kl_weight=0.01)]


def make_rows(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(n, 1, generator=generator)
    return torch.cat([line, -line, 2 * line, 0.1 * torch.randn(n, 1, generator=generator)], dim=1)  # (n, 4)


def weigh(network: Network) -> list[Tensor]:
    return [weight.clone() for weight in network.state_dict().values()]


@pytest.mark.parametrize("params", NETWORKS)
def test_the_loss_falls(params: AutoencoderParams | VariationalParams) -> None:
    network = build_network(params, 4, seed=0)
    before = measure_loss(network, make_rows(40, 2))
    result = fit_network(
        network, make_rows(200, 1), make_rows(40, 2), FitParams(learning_rate=0.02, batch_size=32), CPU
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_raises(value: float) -> None:
    rows = make_rows(20, 1)
    rows[3, 2] = value
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        fit_network(build_network(NETWORKS[0], 4, 0), rows, make_rows(5, 2), FitParams(), CPU)


def test_no_fit_or_no_stopping_rows_are_refused() -> None:
    for fit, stopping in ((0, 5), (5, 0)):
        with pytest.raises(TooFewRows, match=f"{fit} fit rows, {stopping} stopping rows"):
            network = build_network(NETWORKS[0], 4, 0)
            fit_network(network, make_rows(fit, 1), make_rows(stopping, 2), FitParams(), CPU)


def test_devices_are_resolved_and_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(NightjarError, match="no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda") and resolve_device("cpu") == CPU


def test_the_thread_count_is_pinned_and_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), pin_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        _ = 1 / 0
    assert torch.get_num_threads() == before
