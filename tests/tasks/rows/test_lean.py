import subprocess
import sys

import pytest

from tasks.rows.lean import importing_less


def run(code: str) -> str:
    """What a new process prints that has imported nothing else."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_absent_packages_cannot_be_imported_within_and_can_be_afterwards():
    code = """
from tasks.rows.lean import importing_less
with importing_less(absent=["colorsys"]):
    try:
        import colorsys
    except ModuleNotFoundError:
        print("absent")
import colorsys
print(colorsys.rgb_to_hls(0, 0, 0))
"""
    assert run(code).splitlines() == ["absent", "(0.0, 0.0, 0.0)"]


def test_a_deferred_module_is_imported_when_it_is_used_and_is_then_the_module_that_others_import():
    code = """
import sys
from tasks.rows.lean import importing_less
with importing_less(deferred=["wave", "xml.dom"]):
    import wave as deferred
    from xml import dom
print("wave" in sys.modules, "xml.dom" in sys.modules)
print(deferred.open is __import__("wave").open, dom.Node is __import__("xml.dom").dom.Node)
"""
    assert run(code).splitlines() == ["False False", "True True"]


def test_a_deferred_module_that_is_used_within_is_imported_at_once():
    code = """
import sys
from tasks.rows.lean import importing_less
with importing_less(deferred=["wave"]):
    from wave import open as deferred
print(deferred is sys.modules["wave"].open)
"""
    assert run(code) == "True"


def test_packages_that_are_imported_already_stay_and_an_error_leaves_nothing_behind():
    import json

    with pytest.raises(ZeroDivisionError), importing_less(absent=["json", "not_there"], deferred=["not_there_too"]):
        assert sys.modules["json"] is json
        raise ZeroDivisionError
    assert sys.modules["json"] is json
    assert not {"not_there", "not_there_too"} & sys.modules.keys()


def test_great_expectations_is_imported_without_what_only_its_other_users_need():
    code = """
import sys
from tasks.rows.expectations import CLOUDS, FEW_NEED, load_great_expectations
load_great_expectations()
print([name for name in (*CLOUDS, *FEW_NEED) if name in sys.modules])
from great_expectations.expectations.core import expect_column_kl_divergence_to_be_less_than as kl
print(kl.stats.entropy([1, 1]), kl.alt.Chart.__name__)
import boto3, snowflake.sqlalchemy, sqlalchemy_bigquery
"""
    assert run(code).splitlines() == ["[]", "0.6931471805599453 Chart"]
