"""The autoencoder: a record passes through a narrow layer and is rebuilt; abnormal records are rebuilt badly.

Input and output (N, D) float32: N rows, D slots. Hinton & Salakhutdinov 2006, doi:10.1126/science.1127647.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from models.params import Activation, AutoencoderParams, Output

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Layers(nn.Sequential):
    """Linear layers of the given widths, the activation between them, and the output activation after the last."""

    def __init__(self, widths: tuple[int, ...], activation: Activation, output: Output = "linear") -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1], *([nn.Sigmoid()] if output == "sigmoid" else []))

    def forward(self, x: Tensor) -> Tensor:
        """Pass x through, (N, widths[0]) -> (N, widths[-1]); in eval mode each row's bits depend on that row alone.

        With odd widths, rows times weights rounds a row differently at the edge of a kernel's tile. Weights times
        columns puts the rows side by side in the vector registers, so that all rows go through the same additions.
        """
        if self.training:
            for layer in self:
                x = layer(x)
            return x
        columns = x.T.contiguous()  # (widths[0], N), no copy for the encoder's output
        for layer in self:
            if isinstance(layer, nn.Linear):
                columns = torch.addmm(layer.bias[:, None], layer.weight, columns)  # (width, N)
            else:
                columns = layer(columns)
        return columns.T  # (N, widths[-1])


class Autoencoder(nn.Module):
    """D -> layers -> D; the last layer is linear by default, because most slots are unbounded."""

    def __init__(self, width: int, params: AutoencoderParams) -> None:
        super().__init__()
        self.stack = Layers((width, *params.layers, width), params.activation, params.output)
        self.activity_penalty = params.activity_penalty
        self.depth = 2 * (params.layers.index(min(params.layers)) + 1)  # modules up to the bottleneck's activation

    def forward(self, x: Tensor) -> Tensor:
        """Rebuild x, (N, D) -> (N, D)."""
        rebuilt: Tensor = self.stack(x)
        return rebuilt

    def latent(self, x: Tensor) -> Tensor:
        """The activations of the bottleneck, the narrowest layer: (N, D) -> (N, Z)."""
        for layer in list(self.stack)[: self.depth]:
            x = layer(x)
        return x

    def loss(self, x: Tensor, target: Tensor, generator: Generator | None) -> Tensor:
        """Mean squared error, plus the mean L1 norm of the bottleneck's activations times its weight.

        x is the target, or the target with noise. The generator is not used.
        """
        if not self.activity_penalty:
            return F.mse_loss(self(x), target)
        x = latent = self.latent(x)  # (N, Z)
        for layer in list(self.stack)[self.depth :]:
            x = layer(x)
        return F.mse_loss(x, target) + self.activity_penalty * latent.abs().sum(dim=1).mean()
