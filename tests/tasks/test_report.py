import dataclasses
import html
import json
import re
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tiny import make_tiny_detector

from tasks import report
from tasks.pages.charts import lay_out_trend
from tasks.pages.sketch import Sketch
from tasks.publish import Night, publish_night
from tasks.report import (
    NO_SKETCH,
    SHOWN_FLAGS,
    SHOWN_GROUPS,
    NightFacts,
    choose_drift,
    render_report,
    show_time,
    summarise_night,
    write_report,
)
from tasks.rows.contract import Contract
from tasks.rows.expectations import Outcome
from tasks.rows.histogram import Histogram
from tasks.rows.params import ScoreParams
from tasks.rows.validation import Validation
from tasks.stores.registry import Version
from tasks.stores.tables import Drift, Finding, PublishedNight

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 2, 4, 5, tzinfo=UTC)
EVIL = "<script>alert('x')</script>"
HISTOGRAM = Histogram((0.01, 0.1, 2.5, 10.0), (5, 900, 3), 2)
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
NO_GROUPS = pd.DataFrame({"grouping": [], "group": [], "score": [], "rank": [], "records": []})


def render(
    flags: pd.DataFrame | None = None,
    histogram: Histogram | None = HISTOGRAM,
    params: ScoreParams = PARAMS,
    groups: pd.DataFrame = NO_GROUPS,
    known: dict[str, Any] | None = None,
    sketch: Sketch = NO_SKETCH,
    **changes,
) -> str:
    flags = make_flags("pay-1", EVIL) if flags is None else flags
    trend = lay_out_trend({DAY: 5}, {DAY: 4.0}, DAY)
    facts = {"cases": {}, "finding": None, "statistics": (), "trend": trend} | (known or {})
    batch = make_batch(**changes)
    flags = flags if "threshold" in flags else flags.assign(threshold=batch.threshold)
    night = NightFacts(batch, flags, groups, **facts)
    return render_report(night, histogram, make_validation(), VERSION, params, BERLIN, sketch)


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
    image = {"column": "photo", "url": "data:image/png;base64,AAAA", "width": 4, "height": 4}
    page = render(sketch=Sketch(images={"pay-1": [image]}), known={"cases": {"pay-1": 3}})
    for tag, attributes in Page(page).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        assert tag != "img" or str(attributes.pop("src")).startswith("data:image/png;base64,")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert tag == "a" and str(value).startswith("#"), (tag, name, value)
            assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", page)


def test_flags_causes_threshold_validation_and_lineage_appear():
    text = " ".join(Page(render()).text.split())
    for shown in (
        "toy, 2026-03-01", "5 of 1,008 records flagged by nightjar-toy version 4", "attempt 2", "2026-03-02 05:05 CET",
        "1,012 rows in", "3 quarantined", "1 excluded", "2 unseen category", "2.5 threshold", "threshold 2.5",
        "pay-1", "10 4.0", "100.00", "75% amount 901.25 , expected 12", f"15% {EVIL} {EVIL} , expected masked",
        "10% other", f"pay-1 {EVIL} 03-01 01:00:00", "event time (Europe/Berlin)",
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
    assert "No rows were scored." in page.text


def test_of_many_flags_the_worst_are_shown_and_the_rest_counted():
    flags = make_flags(*(f"pay-{i}" for i in range(SHOWN_FLAGS + 20)))
    text = Page(render(flags, flagged=len(flags), published=len(flags))).text
    assert f"pay-{SHOWN_FLAGS - 1} " in text
    assert f"pay-{SHOWN_FLAGS} " not in text
    assert "20 more in flagged_anomalies" in text
    assert "exceed the night's cap" not in text


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


NIGHTS = [DAY, DAY + timedelta(days=1), DAY + timedelta(days=3)]


@pytest.fixture
def publish(site, put_validated, tmp_path):
    """Publish a night with the flags r0 and r1 and write its report; returns the page."""
    detector = make_tiny_detector()
    detector.save(tmp_path / "bundle")
    rng = np.random.default_rng(0)

    def publish_and_report(day: date, monitored: bool = True) -> Path:
        n = 30
        times = pd.date_range(day.isoformat(), periods=n, freq="min", tz="UTC")
        rows = {"record_id": [f"r{i}" for i in range(n)], "event_time": times, "at": times, "country": ["DE"] * n}
        put_validated(day, pa.Table.from_pandas(pd.DataFrame(rows | {"amount": rng.normal(size=n)})))
        partition = site.lake.write("scores", "toy", day)
        with partition.part("part-0") as part:
            part.append(pa.table({"record_id": rows["record_id"], "score": rng.random(n) * 5}))
        partition.commit({})
        attempt = site.warehouse.begin_attempt("toy", day, "score", NOW)
        night = make_night(attempt=attempt, batch_date=day)
        flags = make_flags("r0", "r1").assign(entity=["card-7", "card-8"])
        publish_night(site.warehouse, night, flags, NOW, lambda: "i" * 64)
        if monitored:
            statistics = [Drift("", "flag_rate", 0.005, 0.003), Drift("amount", "psi", 0.3, 0.1)]
            finding = Finding("toy", day, attempt, "attack", (f"{EVIL} is new.",), "look now", NOW)
            site.warehouse.replace_drift(finding, statistics)
        validation = dataclasses.replace(make_validation(), batch_date=day)
        path, night = write_report(site, Contract(columns={}), validation, VERSION, tmp_path / "bundle", PARAMS)
        assert len(night.flags) == 2
        return path

    return publish_and_report


def find_links(page: Path) -> list[str]:
    return [str(attributes["href"]) for tag, attributes in Page(page.read_text()).elements if tag == "a"]


def test_nights_link_each_other_and_the_index_lists_them_newest_first(site, publish):
    pages = {day: publish(day) for day in (NIGHTS[0], NIGHTS[2], NIGHTS[1])}
    assert [pages[day] for day in NIGHTS] == [site.reports / f"{day}.html" for day in NIGHTS]
    names = [page.name for page in (pages[day] for day in NIGHTS)]
    cases = ["#case-1", "#case-2"]
    assert find_links(pages[NIGHTS[0]]) == ["index.html", names[1], *cases]
    assert find_links(pages[NIGHTS[1]]) == ["index.html", names[0], names[2], *cases]
    assert find_links(pages[NIGHTS[2]]) == ["index.html", names[1], *cases]
    index = site.reports / "index.html"
    assert find_links(index) == names[::-1]
    expected = "100 false alarms are expected in a night of 1,008 normal rows (95 % of such nights: 59 to 150)."
    assert expected in " ".join(Page(pages[NIGHTS[0]].read_text()).text.split())
    text = " ".join(Page(index.read_text()).text.split())
    assert "toy: 3 nights" in text
    assert "2026-03-04 attack 1,012 3 1,008 5 2 2 4 2026-03-02 attack" in text
    for page in [*pages.values(), index]:
        assert EVIL not in page.read_text()


def test_a_night_that_is_published_while_another_is_reported_stays_in_the_index(site, publish, monkeypatch):
    draw = report.draw_sketch

    def publish_another(*given):
        monkeypatch.setattr(report, "draw_sketch", draw)
        publish(NIGHTS[1])
        return draw(*given)

    monkeypatch.setattr(report, "draw_sketch", publish_another)
    publish(NIGHTS[0])
    assert find_links(site.reports / "index.html") == [f"{day}.html" for day in (NIGHTS[1], NIGHTS[0])]


def test_the_alerts_that_are_shown_are_drawn_behind_however_many_suppressed_flags(site, put_validated):
    ids = [f"r{n:04}" for n in range(4000)]
    times = pd.date_range(DAY.isoformat(), periods=len(ids), freq="s", tz="UTC")
    rows = {"record_id": ids, "event_time": times, "at": times, "country": "DE", "amount": 1.0}
    put_validated(DAY, pa.Table.from_pandas(pd.DataFrame(rows)))
    suppressed = pd.DataFrame({"record_id": ids[:300], "suppressed": [True] * 150 + [False] * 150})
    drawn = report.draw_sample(site.lake, site.lake.get("validated", "toy", DAY), make_tiny_detector(), suppressed)
    alerts = ids[150:300]
    assert {*alerts[:SHOWN_FLAGS]} <= {*drawn["record_id"].to_pylist()}


def test_a_case_has_one_anchor_and_each_of_its_flags_its_number(publish):
    page = Page(publish(DAY).read_text())
    anchors = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert anchors == ["case-1", "case-2"]
    both = Page(render(known={"cases": {"pay-1": 12, EVIL: 12}}))
    assert [attributes["id"] for _, attributes in both.elements if "id" in attributes] == ["case-12"]
    assert [attributes["href"] for tag, attributes in both.elements if tag == "a"] == ["#case-12"] * 2


def test_the_finding_and_the_statistics_beyond_their_bounds_are_on_the_page(publish):
    text = " ".join(Page(publish(DAY).read_text()).text.split())
    assert f"Attack. {EVIL} is new. To do: look now" in text
    assert "2 of 2 statistics are beyond their bound" in text
    assert "amount psi 0.3 0.1 beyond" in text
    assert "2026-03-01: 5 flags, up to 3 is usual" in text
    assert "This night was not monitored." in Page(publish(NIGHTS[1], monitored=False).read_text()).text


def test_the_map_shows_the_rows_of_the_night_and_which_are_flagged(publish):
    page = publish(DAY).read_text()
    assert "Latent map: 30 records of the night, 2 of them flagged" in page
    assert len(page) < 40_000


def test_a_page_links_the_page_of_its_validation_if_this_machine_has_one(site, publish):
    site.validations.mkdir(parents=True)
    (site.validations / "2026-03-01.html").write_text("checked")
    path = publish(DAY)
    [link] = [link for link in find_links(path) if "validation" in link]
    assert (path.parent / link).read_text() == "checked"


def test_statistics_beyond_their_bounds_come_first_then_the_columns_that_changed_most():
    within = [Drift(f"c{n}", "psi", n / 1000, 0.1) for n in range(20)]
    beyond = [Drift("", "flag_rate", 0.2, 0.1), Drift("category a", "canary_recall", 0.2, 0.5)]
    shown = choose_drift([*within, Drift("c1", "null_share", 0.0, 0.1), *beyond])
    assert shown[:2] == beyond
    assert [one.column for one in shown[2:4]] == ["c19", "c18"]
    assert len(shown) == 12


@pytest.mark.parametrize(
    ("hour", "day", "shown"),
    [
        (datetime(2026, 3, 1, 0, 30, tzinfo=UTC), DAY, "03-01 01:30:00"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), date(2026, 10, 25), "10-25 02:30:00 CEST"),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), date(2026, 10, 25), "10-25 02:30:00 CET"),
        (datetime(2026, 3, 29, 1, 30, tzinfo=UTC), date(2026, 3, 29), "03-29 03:30:00 CEST"),
    ],
)
def test_a_time_is_local_and_on_a_day_whose_clocks_change_it_says_which_one_it_is(hour, day, shown):
    assert show_time(hour, day, BERLIN) == shown


def test_groups_by_hour_are_also_a_chart():
    hours = [f"2026-03-01T{hour:02d}:00+01:00" for hour in range(3)]
    groups = pd.DataFrame({"group": hours, "score": [1.0, 2.0, 0.5], "rank": [50.0, 99.5, 1.0], "records": 10})
    groups = groups.assign(grouping="hour", threshold=1.5, flagged=groups["score"] > 1.5)
    page = render(groups=groups)
    assert 'aria-label="mean score by hour"' in page
    assert "01:00: 10 records, mean score 2" in page
    assert "Groups by hour, worst first" in page and "1 above the threshold 1.5" in page
    assert page.count("<b>flagged</b>") == 1
    assert 'aria-label="mean score by hour"' not in render(groups=groups.assign(grouping="shop"))


def test_images_and_marked_texts_are_beside_their_flags():
    image = {"column": EVIL, "url": "data:image/png;base64,AAAA", "width": 4, "height": 4}
    page = render(sketch=Sketch(images={"pay-1": [image]}, texts={"pay-1": [[("a ", False), (EVIL, True)]]}))
    assert page.count("<img ") == page.count("<mark>") == 1
    assert EVIL not in page


def test_flags_carry_the_band_of_their_rank():
    page = Page(render(params=ScoreParams(bands={"all": 0, "upper": 99.5, "topmost": 99.9}))).text
    assert "topmost" in page  # ranks 100 and 99
    assert " all " in page
    assert "upper" not in page


def test_groups_are_shown_worst_first_and_only_where_there_are_any():
    names = [f"{EVIL} {n}" for n in range(SHOWN_GROUPS + 2)]
    ranks = [float("nan")] + [50.0] * (SHOWN_GROUPS + 1)
    groups = pd.DataFrame({"group": names, "score": np.arange(len(names)), "rank": ranks, "records": 1_234})
    groups = groups.assign(grouping=EVIL, threshold=float("nan"), flagged=False)
    page = render(groups=groups)
    assert EVIL not in page
    text = Page(page).text
    assert text.index(f"{EVIL} {SHOWN_GROUPS + 1} ") < text.index(f"{EVIL} 3 ")
    assert "2 more in group_scores" in page
    assert "1,234" in page
    assert "none yet" in render(groups=groups.head(1)) and "No threshold yet" in page
    assert "Groups" not in render()


def test_a_flag_is_compared_with_the_threshold_of_its_segment():
    page = render(make_flags("pay-1", "pay-2").assign(threshold=[5.0, 2.5]))
    assert "<i>2.0 " in page and "<i>1.2 " in page
    assert "pooled: some segments have their own" in page and "pooled" not in render()


def test_a_threshold_of_zero_is_shown_as_any_other():
    page = render(threshold=0.0)
    assert "pay-1" in page
    assert "<i>inf " in page
