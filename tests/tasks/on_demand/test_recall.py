"""The recall that a blind sample shows: against an independent calculation, and its interval against the truth."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from published import make_flag, publish_flags
from scipy.stats import binomtest

from tasks.on_demand.queue import next_sample
from tasks.on_demand.recall import estimate_recall
from tasks.review import draw_sample, keep_verdicts
from tasks.rows.record import RecordRule
from tasks.stores.bulk import load_rows
from tasks.stores.site import Site
from tasks.stores.tables import reviews, samples

DAY, NOW = date(2026, 7, 1), datetime(2026, 7, 2, 4, tzinfo=UTC)
RULE = RecordRule("card", ("amount",))
FLAGS, ROWS = 30, 400


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A published night of 400 rows, of which 30 are flagged."""
    site = make_site("UTC")
    ids = [f"r{number:03}" for number in range(ROWS)]
    times = pa.array([datetime(2026, 7, 1, 12, tzinfo=UTC)] * ROWS, pa.timestamp("us", "UTC"))
    scores = np.where(np.arange(ROWS) < FLAGS, 1.0, 0.1)
    rows = {"record_id": ids, "event_time": times, "card": ids, "amount": np.arange(ROWS)}
    for zone, table in (("validated", rows), ("scores", {"record_id": ids, "score": scores})):
        partition = site.lake.write(zone, "toy", DAY)
        with partition.part("part-0") as part:
            part.append(pa.table(table))
        partition.commit({})
    flags = [make_flag(one, one) for one in ids[:FLAGS]]
    publish_flags(site.warehouse, DAY, flags, NOW, scored=ROWS)
    return site


def judge(site: Site, is_anomaly: Callable[[int], bool]) -> None:
    """Judge all sampled records, as one person."""
    while sample := next_sample(site, "ann"):
        answer = {name: sample[name] for name in ("batch_date", "record_id", "inclusion", "attempt")}
        verdict = "confirmed" if is_anomaly(int(sample["record_id"][1:])) else "expected"
        keep_verdicts(site, pd.DataFrame([{**answer, "verdict": verdict, "note": ""}]), "ann", NOW)


def test_a_sample_holds_flags_and_rows_below_the_threshold_and_says_nothing_of_the_score(site: Site) -> None:
    assert draw_sample(site, RULE, DAY, 8, NOW) == 16
    assert draw_sample(site, RULE, DAY, 5, NOW) == 16  # the night keeps its first sample
    seen: list[int] = []
    judge(site, lambda number: bool(seen.append(number)))
    assert len(seen) == 16 and sum(number < FLAGS for number in seen) == 8
    reviews = site.warehouse.read_reviews("toy")
    is_flag = reviews["record_id"] < f"r{FLAGS:03}"
    assert set(reviews.loc[is_flag, "inclusion"]) == {8 / FLAGS}
    assert set(reviews.loc[~is_flag, "inclusion"]) == {8 / (ROWS - FLAGS)}


def test_what_is_shown_of_a_sampled_record_is_what_its_night_would_publish(site: Site) -> None:
    draw_sample(site, RULE, DAY, 3, NOW)
    sample = next_sample(site, "ann")
    assert sample is not None
    assert sample["record"] == {"amount": int(sample["record_id"][1:])}
    assert sample["entity"] == sample["record_id"]
    assert not {"score", "causes", "percentile_rank"} & set(sample)


def test_nights_count_by_their_rows_and_not_by_their_samples(make_site: Callable[..., Site]) -> None:
    site = make_site("UTC")
    days = {DAY: (1_000, 20, 5), DAY + timedelta(days=1): (100_000, 2_000, 0)}
    for day, (rows, flagged, _) in days.items():
        publish_flags(site.warehouse, day, [make_flag(f"{day}-{n}", None) for n in range(flagged)], NOW, scored=rows)
    with site.warehouse.begin() as connection:
        for day, (_, _, wrong) in days.items():
            up = [f"{day}-{n}" for n in range(10)]
            down = [f"{day}-below-{n}" for n in range(10)]
            sample = {"detector": "toy", "batch_date": day, "attempt": 1, "inclusion": 0.5, "event_time": NOW}
            load_rows(connection, samples, pd.DataFrame({"record_id": up + down}).assign(**sample, drawn_at=NOW))
            said = ["anomaly"] * 10 + ["anomaly"] * wrong + ["normal"] * (10 - wrong)
            given = {name: sample[name] for name in ("detector", "batch_date", "inclusion")}
            answers = pd.DataFrame({"record_id": up + down, "verdict": said})
            load_rows(connection, reviews, answers.assign(**given, reviewer="ann", reviewed_at=NOW))
    found = estimate_recall(site)
    assert found is not None
    assert found.value == pytest.approx(2020 / (2020 + 980 * 5 / 10))  # pooled, it would be 2020 / (2020 + 98,980 / 4)
    assert found.low < found.value < found.high


def test_recall_is_none_until_both_parts_were_judged_and_then_what_their_shares_say(site: Site) -> None:
    assert estimate_recall(site) is None
    draw_sample(site, RULE, DAY, 10, NOW)
    assert estimate_recall(site) is None
    sample = next_sample(site, "eve")
    assert sample is not None
    one = {"batch_date": DAY, "inclusion": 1.0, "attempt": 1, "verdict": "confirmed", "note": ""}
    keep_verdicts(site, pd.DataFrame([one | {"record_id": sample["record_id"]}]), "eve", NOW)
    assert estimate_recall(site) is None  # of one side only
    judge(site, lambda number: number % 2 == 0 if number < FLAGS else number % 40 == 0)
    found = estimate_recall(site)
    assert found is not None and (found.below, found.above) == (10, 10)
    reviews = site.warehouse.read_reviews("toy")
    is_flag = reviews["record_id"] < f"r{FLAGS:03}"
    is_anomaly = reviews["verdict"] == "anomaly"
    hits = {"up": int(is_anomaly[is_flag].sum()), "down": int(is_anomaly[~is_flag].sum())}
    expected = 30 * hits["up"] / 10 / (30 * hits["up"] / 10 + 370 * hits["down"] / 10)
    assert found.value == pytest.approx(expected)
    up, down = (binomtest(hits[name], 10).proportion_ci(0.975, "exact") for name in ("up", "down"))
    assert found.low == pytest.approx(30 * up.low / (30 * up.low + 370 * down.high))
    assert found.high == pytest.approx(30 * up.high / (30 * up.high + 370 * down.low))
    assert found.low < 15 / (15 + 10) < found.high  # the truth
