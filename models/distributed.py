"""Fit one network with several processes on one machine, one GPU each (or on the CPU, each with a fit's threads).

torchrun starts them, and each runs this module. The rows are written once to a temporary folder that all processes map
into memory; weights and losses come back as safetensors and JSON. Each batch is split and its gradients are averaged
(`DistributedDataParallel`), so the batch size has the same meaning as for one process. Li et al. 2020,
arXiv:2006.15704.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Literal

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from models.errors import MemoryExhausted, NightjarError, ProcessLost, TooFewRows, TrainingDiverged
from models.fitting import (
    EpochLog,
    FitResult,
    Network,
    Share,
    Watched,
    build_network,
    fit_network,
    pin_arithmetic,
    watch_memory,
)
from models.params import FitParams, NetworkParams, Section

WAIT_S = 300.0  # wait for the other processes at one exchange; after that they are considered lost
STOP_S = 30.0  # wait for processes to stop
JOB, ROWS, RESULT, WORDS = "job.json", "rows.safetensors", "result.json", "stderr.txt"
WATCHED = tuple(field.name for field in fields(Watched))
ERRORS = {kind.__name__: kind for kind in (MemoryExhausted, NightjarError, TooFewRows, TrainingDiverged)}


class Job(Section):
    """The input of the processes, apart from the rows."""

    network: NetworkParams
    fit: FitParams
    device: Literal["cpu", "cuda"]
    threads: int
    wait_s: float


def fit_distributed(
    network: Network,
    layout: NetworkParams,
    fit: Tensor,
    stopping: Tensor,
    params: FitParams,
    device: torch.device,
    devices: int,
    on_epoch: Callable[[EpochLog], None] | None = None,
    watched: Watched | None = None,
) -> FitResult:
    """As `fitting.fit_network`, with one process per device; the network has this layout and the seed params.seed.

    Raises ProcessLost if a process died or hung; errors of the processes are raised here.
    """
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    job = Job(network=layout, fit=params, device=kind, threads=torch.get_num_threads(), wait_s=WAIT_S)
    with TemporaryDirectory(prefix="nightjar-fit-") as name:
        folder = Path(name)
        (folder / JOB).write_text(job.model_dump_json())
        rows = {"fit": fit, "stopping": stopping, **(vars(watched) if watched else {})}
        save_file({name: each.contiguous() for name, each in rows.items()}, folder / ROWS)
        code = _run(folder, devices, on_epoch or (lambda epoch: None))
        if code:
            raise _explain(folder, devices, code)
        weights = [(folder / _weights(rank)).read_bytes() for rank in range(devices)]
        if len(set(weights)) > 1:
            raise _lost(devices, f"{len(set(weights))} different sets of weights", "the same weights from each")
        network.load_state_dict(load_file(folder / _weights(0)))
        network.eval()
        return TypeAdapter(FitResult).validate_json((folder / RESULT).read_bytes())


def _run(folder: Path, devices: int, on_epoch: Callable[[EpochLog], None]) -> int:
    """Start the processes, report their epochs, and return the exit code. No process is left running afterwards."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    command += ["--log-dir", str(folder / "logs"), "-m", "models.distributed", str(folder)]
    root = Path(__file__).parents[1]  # so that this package is imported, whatever the caller's folder contains
    with (folder / WORDS).open("wb") as words:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True
        )
        try:
            assert process.stdout  # noqa: S101 - opened as a pipe
            for line in process.stdout:
                if line.startswith("{"):  # NCCL may write there too
                    on_epoch(EpochLog(**json.loads(line)))
            return process.wait()
        finally:
            process.terminate()  # torchrun then stops its processes
            try:
                process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its processes end by themselves, see `_leave_with_parent`
                process.communicate()


def _explain(folder: Path, devices: int, code: int) -> NightjarError:
    """The error that a process raised, otherwise how the first of them ended."""
    for path in sorted(folder.glob("error-*.json")):
        kind, message = json.loads(path.read_text())
        return ERRORS.get(kind, NightjarError)(message)
    words = (folder / WORDS).read_text(errors="replace")
    last = re.findall(r"^(?:\[rank\d+\]: )?(\w[\w.]*Error: .*)$", words, re.MULTILINE)
    codes = re.findall(r"exitcode\s*: (-?\d+)", words)
    got = "; ".join([f"exit code {codes[-1] if codes else code}", *last[:1]])
    return _lost(devices, got, "all processes finish")


def _lost(devices: int, got: str, expected: str) -> ProcessLost:
    return ProcessLost(
        "A process of a fit on several devices was lost; nothing was saved.",
        where=f"a fit with {devices} processes",
        got=got,
        expected=expected,
        todo="train again; exit code -9 usually means too little memory: use fewer days or a lower NIGHTJAR_DEVICES",
    )


def main(folder: Path) -> int:
    """Run one process: fit its share and save the weights in the folder. Returns 0, or 1 after saving the error."""
    Thread(target=_leave_with_parent, args=(folder,), daemon=True).start()
    job = Job.model_validate_json((folder / JOB).read_bytes())
    device, share = _join(job)
    try:
        _fit_share(folder, job, device, share)
    except NightjarError as error:
        (folder / f"error-{share.rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
        return 1
    distributed.destroy_process_group()
    return 0


def _join(job: Job) -> tuple[torch.device, Share]:
    """Join the other processes at the address that torchrun has set."""
    distributed.init_process_group("nccl" if job.device == "cuda" else "gloo", timeout=timedelta(seconds=job.wait_s))
    share = Share(distributed.get_rank(), distributed.get_world_size())
    if job.device == "cpu":
        return torch.device("cpu"), share
    torch.cuda.set_device(share.rank)
    return torch.device("cuda", share.rank), share


def _fit_share(folder: Path, job: Job, device: torch.device, share: Share) -> None:
    rows = load_file(folder / ROWS)  # mapped into memory, not read
    network = build_network(job.network, rows["fit"].shape[1], job.fit.seed)
    with pin_arithmetic(job.threads), watch_memory(len(rows["fit"])):
        on_epoch = _tell if share.rank == 0 else None
        watched = Watched(*(rows[name] for name in WATCHED)) if share.rank == 0 and WATCHED[0] in rows else None
        result = fit_network(network, rows["fit"], rows["stopping"], job.fit, device, on_epoch, share, watched)
    save_file(network.cpu().state_dict(), folder / _weights(share.rank))
    if share.rank == 0:
        (folder / RESULT).write_text(json.dumps(asdict(result)))


def _tell(epoch: EpochLog) -> None:
    sys.stdout.write(json.dumps(asdict(epoch)) + "\n")
    sys.stdout.flush()


def _leave_with_parent(folder: Path) -> None:
    """Exit when the process that started the fit has died: nothing else would end this process."""
    # Not sys.stdin, whose lock a waiting thread would hold until exit.
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _weights(rank: int) -> str:
    return f"weights-{rank}.safetensors"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
