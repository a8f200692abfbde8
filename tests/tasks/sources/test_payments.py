"""The simulated feed: repeatable, honest about time, and counted again here by brute force."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from tasks.sources.payments import (
    KINDS,
    MAX_LABEL_DELAY_DAYS,
    PaymentsFile,
    PaymentsSource,
    draw_frauds,
    draw_unseen,
    list_deliveries,
    read_file,
    read_reports,
    read_truth,
)

ZONE = "Europe/Berlin"
FIRST = date(2026, 9, 22)
SOURCE = PaymentsSource(kind="payments", seed=7, rows_per_day=2_000, first_date=FIRST)
DAY = date(2026, 10, 23)  # the month before it, with a late file and a schema surprise, is read once
CHANGES = PaymentsSource(kind="payments", seed=7, rows_per_day=2_000, first_date=date(2026, 3, 1))


def read_dates(first: date, last: date, source: PaymentsSource = SOURCE) -> pd.DataFrame:
    slices = [part for file in list_deliveries(source, ZONE, first, last) for part in read_file(source, ZONE, file)]
    return pd.concat(slices, ignore_index=True)


def find_bad(rows: pd.DataFrame) -> pd.Series:
    bad_amount = ~np.isfinite(rows["amount"]) | (rows["amount"] < 0)
    return bad_amount | rows["country"].isna() | rows["event_time"].isna() | rows["payment_id"].duplicated(keep=False)


def check_aggregates(rows: pd.DataFrame, asked: pd.DataFrame) -> None:
    """A spoilt row hides its true amount, so cards that have one are left out."""
    asked = asked[~asked["card_id"].isin(rows.loc[find_bad(rows), "card_id"])]
    assert len(asked) >= 5
    for row in asked.itertuples():
        own = rows[(rows["card_id"] == row.card_id) & (rows["event_time"] <= row.event_time)]
        for hours in (1, 24):
            recent = own[own["event_time"] > row.event_time - timedelta(hours=hours)]
            assert getattr(row, f"payments_{hours}h") == len(recent)
            assert getattr(row, f"spend_{hours}h") == pytest.approx(recent["amount"].sum())


@pytest.fixture(scope="module")
def month() -> pd.DataFrame:
    return read_dates(FIRST, DAY)


@pytest.fixture(scope="module")
def frauds() -> pd.DataFrame:
    truth = pd.concat([read_truth(SOURCE, ZONE, FIRST + timedelta(days=n)) for n in range(32)])
    labels = pd.concat(read_reports(SOURCE, ZONE, FIRST, DAY))
    return truth.merge(labels, on="record_id", how="outer", validate="one_to_one")


def test_a_date_is_the_same_whatever_was_read_before_it(month: pd.DataFrame) -> None:
    draw_frauds.cache_clear()
    alone = read_dates(DAY, DAY)
    pd.testing.assert_frame_equal(alone, month[-len(alone) :].reset_index(drop=True).drop(columns="wallet"))


def test_another_seed_gives_other_rows() -> None:
    other = SOURCE.model_copy(update={"seed": 8})
    assert not read_dates(FIRST, FIRST, other)["amount"].equals(read_dates(FIRST, FIRST)["amount"])


def test_payment_ids_are_unique_but_for_the_planted_repeats(month: pd.DataFrame) -> None:
    repeats = month["payment_id"].duplicated().sum()
    identical = month.duplicated().sum()
    assert identical == 32
    assert repeats - identical == 32


@pytest.mark.parametrize(("day", "hours"), [(date(2026, 3, 28), 24), (date(2026, 3, 29), 23), (date(2026, 10, 25), 25)])
def test_events_fill_exactly_the_local_day(day: date, hours: int) -> None:
    times = read_dates(day, day, CHANGES)["event_time"].dropna()
    start = pd.Timestamp(day, tz=ZONE)
    assert set(times.dt.tz_convert(ZONE).dt.date) == {day}
    assert times.dt.unit == "us"
    assert times.max() - start > timedelta(hours=hours - 2)
    assert times.max() < start + timedelta(hours=hours)


def test_aggregates_count_the_payment_and_the_past_alone() -> None:
    rows = read_dates(date(2026, 10, 1), date(2026, 10, 2))
    today = rows[rows["event_time"] >= pd.Timestamp("2026-10-02", tz=ZONE)]
    check_aggregates(rows, pd.concat([today.nlargest(20, "payments_1h"), today.nlargest(10, "payments_24h")]))


def test_aggregates_reach_back_over_a_short_day() -> None:
    rows = read_dates(date(2026, 3, 28), date(2026, 3, 30), CHANGES)
    start = pd.Timestamp("2026-03-30", tz=ZONE)
    check_aggregates(rows, rows[rows["event_time"].between(start, start + timedelta(hours=5))].head(20))


def test_terminal_reports_count_the_frauds_reported_by_then(month: pd.DataFrame, frauds: pd.DataFrame) -> None:
    reported = month.merge(frauds, left_on="payment_id", right_on="record_id")
    start = pd.Timestamp(DAY, tz=ZONE)
    today = month[month["event_time"] >= start]
    for row in pd.concat([today.nlargest(30, "terminal_reports_28d"), today.head(20)]).itertuples():
        there = reported[(reported["terminal_id"] == row.terminal_id) & (reported["known_at"] <= row.event_time)]
        assert row.terminal_reports_28d == (there["event_time"] > row.event_time - timedelta(days=28)).sum()
    assert today["terminal_reports_28d"].max() > 1


def test_every_fraud_is_reported_after_it_happened_and_within_the_delay(
    month: pd.DataFrame, frauds: pd.DataFrame
) -> None:
    happened = frauds.merge(month[~find_bad(month)], left_on="record_id", right_on="payment_id", validate="one_to_one")
    delay = happened["known_at"] - happened["event_time"]
    assert len(happened) == len(frauds)
    assert frauds["label"].eq(1).all()
    assert frauds["kind"].notna().all()
    assert delay.between(timedelta(days=1), timedelta(days=MAX_LABEL_DELAY_DAYS)).all()


def test_about_half_a_percent_is_fraud_and_a_week_holds_all_kinds(month: pd.DataFrame, frauds: pd.DataFrame) -> None:
    assert 0.003 < len(frauds) / len(month) < 0.008
    week = pd.concat([read_truth(SOURCE, ZONE, FIRST + timedelta(days=n)) for n in range(7)])
    assert set(week["kind"]) == set(KINDS)


def test_fraud_rows_are_never_spoilt(month: pd.DataFrame, frauds: pd.DataFrame) -> None:
    assert not set(month.loc[find_bad(month), "payment_id"]) & set(frauds["record_id"])


@pytest.mark.parametrize("n", range(3))
def test_each_day_has_a_few_bad_rows(n: int) -> None:
    rows = read_dates(FIRST + timedelta(days=n), FIRST + timedelta(days=n))
    assert rows["amount"].isna().sum() == 1
    assert np.isinf(rows["amount"]).sum() == 1
    assert (rows["amount"] < 0).sum() == 1
    assert rows["country"].isna().sum() == 1
    assert rows["event_time"].isna().sum() == 1
    assert find_bad(rows).mean() < 0.01


def test_a_late_file_brings_the_missing_rows_two_days_later() -> None:
    normal, late = list_deliveries(SOURCE, ZONE, date(2026, 11, 14), date(2026, 11, 20))[3:5]
    assert (normal.batch_date, late.batch_date) == (date(2026, 11, 17), date(2026, 11, 17))
    assert late.name.endswith("late")
    assert late.arrives_at - normal.arrives_at == timedelta(days=2)
    early, missing = (pd.concat(read_file(SOURCE, ZONE, file)) for file in (normal, late))
    assert 0.01 < len(missing) / len(early) < 0.05
    assert not set(early["payment_id"]) & set(missing["payment_id"])


def test_files_arrive_at_two_in_the_local_morning() -> None:
    [file] = list_deliveries(SOURCE, ZONE, FIRST, FIRST)
    assert file == PaymentsFile("payments-2026-09-22", FIRST, datetime(2026, 9, 23, 0, 0, tzinfo=UTC))
    assert file.arrives_at.astimezone(ZoneInfo(ZONE)).hour == 2


def test_one_file_of_the_week_has_a_column_more() -> None:
    files = list_deliveries(SOURCE, ZONE, date(2026, 11, 14), date(2026, 11, 20))
    surprised = [file.name for file in files if "wallet" in next(read_file(SOURCE, ZONE, file))]
    assert surprised == ["payments-2026-11-19"]


def test_unseen_values_appear_on_some_later_dates(month: pd.DataFrame) -> None:
    dates = [date(2026, 10, 27) + timedelta(days=n) for n in range(25)]
    unseen = [day for day in dates if draw_unseen(SOURCE, day)]
    assert 1 <= len(unseen) <= 10
    column, value = draw_unseen(SOURCE, unseen[0]) or ("", "")
    assert value not in set(month[column])
    assert (read_dates(unseen[0], unseen[0])[column] == value).sum() == 1


def test_nothing_exists_before_the_first_date() -> None:
    before = FIRST - timedelta(days=1)
    assert list_deliveries(SOURCE, ZONE, before - timedelta(days=9), before) == []
    assert list(read_reports(SOURCE, ZONE, before, before)) == []
    assert read_truth(SOURCE, ZONE, before).empty
    assert (read_dates(FIRST, FIRST)["terminal_reports_28d"] == 0).all()


def test_a_large_day_comes_in_bounded_slices() -> None:
    source = SOURCE.model_copy(update={"rows_per_day": 10_000_000})
    [file] = list_deliveries(source, ZONE, FIRST, FIRST)
    assert 100_000 < len(next(read_file(source, ZONE, file))) <= 131_072
    assert source.blocks * source.rows_per_block == pytest.approx(10_000_000)


def test_honest_life_holds_more_than_one_percent_of_what_looks_odd(month: pd.DataFrame, frauds: pd.DataFrame) -> None:
    honest = month[~month["payment_id"].isin(frauds["record_id"])]
    odd = {
        "abroad": honest["card_present"] & (honest["km_from_home"] > 500),
        "many in an hour": honest["payments_1h"] >= 6,
        "large for the card": honest["amount_to_mean"] > 5,
        "small and online": ~honest["card_present"] & (honest["amount"] < 6),
        "at a reported terminal": honest["terminal_reports_28d"] >= 2,
    }
    assert {name: share for name, rows in odd.items() if (share := rows.mean()) < 0.02} == {}


def test_an_out_of_range_size_is_refused() -> None:
    with pytest.raises(ValidationError):
        PaymentsSource(kind="payments", seed=7, rows_per_day=10, first_date=FIRST)
