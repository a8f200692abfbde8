import torch
from torch import Generator

from models.params import VariationalParams
from models.variational import Variational

X = torch.linspace(-1, 1, 40).view(8, 5)


def make_network(kl_weight: float = 1.0) -> Variational:
    return Variational(5, VariationalParams(hidden=(4,), latent=2, kl_weight=kl_weight))


def test_the_output_is_decoded_from_the_mean_and_does_not_depend_on_chance() -> None:
    network = make_network()
    assert torch.equal(network(X), network(X))
    assert torch.equal(network(X), network.decode(network.encode(X)[:, :2]))


def test_the_loss_at_the_mean_is_error_plus_the_divergence_of_torch_distributions() -> None:
    network = make_network(kl_weight=0.5)
    mean, log_variance = network.encode(X).chunk(2, dim=1)
    latent = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = torch.distributions.kl_divergence(latent, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    expected = ((network(X) - X) ** 2).mean() + 0.5 * divergence / 5
    assert torch.isclose(network.loss(X, X, None), expected)


def test_sampling_follows_the_generator_and_nothing_else() -> None:
    network = make_network()
    first, again = (network.loss(X, X, Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, network.loss(X, X, Generator().manual_seed(4)))


def test_extreme_inputs_keep_the_loss_finite() -> None:
    assert make_network().loss(X * 1e6, X, Generator().manual_seed(0)).isfinite()
