"""How often a night's false alarms lie in the interval that the calibration states, and how well a recall is kept.

    python bench/calibration.py adbench/*.npz oddbench/*.npz --seeds 3
    python bench/calibration.py --simulations 16

Tables (arrays X and y, or train, test and test_labels): of the normal rows, shuffled or in file order, the first half
fits, a tenth stops, a fifth calibrates, and the last fifth is ten nights; columns, networks and scores are those of
`nightjar init`. Simulations of payments: the detector of params.yaml, trained once, and the 60 nights after its cut-off
without their frauds. Compared are the interval of the rate times the night's rows, which is how people read it, the
exact interval of a night's count, and that interval as wide as the calibration's days (ten blocks of a table) vary.
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

from models.calibration import Threshold, Tuning, expect_false_alarms, fit_threshold, measure_spread
from models.detector import Detector, ModelParams, fit_detector
from models.encoders import choose_kinds
from models.errors import TooFewRows
from models.params import QuantilePolicy, RecallPolicy
from tasks.filter import LABEL, read_set
from tasks.onboarding.draft import Request, draft_detector
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.schema import type_rows
from tasks.sources import payments
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource

Floats = npt.NDArray[np.float64]
QUANTILES, NIGHTS, SIMULATED = (0.95, 0.99), 10, 60
RATE, EXACT, WIDE = "the rate's interval", "the exact interval", "the widened interval"
Found = dict[tuple[str, str], list[list[float]]]  # of what, by which interval: inside, above, below, widths per night


def read_normals(path: Path) -> Floats:
    """The normal rows of a table, in file order."""
    with np.load(path, allow_pickle=False) as arrays:
        if "X" in arrays:
            return arrays["X"][arrays["y"] == 0].astype(float)
        return np.concatenate([arrays["train"], arrays["test"][arrays["test_labels"] == 0]]).astype(float)


def score_table(x: Floats, seed: int, most: int, epochs: int) -> tuple[Floats, Floats]:
    """Scores of the calibration rows and of the later rows, in order. Of a long table every n-th row is taken."""
    x = x[np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)]
    half, stop, calibrated = (int(share * len(x)) for share in (0.5, 0.6, 0.8))
    table = pa.table({f"x{n}": column for n, column in enumerate(x.T)})
    few = table.take(pa.array(np.sort(np.random.default_rng(seed).permutation(half)[:4000])))
    arrival = Arrival("fit", "1", datetime(2026, 1, 1, tzinfo=UTC), lambda: [few])
    drafted = draft_detector(FilesSource(kind="files", path="fit"), [arrival], Request())
    learn = drafted.train
    columns = describe_columns(learn.columns, type_rows(few, drafted.contract))
    sets = few, table[half:stop], table[stop:calibrated], table[calibrated:]
    fit, stopping, clean, later = (to_records(type_rows(rows, drafted.contract), columns)[0] for rows in sets)
    own = learn.fit.model_copy(update={"epochs": min(epochs, learn.fit.epochs), "seed": seed})
    params = ModelParams(networks=learn.networks, fit=own, score=learn.score)
    detector = fit_detector(choose_kinds(columns, fit, learn.encode), fit, stopping, params, torch.device("cpu"))
    return detector.score(clean), detector.score(later)


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


def measure_table(found: Found, path: Path, seeds: int, most: int, epochs: int) -> None:
    """A table shuffled by each seed, and in file order."""
    x = read_normals(path)
    for seed in range(seeds):
        shuffled = x[np.random.default_rng(seed).permutation(len(x))]
        for order, rows in (("shuffled", shuffled), ("file order", x)):
            clean, later = score_table(rows, seed, most, epochs)
            blocks = np.arange(len(clean)) * NIGHTS // len(clean)
            for q in QUANTILES:
                try:
                    threshold = fit_threshold(clean, QuantilePolicy(q=q))
                except TooFewRows:
                    continue
                spread = measure_spread(clean > threshold.value, blocks)
                count_inside(found, f"{order}, q {q}", threshold, spread, np.array_split(later, NIGHTS))


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


def measure_payments(found: Found, recalls: list[list[float]], seed: int) -> None:
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
    recalls: list[list[float]] = []
    for path in options.tables:
        measure_table(found, path, options.seeds, options.most, options.epochs)
    for seed in range(options.simulations):
        measure_payments(found, recalls, 7 + seed)
    print(f"{'':24}{'':24}inside  above  below  width (exact: 1), runs")
    for (what, name), rows in found.items():
        inside, above, below, width = np.mean(rows, axis=0)
        print(f"{what:24}{name:24}{inside:6.1%} {above:6.1%} {below:6.1%} {width:6.2f} {len(rows):6}")
    if recalls:
        recall, inside = np.mean(recalls, axis=0)
        spread = np.std([one[0] for one in recalls])
        print(f"recall of 0.9 on later frauds: {recall:.3f} ± {spread:.3f}, in its interval {inside:.0%}")


if __name__ == "__main__":
    main()
