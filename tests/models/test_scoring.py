from typing import get_args

import numpy as np
import pytest
import torch

from models.params import ResidualParams
from models.scoring import SPREAD_FLOOR, measure_spreads, score_residuals, share_scores, weigh_slots

KINDS = get_args(ResidualParams.model_fields["kind"].annotation)
SLOTS = torch.tensor([1, 0, 2, 2, 2])
RESIDUAL = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.5, 0.2, 0.1])
SPREADS = measure_spreads(RESIDUAL, SLOTS, 3)


def score(kind: str) -> np.ndarray:
    params = ResidualParams(kind=kind)
    return score_residuals(RESIDUAL.clone(), weigh_slots(params, SLOTS, SPREADS).float(), params).numpy()


def test_scores_agree_with_numpy() -> None:
    r = RESIDUAL.double().numpy()
    columns = np.stack([r[:, 1] ** 2, r[:, 0] ** 2, (r[:, 2:] ** 2).sum(axis=1)], axis=1)
    assert np.allclose(score("mean_squared"), (r**2).mean(axis=1))
    assert np.allclose(score("mean_absolute"), np.abs(r).mean(axis=1))
    assert np.allclose(score("root_mean_squared"), np.sqrt((r**2).mean(axis=1)))
    assert np.allclose(score("standardised"), (columns / columns.mean(axis=0)).mean(axis=1))


def test_the_standardised_score_is_1_on_average_over_its_own_stopping_rows() -> None:
    assert np.isclose(score("standardised").mean(), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_to_the_score_and_are_never_negative(kind: str) -> None:
    params = ResidualParams(kind=kind)
    weights, scores = weigh_slots(params, SLOTS, SPREADS), torch.from_numpy(score(kind))
    shares = share_scores(RESIDUAL, weights, SLOTS, scores, params)
    assert shares.shape == (20, 3) and shares.min() >= 0
    assert torch.allclose(shares.sum(dim=1), scores.double(), rtol=1e-12, atol=0)
    penalty = RESIDUAL.double().abs() if kind == "mean_absolute" else RESIDUAL.double().square()
    third = (penalty * weights)[:, 2:].sum(dim=1) / (penalty * weights).sum(dim=1)
    assert torch.allclose(shares[:, 2] / shares.sum(dim=1), third)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_row_scores_0_and_has_no_causes(kind: str) -> None:
    params = ResidualParams(kind=kind)
    weights = weigh_slots(params, SLOTS, SPREADS)
    scores = score_residuals(torch.zeros(1, 5), weights.float(), params)
    assert scores.item() == 0
    assert not share_scores(torch.zeros(1, 5), weights, SLOTS, scores, params).any()


def test_a_column_without_residual_counts_with_a_floor() -> None:
    residual = RESIDUAL.clone()
    residual[:, 1] = 0
    spreads = measure_spreads(residual, SLOTS, 3)
    plain = (residual.double() ** 2).mean(dim=0)
    assert torch.isclose(spreads[0], SPREAD_FLOOR * plain.sum() / 3)
    assert torch.isclose(spreads[2], plain[2:].sum())
    assert measure_spreads(torch.zeros(4, 5), SLOTS, 3).min() > 0
