"""Who is doing something: a process by its host, number and moment of birth, in one line of text.

Numbers are given again, moments are not: so a try whose process died can be told from one that still runs.
"""

import socket

import psutil

CLOCK_STEP_S = 300  # moments of birth are told by the host's clock, which may be set meanwhile


def name_process() -> str:
    """This process, such as "worker-3 4711 1763840000.25"."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def is_dead(owner: str | None) -> bool:
    """Whether a process is known to have ended. One of another host, or of no name, is not known to."""
    host, _, process = (owner or "").partition(" ")
    if host != socket.gethostname():
        return False
    pid, _, born = process.partition(" ")
    try:
        found = psutil.Process(int(pid))
        is_another = abs(float(found.create_time()) - float(born)) > CLOCK_STEP_S
        return is_another or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
