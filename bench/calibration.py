"""How often a night's false alarms lie in the interval that the calibration states, and how well recalls and
false-discovery rates are kept.

    python bench/calibration.py adbench/*.npz oddbench/*.npz --seeds 3
    python bench/calibration.py --simulations 16

Tables (arrays X and y, or train, test and test_labels): of the normal rows, shuffled or in file order, the first half
fits, a tenth stops, a fifth calibrates, and the last fifth is ten nights; columns, networks and scores are those of
`nightjar init`. Simulations of payments: the detector of params.yaml, trained once, and the 60 nights after its cut-off
without their frauds. Compared are the interval of the rate times the night's rows, which is how people read it, the
exact interval of a night's count, and that interval as wide as the calibration's days (ten blocks of a table) vary.
False-discovery rates are measured on the same nights with their frauds, or with 5 % of a table's anomalies.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from monitor import CUTOFF, open_project, train

from models.calibration import Threshold, Tuning, discover, expect_false_alarms, fit_threshold, measure_spread
from models.detector import Detector, ModelParams, fit_detector
from models.encoders import choose_kinds
from models.errors import TooFewRows
from models.params import FalseDiscoveryPolicy, QuantilePolicy, RecallPolicy
from tasks.filter import LABEL, read_set
from tasks.onboarding.draft import Request, draft_detector
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.schema import type_rows
from tasks.sources import payments
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource

Floats = npt.NDArray[np.float64]
QUANTILES, NIGHTS, SIMULATED = (0.95, 0.99), 10, 60
RATES, ANOMALOUS = (0.1, 0.2, 0.5), 0.05  # of discoveries; of the rows of a table's night
RATE, EXACT, WIDE = "the rate's interval", "the exact interval", "the widened interval"
Shares = dict[str, list[list[float]]]  # of what: the share of false alarms among flags, and the recall
Found = dict[tuple[str, str], list[list[float]]]  # of what, by which interval: inside, above, below, widths per night


def read_table(path: Path) -> tuple[Floats, Floats]:
    """The normal rows of a table, in file order, and its anomalies."""
    with np.load(path, allow_pickle=False) as arrays:
        if "X" in arrays:
            x, y = arrays["X"].astype(float), arrays["y"]
        else:
            x = np.concatenate([arrays["train"], arrays["test"]]).astype(float)
            y = np.concatenate([np.zeros(len(arrays["train"])), arrays["test_labels"]])
        return x[y == 0], x[y != 0]


def score_table(x: Floats, odd: Floats, seed: int, most: int, epochs: int) -> tuple[Floats, Floats, Floats]:
    """Scores of the calibration rows, the later rows, in order, and the anomalies. Of long tables every n-th row."""
    x = x[np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)]
    half, stop, calibrated = (int(share * len(x)) for share in (0.5, 0.6, 0.8))
    table = pa.table({f"x{n}": column for n, column in enumerate(x.T)})
    few = table.take(pa.array(np.sort(np.random.default_rng(seed).permutation(half)[:4000])))
    arrival = Arrival("fit", "1", datetime(2026, 1, 1, tzinfo=UTC), lambda: [few])
    drafted = draft_detector(FilesSource(kind="files", path="fit"), [arrival], Request())
    learn = drafted.train
    columns = describe_columns(learn.columns, type_rows(few, drafted.contract))
    anomalies = pa.table({f"x{n}": column for n, column in enumerate(odd[:most].T)})
    sets = few, table[half:stop], table[stop:calibrated], table[calibrated:], anomalies
    fit, stopping, clean, later, planted = (to_records(type_rows(rows, drafted.contract), columns)[0] for rows in sets)
    own = learn.fit.model_copy(update={"epochs": min(epochs, learn.fit.epochs), "seed": seed})
    params = ModelParams(networks=learn.networks, fit=own, score=learn.score)
    detector = fit_detector(choose_kinds(columns, fit, learn.encode), fit, stopping, params, torch.device("cpu"))
    return detector.score(clean), detector.score(later), detector.score(planted)


def count_inside(found: Found, what: str, threshold: Threshold, spread: float, nights: Sequence[Floats]) -> None:
    """Compare each night's false alarms with the intervals."""
    shares = defaultdict[str, list[list[float]]](list)
    for scores in nights:
        flags, rows = int((scores > threshold.value).sum()), len(scores)
        exact, wide = (expect_false_alarms(threshold, rows, one) for one in (1.0, spread))
        ends = {RATE: (threshold.interval_low * rows, threshold.interval_high * rows)}
        ends |= {EXACT: (exact.low, exact.high), WIDE: (wide.low, wide.high)}
        for name, (low, high) in ends.items():
            width = (high - low + 1) / (exact.high - exact.low + 1)
            shares[name].append([low <= flags <= high, flags > high, flags < low, width])
    for name, rows_ in shares.items():
        found.setdefault((what, name), []).append(list(np.mean(rows_, axis=0)))


def count_discoveries(found: Shares, what: str, clean: Floats, nights: Sequence[tuple[Floats, Floats]]) -> None:
    """The share of false alarms among the flags of each night, normal and anomalous rows, and the recall."""
    for rate in RATES:
        try:
            fit_threshold(clean, FalseDiscoveryPolicy(at_most=rate), rows_per_night=sum(map(len, nights[0])))
        except TooFewRows:
            continue
        shares = []
        for honest, odd in nights:
            night = np.concatenate([honest, odd])
            threshold = discover(np.sort(clean), night, len(night), rate)
            false, hits = (int((scores > threshold).sum()) for scores in (honest, odd))
            shares.append([false / max(1, false + hits), hits / max(1, len(odd))])
        found.setdefault(f"{what}, at most {rate}", []).append(list(np.mean(shares, axis=0)))


def measure_table(found: Found, discovered: Shares, path: Path, seeds: int, most: int, epochs: int) -> None:
    """A table shuffled by each seed, and in file order."""
    x, anomalies = read_table(path)
    for seed in range(seeds):
        shuffled = x[np.random.default_rng(seed).permutation(len(x))]
        for order, rows in (("shuffled", shuffled), ("file order", x)):
            clean, later, planted = score_table(rows, anomalies, seed, most, epochs)
            draw = np.random.default_rng(seed)
            parts = np.array_split(later, NIGHTS)
            nights = [(one, draw.choice(planted, max(1, round(ANOMALOUS * len(one))))) for one in parts]
            count_discoveries(discovered, order, clean, nights)
            blocks = np.arange(len(clean)) * NIGHTS // len(clean)
            for q in QUANTILES:
                try:
                    threshold = fit_threshold(clean, QuantilePolicy(q=q))
                except TooFewRows:
                    continue
                spread = measure_spread(clean > threshold.value, blocks)
                count_inside(found, f"{order}, q {q}", threshold, spread, parts)


def read_nights(source: payments.PaymentsSource, zone: str) -> Iterator[tuple[pd.DataFrame, npt.NDArray[np.bool_]]]:
    """The valid rows of each night after the cut-off, and which are frauds."""
    for n in range(SIMULATED):
        day = CUTOFF + timedelta(days=n)
        files = payments.list_deliveries(source, zone, day, day)
        rows = pd.concat([frame for file in files for frame in payments.read_file(source, zone, file)])
        valid = (
            np.isfinite(rows["amount"]) & (rows["amount"] > 0) & rows["country"].notna() & rows["event_time"].notna()
        )
        rows = rows[valid].drop_duplicates("payment_id")
        yield rows, rows["payment_id"].isin(payments.read_truth(source, zone, day)["record_id"]).to_numpy()


def measure_payments(found: Found, discovered: Shares, recalls: list[list[float]], seed: int) -> None:
    """One simulation: false alarms of each night, and the recall of 0.9 on the frauds of all nights."""
    with TemporaryDirectory() as folder:
        setup = open_project(Path(folder), seed)
        train(setup)
        site, source = setup.site, setup.configured.detector.ingest.source
        assert isinstance(source, payments.PaymentsSource)
        detector = Detector.load(site.registry.fetch_bundle(site.registry.get_champion()))
        clean, tuning = (read_set(site.lake, site.detector, CUTOFF, name) for name in ("calibration", "tuning"))
        scores, tuned = (detector.score(to_records(rows, detector.columns)[0]) for rows in (clean, tuning))
        days = clean["event_time"].to_pandas().dt.tz_convert(site.zone).dt.day_of_year.to_numpy()
        honest, frauds = [], []
        for rows, is_fraud in read_nights(source, site.time_zone):
            table = pa.Table.from_pandas(rows, preserve_index=False)
            night = detector.score(to_records(table, detector.columns)[0])
            honest.append(night[~is_fraud])
            frauds.append(night[is_fraud])
        for q in QUANTILES:
            threshold = fit_threshold(scores, QuantilePolicy(q=q))
            count_inside(found, f"payments, q {q}", threshold, measure_spread(scores > threshold.value, days), honest)
        count_discoveries(discovered, "payments", scores, list(zip(honest, frauds, strict=True)))
        kept = fit_threshold(scores, RecallPolicy(at_least=0.9), Tuning(tuned, tuning[LABEL].to_numpy() == 1))
        recall = float((np.concatenate(frauds) > kept.value).mean())
        assert kept.recall
        recalls.append([recall, kept.recall.interval_low <= recall <= kept.recall.interval_high])


def main() -> None:
    """Print the shares of nights inside, above and below each interval, and its width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="*", help="NAME.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--most", type=int, default=20_000, help="maximum number of rows of a table")
    parser.add_argument("--simulations", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Found = {}
    discovered: Shares = {}
    recalls: list[list[float]] = []
    for path in options.tables:
        measure_table(found, discovered, path, options.seeds, options.most, options.epochs)
    for seed in range(options.simulations):
        measure_payments(found, discovered, recalls, 7 + seed)
    print(f"{'':24}{'':24}inside  above  below  width (exact: 1), runs")
    for (what, name), rows in found.items():
        inside, above, below, width = np.mean(rows, axis=0)
        print(f"{what:24}{name:24}{inside:6.1%} {above:6.1%} {below:6.1%} {width:6.2f} {len(rows):6}")
    print(f"\n{'false-discovery rate':32}false alarms among flags  recall, runs")
    for what, rows in discovered.items():
        share, recall = np.mean(rows, axis=0)
        print(f"{what:32}{share:24.1%} {recall:7.1%} {len(rows):5}")
    if recalls:
        recall, inside = np.mean(recalls, axis=0)
        spread = np.std([one[0] for one in recalls])
        print(f"recall of 0.9 on later frauds: {recall:.3f} ± {spread:.3f}, in its interval {inside:.0%}")


if __name__ == "__main__":
    main()
