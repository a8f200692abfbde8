import hashlib
import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rows.record import MOST_TEXT, RecordRule

KEY = b"key"
TIMES = pa.array([datetime(2026, 3, 1, 8, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
ROWS = pa.table({"card": ["c1", None], "amount": [12.5, float("inf")], "is_new": [True, None], "at": TIMES})


def hash_by_hand(key: bytes, text: str) -> str:
    """HMAC as RFC 2104 defines it, for keys of at most 64 bytes."""
    padded = key.ljust(64, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in padded) for pad in (0x36, 0x5C))
    inside = hashlib.sha256(inner + text.encode()).digest()
    return hashlib.sha256(outer + inside).hexdigest()


def test_the_entity_and_the_named_values_are_described_in_json():
    found = RecordRule("card", ("amount", "is_new", "at")).describe(ROWS)
    assert found["entity"].tolist() == ["c1", None]
    assert [json.loads(text) for text in found["record"]] == [
        {"amount": 12.5, "is_new": True, "at": "2026-03-01T08:00:00+00:00"},
        {"amount": "inf", "is_new": None, "at": None},
    ]


def test_without_a_rule_nothing_is_published():
    assert RecordRule().describe(ROWS).to_dict("list") == {"entity": [None, None], "record": [None, None]}
    assert RecordRule("card").describe(ROWS)["record"].tolist() == [None, None]


def test_an_entity_of_numbers_is_text():
    assert RecordRule("card").describe(pa.table({"card": [17, 2**60]}))["entity"].tolist() == ["17", str(2**60)]


@pytest.mark.parametrize("hidden", [frozenset(), frozenset({"card"})])
@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_row_without_a_value_for_the_entity_has_none_pseudonymised_or_not(missing: object, hidden) -> None:
    rows = pa.table({"card": pa.array([missing], pa.float64() if isinstance(missing, float) else pa.string())})
    assert RecordRule("card", pseudonymise=hidden, key=b"k").describe(rows)["entity"].tolist() == [None]


def test_a_pseudonym_is_the_keyed_hash_of_the_value_and_the_same_in_both_places():
    rule = RecordRule("card", ("card",), frozenset({"card"}), KEY)
    found = rule.describe(ROWS)
    expected = hash_by_hand(KEY, "c1")[:16]
    assert found["entity"].tolist() == [expected, None]
    assert json.loads(found["record"][0]) == {"card": expected}
    assert rule.pseudonym("c1") == expected
    assert RecordRule("card", (), frozenset({"card"}), b"another").pseudonym("c1") != expected
    assert KEY.decode() not in repr(rule).replace("key=", "")


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_values_have_two_pseudonyms(one: str, other: str):
    rule = RecordRule(key=KEY)
    assert (rule.pseudonym(one) == rule.pseudonym(other)) == (one == other)


def test_a_long_text_is_cut():
    found = RecordRule(None, ("text",)).describe(pa.table({"text": ["x" * 5000]}))
    assert json.loads(found["record"][0]) == {"text": "x" * MOST_TEXT}
