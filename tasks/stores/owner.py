"""Identify a process by host, process id, start time and PID namespace, in one line of text.

Process ids are reused, start times are not, so an attempt whose process died is recognised. Containers may share a host
name but not their process ids: each has a PID namespace of its own, and nothing is known of the processes of another.
"""

import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from models.errors import hide_password

HOST_NAMESPACE = "4026531836"  # Linux: PROC_PID_INIT_INO
CLOCK_STEP_S = 300  # tolerance: start times follow the host's clock, which may be adjusted


def name_process() -> str:
    """This process, such as "worker-3 4711 1763840000.25 4026531836"."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f} {name_namespace()}".rstrip()


def name_namespace() -> str:
    """The PID namespace of this process, "" where the system does not tell.

    The host's own has the same number on every machine and after every restart, so its name needs no more; the numbers
    of containers are told apart by the kernel's boot.
    """
    try:
        number = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return ""
    return number if number == HOST_NAMESPACE else f"{number}-{boot[:8]}"


def is_elsewhere(owner: str | None) -> bool:
    """Whether a process runs on another host or in another PID namespace, or nobody knows where.

    The names of older versions end before the namespace; theirs is taken to be this one.
    """
    host, *rest = (owner or "").split(" ")
    return host != socket.gethostname() or (len(rest) > 2 and rest[2] != name_namespace())


def is_dead(owner: str | None) -> bool:
    """Whether a process has certainly ended; False for a process elsewhere and for None."""
    if owner is None or is_elsewhere(owner):
        return False
    try:
        pid, born = owner.split(" ")[1:3]
        found = psutil.Process(int(pid))
        is_another = abs(float(found.create_time()) - float(born)) > CLOCK_STEP_S
        return is_another or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except ValueError:  # not a name of ours
        return False


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
