import json

import pytest

from tasks.rows.excess import describe_excess, find_suspect, is_excess


def make_causes(**shares: tuple[float, object, object]) -> str:
    named = [{"column": name, "share": s, "actual": a, "expected": e} for name, (s, a, e) in shares.items()]
    return json.dumps([*named, {"column": "other", "share": 0.1}])


@pytest.mark.parametrize(
    ("flagged", "scored", "most", "excess"),
    [
        (0, 0, 0.012, False),
        (30, 1_000, 0.012, False),  # 36 are usual
        (64, 1_000, 0.012, False),  # 36 + 4 * 6 + 4
        (65, 1_000, 0.012, True),
        (23, 29, 0.03, True),
        (1_000, 1_000, float("inf"), False),
    ],
)
def test_many_flags_are_an_excess_only_beyond_the_limits_of_the_threshold(flagged, scored, most, excess):
    assert is_excess(flagged, scored, most) == excess


def test_the_column_that_the_flags_have_in_common_is_named_with_its_usual_value():
    flags = [make_causes(amount=(0.8, 840.0, 84.0), age=(0.1, 30, 40)) for _ in range(3)]
    flags.append(make_causes(age=(0.9, 99, 40)))
    shares = 3 * 0.8 / 1.0 / 4
    assert find_suspect(flags) == f"{shares:.0%} of their scores come from amount (usually 840, where 84 is expected)"
    assert "60% of their scores come from amount" in describe_excess(4, 4, 0.01, flags)


@pytest.mark.parametrize(
    ("causes", "suspect"),
    [
        ([], ""),
        ([json.dumps([{"column": "other", "share": 0.0}])], ""),
        ([json.dumps([{"column": "other", "share": 2.0}])], ""),
        ([make_causes(shop=(0.9, "north", "south"))], "90% of their scores come from shop"),
        ([make_causes(card=(0.9, "masked", "masked"))], "90% of their scores come from card"),
    ],
)
def test_no_value_is_named_without_numbers(causes, suspect):
    assert find_suspect(causes) == suspect
