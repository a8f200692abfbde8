from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.errors import SourceInvalid
from tasks.rows.contract import Contract
from tasks.rows.params import EventTime, IngestParams, LabelColumn, ValidateParams
from tasks.rows.validation import Validation
from tasks.sources.files import FilesSource
from tasks.sources.images import make_field, to_arrow
from tasks.upkeep.replay import fill_columns, find_quarantine, list_quarantined, read_partition, take_repairs
from tasks.validate import DUPLICATE, validate_batches

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 5, tzinfo=UTC)
ANY = ValidateParams(max_quarantined_fraction=1.0)
INGEST = IngestParams(
    source=FilesSource(kind="files", path="unread"),
    record_id="record_id",
    event_time=EventTime(column="event_time"),
    labels=LabelColumn(column="fraud", anomalous=("1",)),
)
CONTRACT = Contract.model_validate(
    {
        "columns": {
            "amount": {"type": "float"},
            "visits": {"type": "int"},
            "card": {"type": "text", "masked": True},
            "fraud": {"type": "int"},
        },
        "expectations": [
            {
                "level": "batch",
                "type": "expect_column_values_to_be_between",
                "kwargs": {"column": "duplicated_fraction", "max_value": 0},
            },
        ],
    },
    strict=False,
)


def make_rows(n: int = 6, **bad: dict[int, object]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(n)],
            "event_time": [f"{DAY}T12:00:0{i}Z" for i in range(n)],
            "amount": [f"{i}.5" for i in range(n)],
            "visits": [str(i) for i in range(n)],
            "card": [f"SECRET-{i}" for i in range(n)],
            "fraud": ["0"] * n,
        }
    ).astype(object)
    for column, values in bad.items():
        for row, value in values.items():
            frame.loc[row, column] = value
    return frame


@pytest.fixture
def validate(site):
    def validate_day() -> Validation:
        [found] = validate_batches(site, CONTRACT, [DAY], ANY)
        assert found.rows_in == found.validated + found.quarantined + found.excluded
        return found

    return validate_day


@pytest.fixture
def listed(site, tmp_path):
    """The quarantined rows as a frame of texts, read from the file that a user edits."""

    def read() -> pd.DataFrame:
        rows = list_quarantined(read_partition(site.lake, find_quarantine(site, CONTRACT, ANY, DAY)), CONTRACT)
        path = tmp_path / "listed.csv"
        rows.to_pandas().to_csv(path, index=False)
        return pd.read_csv(path, dtype=str)

    return read


@pytest.fixture
def take(site, tmp_path):
    def take_frame(frame: pd.DataFrame, now: datetime = NOW) -> bool:
        path = tmp_path / "bad.csv"
        frame.to_csv(path, index=False)
        return take_repairs(site, CONTRACT, INGEST, ANY, DAY, path, now).is_new

    return take_frame


def read_validated(site) -> pd.DataFrame:
    return (
        read_partition(site.lake, site.lake.get("validated", "toy", DAY))
        .to_pandas()
        .set_index("record_id")
        .sort_index()
    )


def test_quarantined_rows_are_listed_with_their_reason_and_without_masked_columns(land_rows, listed):
    land_rows(make_rows(amount={1: "1,5"}, visits={3: None}))
    found = listed()
    assert found.columns.tolist() == ["record_id", "event_time", "amount", "visits", "fraud", "quarantine_reason"]
    assert found["record_id"].tolist() == ["r1", "r3"]
    assert found["amount"].tolist() == ["1,5", "3.5"]
    unreadable, missing = found["quarantine_reason"]
    assert unreadable == "amount: not readable as float"
    assert "not be null" in missing
    assert "SECRET" not in found.to_csv()


def test_repaired_rows_replace_the_quarantined_ones_and_keep_their_masked_values(
    site, land_rows, validate, listed, take
):
    land_rows(make_rows(amount={1: "1,5"}, visits={3: None}))
    validate()
    assert take(listed().assign(amount=["1.5", "3.5"], visits=["1", "7"]))
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded, found.failures) == (8, 6, 0, 2, ())
    rows = read_validated(site)
    assert rows.loc[["r1", "r3"], "amount"].tolist() == [1.5, 3.5]
    assert rows.loc["r3", "visits"] == 7
    assert rows.loc[["r1", "r3"], "card"].tolist() == ["SECRET-1", "SECRET-3"]
    assert len(listed()) == 0


def test_the_same_file_twice_changes_nothing(site, land_rows, validate, listed, take):
    land_rows(make_rows(amount={1: "1,5"}))
    repaired = listed().assign(amount="1.5")
    assert take(repaired)
    before = site.lake.get("landing", "toy", DAY)
    assert not take(repaired)
    assert site.lake.get("landing", "toy", DAY) == before


@pytest.mark.slow
def test_a_row_repaired_badly_goes_to_quarantine_again_and_can_be_repaired_again(
    land_rows, validate, listed, take, site
):
    land_rows(make_rows(amount={1: "1,5", 2: "2,5"}))
    take(listed().assign(amount=["1.5", "two"]))
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (8, 5, 1, 2)
    again = listed()
    assert again[["record_id", "amount"]].to_numpy().tolist() == [["r2", "two"]]
    take(again.assign(amount="2.5"))
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (9, 6, 0, 3)
    assert read_validated(site)["amount"].tolist() == [n + 0.5 for n in range(6)]


def test_rows_repaired_to_nothing_new_stay_in_quarantine(land_rows, validate, listed, take):
    land_rows(make_rows(1, amount={0: "x"}))
    take(listed())
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (2, 0, 1, 1)


def test_one_of_several_rows_of_a_record_may_be_chosen(land_rows, validate, listed, take, site):
    frame = make_rows()
    land_rows(frame, make_rows(amount={2: "9"}).iloc[[2]], name="first")
    land_rows(make_rows(amount={2: "8"}).iloc[[2]], name="second")
    assert validate().reasons == {DUPLICATE: 3}
    take(listed().query("amount == '9'"))
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (9, 6, 0, 3)
    assert read_validated(site).loc["r2", "amount"] == 9


def test_a_record_that_is_repaired_to_two_different_rows_stays_in_quarantine(land_rows, validate, listed, take):
    land_rows(make_rows(amount={1: "1,5"}))
    bad = listed()
    take(pd.concat([bad.assign(amount="1.5"), bad.assign(amount="1.6")]))
    found = validate()
    assert (found.rows_in, found.quarantined, found.excluded) == (8, 2, 1)
    assert found.reasons == {DUPLICATE: 2}


def test_a_late_row_that_differs_from_a_repaired_one_is_not_lost(land_rows, validate, listed, take):
    land_rows(make_rows(amount={1: "1,5"}))
    take(listed().assign(amount="1.5"))
    land_rows(make_rows().iloc[[1]].assign(amount="1.7"), name="late")
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (8, 5, 2, 1)
    assert found.reasons == {DUPLICATE: 2}


def test_masked_values_that_differ_between_the_originals_must_be_given(land_rows, listed, take, validate, site):
    frame = make_rows()
    land_rows(frame, make_rows(card={2: "SECRET-X"}).iloc[[2]])
    one = listed().iloc[:1]
    with pytest.raises(SourceInvalid, match="differ in card"):
        take(one)
    take(one.assign(card="SECRET-X"))
    assert validate().validated == 6
    assert read_validated(site).loc["r2", "card"] == "SECRET-X"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bad: bad.assign(record_id="r4"), "r4"),
        (lambda bad: bad.assign(record_id=None), "1 rows without a record_id"),
        (lambda bad: bad.assign(event_time=f"{DAY + timedelta(days=1)}T00:00:00Z"), "event time on another batch date"),
        (lambda bad: bad.assign(amuont="1.5"), "amuont"),
        (lambda bad: bad.iloc[:0], "no repaired rows"),
        (lambda bad: bad.drop(columns="record_id"), "no repaired rows"),
    ],
)
def test_what_repairs_nothing_of_this_batch_is_refused(site, land_rows, listed, take, change, message):
    land_rows(make_rows(amount={1: "1,5"}))
    bad, before = listed(), site.lake.get("landing", "toy", DAY)
    with pytest.raises(SourceInvalid, match=message):
        take(change(bad))
    assert site.lake.get("landing", "toy", DAY) == before


def test_a_file_that_is_not_there_is_refused(site):
    with pytest.raises(SourceInvalid, match="does not exist"):
        take_repairs(site, CONTRACT, INGEST, ANY, DAY, Path("nowhere.csv"), NOW)


def test_an_unreadable_event_time_can_be_given(land_rows, validate, listed, take, site):
    land_rows(make_rows(event_time={1: "noon"}))
    bad = listed()
    assert bad["event_time"].isna().all()
    take(bad.assign(event_time="never"))
    assert validate().quarantined == 1
    take(listed().assign(event_time=f"{DAY}T12:30:00Z"))
    assert validate().validated == 6
    assert read_validated(site).loc["r1", "event_time"] == pd.Timestamp(f"{DAY}T12:30:00Z")


def test_numbers_of_parquet_are_repaired_too(land_rows, validate, listed, take, site):
    frame = make_rows().astype({"amount": float, "visits": int})
    frame.loc[2, "amount"] = np.nan
    land_rows(frame)
    take(listed().assign(amount="2.25"))
    found = validate()
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (7, 6, 0, 1)
    assert read_validated(site).loc["r2", "amount"] == 2.25


@pytest.mark.slow
def test_a_corrected_file_takes_the_place_of_its_repairs(land_rows, validate, listed, take):
    land_rows(make_rows(amount={1: "1,5"}), name="a")
    land_rows(make_rows(amount={1: "1,5"}).iloc[:0], make_rows(8).iloc[6:].assign(amount="x"), name="b")
    take(listed().assign(amount="1.5"))
    assert validate().validated == 8
    land_rows(make_rows(), name="a", version="2")
    found = (
        validate()
    )  # the repairs of b still stand, and agree with the corrected row on r1 in all but the time landed
    assert found.rows_in == 6 + 2 + 3
    land_rows(make_rows(8).iloc[6:], name="b", version="2")
    found = validate()
    assert (found.rows_in, found.validated, found.excluded) == (8, 8, 0)


def test_a_repaired_label_is_known_from_the_replay_on(site, land_rows, listed, take):
    land_rows(make_rows(amount={1: "1,5"}))
    take(listed().assign(amount="1.5", fraud="1"))
    engine = site.warehouse
    assert engine.read_labels("toy", NOW - timedelta(seconds=1)).empty  # nothing was ingested by the flow here
    found = engine.read_labels("toy", NOW)
    assert found[["record_id", "label"]].to_numpy().tolist() == [["r1", 1]]


def test_images_are_those_of_the_original_rows():
    image = to_arrow(np.zeros((1, 2, 2), dtype=np.uint8))
    schema = pa.schema([pa.field("record_id", pa.string()), make_field("digit", (2, 2)), pa.field("n", pa.string())])
    rows = pa.table([pa.array(["a"]), image, pa.array(["x"])], schema=schema)
    contract = Contract.model_validate(
        {"columns": {"digit": {"type": "image", "shape": [2, 2]}, "n": {"type": "int"}}}, strict=False
    )
    assert list_quarantined(rows, contract).column_names == ["record_id", "n"]
    filled = fill_columns(pa.table({"record_id": ["a"], "n": ["1"]}), rows, contract, "bad.csv")
    assert filled.schema.field("digit").equals(make_field("digit", (2, 2)), check_metadata=True)
    assert filled.to_pylist() == [{"record_id": "a", "digit": bytes(4), "n": "1"}]
