"""How long the command line takes, as whole processes: wall and CPU seconds, and the slowest import of each.

    python bench/commands.py            # about four minutes; fills a temporary home with nightjar run payments first

CPU seconds are those of the process and of the processes it has waited for. Medians of five runs; a night is measured
twice, on dates that have not been scored.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
NIGHTS = ("2026-11-21", "2026-11-22")
RECORD = "P20261120-0-923714926"
# What is run, how often, and the limit: wall seconds, or CPU seconds where "cpu".
COMMANDS: dict[str, tuple[Sequence[Sequence[str]], float, str]] = {
    "--help": ([["--help"]] * 5, 0.5, "wall"),
    "--version": ([["--version"]] * 5, 0.5, "wall"),
    "score --help": ([["score", "--help"]] * 5, 0.5, "wall"),
    "status payments": ([["status", "payments"]] * 5, 2.5, "cpu"),
    "explain payments RECORD": ([["explain", "payments", RECORD]] * 5, 2.5, "cpu"),
    "review payments": ([["review", "payments"]] * 5, 2.5, "cpu"),
    "metrics": ([["metrics"]] * 5, 2.5, "cpu"),
    "run payments, nothing to do": ([["run", "payments"]] * 5, 5.0, "wall"),
    "score payments --date D, 5,000 rows": (
        [["score", "payments", "--date", f"2026-11-2{n}"] for n in (1, 2)],
        9.0,
        "cpu",
    ),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as home:
        environment = os.environ | {"NIGHTJAR_HOME": home, "NIGHTJAR_PROJECT": str(PROJECT)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as Python is usually installed, it keeps what it compiles
        run(["run", "payments"], environment)
        print(f"{'command':<38}{'wall s':>8}{'CPU s':>8}   limit      slowest imports (ms)")
        for name, (calls, limit, kind) in COMMANDS.items():
            times = [run(call, environment) for call in calls]
            wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
            measured = wall if kind == "wall" else cpu
            print(
                f"{name:<38}{wall:>8.2f}{cpu:>8.2f}   {limit:g} s {kind:<4} {'ok ' if measured <= limit else 'OVER'} "
                f"{list_imports(calls[0], environment)}"
            )


def run(arguments: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one call. Ends the benchmark if the call fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "nightjar"), *arguments],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"nightjar {' '.join(arguments)}: {error.decode()}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def list_imports(arguments: Sequence[str], environment: dict[str, str], most: int = 4) -> str:
    """The libraries that cost most to import in this call, by python -X importtime, each with what it imports."""
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli.main", *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    lines = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| +(\w+)$", done.stderr, re.MULTILINE)
    ours = {"flows", "tasks", "models"}
    costs = sorted(((int(us) // 1000, name) for us, name in lines if name not in ours), reverse=True)[:most]
    return ", ".join(f"{name} {ms}" for ms, name in costs)


if __name__ == "__main__":
    main()
