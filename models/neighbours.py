"""Distance to clean reference vectors: a record far from every clean one is anomalous, even if it is rebuilt well.

A record's point is its encoded row followed by the residual of each network, all in the same units: W slots. N
records, m references, k neighbours. Score: mean distance to the k nearest references (Ramaswamy et al. 2000,
doi:10.1145/342009.335437), divided by a power of the spacing around those (local scaling as in Breunig et al. 2000,
doi:10.1145/342009.335388), so that a distance counts more where clean records are close together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from models.errors import TooFewRows
from models.params import NeighboursParams
from models.records import BLOCK

# Limits of a reference's spacing, in mean spacings. Lower: near duplicates a tiny distance would give a huge score.
# Higher: one stray row among the references would hide all anomalies near it.
SPACING_RANGE = (0.1, 3.0)
CACHED = 256  # points whose closeness to all references stays in a processor's cache
GROUP = 10  # references per group in `_select_lowest`
# Groups per value wanted in `_find_lowest`: with fewer values torch's topk takes four times as long for each.
GROUPS = 64
MULTIPLE = 32  # distinct references are filled up to a multiple of this with points at infinity
SAME_SUMS = 192  # up to this width MKL adds in one chain, as oneDNN does: the same bits
NARROW = 24  # below this width products cost little, and `_select_lowest` alone is as fast
FEW = 16  # points; MKL multiplies fewer than 12 in another order
CANDIDATES = 20_000  # rows among which spread references are chosen, to bound memory and time
# oneDNN's product without copies of its operands, as torch.compile calls it; torch has no public name for it.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@dataclass(frozen=True, eq=False)
class Distinct:
    """The u references that differ in point or spacing, as comparing with them needs them.

    negated: float32 (u, W), the points times -1. halves: float32 (u,), half of each square. copies: int64 (u,), the
    number of references that are the same. position: int64 (u,), of one of these.
    """

    negated: Tensor
    halves: Tensor
    copies: Tensor
    position: Tensor


@dataclass(frozen=True, eq=False)
class References:
    """Points of clean rows, float32 (m, W), and the spacing of points around each, float64 (m,)."""

    points: Tensor
    spacing: Tensor

    @cached_property
    def distinct(self) -> Distinct:
        """Computed once, at the first comparison."""
        both = torch.cat([self.points.double(), self.spacing[:, None]], dim=1)
        _, member, copies = torch.unique(both, dim=0, return_inverse=True, return_counts=True)
        position = torch.empty_like(copies).index_copy_(0, member, torch.arange(len(member)))
        position, order = position.sort()  # as drawn: torch's topk is slow where values are in order
        points, copies, more = self.points[position], copies[order], -len(position) % MULTIPLE
        halves = pad(points.square().sum(dim=1) / 2, (0, more), value=torch.inf)
        return Distinct(
            pad(-points, (0, 0, 0, more)), halves, pad(copies, (0, more), value=1), pad(position, (0, more))
        )


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
    unmeasured = References(points, torch.zeros(len(points)))
    for _, offsets in _find_nearest(points, unmeasured, params.neighbours + 1, params.draw == "spread"):
        distances = offsets.double().square_().sum(dim=1).sqrt()  # (k + 1, n)
        parts.append(distances.sort(dim=0).values[1:].mean(dim=0))  # the nearest is the point itself
    spacing = torch.cat(parts)  # (m,)
    mean = float(spacing.mean())
    low, high = SPACING_RANGE
    return References(points, spacing.clamp(low * mean, high * mean) if mean > 0 else torch.ones_like(spacing))


def score_neighbours(points: Tensor, references: References, params: NeighboursParams) -> Tensor:
    """Score of each point (N, W), float64 (N,), never negative; in blocks of BLOCK its bits depend only on itself."""
    parts = []
    for nearest, offsets in _find_nearest(points, references, params.neighbours, params.draw == "spread"):
        distances = offsets.double().square_().sum(dim=1).sqrt()  # (k, n)
        parts.append(distances.mean(dim=0) / _measure_scale(nearest, references, params))
    return torch.cat(parts)


def share_neighbours(points: Tensor, references: References, params: NeighboursParams) -> tuple[Tensor, Tensor]:
    """Split scores by slot, float64 (N, W), adding up to the score; and the mean of the neighbours, float32 (N, W).

    A squared distance is a sum over slots, so a slot's share of the distance is its square over the distance.
    """
    shares, means = [], []
    for nearest, offsets in _find_nearest(points, references, params.neighbours, params.draw == "spread"):
        squared = offsets.double().square_()  # (k, W, n)
        distances = squared.sum(dim=1, keepdim=True).sqrt()  # (k, 1, n)
        by_slot = (squared / torch.where(distances > 0, distances, 1.0)).mean(dim=0)  # (W, n)
        shares.append((by_slot / _measure_scale(nearest, references, params)).T)
        means.append(references.points[nearest].mean(dim=0))
    return torch.cat(shares), torch.cat(means)


def _find_nearest(points: Tensor, references: References, k: int, is_spread: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of the k references nearest to points (N, W), int64 (k, n), and offsets to them (k, W, n).

    In parts of n points, so that the arrays stay in a processor's cache. Products only select the nearest: distances
    come from differences, which do not cancel when a record is close to a reference. For these, as in `Layers`, records
    are columns, so that all of them go through the same additions. The selection by groups finds the same as `settle`,
    which decides where references are equally close.
    """
    is_cpu, given = points.device.type == "cpu", references.points  # (m, W)
    halves = given.square().sum(dim=1, keepdim=True) / 2  # (m, 1)
    is_grouped = is_cpu and (points.shape[1] >= NARROW or not is_spread)
    is_grouped = is_grouped and len(references.distinct.copies) >= 2 * GROUPS * (k + 1)

    def settle(columns: Tensor) -> Tensor:
        closeness = torch.addmm(halves, given, columns, alpha=-1)  # half the squared distance, less a constant: (m, n)
        return (_select_lowest if is_spread else _sort_lowest)(closeness, k)

    for part in torch.split(points, CACHED if is_cpu else len(points)):
        columns = part.T.contiguous()  # (W, n)
        if is_grouped:
            found, is_tied = _find_lowest(part.contiguous(), references.distinct, k)
            if is_tied.any():
                found[is_tied] = settle(pad(columns[:, is_tied], (0, FEW)))[:, :-FEW].T
            nearest = found.T  # (k, n)
        else:
            nearest = settle(columns)
        # Its memory layout decides the last bits of means over it, so bundles without `spread` keep theirs.
        nearest = nearest.contiguous() if is_spread else nearest
        yield nearest, given[nearest].transpose(1, 2).contiguous().sub_(columns)


def _multiply(points: Tensor, negated: Tensor, halves: Tensor) -> Tensor:
    """Closeness (n, m) of points (n, W): half the squared distance to references, less half the square of the point.

    MKL, torch's default, leaves the wide instructions of AMD's processors unused: oneDNN takes half of the time.
    """
    if ONEDNN and points.shape[1] <= SAME_SUMS:
        product: Tensor = ONEDNN(points, negated, halves, "none", [], "")
        return product
    return torch.addmm(halves, points, negated.T)


def _find_lowest(points: Tensor, distinct: Distinct, k: int) -> tuple[Tensor, Tensor]:
    """Positions (n, k) of the k references nearest to points (n, W), nearest first; and if different ones tie (n,).

    The k + 1 nearest lie in the k + 1 groups with the lowest minima.
    """
    closeness, copies = _multiply(points, distinct.negated, distinct.halves), distinct.copies  # (n, u)
    n, u = closeness.shape
    size = 1 << (u // (GROUPS * (k + 1))).bit_length() - 1  # a power of 2 that leaves at least GROUPS per value
    grouped = closeness.view(n, min(size, MULTIPLE), -1)  # (n, size, groups)
    first = grouped.amin(dim=1).topk(k + 1, dim=1, largest=False, sorted=False).indices  # (n, k + 1)
    inside = grouped.gather(2, first[:, None].expand(-1, grouped.shape[1], -1)).flatten(1)  # (n, size (k + 1))
    lowest, order = inside.topk(k + 1, dim=1, largest=False)
    found = first.gather(1, order % (k + 1)) + order // (k + 1) * grouped.shape[2]  # (n, k + 1)
    is_tied = ~(lowest[:, 1:] > lowest[:, :-1]).all(dim=1)  # (n,)
    if copies.amax() > 1:
        upto = copies[found].cumsum(dim=1)
        found = found.gather(1, torch.searchsorted(upto, torch.arange(k).repeat(n, 1), right=True))
    return distinct.position[found[:, :k]], is_tied


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
