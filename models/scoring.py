"""From the networks' residuals to one score per record, and to each column's share of that score.

Input: residual = rebuilt - encoded, float32 (N, D). N rows, F columns, D slots. A higher score is more anomalous.
Every kind is a weighted sum over slots of the squared (or absolute) residual, so shares by column always add up.
Several networks are concatenated, as if each had its own columns and slots, so their scores are averaged.
"""

import torch
from torch import Tensor

from models.params import ResidualParams

# A column's spread counts as at least this share of the mean spread of all columns: a column that was constant in
# fitting is rebuilt almost perfectly, and would otherwise turn its first small change into a huge score.
SPREAD_FLOOR = 0.01


def measure_spreads(residual: Tensor, slots: Tensor, n_columns: int) -> Tensor:
    """Mean over stopping rows of each column's squared residual, summed over slots: float64 (F,), floored, positive."""
    squared = residual.double().square().mean(dim=0)  # (D,)
    spreads = squared.new_zeros(n_columns).index_add_(0, slots, squared)  # (F,)
    return spreads.clamp(min=max(SPREAD_FLOOR * float(spreads.mean()), 1e-12))


def weigh_slots(params: ResidualParams, slots: Tensor, spreads: Tensor) -> Tensor:
    """Weight of each slot in the score, float64 (D,).

    standardised: each column's squared residual is divided by its spread, and columns have equal weight. The spread is
    per column, not per slot, because a rare category has almost no residual to divide by.
    The other kinds: all slots have the same weight, 1 / D.
    """
    if params.kind == "standardised":
        return 1 / (len(spreads) * spreads[slots])
    return torch.full((len(slots),), 1 / len(slots), dtype=torch.float64, device=slots.device)


def score_residuals(residual: Tensor, weights: Tensor, params: ResidualParams) -> Tensor:
    """Score of each row: residual (N, D), overwritten, and weights (D,) of the same type -> (N,)."""
    penalty = residual.abs_() if params.kind == "mean_absolute" else residual.square_()  # (N, D)
    scores = penalty @ weights  # (N,)
    return scores.sqrt() if params.kind == "root_mean_squared" else scores


def share_scores(residual: Tensor, weights: Tensor, units: Tensor, scores: Tensor, params: ResidualParams) -> Tensor:
    """Split scores (N,) by unit, given weights float64 (D,) and the unit of each slot (D,) -> float64 (N, U).

    Shares are never negative, and a row's shares add up to its score.
    """
    exact = residual.double()
    by_slot = (exact.abs() if params.kind == "mean_absolute" else exact.square()) * weights  # (N, D)
    n_units = int(units.max()) + 1
    by_unit = by_slot.new_zeros(len(by_slot), n_units).index_add_(1, units, by_slot)  # (N, U)
    total = by_unit.sum(dim=1, keepdim=True)  # (N, 1)
    return by_unit / torch.where(total > 0, total, 1.0) * scores.double()[:, None]
