from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from flows.config.params import parse_section
from tasks.errors import ParamsInvalid
from tasks.rows.contract import Contract

TOY = """
columns:
  amount: {type: float}
  country: {type: text, nullable: true}
  visits: {type: int}
expectations:
  - {level: row, type: expect_column_values_to_be_between, kwargs: {column: visits, min_value: 0}}
  - {level: batch, severity: warning, type: expect_column_values_to_be_between, kwargs: {column: rows, min_value: 3}}
"""


def parse(text: str) -> Contract:
    return parse_section(Contract, yaml.safe_load(text), Path("contracts/toy.yaml"))


def expect(line: str) -> str:
    return f"columns: {{amount: {{type: float}}, country: {{type: text}}}}\nexpectations: [{{{line}}}]"


BETWEEN = "type: expect_column_values_to_be_between"


def test_a_contract_is_read_with_its_types_and_levels():
    contract = parse(TOY)
    assert contract.schema == pa.schema(
        {
            "record_id": pa.string(),
            "event_time": pa.timestamp("us", tz="UTC"),
            "amount": pa.float64(),
            "country": pa.string(),
            "visits": pa.int64(),
        }
    )
    assert contract.extra_columns == "warn"
    assert [(e.level, e.severity, e.kwargs["column"]) for e in contract.batch_expectations] == [
        ("batch", "warning", "rows")
    ]


def test_column_types_imply_row_expectations():
    implied = [(e.kwargs["column"], e.type.split("_to_")[1]) for e in parse(TOY).row_expectations]
    assert implied == [
        ("record_id", "not_be_null"),
        ("event_time", "not_be_null"),
        ("amount", "not_be_null"),
        ("amount", "be_between"),
        ("visits", "not_be_null"),
        ("visits", "be_between"),
    ]


@pytest.mark.parametrize(
    ("line", "implied"),
    [
        (f"level: row, {BETWEEN}, kwargs: {{column: amount, min_value: 0, max_value: 9}}", False),
        (f"level: row, {BETWEEN}, kwargs: {{column: amount, min_value: 0}}", True),
        (f"level: row, {BETWEEN}, kwargs: {{column: amount, min_value: 0, max_value: null}}", True),
        (f"level: row, severity: warning, {BETWEEN}, kwargs: {{column: amount, min_value: 0, max_value: 9}}", True),
    ],
)
def test_infinity_is_refused_unless_critical_bounds_refuse_it_already(line, implied):
    rows = parse(expect(line)).row_expectations
    assert any(e.kwargs.get("max_value", 0) and e.kwargs["max_value"] > 1e300 for e in rows) is implied


def test_the_event_time_may_be_listed_among_the_columns():
    contract = parse("columns: {event_time: {type: timestamp}, amount: {type: float}}")
    assert contract.schema.names == ["record_id", "event_time", "amount"]
    assert [e.kwargs["column"] for e in contract.row_expectations].count("event_time") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("columns: {amount: {type: float}}\nextra_colums: stop", ["extra_colums", "unknown key", "'extra_columns'"]),
        ("columns: {amount: {type: float, nulable: true}}", ["columns.amount.nulable", "'nullable'"]),
        ("columns: {_label: {type: int}}", ["'_label'", "Nightjar adds"]),
        ("columns: {amount: {type: double}}", ["columns.amount.type", "'double'"]),
        ("columns: {amount: {nullable: true}}", ["columns.amount.type", "required"]),
        ("columns: {amount: {type: float, masked: 1}}", ["columns.amount.masked", "bool"]),
        ("columns: {amount: {type: float}}\nextra_columns: ignore", ["extra_columns", "'ignore'"]),
        ("expectations: []", ["columns", "required"]),
        (expect(f"level: column, {BETWEEN}, kwargs: {{column: amount}}"), ["expectations.0.level", "'column'"]),
        (expect(f"level: row, severity: info, {BETWEEN}, kwargs: {{column: amount}}"), ["severity", "'info'"]),
        (expect(f"{BETWEEN}, kwargs: {{column: amount}}"), ["expectations.0.level", "required"]),
        (expect("level: row, type: to_be_between, kwargs: {column: amount}"), ["expectations.0.type"]),
        (
            expect("level: row, type: expect_table_row_count_to_be_between, kwargs: {min_value: 1}"),
            ["expect_table_row_count_to_be_between", "level: batch"],
        ),
        (expect(f"level: row, {BETWEEN}, kwargs: {{column: amuont}}"), ["'amuont'", "not one of the columns"]),
        (
            expect(
                "level: row, type: expect_column_pair_values_to_be_equal, kwargs: {column_A: amount, column_B: there}"
            ),
            ["'there'", "not one of the columns"],
        ),
        (
            expect(f"level: row, {BETWEEN}, kwargs: {{column: amount, min_value: 0, mostly: 0.9}}"),
            ["mostly", "each row"],
        ),
        (
            expect("level: row, type: expect_column_values_to_be_unique, kwargs: {column: country}"),
            ["expect_column_values_to_be_unique depends on other rows"],
        ),
        (expect(f"level: batch, {BETWEEN}, kwargs: {{column: amount}}"), ["'amount'", "rows", "COLUMN.mean"]),
        (expect(f"level: batch, {BETWEEN}, kwargs: {{column: amount.modus}}"), ["'amount.modus'", "COLUMN.median"]),
        (expect(f"level: batch, {BETWEEN}, kwargs: {{column: other.mean}}"), ["'other.mean'"]),
        (expect(f"level: batch, {BETWEEN}, kwargs: {{column: country.mean}}"), ["country.mean", "type text"]),
    ],
)
def test_a_bad_contract_is_refused_by_file_and_key(text, words):
    with pytest.raises(ParamsInvalid) as caught:
        parse(text)
    message = str(caught.value)
    assert all(word in message for word in ["toy.yaml has 1 bad key", "contracts/toy.yaml", "to do:", *words]), message


def test_all_bad_keys_are_named_at_once():
    with pytest.raises(ParamsInvalid, match="has 2 bad keys"):
        parse("columns: {amount: {type: flot}, country: {typ: text, type: text}}")


@pytest.mark.parametrize("statistic", ["distinct", "missing_fraction"])
def test_text_has_statistics_too(statistic):
    parse(expect(f"level: batch, {BETWEEN}, kwargs: {{column: country.{statistic}, min_value: 0}}"))


def test_equal_contracts_have_equal_hashes_and_others_have_not():
    assert parse(TOY).hash == parse(TOY + "extra_columns: warn\n").hash
    assert parse(TOY).hash != parse(TOY.replace("min_value: 3", "min_value: 4")).hash
    assert parse(TOY).hash != parse(TOY.replace("{type: float}", "{type: float, masked: true}")).hash


def test_a_column_is_required_unless_it_says_otherwise_and_old_contracts_keep_their_hash():
    assert parse(TOY).hash == "439ca91f1bf917952ec6c7a379720b97cf1e13e1e081d162943299ef69c83f44"
    optional = parse(TOY.replace("nullable: true", "nullable: true, required: false"))
    assert not optional.columns["country"].required
    assert optional.hash != parse(TOY).hash == parse(TOY.replace("{type: int}", "{type: int, required: true}")).hash
    with pytest.raises(ParamsInvalid, match="required: false needs nullable: true"):
        parse(TOY.replace("{type: int}", "{type: int, required: false}"))


def test_an_expectation_in_one_line_names_column_rule_and_limits():
    texts = [e.text for e in parse(TOY).expectations]
    assert texts == ["visits column values to be between min_value=0", "rows column values to be between min_value=3"]


@pytest.mark.parametrize("path", sorted(Path("contracts").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_contracts_of_the_house_can_be_read(path):
    parse(path.read_text())
