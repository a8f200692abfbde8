"""Fit a network on encoded rows in memory: shuffled slices, Adam, early stopping, the best weights restored.

Input (N, D) float32 fit and stopping rows; N rows, D slots. The same rows, params, thread count, kind of processor and
number of processes give the same weights, and the global random state is never touched. Kingma & Ba 2014,
arXiv:1412.6980. Several processes share every batch: see `models/distributed.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.adamw import adamw

from models.autoencoder import Autoencoder
from models.errors import MemoryExhausted, NightjarError, TooFewRows, TrainingDiverged
from models.params import AutoencoderParams, FitParams, NetworkParams
from models.variational import Variational

Network = Autoencoder | Variational
EVALUATED_ROWS = 8192  # rows of one pass over the stopping rows
WATCHED_ROWS = 10_000  # labelled rows, and clean ones beside them, that are looked at after each epoch
WATCHED_QUANTILE = 0.99  # of the clean rows' errors, above which a labelled row counts as flagged
SHARE_OF_GPU = 0.5  # of a GPU's free memory that rows may take; networks, batches and the optimizer need the rest


@dataclass(frozen=True)
class Share:
    """The share of every batch that one process computes: each `size`-th row, from row `rank` on."""

    rank: int = 0
    size: int = 1

    def take(self, rows: Tensor) -> Tensor:
        """This process's share of rows (N, ...)."""
        return rows[self.rank :: self.size]

    def add(self, value: Tensor) -> Tensor:
        """The sum of a value over all processes, bitwise equal in each."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value


ALONE = Share()


@dataclass(frozen=True)
class EpochLog:
    """One epoch, numbered from 1; losses are means per slot; is_best if these weights would be kept.

    tuning_precision and tuning_recall, 0 to 1: see `watch_rows`; None without labelled anomalies.
    """

    epoch: int
    fit_loss: float
    stopping_loss: float
    is_best: bool
    seconds: float
    tuning_precision: float | None = None
    tuning_recall: float | None = None


@dataclass(frozen=True, eq=False)
class Watched:
    """Rows that are only looked at after each epoch: clean (k, D), labelled (m, D), and is_anomaly (m,)."""

    clean: Tensor
    labelled: Tensor
    is_anomaly: Tensor

    @classmethod
    def sample(cls, clean: Tensor, labelled: Tensor, is_anomaly: Tensor) -> "Watched | None":
        """Up to WATCHED_ROWS evenly spaced rows of each; None if these have no anomaly or nothing else."""
        chosen = _space_out(len(labelled))
        truth = is_anomaly[chosen]
        if not truth.any() or truth.all():
            return None
        return cls(clean[_space_out(len(clean))], labelled[chosen], truth)


@dataclass(frozen=True)
class FitResult:
    """All epochs, and the one whose weights the network now has."""

    best_epoch: int
    best_loss: float
    epochs: tuple[EpochLog, ...]


def build_network(params: NetworkParams, width: int, seed: int) -> Network:
    """Build a network for D = width slots with seeded weights, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(params, AutoencoderParams):
            return Autoencoder(width, params)
        return Variational(width, params)


class Criterion(nn.Module):
    """A network's loss as a module, to compile it and to exchange gradients between processes."""

    def __init__(self, network: Network, params: FitParams, device: torch.device) -> None:
        super().__init__()
        self.network, self.device_type = network, device.type
        self.is_mixed, self.is_compiled = params.precision == "bfloat16", params.compile

    def forward(self, x: Tensor, target: Tensor, chance: Generator) -> Tensor:
        """The loss of a batch (batch, D)."""
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.is_mixed):
            return self.network.loss(x, target, chance)


def fit_network(
    network: Network,
    fit: Tensor,
    stopping: Tensor,
    params: FitParams,
    device: torch.device,
    on_epoch: Callable[[EpochLog], None] | None = None,
    share: Share = ALONE,
    watched: Watched | None = None,
) -> FitResult:
    """Fit in place until the stopping loss no longer falls; the network ends in eval mode with the best weights.

    Watched rows are logged; they change neither the weights nor when the fit stops.
    Raises TooFewRows without fit or stopping rows, TrainingDiverged if a loss is NaN or infinite.
    """
    if min(len(fit), len(stopping)) < share.size:
        raise TooFewRows(
            "There are too few rows to fit a network.",
            got=f"{len(fit)} fit rows, {len(stopping)} stopping rows",
            expected=f"at least {share.size} of each",
            todo="widen the date range of the splits, or check which rows the filter excluded",
        )
    network.to(device).train()
    fit, stopping = place_rows(fit, share.take(stopping), device)
    criterion = _prepare(Criterion(network, params, device), share)
    optimizer = _AdamW(network, params)
    shuffle = Generator().manual_seed(params.seed)  # on the CPU: the same order on every device
    chance = Generator(device).manual_seed(params.seed + share.rank)
    epochs: list[EpochLog] = []
    best_epoch, best_loss, best_weights = 0, math.inf, network.state_dict()
    for epoch in range(1, params.epochs + 1):
        started = time.perf_counter()
        fit_loss = _run_epoch(criterion, fit, params, optimizer, shuffle, chance, share)
        stopping_loss = measure_loss(network, stopping, share)
        _check_finite(epoch, fit_loss, stopping_loss, params)
        is_best = stopping_loss < best_loss * (1 - params.min_improvement)
        if is_best:
            best_epoch, best_loss = epoch, stopping_loss
            best_weights = {name: weight.clone() for name, weight in network.state_dict().items()}
        seen = watch_rows(network, watched) if watched else (None, None)
        epochs.append(EpochLog(epoch, fit_loss, stopping_loss, is_best, time.perf_counter() - started, *seen))
        if on_epoch is not None:
            on_epoch(epochs[-1])
        if epoch - best_epoch >= params.patience_epochs:
            break
    network.load_state_dict(best_weights)
    network.eval()
    return FitResult(best_epoch, best_loss, tuple(epochs))


def measure_loss(network: Network, rows: Tensor, share: Share = ALONE) -> float:
    """Mean loss over the rows of all processes, given this one's rows (N, D), without random sampling."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        losses = []
        for some in torch.split(rows, EVALUATED_ROWS):
            part = move_rows(some, device)
            losses.append(network.loss(part, part, None).double() * len(part))
        total = torch.stack(losses).sum()
        total, n = share.add(torch.stack([total, torch.full_like(total, len(rows))]))
        return float(total / n)


def watch_rows(network: Network, watched: Watched) -> tuple[float, float]:
    """Precision and recall of labelled rows whose squared error is above WATCHED_QUANTILE of the clean rows' errors.

    Only a picture of how a fit goes: the detector has its own score and threshold. Precision is 0 if nothing is above.
    """
    usual, errors = (_measure_errors(network, rows) for rows in (watched.clean, watched.labelled))
    flagged = errors > usual.quantile(WATCHED_QUANTILE, interpolation="higher")  # (m,)
    hits = int((flagged & watched.is_anomaly).sum())
    return hits / max(int(flagged.sum()), 1), hits / int(watched.is_anomaly.sum())


def _measure_errors(network: Network, rows: Tensor) -> Tensor:
    """The mean squared error of each row (N, D) on the CPU, float64 (N,), without random sampling."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        parts = [move_rows(part, device) for part in torch.split(rows, EVALUATED_ROWS)]
        return torch.cat([(network(part) - part).double().square().mean(dim=1) for part in parts]).cpu()


def _space_out(n: int) -> Tensor:
    """The numbers of up to WATCHED_ROWS evenly spaced rows of n."""
    return torch.arange(0, n, max(-(-n // WATCHED_ROWS), 1))


def place_rows(fit: Tensor, stopping: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Move rows to the GPU if they fit; otherwise they stay in main memory and are copied batch by batch."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if fit.nbytes + stopping.nbytes <= SHARE_OF_GPU * free:
            return fit.to(device), stopping.to(device)
    return fit, stopping


def move_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Move rows to the device; from main memory through pinned pages, so that the copy is asynchronous."""
    if rows.device.type == device.type:
        return rows
    return rows.pin_memory().to(device, non_blocking=True)


def resolve_device(name: Literal["auto", "cpu", "cuda"], devices: int = 1) -> torch.device:
    """The kind of device to compute on: auto uses a GPU if there is one. Raises if there are too few devices.

    On the CPU, several devices are several processes.
    """
    found = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not found and devices == 1):
        return torch.device("cpu")
    if found < devices:
        raise NightjarError(
            "There are fewer GPUs than requested." if found else "No GPU was found.",
            got=f"device {name}, of which torch finds {found}",
            expected=f"{devices}, with a driver and a torch build that supports them",
            todo="set NIGHTJAR_DEVICE to cpu, lower NIGHTJAR_DEVICES, or run it in the gpu work pool",
        )
    return torch.device("cuda")


@contextmanager
def watch_memory(rows: int) -> Iterator[None]:
    """Raise MemoryExhausted if a block that fits on `rows` rows runs out of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _exhausted(rows, error) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch has an error type for GPU memory only
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
def pin_arithmetic(threads: int) -> Iterator[None]:
    """Run a block with exactly this many threads, and on a GPU without TF32.

    Sums round differently when they are split differently; TF32 would keep only three of seven digits.
    """
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


def _prepare(criterion: Criterion, share: Share) -> Callable[[Tensor, Tensor, Generator], Tensor]:
    joined = DistributedDataParallel(criterion) if share.size > 1 else criterion
    return torch.compile(joined) if criterion.is_compiled else joined


class _AdamW:
    """The arithmetic of torch.optim.AdamW, without the class, which imports torch's compiler: a second and 70 MB."""

    def __init__(self, network: Network, params: FitParams) -> None:
        self._network, self._params = network, params
        self._weights: list[Tensor] = list(network.parameters())
        self._means, self._squares = ([torch.zeros_like(weight) for weight in self._weights] for _ in range(2))
        self._steps = [torch.zeros((), device=weight.device) for weight in self._weights]

    def zero_grad(self) -> None:
        """Forget the gradients of the last batch."""
        self._network.zero_grad()

    def step(self) -> None:
        """Update the weights by their gradients."""
        with torch.no_grad():
            adamw(
                self._weights,
                [weight.grad for weight in self._weights if weight.grad is not None],
                self._means,
                self._squares,
                [],
                self._steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self._params.learning_rate,
                weight_decay=self._params.weight_decay,
                eps=1e-8,
                maximize=False,
            )


def _run_epoch(
    criterion: Callable[[Tensor, Tensor, Generator], Tensor],
    fit: Tensor,
    params: FitParams,
    optimizer: "_AdamW",
    shuffle: Generator,
    chance: Generator,
    share: Share,
) -> float:
    total = torch.zeros((), device=chance.device)
    order = torch.randperm(len(fit), generator=shuffle).to(fit.device)  # (N,)
    for batch in torch.split(order, params.batch_size):
        own = share.take(batch)
        # Gradients are averaged over processes, so a mean over fewer rows must have less weight. A process without rows
        # in the batch still takes part, with a row of weight zero, because the others wait for it.
        weight = len(own) * share.size / len(batch)
        target = move_rows(fit[own if len(own) else batch[:1]], chance.device)  # (batch, D)
        x = target
        if params.noise > 0:
            x = target + params.noise * torch.randn(target.shape, generator=chance, device=chance.device)
        optimizer.zero_grad()
        loss = criterion(x, target, chance)
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(own)  # read once per epoch: reading waits for the GPU
    return float(share.add(total)) / len(fit)


def _check_finite(epoch: int, fit_loss: float, stopping_loss: float, params: FitParams) -> None:
    if not (math.isfinite(fit_loss) and math.isfinite(stopping_loss)):
        raise TrainingDiverged(
            "The loss is no longer a finite number.",
            where=f"epoch {epoch}",
            got=f"fit loss {fit_loss}, stopping loss {stopping_loss}",
            expected="finite losses",
            todo=f"lower fit.learning_rate (now {params.learning_rate:g}), or look for extreme values in the fit rows",
        )
