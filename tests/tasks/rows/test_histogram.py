from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from tasks.rows.histogram import BINS, count_scores
from tasks.stores.lake import Manifest

DAY = date(2026, 3, 1)


def put_scores(site, *parts: list[float]) -> Manifest:
    partition = site.lake.write("scores", "toy", DAY)
    for number, scores in enumerate(parts):
        with partition.part(f"part-{number}") as part:
            part.append(pa.table({"score": pa.array(scores, pa.float64())}))
    return partition.commit({})


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 1.0, 1e-13, 2e6])
@pytest.mark.parametrize("scores", [[0.5], [1.0, 1.0], [0.0, 0.0], [0.0, 1e-9, 3.0, 1e6], [0.7, np.nextafter(0.7, 1)]])
def test_every_row_is_counted_once_and_on_its_side_of_the_threshold(site, scores, threshold):
    found = count_scores(site.lake, put_scores(site, scores), threshold)
    assert (len(found.edges), len(found.counts)) == (BINS + 1, BINS)
    assert sum(found.counts[: found.usual]) == sum(score <= threshold for score in scores)
    assert sum(found.counts[found.usual :]) == sum(score > threshold for score in scores)
    assert list(found.edges) == sorted(found.edges)


@pytest.mark.parametrize("threshold", [0.01, 0.9, 1.7, 12.0, 1e3])
def test_the_counts_agree_with_numpy(site, threshold):
    scores = np.exp(np.random.default_rng(0).normal(size=500))
    found = count_scores(site.lake, put_scores(site, *np.split(scores, 2)), threshold)
    counts, _ = np.histogram(np.log10(scores), np.log10(found.edges))
    assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= 1  # a row on an edge may fall to either side
    assert found.edges[0] == pytest.approx(scores.min())
    assert found.edges[-1] == pytest.approx(scores.max())
    if scores.min() < threshold < scores.max():
        assert found.edges[found.usual] == pytest.approx(threshold)


def test_a_batch_without_scores_has_no_histogram(site):
    assert count_scores(site.lake, put_scores(site), 1.0) is None


def test_rows_with_thresholds_of_their_own_are_drawn_as_multiples_of_these(site):
    scores, limits = np.array([0.5, 3.0, 3.0, 9.0]), np.array([1.0, 1.0, 4.0, 4.0])
    partition = site.lake.write("scores", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(pa.table({"score": scores, "threshold": limits}))
    found = count_scores(site.lake, partition.commit({}), 2.0)
    assert sum(found.counts[: found.usual]) == 2 and sum(found.counts[found.usual :]) == 2
    assert found.edges[found.usual] == pytest.approx(2.0)
    assert (found.edges[0], found.edges[-1]) == pytest.approx((1.0, 6.0))
