"""Scales by entity: how far a number is from what is usual for its own card, host or customer.

In: numbers float64 (K, N) of the K columns that are scaled, log1p where the column takes it, and the hash of each row's
entity. Out: the same numbers as deviations from the entity's own location, in its own spreads. E entities.

Location: the median of an entity's n fit rows. Spread: their median absolute deviation, consistent with a normal one
(Rousseeuw & Croux 1993, doi:10.1080/01621459.1993.10476408), or, where that is 0, the mean absolute one (Iglewicz &
Hoaglin 1993). A short history says little, so both are drawn towards those of all rows (credibility: Bühlmann 1967,
doi:10.1017/S0515036100008989). With W the usual spread within an entity, and B that of the locations of entities:

    own location counts for Z = n / (n + k), the median of all rows for the rest
    own spread counts for Y = n / (n + c): spread^2 = Y own^2 + (1 - Y) W^2 + (1 - Z) B^2

k, c and B come from how far the earlier half of a history agrees with its later one. Where entities differ much, k is
small: few rows show where one of them lies. Where they are alike, k is large, and all have the same scale. c is at
least `minimum`. The last term is the uncertainty of a location; for an unknown entity it counts in full.
"""

import math

import torch
from torch import Tensor, nn

NO_ENTITY = 0  # in place of a hash; also of padding
# A spread counts as at least this share of the usual one within an entity: where all its values were equal, its first
# small change would otherwise be a huge deviation.
SPREAD_FLOOR, SPREAD_LIMIT = 0.1, 1e6
LEAST = 5  # rows in a half of the histories that show how much entities differ
SMALLEST = 1e-3  # spread whose logarithm is taken
FROM_MEDIAN, FROM_MEAN = 1.4826, math.sqrt(math.pi / 2)  # from absolute deviations to a normal standard deviation


class EntityScales(nn.Module):
    """Location and spread of all rows, and relative to them those of each entity, found by its hash.

    hashes: int64 (E,), sorted. location, spread: float64 (K,). shifts, ratios: float32 (E + 1, K), in spreads of all
    rows; the last row is for entities that are unknown or missing. 8 + 8 K bytes per entity.
    """

    hashes: Tensor
    location: Tensor
    spread: Tensor
    shifts: Tensor
    ratios: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(columns, dtype=torch.float64))
        self.make_room(0)

    def make_room(self, entities: int) -> None:
        """Make room for this many entities, all unknown until they are fitted or loaded."""
        self.register_buffer("hashes", torch.zeros(entities, dtype=torch.int64))
        self.register_buffer("shifts", torch.zeros(entities + 1, len(self.location)))
        self.register_buffer("ratios", torch.ones(entities + 1, len(self.location)))

    def fit(self, numbers: Tensor, entities: Tensor, minimum: Tensor) -> None:
        """Measure the fit rows (K, N), NaN if missing, by their entities (N,). minimum (K,): see the module."""
        known = entities != NO_ENTITY
        hashes, groups = torch.unique(entities[known], return_inverse=True)  # sorted
        self.make_room(len(hashes))
        self.hashes.copy_(hashes)
        for column, values in enumerate(numbers):
            location, spread = _measure_all(values)
            self.location[column], self.spread[column] = location, spread
            own = (values[known] - location) / spread
            shifts, ratios = weigh_histories(own, groups, len(hashes), int(minimum[column]))
            self.shifts[:-1, column], self.ratios[:, column] = shifts, ratios

    def find(self, entities: Tensor) -> Tensor:
        """The place of each entity (N,) in shifts and ratios: the last one if it is unknown or missing."""
        if not len(self.hashes):
            return torch.zeros_like(entities)
        places = torch.searchsorted(self.hashes, entities).clamp_(max=len(self.hashes) - 1)
        return torch.where(self.hashes[places] == entities, places, len(self.hashes))

    def scale(self, numbers: Tensor, entities: Tensor) -> Tensor:
        """Numbers (K, N) of entities (N,) as deviations from their own location, in their own spreads."""
        places = self.find(entities)
        deviations = (numbers - self.location[:, None]) / self.spread[:, None]
        return (deviations - self.shifts[places].T) / self.ratios[places].T

    def restore(self, deviations: Tensor, entities: Tensor) -> Tensor:
        """The inverse of `scale`."""
        places = self.find(entities)
        shared = deviations * self.ratios[places].T + self.shifts[places].T
        return shared * self.spread[:, None] + self.location[:, None]


def weigh_histories(values: Tensor, groups: Tensor, number: int, minimum: int) -> tuple[Tensor, Tensor]:
    """Shifts, float64 (E,), and ratios, (E + 1,), from the values (N,) of entities numbered by groups (N,).

    See the module, whose letters these are; number: E.
    """
    n, location, spread = measure_groups(values, groups, number)
    within, between, k, c = 1.0, 0.0, float(minimum), float(minimum)
    if (is_long := n >= 2 * LEAST).any():
        locations, spreads = (found[is_long] for found in _measure_halves(values, groups, number))
        within = _find_usual(n[is_long], spread[is_long]) ** 2
        between, k = _compare_halves(n[is_long], locations)
        c = max(c, _compare_halves(n[is_long], spreads.clamp(min=SMALLEST).log())[1])
    z, y = n / (n + k).clamp(min=1), n / (n + c)  # 0 without rows
    known = y * spread.square() + (1 - y) * within + (1 - z) * between
    squared = torch.cat([known, known.new_tensor([within + between])])
    return z * location, squared.sqrt().clamp(SPREAD_FLOOR * (math.sqrt(within) or 1), SPREAD_LIMIT)


def measure_groups(values: Tensor, groups: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, median and spread, each float64 (number,), of the values (N,) of each group (N,), without NaN.

    A group without values has the median and the spread 0. The median of an even number is the lower one.
    """
    is_there = ~values.isnan()
    values, groups = values[is_there], groups[is_there]
    n = torch.bincount(groups, minlength=number)
    median = _take_medians(values, groups, n)
    deviations = (values - median[groups]).abs_().nan_to_num_()
    spread = FROM_MEDIAN * _take_medians(deviations, groups, n)
    mean = deviations.new_zeros(number).index_add_(0, groups, deviations / n[groups])
    return n.double(), median, torch.where(spread > 0, spread, FROM_MEAN * mean)


def _measure_all(values: Tensor) -> tuple[float, float]:
    """Median and spread of values (N,), without NaN; 0 and 1 if there are none or all are equal."""
    location = values.nanmedian().nan_to_num()
    deviations = (values - location).abs_()
    spread = FROM_MEDIAN * float(deviations.nanmedian()) or FROM_MEAN * float(deviations.nanmean())
    return float(location), spread if 0 < spread < math.inf else 1.0


def _measure_halves(values: Tensor, groups: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Locations and spreads, (number, 2), of the earlier and the later half of each group's values, without NaN."""
    is_there = ~values.isnan()
    values, groups = values[is_there], groups[is_there]
    n = torch.bincount(groups, minlength=number)
    order = groups.argsort(stable=True)
    owner = groups[order]
    place = torch.arange(len(order)) - (n.cumsum(0) - n)[owner]
    halves = torch.empty_like(groups)
    halves[order] = 2 * owner + (2 * place >= n[owner])
    _, locations, spreads = measure_groups(values, halves, 2 * number)
    return locations.view(-1, 2), spreads.view(-1, 2)


def _find_usual(n: Tensor, spreads: Tensor) -> float:
    """The median of the spreads (E,), each weighted by the number of its entity's rows."""
    ordered, order = spreads.sort()
    rows = n[order].cumsum(0)
    return float(ordered[torch.searchsorted(rows, rows[-1] / 2)])


def _compare_halves(n: Tensor, halves: Tensor) -> tuple[float, float]:
    """The variance of entities in what both halves of their histories show, float64 (E, 2), and the constant k.

    What the halves have in common is the entity's own: their covariance. The rest of their variance is chance, so n
    rows show n / (n + k) of an entity. Weighted by the rows n (E,); k is infinite if nothing is in common.
    """
    weight = n[:, None] / n.sum()
    offsets = halves - (weight * halves).sum(dim=0)
    own = float((weight * offsets).T[0] @ offsets[:, 1])
    whole = float((weight * offsets.square()).sum()) / 2
    rows = float(n.mean()) / 2  # of a half
    return max(own, 0.0), rows * max(whole - own, 0.0) / own if own > 0 else math.inf


def _take_medians(values: Tensor, groups: Tensor, n: Tensor) -> Tensor:
    """The lower median of each group of n values, 0 if there are none."""
    by_value = values.argsort()
    order = by_value[groups[by_value].argsort(stable=True)]  # by group, then by value
    middle = n.cumsum(0) - n + (n - 1).clamp(min=0) // 2
    found = values.new_zeros(len(n))
    has_values = n > 0
    found[has_values] = values[order[middle[has_values]]]
    return found
