"""What init decides: labels, days, splits and expectations, on sources that arrive as a stranger would bring them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from models.calibration import rows_for_quantile
from models.params import NeighboursParams
from tasks.errors import NightjarError, ParamsInvalid, SourceInvalid, TooFewRows
from tasks.filter import split_by_fractions
from tasks.onboarding.draft import Draft, Request, draft_detector
from tasks.rows.params import ByDate, EventTime, LeadingFraction, RandomFraction
from tasks.rows.sampling import draw_order
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource
from tasks.sources.sql import SqlSource

FILES = FilesSource(kind="files", path="rows.csv")
QUERY = SqlSource(kind="sql", url="sqlite://", query="select 1")


def make_frame(rows: int = 1000, anomalies: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    is_anomaly = np.isin(np.arange(rows), rng.choice(rows, anomalies, replace=False))
    return pd.DataFrame(
        {"size": rng.normal(5, 1, rows), "weight": rng.normal(70, 9, rows), "fraud": is_anomaly.astype(int)}
    )


def draft(*frames: pd.DataFrame, source: Any = FILES, **request: str) -> Draft:
    tables = [pa.Table.from_pandas(frame, preserve_index=False) for frame in frames]
    arrivals = [
        Arrival(f"{n}.parquet", "1", datetime(2026, 3, 9, tzinfo=UTC), lambda table=table: [table])
        for n, table in enumerate(tables)
    ]
    return draft_detector(source, arrivals, Request(**request))


def refuse(
    *frames: pd.DataFrame, error: type[NightjarError] = SourceInvalid, source: Any = FILES, **request: str
) -> str:
    with pytest.raises(error) as caught:
        draft(*frames, source=source, **request)
    return str(caught.value)


def about(drafted: Draft, what: str) -> str:
    [choice] = [choice for choice in drafted.choices if choice.about == what]
    return f"{choice.what} ({choice.why})"


def with_times(frame: pd.DataFrame, days: float, name: str = "placed_at", since: str = "2026-03-01") -> pd.DataFrame:
    steps = np.arange(len(frame)) * (days / len(frame))
    return frame.assign(**{name: pd.Timestamp(since, tz="UTC") + pd.to_timedelta(steps, unit="D")})


# --- labels ---


def test_the_rarer_value_of_the_label_means_anomalous_and_the_detector_never_reads_it() -> None:
    drafted = draft(make_frame(), label="fraud")
    assert drafted.ingest.labels is not None
    assert drafted.ingest.labels.anomalous == ("1",)
    assert drafted.ingest.labels.normal == ("0",)
    assert drafted.train.columns.names == ("size", "weight")
    assert "fraud" in drafted.contract.ignored
    assert "2.00%" in about(drafted, "label")


def test_a_label_of_many_values_is_refused_with_all_of_them_and_taken_once_normal_is_named() -> None:
    frame = make_frame().assign(fraud=["smurf", "normal.", "neptune", "normal."] * 250)
    message = refuse(frame, label="fraud")
    for part in ("3 values", "'smurf' (250 rows)", "'neptune' (250 rows)", "--normal normal."):
        assert part in message
    drafted = draft(frame, label="fraud", normal="normal.")
    assert drafted.ingest.labels is not None
    assert drafted.ingest.labels.normal == ("normal.",)
    assert "50.00%" in about(drafted, "label")
    assert "'odd'" in refuse(frame, label="fraud", normal="odd")


def test_spellings_of_one_label_are_one_label() -> None:
    frame = make_frame()
    spelt = (
        frame["fraud"].map({0: "0", 1: "1"}).where(np.arange(1000) % 3 > 0, frame["fraud"].map({0: "0.0", 1: "True"}))
    )
    drafted = draft(frame.assign(fraud=spelt.where(np.arange(1000) % 50 > 0)), label="fraud")
    assert drafted.ingest.labels is not None
    assert (drafted.ingest.labels.anomalous, drafted.ingest.labels.normal) == (("1",), ("0",))
    assert "of 980 rows" in about(drafted, "label")


@pytest.mark.parametrize("name", ["label", "Class", "is_phishing", "anomaly", "isFraud", "attack_cat", "Outlier label"])
def test_a_column_that_looks_like_a_label_is_named_unless_it_is_the_label(name: str) -> None:
    frame = make_frame().rename(columns={"fraud": name})
    [note] = [note for note in draft(frame).notes if "looks like a label" in note]
    assert note.startswith(f"{name} looks like a label")
    assert f"--label {name} --force" in note
    assert not [note for note in draft(frame, label=name).notes if "looks like a label" in note]


@pytest.mark.parametrize("name", ["classroom", "size_class_m2", "spamming"])
def test_other_columns_are_not_taken_for_labels(name: str) -> None:
    values = np.random.default_rng(1).normal(size=1000)
    notes = draft(make_frame().drop(columns="fraud").assign(**{name: values})).notes
    assert not [note for note in notes if "looks like a label" in note]


@pytest.mark.parametrize(("most", "kind"), [(30, "categorical"), (700, "left out")])
def test_a_repeated_id_is_not_a_measurement(most: int, kind: str) -> None:
    ids = np.random.default_rng(1).integers(1, most, 2000) ** 3
    [found] = [d for d in draft(make_frame(2000).assign(customer_id=ids)).decisions if d.column == "customer_id"]
    assert found.kind == kind


@pytest.mark.parametrize("name", ["card_id", "user", "customerId", "src_ip", "Host", "account_no", "patient"])
def test_a_column_that_names_whom_rows_are_about_is_the_entity_and_the_learnt_values_are_shown(name: str) -> None:
    frame = make_frame().assign(
        **{name: [f"x{n % 300}" for n in range(1000)], "shop_id": [n % 20 for n in range(1000)]}
    )
    drafted = draft(frame, label="fraud")
    assert drafted.entity == name
    assert about(drafted, "entity") == f"{name} (named like one, with 300 different values in 1,000 rows)"
    assert drafted.show == ("size", "weight", "shop_id")[: len(drafted.show)]
    column = drafted.contract.columns[name]
    assert (column.type, column.nullable) == ("text", True)
    assert name not in drafted.contract.ignored


def test_what_never_repeats_or_is_a_number_or_the_label_is_no_entity() -> None:
    rows = range(1000)
    frame = make_frame().assign(user=[f"u{n}" for n in rows], host_load=np.random.default_rng(1).normal(size=1000))
    drafted = draft(frame.rename(columns={"fraud": "account"}), label="account")
    assert drafted.entity is None
    assert about(drafted, "entity").startswith("none (no column is named like one")
    assert draft(frame, label="fraud", entity="user").entity == "user"
    assert "The column given by --entity does not exist" in refuse(frame, label="fraud", entity="card")


def test_a_column_that_some_files_lack_is_optional_and_a_rename_is_named() -> None:
    frames = [with_times(make_frame(200), 1, since=f"2026-03-{day:02d}").drop(columns="fraud") for day in range(1, 21)]
    renamed = [frame.rename(columns={"weight": "weight_kg"}) if day > 11 else frame for day, frame in enumerate(frames)]
    drafted = draft(*renamed)
    for name in ("weight", "weight_kg"):
        assert (drafted.contract.columns[name].required, drafted.contract.columns[name].nullable) == (False, True)
    assert drafted.contract.columns["size"].required
    first, second = drafted.notes
    assert first == (
        "weight is missing in 8 of 20 files, so it is optional in the contract; where it is missing there is "
        "weight_kg: it looks renamed"
    )
    assert second == "weight_kg is missing in 12 of 20 files, so it is optional in the contract"
    assert draft(*frames).notes == ()


def test_a_label_of_one_value_or_none_or_a_column_that_is_not_there_is_refused() -> None:
    assert "1 values" in refuse(make_frame(anomalies=0), label="fraud")
    assert "no value" in refuse(make_frame().assign(fraud=None), label="fraud")
    assert "size, weight, fraud" in refuse(make_frame(), label="frod")


def test_without_a_label_the_outermost_rows_are_trimmed_and_with_one_none_are() -> None:
    assert draft(make_frame()).filter.trim_fraction == 0.01
    assert draft(make_frame(), label="fraud").filter.trim_fraction == 0
    words = pd.DataFrame({"word": np.random.default_rng(0).choice(["a", "b", "c"], 1000)})
    assert draft(words).filter.trim_fraction == 0


# --- record ids ---


def test_a_column_named_like_an_identifier_and_never_repeated_names_the_records() -> None:
    ids = [f"o-{n}" for n in range(1000)]
    drafted = draft(make_frame().assign(order_id=ids))
    assert drafted.ingest.record_id == "order_id"
    assert draft(make_frame().assign(record_id=ids)).ingest.record_id == "record_id"
    assert draft(make_frame().assign(**{"order_id ": ids})).ingest.record_id == "order_id "
    assert draft(make_frame().assign(order_id=ids[:500] * 2)).ingest.record_id is None
    assert any(e.kwargs["column"] == "duplicated_fraction" for e in drafted.contract.expectations)


def test_a_requested_identifier_that_repeats_and_a_query_without_one_are_refused() -> None:
    frame = make_frame().assign(shop=[f"s{n % 30}" for n in range(1000)])
    assert "97.0%" in refuse(frame, record_id="shop")
    assert "--id" in refuse(frame, source=QUERY)


# --- days ---


def test_rows_without_times_are_dealt_at_random_over_ten_days_and_the_last_is_scored() -> None:
    drafted = draft(make_frame(1005))
    assert drafted.ingest.event_time.days == 10
    assert drafted.nights == 1
    assert drafted.last_date == date(2026, 1, 10)
    assert isinstance(drafted.filter.splits, RandomFraction)
    assert drafted.filter.splits.seed != drafted.ingest.event_time.seed
    assert not [note for note in draft(make_frame().sort_values("fraud"), label="fraud").notes if "sorted" in note]


@pytest.mark.parametrize(
    ("settings", "first"), [({}, 2), ({"skip_lines": 3}, 5), ({"header": ("a", "b", "c")}, 1), (None, None)]
)
def test_rows_without_an_id_have_the_numbers_that_a_spreadsheet_shows(
    settings: dict[str, Any] | None, first: int
) -> None:
    if settings is None:
        assert draft(make_frame().assign(order_id=range(1000))).ingest.first_row is None
    else:
        assert draft(make_frame(), source=FILES.model_copy(update=settings)).ingest.first_row == first


@pytest.mark.parametrize(("days", "nights", "splits"), [(40, 4, ByDate), (8, 1, LeadingFraction)])
def test_an_obvious_time_column_gives_the_days_and_the_splits_follow_time(days: int, nights: int, splits: type) -> None:
    drafted = draft(with_times(make_frame(2000), days))
    assert drafted.ingest.event_time.column == "placed_at"
    assert drafted.nights == nights
    assert isinstance(drafted.filter.splits, splits)
    assert "event_time" in drafted.train.columns.datetime


def test_of_several_time_columns_the_one_with_the_plain_name_is_chosen_and_the_others_are_mentioned() -> None:
    frame = with_times(with_times(make_frame(2000), 20, "shipped"), 20, "timestamp")
    drafted = draft(frame)
    assert drafted.ingest.event_time.column == "timestamp"
    assert "shipped is also possible" in about(drafted, "event time")
    assert "shipped" in drafted.train.columns.datetime
    assert draft(frame, time="shipped").ingest.event_time.column == "shipped"


def test_a_column_with_the_name_of_the_event_time_is_left_out() -> None:
    times = pd.date_range("2026-03-01", periods=1000, freq="15min").astype(str)
    drafted = draft(make_frame().assign(placed_at=times, event_time=np.arange(1000) % 7 + 0.5))
    assert drafted.ingest.event_time.column == "placed_at"
    assert drafted.train.columns.datetime == ("event_time",)  # the hour and weekday of placed_at
    assert "event_time" in drafted.contract.ignored and "event_time" not in drafted.contract.columns


def test_neither_a_date_of_birth_nor_a_time_with_gaps_is_an_event_time() -> None:
    born = [date(1960, 1, 1) + timedelta(days=int(n)) for n in np.random.default_rng(0).integers(0, 15_000, 1000)]
    assert draft(make_frame().assign(born=born)).ingest.event_time.column is None
    gaps = with_times(make_frame(), 20)
    gaps.loc[::50, "placed_at"] = pd.NaT
    assert draft(gaps).ingest.event_time.column is None


def test_a_requested_time_column_may_be_text_or_seconds() -> None:
    texts = with_times(make_frame(), 9)
    texts["placed_at"] = texts["placed_at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    assert draft(texts, time="placed_at").ingest.event_time.column == "placed_at"
    seconds = draft(make_frame().assign(at=np.arange(1000) * 400.0), time="at").ingest.event_time
    assert seconds.seconds_since == datetime(2026, 1, 1, tzinfo=UTC)
    epoch = draft(make_frame().assign(at=1.77e9 + np.arange(1000) * 400.0), time="at").ingest.event_time
    assert epoch.format == "seconds"


def test_a_requested_time_that_cannot_be_read_is_refused_and_a_single_day_is_split_by_file_order() -> None:
    words = make_frame().assign(at=[f"day {1 + n % 9}" for n in range(1000)])
    assert "1,000 of 1,000 rows" in refuse(words, time="at")
    assert "too large" in refuse(make_frame().assign(at=1.77e11 + np.arange(1000)), time="at")
    years = with_times(make_frame(), 900, since="2020-03-01")
    assert "1.11 rows per day; set one with --time" in about(draft(years), "event time")
    assert draft(years, time="placed_at").ingest.event_time.column == "placed_at"
    assert "one day" in about(draft(with_times(make_frame(), 0.9), time="placed_at"), "event time")


def test_one_time_that_is_missing_or_a_total_costs_its_row_and_not_the_column() -> None:
    for odd in (None, "", "TOTAL"):
        frame = with_times(make_frame(2000), 20)
        frame["placed_at"] = frame["placed_at"].dt.strftime("%Y-%m-%d %H:%M:%S UTC")
        frame.loc[777, "placed_at"] = odd
        for drafted in (draft(frame), draft(frame, time="placed_at")):
            assert drafted.ingest.event_time.column == "placed_at"
            assert "1 of 2,000 rows have no possible time and will be quarantined" in about(drafted, "event time")


@pytest.mark.parametrize(
    ("pattern", "form", "local"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", None, False),
        ("%Y-%m-%d %H:%M:%S", None, True),
        ("%m/%d/%Y %I:%M %p", "MM/DD/YYYY", True),
        ("%d.%m.%Y %H:%M UTC", "DD.MM.YYYY", False),
        ("%Y%m%d", "YYYYMMDD", True),
    ],
)
def test_the_form_of_the_times_and_their_zone_are_stated(pattern: str, form: str | None, local: bool) -> None:
    frame = with_times(make_frame(2000), 40)
    frame["placed_at"] = frame["placed_at"].dt.strftime(pattern)
    drafted = draft(frame)
    rule = drafted.ingest.event_time
    assert (rule.column, rule.format, rule.local) == ("placed_at", form, local)
    assert ("in the detector's time_zone" in about(drafted, "event time")) == local
    assert (f"written {form}" in about(drafted, "event time")) == bool(form)


def test_eight_digits_are_dates_and_no_seconds() -> None:
    days = [(date(2026, 1, 1) + timedelta(days=n // 50)).strftime("%Y%m%d") for n in range(2000)]
    for kind in ("int64", "str", "float64"):
        drafted = draft(make_frame(2000).assign(day=pd.Series(days).astype(kind)))
        assert drafted.ingest.event_time == EventTime(column="day", format="YYYYMMDD", local=True)
        assert drafted.last_date == date(2026, 2, 9)


def test_unreadable_doubtful_and_missing_words_are_said() -> None:
    frame = make_frame()
    spend = [f"{x:,.2f}" for x in np.random.default_rng(0).lognormal(6, 2, 1000)]
    frame = frame.assign(spend=spend, rate=["n.v."] * 100 + spend[100:])
    frame.loc[7, "spend"] = "see note"
    drafted = draft(frame)
    assert drafted.contract.columns["spend"].model_dump(exclude_unset=True) == {"type": "float", "format": "1,234.56"}
    assert drafted.contract.columns["rate"].missing == ("n.v.",)
    told = "\n".join(drafted.notes)
    assert "spend: 1 of 1,000 values cannot be read as float, such as 'see note'" in told
    assert "rate: 'n.v.' is taken as a missing value" in told


def test_values_that_are_not_read_are_named_whether_the_column_is_learnt_or_left_out() -> None:
    frame = make_frame()
    frame = frame.assign(lasted=[f"{n % 30}:{n % 6}0" for n in range(1000)], start_date=46000 + np.arange(1000) / 100)
    told = "\n".join(draft(frame).notes)
    assert "lasted: its values look like durations or times of day in a form that is not read, such as '" in told
    assert "'; it is learnt as categories" in told
    assert "start_date is left out: its values look like days as Excel counts them, 46000 for 2025-12-09" in told


# --- gross errors ---


def test_one_gross_error_chooses_neither_the_scale_nor_the_range_and_is_shown() -> None:
    frame = make_frame(2000)
    frame.loc[3, "size"] = 1048.0
    drafted = draft(frame)
    assert drafted.train.columns.numeric == ("size", "weight")
    assert drafted.train.encode.log_skewness is None  # training must not choose again
    [limits] = [e.kwargs for e in drafted.contract.expectations if e.kwargs["column"] == "size" and e.level == "row"]
    assert limits["max_value"] < 30
    [decision] = [d for d in drafted.decisions if d.column == "size"]
    assert "1 far outside: 1048" in decision.detail
    assert "encode" not in draft(make_frame(2000)).train.model_fields_set


# --- rows ---


@pytest.mark.parametrize("label", ["fraud", None])
@pytest.mark.parametrize("rows", [50, 60, 100, 200, 313, 500])
def test_a_small_table_gets_the_highest_quantile_that_its_rows_carry(label: str | None, rows: int) -> None:
    frame = make_frame(rows, rows // 20)
    request = {"label": label} if label else {}
    drafted = draft(frame, **request)
    splits = drafted.filter.splits
    assert isinstance(splits, RandomFraction)
    learnt = np.arange(rows) < rows * 9 // 10
    is_anomaly = frame["fraud"].to_numpy()[learnt] == (1 if label else 2)
    sets = split_by_fractions(draw_order([f"rows:{n}" for n in range(learnt.sum())], 1), is_anomaly, splits)
    carried = (sets == "calibration").sum()
    assert rows_for_quantile(drafted.quantile) <= carried
    assert rows_for_quantile(min(0.99, drafted.quantile + 0.05)) > carried or drafted.quantile > 0.94
    assert drafted.quantile == 0.99 or rows < 500
    assert f"quantile {drafted.quantile:g}" in about(drafted, "threshold")


def test_a_daily_table_may_be_small_too() -> None:
    drafted = draft(with_times(make_frame(100), 100), time="placed_at")
    assert 0.5 < drafted.quantile < 0.99


def test_fewer_than_fifty_rows_are_refused_with_the_number_that_would_do() -> None:
    assert "at least 50 rows" in refuse(make_frame(49, 2), error=TooFewRows)
    assert "49 rows" in refuse(make_frame(49, 2), error=TooFewRows, label="fraud")


def test_a_source_that_leaves_no_column_to_read_is_refused() -> None:
    frame = pd.DataFrame({"constant": [1] * 500, "name": [f"n{k}" for k in range(500)]})
    assert "constant: constant" in refuse(frame, error=ParamsInvalid)


def test_the_score_is_the_distance_to_clean_rows_that_lie_apart_and_says_so() -> None:
    wide = make_frame().assign(shop=[f"shop {n % 28}" for n in range(1000)])  # 28 categories and a slot for others
    for frame, references in ((make_frame(), 4000), (wide, 2000)):
        drafted = draft(frame)
        assert drafted.train.score == NeighboursParams(references=references, draw="spread")
        assert f"at most {references:,} clean rows, half of them far apart" in about(drafted, "network")


# --- the contract ---


def test_no_value_is_critical_however_far_it_lies_but_a_missing_one_is() -> None:
    drafted = draft(make_frame(), label="fraud")
    ranges = {e.kwargs["column"]: e for e in drafted.contract.expectations if e.level == "row"}
    assert set(ranges) == {"size", "weight"}
    assert {e.severity for e in ranges.values()} == {"warning"}
    size = make_frame()["size"]
    span = size.max() - size.min()
    assert ranges["size"].kwargs["min_value"] == 0  # never negative so far: a negative one is worth a warning
    assert size.max() + span <= ranges["size"].kwargs["max_value"] <= (size.max() + span) * 1.01
    critical = [e.type for e in drafted.contract.row_expectations if e.severity == "critical"]
    assert "expect_column_values_to_not_be_null" in critical


def test_types_and_gaps_stand_in_the_contract_as_seen() -> None:
    frame = make_frame().assign(shop=["north", None, "south", "east"] * 250)
    columns = draft(frame).contract.columns
    assert columns["shop"].model_dump(exclude_unset=True) == {"type": "text", "nullable": True}
    assert columns["size"].model_dump(exclude_unset=True) == {"type": "float"}
    limits = {e.kwargs["column"]: e.kwargs for e in draft(frame).contract.batch_expectations}
    assert limits["shop.missing_fraction"]["max_value"] == 0.5
    assert limits["shop.distinct"]["max_value"] == 16
    assert limits["rows"] == {"column": "rows", "min_value": 50, "max_value": 200}


def test_a_wide_table_gets_no_ranges() -> None:
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(500, 60)), columns=[f"c{n}" for n in range(60)])
    assert not [e for e in draft(wide).contract.expectations if e.level == "row"]


# --- history ---


def make_payments(days: int, cards: int = 20, rows: int = 2000) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    frame = pd.DataFrame(
        {
            "card_id": [f"card {n}" for n in rng.integers(cards, size=rows)],
            "shop": [f"shop {n}" for n in rng.integers(300, size=rows)],
            "amount": rng.lognormal(3, 1, rows),
            "country": rng.choice(["DE", "FR", "IT", "PL"], rows),
            "lat": rng.uniform(47, 55, rows),
            "lon": rng.uniform(6, 15, rows),
        }
    )
    return with_times(frame, days)


def test_history_is_proposed_for_an_entity_that_the_user_names() -> None:
    drafted = draft(make_payments(60), entity="card_id")
    assert drafted.enrich
    assert drafted.enrich.model_dump(mode="json", exclude_unset=True) == {
        "entity": "card_id",
        "windows": ["1h", "24h"],
        "columns": {
            "records_{window}": {"count": "*"},
            "amount_sum_{window}": {"sum": "amount"},
            "amount_to_mean": {"window": "28d", "ratio": "amount", "to": "mean"},
            "shop_distinct_24h": {"window": "24h", "distinct": "shop"},
            "new_shop": {"window": "28d", "first_seen": "shop"},
            "new_country": {"window": "28d", "first_seen": "country"},
            "km_from_last": {"window": "28d", "distance": ["lat", "lon"]},
            "since_last_s": {"window": "28d", "seconds_since": "previous"},
        },
    }
    columns = drafted.train.columns
    assert {"records_1h", "amount_sum_24h", "amount_to_mean", "shop_distinct_24h", "km_from_last"} <= {*columns.numeric}
    assert {"new_shop", "new_country"} <= {*columns.categorical}
    assert {"card_id", "shop", "amount", "lat"} <= drafted.contract.columns.keys()
    assert not {*drafted.show} & {"records_1h", "new_shop", "card_id"}
    assert about(drafted, "history") == (
        "10 columns over 1h, 24h, 28d (what each card_id did before a record; see enrich in params.yaml)"
    )


def test_shorter_data_gets_shorter_windows_and_no_name_is_taken_twice() -> None:
    frame = make_payments(20).rename(columns={"country": "since_last_s"}).drop(columns=["lat", "lon"])
    drafted = draft(frame, entity="card_id")
    assert drafted.enrich
    assert (drafted.enrich.windows, drafted.enrich.history["new_shop"].window) == (("1h", "24h"), "7d")
    assert "since_last_s" not in drafted.enrich.columns


@pytest.mark.parametrize(
    ("frame", "entity", "why"),
    [
        (make_payments(60), None, "none (--entity card_id proposes columns of what each one did before)"),
        (make_payments(60).drop(columns="placed_at"), "card_id", "none (the rows have no event time)"),
        (make_payments(60, cards=10_000), "card_id", "too few records each)"),
    ],
)
def test_no_history_without_a_wish_times_or_repeats(frame: pd.DataFrame, entity: str | None, why: str) -> None:
    drafted = draft(frame, **({"entity": entity} if entity else {}))
    assert drafted.enrich is None
    assert about(drafted, "history").endswith(why)
