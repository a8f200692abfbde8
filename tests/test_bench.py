"""The benchmarks still fit the code that they measure."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as `python bench/NAME.py` would load it."""
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py")))
def test_every_benchmark_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        load(name, monkeypatch).main()
    assert "usage:" in capsys.readouterr().out


def test_the_digits_benchmark_runs_on_a_few_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist = load("mnist", monkeypatch)
    for name, rows in {"STOPPING": 20, "CALIBRATION": 200, "TESTED": 20, "EACH": 5}.items():
        monkeypatch.setattr(mnist, name, rows)
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", images=images)
    monkeypatch.setattr(sys, "argv", ["mnist.py", str(tmp_path / "digits.npz"), "--epochs", "1"])
    mnist.main()
    printed = capsys.readouterr().out
    assert "128-64-32-64-128" in printed
    assert "digits, pixels shuffled" in printed
