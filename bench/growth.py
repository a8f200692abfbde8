"""Whether a night costs more after 200 nights than after five: CPU seconds and memory, side by side.

    python bench/growth.py                # about twenty minutes; --nights 20 for a first look

Two projects of payments score the same nights in turn, each in a process of its own: one has published five nights,
the other 200. A night is the whole flow, from ingest to report, in a process that has scored others before; its CPU
seconds include those of the temporary Prefect server. Medians, and the median of the ratios of the same night. Then the
backfill of the long project: seconds and memory of its first nights beside its last, and how long a fixed piece of work
took next to them, since the speed of shared cores changes within minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

PROJECT = Path(__file__).resolve().parents[1]
NAME, FIRST, TRAINED_DAYS, FEW = "payments", date(2026, 1, 5), 53, 5
WARM, PAIRS = 3, 15  # nights that both score in turn: at first, and those that are compared
Costs = dict[str, float]  # cpu_s: of this process and those it started; mb: of this process; fixed_ms: of fixed work


class Project:
    """A project in a folder of its own, and the process that runs its nights."""

    def __init__(self, folder: Path, first: date, rows: int) -> None:
        section = yaml.safe_load((PROJECT / "params.yaml").read_text())["detectors"][NAME]
        section["ingest"]["source"] |= {"first_date": str(first), "rows_per_day": rows}
        (folder / "contracts").mkdir(parents=True)
        (folder / "contracts" / f"{NAME}.yaml").write_bytes((PROJECT / "contracts" / f"{NAME}.yaml").read_bytes())
        (folder / "params.yaml").write_text(yaml.safe_dump({"detectors": {NAME: section}}, sort_keys=False))
        own = {"NIGHTJAR_PROJECT": str(folder), "NIGHTJAR_HOME": str(folder / "home"), "PREFECT_LOGGING_LEVEL": "ERROR"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], env=os.environ | own | {"NIGHTJAR_PSEUDONYM_KEY": "an example"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def do(self, what: str, *days: date) -> list[Costs]:
        """Let the process do something; what each of its nights cost."""
        assert self.process.stdin and self.process.stdout
        print(what, *days, file=self.process.stdin, flush=True)
        costs: list[Costs] = json.loads(self.process.stdout.readline())
        return costs


def work() -> None:
    """Do what the parent process writes to standard input."""
    from flows.config.quiet import hush_great_expectations
    from flows.config.settings import load_settings, prepare_environment

    answers, sys.stdout = sys.stdout, sys.stderr
    prepare_environment(load_settings())  # before Prefect is imported
    hush_great_expectations()
    from flows import backfill as backfills
    from flows.cli.run import train_and_promote
    from flows.config.setup import prepare
    from flows.nightly import nightly
    from flows.team.temporary import temporary_server
    from tasks.ingest import ingest_arrivals

    costs: list[Costs] = []

    def score(*args: Any, **options: Any) -> Any:
        fixed_ms = time_fixed_work()
        before = measure()["cpu_s"]
        result = nightly(*args, **options)
        after = measure()
        costs.append(after | {"cpu_s": after["cpu_s"] - before, "fixed_ms": fixed_ms})
        return result

    backfills.nightly = score  # type: ignore[assignment]
    with temporary_server():
        for line in sys.stdin:
            what, *texts = line.split()
            days = [date.fromisoformat(text) for text in texts]
            costs.clear()
            setup = prepare(NAME)
            if what == "train":
                ingest_arrivals(setup.site, setup.ingest_params, setup.window(last=days[0] - timedelta(days=1)))
                train_and_promote(setup, days[0])
            elif what == "backfill":
                ingest_arrivals(setup.site, setup.ingest_params, setup.window(last=days[1]))
                backfills.backfill(NAME, list_days(*days))
            else:
                score(NAME, days[0])
            print(json.dumps(costs), file=answers, flush=True)


def measure() -> Costs:
    """The CPU seconds so far of this process and those it started, and its memory."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return {"cpu_s": sum(one.user + one.system for one in times), "mb": this.memory_info().rss / 2**20}


def time_fixed_work() -> float:
    """The CPU milliseconds of work that is always the same and, like a night, larger than a core's cache: about 70."""
    began = time.process_time()
    sorted({str(number): number for number in range(200_000)})
    return 1e3 * (time.process_time() - began)


def list_days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def show(name: str, few: Iterable[float], many: Iterable[float], ratio: float, note: str = "") -> None:
    print(f"{name:40} {statistics.median(few):>12.2f} {statistics.median(many):>12.2f}   {ratio:5.2f} {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=200, help="published nights of the long project")
    parser.add_argument("--rows", type=int, default=2_000, help="rows per night")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    after = FIRST + timedelta(days=TRAINED_DAYS + options.nights)  # the first night that both score in turn
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        began = time.monotonic()
        backfilled, projects = [], []
        for nights in (FEW, options.nights):
            cutoff = after - timedelta(days=nights)
            first = cutoff - timedelta(days=TRAINED_DAYS)
            projects.append(Project(Path(folder, str(nights)), first, options.rows))
            projects[-1].do("train", cutoff)
            backfilled = projects[-1].do("backfill", cutoff, after - timedelta(days=1))
            print(f"{nights} nights after {time.monotonic() - began:.0f} s", file=sys.stderr)
        turns: list[list[Costs]] = [[], []]
        for day in list_days(after, after + timedelta(days=WARM + PAIRS - 1)):
            for project, found in zip(projects, turns, strict=True):
                found += project.do("night", day)
        for project in projects:
            project.process.communicate()
    few, many = ([one["cpu_s"] for one in found[WARM:]] for found in turns)
    ratios = sorted(b / a for a, b in zip(few, many, strict=True))
    quarter = len(ratios) // 4
    spread = f"half of the pairs {ratios[quarter]:.2f} to {ratios[-quarter - 1]:.2f}"
    print(f"{'':40} {f'{FEW} nights':>12} {f'{options.nights} nights':>12}   ratio")
    show("a night, CPU seconds", few, many, statistics.median(ratios), f"(target <= 1.05; {spread})")
    first, last = backfilled[FEW : FEW + PAIRS], backfilled[-PAIRS:]
    print(f"{'backfill':40} {'nights 6-20':>12} {f'last {PAIRS}':>12}   ratio")
    names = {"cpu_s": "CPU seconds of a night", "fixed_ms": "CPU ms of fixed work", "mb": "MB after a night"}
    for key, name in names.items():
        before, now = ([one[key] for one in found] for found in (first, last))
        show(name, before, now, statistics.median(now) / statistics.median(before))


if __name__ == "__main__":
    main()
