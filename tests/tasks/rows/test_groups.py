from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.errors import BatchRejected
from tasks.rows.groups import MISSING, GroupScores, combine_groups, name_hours, rank_groups
from tasks.rows.params import GroupsParams

BERLIN = ZoneInfo("Europe/Berlin")
BY_SHOP = GroupsParams(by="shop", weight="times")


def make_rows(n: int = 200, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Records of two days, of three shops and of none, and their scores."""
    rng = np.random.default_rng(seed)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    times = [start + timedelta(seconds=int(s)) for s in rng.integers(0, 2 * 86_400, n)]
    rows = {
        "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
        "shop": rng.choice(["north", "south", 'it\'s "east"', None], n).tolist(),
        "times": rng.integers(1, 9, n),
    }
    return pa.table(rows), rng.exponential(size=n)


def gather(params: Sequence[GroupsParams], rows: pa.Table, scores: np.ndarray, slice_rows: int = 1000) -> pd.DataFrame:
    """The groups of rows that come as two parts, each in slices."""
    parts = [GroupScores(params, BERLIN), GroupScores(params, BERLIN)]
    for start in range(0, len(scores), slice_rows):
        parts[start > 50].add(rows.slice(start, slice_rows), scores[start : start + slice_rows])
    return combine_groups(pd.concat([part.sums() for part in parts], ignore_index=True))


@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
def test_a_groups_score_is_the_weighted_mean_of_its_records_however_they_are_sliced(slice_rows):
    rows, scores = make_rows()
    found = gather([BY_SHOP], rows, scores, slice_rows).set_index("group")
    frame = rows.to_pandas().assign(score=scores).fillna({"shop": MISSING})
    assert set(found.index) == set(frame["shop"])
    for shop, of_shop in frame.groupby("shop"):
        assert found.loc[shop, "score"] == pytest.approx(np.average(of_shop["score"], weights=of_shop["times"]))
        assert found.loc[shop, "records"] == len(of_shop)


def test_without_weights_all_records_count_alike():
    rows, scores = make_rows()
    found = gather([GroupsParams(by="hour")], rows, scores)
    frame = rows.to_pandas().assign(score=scores)
    frame["hour"] = frame["event_time"].dt.tz_convert(BERLIN).dt.floor("h").map(lambda t: t.isoformat()[:16])
    expected = frame.groupby("hour")["score"].mean()
    assert [group[:16] for group in found["group"]] == expected.index.tolist()
    np.testing.assert_allclose(found["score"], expected)
    assert found["records"].sum() == len(scores)


def test_a_column_of_categories_groups_like_its_texts():
    rows, scores = make_rows()
    encoded = rows.set_column(1, "shop", rows["shop"].dictionary_encode())
    pd.testing.assert_frame_equal(gather([BY_SHOP], encoded, scores, 30), gather([BY_SHOP], rows, scores, 30))


@pytest.mark.parametrize(
    ("zone", "instant", "hour"),
    [
        ("UTC", "2026-03-01T14:59:59.999999+00:00", "2026-03-01T14:00+00:00"),
        ("Europe/Berlin", "2026-03-01T23:30:00+00:00", "2026-03-02T00:00+01:00"),
        ("Asia/Kathmandu", "2026-03-01T14:20:00+00:00", "2026-03-01T20:00+05:45"),
        ("America/New_York", "1969-07-20T20:17:40+00:00", "1969-07-20T16:00-04:00"),
        ("Europe/Berlin", "2026-10-25T00:30:00+00:00", "2026-10-25T02:00+02:00"),  # clocks go back an hour later
        ("Europe/Berlin", "2026-10-25T01:30:00+00:00", "2026-10-25T02:00+01:00"),
    ],
)
def test_hours_are_those_of_the_detectors_clock(zone, instant, hour):
    times = pa.chunked_array([pa.array([datetime.fromisoformat(instant)], pa.timestamp("us", tz="UTC"))])
    names, places = name_hours(times, ZoneInfo(zone))
    assert (names, places.tolist()) == ([hour], [0])


@pytest.mark.parametrize("weight", [0, -1, None, float("nan"), float("inf")])
def test_a_record_without_a_positive_weight_stops_the_batch(weight):
    rows = pa.table({"shop": ["a", "b"], "times": pa.array([1.0, weight], pa.float64())})
    with pytest.raises(BatchRejected, match=r"column times(.|\n)*1 of 2 rows"):
        GroupScores([BY_SHOP], BERLIN).add(rows, np.ones(2))


def make_past(grouping: str, *scores: float) -> pd.DataFrame:
    return pd.DataFrame({"grouping": grouping, "score": scores, "records": 10})


def make_groups(grouping: str, *scores: float, q: float = 0.75) -> pd.DataFrame:
    names = list("abc")[: len(scores)]
    return pd.DataFrame({"grouping": grouping, "q": q, "group": names, "score": scores, "records": 10})


def test_a_rank_is_the_share_of_past_groups_that_scored_less():
    groups = make_groups("shop", 0.5, 2.0, 9.0)
    assert rank_groups(groups, make_past("shop", 3.0, 1.0, 2.0, 2.0))["rank"].tolist() == [0, 25, 100]
    found = rank_groups(groups, make_past("shop"))
    assert found["rank"].isna().all() and found["threshold"].isna().all() and not found["flagged"].any()


def test_a_group_is_flagged_above_the_exact_quantile_of_earlier_groups_of_its_own_grouping():
    groups = pd.concat([make_groups("shop", 2.5, 3.0, 3.5), make_groups("hour", 3.5, q=0.5)], ignore_index=True)
    past = pd.concat([make_past("shop", 3.0, 1.0, 2.0), make_past("hour", 4.0), make_past("", 0.5)], ignore_index=True)
    found = rank_groups(groups, past)
    # Of four past shops, one without a name, the ceil(5 x 0.75) = 4th; of one past hour, the ceil(2 x 0.5) = 1st.
    assert found["threshold"].tolist() == [3.0, 3.0, 3.0, 4.0]
    assert found["flagged"].tolist() == [False, False, True, False]
    assert found["rank"].tolist() == [75, 75, 100, 0]
    assert np.isnan(rank_groups(make_groups("shop", 9.0, q=0.9), past)["threshold"].item())  # of four, the fifth


def test_groups_of_few_records_are_not_compared():
    groups = make_groups("shop", 9.0, 9.0, 0.5).assign(minimum=10, records=[9, 10, 11])
    past = make_past("shop", 1.0, 2.0, 3.0, 99.0).assign(records=[10, 12, 10, 9])
    found = rank_groups(groups, past)
    assert found["flagged"].tolist() == [False, True, False]
    assert found["threshold"].fillna(-1).tolist() == [-1, 3.0, 3.0]
    assert found["rank"].fillna(-1).tolist() == [-1, 100, 0]
    assert "minimum" not in found
    rows, scores = make_rows()
    sums = gather([GroupsParams(by="shop", minimum=60)], rows, scores)
    assert sums["minimum"].tolist() == [60] * 4  # of every group, however small
    hashed = [GroupsParams(by="shop", minimum=n).model_dump(mode="json") for n in (1, 2)]
    assert ["minimum" in one for one in hashed] == [False, True]


def test_each_grouping_has_its_own_groups_in_the_order_of_params():
    rows, scores = make_rows()
    hours = GroupsParams(by="hour", q=0.9)
    found = gather([BY_SHOP, hours], rows, scores, 30)
    assert found["grouping"].unique().tolist() == ["shop", "hour"]
    for params in (BY_SHOP, hours):
        own = found[found["grouping"] == params.by].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, gather([params], rows, scores))


def test_without_params_there_are_no_groups():
    found = gather([], *make_rows())
    assert found.empty
    assert found.columns.tolist() == ["grouping", "q", "minimum", "group", "score", "records"]
