"""How the model stands: its figures, precision and repeated alerts by night, and what the second stage needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from published import make_flag, publish_flags

from models.params import ReducerLimits
from tasks.on_demand.standing import count_verdicts, find_comparison, keep_comparison, list_needs
from tasks.rows.shares import estimate_share
from tasks.stores.registry import Version
from tasks.stores.site import Site

FIRST, NOW = date(2026, 6, 1), datetime(2026, 7, 2, 4, tzinfo=UTC)  # a Monday
HASHES = "a" * 64, "b" * 64


def publish(site: Site, day: date, entities: Sequence[str | None], suppressed: int = 0) -> None:
    by = ["second_stage"] * suppressed + [None] * len(entities)
    flags = [make_flag(f"{day}-{n}", entity, suppressed_by=by[n]) for n, entity in enumerate(entities)]
    publish_flags(site.warehouse, day, flags, NOW)


def judge(site: Site, day: date, verdicts: str, now: datetime = NOW) -> None:
    """One verdict per flag: a (anomaly), n (normal), u (unresolved), w (withdrawn) or - (none)."""
    words = {"a": "anomaly", "n": "normal", "u": "unresolved", "w": "withdrawn"}
    rows = [
        {"batch_date": day, "record_id": f"{day}-{n}", "verdict": words[letter]}
        for n, letter in enumerate(verdicts)
        if letter != "-"
    ]
    frame = pd.DataFrame(rows).assign(reviewer="kim", reviewed_at=pd.Timestamp(now), inclusion=1.0)
    site.warehouse.add_reviews("toy", frame)


@pytest.fixture
def judged(engine: Any, make_site: Callable[..., Site]) -> Site:
    """Three nights, the first with a suppressed flag; a card returns the day after, another one after 40 days."""
    site = replace(make_site(), warehouse=engine)
    publish(site, FIRST, ["one", "one", "two", "three", None], suppressed=1)
    publish(site, FIRST + timedelta(days=1), ["one", "one", "four"])
    publish(site, FIRST + timedelta(days=40), ["three", "four"])
    judge(site, FIRST, "aanu-")
    judge(site, FIRST + timedelta(days=1), "an-")
    judge(site, FIRST + timedelta(days=1), "w--", NOW + timedelta(hours=1))
    return site


def test_precision_counts_the_alerts_with_a_verdict_by_night(judged: Site) -> None:
    found = count_verdicts(judged)
    first, second, last = found.nights
    assert [night.alerts for night in found.nights] == [4, 3, 2]
    # Of the first night's alerts, one is an anomaly and one normal; the suppressed one and the unresolved one are out.
    assert (first.precision.hits, first.precision.total) == (1, 2)
    assert (second.precision.hits, second.precision.total) == (0, 1)  # the other verdict was withdrawn
    assert last.precision.share is None
    assert (first.false_positives.share, second.false_positives.share) == (0.5, 1.0)
    assert (found.flags, found.confirmed) == (4, 2)  # the suppressed flag is a verdict on a flag, too


def test_an_alert_repeats_if_its_entity_had_one_in_the_thirty_days_before(judged: Site) -> None:
    shares = [(night.repeats.hits, night.repeats.total) for night in count_verdicts(judged).nights]
    assert shares == [(0, 3), (2, 3), (0, 2)]  # an alert without an entity cannot repeat


def test_weeks_and_the_whole_add_up_the_nights(judged: Site) -> None:
    found = count_verdicts(judged)
    assert [(week.batch_date, week.alerts) for week in found.weeks] == [(FIRST, 7), (FIRST + timedelta(days=40), 2)]
    whole = found.whole
    assert whole is not None
    assert (whole.alerts, whole.precision, whole.repeats) == (9, estimate_share(1, 3), estimate_share(2, 8))
    assert found.versions == {1: whole}


def test_without_a_published_night_nothing_is_known(site: Site) -> None:
    found = count_verdicts(site)
    assert (found.nights, found.whole, found.weeks) == ((), None, [])


def test_the_second_stage_says_how_many_verdicts_are_missing(judged: Site) -> None:
    found = count_verdicts(judged)
    flags, confirmed = list_needs(found, ReducerLimits(min_verdicts=10, min_confirmed=5, max_recall_loss=0.1))
    assert (flags.there, flags.needed, flags.missing) == (4, 10, 6)
    assert (confirmed.there, confirmed.needed, confirmed.missing) == (2, 22, 20)  # 0.9 ** 22 < 0.1 < 0.9 ** 21
    assert [need.missing for need in list_needs(replace(found, flags=99, confirmed=99), ReducerLimits())] == [101, 0]


@dataclass(frozen=True)
class Compared:
    """What of a Comparison is kept, and the records that are not."""

    nights: list[date]
    flags: int
    changed: list[str]


def test_the_last_comparison_is_kept_without_records(site: Site) -> None:
    pair = Version("m", 1, (), {"bundle_hash": HASHES[0]}), Version("m", 2, (), {"bundle_hash": HASHES[1]})
    assert find_comparison(site, pair) is None
    keep_comparison(site, pair, Compared([FIRST], 7, ["secret"]), NOW)
    assert find_comparison(site, pair) == {"nights": [str(FIRST)], "flags": 7, "compared_at": NOW}
    assert find_comparison(site, (pair[1], pair[0])) is None
