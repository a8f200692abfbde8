import dataclasses
import os
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tasks.errors import LeakageFound, ParamsInvalid, TooFewRows
from tasks.filter import (
    CLEAN_SETS,
    LABEL,
    SETS,
    check_leakage,
    find_outliers,
    prepare_rows,
    read_set,
    split_by_date,
    split_by_fractions,
)
from tasks.ingest import ingest_arrivals
from tasks.rows.params import (
    ByDate,
    EventTime,
    FilterParams,
    IngestParams,
    LabelColumn,
    LeadingFraction,
    RandomFraction,
)
from tasks.rows.sampling import draw_order
from tasks.sources.files import FilesSource
from tasks.sources.kinds import Window

FIRST = date(2026, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(8)]
CUTOFF = DAYS[-1] + timedelta(days=1)
BY_DATE = ByDate(kind="by_date", stopping_days=1, tuning_days=1, test_days=2, calibration_days=2)
LEADING = LeadingFraction(kind="leading_fraction", fit=0.4, stopping=0.1, tuning=0.1, test=0.2)
RANDOM = RandomFraction(kind="random_fraction", seed=3, fit=0.3, stopping=0.1, tuning=0.1, test=0.4)
ROWS = 10  # a day


def make_day(day: date, rows: int = ROWS) -> pa.Table:
    """Rows "DATE/0", "DATE/1", ...: the amount is small, the last row's is not."""
    start = datetime.combine(day, time(), UTC)
    return pa.table(
        {
            "record_id": [f"{day}/{i}" for i in range(rows)],
            "event_time": pa.array([start + timedelta(hours=i) for i in range(rows)], pa.timestamp("us", tz="UTC")),
            "amount": [float(i) if i < rows - 1 else 1e6 for i in range(rows)],
        }
    )


@pytest.fixture
def days(put_validated) -> None:
    for day in DAYS:
        put_validated(day, make_day(day).slice(0, 4), make_day(day).slice(4))


@pytest.fixture
def label(site):
    def add(*records: str, known_at: datetime, label: int = 1) -> None:
        frame = pd.DataFrame({"record_id": records, "label": label, "known_at": known_at})
        site.warehouse.add_labels("toy", frame)

    return add


def read_sets(site, cutoff: date = CUTOFF) -> dict[str, list[str]]:
    return {name: read_set(site.lake, "toy", cutoff, name)["record_id"].to_pylist() for name in SETS}


@pytest.mark.parametrize("splits", [BY_DATE, LEADING, RANDOM], ids=lambda s: s.kind)
def test_five_disjoint_sets_hold_every_row_once(site, days, label, splits):
    label(f"{FIRST}/3", f"{DAYS[5]}/2", f"{DAYS[6]}/1", known_at=datetime(2026, 3, 8, tzinfo=UTC))
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=splits), ["amount"])
    sets = read_sets(site)
    records = [record for rows in sets.values() for record in rows]
    left_out = prepared.excluded["labelled anomalous"]
    assert len(records) == len(set(records)) == len(DAYS) * ROWS - left_out
    assert prepared.rows == {name: len(rows) for name, rows in sets.items()}
    assert all(sets.values())
    clean = pa.concat_tables([read_set(site.lake, "toy", CUTOFF, name) for name in CLEAN_SETS])
    assert 1 not in clean[LABEL].to_pylist()
    assert (prepared.first_date, prepared.trained_through) == (DAYS[0], DAYS[-1])
    assert prepared.data_hash == site.lake.get("clean", "toy", CUTOFF).hash
    assert splits.kind in prepared.split


def test_a_day_that_nothing_is_left_of_counts_for_nothing(site, days, put_validated):
    put_validated(DAYS[-1] + timedelta(days=1))
    prepared = prepare_rows(site, CUTOFF + timedelta(days=1), FilterParams(splits=BY_DATE), [])
    assert (prepared.trained_through, prepared.rows_per_night) == (DAYS[-1], ROWS)


def test_by_date_gives_calibration_the_latest_days_and_fit_the_earliest(site, days):
    prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    found = {name: sorted({record.split("/")[0] for record in rows}) for name, rows in read_sets(site).items()}
    order = ("fit", "stopping", "tuning", "test", "calibration")
    assert [found[name] for name in order] == [
        [str(day) for day in DAYS[a:b]] for a, b in ((0, 2), (2, 3), (3, 4), (4, 6), (6, 8))
    ]


@pytest.mark.slow
def test_a_late_label_changes_training_from_the_next_cutoff_and_never_the_past(site, days):
    params = IngestParams(
        source=FilesSource(kind="files", path="days.csv"),
        record_id="record_id",
        event_time=EventTime(column="event_time"),
        labels=LabelColumn(column="fraud", anomalous=("1",)),
    )
    frame = pd.concat([make_day(day).to_pandas().assign(fraud=0) for day in DAYS], ignore_index=True)
    late = CUTOFF + timedelta(days=1)

    def deliver(arrived: date) -> None:
        path = Path(site.sources) / "days.csv"
        frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
        stamp = datetime.combine(arrived, time(), UTC).timestamp()
        os.utime(path, (stamp, stamp))
        ingest_arrivals(site, params, Window(DAYS[0], DAYS[-1], datetime(2100, 1, 1, tzinfo=UTC)))

    def prepare(cutoff: date) -> str:
        return prepare_rows(site, cutoff, FilterParams(splits=BY_DATE), []).data_hash

    deliver(CUTOFF)
    before, unlabelled = prepare(CUTOFF), prepare(late + timedelta(days=1))
    frame.loc[frame["record_id"] == f"{FIRST}/3", "fraud"] = 1
    deliver(late)
    assert prepare(CUTOFF) == before
    assert f"{FIRST}/3" in read_sets(site)["fit"]
    assert prepare(late + timedelta(days=1)) != unlabelled
    assert f"{FIRST}/3" not in read_sets(site, late + timedelta(days=1))["fit"]


@pytest.mark.parametrize("count", [1, 6])
def test_by_date_needs_a_day_to_fit_on(count):
    with pytest.raises(TooFewRows) as caught:
        split_by_date(DAYS[:count], BY_DATE)
    message = str(caught.value)
    assert f"{count} days" in message
    assert "more than 6: 2 calibration, 2 test, 1 tuning, 1 stopping" in message
    assert "to do:" in message
    assert split_by_date(DAYS[:7], BY_DATE)[DAYS[0]] == "fit"


def test_leading_fraction_takes_rows_in_order_of_event_time_and_shares_out_anomalies(site, days, label):
    anomalies = [f"{DAYS[0]}/{i}" for i in range(6)]
    label(*anomalies, known_at=datetime(2026, 3, 8, tzinfo=UTC))
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=LEADING), [])
    sets = read_sets(site)
    normal = [f"{day}/{i}" for day in DAYS for i in range(ROWS) if f"{day}/{i}" not in anomalies]
    bounds = np.round(np.cumsum([0, 0.4, 0.1, 0.2, 0.1, 0.2]) * len(normal)).astype(int)
    for name, a, b in zip(SETS, bounds, bounds[1:], strict=False):
        assert [r for r in sets[name] if r not in anomalies] == normal[a:b]
    assert [r for r in sets["tuning"] if r in anomalies] == anomalies[:2]
    assert [r for r in sets["test"] if r in anomalies] == anomalies[2:]
    assert prepared.excluded["labelled anomalous"] == 0


def test_of_many_anomalies_the_first_are_kept_in_proportion_to_the_normal_rows():
    is_anomaly = np.arange(200) >= 100
    split = LEADING.model_copy(update={"anomalies_per_normal": 0.5})
    sets = split_by_fractions(np.arange(200.0), is_anomaly, split)
    assert np.flatnonzero(is_anomaly & (sets == "tuning")).tolist() == [100, 101, 102, 103, 104]
    assert np.flatnonzero(is_anomaly & (sets == "test")).tolist() == list(range(133, 143))
    assert np.flatnonzero(~is_anomaly & (sets == "test")).tolist() == list(range(80, 100))


def test_random_fraction_depends_on_ids_and_seed_and_on_nothing_else():
    records = [f"r{i}" for i in range(400)]
    order = draw_order(records, 3)
    assert np.array_equal(draw_order(records[::-1], 3), order[::-1])
    assert not np.array_equal(draw_order(records, 4), order)
    assert ((order >= 0) & (order < 1)).all()
    assert abs(order.mean() - 0.5) < 0.05
    sets = split_by_fractions(order, np.zeros(400, bool), RANDOM)
    assert {name: int((sets == name).sum()) for name in SETS} == dict(zip(SETS, (120, 40, 40, 40, 160), strict=True))


def test_nothing_on_or_after_the_cut_off_is_used(site, days):
    prepared = prepare_rows(site, DAYS[7], FilterParams(splits=BY_DATE), [])
    assert prepared.trained_through == DAYS[6]
    assert not any(str(DAYS[7]) in record for rows in read_sets(site, DAYS[7]).values() for record in rows)


def test_a_label_that_became_known_after_the_cut_off_is_not_used(site, days, label):
    start = datetime.combine(CUTOFF, time(), UTC)
    label(f"{DAYS[0]}/1", known_at=start)
    label(f"{DAYS[0]}/2", known_at=start + timedelta(microseconds=1))
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    assert prepared.excluded["labelled anomalous"] == 1
    fit = read_sets(site)["fit"]
    assert f"{DAYS[0]}/1" not in fit
    assert f"{DAYS[0]}/2" in fit


def test_a_label_taken_back_by_the_cut_off_does_not_exclude(site, days, label):
    label(f"{DAYS[0]}/1", known_at=datetime(2026, 3, 4, tzinfo=UTC))
    label(f"{DAYS[0]}/1", known_at=datetime(2026, 3, 5, tzinfo=UTC), label=0)
    prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    assert f"{DAYS[0]}/1" in read_sets(site)["fit"]


def test_a_verdict_by_the_cut_off_counts_where_no_label_has_arrived(site, days, label):
    early, late = datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 3, 9, 1, tzinfo=UTC)
    label(f"{FIRST}/1", known_at=early, label=0)
    records = [f"{FIRST}/{i}" for i in (1, 2, 3, 4)]
    verdicts = pd.DataFrame({"record_id": records, "verdict": ["anomaly", "anomaly", "normal", "anomaly"]})
    given = verdicts.assign(batch_date=FIRST, reviewer="ada", inclusion=1.0, reviewed_at=[early] * 3 + [late])
    site.warehouse.add_reviews("toy", given)
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    assert prepared.excluded["labelled anomalous"] == 1
    fit = read_set(site.lake, "toy", CUTOFF, "fit").to_pandas().set_index("record_id")[LABEL]
    assert f"{FIRST}/2" not in fit.index
    assert [fit[f"{FIRST}/{i}"] for i in (1, 3, 4)] == [0, 0, -1]


def test_where_dates_are_invented_all_that_is_known_now_counts(site, days, label):
    site, now = dataclasses.replace(site, has_times=False), datetime(2030, 1, 1, tzinfo=UTC)
    label(f"{FIRST}/1", known_at=datetime(2026, 3, 4, tzinfo=UTC), label=0)
    label(f"{FIRST}/1", known_at=now)  # a correction
    given = pd.DataFrame({"record_id": [f"{FIRST}/2", f"{FIRST}/3"], "verdict": ["anomaly", "normal"]})
    site.warehouse.add_reviews("toy", given.assign(batch_date=FIRST, reviewer="ada", inclusion=1.0, reviewed_at=now))
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    assert prepared.excluded["labelled anomalous"] == 2
    fit = read_set(site.lake, "toy", CUTOFF, "fit").to_pandas().set_index("record_id")[LABEL]
    assert not {f"{FIRST}/1", f"{FIRST}/2"} & {*fit.index}
    assert (fit[f"{FIRST}/3"], fit[f"{FIRST}/4"]) == (0, -1)


def test_tuning_and_test_keep_their_anomalies_with_the_label(site, days, label):
    label(f"{DAYS[3]}/4", f"{DAYS[4]}/5", known_at=datetime(2026, 3, 8, tzinfo=UTC))
    prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    for name, record in (("tuning", f"{DAYS[3]}/4"), ("test", f"{DAYS[4]}/5")):
        rows = read_set(site.lake, "toy", CUTOFF, name).to_pandas().set_index("record_id")[LABEL]
        assert rows[rows == 1].index.tolist() == [record]


def test_days_whose_labels_may_still_arrive_are_left_out_and_counted(make_site, days):
    site = make_site(label_delay_days=1)
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE), [])
    assert prepared.trained_through == DAYS[6]
    assert prepared.excluded["not matured at the cut-off"] == ROWS
    with pytest.raises(TooFewRows, match="no matured rows"):
        prepare_rows(make_site(label_delay_days=30), CUTOFF, FilterParams(splits=BY_DATE), [])


def test_a_detector_without_rows_says_so(site):
    with pytest.raises(TooFewRows, match="toy has no matured rows before 2026-03-09"):
        prepare_rows(site, CUTOFF, FilterParams(splits=LEADING), [])


def test_excluded_dates_are_left_out(site, days):
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=LEADING, exclude_dates=(DAYS[0], DAYS[7])), [])
    assert (prepared.first_date, prepared.trained_through) == (DAYS[1], DAYS[6])
    assert not any(str(DAYS[7]) in r or str(DAYS[0]) in r for rows in read_sets(site).values() for r in rows)


def test_trimming_takes_the_outlying_share_of_unlabelled_fit_and_stopping_rows(site, days, label):
    label(f"{DAYS[0]}/{ROWS - 1}", known_at=datetime(2026, 3, 8, tzinfo=UTC), label=0)  # a wild row known to be normal
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE, trim_fraction=0.07), ["amount"])
    assert prepared.excluded["trimmed as suspected"] == int(0.07 * (3 * ROWS - 1)) == 2
    sets = read_sets(site)
    wild = [f"{day}/{ROWS - 1}" for day in DAYS]
    assert wild[0] in sets["fit"]
    assert not {*wild[1:3]} & {*sets["fit"], *sets["stopping"]}
    assert {*wild[6:]} <= {*sets["calibration"]}
    assert prepared.excluded == {"not matured at the cut-off": 0, "labelled anomalous": 0, "trimmed as suspected": 2}
    assert sum(prepared.rows.values()) + sum(prepared.excluded.values()) == len(DAYS) * ROWS


def test_outliers_agree_with_a_ranking_by_robust_z_by_hand():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(60, 3)) * [1, 100, 0.01] + [5, -3, 0]
    numbers[7, 2], numbers[11, 1], numbers[3, 0] = 9, np.nan, np.inf
    distance = []
    for row in numbers:
        total = 0.0
        for column, value in zip(numbers.T, row, strict=True):
            middle = np.nanmedian(column)
            spread = 1.4826 * np.nanmedian(np.abs(column - middle))
            total += 0.0 if np.isnan(value) else min(abs(value - middle) / spread, 10.0) ** 2
        distance.append(total / 3)
    expected = set(np.argsort(distance)[-6:].tolist())
    assert set(np.flatnonzero(find_outliers(numbers, 0.1)).tolist()) == expected
    assert {3, 7} <= expected


def test_a_constant_column_does_not_decide_who_is_outlying():
    numbers = np.column_stack([np.zeros(20), np.arange(20.0)])
    assert np.flatnonzero(find_outliers(numbers, 0.1)).tolist() == [0, 19]
    assert not find_outliers(numbers, 0.0).any()


def test_trimming_without_a_numeric_column_is_refused(site, days):
    with pytest.raises(ParamsInvalid, match="trim_fraction"):
        prepare_rows(site, CUTOFF, FilterParams(splits=BY_DATE, trim_fraction=0.1), [])


def put_clean(site, *tables: tuple[str, pa.Table]):
    """Commit a clean partition as prepare_rows would, of tables by set."""
    partition = site.lake.write("clean", "toy", CUTOFF)
    for name, table in tables:
        with partition.part(name, source=name) as part:
            part.append(table)
    return partition.commit({})


def add_date(table: pa.Table, day: date) -> pa.Table:
    return table.append_column("_batch_date", pa.array([day] * table.num_rows, pa.date32()))


NO_LABELS = pd.DataFrame({"record_id": [], "label": [], "known_at": pd.to_datetime([], utc=True)})


def test_leakage_is_found_where_two_sets_share_a_record(site):
    rows = add_date(make_day(FIRST), FIRST)
    clean = put_clean(site, ("fit", rows.slice(0, 6)), ("test", rows.slice(5)))
    with pytest.raises(LeakageFound, match="1 records in two sets"):
        check_leakage(site.lake, clean, NO_LABELS, site, CUTOFF)
    other = add_date(make_day(FIRST), DAYS[1])  # the same ids on another day are other records
    check_leakage(site.lake, put_clean(site, ("fit", rows), ("test", other)), NO_LABELS, site, CUTOFF)


def test_leakage_is_found_where_a_row_is_not_before_the_cut_off(site):
    clean = put_clean(site, ("fit", add_date(make_day(CUTOFF), CUTOFF)))
    with pytest.raises(LeakageFound, match="on or after the cut-off"):
        check_leakage(site.lake, clean, NO_LABELS, site, CUTOFF)


def test_leakage_is_found_where_a_label_comes_from_the_future(make_site):
    site = make_site("Europe/Berlin")
    clean = put_clean(site, ("fit", add_date(make_day(FIRST), FIRST)))
    start = pd.Timestamp("2026-03-08T23:00:00Z")  # midnight in Berlin
    for known_at, leaks in ((start, False), (start + pd.Timedelta(microseconds=1), True)):
        labels = pd.DataFrame({"record_id": ["x"], "label": [1], "known_at": [known_at]})
        if leaks:
            with pytest.raises(LeakageFound, match="1 labels used before they were known"):
                check_leakage(site.lake, clean, labels, site, CUTOFF)
        else:
            check_leakage(site.lake, clean, labels, site, CUTOFF)


def test_sets_that_leak_are_never_committed(site, days, put_validated):
    put_validated(DAYS[2], pa.concat_tables([make_day(DAYS[2]), make_day(DAYS[2])]))
    with pytest.raises(LeakageFound):
        prepare_rows(site, CUTOFF, FilterParams(splits=RANDOM), [])
    assert site.lake.find("clean", "toy", CUTOFF) is None


def test_a_set_without_rows_is_too_few(site, put_validated):
    put_validated(FIRST, make_day(FIRST, 2))
    with pytest.raises(TooFewRows, match="no rows in at least one set"):
        prepare_rows(site, CUTOFF, FilterParams(splits=LEADING), [])
    assert site.lake.find("clean", "toy", CUTOFF) is None


def test_a_set_that_the_split_leaves_empty_reads_as_an_empty_table(site, days):
    splits = ByDate(kind="by_date", stopping_days=1, tuning_days=0, test_days=0, calibration_days=1)
    prepared = prepare_rows(site, CUTOFF, FilterParams(splits=splits), [])
    assert (prepared.rows["tuning"], prepared.rows["test"]) == (0, 0)
    empty = read_set(site.lake, "toy", CUTOFF, "test")
    assert (empty.num_rows, empty.schema) == (0, read_set(site.lake, "toy", CUTOFF, "fit").schema)


def test_the_same_rows_give_the_same_data_hash(site, days):
    params = FilterParams(splits=RANDOM, trim_fraction=0.1)
    first, second = (prepare_rows(site, CUTOFF, params, ["amount"]) for _ in range(2))
    assert dataclasses.asdict(first) == dataclasses.asdict(second)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: LeadingFraction(kind="leading_fraction", fit=0.6, stopping=0.2, tuning=0.1, test=0.1),
            "must be less than 1",
        ),
        (
            lambda: ByDate(kind="by_date", stopping_days=0, tuning_days=1, test_days=1, calibration_days=1),
            "stopping_days",
        ),
        (lambda: FilterParams(splits=BY_DATE, trim_fraction=0.5), "trim_fraction"),
    ],
)
def test_splits_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValidationError, match=words):
        make()
