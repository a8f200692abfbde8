"""What `monitor` says of planted nights of payments: broken data, a changed world, an attack, and ordinary nights.

Each seed is a separate simulation with a version of its own, trained once. A planted night takes the whole way:
landing, contract, scores, publishing. The plants are on the same date one after the other, so each sees the same
ordinary nights before it. A changed world grows over four nights; the finding of the last one counts. Frauds of an
attack are the simulator's, of one kind, in addition to those of the night. Each seed has some of the plants, in turn.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from flows.config.settings import Settings
from flows.config.setup import Setup, load_setup
from tasks.calibrate import calibrate_bundle
from tasks.errors import BatchRejected
from tasks.filter import prepare_rows
from tasks.ingest import ingest_arrivals, land_arrivals
from tasks.monitor import monitor_night
from tasks.publish import Begun, publish_scored
from tasks.register import register_bundle
from tasks.score import score_night
from tasks.sources import payments
from tasks.sources.arrival import Arrival
from tasks.stores.tables import ATTACK, DATA_BROKE, NOTHING, WORLD_CHANGED, Drift, Finding
from tasks.train import fit_bundle
from tasks.validate import check_accepted, validate_batches

PROJECT = Path(__file__).resolve().parents[1]
CUTOFF = date(2026, 11, 14)
# A Saturday, a Sunday, a Monday, a Tuesday of which some rows are late, and a turn of the month.
QUIET = (*(date(2026, 11, day) for day in (14, 15, 16, 17)), date(2026, 11, 30), date(2026, 12, 1))
PLANTED = date(2026, 11, 18)
GROWING = 4  # nights of a changing world
ATTACK_ROWS = (40, 120)
REJECTED = "rejected"  # by the contract: nothing is published, and nothing to monitor
T = TypeVar("T")
Plant = Callable[[pd.DataFrame, np.random.Generator, float], pd.DataFrame]


def in_cents(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """Amounts in cents."""
    return frame.assign(amount=frame["amount"] * 100)


def in_metres(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """Distances in metres; those above the contract's limit stay."""
    metres = frame["km_from_home"] * 1000
    return frame.assign(km_from_home=metres.where(metres < 20_000, frame["km_from_home"]))


def without_values(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """A column without values in four of a hundred rows: more are rejected by the contract."""
    column = str(rng.choice(["country", "amount", "channel"]))
    return frame.assign(**{column: frame[column].mask(rng.random(len(frame)) < 0.04)})


def without_half(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """Half of the rows are missing: at random, or after noon."""
    if rng.random() < 0.5:
        return frame[rng.random(len(frame)) < 0.5]
    return frame.sort_values("event_time").iloc[: len(frame) // 2]


def swapped(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """Two columns exchanged."""
    pairs = [("amount", "km_from_home"), ("spend_24h", "amount_to_mean"), ("amount", "amount_to_mean")]
    pairs += [("category", "channel"), ("spend_1h", "km_from_home"), ("payments_24h", "terminal_reports_28d")]
    first, second = pairs[rng.integers(len(pairs))]
    return frame.assign(**{first: frame[second], second: frame[first]})


def in_another_zone(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """All times moved by whole hours."""
    return frame.assign(event_time=frame["event_time"] + timedelta(hours=int(rng.choice([-6, -2, -1, 1, 2, 6]))))


def stuck(frame: pd.DataFrame, rng: np.random.Generator, _: float) -> pd.DataFrame:
    """A column with one value."""
    column = str(rng.choice(["amount", "km_from_home", "channel", "category", "payments_24h", "spend_1h"]))
    return frame.assign(**{column: frame[column].dropna().iloc[int(rng.integers(1000))]})


def inflated(frame: pd.DataFrame, rng: np.random.Generator, strength: float) -> pd.DataFrame:
    """Amounts up by 60 % in the end."""
    columns = ["amount", "spend_1h", "spend_24h", "amount_to_mean"]
    return frame.assign(**{name: frame[name] * (1 + 0.6 * strength) for name in columns})


def remixed(frame: pd.DataFrame, rng: np.random.Generator, strength: float) -> pd.DataFrame:
    """Payments without a card present become three times as frequent in the end."""
    weight = np.where(frame["card_present"], 1.0, 1 + 2 * strength)
    chosen = frame.iloc[np.sort(rng.choice(len(frame), len(frame), p=weight / weight.sum()))]
    copies = chosen.groupby("payment_id").cumcount().astype(str)
    return chosen.assign(payment_id=chosen["payment_id"] + "-" + copies)


def with_new_category(frame: pd.DataFrame, rng: np.random.Generator, strength: float) -> pd.DataFrame:
    """One payment in eight has a category that no training row has, in the end."""
    return frame.assign(category=frame["category"].mask(rng.random(len(frame)) < strength / 8, "carbon_credits"))


def travelling(frame: pd.DataFrame, rng: np.random.Generator, strength: float) -> pd.DataFrame:
    """In the end, people pay two and a half times as far from home."""
    return frame.assign(km_from_home=(frame["km_from_home"] * (1 + 1.5 * strength)).clip(upper=20_000))


def attacked(kind: str) -> Plant:
    """Many frauds of one kind in addition; those of a terminal are at one."""

    def plant(frame: pd.DataFrame, rng: np.random.Generator, seed: float) -> pd.DataFrame:
        frauds = draw_frauds(int(seed))
        chosen = frauds[frauds["kind"] == kind].head(int(rng.integers(*ATTACK_ROWS))).drop(columns="kind")
        chosen = chosen.assign(payment_id=chosen["payment_id"] + "-planted")
        if kind == "compromised_terminal":
            chosen = chosen.assign(terminal_id=chosen["terminal_id"].iloc[0])
        return pd.concat([frame, chosen], ignore_index=True)

    return plant


FRAUDS: dict[int, pd.DataFrame] = {}


def draw_frauds(seed: int) -> pd.DataFrame:
    """The frauds of a day of 100,000 payments of another simulation, with their kind."""
    if seed not in FRAUDS:
        source = payments.PaymentsSource(
            kind="payments", seed=seed + 1000, rows_per_day=100_000, first_date=PLANTED - timedelta(days=35)
        )
        [file] = payments.list_deliveries(source, "Europe/Berlin", PLANTED, PLANTED)
        truth = payments.read_truth(source, "Europe/Berlin", PLANTED).set_index("record_id")["kind"]
        rows = pd.concat(payments.read_file(source, "Europe/Berlin", file))
        FRAUDS.clear()
        FRAUDS[seed] = rows.assign(kind=rows["payment_id"].map(truth)).dropna(subset="kind")
    return FRAUDS[seed]


BROKEN = (in_cents, in_metres, without_values, without_half, swapped, in_another_zone, stuck)
CHANGED = (inflated, remixed, with_new_category, travelling)


def open_project(folder: Path, seed: int) -> Setup:
    """The payments detector of this repository with another simulation, in an empty folder."""
    document = yaml.safe_load((PROJECT / "params.yaml").read_text())
    section = document["detectors"]["payments"]
    section["ingest"]["source"]["seed"] = seed
    (folder / "contracts").mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump({"detectors": {"payments": section}}))
    (folder / "contracts" / "payments.yaml").write_bytes((PROJECT / "contracts" / "payments.yaml").read_bytes())
    setup = load_setup("payments", Settings(project=folder))
    setup.site.warehouse.migrate()
    return setup


def train(setup: Setup) -> None:
    """Train and register one version."""
    site, params = setup.site, setup.configured.detector
    ingest_arrivals(site, setup.ingest_params, setup.window(last=CUTOFF - timedelta(days=1)))
    validate_batches(site, setup.configured.contract, setup.landed_before(CUTOFF), params.validate_)
    rows = prepare_rows(site, CUTOFF, params.filter, params.train.columns.numbers)
    fitted = fit_bundle(site, rows, params.train, setup.hashes)
    calibrated = calibrate_bundle(site, rows, fitted, params.calibrate, params.ingest.has_labels)
    register_bundle(site, calibrated.bundle, None, calibrated.tags)


class Nights:
    """Nights of one seed."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.frames, self.number = setup, dict[date, pd.DataFrame](), 0
        self.seed = setup.configured.detector.ingest.source.seed  # type: ignore[union-attr]
        self.version = setup.site.registry.get_champion()
        self.bundle = setup.site.registry.fetch_bundle(self.version)

    def read(self, day: date) -> pd.DataFrame:
        """The raw rows of a day; of a day with a late file only the first file's."""
        if day not in self.frames:
            source, zone = self.setup.configured.detector.ingest.source, self.setup.site.time_zone
            file = payments.list_deliveries(source, zone, day, day)[0]  # type: ignore[arg-type]
            self.frames[day] = pd.concat(payments.read_file(source, zone, file), ignore_index=True)  # type: ignore[arg-type]
        return self.frames[day]

    def run(self, day: date, plant: Plant | None = None, strength: float = 1.0) -> tuple[list[Drift], Finding]:
        """One night from landing to its finding. Raises BatchRejected if the contract rejects it."""
        setup, site, params = self.setup, self.setup.site, self.setup.configured.detector
        self.number += 1
        frame = self.read(day)
        if plant:
            frame = plant(frame, np.random.default_rng([self.seed, self.number]), strength)
        arrives = site.start_of(day + timedelta(days=1)) + timedelta(hours=2)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        arrival = Arrival(f"payments-{day}", str(self.number), arrives, lambda: [table])
        land_arrivals(site, setup.ingest_params, setup.window(day, day), [arrival])
        now = datetime.now(UTC)
        [validation] = validate_batches(site, setup.configured.contract, [day], params.validate_)
        check_accepted(site.detector, [validation])
        begun = Begun(site.warehouse.begin_attempt(site.detector, day, "begin", now), now)
        known = (site, setup.configured.contract, validation, self.version, self.bundle, params.score)
        night = publish_scored(site, begun, score_night(*known, now), setup.record_rule)
        watched = (setup.record_rule, params.monitor, params.filter.exclude_dates, self.version.night_spread, True)
        return monitor_night(site, setup.configured.contract, night, self.bundle, *watched)


def measure(seed: int) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """What is expected, the plant, what was found, and the evidence."""
    with TemporaryDirectory() as folder:
        setup = open_project(Path(folder), seed)
        train(setup)
        nights = Nights(setup)
        for day in QUIET:
            yield NOTHING, f"{day:%a %d %b}", *describe(nights.run(day))
        for broken in take_turns(BROKEN, seed, 3):
            try:
                yield DATA_BROKE, broken.__name__, *describe(nights.run(PLANTED, broken))
            except BatchRejected as error:
                yield DATA_BROKE, broken.__name__, REJECTED, (str(error.parts["got"]),)
        for kind in take_turns(payments.KINDS, seed, 2):
            yield ATTACK, kind, *describe(nights.run(PLANTED, attacked(kind), seed))
        for changed in take_turns(CHANGED, seed, 2):
            for night in range(GROWING):
                found = nights.run(PLANTED + timedelta(days=night), changed, (night + 1) / GROWING)
            yield WORLD_CHANGED, changed.__name__, *describe(found)


def take_turns(plants: Sequence[T], seed: int, count: int) -> list[T]:
    """Some of the plants, so that over the seeds all come equally often."""
    return [plants[(seed * count + n) % len(plants)] for n in range(count)]


def describe(found: tuple[list[Drift], Finding]) -> tuple[str, tuple[str, ...]]:
    """The finding and its evidence."""
    return found[1].finding, found[1].evidence


def main() -> None:
    """Print every night that was named wrongly, then a table of the plants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=101)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        start = time.process_time()
        for expected, plant, found, evidence in measure(seed):
            table[expected, plant][found] += 1
            if found not in (expected, REJECTED) or arguments.verbose:
                print(f"seed {seed}, {plant}: {found}, expected {expected}: {' '.join(evidence)}", flush=True)
        print(f"seed {seed}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    names = (DATA_BROKE, WORLD_CHANGED, ATTACK, NOTHING, REJECTED)
    print(f"| expected | plant | {' | '.join(names)} |")
    print("|" + "---|" * (2 + len(names)))
    for (expected, plant), counts in table.items():
        print(f"| {expected} | {plant} | {' | '.join(str(counts[name]) for name in names)} |")


if __name__ == "__main__":
    main()
