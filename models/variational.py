"""The variational autoencoder: the bottleneck is a distribution, kept close to a standard normal.

Input and output (N, D) float32: N rows, D slots, Z latent. It is fitted on samples but scores with the mean, so scores
are deterministic. Kingma & Welling 2013, arXiv:1312.6114.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from models.autoencoder import Layers
from models.params import VariationalParams


class Variational(nn.Module):
    """D -> hidden -> (mean, log variance) of Z -> mirrored hidden -> D."""

    def __init__(self, width: int, params: VariationalParams) -> None:
        super().__init__()
        self.kl_weight = params.kl_weight
        self.encode = Layers((width, *params.hidden, 2 * params.latent), params.activation)
        self.decode = Layers((params.latent, *reversed(params.hidden), width), params.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Rebuild x from the mean of its latent distribution, (N, D) -> (N, D)."""
        rebuilt: Tensor = self.decode(self.latent(x))
        return rebuilt

    def latent(self, x: Tensor) -> Tensor:
        """The means of the latent distributions, (N, D) -> (N, Z)."""
        means: Tensor = self.encode(x).chunk(2, dim=1)[0]
        return means

    def loss(self, x: Tensor, target: Tensor, generator: Generator | None) -> Tensor:
        """Negative evidence lower bound per slot, sampled with the generator, or at the mean without one."""
        mean, log_variance = self.encode(x).chunk(2, dim=1)  # (N, Z), (N, Z)
        log_variance = log_variance.clamp(-20, 20)  # exp stays finite in float32
        latent = mean
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latent = mean + noise * (0.5 * log_variance).exp()  # (N, Z)
        divergence: Tensor = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        error = F.mse_loss(self.decode(latent), target)
        return error + self.kl_weight * divergence / x.shape[1]
