"""Distance to clean reference vectors: a record far from every clean one is anomalous, even if it is rebuilt well.

A record's point is its encoded row followed by the residual of each network, all in the same units: W slots. N
records, m references, k neighbours. Score: mean distance to the k nearest references (Ramaswamy et al. 2000,
doi:10.1145/342009.335437), divided by a power of the spacing around those (local scaling as in Breunig et al. 2000,
doi:10.1145/342009.335388), so that a distance counts more where clean records are close together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from models.errors import TooFewRows
from models.params import NeighboursParams
from models.records import BLOCK

# Limits of a reference's spacing, in mean spacings. Lower: near duplicates a tiny distance would give a huge score.
# Higher: one stray row among the references would hide all anomalies near it.
SPACING_RANGE = (0.1, 3.0)
CACHED = 256  # points whose closeness to all references stays in a processor's cache
GROUP = 10  # references per group in `_select_lowest`
CANDIDATES = 20_000  # rows among which spread references are chosen, to bound memory and time


@dataclass(frozen=True, eq=False)
class References:
    """Points of clean rows, float32 (m, W), and the spacing of points around each, float64 (m,)."""

    points: Tensor
    spacing: Tensor


NO_REFERENCES = References(torch.empty(0, 0), torch.empty(0, dtype=torch.float64))


def draw_points(
    fit: Tensor, stopping: Tensor, join: Callable[[Tensor], Tensor], params: NeighboursParams, seed: int
) -> Tensor:
    """The points (m, W) of the rows (N, D) that become references; all rows if there are not more.

    Spread references also come from the stopping rows: they are clean, and no weight was fitted on them. join: rows to
    points, (n, D) to (n, W). Raises TooFewRows if a reference would have too few neighbours.
    """
    is_spread = params.draw == "spread"
    total = len(fit) + len(stopping) * is_spread
    if min(total, params.references) <= params.neighbours:
        raise TooFewRows(
            "There are too few clean rows for a neighbours score.",
            got=f"{total} fit {'and stopping ' * is_spread}rows, score.references {params.references}",
            expected=f"more than score.neighbours, which is {params.neighbours}",
            todo="widen the date range of the splits, or lower score.neighbours",
        )
    order = torch.randperm(total, generator=Generator().manual_seed(seed))
    if not is_spread:
        return join(fit[order[: params.references]])
    order = order[: max(CANDIDATES, params.references)]
    is_fit = order < len(fit)
    rows = fit.new_empty(len(order), fit.shape[1])
    rows[is_fit], rows[~is_fit] = fit[order[is_fit]], stopping[order[~is_fit] - len(fit)]
    points = torch.cat([join(part) for part in torch.split(rows, BLOCK)])
    random, wanted = params.references - params.references // 2, min(params.references, total)
    return points[spread_points(points, random, wanted)] if wanted < total else points


def spread_points(points: Tensor, first: int, n: int) -> Tensor:
    """Positions (n,) of the first points (N, W), then of the farthest from all before it, again and again.

    Farthest-first traversal (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5).
    """
    centred = points - points.mean(dim=0)  # products cancel less
    squares = centred.square().sum(dim=1)  # (N,)
    nearest = torch.full_like(squares, torch.inf)  # squared distance to the nearest chosen point
    for part in torch.split(centred[:first], BLOCK):
        apart = torch.addmm(squares[:, None], centred, part.T, alpha=-2).add_(part.square().sum(dim=1))
        torch.minimum(nearest, apart.amin(dim=1), out=nearest)
    nearest[:first] = -torch.inf
    chosen = list(range(first))
    while len(chosen) < n:
        chosen.append(int(nearest.argmax()))
        one = centred[chosen[-1]]
        torch.minimum(nearest, torch.addmv(squares, centred, one, alpha=-2).add_(one.dot(one)), out=nearest)
        nearest[chosen[-1]] = -torch.inf
    return torch.tensor(chosen)


def fit_references(points: Tensor, params: NeighboursParams) -> References:
    """Measure the spacing around points (m, W): each one's mean distance to its k nearest others, within limits."""
    points = points.contiguous()  # the layout after loading a bundle; another layout would use another kernel
    parts = []
    for part in torch.split(points, BLOCK):
        _, offsets = _find_nearest(part, points, params.neighbours + 1, params.draw == "spread")
        distances = offsets.double().square().sum(dim=1).sqrt()  # (k + 1, part)
        parts.append(distances.sort(dim=0).values[1:].mean(dim=0))  # the nearest is the point itself
    spacing = torch.cat(parts)  # (m,)
    mean = float(spacing.mean())
    low, high = SPACING_RANGE
    return References(points, spacing.clamp(low * mean, high * mean) if mean > 0 else torch.ones_like(spacing))


def score_neighbours(points: Tensor, references: References, params: NeighboursParams) -> Tensor:
    """Score of each point (N, W), float64 (N,), never negative; in blocks of BLOCK its bits depend only on itself."""
    nearest, offsets = _find_nearest(points, references.points, params.neighbours, params.draw == "spread")
    distances = offsets.double().square().sum(dim=1).sqrt()  # (k, N)
    return distances.mean(dim=0) / _measure_scale(nearest, references, params)


def share_neighbours(points: Tensor, references: References, params: NeighboursParams) -> tuple[Tensor, Tensor]:
    """Split scores by slot, float64 (N, W), adding up to the score; and the mean of the neighbours, float32 (N, W).

    A squared distance is a sum over slots, so a slot's share of the distance is its square over the distance.
    """
    nearest, offsets = _find_nearest(points, references.points, params.neighbours, params.draw == "spread")
    squared = offsets.double().square()  # (k, W, N)
    distances = squared.sum(dim=1, keepdim=True).sqrt()  # (k, 1, N)
    by_slot = (squared / torch.where(distances > 0, distances, 1.0)).mean(dim=0)  # (W, N)
    shares = by_slot / _measure_scale(nearest, references, params)
    return shares.T, references.points[nearest].mean(dim=0)


def _find_nearest(points: Tensor, references: Tensor, k: int, is_fast: bool) -> tuple[Tensor, Tensor]:
    """Positions of the k nearest references (m, W) of points (N, W), int64 (k, N), and offsets to them (k, W, N).

    As in `Layers`, records are columns, so that all of them go through the same additions. Products only select the
    nearest: distances come from differences, which do not cancel when a record is close to a reference. Among
    references that are equally close, the fast selection may choose others than sorting.
    """
    columns = points.T.contiguous()  # (W, N)
    halves = references.square().sum(dim=1, keepdim=True) / 2  # (m, 1)
    # Closeness is half the squared distance, less half the square of the point: (m, N).
    if is_fast:
        parts = torch.split(columns, CACHED if columns.device.type == "cpu" else len(points), dim=1)
        found = [_select_lowest(torch.addmm(halves, references, part.contiguous(), alpha=-1), k) for part in parts]
        nearest = torch.cat(found, dim=1)  # (k, N)
    else:  # its memory layout decides the last bits of means over it, so bundles without `spread` keep it
        nearest = _sort_lowest(torch.addmm(halves, references, columns, alpha=-1), k)  # (k, N)
    return nearest, references[nearest].transpose(1, 2).contiguous().sub_(columns)  # (k, W, N)


def _sort_lowest(values: Tensor, k: int) -> Tensor:
    """Positions (k, N) of the k lowest of values (m, N), ascending."""
    return values.T.contiguous().topk(k, dim=1, largest=False).indices.T


def _select_lowest(values: Tensor, k: int) -> Tensor:
    """The same in a third of the time: the k lowest lie in the k groups with the lowest minima, or in the remainder."""
    m, n = values.shape
    groups = m // GROUP
    if groups <= k:
        return _sort_lowest(values, k)
    lowest = values[: groups * GROUP].view(groups, GROUP, n).amin(dim=1)  # (groups, N)
    first = _sort_lowest(lowest, k).mul_(GROUP)  # (k, N)
    inside = torch.arange(GROUP, device=values.device)[:, None]
    rest = torch.arange(groups * GROUP, m, device=values.device)[:, None].expand(-1, n)
    candidates = torch.cat([(first[:, None] + inside).flatten(0, 1), rest])  # (k GROUP + rest, N)
    return candidates.gather(0, _sort_lowest(values.gather(0, candidates), k))


def _measure_scale(nearest: Tensor, references: References, params: NeighboursParams) -> Tensor:
    return references.spacing[nearest].mean(dim=0).pow(params.local_scaling)  # (N,)
