import re
from datetime import date, timedelta

import numpy as np
import pytest

from tasks.pages.charts import lay_out_histogram, lay_out_hours, lay_out_points, lay_out_trend
from tasks.pages.validation import ENVIRONMENT
from tasks.rows.describe import Cause
from tasks.rows.histogram import Histogram

DAY = date(2026, 3, 31)


def test_a_histogram_is_logarithmic_and_marks_the_bars_above_the_threshold():
    chart = lay_out_histogram(Histogram((0.01, 0.1, 1.0, 10.0, 100.0), (9, 0, 99, 3), 2), 1.0)
    assert [(bar["x"], bar["width"], bar["flagged"]) for bar in chart["bars"]] == [
        (0.0, 250.0, False),
        (500.0, 250.0, True),
        (750.0, 250.0, True),
    ]
    assert [bar["height"] for bar in chart["bars"]] == [
        100.0,
        200.0,
        pytest.approx(60.2),
    ]  # log10 of 1 + rows, 2 at most
    assert chart["threshold"] == 500.0
    assert chart["ticks"] == [(0.0, "0.01"), (250.0, "0.1"), (500.0, "1"), (750.0, "10"), (1000.0, "100")]


@pytest.mark.parametrize(("threshold", "place"), [(0.0, 0.0), (1e-9, 0.0), (1e9, 1000.0)])
def test_a_threshold_beyond_all_scores_stays_on_the_canvas(threshold, place):
    assert lay_out_histogram(Histogram((1.0, 2.0), (5,), 1), threshold)["threshold"] == place


def test_the_trend_has_a_bar_per_published_night_and_marks_those_above_what_is_usual():
    counts = {DAY: 40, DAY - timedelta(1): 10, DAY - timedelta(29): 20, DAY - timedelta(30): 99, DAY + timedelta(1): 99}
    chart = lay_out_trend(counts, {DAY: 20.0, DAY - timedelta(29): 30.0}, DAY)
    assert [(bar["height"], bar["flagged"]) for bar in chart["bars"]] == [(100, False), (50, False), (200, True)]
    assert [bar["height"] for bar in chart["band"]] == [150, 100]
    assert chart["bars"][-1]["title"] == "2026-03-31: 40 flags, up to 20 is usual"
    assert [text for _, text in chart["grid"]] == ["10", "20", "30", "40"]
    assert lay_out_trend({}, {}, DAY)["bars"] == []


@pytest.mark.parametrize("most", [1, 2, 3, 9, 10, 11, 99, 123, 7_000])
def test_the_grid_has_one_to_five_round_values(most):
    grid = lay_out_trend({DAY: most}, {}, DAY)["grid"]
    assert 1 <= len(grid) <= 5
    assert all(0 < height <= 200 for height, _ in grid)
    assert all(float(text.replace(",", "")).is_integer() for _, text in grid)


def test_hours_are_in_the_order_of_time_also_when_clocks_change():
    hours = ["2026-10-25T02:00+01:00", "2026-10-25T02:00+02:00", "2026-10-25T00:00+02:00"]
    groups = [{"group": hour, "score": n + 1.0, "rank": rank, "records": 5} for n, (hour, rank) in
              enumerate(zip(hours, (99.5, float("nan"), 10.0), strict=True))]  # fmt: skip
    chart = lay_out_hours(groups, 99.0)
    assert [(bar["height"], bar["flagged"]) for bar in chart["bars"]] == [(200, False), (133.3, False), (66.7, True)]
    assert [text for _, text in chart["ticks"]] == ["00", "02", "02"]


def test_points_are_drawn_once_each_and_flags_apart_from_the_others():
    rng = np.random.default_rng(0)
    places = np.vstack([rng.normal(size=(998, 2)), [[1e6, 0.0], [0.0, 0.0]]])
    is_flagged = np.arange(1000) >= 998
    chart = lay_out_points(places, is_flagged)
    assert (chart["rows"], chart["flags"]) == (1000, 2)
    points = {name: re.findall(r"M(\d+) (\d+)h0", chart[name]) for name in ("usual", "flagged")}
    assert len(points["usual"]) == len({*points["usual"]}) > 950
    assert all(0 <= int(x) <= 1000 and 0 <= int(y) <= 400 for x, y in points["usual"])
    (middle, _), (far, _) = sorted((int(x), int(y)) for x, y in points["flagged"])
    assert 400 < middle < 600
    assert far == 1000  # what is far away does not press the others together
    assert lay_out_points(np.zeros((3, 2)), np.zeros(3, bool))["usual"] == "M500 200h0"


def test_bars_of_causes_are_as_wide_as_their_share_and_escaped():
    macro = ENVIRONMENT.get_template("charts.html").module.causes_bars
    page = macro([Cause("<b>", 62, "<i>", "3"), Cause("other", 38)])
    assert 'width="62"' in page and 'width="38"' in page
    assert "&lt;b&gt; <q>&lt;i&gt;</q>, expected 3" in page
    assert page.count("expected") == 1
