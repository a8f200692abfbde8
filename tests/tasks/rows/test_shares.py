import pytest
from scipy.stats import binomtest

from tasks.rows.shares import Share, describe_share, estimate_share


@pytest.mark.parametrize(
    ("hits", "total", "expected"),
    [
        (0, 0, (None, None, None)),
        (0, 10, (0, 0, 0.3085)),  # Clopper and Pearson 1934
        (10, 10, (1, 0.6915, 1)),
        (3, 10, (0.3, 0.0667, 0.6525)),
    ],
)
def test_a_share_comes_with_its_exact_interval(
    hits: int, total: int, expected: tuple[float | None, float | None, float | None]
) -> None:
    found = estimate_share(hits, total)
    assert (found.hits, found.total) == (hits, total)
    for value, wanted in zip((found.share, found.low, found.high), expected, strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted, abs=5e-5))


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 50), (3, 7), (101, 401), (7, 7)])
def test_the_interval_of_a_share_is_exact(hits: int, total: int) -> None:
    found, exact = estimate_share(hits, total), binomtest(hits, total).proportion_ci(method="exact")
    assert (found.share, found.low, found.high) == pytest.approx((hits / total, exact.low, exact.high))
    rest, others = found.rest, estimate_share(total - hits, total)
    assert (rest.hits, rest.share, rest.low, rest.high) == pytest.approx(
        (others.hits, others.share, others.low, others.high)
    )


def test_a_share_of_nothing_is_not_known() -> None:
    assert estimate_share(0, 0).rest == estimate_share(0, 0) == Share(0, 0, None, None, None)
    assert describe_share(estimate_share(0, 0)) == "not known"
