import dataclasses
import html
import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.publish import Night, publish_night
from tasks.report import (
    BINS,
    SHOWN_FLAGS,
    SHOWN_GROUPS,
    Histogram,
    count_scores,
    read_night,
    render_report,
    summarise_night,
    write_report,
)
from tasks.rows.expectations import Outcome
from tasks.rows.params import ScoreParams
from tasks.stores.registry import Version
from tasks.stores.tables import PublishedNight
from tasks.validate import Validation

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 5, tzinfo=UTC)
EVIL = "<script>alert('x')</script>"
HISTOGRAM = Histogram((0.01, 0.1, 1.0, 10.0), (5, 900, 3))
LINEAGE = {
    "data_hash": "d" * 64,
    "params_hash": "p1",
    "bundle_hash": "b1",
    "commit": EVIL,
    "trained_through": "2026-02-20",
}
VERSION = Version("nightjar-toy", 4, ("champion",), LINEAGE | {"unrelated": "not shown"})


def make_night(**changes) -> Night:
    night = Night(
        detector="toy", batch_date=DAY, attempt=2, input_hash="i" * 64, rows_in=1_012, quarantined=3, excluded=1,
        scored=1_008, flagged=5, unseen=2, threshold=2.5, model_name="nightjar-toy", model_version=4, scored_at=NOW,
        seconds=1.5, scores=None,
    )  # fmt: skip
    return dataclasses.replace(night, **changes)


def make_batch(published: int = 2, **changes) -> PublishedNight:
    return PublishedNight(**vars(make_night(**changes)), published=published)


BERLIN = ZoneInfo("Europe/Berlin")


def make_flags(*records: str) -> pd.DataFrame:
    n = len(records)
    causes = [
        {"column": "amount", "share": 7.5, "actual": 901.25, "expected": 12.0},
        {"column": EVIL, "share": 1.5, "actual": EVIL, "expected": "masked"},
        {"column": "other", "share": 1.0},
    ]
    return pd.DataFrame(
        {
            "record_id": list(records),
            "event_time": pd.date_range(DAY.isoformat(), periods=n, freq="h", tz="UTC"),
            "score": np.linspace(10, 3, n),
            "percentile_rank": np.linspace(100, 99, n),
            "p_value": np.linspace(0.001, 0.01, n),
            "causes": [json.dumps(causes)] * n,
            "second_stage_probability": np.nan,
            "suppressed": False,
            "suppressed_by": None,
            "entity": [EVIL, *[None] * n][:n],
            "record": [json.dumps({"country": "NL", "amount": 901.25, EVIL: EVIL}), *[None] * n][:n],
        }
    )


def make_validation() -> Validation:
    outcomes = (
        Outcome("expect_a", "amount", f"amount between {EVIL}", "row", "warning", False, "17 rows", 17),
        Outcome("expect_b", "rows", "rows at least 1000", "batch", "critical", True, "1012", 0),
    )
    return Validation(DAY, "i" * 64, 1_012, 1_008, 3, 1, {"bad amount": 3}, (f"columns ignored: {EVIL}",), (), outcomes)


PARAMS = ScoreParams()
NO_GROUPS = pd.DataFrame({"group": [], "score": [], "rank": [], "records": []})


def render(
    flags: pd.DataFrame | None = None,
    histogram: Histogram | None = HISTOGRAM,
    params: ScoreParams = PARAMS,
    groups: pd.DataFrame = NO_GROUPS,
    **changes,
) -> str:
    flags = make_flags("pay-1", EVIL) if flags is None else flags
    return render_report(make_batch(**changes), flags, histogram, make_validation(), VERSION, params, groups, BERLIN)


class Page(HTMLParser):
    """Collects a page's elements and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data} "


def test_what_is_shown_is_escaped():
    page = render()
    assert EVIL not in page
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in page
    assert "script" not in {tag for tag, _ in Page(page).elements}
    assert page.count("&lt;script&gt;") == 1 + 1 + 2 + 2 * 2 + 1 + 1 + 1  # id, entity, values, causes...


def test_the_page_loads_nothing_from_anywhere():
    page = render()
    for tag, attributes in Page(page).elements:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert str(value).startswith("#"), (tag, name, value)
            assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", page)


def test_flags_causes_threshold_validation_and_lineage_appear():
    text = " ".join(Page(render()).text.split())
    for shown in (
        "toy, 2026-03-01", "5 of 1,008 records flagged by nightjar-toy version 4", "attempt 2", "2026-03-02 05:05 CET",
        "1,012 rows in", "3 quarantined", "1 excluded", "2 unseen category", "2.5 threshold", "threshold 2.5",
        "pay-1", "4.0", "100.00", "amount 75% (901.25, expected 12)", f"{EVIL} 15% ({EVIL}, expected masked)",
        "other 10%", f"pay-1 {EVIL} 03-01 01:00:00", "event time (Europe/Berlin)",
        f"country NL, amount 901.25, {EVIL} {EVIL}",
        "broken: 17 rows", "rows at least 1000", "met: 1012", "input hash", "i" * 64, "d" * 64, "b1", "2026-02-20",
    ):  # fmt: skip
        assert shown in text, shown
    assert "not shown" not in text
    assert "3 flags with lower scores exceed the night's cap" in text


def test_suppressed_flags_are_counted_and_only_alerts_are_shown():
    flags = make_flags("pay-1", "pay-2", "pay-3")
    flags = flags.assign(second_stage_probability=[0.91, 0.02, 0.03], suppressed=[False, True, True])
    text = " ".join(Page(render(flags, published=3)).text.split())
    for shown in (
        "5 flagged",
        "1 alerts",
        "2 suppressed",
        "The second stage suppressed 2 flags",
        "Alerts, worst first",
        "0.91",
    ):
        assert shown in text, shown
    assert "pay-1" in text
    assert "pay-2" not in text
    summary = summarise_night(make_batch(published=3), flags, Path("page.html"), BERLIN)
    assert "2 of them suppressed" in summary
    assert "pay-2" not in summary
    assert "suppressed" not in Page(render()).text


def test_a_night_whose_flags_are_all_suppressed_says_so():
    flags = make_flags("pay-1").assign(second_stage_probability=0.01, suppressed=True)
    assert "No alerts." in Page(render(flags, flagged=1, published=1)).text


def test_broken_expectations_come_before_met_ones():
    text = Page(render()).text
    assert text.index("broken") < text.index("met: 1012")


def test_a_quiet_night_says_so():
    page = Page(render(make_flags(), None, flagged=0, published=0))
    assert "No record is above the threshold." in page.text
    assert "svg" not in {tag for tag, _ in page.elements}


def test_of_many_flags_the_worst_are_shown_and_the_rest_counted():
    flags = make_flags(*(f"pay-{i}" for i in range(SHOWN_FLAGS + 20)))
    text = Page(render(flags, flagged=len(flags), published=len(flags))).text
    assert f"pay-{SHOWN_FLAGS - 1} " in text
    assert f"pay-{SHOWN_FLAGS} " not in text
    assert "20 more in flagged_anomalies" in text
    assert "exceed the night's cap" not in text


@pytest.mark.parametrize("scores", [[0.5], [1.0, 1.0], [0.0, 0.0], [0.0, 1e-9, 3.0, 1e6]])
def test_the_histogram_counts_every_row_once(site, scores):
    partition = site.lake.write("scores", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(pa.table({"score": scores}))
    found = count_scores(site.lake, partition.commit({}))
    assert (len(found.edges), len(found.counts), sum(found.counts)) == (BINS + 1, BINS, len(scores))


def test_the_histogram_agrees_with_numpy(site):
    scores = np.exp(np.random.default_rng(0).normal(size=500))
    partition = site.lake.write("scores", "toy", DAY)
    for number, half in enumerate(np.split(scores, 2)):
        with partition.part(f"part-{number}") as part:
            part.append(pa.table({"score": half}))
    found = count_scores(site.lake, partition.commit({}))
    counts, edges = np.histogram(np.log10(scores), BINS)
    assert np.allclose(np.log10(found.edges), edges)
    assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= 1  # a row on an edge may fall to either side


def test_a_batch_without_scores_has_no_histogram(site):
    assert count_scores(site.lake, site.lake.write("scores", "toy", DAY).commit({})) is None


def test_the_summary_counts_rows_and_cannot_break_its_table():
    page = Path("/reports/*toy*/2026-03-01.html")
    text = summarise_night(make_batch(), make_flags("a|b", EVIL, "c", "d", "e", "f"), page, BERLIN)
    assert text.endswith("\n\nReport: /reports/\\*toy\\*/2026-03-01.html\n")
    assert "1,012 rows in = 1,008 scored + 3 quarantined + 1 excluded; 5 flagged above 2.5 by version 4" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "<script" not in text
    assert "amount 75% (901.25, expected 12)" in rows[0]


def test_a_published_night_is_written_next_to_the_others(site):
    partition = site.lake.write("scores", "toy", DAY)
    with partition.part("part-0") as part:
        part.append(pa.table({"record_id": ["a", "b", "c"], "score": [0.5, 1.0, 9.0]}))
    partition.commit({})
    engine = site.warehouse
    attempt = engine.begin_attempt("toy", DAY, "score", NOW)
    publish_night(engine, make_night(attempt=attempt), make_flags("pay-1", EVIL), NOW, lambda: "i" * 64)
    path = write_report(site, *read_night(site, DAY), make_validation(), VERSION, ScoreParams())
    assert path == site.reports / "2026-03-01.html"
    page = path.read_text(encoding="utf-8")
    assert "pay-1" in page
    assert "<svg" in page
    assert EVIL not in page
    assert "href" not in page

    site.validations.mkdir(parents=True)
    (site.validations / "2026-03-01.html").write_text("checked")
    path = write_report(site, *read_night(site, DAY), make_validation(), VERSION, ScoreParams())
    [link] = re.findall(r'href="([^"]+)"', path.read_text(encoding="utf-8"))
    assert (path.parent / link).read_text() == "checked"


def test_flags_carry_the_band_of_their_rank():
    page = Page(render(params=ScoreParams(bands={"all": 0, "upper": 99.5, "topmost": 99.9}))).text
    assert "topmost" in page  # ranks 100 and 99
    assert " all " in page
    assert "upper" not in page


def test_groups_are_shown_worst_first_and_only_where_there_are_any():
    names = [f"{EVIL} {n}" for n in range(SHOWN_GROUPS + 2)]
    ranks = [float("nan")] + [50.0] * (SHOWN_GROUPS + 1)
    groups = pd.DataFrame({"group": names, "score": np.arange(len(names)), "rank": ranks, "records": 1_234})
    page = render(groups=groups)
    assert EVIL not in page
    text = Page(page).text
    assert text.index(f"{EVIL} {SHOWN_GROUPS + 1} ") < text.index(f"{EVIL} 3 ")
    assert "2 more in group_scores" in page
    assert "1,234" in page
    assert "none yet" in render(groups=groups.head(1))
    assert "Groups" not in render()


def test_a_threshold_of_zero_is_shown_as_any_other():
    page = render(threshold=0.0)
    assert "pay-1" in page
    assert '<td class="n">inf</td>' in page
