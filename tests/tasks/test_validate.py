import dataclasses
import math
import re
from collections import Counter
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import BatchMissing, BatchRejected, MemoryExhausted, ParamsInvalid
from tasks.ingest import commit_parts
from tasks.rows.contract import Contract
from tasks.rows.duplicates import find_duplicates
from tasks.rows.params import ValidateParams
from tasks.rows.schema import type_rows
from tasks.rows.validation import Validation
from tasks.stores.lake import Lake, Manifest
from tasks.validate import DUPLICATE, check_accepted, make_row, validate_batches

DAY = date(2026, 3, 1)
ANY = ValidateParams(max_quarantined_fraction=1.0)
BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"


def expect(column: str, kind: str = BETWEEN, level: str = "row", severity: str = "critical", **limits) -> dict:
    return {"level": level, "severity": severity, "type": kind, "kwargs": {"column": column} | limits}


def make_contract(*expectations: dict, columns: dict | None = None, extra_columns: str = "warn") -> Contract:
    kinds = {"amount": {"type": "float"}, "visits": {"type": "int"}, "card": {"type": "text", "masked": True}}
    document = {"columns": columns or kinds, "expectations": expectations, "extra_columns": extra_columns}
    return Contract.model_validate(document, strict=False)


CONTRACT = make_contract(expect("amount", min_value=0, max_value=1000))


def make_rows(n: int = 8, day: date = DAY, **changes) -> pd.DataFrame:
    """n good rows as a CSV brings them; changes give a column's value by row number."""
    frame = pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(n)],
            "event_time": [f"{day}T12:00:{i % 60:02d}Z" for i in range(n)],
            "amount": [f"{i}.25" for i in range(n)],
            "visits": [str(i) for i in range(n)],
            "card": [f"4000-{i}" for i in range(n)],
        }
    ).astype(object)
    for column, values in changes.items():
        for row, value in values.items():
            frame.loc[row, column] = value
    return frame.astype("str").where(frame.notna(), None)


@pytest.fixture
def validate(site):
    def validate_all(contract: Contract = CONTRACT, *days: date, params: ValidateParams = ANY) -> Validation:
        return validate_batches(site, contract, days or [DAY], params)[0]

    return validate_all


@pytest.fixture
def read(site):
    def read_zone(zone: str, day: date = DAY) -> pd.DataFrame:
        parts = site.lake.get(zone, "toy", day).parts
        frames = [piece.to_pandas() for part in parts for piece in site.lake.slices(part)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"record_id": []})

    return read_zone


def check_counts(found: Validation) -> None:
    assert found.rows_in == found.validated + found.quarantined + found.excluded
    assert sum(found.reasons.values()) == found.quarantined


def test_good_rows_are_validated_in_the_contracts_types(land_rows, validate, read):
    land_rows(make_rows())
    found = validate()
    check_counts(found)
    assert (found.rows_in, found.validated, found.warnings, found.failures) == (8, 8, (), ())
    rows = read("validated")
    assert rows.columns.tolist() == ["record_id", "event_time", "amount", "visits", "card"]
    assert rows["amount"].tolist() == [i + 0.25 for i in range(8)]
    assert rows["visits"].dtype == np.int64
    assert len(read("quarantine")) == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount", "nan"),
        ("amount", None),
        ("amount", "inf"),
        ("amount", "-Infinity"),
        ("amount", "1e400"),
        ("amount", "12,50"),
        ("amount", "free"),
        ("amount", "1000.01"),
        ("amount", "-0.01"),
        ("visits", "1.5"),
        ("visits", "inf"),
        ("visits", "99999999999999999999"),
        ("visits", "many"),
        ("card", None),
        ("event_time", "yesterday"),
        ("record_id", None),
    ],
)
def test_a_row_with_a_bad_value_is_quarantined_as_it_came_with_the_reason(land_rows, validate, read, column, value):
    frame = make_rows(**{column: {3: value}})
    land_rows(frame)
    found = validate()
    check_counts(found)
    assert (found.validated, found.quarantined, found.failures) == (7, 1, ())
    [bad] = read("quarantine").to_dict("records")
    readable = {"nan", None, "inf", "-Infinity", "1e400", "1000.01", "-0.01", "yesterday"}  # a time is read at ingest
    is_read = value in readable and (column, value) != ("visits", "inf")
    assert bad["quarantine_reason"].startswith(
        f"{column} column values to " if is_read else f"{column}: not readable as"
    )
    assert found.reasons == {bad["quarantine_reason"]: 1}
    raw = frame.loc[3].drop("event_time")
    assert {name: bad[name] for name in raw.index if pd.notna(raw[name])} == raw.dropna().to_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_numbers_of_parquet_are_held_to_the_same(land_rows, validate, value):
    frame = make_rows().astype({"amount": float, "visits": float})
    frame.loc[2, "amount"] = value
    land_rows(frame)
    contract = make_contract()  # nothing but the types
    assert validate(contract).quarantined == 1


def test_infinity_passes_only_where_the_contract_allows_it(land_rows, validate):
    land_rows(make_rows(amount={1: "inf"}))
    kind = {"amount": {"type": "float", "infinite": True}, "visits": {"type": "int"}, "card": {"type": "text"}}
    assert validate(make_contract(columns=kind)).quarantined == 0
    lenient = make_contract(expect("amount", severity="warning", min_value=0, max_value=1000))
    found = validate(lenient)
    assert (found.quarantined, len(found.warnings)) == (1, 1)


def test_nulls_pass_only_where_the_contract_allows_them(land_rows, validate, read):
    land_rows(make_rows(amount={1: None, 2: "nan", 3: "12,50"}, card={4: None}))
    nullable = {"type": "float", "nullable": True}
    columns = {"amount": nullable, "visits": {"type": "int"}, "card": {"type": "text", "nullable": True}}
    found = validate(make_contract(columns=columns))
    assert found.reasons == {"amount: not readable as float": 1}  # it is there, so it is not missing
    assert read("validated")["amount"].isna().tolist() == [False, True, True] + [False] * 4


def test_an_unseen_category_stays_validated_and_is_counted_as_a_warning(land_rows, validate, read):
    land_rows(make_rows(card={1: "5000-1", 2: "5000-2"}))
    known = [f"4000-{i}" for i in range(8)]
    found = validate(make_contract(expect("card", IN_SET, severity="warning", value_set=known)))
    check_counts(found)
    assert (found.validated, found.quarantined, found.failures) == (8, 0, ())
    assert len(found.warnings) == 1
    assert found.warnings[0].endswith("broken by 2 rows")
    assert "5000-1" in read("validated")["card"].tolist()


def test_identical_duplicates_keep_one_row_and_the_rest_are_counted_as_excluded(land_rows, validate, read):
    frame = make_rows()
    land_rows(frame, frame.iloc[[2, 2, 5]], name="first")
    land_rows(frame.iloc[[2, 7]], name="second")
    found = validate()
    check_counts(found)
    assert (found.rows_in, found.validated, found.quarantined, found.excluded) == (13, 8, 0, 5)
    assert sorted(read("validated")["record_id"]) == sorted(frame["record_id"])


def test_identical_bad_duplicates_are_quarantined_once(land_rows, validate):
    frame = make_rows(amount={2: "12,50"})
    land_rows(frame, frame.iloc[[2, 2]])
    found = validate()
    check_counts(found)
    assert (found.validated, found.quarantined, found.excluded) == (7, 1, 2)


@pytest.mark.parametrize("slice_rows", [3, 100])
def test_rows_that_share_a_record_id_and_differ_are_all_quarantined(land_rows, validate, read, monkeypatch, slice_rows):
    for module in ("stores.lake", "validate"):
        monkeypatch.setattr(f"tasks.{module}.SLICE_ROWS", slice_rows)
    frame = make_rows()
    changed = frame.assign(amount="7")
    land_rows(frame, changed.iloc[[2]], name="first")
    land_rows(changed.iloc[[5]], frame.iloc[[0]], name="second")
    found = validate()
    check_counts(found)
    assert (found.validated, found.quarantined, found.excluded) == (6, 4, 1)
    assert found.reasons == {DUPLICATE: 4}
    assert sorted(read("quarantine")["record_id"]) == ["r2", "r2", "r5", "r5"]


def test_record_ids_with_quotes_are_distinguished(land_rows, validate):
    land_rows(make_rows(record_id={0: "it's", 1: "it's", 2: 'a"b', 3: ""}, amount={1: "9"}))
    found = validate()
    check_counts(found)
    assert (found.validated, found.reasons) == (6, {DUPLICATE: 2})


def test_copies_and_rows_that_differ_are_found_in_one_batch(land_rows, validate):
    frame = make_rows(20)
    land_rows(frame, frame.iloc[::3], frame.iloc[[1]].assign(amount="8"))
    found = validate()
    check_counts(found)
    assert (found.excluded, found.quarantined) == (7, 2)


IDS = st.sampled_from(["a", "b", "it's", '{"}', "", None])


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.tuples(IDS, st.integers(0, 1)), min_size=1, max_size=6), min_size=1, max_size=3),
    replaced=st.frozensets(IDS.filter(lambda record: record is not None), max_size=3),
)
@pytest.mark.slow
def test_duplicate_ids_are_those_that_a_plain_count_finds(tmp_path_factory, parts, replaced):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    partition = lake.write("landing", "toy", DAY)
    for number, rows in enumerate(parts):
        ids, amounts = zip(*rows, strict=True)
        with partition.part(f"part-{number}") as part:
            part.append(pa.table({"record_id": pa.array(ids, pa.string()), "amount": amounts}))
    manifest = partition.commit({})
    first = manifest.parts[0].sha256  # a replay has replaced some of its rows, and of no part that is like it
    gone = {first: replaced} if sum(part.sha256 == first for part in manifest.parts) == 1 else {}
    counted = [row for n, rows in enumerate(parts) for row in rows if n or row[0] not in gone.get(first, ())]
    times = Counter(record for record, _ in counted if record is not None)
    twice = {record: len({row for row in counted if row[0] == record}) for record, n in times.items() if n > 1}
    found = find_duplicates(lake, manifest, ["amount"], gone)
    assert sorted(found.identical.to_pylist()) == sorted(record for record, kinds in twice.items() if kinds == 1)
    assert sorted(found.different.to_pylist()) == sorted(record for record, kinds in twice.items() if kinds > 1)


@pytest.fixture
def arrived_twice(site) -> Manifest:
    """A landed batch of 400,000 rows that arrived twice, and three of them changed."""
    amounts = pa.array(range(400_000), pa.int64())
    rows = pa.table({"record_id": [f"order-{number:032}" for number in range(400_000)], "amount": amounts})
    changed = rows.slice(0, 3).set_column(1, "amount", pc.add(amounts.slice(0, 3), 1))
    partition = site.lake.write("landing", "toy", DAY)
    for name, table in {"first": rows, "again": rows, "changed": changed}.items():
        with partition.part(name) as part:
            part.append(table)
    return partition.commit({})


@pytest.mark.slow
def test_every_row_of_a_large_batch_that_arrived_twice_is_found(site, arrived_twice):
    found = find_duplicates(site.lake, arrived_twice, ["amount"], {})
    assert sorted(found.different.to_pylist()) == [f"order-{number:032}" for number in range(3)]
    assert sorted(found.identical.to_pylist()) == [f"order-{number:032}" for number in range(3, 400_000)]


def test_a_search_that_fits_in_memory_needs_no_temporary_folder(site, land_rows, monkeypatch):
    land_rows(make_rows(), make_rows().iloc[[2]])
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/dev/null"])
    found = find_duplicates(site.lake, site.lake.get("landing", "toy", DAY), ["amount"], {})
    assert found.identical.to_pylist() == ["r2"]


def test_a_large_batch_without_room_for_temporary_files_is_not_called_damaged(site, arrived_twice, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    monkeypatch.setattr("tasks.stores.lake.HISTORY_MEMORY", "60MB")
    grouped = site.lake.stream(
        "select id, count(*) from targets group by 1", "record_id as id", arrived_twice.parts, ()
    )
    with pytest.raises(MemoryExhausted, match=r"(?s)space for temporary files.*free space in /dev/null.*TMPDIR"):
        list(grouped)


def test_a_missing_column_rejects_the_batch_and_an_extra_one_warns(land_rows, validate, site):
    land_rows(make_rows().drop(columns="visits").assign(mood="good"))
    found = validate()
    check_counts(found)
    assert found.failures == ("columns missing: visits",)
    assert found.warnings == ("columns not in the contract, ignored: mood",)
    assert site.lake.find("validated", "toy", DAY) is None


def test_an_extra_column_stops_the_batch_where_the_contract_says_so(land_rows, validate, site):
    land_rows(make_rows().assign(mood="good"))
    contract = make_contract(extra_columns="stop")
    assert validate(contract).failures == ("columns not in the contract, ignored: mood",)
    assert site.lake.find("validated", "toy", DAY) is None


def test_a_column_that_the_contract_ignores_is_left_out_without_a_word(land_rows, validate, site):
    land_rows(make_rows().assign(mood="good"))
    found = validate(make_contract(extra_columns="stop").model_copy(update={"ignored": ("mood",)}))
    assert (found.failures, found.warnings) == ((), ())
    [part] = site.lake.get("validated", "toy", DAY).parts
    assert "mood" not in site.lake.columns(part)


def test_a_column_that_may_be_missing_is_null_where_it_is(land_rows, validate, read):
    land_rows(make_rows(4), name="first")
    land_rows(make_rows(8).iloc[4:].drop(columns="amount"), name="second")
    columns = {"amount": {"type": "float", "nullable": True, "required": False}, "visits": {"type": "int"}}
    found = validate(make_contract(columns=columns | {"card": {"type": "text"}}))
    check_counts(found)
    assert (found.validated, found.failures) == (8, ())
    assert found.warnings == ("column missing, read as null in 4 of 8 rows: amount",)
    rows = read("validated")
    assert sorted(rows["record_id"][rows["amount"].isna()]) == ["r4", "r5", "r6", "r7"]


def test_a_renamed_column_rejects_the_batch_with_its_likely_new_name(land_rows, validate):
    land_rows(make_rows().rename(columns={"visits": "visit_count"}))
    assert validate().failures == ("columns missing: visits (visits looks renamed to visit_count)",)


def test_a_retyped_column_whose_values_all_read_is_a_warning(land_rows, validate):
    land_rows(make_rows().assign(amount="1.5", visits=1.0))
    found = validate()
    check_counts(found)
    assert (found.validated, found.failures) == (8, ())
    assert found.warnings == (
        "amount landed as text, not as float; every value could be read",
        "visits landed as double, not as int; every value could be read",
    )


def test_a_late_part_of_another_type_is_judged_like_any_other(land_rows, validate):
    land_rows(make_rows(4).astype({"visits": int}), name="first")
    changed = make_rows(8).iloc[3:].assign(visits=pd.Timestamp("2026-03-01", tz="UTC"))
    land_rows(changed, name="late")  # which DuckDB cannot see as one table with the first
    found = validate()
    check_counts(found)
    assert (found.validated, found.reasons) == (3, {"visits: not readable as int": 4, DUPLICATE: 2})


def test_a_column_that_only_one_part_lacks_is_missing(land_rows, validate):
    land_rows(make_rows(4), name="first")
    land_rows(make_rows(8).iloc[4:].drop(columns="card"), name="second")
    found = validate()
    check_counts(found)
    assert found.failures == ("columns missing: card",)


def test_a_batch_of_bad_rows_only_is_rejected_and_its_quarantine_kept(land_rows, validate, read, site):
    land_rows(make_rows(4, amount=dict.fromkeys(range(4), "12,50")))
    contract = make_contract(expect("amount.mean", level="batch", min_value=0, max_value=10))
    found = validate(contract, params=ValidateParams())
    check_counts(found)
    assert "4 of 4 rows quarantined, more than max_quarantined_fraction 0.05: amount" in found.failures[0]
    assert found.failures[1] == "amount landed as text, 100.0% of it not readable as float, such as '12,50'"
    assert found.failures[2].endswith("got nan")
    assert site.lake.find("validated", "toy", DAY) is None
    assert (read("quarantine")["quarantine_reason"] == "amount: not readable as float").all()
    facts = site.lake.get("quarantine", "toy", DAY).facts["validation"]
    assert facts["failures"] == list(found.failures)
    with pytest.raises(BatchRejected) as caught:
        check_accepted("toy", [found])
    message = str(caught.value)
    assert all(word in message for word in ("contracts/toy.yaml, 2026-03-01", "got:", "expected:", "to do:", "4 of 4"))


@pytest.mark.parametrize(("limit", "accepted"), [(0.24, False), (0.25, True), (1.0, True)])
def test_a_batch_stops_above_the_quarantined_fraction(land_rows, validate, limit, accepted):
    land_rows(make_rows(8, amount={0: "x", 1: "y"}))
    found = validate(params=ValidateParams(max_quarantined_fraction=limit))
    assert (found.quarantined, not found.failures) == (2, accepted)


@pytest.mark.parametrize(
    ("column", "limits", "observed"),
    [
        ("rows", {"min_value": 9}, "8"),
        ("quarantined_fraction", {"max_value": 0.1}, "0.125"),
        ("duplicated_fraction", {"max_value": 0.1}, "0.125"),
        ("amount.mean", {"min_value": 4}, f"{np.mean([0.25, 1.25, 3.25, 4.25, 5.25, 6.25]):.6g}"),
        ("amount.stddev", {"max_value": 2}, f"{np.std([0.25, 1.25, 3.25, 4.25, 5.25, 6.25], ddof=1):.6g}"),
        ("visits.max", {"max_value": 5}, "6"),
        ("visits.min", {"min_value": 1}, "0"),
        ("card.distinct", {"min_value": 7}, "6"),
        ("card.missing_fraction", {"min_value": 0.5}, "0"),
    ],
)
def test_a_batch_level_expectation_stops_the_batch_or_warns(land_rows, validate, site, column, limits, observed):
    frame = make_rows(7, amount={2: "x"})
    land_rows(frame, frame.iloc[[0]])
    found = validate(make_contract(expect(column, level="batch", **limits)))
    check_counts(found)
    assert [text.split(": got ") for text in found.failures] == [[found.results[-1].text, observed]]
    assert site.lake.find("validated", "toy", DAY) is None
    warned = validate(make_contract(expect(column, level="batch", severity="warning", **limits)))
    assert (warned.failures, warned.warnings) == ((), found.failures)
    assert site.lake.find("validated", "toy", DAY).rows == 6


@pytest.mark.slow
def test_several_dates_at_once_are_as_one_by_one(land_rows, site, read):
    days = [DAY + timedelta(days=n) for n in range(4)]
    for n, day in enumerate(days):
        frame = make_rows(
            3 + n, day, amount={n % 3: ["1", "x", "nan", "1"][n]}, record_id={2: "r1" if n == 3 else "r2"}
        )
        land_rows(frame, frame.iloc[[0]])
    contract = make_contract(
        expect("amount", min_value=0, max_value=5), expect("rows", level="batch", min_value=5), extra_columns="stop"
    )

    def look(found: list[Validation]) -> list[object]:
        zones = [(z, d) for d in days for z in ("validated", "quarantine") if site.lake.find(z, "toy", d)]
        return [found, [(z, d, read(z, d).astype(str).to_numpy().tolist()) for z, d in zones]]

    together = look(validate_batches(site, contract, days, ANY))
    other = contract.model_copy(update={"extra_columns": "warn"})  # so that nothing is taken from before
    apart = look([v for day in reversed(days) for v in validate_batches(site, other, [day], ANY)][::-1])
    assert apart == together
    assert [bool(v.failures) for v in together[0]] == [True, False, False, False]


def test_unchanged_batches_are_not_computed_again(land_rows, validate, site, monkeypatch):
    land_rows(make_rows())
    first = validate()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.validate.Suite", None)
        assert validate() == first
    assert site.lake.get("validated", "toy", DAY).attempt == 1
    validate(make_contract())
    assert site.lake.get("validated", "toy", DAY).attempt == 2
    land_rows(make_rows(9).iloc[8:], name="late")
    assert validate(make_contract()).rows_in == 9
    assert site.lake.get("validated", "toy", DAY).attempt == 3


@pytest.mark.parametrize(("limits", "accepted"), [({"min_value": 0}, True), ({"min_value": 1}, False)])
def test_a_batch_that_nothing_is_left_of_is_empty_and_refused_only_by_its_contract(
    land_rows, validate, site, limits, accepted
):
    land_rows(make_rows())
    commit_parts(site, "rows", {}, [DAY])
    found = validate(make_contract(expect("rows", level="batch", **limits)), params=ValidateParams())
    check_counts(found)
    assert (found.rows_in, found.warnings, not found.failures) == (0, (), accepted)
    if accepted:
        assert site.lake.get("validated", "toy", DAY).rows == 0


def test_a_rejected_batch_does_not_stop_the_others(land_rows, site):
    land_rows(make_rows(), make_rows(day=DAY + timedelta(days=1)).drop(columns="card").assign(card=None))
    good, bad = validate_batches(site, CONTRACT, [DAY, DAY + timedelta(days=1)], ValidateParams())
    assert (bool(good.failures), bool(bad.failures)) == (False, True)
    assert site.lake.dates("validated", "toy") == [DAY]
    assert site.lake.dates("quarantine", "toy") == [DAY, DAY + timedelta(days=1)]


def test_a_date_that_never_landed_is_named(site):
    with pytest.raises(BatchMissing, match="2026-03-01"):
        validate_batches(site, CONTRACT, [DAY], ANY)


def test_an_expectation_that_cannot_be_evaluated_is_named(land_rows, validate):
    land_rows(make_rows())
    with pytest.raises(BatchRejected, match="could not be evaluated"):
        validate(make_contract(expect("card", "expect_column_values_to_match_regex", regex="(")))


def test_the_page_of_a_batch_shows_counts_and_never_a_value(land_rows, site):
    land_rows(make_rows(12, amount={1: "-77.125"}, card={2: "SECRET-7"}))
    contract = make_contract(
        expect("amount", min_value=0, max_value=1000),
        expect("card", "expect_column_values_to_match_regex", severity="warning", regex="^4000-"),
        expect("rows", level="batch", min_value=1),
    )
    [found] = validate_batches(site, contract, [DAY], ANY)
    assert (found.quarantined, len(found.warnings)) == (1, 1)
    [page] = site.validations.iterdir()
    assert page.name == "2026-03-01.html"
    text = page.read_text()
    assert text.count("1 row broke it (8.33 %)") == 2
    assert not re.search(r"SECRET-7|77\.125|4000-\d", text)


def test_every_batch_gets_a_page_also_a_rejected_one(land_rows, site):
    days = [DAY + timedelta(days=n) for n in range(3)]
    for n, day in enumerate(days):
        land_rows(make_rows(2, day, amount={0: "x" if n == 0 else "1"}), name=str(n))
    validate_batches(site, CONTRACT, days, ValidateParams(max_quarantined_fraction=0.1))
    pages = {path.stem: path.read_text() for path in site.validations.iterdir()}
    assert {day: "Rejected because" in page for day, page in pages.items()} == {str(day): day == DAY for day in days}


def test_a_value_does_not_depend_on_its_neighbours():
    texts = [repr(float(x)) for x in np.exp(np.random.default_rng(0).normal(size=500) * 20)]
    contract = make_contract(columns={"amount": {"type": "float"}})

    def type_amounts(values: list[str]) -> list[float]:
        return type_rows(pa.table({"amount": values}), contract)["amount"].to_pylist()

    assert type_amounts(texts) == type_amounts([*texts, "12,50"])[:-1] == [float(text) for text in texts]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("bool", ["true", "0", "maybe", None], [True, False, None, None]),
        ("bool", [True, False, None, True], [True, False, None, True]),
        ("int", ["1", "2.0", "x", "-3"], [1, 2, None, -3]),
        ("int", [1.0, 2.5, math.nan, math.inf], [1, None, None, None]),
        ("float", ["1", " 2.5", "1,5", ""], [1.0, 2.5, None, None]),
        ("text", [1, 2, 3, None], ["1", "2", "3", None]),
        (
            "timestamp",
            ["2026-03-01T00:00:00Z", "2026-03-01T00:00:00.5Z", "then", None],
            [pd.Timestamp("2026-03-01", tz="UTC"), pd.Timestamp("2026-03-01T00:00:00.5Z"), None, None],
        ),
    ],
)
def test_what_cannot_be_read_in_the_columns_type_becomes_null(kind, values, expected):
    contract = make_contract(columns={"it": {"type": kind}})
    assert type_rows(pa.table({"it": values}), contract)["it"].to_pylist() == expected


DIRT = st.fixed_dictionaries(
    {
        "record_id": st.sampled_from(["a", "b", "c", "d", "e", "f", "g", None]),
        "amount": st.sampled_from(["1", "1.0", "2", "nan", "inf", "12,50", "", None, "-1", "1e9"]),
        "visits": st.sampled_from(["1", "2", "1.5", "many", None, "1e30"]),
        "card": st.sampled_from(["x", "y", None]),
        "seconds": st.sampled_from(["0", "0", "1", "never"]),
    }
)


def sort_by_hand(rows: list[dict]) -> tuple[int, int, int]:
    """Validated, quarantined and excluded rows, counted row by row."""

    def is_good(row: dict) -> bool:
        good = row["amount"] in ("1", "1.0", "2") and row["visits"] in ("1", "2") and row["card"] is not None
        return good and row["record_id"] is not None and row["seconds"] != "never"

    kept: dict[str, dict] = {}
    versions = Counter(row["record_id"] for row in {frozenset(r.items()): r for r in rows}.values())
    validated = quarantined = excluded = 0
    for row in rows:
        record = row["record_id"]
        if record is not None and versions[record] > 1:
            quarantined += 1
        elif record is not None and record in kept:
            excluded += 1
        else:
            kept[record] = row
            validated, quarantined = validated + is_good(row), quarantined + (not is_good(row))
    return validated, quarantined, excluded


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.lists(DIRT, min_size=1, max_size=6), min_size=1, max_size=3), min_size=3, max_size=6)
)
@pytest.mark.slow
def test_no_row_vanishes_whatever_the_dirt(make_site, tmp_path_factory, batches):
    site = dataclasses.replace(make_site(), lake=Lake(str(tmp_path_factory.mktemp("lake"))))
    days = [DAY + timedelta(days=n) for n in range(len(batches))]
    for day, parts in zip(days, batches, strict=True):
        partition = site.lake.write("landing", "toy", day)
        for number, rows in enumerate(parts):
            frame = pd.DataFrame(rows, dtype=object)
            offsets = pd.to_timedelta(pd.to_numeric(frame["seconds"], errors="coerce"), unit="s")
            table = pa.table(
                {
                    "record_id": pa.array(frame["record_id"], pa.string()),
                    "event_time": pa.array(pd.Timestamp(day, tz="UTC") + offsets, pa.timestamp("us", tz="UTC")),
                    **{name: pa.array(frame[name], pa.string()) for name in ("amount", "visits", "card")},
                }
            )
            with partition.part(f"part-{number}", source=str(number)) as part:
                part.append(table)
        partition.commit({})
    for found, parts in zip(validate_batches(site, CONTRACT, days, ANY), batches, strict=True):
        check_counts(found)
        rows = [row for part in parts for row in part]
        assert (found.validated, found.quarantined, found.excluded) == sort_by_hand(rows)
        assert site.lake.get("quarantine", "toy", found.batch_date).rows == found.quarantined
        assert site.lake.get("validated", "toy", found.batch_date).rows == found.validated


@pytest.mark.parametrize(
    ("expectation", "words"),
    [
        (expect("amount", "expect_column_values_to_be_betwen"), "not found"),
        (expect("amount", min_value="x"), "not a valid float"),
        (expect("amount"), "cannot both be None"),
        (expect("amount", min_value=0, mni_value=1), "mni_value"),
        (expect("card", "expect_column_values_to_be_of_type", type_="zzz"), "not which do not"),
        (expect("rows", "expect_column_values_to_be_betwen", level="batch"), "not found"),
    ],
)
def test_an_expectation_that_great_expectations_refuses_is_an_error_of_the_contract(
    land_rows, validate, expectation, words
):
    land_rows(make_rows())
    with pytest.raises(ParamsInvalid, match=words):
        validate(make_contract(expectation))


def test_the_error_of_an_expectation_on_a_masked_column_is_not_shown(land_rows, validate):
    land_rows(make_rows())
    with pytest.raises(BatchRejected, match="the column is masked"):
        validate(make_contract(expect("card", min_value=1)))


def test_a_large_landing_part_becomes_several_in_the_order_of_its_rows(site, land_rows, validate, read, monkeypatch):
    monkeypatch.setattr("tasks.stores.lake.SLICE_ROWS", 3)
    monkeypatch.setattr("tasks.validate.PART_SLICES", 2)
    land_rows(make_rows(20, amount={7: "free"}))
    check_counts(validate())
    parts = site.lake.get("validated", "toy", DAY).parts
    assert [part.rows for part in parts] == [6, 5, 6, 2]
    assert read("validated")["record_id"].tolist() == [f"r{row}" for row in range(20) if row != 7]
    assert read("quarantine")["record_id"].tolist() == ["r7"]


@pytest.mark.parametrize("odd", ["![x](http://evil/x.png)", "[a](http://evil)", "a | b", "<img src=x>", "a\n# b"])
def test_names_from_the_data_stay_text_on_prefects_page(odd):
    row = make_row(Validation(DAY, "", 1, 1, 0, 0, {}, (f"columns ignored: {odd}",), (odd, odd)))
    shown = f"{row['warnings']} {row['failures']}"
    assert not re.search(r"(?<!\\)[\[|!<\n]", shown)
    assert not re.search(r"://", shown.replace("\\://", ""))
