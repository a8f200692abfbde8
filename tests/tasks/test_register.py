"""A version's tags say where it comes from; the bundle itself does not depend on the commit."""

from tasks.register import name_tags


def test_a_version_is_tagged_with_the_lineage_and_the_commit_that_registered_it() -> None:
    lineage = {"cutoff": "2026-03-01", "rows": {"fit": 10}, "nullable": ["spend"]}
    assert name_tags(lineage, "c0ffee") == {
        "commit": "c0ffee",
        "cutoff": "2026-03-01",
        "rows": '{"fit": 10}',
        "nullable": '["spend"]',
    }


def test_the_commit_that_an_old_bundle_holds_stays() -> None:
    assert name_tags({"commit": "0ddba11"}, "c0ffee") == {"commit": "0ddba11"}
