from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from fuzzing import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from models import neighbours
from models.errors import TooFewRows
from models.neighbours import (
    SPACING_RANGE,
    draw_points,
    fit_references,
    score_neighbours,
    share_neighbours,
    spread_points,
)
from models.params import NeighboursParams
from models.records import BLOCK

PARAMS = NeighboursParams(neighbours=4)


def draw(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_scores_agree_with_the_neighbours_of_sklearn() -> None:
    references, points = draw(60, 5), draw(30, 5, seed=1) * 2
    finder = NearestNeighbors(n_neighbors=5).fit(references.double().numpy())
    spacing = finder.kneighbors()[0][:, :4].mean(axis=1)  # without the point itself
    low, high = SPACING_RANGE
    spacing = spacing.clip(low * spacing.mean(), high * spacing.mean())
    fitted = fit_references(references, PARAMS)
    assert np.allclose(fitted.spacing, spacing)
    distances, nearest = finder.kneighbors(points.double().numpy(), n_neighbors=4)
    for power, how in product((0.0, 0.5, 1.0), ("random", "spread")):
        params = PARAMS.model_copy(update={"local_scaling": power, "draw": how})
        expected = distances.mean(axis=1) / spacing[nearest].mean(axis=1) ** power
        assert np.allclose(score_neighbours(points, fitted, params), expected)


@pytest.mark.parametrize("how", ["random", "spread"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("width", "m"), [(1, 5), (3, 7), (13, 257), (61, 1023), (120, 2000)])
@pytest.mark.slow
def test_a_score_is_bitwise_equal_at_any_position_and_with_any_neighbours(
    width: int, m: int, threads: int, how: Literal["random", "spread"]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        params = PARAMS.model_copy(update={"draw": how})
        fitted, row = fit_references(draw(m, width), params), draw(1, width, seed=1)
        alone = torch.zeros(BLOCK, width)
        alone[0] = row
        expected = score_neighbours(alone, fitted, params)[0]
        for beside in (row.expand(BLOCK, width), draw(BLOCK, width, seed=2) * 1e5):
            block = beside.clone()
            positions = [0, 1, 15, 16, 511, 1000, BLOCK - 2, BLOCK - 1]
            block[positions] = row
            for layout in (block, block.T.contiguous().T):  # rows side by side, and slot by slot as the encoder has it
                assert set(score_neighbours(layout, fitted, params)[positions].tolist()) == {float(expected)}
    finally:
        torch.set_num_threads(before)


def test_shares_are_never_negative_and_add_up_to_the_score() -> None:
    fitted, points = fit_references(draw(50, 6), PARAMS), draw(20, 6, seed=1)
    points[:, 2] += 9
    shares, neighbours = share_neighbours(points, fitted, PARAMS)
    scores = score_neighbours(points, fitted, PARAMS)
    assert shares.shape == neighbours.shape == (20, 6) and shares.min() >= 0
    assert torch.allclose(shares.sum(dim=1), scores, rtol=1e-12, atol=0)
    assert (shares.argmax(dim=1) == 2).all()
    nearest = np.argsort(np.linalg.norm(points[:, None] - fitted.points, axis=2), axis=1)[:, :4]
    assert np.allclose(neighbours, fitted.points.numpy()[nearest].mean(axis=1), atol=1e-6)


def test_a_row_that_is_itself_a_reference_many_times_scores_0_without_causes() -> None:
    references = draw(30, 3)
    references[:5] = references[0]
    fitted = fit_references(references, PARAMS)
    assert score_neighbours(references[:1], fitted, PARAMS).item() == 0
    assert not share_neighbours(references[:1], fitted, PARAMS)[0].any()


def test_duplicates_do_not_make_a_small_step_astronomical_and_a_stray_reference_excuses_nothing() -> None:
    references = torch.cat([torch.zeros(50, 2), draw(50, 2) + 10, torch.full((1, 2), 1000.0)])
    spacing = fit_references(references, PARAMS).spacing
    low, high = SPACING_RANGE
    assert np.isclose(spacing.max() / spacing.min(), high / low)
    assert spacing[:50].eq(spacing.min()).all() and spacing[-1] == spacing.max()


def test_equal_references_everywhere_still_give_finite_scores() -> None:
    fitted = fit_references(torch.ones(10, 2), PARAMS)
    assert score_neighbours(torch.tensor([[1.0, 1.0], [4.0, 5.0]]), fitted, PARAMS).tolist() == [0, 5]


def keep(rows: torch.Tensor) -> torch.Tensor:
    """Points that are the rows themselves, in a detector without residuals."""
    return rows


def test_the_references_drawn_are_distinct_rows_that_the_seed_chooses() -> None:
    rows, random = torch.arange(100.0)[:, None], NeighboursParams(references=20)
    for params in (random, random.model_copy(update={"draw": "spread"})):
        drawn = draw_points(rows, rows[:0], keep, params, seed=3)
        assert len(set(drawn.flatten().tolist())) == 20
        assert torch.equal(drawn, draw_points(rows, rows[:0], keep, params, seed=3))
        assert not torch.equal(drawn, draw_points(rows, rows[:0], keep, params, seed=4))
        assert sorted(draw_points(rows[:9], rows[:0], keep, params, seed=3).flatten().tolist()) == list(range(9))


@pytest.mark.parametrize(("rows", "references"), [(4, 100), (50, 4)])
def test_too_few_rows_to_be_neighbours_are_refused(rows: int, references: int) -> None:
    with pytest.raises(TooFewRows, match=r"more than score\.neighbours, which is 4"):
        draw_points(draw(rows, 2), draw(0, 2), keep, NeighboursParams(references=references, neighbours=4), seed=0)


def test_spread_references_hold_a_rare_kind_of_row_that_random_ones_miss() -> None:
    rows = draw(3000, 3)
    rows[:8] += 50
    params = NeighboursParams(references=40)
    found = {
        how: draw_points(rows, rows[:0], keep, params.model_copy(update={"draw": how}), seed=1)
        for how in ("random", "spread")
    }
    assert {how: int((drawn.mean(dim=1) > 25).sum()) for how, drawn in found.items()}["random"] == 0
    assert int((found["spread"].mean(dim=1) > 25).sum()) >= 4
    assert torch.equal(found["spread"][:20], found["random"][:20])  # half of them are drawn as before


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5))
def test_each_spread_point_is_the_farthest_from_all_before_it(seed: int, width: int, first: int) -> None:
    points = draw(40, width, seed)
    chosen = spread_points(points, first, 15).tolist()
    apart = np.linalg.norm(points[:, None].double() - points[None].double(), axis=2)
    assert chosen[:first] == list(range(first)) and len(set(chosen)) == 15
    for n in range(first, 15):
        nearest = apart[:, chosen[:n]].min(axis=1)
        assert np.isclose(nearest[chosen[n]], nearest.max(), rtol=1e-4)


def test_spread_points_that_are_all_equal_are_still_distinct_rows() -> None:
    assert sorted(spread_points(torch.ones(12, 3), 2, 12).tolist()) == list(range(12))


def test_spread_references_also_come_from_the_stopping_rows() -> None:
    rows = torch.arange(100.0)[:, None]
    for how, expected in (("random", set(range(60))), ("spread", set(range(100)))):
        drawn = draw_points(rows[:60], rows[60:], keep, NeighboursParams(draw=how), seed=3)
        assert set(drawn.flatten().int().tolist()) == expected


def draw_table(kind: str, m: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """References (m, W) and points (600, W), some of which are references."""
    references, points = draw(m, width, seed), draw(600, width, seed + 1) * 1.5
    if kind == "few values":
        references, points = references.round(), points.round()
    if kind == "constant":
        references[:, : width // 2] = points[:, : width // 2] = 1
    if kind == "copies":
        references[m // 3 :] = references[torch.arange(m // 3, m) % (m // 3)]
    if kind == "far":
        points *= 1e4
    points[:100] = references[:100]
    return references, points


KINDS = ["usual", "few values", "constant", "copies", "far"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "width"), [(2000, 9), (1563, 40), (2400, 200)])
def test_the_distances_are_those_to_the_nearest_in_float64(kind: str, m: int, width: int) -> None:
    references, points = draw_table(kind, m, width, seed=5)
    exact = torch.cdist(points.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = exact.sort(dim=1).values[:, :5].mean(dim=1)
    for how in ("random", "spread"):
        params = NeighboursParams(draw=how, local_scaling=0)
        found = score_neighbours(points, fit_references(references, params), params)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 if kind != "far" else 0)


@settings(cases(0.15), deadline=None, derandomize=False)
@given(
    # Points have at least two coordinates, a slot and its residual; torch multiplies a single one otherwise.
    st.sampled_from(KINDS), st.integers(2, 2500), st.integers(2, 70), st.integers(1, 12),
    st.sampled_from(["random", "spread"]), st.integers(0, 2**31),
)  # fmt: skip
def test_scores_are_to_the_bit_those_of_sorting_every_product(
    kind: str, m: int, width: int, k: int, how: Literal["random", "spread"], seed: int
) -> None:
    references, points = draw_table(kind, max(m, 3 * k, 100), width, seed)
    params = NeighboursParams(draw=how, neighbours=k)
    fitted, columns = fit_references(references, params), points.T.contiguous()
    halves = references.square().sum(dim=1, keepdim=True) / 2
    closeness = torch.addmm(halves, references, columns, alpha=-1)
    if how == "spread":
        nearest = neighbours._select_lowest(closeness, k).contiguous()
    else:
        nearest = closeness.T.contiguous().topk(k, dim=1, largest=False).indices.T
    distances = (references[nearest].transpose(1, 2).contiguous() - columns).double().square().sum(dim=1).sqrt()
    expected = distances.mean(dim=0) / fitted.spacing[nearest].mean(dim=0).pow(0.5)
    assert torch.equal(score_neighbours(points, fitted, params), expected)
    shares, means = share_neighbours(points, fitted, params)
    assert torch.allclose(shares.sum(dim=1), expected) and torch.equal(means, references[nearest].mean(dim=0))


def test_copies_of_references_count_as_often_as_there_are() -> None:
    references = draw(1500, 30)
    references = torch.cat([references, references[:400], references[:100]])
    exact = torch.cdist(references.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    params = NeighboursParams(neighbours=2, local_scaling=0)
    found = score_neighbours(references, fit_references(references, params), params)
    assert torch.allclose(found, exact.sort(dim=1).values[:, :2].mean(dim=1), atol=1e-6)
    assert found[:100].eq(0).all() and found[400:1500].gt(0).all()


@pytest.mark.parametrize("how", ["random", "spread"])
def test_a_point_that_is_not_a_number_spoils_no_other(how: Literal["random", "spread"]) -> None:
    references, points = draw(1100, 30), draw(300, 30, seed=1)
    fitted = fit_references(references, NeighboursParams(draw=how))
    expected = score_neighbours(points, fitted, NeighboursParams(draw=how))
    points[7, 3], points[11, 0] = torch.nan, torch.inf
    found = score_neighbours(points, fitted, NeighboursParams(draw=how))
    others = [i for i in range(300) if i not in (7, 11)]
    assert torch.equal(found[others], expected[others]) and not found[[7, 11]].isfinite().any()


def test_without_onednn_the_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    references, points = draw(1100, 50), draw(300, 50, seed=1)
    fitted = fit_references(references, NeighboursParams())
    expected = score_neighbours(points, fitted, NeighboursParams())
    monkeypatch.setattr(neighbours, "ONEDNN", None)
    assert torch.allclose(score_neighbours(points, fitted, NeighboursParams()), expected, rtol=1e-9)


def test_params_older_than_draw_keep_their_text_and_so_their_hash() -> None:
    assert "draw" not in NeighboursParams().model_dump()
    assert NeighboursParams(draw="spread").model_dump()["draw"] == "spread"


def test_only_so_many_rows_are_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CANDIDATES", 30)
    rows, seen = torch.arange(100.0)[:, None], []

    def join(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part

    assert len(draw_points(rows, rows[:0], join, NeighboursParams(references=20, draw="spread"), seed=3)) == 20
    assert sum(seen) == 30


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 300), st.booleans())
def test_the_fast_selection_finds_what_sorting_finds(seed: int, k: int, m: int, has_ties: bool) -> None:
    values = draw(max(k, m), 7, seed)
    values = values.round() if has_ties else values
    fast, slow = (values.gather(0, find(values, k)) for find in (neighbours._select_lowest, neighbours._sort_lowest))
    assert torch.equal(fast, slow) and torch.equal(slow, values.sort(dim=0).values[:k])
    chosen = neighbours._select_lowest(values, k)
    assert all(len(set(column.tolist())) == k for column in chosen.T)
