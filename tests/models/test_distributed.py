"""Fits by several processes, on the CPU with gloo; a GPU's processes go the same way with nccl."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tiny import COLUMNS, make_tiny_records

from models.detector import Detector, ModelParams, fit_detector
from models.distributed import fit_distributed
from models.errors import ProcessLost, TrainingDiverged
from models.fitting import EpochLog, build_network
from models.params import AutoencoderParams, FitParams

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LAYOUT = AutoencoderParams(layers=(4, 2, 4))
ENDLESS = FitParams(epochs=1_000_000, patience_epochs=1_000_000, batch_size=16)
ENDLESS_FIT = """
import torch
from test_distributed import CPU, ENDLESS, LAYOUT, make_rows
from models.distributed import fit_distributed
from models.fitting import build_network
report = lambda epoch: print(epoch.epoch, flush=True)
fit_distributed(build_network(LAYOUT, 3, 0), LAYOUT, make_rows(64), make_rows(8), ENDLESS, CPU, 2, report)
"""


def make_rows(n: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n))


def fit(devices: int) -> tuple[Detector, list[EpochLog]]:
    learn = FitParams(epochs=60, patience_epochs=2, batch_size=33, learning_rate=0.03, seed=4)
    epochs: list[EpochLog] = []
    detector = fit_detector(
        COLUMNS,
        make_tiny_records(496),  # the last batch is one row, of which the second process has nothing
        make_tiny_records(61, 1),
        ModelParams(networks=(LAYOUT,), fit=learn),
        CPU,
        lambda network, epoch: epochs.append(epoch),
        devices,
        (make_tiny_records(40, 3), np.arange(40) % 4 == 0),
    )
    return detector, epochs


def find_ranks() -> list[psutil.Process]:
    """The processes of a fit, without torchrun itself and whatever else these tests have started."""
    commands = {process: process.cmdline() for process in psutil.Process().children(recursive=True)}
    return [
        p for p, words in commands.items() if "models.distributed" in words and "torch.distributed.run" not in words
    ]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate folder for temporary files."""
    files, compiled = tmp_path / "files", tmp_path / "compiled"
    files.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    monkeypatch.setenv("TMPDIR", str(files))
    # DistributedDataParallel imports torch's compiler, which makes a folder for its cache and keeps it.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    return files


def test_two_processes_learn_what_one_learns_and_the_same_each_time(temporary: Path) -> None:
    alone, epochs = fit(1)
    together, their_epochs = fit(2)
    assert 2 < len(epochs) < 60  # it stopped early, and so did they
    assert [e.is_best for e in their_epochs] == [e.is_best for e in epochs]
    assert [e.tuning_recall for e in their_epochs] == pytest.approx([e.tuning_recall for e in epochs], abs=0.1)
    losses = torch.tensor([[[e.fit_loss, e.stopping_loss] for e in run] for run in (epochs, their_epochs)])
    assert torch.allclose(losses[0], losses[1], rtol=1e-5, atol=0)
    tested = make_tiny_records(200, 7)
    assert torch.allclose(
        torch.from_numpy(together.score(tested)), torch.from_numpy(alone.score(tested)), rtol=1e-3, atol=0
    )
    again, _ = fit(2)
    assert again.save(temporary / "again") == together.save(temporary / "together")
    assert not list(temporary.glob("nightjar-*"))


def test_a_process_that_dies_makes_the_fit_fail_and_leaves_nothing_behind(temporary: Path) -> None:
    killed: list[psutil.Process] = []

    def kill_one(epoch: EpochLog) -> None:
        if not killed:
            killed.extend(find_ranks())
            killed[-1].kill()

    network = build_network(LAYOUT, 3, 0)
    with pytest.raises(ProcessLost, match="exit code -9"):
        fit_distributed(network, LAYOUT, make_rows(64), make_rows(8), ENDLESS, CPU, 2, kill_one)
    assert len(killed) == 2
    wait_until_gone(killed)
    assert not list(temporary.iterdir())


def test_what_a_process_raises_is_raised(temporary: Path) -> None:
    rows = make_rows(64)
    rows[3, 1] = torch.inf
    network = build_network(LAYOUT, 3, 0)
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        fit_distributed(network, LAYOUT, rows, make_rows(8), ENDLESS, CPU, 2)
    assert not list(temporary.iterdir())


def test_processes_do_not_outlive_a_fit_that_is_killed(temporary: Path) -> None:
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n{ENDLESS_FIT}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout and victim.stdout.readline() == "1\n"
        processes = psutil.Process(victim.pid).children(recursive=True)
        victim.kill()
    assert len(processes) == 3
    wait_until_gone(processes)
    assert not list(temporary.iterdir())
