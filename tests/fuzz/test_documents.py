"""Params and contracts, spoilt: a ParamsInvalid or a detector, never another error; no file is touched."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import yaml
from fuzzing import JUNK, cases, spoilt, spoilt_bytes
from hypothesis import example, given
from hypothesis import strategies as st
from toy import CONTRACT, PARAMS

from flows.config.documents import read_yaml
from flows.config.params import combine, load_detector, parse_detector, parse_section
from tasks.errors import ParamsInvalid
from tasks.follow_up.alerts import Alerts, Fact, plan_messages
from tasks.rows.contract import Contract
from tasks.rows.schema import type_rows

PATH = Path("params.yaml")
ALERTS = {
    "time_zone": "Europe/Berlin",
    "channels": {"mail": None, "phone": {"quiet": {"begin": "22:00", "end": "07:00"}, "calendars": ["a.ics"]}},
    "rules": {
        "late": {"on": "night_late", "channels": ["mail"], "send": "digest", "at": "08:00", "detectors": ["toy"]},
        "drift": {"on": "drifted", "channels": ["phone"], "findings": ["attack"], "snoozed_until": "2026-03-01"},
        "many": {"on": "over_budget", "channels": ["phone"], "max_alerts": 5, "urgent": True},
        "canary": {"on": "canary_recall", "channels": ["mail"], "below": 0.5},
        "case": {"on": "case", "channels": ["mail"], "severity": "high", "where": {"a": [1, "b"], "c": {"least": 2}}},
    },
    "maintenance": [{"begin": "2026-03-01T10:00", "end": "2026-03-01T12:00", "reason": "r", "detectors": ["toy"]}],
}
NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
SHORT = {"detectors": {"orders": {"run": {"nights": 2}, "when": "2026-03-01", "a": [1, 2.5, None, True]}}}


@cases(4)
@given(st.one_of(spoilt({"detectors": {"orders": PARAMS}}), JUNK))
def test_params(document: object) -> None:
    contract = parse_section(Contract, CONTRACT, PATH)
    try:
        found = combine("orders", parse_detector(document, PATH, "orders"), PATH, contract)
    except ParamsInvalid as error:
        assert "params.yaml" in str(error)
        return
    again = json.loads(found.detector.model_dump_json(by_alias=True))
    assert parse_detector({"detectors": {"orders": again}}, PATH, "orders") == found.detector
    assert len(found.params_hash) == 64


@cases(4)
@given(st.one_of(spoilt(ALERTS), JUNK))
@example(ALERTS | {"maintenance": [{"begin": "0001-01-01T00:00", "end": "9999-12-31T23:59"}]})
@example(ALERTS | {"maintenance": [{"begin": "0001-01-01T00:00+14:00", "end": "9999-12-31T23:59-12:00"}]})
def test_alerts(document: object) -> None:
    try:
        alerts = parse_section(Alerts, document, PATH)
    except ParamsInvalid as error:
        assert "params.yaml" in str(error)
        return
    assert parse_section(Alerts, json.loads(alerts.model_dump_json()), PATH) == alerts
    kinds = (
        "night_failed",
        "night_rejected",
        "night_late",
        "night_recovered",
        "drifted",
        "over_budget",
        "canary_recall",
        "case",
    )
    more = {"severity": "critical", "finding": "attack", "records": [{"a": "b", "c": 3}, {}]}
    facts = [Fact(kind, "toy", kind, NOW.date(), NOW, "title", "body", 10, 1, **more) for kind in kinds]
    planned = plan_messages(alerts, facts, {})
    assert all(one.due_at is None or one.due_at >= NOW for one in planned)
    assert all(one.due_at is not None or one.reason for one in planned)


@cases(3)
@given(st.one_of(spoilt(CONTRACT), JUNK))
def test_contracts(document: object) -> None:
    try:
        contract = parse_section(Contract, document, PATH)
    except ParamsInvalid:
        return
    assert set(contract.schema.names) >= contract.columns.keys()
    assert type_rows(contract.schema.empty_table(), contract).num_rows == 0
    assert parse_section(Contract, json.loads(contract.model_dump_json()), PATH).hash == contract.hash
    assert all(isinstance(e.text, str) for e in (*contract.row_expectations, *contract.batch_expectations))


@cases(3)
@given(spoilt_bytes(yaml.safe_dump(SHORT).encode()) | spoilt_bytes(b"detectors: &a {orders: !!float 1, <<: *a}\n"))
@example(b"detectors: {orders: 2026-13-45}")
@example(b"detectors: {orders: !!float }")  # was an IndexError
@example(b"detectors: &a {orders: *a}")
@example(b"detectors: " + b"[" * 100_000)  # the C parser would recurse until the process dies
@example(b"!!omap [a: 1, a: 2]")  # an AssertionError
@example(b"0001-01-01T00:00:00+14:00")  # an OverflowError
@example(b"detectors: {orders: {run: 0x" + b"f" * 5000 + b"}}")  # a number that JSON cannot write
@example(b"\xff\xfe")
def test_yaml(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(content)
        try:
            read_yaml(path)
            load_detector(path.parent, "orders")
        except ParamsInvalid as error:
            assert "params.yaml" in str(error)
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == ["params.yaml"]
