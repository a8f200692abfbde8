"""YAML is read as DVC reads it, can be read back after writing, and never crashes the process."""

import math
import shutil
import time
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import parse_yaml as parse_as_dvc

from flows.config.documents import compose_yaml, dump_yaml, parse_yaml, read_text, read_yaml
from flows.config.params import load_detector
from tasks.errors import ParamsInvalid

ROOT = Path(__file__).parents[3]
PATH = Path("params.yaml")

VALUES = {
    "5e-05": 0.00005,
    "1e-3": 0.001,
    "1e3": 1000.0,
    ".5": 0.5,
    "-.5": -0.5,
    "0o17": 15,
    "012": 12,
    "0x1F": 31,
    ".inf": math.inf,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "1:30": "1:30",
    "'2026-03-01'": "2026-03-01",
    "true": True,
    "~": None,
    "": None,
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_means_what_it_means_to_dvc(text: str) -> None:
    document = parse_yaml(f"x: {text}", PATH)
    assert document == {"x": VALUES[text]}
    assert document == parse_as_dvc(f"x: {text}", PATH)


def test_a_learning_rate_written_by_dvc_is_a_number(tmp_path: Path) -> None:
    # What `dvc exp run -S` does to the file.
    shutil.copytree(ROOT / "contracts", tmp_path / "contracts")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["detectors.payments.train.fit.learning_rate=0.00005"])
    assert "learning_rate: 5e-05" in (tmp_path / "params.yaml").read_text()
    assert load_detector(tmp_path, "payments").detector.train.fit.learning_rate == 0.00005


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "a: 1\na: 2", "{'a': 1, a: 2}", "{x: 1, y: {a: 1, a: 1}}"])
def test_a_duplicate_key_is_refused(text: str) -> None:
    with pytest.raises(ParamsInvalid, match="the key 'a' is duplicated"):
        parse_yaml(text, PATH)


def test_the_values_of_a_duplicate_key_are_not_shown() -> None:
    with pytest.raises(ParamsInvalid) as caught:
        parse_yaml("url: postgresql://ann:secret@shop\nurl: postgresql://ann:secret@shop", PATH)
    assert "secret" not in str(caught.value)


def test_a_merged_key_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}", PATH) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}}


@pytest.mark.parametrize("step", ["[{}]", "{{<<: [{}]}}"])
def test_a_few_lines_that_expand_to_billions_of_values_are_refused_at_once(step: str) -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} " + step.format(", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 12)]
    started = time.process_time()
    with pytest.raises(ParamsInvalid, match=r"100,000 values|1,000,000 values"):
        parse_yaml("\n".join(lines), PATH)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["&a [*a]", "&a {<<: *a, b: 1}", "[" * 100_000, "{a: " * 100_000, "- " * 100_000])
@pytest.mark.parametrize("read", [parse_yaml, compose_yaml])
def test_an_infinite_or_too_deeply_nested_document_is_refused(text: str, read: object) -> None:
    with pytest.raises(ParamsInvalid, match=r"contains itself|100 levels"):
        read(text, PATH)  # type: ignore[operator]


def test_an_error_names_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ParamsInvalid, match=r"params.yaml does not exist"):
        read_yaml(tmp_path / "params.yaml")
    assert read_text(tmp_path / "params.yaml") is None
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParamsInvalid, match=r"params.yaml is not valid YAML"):
        read_yaml(tmp_path / "params.yaml")


DOCUMENT = {
    "z": 1,
    "texts": ["yes", "012", "1e-3", "2026-03-01", "1:30", "~", "", "ä: b", "#", "a\nb"],
    "numbers": {"rate": 5e-05, "count": 12, "big": 1e30, "negative": -0.5},
    "a": {"deep": {"list": [[1, 2], [True, None]]}},
}


@pytest.mark.parametrize("on_one_line", [False, True])
def test_what_is_written_is_read_back_in_the_same_order(on_one_line: bool) -> None:
    text = dump_yaml(DOCUMENT, width=60, on_one_line=on_one_line)
    for found in (parse_yaml(text, PATH), parse_as_dvc(text, PATH)):
        assert found == DOCUMENT
        assert list(found) == list(DOCUMENT)  # type: ignore[call-overload]


def test_reading_params_takes_milliseconds() -> None:
    def measure() -> float:
        started = time.process_time()
        read_yaml(ROOT / "params.yaml")
        return time.process_time() - started

    assert min(measure() for _ in range(5)) < 0.1  # measured: 0.007


def test_aliases_that_repeat_a_long_text_are_refused() -> None:
    text = f"t: &t {'x' * 6400}\na: &a [{', '.join(['*t'] * 40)}]\nb: [{', '.join(['*a'] * 40)}]"
    with pytest.raises(ParamsInvalid, match="aliases that stand for more than 100,000 values"):
        parse_yaml(text, PATH)
    assert parse_yaml("a: &a {x: 1}\nb: *a", PATH) == {"a": {"x": 1}, "b": {"x": 1}}
