"""Where the frauds among the flags of payments are: by flags of one card in a night, by case, and by severity.

    python bench/cases.py --seeds 101 102 103    # about three minutes per seed: seven nights in a temporary home
    python bench/cases.py --project FOLDER       # of a folder where nightjar run payments has been run

A case counts as fraud if one of its flags is. Ranked are the flags of all seven nights together: by their own score,
and by the place of their case in `nightjar cases`; and the cases, by that place and by their number of flags. The
figure is the average precision. Several seeds are pooled for the shares; the average precision is their mean.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from flows.config.params import load_detector
from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]


def run(project: Path, *arguments: str) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTJAR_")}
    environment |= {"NIGHTJAR_PROJECT": str(project), "NIGHTJAR_HOME": str(project / ".nightjar")}
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    return subprocess.run(command, check=True, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def make_project(seed: int) -> Iterator[Path]:
    """A temporary project whose payments have this seed, after its first nights."""
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        project = Path(folder)
        shutil.copytree(PROJECT / "contracts", project / "contracts")
        params = (PROJECT / "params.yaml").read_text()
        (project / "params.yaml").write_text(params.replace("kind: payments, seed: 7", f"kind: payments, seed: {seed}"))
        run(project, "run", "payments")
        yield project


def read_flags(project: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All alerts with is_fraud, and all cases in the order of `nightjar cases`, with is_fraud."""
    detector = load_detector(project, "payments").detector
    nights = ("--from", "2000-01-01", "--to", "2100-01-01")
    flags = pd.DataFrame(json.loads(run(project, "flags", "payments", *nights, "--json"))["flags"])
    flags = flags[~flags["suppressed"].astype(bool)]
    source, zone = detector.ingest.source, detector.time_zone
    days = [pd.Timestamp(day).date() for day in flags["batch_date"].unique()]
    frauds = pd.concat([payments.read_truth(source, zone, day) for day in days])["record_id"]
    flags = flags.assign(is_fraud=flags["record_id"].isin(frauds))
    cases = pd.DataFrame(json.loads(run(project, "cases", "payments", "--all", "--json"))["cases"])
    cases = cases[cases["flags"] > 0]
    return flags, cases.assign(is_fraud=cases["case"].map(flags.groupby("case")["is_fraud"].any()).astype(bool))


def rank(flags: pd.DataFrame, cases: pd.DataFrame) -> dict[str, float]:
    """The average precision of flags and of cases, each ranked in two ways."""
    places = pd.Series(np.arange(len(cases), 0, -1), cases["case"])
    by_case = flags["case"].map(places) + flags["score"].rank(pct=True) / 2
    return {
        "flags by score": average_precision_score(flags["is_fraud"], flags["score"]),
        "flags by the place of their case": average_precision_score(flags["is_fraud"], by_case),
        "cases by place": average_precision_score(cases["is_fraud"], places),
        "cases by number of flags": average_precision_score(cases["is_fraud"], cases["flags"]),
    }


def share(frame: pd.DataFrame, by: pd.Series) -> dict[str, tuple[int, float]]:
    """The number, and the share of frauds, by group."""
    return {str(name): (len(group), float(group["is_fraud"].mean())) for name, group in frame.groupby(by, sort=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--project", type=Path)
    options = parser.parse_args()
    found: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    if options.project:
        found.append(read_flags(options.project))
    else:
        for seed in options.seeds:
            with make_project(seed) as project:
                found.append(read_flags(project))
    cards = pd.concat([flags.groupby(["batch_date", "entity"])["is_fraud"].agg(["size", "any"]) for flags, _ in found])
    cards = cards.reset_index().rename(columns={"any": "is_fraud"}).sort_values("size")
    cases: Any = pd.concat([cases for _, cases in found], ignore_index=True)
    groups = {
        "flags of a card in one night": share(cards, cards["size"].clip(upper=3)),
        "flags of a case": share(cases.sort_values("flags"), cases["flags"].clip(upper=3)),
        "severity of a case": share(cases, cases["severity"]),
    }
    for title, rows in groups.items():
        print(f"\n{title:<34}{'number':>8}{'fraud':>8}")
        for name, (number, fraud) in rows.items():
            print(f"{name:<34}{number:>8}{fraud:>8.1%}")
    ranked = pd.DataFrame([rank(*one) for one in found]).mean()
    print("\naverage precision")
    for name, value in ranked.items():
        print(f"{name:<34}{value:>16.3f}")


if __name__ == "__main__":
    main()
