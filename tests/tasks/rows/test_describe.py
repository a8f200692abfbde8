from zoneinfo import ZoneInfo

import pytest

from tasks.rows.describe import describe_causes, describe_values, localise_causes, round_shares

BERLIN = ZoneInfo("Europe/Berlin")


def test_causes_are_described_in_words_and_add_up_to_100_per_cent():
    causes = [
        {"column": "a", "share": 1.2, "actual": 1234567.0, "expected": 2.125},
        {"column": "b", "share": 0.4, "actual": None, "expected": "DE"},
        {"column": "code", "part": "XR", "share": 0.2, "actual": 1.0, "expected": 0.25},
        {"column": "other", "share": 0.2},
    ]
    assert describe_causes(causes, BERLIN) == [
        "a 60% (1,234,567, expected 2.125)",
        "b 20% (None, expected DE)",
        "code XR 10% (1, expected 0.25)",
        "other 10%",
    ]
    assert describe_causes([{"column": "other", "share": 0.0}], BERLIN) == []


@pytest.mark.parametrize(
    ("zone", "actual", "expected", "shown"),
    [
        (
            "Europe/Berlin",
            "2026-01-31 23:30:00+00:00",
            "around 14:00 UTC",
            "2026-02-01 00:30:00+01:00, expected around 15:00 CET",
        ),
        (
            "Europe/Berlin",
            "2026-07-31T03:30:00.250000+00:00",
            "around 14:00 UTC",
            "2026-07-31 05:30:00.250000+02:00, expected around 16:00 CEST",
        ),
        (
            "Asia/Kolkata",
            "2026-01-31 23:30:00+00:00",
            "around 14:00 UTC",
            "2026-02-01 05:00:00+05:30, expected around 19:30 IST",
        ),
        (
            "UTC",
            "2026-01-31 23:30:00+00:00",
            "around 14:00 UTC",
            "2026-01-31 23:30:00+00:00, expected around 14:00 UTC",
        ),
        ("Europe/Berlin", None, "around 14:00 UTC", "None, expected around 14:00 UTC"),
        ("Europe/Berlin", "masked", "masked", "masked, expected masked"),
        ("Europe/Berlin", "2026-13-31 23:30:00+00:00", "NL", "2026-13-31 23:30:00+00:00, expected NL"),
        (
            "Asia/Kolkata",
            "9999-12-31 23:30:00+00:00",
            "around 23:00 UTC",
            "9999-12-31 23:30:00+00:00, expected around 23:00 UTC",
        ),
        ("Europe/Berlin", "5", "around 14:00 UTC", "5, expected around 14:00 UTC"),
    ],
)
def test_times_among_causes_are_local(zone, actual, expected, shown):
    causes = [{"column": "at", "share": 1.0, "actual": actual, "expected": expected}]
    assert describe_causes(causes, ZoneInfo(zone)) == [f"at 100% ({shown})"]
    [local] = localise_causes(causes, ZoneInfo(zone))
    assert f"{local['actual']}, expected {local['expected']}" == shown
    assert causes[0]["actual"] == actual  # JSON stays in UTC


def test_times_among_the_values_of_a_record_are_local():
    record = {"opened": "2026-07-31T22:30:00+00:00", "day": "2026-07-31", "amount": 1.5, "note": None}
    shown = describe_values(record, BERLIN)
    assert shown == "opened 2026-08-01 00:30:00+02:00, day 2026-07-31, amount 1.5, note None"
    assert describe_values(None, BERLIN) == ""


@pytest.mark.parametrize(
    ("shares", "percents"),
    [
        ([1, 1, 1], [34, 33, 33]),
        ([0.796, 0.146, 0.02, 0.038], [80, 14, 2, 4]),
        ([5.0], [100]),
        ([0.994, 0.003, 0.003], [100, 0, 0]),
        ([1e-300, 3e-300], [25, 75]),
        ([], []),
    ],
)
def test_per_cents_add_up_to_100(shares, percents):
    assert round_shares(shares) == percents
