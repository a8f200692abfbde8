"""How long the desk's pages and verdicts take: 60 nights, 100,000 open flags in 1,000 cases, 8 people at once.

    python bench/desk.py                          # DuckDB, about two minutes
    python bench/desk.py --warehouse URL          # an empty PostgreSQL database

A client looks at each page for a second on average; --pause 0 asks for the next one at once, which no person does. The
server runs in a process of its own. Printed are the median and the 95th percentile of the whole request, in ms.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from tasks.stores.bulk import load_rows
from tasks.stores.tables import case_events, case_flags, cases, flagged_anomalies, scoring_batches
from tasks.stores.warehouse import Warehouse

PROJECT = Path(__file__).resolve().parents[1]
FIRST = date(2026, 9, 22)
COLUMNS = ("amount", "payments_1h", "spend_24h", "country", "channel", "event_time")


def fill(warehouse: Warehouse, nights: int, flags: int, people: int) -> None:
    """Published nights with their flags, and a case for each entity."""
    warehouse.migrate()
    draw, per_night = np.random.default_rng(1), flags // nights
    with warehouse.begin() as connection:
        for number in range(nights):
            day = FIRST + timedelta(days=number)
            night = make_flags(draw, day, per_night, people)
            load_rows(connection, flagged_anomalies, night)
            members = night[["detector", "batch_date", "record_id", "attempt"]]
            load_rows(connection, case_flags, members.assign(case_id=night["entity"].str[1:].astype(int) + 1))
            load_rows(connection, scoring_batches, pd.DataFrame([make_night(day, per_night)]))
        opened = pd.Timestamp(datetime.now(UTC) - timedelta(days=1))
        of_case = {"detector": "payments", "case_id": np.arange(1, people + 1)}
        ranks = draw.choice(["low", "medium", "high", "critical"], people, p=[0.6, 0.25, 0.1, 0.05])
        entities = [f"E{number}" for number in range(people)]
        load_rows(connection, cases, pd.DataFrame({**of_case, "entity": entities, "severity": ranks, "state": "open",
                  "opened_at": opened, "due_at": opened + pd.Timedelta(days=3)}))  # fmt: skip
        load_rows(connection, case_events, pd.DataFrame({**of_case, "number": of_case["case_id"], "happened_at": opened,
                  "kind": "opened", "actor": "nightjar"}))  # fmt: skip


def make_flags(draw: np.random.Generator, day: date, count: int, people: int) -> pd.DataFrame:
    """One night's rows of flagged_anomalies."""
    shares = draw.dirichlet(np.ones(4), count)
    columns = [draw.permutation(COLUMNS)[:3] for _ in range(count)]
    causes = [
        json.dumps([{"column": c, "share": s, "actual": 3.5, "expected": 1.2} for c, s in zip(names, row, strict=False)]
                   + [{"column": "other", "share": row[3]}])
        for names, row in zip(columns, shares, strict=True)
    ]  # fmt: skip
    records = [json.dumps({"amount": float(a), "country": c, "channel": "online", "terminal_id": f"T{t}"})
               for a, c, t in zip(draw.gamma(2, 50, count).round(2), draw.choice(["DE", "FR", "IE"], count),
                                  draw.integers(0, 5000, count), strict=True)]  # fmt: skip
    when = pd.Timestamp(day, tz="UTC") + pd.to_timedelta(draw.integers(0, 86400, count), unit="s")
    score = 0.1 * (1 + draw.exponential(1, count))
    names = range(count)
    return pd.DataFrame({
        "detector": "payments", "batch_date": day, "attempt": 1, "event_time": when, "score": score,
        "record_id": [f"P{day:%Y%m%d}-{number}" for number in names], "percentile_rank": 100 - draw.random(count),
        "p_value": draw.random(count) / 100, "threshold": 0.1, "causes": causes, "model_name": "nightjar-payments",
        "model_version": 1, "scored_at": pd.Timestamp(day, tz="UTC"), "suppressed": False, "record": records,
        "entity": [f"E{number}" for number in draw.integers(0, people, count)],
    })  # fmt: skip


def make_night(day: date, flagged: int) -> dict[str, object]:
    """The row of scoring_batches."""
    counts = {"rows_in": 170_000, "quarantined": 0, "excluded": 0, "scored": 170_000, "unseen": 0}
    return counts | {
        "detector": "payments", "batch_date": day, "attempt": 1, "input_hash": "0" * 64, "flagged": flagged,
        "published": flagged, "threshold": 0.1, "model_name": "nightjar-payments", "model_version": 1,
        "scored_at": pd.Timestamp(day, tz="UTC"), "seconds": 1.0,
    }  # fmt: skip


def ask(base: str, seed: int, pages: list[str], until: float, pause: float, taken: dict[str, list[float]]) -> None:
    """One client: pages in a random order, and a verdict and its undoing after every ten."""
    draw = random.Random(seed)
    with httpx.Client(base_url=base, timeout=60) as client:
        key = re.search(r'data-form-key="(\w+)"', client.get("/payments/queue").text)[1]  # type: ignore[index]
        number = 0
        while time.monotonic() < until:
            number += 1
            time.sleep(draw.expovariate(1 / pause) if pause else 0)
            name, path = draw.choice([page.split(" ") for page in pages])
            chosen = path.format(day=FIRST + timedelta(days=draw.randrange(60)), n=draw.randrange(1, 1001))
            began = time.monotonic()
            answer = client.get(chosen)
            taken[name].append(time.monotonic() - began)
            assert answer.status_code == 200, (answer.status_code, chosen)
            if number % 10 == 0:
                case = 100 * seed + number % 100 + 1
                for what, form in (("judge", {"verdict": "confirmed"}), ("undo", {})):
                    began = time.monotonic()
                    answer = client.post(f"/payments/case/{case}/{what}", data={"form_key": key, **form})
                    taken["verdict" if what == "judge" else "undo"].append(time.monotonic() - began)
                    assert answer.status_code == 303, answer.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warehouse", default="", help="URL of an empty database (default: a DuckDB file)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds before each request of a client")
    parser.add_argument("--flags", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        home = Path(folder)
        shutil.copytree(PROJECT / "contracts", home / "contracts")
        shutil.copy(PROJECT / "params.yaml", home)
        url = given.warehouse or f"duckdb:///{home / 'warehouse.duckdb'}"
        fill(Warehouse(url), 60, given.flags, 1000)
        environment = os.environ | {
            "NIGHTJAR_PROJECT": folder, "NIGHTJAR_HOME": folder, "NIGHTJAR_WAREHOUSE": url,
            "NIGHTJAR_PSEUDONYM_KEY": "bench",
        }  # fmt: skip
        command = [sys.executable, "-m", "flows.cli.main", "desk", "--port", "0"]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        try:
            base = re.search(r"http://\S+?(?=/ )", server.stdout.readline())[0]  # type: ignore[union-attr,index]
            pages = ["tonight /payments/{day}", "filtered /payments/{day}?severity=high&search=IE",
                     "case /payments/case/{n}", "similar /payments/case/{n}/similar", "entity /payments/entity/E{n}",
                     "explorer /payments/explorer", "queue /payments/queue?view=all", "nights /payments/nights",
                     "night /payments/nights/{day}",
                     "rules /payments/rules", "model /payments/model"]  # fmt: skip
            with httpx.Client(base_url=base, timeout=60) as client:
                pages = [page for page in pages
                         if client.get(page.split(" ")[1].format(day=FIRST, n=1)).status_code == 200]  # fmt: skip
            taken: dict[str, list[float]] = defaultdict(list)
            until = time.monotonic() + given.seconds
            people = [
                threading.Thread(target=ask, args=(base, seed, pages, until, given.pause, taken))
                for seed in range(given.clients)
            ]
            for person in people:
                person.start()
            for person in people:
                person.join()
        finally:
            server.terminate()
            server.wait()
    print(
        f"{given.clients} clients, {given.flags:,} flags, pause {given.pause:g} s: page, requests, median ms, 95 % ms"
    )
    for name, seconds in taken.items():
        median, high = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95))
        print(f"{name:10} {len(seconds):6} {median:8.0f} {high:8.0f}")


if __name__ == "__main__":
    main()
