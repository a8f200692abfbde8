"""Identify a process by host, process id and start time, in one line of text.

Process ids are reused, start times are not, so an attempt whose process died is recognised.
"""

import socket

import psutil

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
