"""Identify a process by host, process id and start time, in one line of text.

Process ids are reused, start times are not, so an attempt whose process died is recognised.
"""

import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from models.errors import hide_password

CLOCK_STEP_S = 300  # tolerance: start times follow the host's clock, which may be adjusted


def name_process() -> str:
    """This process, such as "worker-3 4711 1763840000.25"."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def is_elsewhere(owner: str | None) -> bool:
    """Whether a process runs on another host, or nobody knows where."""
    return (owner or "").partition(" ")[0] != socket.gethostname()


def is_dead(owner: str | None) -> bool:
    """Whether a process has certainly ended; False for a process of another host and for None."""
    if owner is None or is_elsewhere(owner):
        return False
    pid, _, born = owner.partition(" ")[2].partition(" ")
    try:
        found = psutil.Process(int(pid))
        is_another = abs(float(found.create_time()) - float(born)) > CLOCK_STEP_S
        return is_another or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def describe_process(pid: int) -> str:
    """A process of this host for people, such as "PID 4711, python -m ipykernel_launcher"."""
    with suppress(psutil.Error):
        if command := psutil.Process(pid).cmdline():
            return f"PID {pid}, {hide_password(' '.join(command[:3]))}"
    return f"PID {pid}"


def find_holder(path: str) -> str:
    """The processes that hold or share the lock of a lock file, where Linux tells; otherwise ""."""
    with suppress(OSError):
        inode = Path(path).stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
        held = re.findall(rf"^\d+: FLOCK +\S+ +\S+ +(\d+) \S+:{inode} ", locks, re.MULTILINE)
        return "; ".join(describe_process(pid) for pid in sorted({*map(int, held)}))
    return ""
