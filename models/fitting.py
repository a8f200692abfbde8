"""Fit a network on encoded rows in memory: shuffled slices, Adam, early stopping, the best weights restored.

Input (N, D) float32 fit and stopping rows; N rows, D slots. The same rows, params, thread count and kind of
processor give the same weights, and the global random state is never touched. Kingma & Ba 2014, arXiv:1412.6980.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AliasChoices, BeforeValidator, Field
from torch import Generator, Tensor

from models.autoencoder import Autoencoder, AutoencoderParams
from models.errors import MemoryExhausted, NightjarError, TooFewRows, TrainingDiverged
from models.params import Section
from models.variational import Variational, VariationalParams


def _list_networks(given: object) -> object:
    if given == [] or given == ():
        raise ValueError("a detector needs at least one network")
    return given if isinstance(given, list | tuple) else (given,)


NetworkParams = Annotated[AutoencoderParams | VariationalParams, Field(discriminator="kind")]
# The key is `network:` for one, `networks:` for a list.
Networks = Annotated[
    tuple[NetworkParams, ...],
    Field(strict=False, validation_alias=AliasChoices("networks", "network")),
    BeforeValidator(_list_networks),
]
Network = Autoencoder | Variational
EVALUATED_ROWS = 8192  # rows of one pass over the stopping rows


class FitParams(Section):
    """How long and how fast to fit. noise > 0 makes the network denoise (Vincent et al. 2008)."""

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    patience_epochs: int = Field(default=8, ge=1)
    # Share of the best loss that an epoch must win to count as better.
    min_improvement: float = Field(default=1e-3, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class EpochLog:
    """One epoch, numbered from 1; losses are means per slot; is_best where these weights would be kept."""

    epoch: int
    fit_loss: float
    stopping_loss: float
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """All epochs run, and the one whose weights the network now has."""

    best_epoch: int
    best_loss: float
    epochs: tuple[EpochLog, ...]


def build_network(params: NetworkParams, width: int, seed: int) -> Network:
    """Make a network for D = width slots with seeded weights, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(params, AutoencoderParams):
            return Autoencoder(width, params)
        return Variational(width, params)


def fit_network(
    network: Network,
    fit: Tensor,
    stopping: Tensor,
    params: FitParams,
    device: torch.device,
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> FitResult:
    """Fit in place until the stopping loss no longer falls; it ends in eval mode with the best weights.

    Raises TooFewRows without fit or stopping rows, TrainingDiverged when a loss is NaN or infinite.
    """
    if len(fit) == 0 or len(stopping) == 0:
        raise TooFewRows(
            "There are too few rows to fit a network.",
            got=f"{len(fit)} fit rows, {len(stopping)} stopping rows",
            expected="at least 1 of each",
            todo="widen the date range of the splits, or see which rows the filter took away",
        )
    network.to(device).train()
    fit, stopping = fit.to(device), stopping.to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    shuffle = Generator().manual_seed(params.seed)  # on the CPU: the same order on every device
    chance = Generator(device).manual_seed(params.seed)
    epochs: list[EpochLog] = []
    best_epoch, best_loss, best_weights = 0, math.inf, network.state_dict()
    for epoch in range(1, params.epochs + 1):
        started = time.perf_counter()
        fit_loss = _run_epoch(network, fit, params, optimizer, shuffle, chance)
        stopping_loss = measure_loss(network, stopping)
        _check_finite(epoch, fit_loss, stopping_loss, params)
        is_best = stopping_loss < best_loss * (1 - params.min_improvement)
        if is_best:
            best_epoch, best_loss = epoch, stopping_loss
            best_weights = {name: weight.clone() for name, weight in network.state_dict().items()}
        epochs.append(EpochLog(epoch, fit_loss, stopping_loss, is_best, time.perf_counter() - started))
        if on_epoch is not None:
            on_epoch(epochs[-1])
        if epoch - best_epoch >= params.patience_epochs:
            break
    network.load_state_dict(best_weights)
    network.eval()
    return FitResult(best_epoch, best_loss, tuple(epochs))


def measure_loss(network: Network, rows: Tensor) -> float:
    """Mean loss of rows (N, D) with nothing left to chance."""
    with torch.inference_mode():
        losses = [network.loss(part, part, None).double() * len(part) for part in torch.split(rows, EVALUATED_ROWS)]
        return float(torch.stack(losses).sum() / len(rows))


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Name the device to fit on: auto takes a GPU where there is one; asking for one that is not there raises."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise NightjarError(
            "There is no GPU to fit on.",
            got="device cuda, but torch sees no CUDA device",
            expected="a CUDA device with its driver, and a torch built for it",
            todo="set the device to auto or cpu, or send the run to the gpu work pool",
        )
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


@contextmanager
def watch_memory(rows: int) -> Iterator[None]:
    """Whatever runs out of memory in a block that fits on so many rows becomes MemoryExhausted."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _exhausted(rows, error) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch has a type for the GPU's memory only
            raise
        raise _exhausted(rows, error) from error


def _exhausted(rows: int, error: Exception) -> MemoryExhausted:
    is_gpu = isinstance(error, torch.OutOfMemoryError)
    return MemoryExhausted(
        f"There is not enough memory {'on the GPU ' if is_gpu else ''}to fit; nothing was saved.",
        where=f"a fit on {rows:,} rows",
        got=(str(error) or type(error).__name__).splitlines()[0],
        expected="memory for all encoded fit rows and one batch of the network",
        todo="train on fewer days (filter.splits, filter.exclude_dates), lower train.fit.batch_size or the layers, "
        + ("set NIGHTJAR_DEVICE=cpu, or free the GPU" if is_gpu else "or give the process more memory"),
    )


@contextmanager
def pin_threads(threads: int) -> Iterator[None]:
    """Run a block with exactly this many threads: sums round differently when they are split differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_epoch(
    network: Network,
    fit: Tensor,
    params: FitParams,
    optimizer: torch.optim.Optimizer,
    shuffle: Generator,
    chance: Generator,
) -> float:
    total = torch.zeros((), device=fit.device)
    order = torch.randperm(len(fit), generator=shuffle).to(fit.device)  # (N,)
    for picked in torch.split(order, params.batch_size):
        target = fit[picked]  # (batch, D)
        x = target
        if params.noise > 0:
            x = target + params.noise * torch.randn(target.shape, generator=chance, device=fit.device)
        optimizer.zero_grad(set_to_none=True)
        loss = network.loss(x, target, chance)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(picked)  # read once per epoch: reading waits for the GPU
    return float(total) / len(fit)


def _check_finite(epoch: int, fit_loss: float, stopping_loss: float, params: FitParams) -> None:
    if not (math.isfinite(fit_loss) and math.isfinite(stopping_loss)):
        raise TrainingDiverged(
            "The loss is no longer a finite number.",
            where=f"epoch {epoch}",
            got=f"fit loss {fit_loss}, stopping loss {stopping_loss}",
            expected="finite losses",
            todo=f"lower fit.learning_rate (now {params.learning_rate:g}), or look for extreme values in the fit rows",
        )
